"""The file that a download is becoming, kept for the next try."""

from __future__ import annotations

import json
import os
import re
from email.message import Message
from pathlib import Path

from p2p_jax.data.pairs import digest
from p2p_jax.data.progress import megabytes


class Part:
    """What has arrived so far, and what it is a part of."""

    def __init__(self, target: Path, url: str) -> None:
        """Recalls what was left by another call, if it is of the same address."""
        self.name = target.name
        self.path = target.with_name(target.name + ".part")
        self.total: int | None = None
        self._target, self._url = target, digest(url)  # an address may hold a secret
        self._about = target.with_name(target.name + ".part.json")
        self._etag = self._modified = ""
        self._recall()

    def _recall(self) -> None:
        try:
            about = json.loads(self._about.read_text("utf-8"))
            if about["url"] == self._url:
                self._etag, self._modified = str(about["etag"]), str(about["modified"])
                self.total = None if about["total"] is None else int(about["total"])
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            pass  # unknown bytes: `request` then asks for all

    def size(self) -> int:
        """Bytes that have arrived."""
        return self.path.stat().st_size if self.path.exists() else 0

    def request(self) -> dict[str, str]:
        """Headers that ask for the rest, if the file is still the same, or else for all."""
        # RFC 9110, 13.1.5: a weak tag must not be used; without any mark all is fetched again.
        mark = self._modified if self._etag.startswith("W/") else self._etag or self._modified
        if not (self.size() and mark and mark.isprintable() and mark.isascii()):
            return {}
        return {"Range": f"bytes={self.size()}-", "If-Range": mark}

    def fits(self, headers: Message) -> bool:
        """Whether a partial answer goes on with this part; not every server heeds If-Range."""
        start, total = content_range(headers)
        if start != self.size() or (None not in (total, self.total) and total != self.total):
            return False
        self.total = self.total if total is None else total
        etag, modified = _value(headers, "ETag"), _value(headers, "Last-Modified")
        if etag and self._etag:
            return etag == self._etag
        return not (modified and self._modified) or modified == self._modified

    def begin(self, headers: Message, total: int | None) -> None:
        """Empties the part, and only then remembers of what it becomes one."""
        self.drop()
        self.total = total
        self._etag, self._modified = _value(headers, "ETag"), _value(headers, "Last-Modified")
        about = {"url": self._url, "etag": self._etag, "modified": self._modified, "total": total}
        self._about.write_text(json.dumps(about), "utf-8")

    def drop(self) -> None:
        """Empties it."""
        self.path.write_bytes(b"")

    def kept(self) -> str:
        """What is kept of it and what for, for messages; '' for nothing."""
        if not self.size():
            return ""
        of = "" if self.total is None else f" of {megabytes(self.total)}"
        again = ", and running again goes on from there" if self.request() else ""
        return f"{megabytes(self.size())}{of} are kept{again}; "

    def finish(self) -> None:
        """It is whole: gives it its name."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.path, self._target)
        self._about.unlink(missing_ok=True)


def content_range(headers: Message) -> tuple[int | None, int | None]:
    """(first byte, length of the whole) of a Content-Range; None for what it does not say."""
    value, number = _value(headers, "Content-Range"), r"(\d{1,18})"
    match = re.fullmatch(rf"bytes (?:{number}-\d+|\*)/(?:{number}|\*)", value, re.ASCII)
    start, total = match.groups() if match else (None, None)
    return int(start) if start else None, int(total) if total else None


def _value(headers: Message, name: str) -> str:
    return str(headers.get(name, "")).strip()  # other than ASCII is no string there
