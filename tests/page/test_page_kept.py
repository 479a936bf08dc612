"""Persistence of edits, recordings in progress and transcripts: after reloads, in two tabs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Look, choose, edit_word, saved, transcript_of, visit
from conftest import SPEECH, Server, encode
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.integration

CLIP = SPEECH / "clip-001.flac"
SAID = "Rosa likes writing, but Olivia likes working."


@pytest.fixture(scope="module")
def lecture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a recording of one hour."""
    path = tmp_path_factory.mktemp("lecture") / "lecture.ogg"
    return encode(SPEECH / "long-dense.ogg", path, "-c", "copy", before=("-stream_loop", "4"))


@pytest.fixture
def clip(browser: Browser, server: Server) -> Iterator[Page]:
    """Show a short transcript."""
    with visit(browser, server.url) as page:
        choose(page, CLIP)
        assert transcript_of(page) == SAID
        expect(page.locator(".history-item")).to_have_count(1)
        yield page


def open_again(page: Page) -> str:
    page.get_by_role("button", name=CLIP.name, exact=True).click()
    return transcript_of(page)


class TestEdits:
    @pytest.mark.parametrize("wait_ms", [0, 50, 100, 600])
    def test_a_reload_after_an_edit_loses_nothing(self, clip: Page, wait_ms: int) -> None:
        for number in range(3):
            edit_word(clip, clip.locator('[data-word="0"]'), f"Rose{number}")
            clip.wait_for_timeout(wait_ms)
            clip.reload()
            assert open_again(clip) == SAID.replace("Rosa", f"Rose{number}")

    def test_what_is_being_typed_is_kept_when_the_page_is_left(self, clip: Page) -> None:
        clip.locator('[data-word="0"]').dblclick()
        clip.keyboard.insert_text("Rose")
        clip.reload()
        assert open_again(clip) == SAID.replace("Rosa", "Rose")

    def test_undo_and_redo_work_after_a_reload(self, clip: Page) -> None:
        edit_word(clip, clip.locator('[data-word="0"]'), "Rose")
        edit_word(clip, clip.locator('[data-word="4"]'), "Oliver")
        clip.keyboard.press("Control+z")
        once = SAID.replace("Rosa", "Rose")
        assert transcript_of(clip) == once
        clip.reload()
        assert open_again(clip) == once
        clip.keyboard.press("Control+z")
        assert transcript_of(clip) == SAID
        expect(clip.get_by_role("button", name="Undo")).to_be_disabled()
        clip.get_by_role("button", name="Redo").click()
        clip.get_by_role("button", name="Redo").click()
        assert transcript_of(clip) == once.replace("Olivia", "Oliver")

    def test_two_tabs_see_each_others_edits(self, clip: Page) -> None:
        other = clip.context.new_page()
        other.goto(clip.url)
        open_again(other)
        edit_word(clip, clip.locator('[data-word="0"]'), "Rose")
        expect(other.locator(".sentence .words")).to_have_text(SAID.replace("Rosa", "Rose"))
        edit_word(other, other.locator('[data-word="4"]'), "Oliver")
        both = SAID.replace("Rosa", "Rose").replace("Olivia", "Oliver")
        expect(clip.locator(".sentence .words")).to_have_text(both)
        # No tab's later edit undoes that of the other.
        edit_word(clip, clip.locator('[data-word="2"]'), "reading,")
        other.reload()
        assert open_again(other) == both.replace("writing", "reading")


