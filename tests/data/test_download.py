"""Downloads from a server that misbehaves in every way a server can."""

from __future__ import annotations

import collections
import errno
import http.server
import json
import os
import random
import re
import socket
import threading
import time

import pytest

from p2p_jax.data import download as module
from p2p_jax.data import progress
from p2p_jax.data.download import download
from p2p_jax.data.pairs import DataError

DATA = b"\x1f\x8b" + random.Random(0).randbytes(300_000)
OTHER = b"\x1f\x8b" + random.Random(1).randbytes(200_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves `data`; one behaviour of `script` a request, then as a good server does.

    Behaviours, joined by spaces: 'cut=N' (the connection ends after N bytes), 'stall=N' (nothing
    more after N bytes), 'ignore' (no ranges), 'wrong' (Content-Range of other bytes), 'any' (joins
    whatever was changed), 'chunked', 'bare' (no length), or a status such as '404'.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.kind, self.script = DATA, "application/gzip", collections.deque()
        self.marks = {"ETag": '"one"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        self.extra, self.seen, self.over = {}, [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/sets/facades.tar.gz"

    def handle_error(self, request, client_address):
        pass  # connections that the test cuts


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        server.seen.append(dict(self.headers))
        acts = dict(a.partition("=")[::2] for a in (server.script or [""])[0].split())
        if server.script:
            server.script.popleft()
        for act in acts:
            if act.isdigit():
                return self.send_error(int(act))
        if "chunked" in acts:
            self.protocol_version = "HTTP/1.1"
        start, whole = self.start(acts), len(server.data)
        if start and start >= whole:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{whole}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            first = start - ("wrong" in acts)
            self.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
        for name, value in {"Content-Type": server.kind, **server.marks, **server.extra}.items():
            self.send_header(name, value)
        if "chunked" in acts:
            self.send_header("Transfer-Encoding", "chunked")
        elif "bare" not in acts:
            self.send_header("Content-Length", str(whole - start))
        self.end_headers()
        self.body(acts, start)

    def start(self, acts):
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in self.server.marks.values() or "any" in acts
        return int(match[1]) if match and same and "ignore" not in acts else 0

    def body(self, acts, start):
        stop = int(acts.get("cut") or acts.get("stall") or len(self.server.data))
        data = self.server.data[start : max(stop, start)]
        if "chunked" in acts:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            if "cut" not in acts:
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True
        else:
            self.wfile.write(data)
        if "stall" in acts:
            self.server.over.wait(10)


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def get(server, tmp_path):
    """Downloads from the server, without pauses; `get.lines` is what was logged."""

    def get(*script, tries=3, timeout=5.0):
        server.script.extend(script)
        path = download(
            server.url, get.target, get.lines.append, pauses=[0] * tries, timeout=timeout
        )
        assert path == get.target and not get.part.exists()
        assert os.listdir(get.target.parent) == [get.target.name]
        return path.read_bytes()

    get.target = tmp_path / "cache" / "facades.tar.gz"
    get.part = get.target.with_name("facades.tar.gz.part")
    get.about = get.target.with_name("facades.tar.gz.part.json")
    get.lines = []
    return get


def asked(server):
    return [(seen.get("Range"), seen.get("If-Range")) for seen in server.seen]


@pytest.mark.parametrize("act", ["", "chunked", "bare"])
def test_downloads(server, get, act):
    assert get(act) == DATA
    assert asked(server) == [(None, None)] and server.seen[0]["User-Agent"] == "p2p_jax"
    size = "0.0 of 0.3 MB" if not act else "0.0 MB"
    assert get.lines == [f"downloading facades.tar.gz from {server.url}: {size}"]


def test_what_is_there_is_not_fetched_again(server, get):
    get.target.parent.mkdir()
    get.target.write_bytes(b"mine")
    assert get() == b"mine" and not server.seen


def test_a_cut_goes_on_where_it_stopped(server, get):
    assert get("cut=1000", "cut=50000", "cut=50000", "500", "cut=200000") == DATA
    starts = [None, 1000, 50000, 50000, 50000, 200000]
    want = [(s and f"bytes={s}-", s and '"one"') for s in starts]
    assert asked(server) == want
    assert sum("trying again" in line for line in get.lines) == 5


def test_each_progress_resets_the_count(server, get):
    assert get(*[f"cut={n}" for n in range(1000, 11000, 1000)], tries=1) == DATA


def test_a_server_without_ranges_is_asked_for_all(server, get):
    assert get("cut=1000", "ignore") == DATA
    assert len(server.seen) == 2


def test_a_server_that_always_cuts_is_given_up(server, get):
    with pytest.raises(DataError, match=r"data\.path=FILE") as caught:
        get(*["cut=100000 ignore"] * 9)
    assert len(server.seen) == 4
    assert "0.1 MB of 0.3 MB are kept, and running again goes on" in str(caught.value)
    assert get.part.read_bytes() == DATA[:100000]
    server.script.clear()
    assert get() == DATA
    assert asked(server)[-1] == ("bytes=100000-", '"one"')


def test_a_server_that_cuts_here_and_there_is_given_up(server, get):
    with pytest.raises(DataError, match="connection was cut"):
        get(*["cut=100000 ignore", "cut=50000 ignore"] * 9)
    assert len(server.seen) == 4


def test_the_next_run_goes_on(server, get):
    with pytest.raises(DataError, match="connection was cut"):
        get("cut=70000", tries=0)
    assert get() == DATA and asked(server)[-1] == ("bytes=70000-", '"one"')
    assert "0.1 of 0.3 MB" in get.lines[-1]


def cut_short(get, *script):
    with pytest.raises(DataError):
        get(*(script or ("cut=70000",)), tries=0)
    assert get.part.stat().st_size == 70000


def test_a_changed_file_is_begun_anew(server, get):
    cut_short(get)
    server.data, server.marks = OTHER, {"ETag": '"two"'}
    assert get() == OTHER


@pytest.mark.parametrize("data", [OTHER, DATA[:-1] + b"x"])
def test_a_changed_file_is_noticed_where_if_range_is_not_heeded(server, get, data):
    cut_short(get)
    server.data, server.marks = data, {"ETag": '"two"'}
    assert get("any") == data
    assert [r for r, _ in asked(server)] == [None, "bytes=70000-", None]


def test_a_date_is_as_good_as_a_tag(server, get):
    date = server.marks.pop("Last-Modified")
    for tag in ({}, {"ETag": 'W/"one"'}):
        server.marks = {"Last-Modified": date, **tag}
        assert get("cut=70000") == DATA
        assert asked(server)[-1] == ("bytes=70000-", date)
        get.target.unlink()
    cut_short(get)
    server.data, server.marks = DATA[:-1] + b"x", {"Last-Modified": date.replace("01", "02")}
    assert get("any") == server.data


def test_without_tag_or_date_all_is_fetched_again(server, get):
    server.marks = {}
    with pytest.raises(DataError, match=r"MB are kept; data\.url"):
        get("cut=70000", tries=0)
    assert get("any") == DATA and asked(server)[-1] == (None, None)


def test_a_wrong_range_is_begun_anew(server, get):
    assert get("cut=70000", "wrong") == DATA
    assert [r for r, _ in asked(server)] == [None, "bytes=70000-", None]


def test_a_part_that_is_all_needs_no_more(server, get):
    cut_short(get)
    get.part.write_bytes(DATA)
    assert get() == DATA and asked(server)[-1][0] == f"bytes={len(DATA)}-"


def test_a_part_that_is_too_long_is_begun_anew(server, get):
    cut_short(get)
    get.part.write_bytes(DATA + b"more")
    assert get() == DATA and len(server.seen) == 3


@pytest.mark.parametrize("about", [None, "", "[]", '{"url": 1}', "\xff", "elsewhere"])
def test_a_part_of_unknown_origin_is_begun_anew(server, get, about):
    cut_short(get)
    if about is None:
        get.about.unlink()
    elif about == "elsewhere":
        get.about.write_text(json.dumps(json.loads(get.about.read_text()) | {"url": "x"}))
    else:
        get.about.write_bytes(about.encode("latin-1"))
    get.part.write_bytes(b"x" * 70000)
    assert get() == DATA and asked(server)[-1] == (None, None)


def test_the_address_is_not_written_down(server, get):
    server.url += "?secret=word"
    cut_short(get)
    assert "word" not in get.about.read_text()


def test_a_cut_of_chunks_is_noticed(server, get):
    with pytest.raises(DataError, match="IncompleteRead"):
        get("chunked cut=70000", tries=0)
    assert get() == DATA and asked(server)[-1] == ("bytes=70000-", '"one"')


def test_a_stall_ends(server, get):
    start = time.monotonic()
    assert get("stall=70000", timeout=0.3) == DATA
    assert time.monotonic() - start < 5
    assert any("stopped sending" in line for line in get.lines)
    assert asked(server)[-1][0] == "bytes=70000-"


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_is_not_there_is_not_asked_for_twice(server, get, status):
    with pytest.raises(DataError) as caught:
        get(str(status))
    for word in (server.url, str(status), "data.url", "--config.data.path=FILE"):
        assert word in str(caught.value)
    assert len(server.seen) == 1 and not get.part.exists()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_in_trouble_is_asked_again(server, get, status):
    assert get(str(status), str(status)) == DATA
    get.target.unlink()
    with pytest.raises(DataError, match=str(status)):
        get(*[str(status)] * 9)
    assert len(server.seen) == 3 + 4


def test_pauses_grow_and_are_told(server, get):
    server.script.extend(["500"] * 2)
    start = time.monotonic()
    download(server.url, get.target, get.lines.append, pauses=(0.05, 0.1))
    assert 0.15 <= time.monotonic() - start < 3
    assert [line.rpartition("in ")[2] for line in get.lines[:2]] == ["0.05 s", "0.1 s"]


@pytest.mark.parametrize(
    ("data", "kind", "extra"),
    [
        (b"<!doctype html><p>please log in", "text/html; charset=utf-8", {}),
        (DATA, "text/html", {"Content-Encoding": "gzip"}),
        (b"", "application/gzip", {}),
        (b"\x1f", "application/gzip", {}),
        (b"PK\3\4", "application/zip", {}),
    ],
)
def test_what_is_no_gzip_is_refused(server, get, data, kind, extra):
    real = server.data
    server.data, server.kind, server.extra = data, kind, extra
    with pytest.raises(DataError, match=re.escape(kind.partition(";")[0])) as caught:
        get("bare" if not data else "")
    assert "no .tar.gz" in str(caught.value) and os.listdir(get.target.parent) == []
    # Nor does such a page cost what has arrived before.
    server.data, server.kind, server.extra = real, "application/gzip", {}
    cut_short(get)
    server.data, server.kind, server.extra, server.marks = data, kind, extra, {}
    with pytest.raises(DataError):
        get("ignore bare" if not data else "ignore")
    assert get.part.read_bytes() == DATA[:70000]


def test_redirects_are_followed_but_not_to_files(server, get, tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_bytes(DATA)
    goal = server.url

    def moved(handler):
        handler.send_response(302)
        handler.send_header("Location", where)
        handler.end_headers()

    original = Handler.do_GET
    monkeypatch.setattr(
        Handler, "do_GET", lambda h: moved(h) if h.path == "/moved" else original(h)
    )
    server.url = goal.replace("/sets/facades.tar.gz", "/moved")
    where = goal
    assert get("cut=70000") == DATA and asked(server)[-1][0] == "bytes=70000-"
    get.target.unlink()
    for where in (secret.as_uri(), "ftp://127.0.0.1/x", server.url):  # noqa: B007
        with pytest.raises(DataError):
            get(tries=0)


@pytest.mark.parametrize(
    "url",
    ["", "file:///etc/passwd", "ftp://host/x", "facades.tar.gz", "http:///x", "http://host:x/y"],
)
def test_other_addresses_are_refused(url, tmp_path):
    with pytest.raises(DataError, match="https://HOST/FILE"):
        download(url, tmp_path / "x", print)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "url", ["user:word@host/x", "host/ x", "host/\n", "host/ü", "[/x", "host:0/x"]
)
def test_broken_addresses_are_refused(url, tmp_path):
    with pytest.raises(DataError, match="https://HOST/FILE"):
        download(f"http://{url}", tmp_path / "x", print)


def test_a_server_that_is_not_there_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x.tar.gz"
        with pytest.raises(DataError, match="refused") as caught:
            download(url, tmp_path / "x", print)
    assert url in str(caught.value) and "data.url" in str(caught.value)

    def unknown(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(DataError, match="Name or service not known"):
        download("http://nowhere.invalid/x", tmp_path / "x", print)


def test_a_server_that_goes_away_is_waited_for(server, get, monkeypatch):
    real, calls = socket.create_connection, []

    def connect(*arguments, **options):
        calls.append(1)
        if len(calls) in (2, 3):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        return real(*arguments, **options)

    monkeypatch.setattr(socket, "create_connection", connect)
    assert get("cut=70000") == DATA and len(calls) == 4


def test_room_is_looked_at_first(server, get, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(0, 0, 250_000))
    with pytest.raises(DataError, match=r"0\.3 MB are needed in '.*cache'.*prepared_dir"):
        get()
    assert not get.part.exists()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(0, 0, 1 << 40))
    cut_short(get)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(0, 0, 250_000))
    assert get() == DATA  # the rest fits


def test_a_full_disk_is_told(server, get, monkeypatch):
    cut_short(get)
    real = module.Path.open

    def full(path, mode="r", *arguments, **options):
        file = real(path, mode, *arguments, **options)
        if mode == "ab":
            file.close()
            return open("/dev/full", "wb", buffering=0)
        return file

    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    with monkeypatch.context() as patch:
        patch.setattr(module.Path, "open", full)
        with pytest.raises(DataError, match=r"No space left.*make room.*data.prepared_dir"):
            get()
    assert get.part.read_bytes() == DATA[:70000]
    assert get() == DATA


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written"):
        download("http://127.0.0.1:1/x", tmp_path / "file" / "x", print)


def test_progress_says_how_long(server, get, monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    monkeypatch.setattr(module, "_CHUNK", 100_000)
    get()
    form = r"downloading facades\.tar\.gz: 0\.\d of 0\.3 MB, \d+\.\d MB/s, \d+ s left"
    assert len(get.lines) > 2 and all(re.fullmatch(form, line) for line in get.lines[1:])


def test_times_and_sizes_are_short():
    assert [progress._duration(s) for s in (5.4, 99, 130, 7300)] == ["5 s", "99 s", "2 min", "2 h"]
    assert [progress.megabytes(s) for s in (1.26e6, 12.3e6)] == ["1.3 MB", "12 MB"]
