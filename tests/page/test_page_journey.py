"""A complete session on the page, in both widths, languages and colour schemes.

`make screenshots` keeps a picture of each state in `docs/screenshots/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import (
    NARROW,
    WIDE,
    Look,
    choose,
    is_too_wide,
    saved,
    serious_faults,
    transcript_of,
    visit,
)
from conftest import PEOPLE, ROOT, SPEECH, Server, encode, running_server
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.integration

LOOKS = {
    "desktop-en": Look(),
    "desktop-zh-CN": Look(language="zh-CN", dark=True),
    "phone-en": Look(width=390, height=844, dark=True),
    "phone-zh-CN": Look(width=390, height=844, language="zh-CN"),
    "small-en-wide": Look(width=320, height=640, font=WIDE),
    "phone-en-narrow": Look(width=390, height=844, font=NARROW),
}
PICTURED = ("desktop-en", "desktop-zh-CN", "phone-en", "phone-zh-CN")
PICTURES = ROOT / "docs" / "screenshots"

KeepPicture = Callable[[Page, str, str], None]
"""Takes a page, the name of its state, and that of its look."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with what people said, a lecture of two hours of that, and a document.

    Two hours are long enough to look around while they are worked on.
    """
    folder = tmp_path_factory.mktemp("files")
    (folder / "notes.pdf").write_text("%PDF-1.7")
    entries = json.loads(PEOPLE.with_suffix(".json").read_text("utf-8"))
    playlist = folder / "list.txt"
    playlist.write_text("".join(f"file '{PEOPLE / entry['file']}'\n" for entry in entries))
    encode(playlist, folder / "readings.ogg", before=("-f", "concat", "-safe", "0"))
    again = ("-stream_loop", "105")
    encode(folder / "readings.ogg", folder / "lecture.ogg", "-c", "copy", before=again)
    return folder


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a server with the small English model, so that screenshots show real speech."""
    # Loaded before it serves: on a busy machine that takes longer than a page is waited for.
    settings = {"DEMO_MODEL": "always", "ENABLE_LAZY_LOAD": "false"}
    with running_server(tmp_path_factory.mktemp("english"), **settings) as started:
        yield started


@pytest.fixture
def keep(pytestconfig: pytest.Config) -> KeepPicture:
    """Return a function that takes screenshots: all on a desktop, the result on a phone."""

    def keep(page: Page, state: str, name: str) -> None:
        if name not in PICTURED:
            return
        wanted = state == "result" or ("desktop" in name and state != "settings")
        if pytestconfig.getoption("screenshots") and wanted:
            page.mouse.move(0, 0)
            page.screenshot(path=PICTURES / f"{state}-{name}.png")

    return keep


@pytest.mark.parametrize("name", LOOKS)
def test_the_five_states(
    browser: Browser, english: Server, files: Path, keep: KeepPicture, name: str
) -> None:
    look = LOOKS[name]
    strings = json.loads((ROOT / f"static/strings.{look.language}.json").read_text("utf-8"))

    def look_at(page: Page, state: str) -> None:
        assert serious_faults(page) == []
        assert not is_too_wide(page)
        keep(page, state, name)

    with visit(browser, english.url, look) as page:
        # 1. Start.
        expect(page.locator("html")).to_have_attribute("lang", look.language)
        expect(page.locator("h1")).to_have_text(strings["page.heading"])
        expect(page.locator("#demo-banner")).to_contain_text(strings["demo.english.title"])
        expect(page.locator("#limits")).to_contain_text("2,000 MB")
        look_at(page, "start")

        # 2. Recording.
        page.locator("#record").click()
        expect(page.locator("#record-time")).to_have_text("0:03")
        look_at(page, "recording")
        page.locator("#record-discard").click()

        # 3. In progress: words are shown while most of the recording is still to be transcribed.
        choose(page, files / "lecture.ogg")
        expect(page.locator("#live")).to_contain_text("and become firm")
        state = page.locator(".queue-item [data-part=state]")
        expect(state).to_contain_text(re.compile(r"\b[1-9]\d?\s?%"))
        expect(page.locator("[data-part=detail]")).to_contain_text(
            re.compile("real time" if look.language == "en" else "倍速")
        )
        look_at(page, "working")
        expect(page.locator(".queue-item progress")).to_be_visible()
        page.locator("[data-part=stop]").click()
        expect(page.locator("[data-phase=cancelled]")).to_be_visible()
        page.locator("[data-part=stop]").click()

        # 4. Result, playing.
        choose(page, files / "readings.ogg")
        assert transcript_of(page).startswith("Set into a cold place to")
        page.locator("#play").click()
        expect(page.locator("#sentences .speaking")).to_have_text(re.compile("into|cold|place"))
        page.locator("#play").click()
        page.locator("#document").evaluate("(shown) => shown.scrollIntoView()")
        look_at(page, "result")
        file_name, subtitles = saved(page, "srt")
        assert file_name == "readings.srt"
        assert subtitles.startswith("1\n00:00:00,")

        # 5. Trouble.
        choose(page, files / "notes.pdf")
        expect(page.locator("[data-phase=failed]")).to_contain_text(
            strings["error.not_a_recording.advice"]
        )
        expect(page.locator("#result-head")).to_be_visible()  # What one reads stays.
        page.evaluate("scrollTo(0, 0)")
        look_at(page, "trouble")

        # The settings lie over all of it.
        page.locator("#settings-open").click()
        expect(page.locator("#settings-title")).to_have_text(strings["settings.title"])
        look_at(page, "settings")


def test_from_page_to_words_and_from_words_to_file_it_is_two_clicks(
    browser: Browser, server: Server
) -> None:
    with visit(browser, server.url) as page:
        choose(page, SPEECH / "clip-001.flac")
        assert transcript_of(page) == "Rosa likes writing, but Olivia likes working."
        assert "Rosa likes writing" in saved(page, "srt")[1]
