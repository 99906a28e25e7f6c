"""The demo: what it takes and refuses, who may ask, what is drawn with, and the page itself."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from browser import browser
from PIL import Image
from running import ROOT, blocks, environment

from p2p_jax import demo, demo_pictures, translator
from p2p_jax.config import base
from p2p_jax.data import Form, synthetic
from p2p_jax.demo_inks import inks
from p2p_jax.demo_pictures import Easel, Example, Refused, as_png, examples, fitted, opened
from p2p_jax.images import Values
from p2p_jax.runner import identity
from p2p_jax.words import ConfigError

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

SIZE = (24, 32)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def _easel(make=None, palette=(), channels=3, values=None, size=SIZE, noisy=False):
    """An easel on a translator that inverts."""
    values = values or Values()
    fake = SimpleNamespace(
        stored=SimpleNamespace(
            source=Form(channels, values.dtype),
            swapped=False,
            fitted=lambda image: image,
            shown=lambda made: made,
        ),
        crop_size=size,
        palette=palette,
        deterministic=not noisy,
        inference=SimpleNamespace(gan=SimpleNamespace(values=(values, Values()))),
    )
    return Easel(fake, make or (lambda source, noise: 255 - source))


def _about(easel, found=(), **changes):
    return {
        "run": "facades", "data": "facades", "step": 1000, "noise": True, "seconds": 0.1,
        "height": easel.size[0], "width": easel.size[1], "max_bytes": demo_pictures.MAX_BYTES,
        "fits": ["crop", "pad"], "kind": "palette", "free": True, "brush": 4,
        "background": "#0000ff",
        "colours": [{"hex": "#0000ff", "name": "sky"}, {"hex": "#ff0000", "name": "wall"}],
        "examples": [{"name": e.name, "target": e.target is not None} for e in found],
    } | changes  # fmt: skip


@contextlib.contextmanager
def _served(easel=None, host="127.0.0.1", found=(), **options):
    """Gives the port of a server."""
    from p2p_jax.demo_server import Offer, make_app

    easel = easel or _easel()
    app = make_app(Offer(easel, _about(easel, found), found), demo.hosts(host), **options)
    listener = socket.create_server(("127.0.0.1", 0))
    running = demo.server(app)
    thread = threading.Thread(target=running.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        running.should_exit = True
        thread.join()


def _ask(port, path, body=None, method=None, **headers):
    """(status, headers, body) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        method = method or ("POST" if body is not None else "GET")
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def _error(answer):
    status, headers, body = answer
    assert headers["content-type"] == "application/json"
    return status, json.loads(body)["error"]


@pytest.fixture(scope="module")
def port():
    with _served() as port:
        yield port


def _png(image):
    return as_png(np.asarray(image))


