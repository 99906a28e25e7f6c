"""Draw or drop a picture in the browser and see what a trained translator makes of it.

    python -m p2p_jax.demo --workdir=DIR [--port=8000] [--host=127.0.0.1] [--step=N] [--ema]
        [--examples=12]

Serves one page, by default to this machine alone, until Ctrl-C. It translates while you draw, with
the newest checkpoint or that of step N; --ema takes the averaged weights. The canvas has the size
the network was trained at, and the colours of its label set: the run's palette, the classes of sets
that are known, the few colours its pictures are made of; black on white for edges; any colour else.
--examples of the pictures that the newest evaluation wrote to eval/SPLIT/STEP/ stand beside it.

Pictures that are dropped, pasted or opened keep their aspect: what sticks out is cut off on both
sides, or what is missing mirrored, as chosen in the page. They may be PNG, JPEG, WebP, BMP or TIFF
of up to 20 MB and 40 megapixels; other kinds are taken where the browser can show them. What is
drawn and shown has 8 bits a channel. Dropout, where the run evaluates with it, is drawn once and
kept while you draw.

16 requests are served or wait; further ones are asked to come back. Only the names localhost and
127.0.0.1 are answered to; --host=ADDRESS of this machine, or 0.0.0.0 for all of them, opens the
demo to whoever can reach it, as a phone in the same network. There is no password.

Needs pip install 'p2p_jax[demo]'. Exit codes: 0 done, 2 bad input, 130 interrupted before the page
was ready, 1 a failure.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from p2p_jax import mesh, translator
from p2p_jax.canvases import padded
from p2p_jax.command import finish
from p2p_jax.console import Console
from p2p_jax.demo_inks import Inks, inks
from p2p_jax.demo_pictures import FITS, MAX_BYTES, Easel, Example, Make, examples
from p2p_jax.flags import run_folder, saved_config
from p2p_jax.runner import Runner
from p2p_jax.words import ConfigError, split

FLAGS = ("workdir", "port", "host", "step", "ema", "examples", "help")
LOCAL = ("127.0.0.1", "localhost", "::1")
_MOST_EXAMPLES = 60


def main(argv: Sequence[str]) -> int:
    """Runs a command line, without the program's name, and returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(str(__doc__).strip())
        return 0
    return finish(lambda: _run(argv, Console()), "interrupted before the page was ready")


def _run(argv: Sequence[str], console: Console) -> int:
    flags, _, problems = split(argv, FLAGS, ("ema", "help"))
    numbers = {
        name: _whole(name, flags[name], most, problems)
        for name, most in (("port", 65535), ("step", None), ("examples", _MOST_EXAMPLES))
        if name in flags
    }
    workdir, found = run_folder("--workdir", flags.get("workdir", ""))
    problems += found
    if not flags.get("workdir"):
        problems.append("--workdir: needed, the folder of a run, as in --workdir=runs/facades")
    elif not found:
        with contextlib.suppress(ConfigError):  # which `load` tells
            mesh.use_precision(saved_config(workdir).train.precision)
    problems += missing()
    host = flags.get("host") or LOCAL[0]
    with contextlib.ExitStack() as stack:
        listener = listen(host, numbers.get("port", 8000), problems)
        if listener is not None:
            stack.enter_context(listener)
        if problems or listener is None:
            raise ConfigError(problems)
        ema = True if "ema" in flags else None
        made = translator.load(workdir, step=numbers.get("step"), ema=ema, warn=console.warn)
        easel = Easel(made, steady(made))
        found = examples(workdir, numbers.get("examples", 12), easel)
        tell(made, found, console)
        seconds = warm(easel, console)
        about = described(made, easel, found, seconds)
        serve(listener, easel, about, found, console)
    return 0


def _whole(name: str, text: str, most: int | None, problems: list[str]) -> int:
    """A whole number from 0 on; adds to `problems` what is not."""
    if text.isascii() and text.isdigit() and (most is None or int(text) <= most):
        return int(text)
    allowed = "a whole number" + (f" from 0 to {most}" if most is not None else "")
    problems.append(f"--{name}: {text!r} is not {allowed}")
    return 0


def missing() -> list[str]:
    """What is not installed, and how to install it."""
    try:
        import starlette
        import uvicorn
    except ImportError as error:
        return [f"the demo needs {error.name}: pip install 'p2p_jax[demo]'"]
    del starlette, uvicorn
    return []


# --- the address ---------------------------------------------------------------------------------


