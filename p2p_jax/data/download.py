"""An archive over HTTP, whole or not at all; a cut connection goes on where it stopped."""

from __future__ import annotations

import http.client
import re
import shutil
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.error import HTTPError, URLError

from p2p_jax.data.pairs import DataError, Log
from p2p_jax.data.partial import Part, content_range
from p2p_jax.data.progress import Progress, megabytes

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds between tries that bring nothing new
TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 18
_GZIP = b"\x1f\x8b"  # RFC 1952, 2.3.1
_AGAIN = (408, 425, 429)  # statuses that may pass, besides those from 500
_OTHERWISE = (
    "data.url names a mirror, and --config.data.path=FILE uses a file that was downloaded otherwise"
)


def download(
    url: str,
    target: Path,
    log: Log,
    *,
    pauses: Sequence[float] = PAUSES,
    timeout: float = TIMEOUT,
) -> Path:
    """Downloads a gzip archive to `target`, which is there only once it is whole.

    What has arrived is kept in `target` + '.part', and what it is a part of in '.part.json'; the
    next call goes on from there if the server still has the same file. Not safe against a second
    process with the same target: the caller holds a lock. Where `target` exists nothing is done.

    Args:
      url: http or https.
      target: the file to become; its folder is made.
      log: told of progress every two seconds, and of every new try.
      pauses: seconds before each further try in a row that brings nothing new; as many tries.
      timeout: seconds without a byte after which the connection counts as cut.

    Returns:
      `target`.

    Raises:
      DataError: it cannot be had, is no gzip file, or there is no room for it.
    """
    _check(url)
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _insist(url, Part(target, url), log, pauses, timeout)
    except OSError as error:  # of the disk: those of the network have become _Cut
        raise DataError(
            [
                f"{url}: '{target}' cannot be written: {error.strerror or error}; make room or "
                "choose another folder with data.prepared_dir, and run again to go on"
            ]
        ) from error
    return target


class _Cut(Exception):
    """A try failed where another one may not; `reached` says whether the server was found."""

    def __init__(self, reason: str, reached: bool = True) -> None:
        super().__init__(reason)
        self.reached = reached


def _insist(url: str, part: Part, log: Log, pauses: Sequence[float], timeout: float) -> None:
    """Tries until all is there, or until nothing new has come in all the tries."""
    # Counted by the most that was ever there: a server that always begins anew and always cuts at
    # the same place would else be asked for ever.
    most, failures, reached = part.size(), 0, False
    while True:
        try:
            _try(url, part, log, timeout)
            return part.finish()
        except _Cut as cut:
            reached = reached or cut.reached
            failures = 1 if part.size() > most else failures + 1
            most = max(most, part.size())
            if failures > len(pauses) or not reached:
                raise DataError([f"{url}: {cut}; {part.kept()}{_OTHERWISE}"]) from cut
            pause = pauses[failures - 1]
            log(f"downloading {part.name}: {cut}; trying again in {pause:g} s")
            time.sleep(pause)


def _check(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        known = known and parts.username is None and re.fullmatch("[!-~]+", url) is not None
    except ValueError:  # a port that is no number, a broken IPv6 address
        known = False
    if not known:
        raise DataError(
            [
                f"{url!r} is no address to download from; allowed is http://HOST/FILE or "
                "https://HOST/FILE, other than ASCII percent-encoded, without a user name; a file "
                "at hand goes into data.path"
            ]
        )


def _opener() -> urllib.request.OpenerDirector:
    """The usual one without file:, ftp: and data:, so that no redirect leads there either."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _try(url: str, part: Part, log: Log, timeout: float) -> None:
    headers = {"User-Agent": "p2p_jax", "Accept-Encoding": "identity", **part.request()}
    try:
        response = _opener().open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        with error:
            return _refused(url, part, error)
    except URLError as error:
        raise _Cut(f"no connection ({error.reason})", reached=False) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(_named(error)) from error
    with response:
        _receive(url, part, log, response)


def _refused(url: str, part: Part, error: HTTPError) -> None:
    """Returns only where the part turns out to be all."""
    if error.code == 416 and part.request():
        total = content_range(error.headers)[1]
        if part.size() and part.size() == (part.total if total is None else total):
            return
        part.drop()
        raise _Cut("the server's file is another one than before; beginning anew")
    answer = f"the server answers {error.code} ({error.reason})"
    if error.code >= 500 or error.code in _AGAIN:
        raise _Cut(answer)
    raise DataError([f"{url}: {answer}; check the address: {_OTHERWISE}"])


def _receive(url: str, part: Part, log: Log, response: http.client.HTTPResponse) -> None:
    """Appends what the server sends to the part, or begins it anew with that."""
    head = b""
    if response.status == 206 and part.size():
        if not part.fits(response.headers):
            part.drop()
            raise _Cut("the server's file is another one than before; beginning anew")
        _check_room(url, part, part.total)
    elif response.status == 200:
        total = response.length
        head = _first_bytes(url, response)  # before the part is given up: a login page is no reason
        _check_room(url, part, total)
        part.begin(response.headers, total)
    else:
        raise DataError([f"{url}: the server answers {response.status}; {_OTHERWISE}"])
    progress = Progress(part.name, part.size(), part.total, log)
    log(f"downloading {part.name} from {url}: {progress.amount(part.size())}")
    with part.path.open("ab") as file:
        file.write(head)
        while chunk := _read(response):
            file.write(chunk)
            progress(file.tell())
    if part.total is not None and part.size() > part.total:
        part.drop()
        raise _Cut("the server sent more than it said; beginning anew")
    if part.total is not None and part.size() < part.total:
        raise _Cut("the connection was cut")


def _read(response: http.client.HTTPResponse, exactly: int = 0) -> bytes:
    """Some bytes, or `exactly` so many; fewer, or none, at the end."""
    try:
        return response.read(exactly) if exactly else response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(_named(error)) from error


def _first_bytes(url: str, response: http.client.HTTPResponse) -> bytes:
    head = _read(response, exactly=len(_GZIP))
    if len(head) < len(_GZIP) and response.length:
        raise _Cut("the connection was cut")
    # A page that was compressed on its way looks like gzip, too.
    kind = response.headers.get_content_type() if "Content-Type" in response.headers else "unnamed"
    page = kind == "text/html" and "Content-Encoding" in response.headers
    if head != _GZIP or page:
        raise DataError(
            [
                f"{url}: what the server sends is no .tar.gz (its type is {kind}); open the "
                f"address in a browser to see what it is: {_OTHERWISE}"
            ]
        )
    return head


def _check_room(url: str, part: Part, total: int | None) -> None:
    if total is None:
        return
    free = shutil.disk_usage(part.path.parent).free
    missing = total - part.size()  # also where the part is begun anew: its room is free then
    if missing > free:
        raise DataError(
            [
                f"{url}: {megabytes(missing)} are needed in '{part.path.parent}' and "
                f"{megabytes(free)} are free; make room or choose another folder with "
                "data.prepared_dir"
            ]
        )


def _named(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the server has stopped sending"
    return f"the connection was cut ({type(error).__name__})"