def _header(width, height):
    """A PNG of no pixels that says that it has many."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


# --- the server ----------------------------------------------------------------------------------


def test_a_picture_is_translated(port):
    picture = blocks(0, SIZE)
    status, headers, made = _ask(port, "/translate", _png(picture))
    assert (status, headers["content-type"]) == (200, "image/png")
    assert (_pixels(made) == 255 - picture).all()


@pytest.mark.parametrize("way", ["crop", "pad"])
def test_a_picture_of_another_size_is_made_to_fit(port, way):
    status, _, made = _ask(port, f"/fit?way={way}", _png(blocks(0, (90, 60))))
    assert status == 200 and _pixels(made).shape == (*SIZE, 3)


def test_the_page_and_its_parts_come_with_headers_that_keep_others_out(port):
    for path in ("/", "/page.css", "/page.js", "/board.js", "/raster.js", "/about"):
        status, headers, body = _ask(port, path)
        assert status == 200 and body, path
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["access-control-allow-origin"] is None
        # An XML namespace is a name, no address.
        assert set(re.findall(rb"https?://[^'\"\s)]+", body)) <= {b"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/translate", "GET", 405), ("/about", "POST", 405), ("/nothing", "GET", 404),
        ("/examples/0/source", "GET", 404), ("/../demo.py", "GET", 404),
        ("/fit?way=stretch", "POST", 400), ("/translate?noise=-1", "POST", 400),
    ],
)  # fmt: skip
def test_what_there_is_not_is_said_so(port, path, method, status):
    assert _error(_ask(port, path, b"x" if method == "POST" else None, method))[0] == status


# --- what is no good picture ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [(10_000, 5_000), (60_000, 60_000)])
def test_of_too_many_pixels_only_the_header_is_read(port, size, monkeypatch):
    monkeypatch.setattr(demo_pictures, "decode", lambda data: pytest.fail("decoded"))
    status, text = _error(_ask(port, "/fit", _header(*size)))
    assert status == 413 and f"{size[0] * size[1] / 1e6:,.0f} megapixels" in text


def test_a_real_picture_of_50_megapixels(port):
    out = io.BytesIO()
    Image.new("1", (10_000, 5_000)).save(out, "PNG", compress_level=1)
    status, text = _error(_ask(port, "/translate", out.getvalue()))
    assert status == 413 and "50 megapixels (10000x5000)" in text and "smaller" in text


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"hello, I am no picture\n" * 9, 415, "text"),
        (b"", 400, "empty"),
        (b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff", 415, "PNG, JPEG"),
        (bytes(range(256)), 415, "PNG, JPEG"),
        (as_png(blocks(0, (64, 64)))[:200], 422, "truncated"),
        (b"\x89PNG\r\n\x1a\n", 415, "broken"),
    ],
    ids=["text", "empty", "gif", "noise", "cut", "head"],
)
def test_what_is_no_picture_is_named(port, data, status, said):
    got, text = _error(_ask(port, "/fit", data))
    assert got == status and said in text


def test_too_many_bytes_are_not_kept(port):
    large = bytes(demo_pictures.MAX_BYTES + 1)
    for body in (large, iter([large])):  # the latter in chunks, of which none tells of the whole
        status, text = _error(_ask(port, "/translate", body))
        assert status == 413 and "20 MB" in text


def test_a_picture_that_does_not_arrive_is_not_waited_for(monkeypatch):
    from p2p_jax import demo_server

    monkeypatch.setattr(demo_server, "BODY_SECONDS", 0.1)
    with _served() as port, socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(b"POST /fit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc")
        assert line.recv(100).startswith(b"HTTP/1.1 408")


def test_a_failure_is_told_and_the_server_goes_on(capfd):
    def make(source, noise):
        if noise:
            raise RuntimeError("no memory left")
        return source

    with _served(_easel(make)) as port:
        picture = _png(blocks(0, SIZE))
        status, text = _error(_ask(port, "/translate?noise=1", picture))
        assert status == 500 and "RuntimeError: no memory left" in text
        assert _ask(port, "/translate", picture)[0] == 200


# --- how much ------------------------------------------------------------------------------------


def test_ten_requests_at_once_are_all_answered_one_at_a_time():
    inside, most = [], []

    def make(source, noise):
        inside.append(noise)
        most.append(len(inside))
        time.sleep(0.02)
        inside.remove(noise)
        return 255 - source

    pictures = [blocks(i, SIZE) for i in range(10)]
    with _served(_easel(make)) as port, ThreadPoolExecutor(10) as pool:
        answers = list(
            pool.map(lambda i: _ask(port, f"/translate?noise={i}", _png(pictures[i])), range(10))
        )
    assert [status for status, _, _ in answers] == [200] * 10
    assert all((_pixels(a[2]) == 255 - p).all() for a, p in zip(answers, pictures, strict=True))
    assert max(most) == 1


def test_beyond_what_may_wait_one_is_asked_to_come_back():
    go = threading.Event()

    def make(source, noise):
        assert go.wait(20)
        return source

    picture = _png(blocks(0, SIZE))
    with _served(_easel(make), waiting=3) as port, ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(_ask, port, "/translate", picture) for _ in range(8)]
        while sum(job.done() for job in jobs) < 5:  # those that are refused do not wait
            time.sleep(0.01)
        go.set()
        answers = [job.result() for job in jobs]
        statuses = sorted(status for status, _, _ in answers)
        assert statuses == [200] * 3 + [429] * 5
        refused = next(answer for answer in answers if answer[0] == 429)
        assert refused[1]["retry-after"] == "1" and "waiting" in _error(refused)[1]
        assert _ask(port, "/translate", picture)[0] == 200  # places are given back


def test_what_nobody_waits_for_any_more_is_not_translated():
    go, made = threading.Event(), []

    def make(source, noise):
        made.append(noise)
        assert go.wait(20)
        return source

    picture = _png(blocks(0, SIZE))
    head = b"POST /translate?noise=%d HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with _served(_easel(make)) as port, ThreadPoolExecutor(2) as pool:
        first = pool.submit(_ask, port, "/translate?noise=1", picture)
        while not made:
            time.sleep(0.01)
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(head % (2, len(picture)) + picture)
            time.sleep(0.1)
        time.sleep(0.1)
        last = pool.submit(_ask, port, "/translate?noise=3", picture)
        go.set()
        assert first.result()[0] == last.result()[0] == 200
    assert made == [1, 3]


# --- who -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "local", "opened"),
    [
        ("127.0.0.1:8000", 200, 200), ("LOCALHOST:9", 200, 200), ("[::1]:80", 200, 200),
        ("evil.example:8000", 403, 403), ("127.0.0.1.evil.example", 403, 403), ("", 403, 403),
        ("192.168.0.7:8000", 403, 200), ("[fe80::1]:80", 403, 200), ("[oops", 403, 403),
    ],
)  # fmt: skip
def test_only_names_that_nobody_else_can_have_are_answered_to(host, local, opened):
    for bound, wanted in (("127.0.0.1", local), ("0.0.0.0", opened)):
        status, _ = _guarded(bound, "GET", {"host": host})
        assert status == wanted, bound


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200), ({"origin": "http://127.0.0.1:80"}, 200), ({"origin": "null"}, 403),
        ({"origin": "https://evil.example"}, 403), ({"origin": "http://127.0.0.1:81"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403), ({"sec-fetch-site": "same-origin"}, 200),
    ],
)  # fmt: skip
def test_other_sites_may_not_send_pictures(headers, status):
    assert _guarded("127.0.0.1", "POST", {"host": "127.0.0.1:80", **headers})[0] == status


def _guarded(bound, method, headers):
    """What a guard answers, without a network."""
    import asyncio

    from starlette.responses import Response

    from p2p_jax.demo_server import Guard

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": "/",
             "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}  # fmt: skip
    asyncio.run(Guard(Response("ok"), demo.hosts(bound))(scope, None, send))
    return sent[0]["status"], sent[1]["body"]


# --- pictures ------------------------------------------------------------------------------------


def test_of_a_wide_picture_the_middle_is_kept_or_all_of_it_and_its_mirror_image():
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 10:30] = RED
    assert (fitted(wide, (20, 40), "crop", "nearest") == RED).all()
    padded = fitted(wide, (20, 40), "pad", "nearest")
    assert (padded[5:15] == wide).all() and (padded[:5] == wide[4::-1]).all()
    assert (fitted(wide.swapaxes(0, 1), (40, 20), "pad", "nearest").swapaxes(0, 1) == padded).all()


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1), (24, 32), (7, 9)])
@pytest.mark.parametrize("way", ["crop", "pad"])
def test_any_shape_fits(shape, way):
    image = np.full((*shape, 3), 77, np.uint8)
    assert (fitted(image, SIZE, way, "bilinear") == np.full((*SIZE, 3), 77)).all()


def test_grey_transparency_and_16_bits_become_colours():
    out = io.BytesIO()
    Image.fromarray(np.array([[[9, 8, 7, 255], [0, 0, 0, 0]]], np.uint8)).save(out, "PNG")
    assert opened(out.getvalue()).tolist() == [[[9, 8, 7], [255, 255, 255]]]
    assert opened(_png(np.array([[[3]]], np.uint8))).tolist() == [[[3, 3, 3]]]
    out = io.BytesIO()
    Image.fromarray(np.array([[65535, 257 * 4]], np.uint16)).save(out, "PNG")
    assert opened(out.getvalue()).tolist() == [[[255] * 3, [4] * 3]]


def test_classes_take_the_nearest_colour_and_other_types_their_range():
    given = []

    def make(source, noise):
        given.append(source)
        return np.zeros((*SIZE, 3), np.uint8)

    labels = _easel(make, palette=(RED, BLUE), channels=1)
    drawn = labels.canvas(_png(np.full((*SIZE, 3), (200, 9, 30), np.uint8)))
    assert (drawn == RED).all()
    labels(np.full((*SIZE, 3), BLUE, np.uint8))
    white = np.full((*SIZE, 3), 255, np.uint8)
    _easel(make, values=Values("uint16", 0, 65535))(white)
    _easel(make, values=Values("float32", -1, 3))(white)
    assert (given[0] == 1).all() and given[0].shape == (*SIZE, 1)
    assert (given[1] == 65535).all() and given[1].dtype == np.uint16
    assert (given[2] == 3).all() and given[2].dtype == np.float32


def test_what_cannot_be_drawn_is_refused_before_the_page_opens():
    with pytest.raises(ConfigError, match=r"4 channels.*predict"):
        _easel(channels=4)


def test_examples_are_those_of_the_newest_evaluation_and_none_that_is_broken(tmp_path):
    for folder, count in (("val/900", 3), ("val/1000", 5), ("val/1000_2", 6), ("val/what", 1)):
        for kind in ("source", "target"):
            (tmp_path / "eval" / folder / kind).mkdir(parents=True)
            for i in range(count):
                (tmp_path / "eval" / folder / kind / f"{i}.png").write_bytes(
                    _png(np.full((30, 30, 3), i + 10 * (kind == "target"), np.uint8))
                )
    newest = tmp_path / "eval" / "val" / "1000_2"
    (newest / "source" / "2.png").write_bytes(b"no picture")
    (newest / "target" / "5.png").unlink()
    found = examples(tmp_path, 20, _easel())
    assert [e.name for e in found] == ["0", "1", "3", "4", "5"]
    assert found[1].source.shape == (*SIZE, 3) and (found[1].source == 1).all()
    assert (found[1].target == 11).all() and found[-1].target is None
    assert [e.name for e in examples(tmp_path, 3, _easel())] == ["0", "5"]
    assert examples(tmp_path, 0, _easel()) == examples(tmp_path / "no", 9, _easel()) == []


# --- what to draw with ---------------------------------------------------------------------------


def _config(**changes):
    config = base()
    for key, value in changes.items():
        config.data[key] = value
    return config


def test_what_is_drawn_with_follows_from_the_run_and_its_pictures():
    streets = [synthetic.render(i, (64, 64))[0] for i in range(2)]
    found = inks(_config(), (), False, streets)
    assert found.kind == "palette" and dict(found.colours)[synthetic.LABELS["door"]] == "door"
    assert found.background in synthetic.LABELS.values() and found.free

    few = [np.where(blocks(i, (64, 64)) > 128, 220, 30).astype(np.uint8) for i in range(2)]
    assert inks(_config(), (), False, few).kind == "palette"
    assert len(inks(_config(), (), False, few).colours) == 8

    photos = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8) for i in range(2)]
    assert inks(_config(), (), False, photos).kind == inks(_config(), (), False, []).kind == "photo"
    assert inks(_config(), (), True, photos).kind == "grey"

    for config in (_config(source="edges"), _config(name="pix2pix/edges2shoes")):
        pens = inks(config, (), False, photos)
        assert (pens.kind, pens.background, pens.size) == ("edges", (255, 255, 255), 2)
        assert pens.palette == ((0, 0, 0), (255, 255, 255))

    classes = inks(_config(), (RED, BLUE), False, [np.full((8, 8, 3), BLUE, np.uint8)])
    assert (classes.kind, classes.background, classes.free) == ("labels", BLUE, False)


@pytest.mark.skipif(not (ROOT / "../shared/data/facades").is_dir(), reason="no facades here")
def test_label_maps_of_facades_are_told_from_photos():
    files = sorted((ROOT / "../shared/data/facades/val").iterdir())[::12]
    halves = [np.split(np.asarray(Image.open(file)), 2, 1) for file in files]
    labels = inks(_config(), (), False, [right for _, right in halves])
    assert labels.kind == "palette" and "balcony" in dict(labels.colours).values()
    assert inks(_config(), (), False, [left for left, _ in halves]).kind == "photo"


# --- the command ---------------------------------------------------------------------------------


def test_a_port_in_use_is_named_with_one_that_is_free(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert demo.main([f"--workdir={tmp_path}", f"--port={port}"]) == 2
    said = re.search(rf"--port: {port} is in use.*; --port=(\d+) is free", capsys.readouterr().err)
    assert said and int(said[1]) > port


def test_all_that_is_wrong_with_a_command_line_is_told_at_once(capsys):
    assert demo.main(["--port=70000", "--step=x", "--examples=-1", "--whot=1"]) == 2
    told = capsys.readouterr().err
    for name in ("--port", "--step", "--examples", "--whot", "--workdir"):
        assert f"error: {name}: " in told


def test_a_folder_that_is_no_run_s(tmp_path, capsys):
    assert demo.main([f"--workdir={tmp_path}", "--port=0"]) == 2
    assert "holds no config.json" in capsys.readouterr().err


def test_a_missing_package_is_named_with_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert demo.main(["--workdir=x", "--port=0"]) == 2
    assert "pip install 'p2p_jax[demo]'" in capsys.readouterr().err


def test_refused_carries_its_status():
    with pytest.raises(Refused) as caught:
        opened(b"plain words")
    assert caught.value.status == 415


# --- a real run ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny run that an older version trained."""
    folder = tmp_path_factory.mktemp("run")
    with tarfile.open(ROOT / "tests" / "golden" / "d53da4c.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    (config,) = folder.rglob("config.json")
    return config.parent


@pytest.mark.slow
def test_noise_stays_while_one_draws_and_is_the_translator_s_own_draw(run):
    made = translator.load(run)
    easel, make = Easel(made, demo.steady(made)), demo.steady(made)
    first, second = blocks(0, (32, 32)), blocks(0, (32, 32))
    second[0, 0] ^= 1
    apart = [np.abs(easel(first, n).astype(int) - easel(second, m)).mean()
             for n, m in ((3, 3), (3, 4))]  # fmt: skip
    assert easel.noisy and apart[0] < 0.5 * apart[1]
    assert (make(first, identity(first)) == made(first)).all()


@pytest.mark.slow
def test_the_command_serves_a_run_until_it_is_interrupted(run):
    command = [sys.executable, "-m", "p2p_jax.demo", f"--workdir={run}", "--port=0"]
    process = subprocess.Popen(
        command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        lines = []
        while not lines or not lines[-1].startswith("open"):
            lines.append(process.stdout.readline())
            assert lines[-1], f"{lines} {process.stderr.read()}"
        port = int(re.search(r"127\.0\.0\.1:(\d+) ", lines[-1])[1])
        status, _, about = _ask(port, "/about")
        assert status == 200 and json.loads(about)["height"] == 32
        status, _, made = _ask(port, "/translate", _png(blocks(0, (32, 32))))
        assert status == 200 and _pixels(made).shape == (32, 32, 3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "stopped\n", "")
    assert any("compiled in" in line for line in lines)


# --- the page ------------------------------------------------------------------------------------


def _shown(tab, canvas):
    """Pixels of a canvas of the page, `[h, w, 3]`."""
    address = tab.page.evaluate(f"document.getElementById('{canvas}').toDataURL()")
    return _pixels(base64.b64decode(address.split(",")[1]))[..., :3]


def _until(check):
    """Waits for what happens soon."""
    end = time.monotonic() + 8
    while not check():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_stroke_returns_a_picture_and_can_be_undone():
    size = (64, 64)
    easel = _easel(size=size, noisy=True)
    found = [Example("one", np.full((*size, 3), (0, 0, 255), np.uint8), blocks(1, size))]
    with _served(easel, found=found) as port, browser() as tab:
        page = tab.page
        page.goto(f"http://127.0.0.1:{port}/")

        def translated():
            return np.array_equal(_shown(tab, "result"), 255 - _shown(tab, "drawing"))

        _until(translated)
        before = _shown(tab, "drawing")
        assert (before == BLUE).all()
        frame = page.locator("#drawing").bounding_box()
        left, top, scale = frame["x"], frame["y"], frame["width"] / 64
        page.mouse.move(left + 10 * scale, top + 32 * scale)
        page.mouse.down()
        page.mouse.move(left + 50 * scale, top + 32 * scale, steps=5)
        page.mouse.up()
        drawn = _shown(tab, "drawing")
        assert set(map(tuple, drawn.reshape(-1, 3).tolist())) == {BLUE, RED}  # no soft edges
        assert (drawn[30:34, 10:50] == RED).all() and (drawn[36] == BLUE).all()
        _until(translated)
        page.keyboard.press("Control+z")
        assert (_shown(tab, "drawing") == before).all()
        _until(translated)
        page.click("#redo")
        assert (_shown(tab, "drawing") == drawn).all()
        page.keyboard.press("r")
        page.mouse.move(left + 5.5 * scale, top + 5.5 * scale)
        page.mouse.down()
        page.mouse.move(left + 20.5 * scale, top + 15.5 * scale)
        page.mouse.up()
        assert (_shown(tab, "drawing")[5:16, 5:21] == RED).all()
        assert (_shown(tab, "drawing")[16, 5:21] == BLUE).all()
        with page.expect_download() as download:
            page.click("#save")
        assert download.value.suggested_filename == "facades-1000.png"
        assert tab.problems == []
        page.set_input_files(
            "#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"only text"}
        )
        page.locator("#notice", has_text="This is text").wait_for()
        assert all("415" in problem for problem in tab.problems)  # which browsers log themselves
        photo = _png(np.full((200, 100, 3), (9, 99, 199), np.uint8))
        page.set_input_files("#file", {"name": "b.png", "mimeType": "image/png", "buffer": photo})
        _until(lambda: (_shown(tab, "drawing") == (9, 99, 199)).all() and translated())
        assert page.locator("#notice").is_hidden()

        # Busy for a moment, then gone and back.
        busy = {"status": 429, "headers": {"retry-after": "0.1"}, "json": {"error": "many wait"}}
        page.route("**/translate*", lambda route: route.fulfill(**busy), times=1)
        page.click("#clear")
        page.locator("#notice", has_text="many wait").wait_for()
        _until(translated)
        page.locator("#notice").wait_for(state="hidden")
        page.route("**/translate*", lambda route: route.abort(), times=1)
        page.keyboard.press("Enter")
        page.locator("#notice", has_text="does not answer").wait_for()
        page.click("#retry")
        page.locator("#notice").wait_for(state="hidden")
