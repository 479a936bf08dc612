"""Names and terms in the page's settings, with a real browser and the small English model."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import choose, transcript_of, visit
from conftest import REAL_SPEECH
from in_process import served
from playwright.sync_api import Browser, expect

pytestmark = pytest.mark.integration

CLIP = REAL_SPEECH / "librispeech_dev_clean_mp3-0062.ogg"
"""Illustration, rusks: the model hears rusts."""


def test_names_and_terms_are_sent_and_their_lists_remembered(
    browser: Browser, tmp_path: Path
) -> None:
    with (
        served(tmp_path, DEMO_MODEL="always", ENABLE_LAZY_LOAD="false") as running,
        visit(browser, running.server.url) as page,
    ):
        page.locator("#settings-open").click()
        page.locator("#keywords").fill("Rusks\nAmbrosch")
        page.get_by_role("button", name="Done").click()
        choose(page, CLIP)
        assert transcript_of(page).lower() == "illustration, rusks."

        page.reload()
        page.locator("#settings-open").click()
        expect(page.locator("#keywords")).to_have_value("Rusks\nAmbrosch")
        page.locator("#keywords").fill("")
        page.locator("#keyword-lists").select_option(label="Rusks, Ambrosch")
        expect(page.locator("#keywords")).to_have_value("Rusks\nAmbrosch")
