"""Headless Chromium for tests of pages, which are skipped where it or playwright is absent.

    with browser() as tab:
        tab.page.goto(path.as_uri())
        tab.page.click("#sort")
        assert tab.page.inner_text("h1") == "val" and tab.problems == []

`tab.page` is a page of playwright (https://playwright.dev/python/docs/api/class-page). Nothing but
files and this very machine can be reached.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_NEAR = re.compile(r"(file|data|blob|about):|https?://(127\.0\.0\.1|localhost)(:\d+)?(/|$)")


@dataclasses.dataclass
class Tab:
    """One tab of a browser.

    Attributes:
      page: as playwright has it.
      problems: what a user would find in the console: errors, files that are not there, requests
        to other machines. A test that expects some empties it.
      requests: addresses asked for.
    """

    page: Any
    problems: list[str] = dataclasses.field(default_factory=list)
    requests: list[str] = dataclasses.field(default_factory=list)

    def look(self, width: int, height: int, dark: bool = False) -> None:
        """Shows the page in a window of another size, in light or dark."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme="dark" if dark else "light")

    def clear(self) -> None:
        """Leaves the page, and forgets what was noted of it."""
        self.page.goto("about:blank")
        self.problems.clear()
        self.requests.clear()

    def _ask(self, request: Any) -> None:
        self.requests.append(request.url)
        if not _NEAR.match(request.url):
            self.problems.append(f"asked for {request.url[:200]}")

    def _say(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text}")


@contextlib.contextmanager
def browser(width: int = 1200, height: int = 800, touch: bool = False) -> Iterator[Tab]:
    """A tab of a fresh browser, which is closed in the end; skips the test where there is none.

    Args:
      width: of the window.
      height: of the window.
      touch: whether it has a touch screen, as a phone.
    """
    pytest.importorskip("playwright")
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    with sync_playwright() as play:
        running = play.chromium.launch(
            executable_path=program,
            args=[
                "--no-sandbox",  # root has none, and in containers people are root
                "--disable-gpu",
                "--disable-dev-shm-usage",  # small in containers
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
            ],
        )
        try:
            page = running.new_page(
                viewport={"width": width, "height": height}, has_touch=touch, accept_downloads=True
            )
            page.set_default_timeout(10_000)
            tab = Tab(page)
            page.on("request", tab._ask)
            page.on("console", tab._say)
            page.on("pageerror", lambda error: tab.problems.append(f"error: {error}"))
            yield tab
        finally:
            running.close()