class TestEditing:
    def test_an_edited_sentence_keeps_the_times_of_unchanged_words(self, clip: Page) -> None:
        clip.get_by_role("button", name="Edit", exact=True).click()
        clip.locator(".sentence .words").click()
        clip.locator(".sentence-field").fill("Rosa likes to write, but Olivia likes working.")
        clip.keyboard.press("Enter")
        assert transcript_of(clip) == "Rosa likes to write, but Olivia likes working."
        expect(clip.locator(".word.edited")).to_have_text(["to", "write,"])
        subtitles = saved(clip, "csv")[1]
        assert "to write, but" in subtitles

    def test_a_sentence_is_split_and_joined(self, clip: Page) -> None:
        clip.locator('[data-word="4"]').dblclick()
        clip.keyboard.press("ArrowLeft")
        clip.keyboard.press("Control+Enter")
        expect(clip.locator(".sentence .words").first).to_have_text("Rosa likes writing, but")
        expect(clip.locator(".sentence")).to_have_count(2)
        # The second one is open, its caret where it can be joined again.
        field = clip.locator(".sentence-field")
        expect(field).to_have_value("Olivia likes working.")
        clip.keyboard.press("Escape")
        times = clip.locator(".sentence .time").all_text_contents()
        assert times[0] < times[1] or times == ["0:00", "0:01"]
        clip.locator('[data-word="4"]').dblclick()
        clip.keyboard.press("Home")
        clip.keyboard.press("Backspace")
        expect(clip.locator(".sentence")).to_have_count(1)
        clip.keyboard.press("Escape")
        assert transcript_of(clip) == SAID

    def test_find_and_replace_is_one_step_to_undo(self, clip: Page) -> None:
        clip.get_by_role("button", name="Edit", exact=True).click()
        clip.get_by_role("searchbox").fill("LIKES")
        clip.locator("#replacement").fill("loves")
        clip.get_by_role("button", name="Replace all").click()
        # Also after the search that waits for further letters.
        clip.wait_for_timeout(500)
        expect(clip.locator("#search-count")).to_have_text("2 replaced")
        assert transcript_of(clip) == SAID.replace("likes", "loves")
        clip.get_by_role("button", name="Undo").click()
        assert transcript_of(clip) == SAID

    def test_a_speaker_is_named_and_renamed_and_is_in_the_exports(self, clip: Page) -> None:
        clip.locator('[data-word="0"]').dblclick()
        clip.get_by_label("Speaker from here on").fill("Ann")
        clip.keyboard.press("Tab")
        expect(clip.locator(".speaker")).to_have_text("Ann")
        assert "<v Ann>Rosa likes" in saved(clip, "vtt")[1]
        assert "Ann: Rosa likes" in saved(clip, "srt")[1]
        clip.locator(".speaker").click()
        clip.locator(".speaker-field").fill("Bob")
        clip.keyboard.press("Enter")
        expect(clip.locator(".speaker")).to_have_text("Bob")
        assert saved(clip, "md")[1].startswith("# clip-001\n\n**Bob:** Rosa likes")
        clip.reload()
        open_again(clip)
        expect(clip.locator(".speaker")).to_have_text("Bob")


class TestWorkUnderWay:
    def test_after_a_reload_the_work_continues_and_finishes(
        self, browser: Browser, server: Server, lecture: Path
    ) -> None:
        with visit(browser, server.url, Look(width=1440)) as page:
            choose(page, lecture, CLIP)
            line = page.locator(".queue-item").filter(has_text="lecture.ogg")
            expect(line).to_contain_text("Transcribing: ")
            page.reload()
            expect(line).to_contain_text("Transcribing: ")
            expect(page.locator("#live")).not_to_be_empty()
            page.locator(".history-item").filter(has_text=CLIP.name).wait_for()
            page.get_by_role("button", name="Cancel: lecture.ogg").click()
            assert open_again(page) == SAID
            page.reload()
            expect(page.locator(".history-item")).to_have_count(1)
            expect(page.locator("#queue-section")).to_be_hidden()

    def test_what_was_not_sent_before_a_reload_is_sent_after_it(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            page.route("**/v1/jobs", lambda route: route.abort())
            choose(page, CLIP)
            line = page.locator(".queue-item")
            expect(line).to_contain_text("The connection to the server was lost")
            expect(page.locator("[data-phase=failed]")).to_have_count(0)
            page.unroute("**/v1/jobs")
            page.on("dialog", lambda dialog: dialog.accept())
            page.reload()
            page.locator(".history-item").wait_for()
            assert open_again(page) == SAID
            # The recording was stored as well.
            expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()
