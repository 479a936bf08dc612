"""A real Chromium for the page's tests, and user actions on the page."""

from __future__ import annotations

import base64
import http.client
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import PATIENCE_S
from http_helpers import ENDPOINT
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

expect.set_options(timeout=PATIENCE_S * 1000)

_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


@dataclass(frozen=True)
class Font:
    """A font other than the page's preferred one."""

    family: str
    """Used if it is installed; otherwise the letter spacing simulates it."""
    spacing_em: float


NARROW = Font('"Liberation Sans Narrow", "DejaVu Sans Condensed", "Arial Narrow"', -0.03)
WIDE = Font('"DejaVu Sans", Verdana', 0.03)
"""3 % of the height more for each letter than the widest font that systems have by default."""


@dataclass(frozen=True)
class Look:
    """A combination of screen and language."""

    width: int = 1280
    height: int = 900
    language: str = "en"
    dark: bool = False
    font: Font | None = None


@contextmanager
def chromium(*arguments: str) -> Iterator[Browser]:
    """Run the machine's Chromium; skip the test where there is none."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("the page's tests need Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=[*_ARGUMENTS, *arguments]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visit(browser: Browser, url: str, look: Look | None = None) -> Iterator[Page]:
    """Open the page as a new visitor.

    At the end it must have asked no other host for anything, broken none of its own policy, and
    met no error that it did not expect.
    """
    look = look or Look()
    context = browser.new_context(
        viewport={"width": look.width, "height": look.height},
        locale=look.language,
        color_scheme="dark" if look.dark else "light",
        has_touch=look.width < 500,
    )
    context.set_default_timeout(PATIENCE_S * 1000)
    page = context.new_page()
    faults: list[str] = []
    hosts: set[str] = set()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        lambda message: (
            faults.append(message.text)
            if message.type == "error" and "Failed to load resource" not in message.text
            else None
        ),
    )
    page.on(
        "request",
        lambda request: (
            hosts.add(urlsplit(request.url).netloc)
            if urlsplit(request.url).scheme not in {"blob", "data"}
            else None
        ),
    )
    try:
        page.goto(url)
        page.locator("#page").wait_for()
        if look.font is not None:
            _use_font(page, look.font)
        yield page
        assert faults == []
        assert hosts == {urlsplit(url).netloc}
    finally:
        context.close()


def _use_font(page: Page, font: Font) -> None:
    """Set all text in a font; by script, as the page's policy forbids style elements."""
    page.evaluate(
        """([family, spacing]) => {
            const sheet = new CSSStyleSheet();
            sheet.replaceSync(`* {
                font-family: ${family}, sans-serif !important;
                letter-spacing: ${spacing}em !important;
            }`);
            document.adoptedStyleSheets.push(sheet);
        }""",
        [font.family, font.spacing_em],
    )


def is_too_wide(page: Page) -> bool:
    """Tell whether the page is wider than the screen."""
    return bool(page.evaluate("document.documentElement.scrollWidth > innerWidth"))


def choose(page: Page, *paths: Path) -> None:
    """Pick files in the dialog that the button opens."""
    with page.expect_file_chooser() as opened:
        page.locator("#choose").click()
    opened.value.set_files(list(paths))


def drop(page: Page, path: Path, *, kind: str = "audio/flac", onto: str = "h1") -> None:
    """Drag a file from outside onto an element, and let go."""
    _with_files(page, [path], kind)
    for event in ("dragenter", "dragover", "drop"):
        page.locator(onto).dispatch_event(event, {"dataTransfer": page.evaluate_handle("given")})


def paste(page: Page, path: Path, *, kind: str = "audio/flac") -> None:
    """Press the keys for pasting with a file on the clipboard."""
    _with_files(page, [path], kind)
    page.evaluate(
        "document.body.dispatchEvent("
        "new ClipboardEvent('paste', {clipboardData: given, bubbles: true, cancelable: true}))"
    )


def _with_files(page: Page, paths: list[Path], kind: str) -> None:
    """Put a `DataTransfer` with files into the page's variable `given`."""
    page.evaluate(
        """([files, type]) => {
            window.given = new DataTransfer();
            for (const [name, content] of files) {
                const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
                given.items.add(new File([bytes], name, { type }));
            }
        }""",
        [[(path.name, base64.b64encode(path.read_bytes()).decode()) for path in paths], kind],
    )


def transcript_of(page: Page) -> str:
    """Wait for the transcript; give its text."""
    page.locator("#export-open").wait_for()
    return " ".join(page.locator("#sentences .words").all_text_contents())


def saved(page: Page, name: str) -> tuple[str, str]:
    """Press a download button; give the file's name and text."""
    with page.expect_download() as download:
        page.locator("#export-open").click()
        page.locator(f"#download-{name}").click()
    return download.value.suggested_filename, download.value.path().read_text(encoding="utf-8")


def edit_word(page: Page, word: Locator, text: str) -> None:
    """Replace a word."""
    word.dblclick()
    page.locator(".sentence-field").wait_for()
    if text:
        page.keyboard.insert_text(text)
    else:
        page.keyboard.press("Backspace")
    page.keyboard.press("Enter")


def count_uploads(page: Page) -> list[str]:
    """Return a list that grows with each transcription that the page asks for."""
    upload_urls: list[str] = []
    page.on(
        "request",
        lambda request: (
            upload_urls.append(request.url)
            if request.method == "POST" and request.url.endswith((ENDPOINT, "/v1/jobs"))
            else None
        ),
    )
    return upload_urls


def without_jobs(page: Page) -> None:
    """Reject jobs as the server would, so that the page requests a stream."""
    refused = {"message": "", "type": "server_error", "param": None, "code": "jobs_unavailable"}
    page.route("**/v1/jobs", lambda route: route.fulfill(status=503, json={"error": refused}))


def serious_faults(page: Page) -> list[str]:
    """Run axe; return its serious and critical findings."""
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [
        f"{fault['id']}: {node['html']} {node['failureSummary']}"
        for fault in found
        if fault["impact"] in {"serious", "critical"}
        for node in fault["nodes"]
    ]


class Proxy:
    """A reverse proxy that serves the page under `/parakeet/`, and can stop passing answers on."""

    def __init__(self, url: str) -> None:
        self.frozen = threading.Event()
        """Once set, connections stay open, and no more data is passed on."""
        self.released = threading.Event()
        self.upload = b""
        """The body of the last POST."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                proxy._forward(self, url)

            do_POST = do_GET  # noqa: N815 - named by http.server

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/parakeet/"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def _forward(self, handler: BaseHTTPRequestHandler, url: str) -> None:
        if not handler.path.startswith("/parakeet/"):
            handler.send_error(404)
            return
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        self.upload = body or self.upload
        upstream = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)
        with closing(upstream):
            upstream.request(
                handler.command, handler.path.removeprefix("/parakeet"), body, dict(handler.headers)
            )
            # The page may disconnect at any time.
            with upstream.getresponse() as answer, suppress(ConnectionError):
                self._pass_on(answer, handler)

    def _pass_on(self, answer: http.client.HTTPResponse, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(answer.status)
        for name in ("Content-Type", "Content-Security-Policy"):
            if answer.getheader(name):
                handler.send_header(name, str(answer.getheader(name)))
        handler.end_headers()
        while piece := answer.read1(65536):
            handler.wfile.write(piece)
            if self.frozen.is_set():
                self.released.wait()
                break
