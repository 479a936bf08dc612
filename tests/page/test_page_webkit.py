"""The page's main path in WebKit, Safari's engine, driven by the WebDriver of WebKitGTK.

`apt-get install webkit2gtk-driver xvfb`; without them the test is skipped.
"""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import PATIENCE_S, SPEECH, Server, wait_until

pytestmark = pytest.mark.integration

CLIP = SPEECH / "clip-001.flac"
SAID = "Rosa likes writing, but Olivia likes working."
TEXT = """return [...document.querySelectorAll("#sentences .words")]
    .map((words) => words.textContent).join(" ")"""
CHOOSE = """const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
    const chosen = new DataTransfer();
    chosen.items.add(new File([bytes], arguments[1], { type: "audio/flac" }));
    document.querySelector("#file").files = chosen.files;
    document.querySelector("#file").dispatchEvent(new Event("change", { bubbles: true }))"""
WORD = """document.querySelector('[data-word="0"]')"""
EDIT = f"""{WORD}.dispatchEvent(new MouseEvent("dblclick", {{ bubbles: true }}));
    const field = document.querySelector(".sentence-field");
    field.value = field.value.replace("Rosa", "Rose")"""


class WebKit:
    """A session of the WebDriver protocol."""

    def __init__(self, driver: httpx.Client, browser: Path) -> None:
        options = {"binary": str(browser), "args": ["--automation"]}
        wanted = {"alwaysMatch": {"webkitgtk:browserOptions": options}}
        self._driver = driver
        created = driver.post("/session", json={"capabilities": wanted}).json()["value"]
        self._path = f"/session/{created['sessionId']}"

    def open(self, url: str) -> None:
        """Load a page."""
        self._ask("url", url=url)

    def reload(self) -> None:
        """Load the page again."""
        self._ask("refresh")

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page; return its value."""
        return self._ask("execute/sync", script=script, args=list(arguments))

    def quit(self) -> None:
        """Close the browser."""
        self._driver.delete(self._path)

    def _ask(self, command: str, **parameters: Any) -> Any:
        answer = self._driver.post(f"{self._path}/{command}", json=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["value"]


@contextmanager
def _screen() -> Iterator[str]:
    """Run an X server without a screen on a free display; give its name."""
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1400x1000x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=(write,), stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        with os.fdopen(read) as names:
            yield f":{names.readline().strip()}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def webkit() -> Iterator[WebKit]:
    browsers = sorted(Path("/usr").glob("lib*/**/webkit2gtk-4*/MiniBrowser"))
    if not browsers or not all(map(shutil.which, ("WebKitWebDriver", "Xvfb"))):
        pytest.skip("WebKit is not installed: apt-get install webkit2gtk-driver xvfb")
    with _screen() as display, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        # The sandbox needs user namespaces, which containers rarely have.
        environ = {"DISPLAY": display, "WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS": "1"}
        driver = subprocess.Popen(
            ["WebKitWebDriver", f"--port={port}"],
            env=os.environ | environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
                wait_until(lambda: _listens(port), what="the driver")
                session = WebKit(client, browsers[-1])
                yield session
                session.quit()
        finally:
            driver.terminate()
            driver.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_transcribing_and_editing_work_in_webkit(webkit: WebKit, server: Server) -> None:
    webkit.open(server.url)
    wait_until(lambda: webkit.run("return !document.querySelector('#page').hidden"), what="strings")
    webkit.run(CHOOSE, base64.b64encode(CLIP.read_bytes()).decode(), CLIP.name)
    wait_until(lambda: webkit.run(TEXT), what="the transcript")
    assert webkit.run(TEXT) == SAID
    wait_until(
        lambda: webkit.run("return document.querySelector('.history-item') !== null"),
        what="the history",
    )
    wait_until(lambda: webkit.run(f"return {WORD} !== null"), what="words")
    # What is typed survives a reload in the middle of it.
    webkit.run(EDIT)
    webkit.reload()
    wait_until(
        lambda: webkit.run("return document.querySelector('.history-item .row-open') !== null"),
        what="the history",
    )
    webkit.run("document.querySelector('.history-item .row-open').click()")
    wait_until(lambda: webkit.run(TEXT), what="the transcript")
    assert webkit.run(TEXT) == SAID.replace("Rosa", "Rose")
    assert webkit.run("return document.documentElement.scrollWidth <= innerWidth")
