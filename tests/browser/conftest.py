"""The built book in Chromium, over http and from a folder, with every other host blocked."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "_build" / "html"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update"
).split()
LOCAL = ("data:", "blob:", "about:", "file:", "http://127.0.0.1:")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server that does not write a line for every request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@dataclass
class Visit:
    """One open page and everything that went wrong on it."""

    page: Page
    base: str
    problems: list[str] = field(default_factory=list)

    def go(self, name: str, **options: Any) -> Page:
        """Open a page of the book by its path without `.html`, and let its scripts finish."""
        path, _, query = name.partition("?")
        self.page.goto(f"{self.base}/{path}.html" + (f"?{query}" if query else ""), **options)
        self.page.wait_for_function("!window.MathJax || !!window.MathJax.version")
        self.page.wait_for_timeout(150)
        return self.page


@pytest.fixture(scope="session")
def book() -> Path:
    """The folder of the built book."""
    if not (BOOK / "index.html").is_file():
        pytest.fail(f"no book in {BOOK}: run make book first")
    return BOOK


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    program = program or shutil.which("google-chrome")
    if program is None:
        pytest.fail("no Chromium: install it with `apt-get install chromium`")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def server(book: Path) -> Iterator[str]:
    """The book's address over http, on this machine only."""
    handler = functools.partial(Quiet, directory=str(book))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def visit(
    request: pytest.FixtureRequest, browser: Browser, server: str, book: Path
) -> Iterator[Visit]:
    """A new page; parametrize with (scheme, look) where http in light on a desk is not meant."""
    scheme, look = getattr(request, "param", ("http", "light"))
    size = {"width": 390, "height": 844} if look == "phone" else {"width": 1360, "height": 900}
    context = browser.new_context(
        viewport=size, color_scheme="dark" if look == "dark" else "light", reduced_motion="reduce"
    )
    page = context.new_page()
    found = Visit(page, server if scheme == "http" else book.as_uri())

    def pass_local(route: Any) -> None:
        if route.request.url.startswith(LOCAL):
            route.continue_()
        else:
            found.problems.append(f"asked another host: {route.request.url}")
            route.abort()

    page.route("**/*", pass_local)
    page.on(
        "console",
        lambda message: (
            found.problems.append(f"console: {message.text}") if message.type == "error" else None
        ),
    )
    page.on("pageerror", lambda error: found.problems.append(f"script: {error}"))
    page.on("requestfailed", lambda asked: found.problems.append(f"missing: {asked.url}"))
    page.on(
        "response",
        lambda answer: (
            found.problems.append(f"{answer.status}: {answer.url}")
            if answer.status >= 400
            else None
        ),
    )
    yield found
    context.close()
