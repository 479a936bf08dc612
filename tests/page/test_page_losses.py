"""Attempts to lose work: with two tabs, with full or refused storage, by leaving, by deleting."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from browser import choose, count_uploads, edit_word, saved, transcript_of, visit
from conftest import SPEECH, Server
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.integration

CLIP = SPEECH / "clip-001.flac"
SAID = "Rosa likes writing, but Olivia likes working."
CLIPS = [SPEECH / f"clip-{number:03}.flac" for number in range(3)]
REFUSED = "indexedDB.open = () => { throw new DOMException('', 'SecurityError'); };"
FULL = """() => {
    window.realPut = IDBObjectStore.prototype.put;
    IDBObjectStore.prototype.put = () => { throw new DOMException("", "QuotaExceededError"); };
}"""
ROOM = "() => { IDBObjectStore.prototype.put = window.realPut; }"


def _open_again(page: Page) -> str:
    page.get_by_role("button", name=CLIP.name, exact=True).click()
    return transcript_of(page)


class TestTwoTabs:
    def test_a_second_tab_does_not_send_what_the_first_is_sending(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            page.route("**/v1/jobs", lambda route: route.abort())
            choose(page, *CLIPS)
            expect(page.locator(".queue-item").first).to_contain_text("connection to the server")
            other = page.context.new_page()
            uploads = count_uploads(other)
            other.goto(page.url)
            # Longer than the tabs need to agree.
            other.wait_for_timeout(2000)
            expect(other.locator(".queue-item")).to_have_count(0)
            page.unroute("**/v1/jobs")
            expect(other.locator(".history-item")).to_have_count(len(CLIPS))
            assert uploads == []

    def test_the_work_of_a_closed_tab_goes_on_in_the_other(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            other = page.context.new_page()
            other.goto(page.url)
            other.locator("#page").wait_for()
            other.route("**/v1/jobs", lambda route: route.abort())
            choose(other, CLIP)
            expect(other.locator(".queue-item")).to_contain_text("connection to the server")
            other.close()
            page.locator(".history-item").wait_for()
            assert _open_again(page) == SAID

    def test_a_transcript_deleted_in_one_tab_is_closed_in_the_other(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            choose(page, CLIP)
            transcript_of(page)
            page.locator(".history-item").wait_for()
            other = page.context.new_page()
            other.goto(page.url)
            _open_again(other)
            page.get_by_role("button", name=f"Delete: {CLIP.name}").click()
            # An edit there could not be stored.
            expect(other.locator("#document")).to_be_hidden()
            expect(page.locator("#document")).to_be_hidden()
            page.locator("#history-restore").click()
            assert _open_again(other) == SAID


class TestLeaving:
    @pytest.mark.parametrize("wait_ms", [0, 50, 100])
    def test_a_new_name_survives_a_reload_at_once(
        self, browser: Browser, server: Server, wait_ms: int
    ) -> None:
        with visit(browser, server.url) as page:
            choose(page, CLIP)
            transcript_of(page)
            page.locator(".history-item").wait_for()
            for name in ("Board meeting", "Budget"):
                page.locator("#rename").click()
                page.keyboard.insert_text(name)
                page.keyboard.press("Enter")
                page.wait_for_timeout(wait_ms)
                page.reload()
                page.get_by_role("button", name=name, exact=True).click()
                expect(page.locator("#document-title")).to_have_text(name)

    def test_what_is_typed_into_the_fields_for_names_is_kept(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            choose(page, CLIP)
            transcript_of(page)
            page.locator(".history-item").wait_for()
            page.locator("#rename").click()
            page.keyboard.insert_text("Meeting")
            page.reload()
            page.get_by_role("button", name="Meeting", exact=True).click()
            page.locator('[data-word="0"]').dblclick()
            page.get_by_label("Speaker from here on").fill("Ann")
            page.reload()
            page.get_by_role("button", name="Meeting", exact=True).click()
            expect(page.locator(".speaker")).to_have_text("Ann")
            page.locator(".speaker").click()
            page.keyboard.insert_text("Bob")
            page.reload()
            page.get_by_role("button", name="Meeting", exact=True).click()
            expect(page.locator(".speaker")).to_have_text("Bob")


class TestStorage:
    def test_over_plain_http_the_recording_is_kept_too(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            # Pages from other machines without https have no `navigator.storage`.
            page.add_init_script(
                "Object.defineProperty(Navigator.prototype, 'storage', { value: undefined })"
            )
            page.reload()
            choose(page, CLIP)
            transcript_of(page)
            page.locator(".history-item").wait_for()
            page.reload()
            _open_again(page)
            expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()

    def test_without_storage_every_transcript_can_be_opened_and_downloaded(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            page.add_init_script(REFUSED)
            page.reload()
            choose(page, *CLIPS)
            row = page.locator(".queue-item").filter(has_text="could not keep it")
            expect(row).to_have_count(len(CLIPS))
            _open_again(page)
            assert transcript_of(page) == SAID
            expect(page.locator("#history-refused")).to_contain_text("download what you need")
            page.locator("#export-refused").click()
            with page.expect_download() as download:
                page.get_by_role("button", name="Download ZIP").click()
            with zipfile.ZipFile(download.value.path()) as archive:
                assert sorted(archive.namelist()) == sorted(
                    f"{path.stem}.{kind}" for path in CLIPS for kind in ("txt", "srt")
                )

    def test_full_storage_loses_no_edit_and_stores_the_rest_once_there_is_room(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            choose(page, CLIP)
            transcript_of(page)
            page.locator(".history-item").wait_for()
            page.evaluate(FULL)
            edit_word(page, page.locator('[data-word="0"]'), "Rose")
            expect(page.locator("#history-refused")).to_contain_text("no room left")
            choose(page, CLIPS[2])
            expect(page.locator(".queue-item")).to_contain_text("could not keep it")
            expect(page.get_by_role("button", name="Download all").first).to_be_visible()
            # The edit is there, although the database could not take it.
            assert _open_again(page) == SAID.replace("Rosa", "Rose")
            assert "Rose likes" in saved(page, "srt")[1]
            page.evaluate(ROOM)
            page.get_by_role("button", name=f"Delete: {CLIP.name}").click()
            expect(page.get_by_role("button", name=CLIPS[2].name, exact=True)).to_be_visible()
            expect(page.locator(".queue-item")).to_have_count(0)
            expect(page.locator("#history-refused")).to_be_hidden()
            page.locator("#history-restore").click()
            assert _open_again(page) == SAID.replace("Rosa", "Rose")


class TestBatches:
    def test_hopeless_files_are_removed_at_once_and_a_row_is_downloaded(
        self, browser: Browser, server: Server, tmp_path: Path
    ) -> None:
        for number in range(50):
            (tmp_path / f"{number}.wav").touch()
        with visit(browser, server.url) as page:
            choose(page, *sorted(tmp_path.iterdir()), CLIP)
            expect(page.locator("[data-phase=failed]")).to_have_count(50)
            # The one that can be transcribed is open, and its text is on the screen.
            assert transcript_of(page) == SAID
            expect(page.locator(".sentence")).to_be_in_viewport()
            expect(page.get_by_role("heading", name="Not finished")).to_be_visible()
            page.get_by_role("button", name="Remove all").click()
            expect(page.locator("#queue-section")).to_be_hidden()
            with page.expect_download() as download:
                page.get_by_role("button", name=f"Download: {CLIP.name}").click()
            assert download.value.suggested_filename == "clip-001.srt"

    def test_a_recording_that_the_server_refuses_can_be_saved(
        self, browser: Browser, server: Server
    ) -> None:
        refusal = {"message": "m", "type": "server_error", "param": None, "code": None}
        with visit(browser, server.url) as page:
            page.route(
                "**/v1/jobs", lambda route: route.fulfill(status=500, json={"error": refusal})
            )
            page.locator("#record").click()
            expect(page.locator("#record-time")).to_have_text("0:03")
            page.get_by_role("button", name="Stop and transcribe").click()
            with page.expect_download() as download:
                page.get_by_role("button", name="Save recording").click()
            assert download.value.path().stat().st_size > 1000
            page.unroute("**/v1/jobs")
            # After a reload it is sent again.
            page.reload()
            page.locator(".history-item").wait_for()