def listen(host: str, port: int, problems: list[str]) -> socket.socket | None:
    """A socket that listens, before anything is loaded; adds to `problems` why there is none."""
    if problems:
        return None
    try:
        return _bound(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            free = _free(host, port)
            advice = f"; --port={free} is free" if free else "; choose another one"
            problems.append(f"--port: {port} is in use by another program{advice}")
        elif error.errno == errno.EACCES:
            problems.append(f"--port: {port} is not allowed to users; those from 1024 on are")
        else:
            reason = error.strerror or str(error)
            problems.append(f"--host: {host} is no address of this machine ({reason})")
    return None


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def _free(host: str, port: int) -> int | None:
    """The next port that nobody uses."""
    for other in range(port + 1, min(port + 50, 65536)):
        with contextlib.suppress(OSError), _bound(host, other):
            return other
    return None


def hosts(host: str) -> tuple[str, ...]:
    """The names that a server at an address answers to; see `demo_server.Guard`."""
    if host in LOCAL:
        return LOCAL
    name = socket.gethostname().lower()
    return (*LOCAL, host, name, f"{name}.local", "*")


# --- the translator ------------------------------------------------------------------------------


def steady(made: translator.Translator) -> Make:
    """Translates one image by what a translator is made of, its dropout drawn from a given number.

    The translator itself draws from the image: each stroke would change all of the result.
    """
    inference, stored = made.inference, made.stored
    draws = not made.deterministic
    runner = Runner(inference, mesh.make_mesh(1), stored.swapped, draws, inference.config.seed, 1)

    def make(source: np.ndarray, noise: int) -> np.ndarray:
        filled = padded(source, made.canvases.of(source.shape))
        (row,) = runner.whole([(filled, noise)])
        return stored.kept(row)[: source.shape[0], : source.shape[1]]

    return make


def warm(easel: Easel, console: Console) -> float:
    """Compiles, and tells how long that took; returns the seconds of a translation after that."""
    height, width = easel.size
    console.note(f"compiling for {height}x{width} ...")
    blank = np.zeros((height, width, 3), np.uint8)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        easel(blank)
        times.append(time.perf_counter() - start)
    console.note(f"compiled in {times[0]:.1f} s; a picture takes {times[1]:.2f} s")
    return times[1]


def tell(made: translator.Translator, found: Sequence[Example], console: Console) -> None:
    """What was loaded."""
    console.note(f"restored step {made.step} of {made.workdir}")
    for note in made.notes:
        if made.deterministic or not note.startswith("dropout"):
            console.note(note)
    if not found:
        console.note(
            "there are no example pictures yet: python -m p2p_jax.main --mode=eval "
            f"--workdir={made.workdir} writes them"
        )


def described(
    made: translator.Translator, easel: Easel, found: Sequence[Example], seconds: float
) -> dict[str, Any]:
    """What the page is told of the run and of what to draw with."""
    config = made.inference.config
    chosen = inks(config, easel.palette, easel.grey, [example.source for example in found])
    return {
        "run": getattr(made.workdir, "name", "") or str(made.workdir),
        "data": config.data.name or config.data.source,
        "step": made.step,
        "height": easel.size[0],
        "width": easel.size[1],
        "noise": easel.noisy,
        "seconds": round(seconds, 3),
        "max_bytes": MAX_BYTES,
        "fits": FITS,
        "examples": [
            {"name": example.name, "target": example.target is not None} for example in found
        ],
        **_drawn(chosen),
    }


def _drawn(chosen: Inks) -> dict[str, Any]:
    return {
        "kind": chosen.kind,
        "free": chosen.free,
        "brush": chosen.size,
        "background": _hex(chosen.background),
        "colours": [{"hex": _hex(colour), "name": name} for colour, name in chosen.colours],
    }


def _hex(colour: Sequence[int]) -> str:
    return "#" + bytes(colour).hex()


# --- the server ----------------------------------------------------------------------------------


def serve(
    listener: socket.socket,
    easel: Easel,
    about: dict[str, Any],
    found: Sequence[Example],
    console: Console,
) -> None:
    """Serves the page until Ctrl-C."""
    from p2p_jax.demo_server import Offer, make_app

    host, port = listener.getsockname()[:2]
    app = make_app(Offer(easel, about, found), hosts(host))
    if host not in LOCAL:
        console.warn("whoever can reach this machine can use the demo; there is no password")
        host = socket.gethostname() if host in ("0.0.0.0", "::") else host
    name = f"[{host}]" if ":" in host else host
    console.note(f"open http://{name}:{port}  (Ctrl-C ends)")
    with contextlib.suppress(KeyboardInterrupt):
        server(app).run(sockets=[listener])
    console.note("stopped")


def server(app: Any) -> Any:
    """The server uvicorn with no more than is needed: no logs of requests, no trust in proxies."""
    import uvicorn

    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
