"""Uploading recordings: input, checks, progress, and errors."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from browser import (
    Proxy,
    choose,
    chromium,
    count_uploads,
    drop,
    paste,
    saved,
    transcript_of,
    visit,
    without_jobs,
)
from conftest import SPEECH, Server, encode, running_server, wait_until
from http_helpers import request
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.integration

CLIP = SPEECH / "clip-001.flac"
SAID = "Rosa likes writing, but Olivia likes working."


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the audio that the browser's fake microphone repeats."""
    return encode(CLIP, tmp_path_factory.mktemp("microphone") / "heard.wav", "-ar", "48000")


@pytest.fixture(scope="module")
def browser(microphone: Path) -> Iterator[Browser]:
    with chromium(f"--use-file-for-fake-audio-capture={microphone}") as started:
        yield started


@pytest.fixture(scope="module")
def lecture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a recording of two hours."""
    path = tmp_path_factory.mktemp("lecture") / "lecture.ogg"
    return encode(SPEECH / "long-dense.ogg", path, "-c", "copy", before=("-stream_loop", "9"))


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a server with a key and narrow limits, which takes three jobs."""
    settings = {"API_KEY": "sesame", "MAX_UPLOAD_MB": "60", "MAX_AUDIO_HOURS": "3"}
    settings |= {"MAX_QUEUED_JOBS": "3"}
    with running_server(tmp_path_factory.mktemp("strict"), **settings) as started:
        yield started


def state(page: Page, name: str = "") -> Callable[[str], None]:
    """Return a check that waits until the recording's line says something."""
    row = page.locator(".queue-item").filter(has_text=name)
    line = row.locator("[data-part=state]")
    return lambda pattern: expect(line).to_contain_text(re.compile(pattern))


def problem(page: Page, title: str, advice: str) -> None:
    """Wait until the page shows the problem and the advice."""
    item = page.locator("[data-phase=failed]")
    expect(item.locator("[data-part=state]")).to_contain_text(title)
    expect(item.locator("[data-part=advice]")).to_contain_text(advice)
    # It is read out as well.
    expect(page.locator("#alerter")).to_contain_text(title)


