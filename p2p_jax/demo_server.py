"""The server of the demo: one page, pictures in and out, and who may ask for how much.

Needs the extra `demo` (starlette; uvicorn runs it). It answers to addresses that a browser cannot
be tricked into (see `Guard`), gives nothing to pages of other sites, and computes one picture at a
time: so many requests wait at most, and the next are asked to come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import urllib.parse
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anyio.to_thread
import numpy as np
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p2p_jax.demo_pictures import FITS, MAX_BYTES, Easel, Example, Refused, as_png, fitted

PAGE = Path(__file__).with_name("demo_page")
WAITING = 16  # requests that are served or wait
BODY_SECONDS = 30.0  # that a picture may take to arrive
_DRAINED = 8 * MAX_BYTES  # of what is too large, so that the answer is read
_THUMB = 144  # pixels of the longer side
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Offer(NamedTuple):
    """What the page shows.

    Attributes:
      easel: translates.
      about: of the run and what to draw with, as JSON.
      examples: to begin with.
    """

    easel: Easel
    about: Mapping[str, Any]
    examples: Sequence[Example]


def make_app(offer: Offer, hosts: Collection[str], waiting: int = WAITING) -> Starlette:
    """The application.

    Args:
      offer: what it serves.
      hosts: names that it answers to; see `Guard`.
      waiting: requests that are served or wait; the next ones get 429.
    """
    desk = Desk(waiting)
    pictures = {
        (str(i), kind): as_png(image)
        for i, example in enumerate(offer.examples)
        for kind, image in (
            ("source", example.source), ("target", example.target), ("thumb", _thumb(example)),
        )
        if image is not None
    }  # fmt: skip

    async def about(request: Request) -> Response:
        return JSONResponse(offer.about)

    async def example(request: Request) -> Response:
        found = pictures.get((request.path_params["number"], request.path_params["kind"]))
        if found is None:
            raise Refused(404, "There is no such example.")
        return _picture(found)

    async def fit(request: Request) -> Response:
        way = request.query_params.get("way", "crop")
        if way not in FITS:
            raise Refused(400, f"way is one of {', '.join(FITS)}, not {way!r}.")
        made = await desk.serve(request, lambda data: as_png(offer.easel.canvas(data, way)))
        return _picture(made)

    async def translate(request: Request) -> Response:
        noise = request.query_params.get("noise", "0")
        if not (noise.isascii() and noise.isdigit() and int(noise) < 2**32):
            raise Refused(400, f"noise is a whole number below 2**32, not {noise!r}.")

        def work(data: bytes) -> bytes:
            return as_png(offer.easel(offer.easel.canvas(data), int(noise)))

        return _picture(await desk.serve(request, work))

    return Starlette(
        routes=[
            Route("/about", about),
            Route("/examples/{number}/{kind}", example),
            Route("/fit", fit, methods=["POST"]),
            Route("/translate", translate, methods=["POST"]),
            *_page(),
        ],
        middleware=[Middleware(Guard, hosts=hosts)],
        exception_handlers={HTTPException: _told, Refused: _told, Exception: _failed},
    )


def _page() -> Iterator[Route]:
    """The files of the page. Mounted as a folder, they would take requests of wrong methods."""
    for path in sorted(PAGE.iterdir()):
        if path.suffix not in _TYPES:
            continue

        async def part(
            request: Request, text: str = path.read_text("utf-8"), kind: str = _TYPES[path.suffix]
        ) -> Response:
            return Response(text, media_type=kind)

        yield Route("/" if path.name == "index.html" else f"/{path.name}", part)


def _thumb(example: Example) -> np.ndarray:
    height, width = example.source.shape[:2]
    scale = min(1.0, _THUMB / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return fitted(example.source, size, "crop", "bilinear")


def _picture(png: bytes) -> Response:
    return Response(png, media_type="image/png")


# --- what goes wrong -----------------------------------------------------------------------------


async def _told(request: Request, error: Exception) -> Response:
    """What is refused, in words."""
    assert isinstance(error, HTTPException | Refused)
    if isinstance(error, Refused):
        headers = {"retry-after": "1"} if error.status == 429 else None
        return JSONResponse({"error": str(error)}, error.status, headers)
    text = f"{request.method} {request.url.path}: {error.detail}."
    return JSONResponse({"error": text}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    """What nobody thought of; the trace goes to the terminal, the kind of error to the page."""
    reason = str(error).strip().splitlines() or [""]
    text = f"The translation failed: {type(error).__name__}: {reason[0]}"
    return JSONResponse({"error": text}, 500)


# --- how much ------------------------------------------------------------------------------------


class Desk:
    """Serves one request at a time; so many wait, in the order in which they came."""

    def __init__(self, waiting: int) -> None:
        self._room, self._turn = waiting, asyncio.Lock()

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if not self._room:
            raise Refused(429, "Many pictures are waiting already; please try again in a moment.")
        self._room -= 1
        try:
            yield
        finally:
            self._room += 1

    async def serve(self, request: Request, work: Any) -> bytes:
        """Reads a request's body and gives it to `work`, in a thread, when it is its turn.

        Raises:
          Refused: too many wait, or the body is too large, too slow or empty.
        """
        with self._place():
            data = await _body(request)
            async with self._turn:
                if await request.is_disconnected():
                    raise Refused(499, "Nobody waits for this any more.")
                return await anyio.to_thread.run_sync(work, data)


async def _body(request: Request) -> bytes:
    """All of what was sent; of what is too large nothing is kept."""
    size, parts = 0, []
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= MAX_BYTES:
                    parts.append(part)
                else:
                    parts.clear()
                if size > _DRAINED:
                    break
    except TimeoutError as error:
        raise Refused(408, "The picture took too long to arrive; please try again.") from error
    except ClientDisconnect as error:
        raise Refused(499, "Nobody waits for this any more.") from error
    if size > MAX_BYTES:
        raise Refused(
            413,
            f"This file has {'more than ' * (size > _DRAINED)}{size / 2**20:.0f} MB; up to "
            f"{MAX_BYTES // 2**20} MB can be taken. Make the picture smaller first.",
        )
    if not size:
        raise Refused(400, "This file is empty.")
    return b"".join(parts)


# --- who -----------------------------------------------------------------------------------------


class Guard:
    """Lets requests through that a user of this page made, and adds headers to all answers.

    A site can give its own name the address of this machine, and then its pages may talk to every
    server here ("DNS rebinding"); but they send that name as the host. And any page may send forms
    anywhere; but then the browser says where from. Both are refused.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        """Wraps an application.

        Args:
          app: what to guard.
          hosts: names and addresses that it answers to; with '*' among them to every address in
            numbers, which no name can stand for, besides.
        """
        self._app, self._hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or lets the application answer."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        reason = self._refusal(scope["method"], Headers(scope=scope))
        app = JSONResponse({"error": reason}, 403) if reason else self._app
        await app(scope, receive, answered)

    def _refusal(self, method: str, headers: Headers) -> str:
        host = headers.get("host", "").lower()
        if not self._answers_to(host):
            return (
                f"This demo does not answer to the name {host!r}; open the address that it printed."
            )
        origin, site = headers.get("origin", ""), headers.get("sec-fetch-site", "same-origin")
        foreign = origin and urllib.parse.urlsplit(origin.lower()).netloc != host
        if method not in ("GET", "HEAD") and (foreign or site not in ("same-origin", "none")):
            return "Other sites may not use this demo; open the address that it printed."
        return ""

    def _answers_to(self, host: str) -> bool:
        try:
            name = urllib.parse.urlsplit(f"//{host}").hostname or ""
            if name in self._hosts:
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return "*" in self._hosts
