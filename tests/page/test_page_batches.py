"""Fifty recordings at once: one progress, refusals at once, and text that is opened is seen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser import Look, choose, is_too_wide, serious_faults, transcript_of, visit
from conftest import SPEECH, Server
from playwright.sync_api import Browser, expect

pytestmark = pytest.mark.integration


def test_fifty_files_have_one_progress_and_each_is_opened_into_view(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.wav"
    empty.touch()
    clips = [SPEECH / f"clip-{number:03}.flac" for number in range(50)]
    with visit(browser, server.url, Look(width=1440)) as page:
        choose(page, *clips, empty)
        # What cannot be sent is refused while the first of the others is under way.
        failed = page.locator("[data-phase=failed]")
        expect(failed).to_contain_text("is empty")
        assert page.locator(".history-item").count() < len(clips)
        expect(page.locator("#queue-overall-text")).to_have_text(re.compile(r"\d+ of 51 done"))
        expect(page.locator(".history-item")).to_have_count(len(clips))
        expect(page.locator("#queue-overall")).to_be_hidden()
        assert serious_faults(page) == []
        page.get_by_role("button", name="clip-001.flac", exact=True).click()
        expect(page.locator("#document-title")).to_have_text("clip-001.flac")
        expect(page.locator("#document-title")).to_be_focused()
        expect(page.locator(".sentence")).to_be_in_viewport()
        assert transcript_of(page) == "Rosa likes writing, but Olivia likes working."
        page.reload()
        expect(page.locator(".history-item")).to_have_count(len(clips))


@pytest.mark.parametrize("look", [Look(390, 844), Look(320, 640), Look(1440, 900)])
def test_the_first_sentence_is_on_the_first_screen(
    browser: Browser, server: Server, look: Look
) -> None:
    with visit(browser, server.url, look) as page:
        choose(page, SPEECH / "long-pauses.ogg")
        transcript_of(page)
        box = page.locator(".sentence .words").first.bounding_box()
        bar = page.locator("#bar").bounding_box()
        assert box is not None
        assert bar is not None
        assert box["y"] + box["height"] < bar["y"] < look.height
        assert box["y"] < look.height * 0.6
        for name in ("Edit", "Export", "Follow"):
            expect(page.get_by_role("button", name=name, exact=True)).to_be_in_viewport()
        page.locator(".sentence").last.scroll_into_view_if_needed()
        for name in ("Edit", "Export", "Follow"):
            expect(page.get_by_role("button", name=name, exact=True)).to_be_in_viewport()
        expect(page.get_by_role("searchbox")).to_be_in_viewport()
        assert not is_too_wide(page)


def test_a_sample_is_one_click_away(browser: Browser, server: Server) -> None:
    with visit(browser, server.url) as page:
        page.get_by_role("button", name="Try a sample").click()
        assert len(transcript_of(page).split()) > 20
        expect(page.locator("#document-title")).to_have_text("Sample.ogg")
