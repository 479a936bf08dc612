"""URLs of recordings on the page, with a real browser and a real web server to fetch them from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import transcript_of, visit
from conftest import SPEECH, Clip
from in_process import served
from playwright.sync_api import Browser, expect

pytestmark = pytest.mark.integration


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def host() -> Iterator[str]:
    """Host and port of a server of the sample clips."""
    handler = partial(QuietHandler, directory=str(SPEECH))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_typed_and_a_pasted_url_become_transcripts(
    browser: Browser, tmp_path: Path, host: str, clips: list[Clip]
) -> None:
    with (
        served(tmp_path, DEMO_MODEL="grammar", ALLOW_URLS=host) as running,
        visit(browser, running.server.url) as page,
    ):
        page.get_by_role("button", name="From a URL").click()
        field = page.get_by_label("URL of a recording")
        expect(field).to_be_focused()
        field.fill(f"http://{host}/{clips[3].path.name}")
        field.press("Enter")
        assert transcript_of(page) == clips[3].text
        expect(page.locator("#document-title")).to_have_text(clips[3].path.name)

        page.evaluate(
            """url => {
                const clipboardData = new DataTransfer();
                clipboardData.setData("text", url);
                const pasted = new ClipboardEvent("paste", {clipboardData, bubbles: true});
                document.body.dispatchEvent(pasted);
            }""",
            f"http://{host}/{clips[5].path.name}",
        )
        expect(page.locator("#document-title")).to_have_text(clips[5].path.name)
        assert transcript_of(page) == clips[5].text


def test_what_cannot_be_fetched_says_why_and_can_be_retried(
    browser: Browser, tmp_path: Path, host: str
) -> None:
    with (
        served(tmp_path, DEMO_MODEL="grammar", ALLOW_URLS=host) as running,
        visit(browser, running.server.url) as page,
    ):
        page.get_by_role("button", name="From a URL").click()
        page.get_by_label("URL of a recording").fill(f"http://{host}/missing.mp3")
        page.get_by_role("button", name="Transcribe").click()
        job = page.locator("#queue li")
        expect(job).to_contain_text("“missing.mp3” could not be fetched")
        expect(job).to_contain_text("404")
        expect(job.get_by_role("button", name="Try again")).to_be_visible()


def test_a_server_without_hosts_offers_no_url(browser: Browser, tmp_path: Path) -> None:
    with (
        served(tmp_path, DEMO_MODEL="grammar") as running,
        visit(browser, running.server.url) as page,
    ):
        expect(page.get_by_role("button", name="Choose files")).to_be_visible()
        expect(page.locator("#limits")).not_to_be_empty()
        expect(page.locator("#enter-url")).to_be_hidden()