class TestWaysIn:
    def test_a_file_is_dropped_anywhere(self, browser: Browser, server: Server) -> None:
        with visit(browser, server.url) as page:
            drop(page, CLIP, onto="footer")
            assert transcript_of(page) == SAID
            expect(page.locator("#drop-overlay")).to_be_hidden()

    def test_a_file_is_pasted(self, browser: Browser, server: Server) -> None:
        with visit(browser, server.url) as page:
            paste(page, CLIP)
            assert transcript_of(page) == SAID

    def test_several_files_are_processed_one_after_the_other(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            uploads = count_uploads(page)
            choose(page, *(SPEECH / f"clip-00{number}.flac" for number in range(3)))
            expect(page.locator("[data-phase=done]")).to_have_count(3)
            assert len(uploads) == 3
            page.get_by_role("button", name="clip-002.flac", exact=True).click()
            expect(page.locator("#document-title")).to_have_text("clip-002.flac")
            assert transcript_of(page) == "How many pictures does Rosa have?"

    def test_the_microphone_is_recorded_with_its_level_shown(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            page.locator("#record").click()
            level = page.get_by_role("meter", name="Loudness")
            expect(level).to_have_attribute("aria-valuenow", re.compile("[1-9]"))
            expect(page.locator("#record-time")).to_have_text("0:04")
            page.get_by_role("button", name="Stop and transcribe").click()
            assert "likes" in transcript_of(page)
            expect(page.locator("#document-title")).to_have_text(
                re.compile(r"Recording \d{4}-\d\d-\d\d .*\.webm")
            )
            page.locator("[data-word]").last.click()
            wait_until(
                lambda: page.evaluate("document.querySelector('audio').currentTime") > 1,
                what="playing",
            )
            # It is stored nowhere else, so the page offers to save it.
            page.get_by_role("button", name="Export").click()
            with page.expect_download() as download:
                page.get_by_role("button", name="Save recording").click()
            assert download.value.path().stat().st_size > 1000

    def test_words_appear_while_one_speaks(self, browser: Browser, server: Server) -> None:
        with visit(browser, server.url) as page:
            page.locator("#record").click()
            # They are where the transcript will be, with the times of their turns.
            article = page.get_by_role("article")
            expect(article).to_contain_text("likes")
            title = page.locator("#document-title").inner_text()
            assert title.startswith("Recording ")
            expect(page.locator(".turn .time").first).to_have_text(re.compile(r"^0:0\d$"))
            heard = page.locator(".turn .words").first.bounding_box()
            expect(page.locator("#bar")).to_be_hidden()
            page.get_by_role("button", name="Stop and transcribe").click()
            assert "likes" in transcript_of(page)
            expect(page.locator("#live")).to_be_hidden()
            expect(page.locator("#document-title")).to_have_text(title)
            final = page.locator(".sentence .words").first.bounding_box()
            assert heard
            assert final
            # The text does not move sideways.
            assert final["x"] == heard["x"]
            assert final["y"] < 400
            # The recording is kept with it.
            page.locator("[data-word]").first.click()
            expect(page.get_by_role("button", name="Pause", exact=True)).to_be_visible()

    def test_words_heard_by_the_microphone_stay_while_the_server_fails_and_after_a_reload(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            page.route("**/v1/jobs", lambda route: route.abort())
            page.locator("#record").click()
            expect(page.locator("#live")).to_contain_text("likes")
            page.get_by_role("button", name="Stop and transcribe").click()
            state(page)("The connection to the server was lost")
            expect(page.locator("#live")).to_contain_text("likes")
            page.get_by_role("button", name="Cancel").click()
            page.context.grant_permissions(["clipboard-read", "clipboard-write"])
            page.locator("#partial-copy").click()
            expect(page.locator("#partial-copy")).to_have_text("Copied")
            assert "likes" in page.evaluate("navigator.clipboard.readText()")

    def test_a_discarded_recording_gives_back_what_was_open(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            choose(page, SPEECH / "clip-002.flac")
            said = transcript_of(page)
            page.locator("#record").click()
            expect(page.locator("#live")).to_contain_text("likes")
            page.locator(".history-item .row-open").click()
            page.get_by_role("button", name="Show the words").click()
            expect(page.locator("#live")).to_contain_text("likes")
            page.get_by_role("button", name="Discard").click()
            expect(page.locator("#document-title")).to_have_text("clip-002.flac")
            assert transcript_of(page) == said

    def test_a_page_that_dies_while_recording_loses_at_most_a_second(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            page.on("dialog", lambda dialog: dialog.accept())
            page.locator("#record").click()
            expect(page.locator("#record-time")).to_have_text("0:05")
            page.reload()
            page.locator(".history-item").wait_for()
            page.locator(".history-item .row-open").click()
            assert "likes" in transcript_of(page)
            expect(page.locator("#document-detail")).to_contain_text(re.compile("^0:0[3-9]"))
            page.locator("[data-word]").first.click()
            expect(page.get_by_role("button", name="Pause", exact=True)).to_be_visible()

    def test_without_a_websocket_the_microphone_is_recorded_all_the_same(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            page.route_web_socket("**/realtime**", lambda socket: socket.close())
            page.locator("#record").click()
            expect(page.locator("#record-time")).to_have_text("0:04")
            expect(page.get_by_role("article")).to_be_hidden()
            page.get_by_role("button", name="Stop and transcribe").click()
            assert "likes" in transcript_of(page)

    def test_a_recording_can_be_discarded(self, browser: Browser, server: Server) -> None:
        with visit(browser, server.url) as page:
            uploads = count_uploads(page)
            page.locator("#record").click()
            page.get_by_role("button", name="Discard").click()
            expect(page.locator("#recorder")).to_be_hidden()
            assert uploads == []

    def test_a_video_plays_with_its_captions(
        self, browser: Browser, server: Server, tmp_path: Path
    ) -> None:
        picture = ("-f", "lavfi", "-i", "color=green:size=160x120:rate=5")
        video = encode(
            CLIP, tmp_path / "talk.webm", "-c:v", "libvpx", "-c:a", "libopus", "-shortest",
            before=picture,
        )  # fmt: skip
        with visit(browser, server.url) as page:
            choose(page, video)
            assert transcript_of(page) == SAID
            expect(page.locator("#media video")).to_be_visible()
            track = "document.querySelector('video').textTracks[0]"
            wait_until(
                lambda: page.evaluate(f"{track}?.cues?.length"),
                what="captions",
            )
            assert "Rosa likes" in page.evaluate(f"{track}.cues[0].text")
            assert page.evaluate(f"{track}.mode") == "showing"


class TestChecksBeforeTheUpload:
    def test_a_file_that_is_no_recording(self, browser: Browser, server: Server) -> None:
        with visit(browser, server.url) as page:
            uploads = count_uploads(page)
            choose(page, Path(__file__))
            problem(page, "is not a recording", "This server takes audio and video")
            assert uploads == []

    def test_a_file_of_two_gigabytes(
        self, browser: Browser, server: Server, tmp_path: Path
    ) -> None:
        film = tmp_path / "film.mp4"
        with film.open("wb") as file:
            file.truncate(2001 * 1024 * 1024)  # Sparse: it takes no room on the disk.
        with visit(browser, server.url) as page:
            uploads = count_uploads(page)
            choose(page, film)
            problem(page, "too large for this server", "It has 2,001 MB; this server takes up to")
            assert uploads == []

    def test_a_recording_that_is_too_long(
        self, browser: Browser, strict: Server, tmp_path: Path
    ) -> None:
        path = encode(
            SPEECH / "long-pauses.ogg", tmp_path / "day.ogg", "-c", "copy",
            before=("-stream_loop", "15"),
        )  # fmt: skip
        with visit(browser, strict.url) as page:
            uploads = count_uploads(page)
            choose(page, path)
            problem(page, "too long for this server", "Send it in parts.")
            assert uploads == []

    def test_an_empty_file(self, browser: Browser, server: Server, tmp_path: Path) -> None:
        (tmp_path / "empty.wav").touch()
        with visit(browser, server.url) as page:
            choose(page, tmp_path / "empty.wav")
            problem(page, "is empty", "Choose another file.")


class TestProgress:
    def test_the_upload_is_shown_in_percent(self, browser: Browser, server: Server) -> None:
        with visit(browser, server.url) as page:
            _throttle(page, upload_kb_per_s=400)
            choose(page, SPEECH / "long-pauses.ogg")
            state(page)(r"Uploading: [1-9]\d?%")
            bar = page.locator(".queue-item progress")
            before = bar.evaluate("(bar) => bar.value")
            wait_until(
                lambda: bar.evaluate("(bar) => bar.value") > before,
                what="a longer bar",
            )
            page.get_by_role("button", name="Cancel").click()
            state(page)("Cancelled")

    def test_loading_the_model_then_words_while_the_rest_is_worked_on(
        self, browser: Browser, tmp_path: Path, lecture: Path
    ) -> None:
        with running_server(tmp_path) as fresh, visit(browser, fresh.url) as page:
            expect(page.locator("#model-status")).to_contain_text("loads with the next recording")
            choose(page, lecture)
            state(page)("The server is loading its model")
            state(page)(r"Transcribing: \d+%")
            expect(page.locator("#live")).not_to_be_empty()
            expect(page.locator("[data-part=detail]")).to_have_text(
                re.compile(r"[\d:]+ of 2:\d\d:\d\d · about [\d:]+ left · [\d.,]+. real time")
            )
            expect(page.locator("#model-status")).to_contain_text("ready")
            expect(page.get_by_role("slider")).to_be_visible()  # The waveform grows, too.

    def test_cancelling_ends_the_work_on_the_server(
        self, browser: Browser, server: Server, lecture: Path
    ) -> None:
        with visit(browser, server.url) as page:
            choose(page, lecture)
            state(page)("Transcribing: ")
            assert server.health()["jobs"]["running"] == 1
            page.get_by_role("button", name="Cancel").click()
            state(page)("Cancelled. The file is still chosen.")
            wait_until(
                lambda: server.health()["jobs"]["running"] == 0,
                what="the end of the job",
            )

    def test_the_place_in_the_servers_queue(
        self, browser: Browser, strict: Server, lecture: Path
    ) -> None:
        with (
            _busy(strict, lecture),
            _busy(strict, lecture),
            visit(browser, strict.url) as page,
        ):
            _enter_key(page, "sesame")
            choose(page, CLIP)
            state(page)("queue: place 1")
            page.get_by_role("button", name="Cancel").click()


class TestTrouble:
    def test_after_a_kill_and_a_restart_the_server_and_the_page_continue(
        self, browser: Browser, tmp_path: Path, lecture: Path
    ) -> None:
        settings = {"PORT": str(_free_port()), "DATA_DIR": str(tmp_path / "data")}
        with ExitStack() as stack:
            with running_server(tmp_path, **settings) as dying:
                page = stack.enter_context(visit(browser, dying.url))
                choose(page, lecture, CLIP)
                expect(page.locator("#live")).not_to_be_empty()
                state(page, "lecture.ogg")("Transcribing: ")
                dying.process.kill()
                state(page, "lecture.ogg")("The connection to the server was lost")
                # The words so far are not taken away, and no recording counts as failed.
                expect(page.locator("#live")).not_to_be_empty()
                expect(page.locator("[data-phase=failed]")).to_have_count(0)
            stack.enter_context(running_server(tmp_path, **settings))
            state(page, "lecture.ogg")("Transcribing: ")
            page.get_by_role("button", name="Cancel: lecture.ogg").click()
            page.get_by_role("button", name=CLIP.name, exact=True).click()
            assert transcript_of(page) == SAID

    def test_a_connection_that_closes_without_a_response(
        self, browser: Browser, server: Server, lecture: Path
    ) -> None:
        with Proxy(server.url) as proxy, visit(browser, proxy.url) as page:
            without_jobs(page)
            page.clock.install()
            choose(page, lecture)
            state(page)("Transcribing: ")
            proxy.frozen.set()
            page.clock.run_for(40_000)
            problem(page, "The server has gone silent", "Check your network, then try again.")

    def test_the_words_of_a_cancelled_recording_are_removed(
        self, browser: Browser, server: Server, lecture: Path
    ) -> None:
        with visit(browser, server.url) as page:
            page.context.grant_permissions(["clipboard-read", "clipboard-write"])
            choose(page, lecture)
            expect(page.locator("#live")).not_to_be_empty()
            page.get_by_role("button", name="Cancel").click()
            words = page.locator("#live").inner_text().split()
            page.locator("#partial-copy").click()
            expect(page.locator("#partial-copy")).to_have_text("Copied")
            assert page.evaluate("navigator.clipboard.readText()").split() == words
            with page.expect_download() as download:
                page.locator("#partial-download").click()
            assert download.value.suggested_filename == "lecture.partial.txt"
            assert download.value.path().read_text("utf-8").split() == words

    def test_no_key_then_a_wrong_one_then_the_right_one(
        self, browser: Browser, strict: Server
    ) -> None:
        with visit(browser, strict.url) as page:
            choose(page, CLIP)
            problem(page, "This server asks for an API key", "Enter it in the settings")
            page.get_by_role("button", name="Enter API key").click()
            page.locator("#api-key").fill("wrong")
            page.keyboard.press("Enter")
            problem(page, "does not accept this API key", "Compare it with the one")
            _enter_key(page, "sesame")
            assert transcript_of(page) == SAID

    def test_a_full_queue_is_waited_for(
        self, browser: Browser, strict: Server, lecture: Path
    ) -> None:
        with visit(browser, strict.url) as page:
            with _busy(strict, lecture), _busy(strict, lecture), _busy(strict, lecture):
                _enter_key(page, "sesame")
                choose(page, CLIP)
                state(page)("too many recordings waiting")
                expect(page.locator("[data-part=advice]")).to_contain_text("tries again by itself")
            assert transcript_of(page) == SAID

    def test_the_error_message_of_the_server_is_shown(
        self, browser: Browser, server: Server, tmp_path: Path
    ) -> None:
        (tmp_path / "noise.wav").write_bytes(b"not a recording at all" * 100)
        with visit(browser, server.url) as page:
            choose(page, tmp_path / "noise.wav")
            problem(page, "could not be read as audio", "See whether it plays")
            expect(page.locator("[data-part=server]")).to_contain_text("The server says:")

    def test_a_name_with_markup_is_only_text(
        self, browser: Browser, server: Server, tmp_path: Path
    ) -> None:
        path = tmp_path / "<img src=x onerror=alert(1)>.flac"
        path.write_bytes(CLIP.read_bytes())
        with visit(browser, server.url) as page:
            page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
            choose(page, path, Path(__file__))
            expect(page.locator("[data-phase=failed]")).to_be_visible()
            expect(page.locator("#document-title")).to_have_text(path.name)
            expect(page.locator(".history-item .row-open")).to_have_text(path.name)
            assert page.locator("img").count() == 1  # The page's own.
            # The browser replaces characters that a file system does not allow.
            assert saved(page, "srt")[0].endswith(".srt")


class TestBehindAPathPrefix:
    def test_everything_works(self, browser: Browser, server: Server) -> None:
        with Proxy(server.url) as proxy, visit(browser, proxy.url) as page:
            expect(page.locator("#model-status")).to_contain_text("parakeet-tdt-demo-en")
            choose(page, CLIP)
            assert transcript_of(page) == SAID


def _throttle(page: Page, *, upload_kb_per_s: int) -> None:
    page.context.new_cdp_session(page).send(
        "Network.emulateNetworkConditions",
        {
            "offline": False,
            "latency": 0,
            "downloadThroughput": -1,
            "uploadThroughput": upload_kb_per_s * 1024,
        },
    )


def _enter_key(page: Page, key: str) -> None:
    page.locator("#settings-open").click()
    page.locator("#api-key").fill(key)
    page.get_by_role("button", name="Done").click()


@contextmanager
def _busy(server: Server, recording: Path) -> Iterator[None]:
    """Occupy one of a server's places with a long recording; cancel it when the block ends."""
    headers = {"Authorization": "Bearer sesame"}
    with recording.open("rb") as file:
        job = request(server, "POST", "/v1/jobs", files={"file": file}, headers=headers)
    assert job.status_code == 202
    try:
        yield
    finally:
        request(server, "DELETE", f"/v1/jobs/{job.json()['id']}", headers=headers)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
