"""Who speaks, on the page: asked for, shown with names and colours, renamed, downloaded.

The diarizer is a stand-in that follows a script; recognition, server and browser are real.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import choose, saved, serious_faults, transcript_of, visit
from conftest import Clip
from conversations import make_call, make_talk, turns_of
from diarizers import Scripted
from in_process import Served, served
from playwright.sync_api import Browser, Page, expect

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.model.diarizer import SpeakerModel

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def running(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        diarizer = Scripted(turns_of(clips[:3], [2, 0, 2]))
        monkeypatch.setattr(SpeakerModel, "diarizer", lambda *_: diarizer)
        with served(tmp_path_factory.mktemp("served"), DEMO_MODEL="grammar") as started:
            yield started


@pytest.fixture
def page(browser: Browser, running: Served) -> Iterator[Page]:
    with visit(browser, running.server.url) as shown:
        yield shown


def ask_for(page: Page, answer: str) -> None:
    page.locator("#settings-open").click()
    page.get_by_label("Who speaks").select_option(label=answer)
    page.get_by_role("button", name="Done").click()


def test_voices_have_names_and_colours_and_are_renamed_everywhere(
    page: Page, clips: list[Clip], decoder: FfmpegDecoder, tmp_path: Path
) -> None:
    ask_for(page, "Tell voices apart")
    choose(page, make_talk(clips[:3], decoder, tmp_path))
    transcript_of(page)

    names = page.locator(".speaker")
    expect(names).to_have_text(["A", "B", "A"])
    colours = [name.evaluate("label => getComputedStyle(label).color") for name in names.all()]
    assert colours[0] == colours[2] != colours[1]
    assert serious_faults(page) == []

    names.first.click()
    page.locator(".speaker-field").fill("Ann")
    page.keyboard.press("Enter")
    expect(names).to_have_text(["Ann", "B", "Ann"])
    assert saved(page, "vtt")[1].count("<v Ann>") >= 2
    assert "Ann: " in saved(page, "srt")[1]
    assert "**Ann:** " in saved(page, "md")[1]
    assert ",Ann," in saved(page, "csv")[1]
    body = json.loads(saved(page, "json")[1])
    assert [segment["speaker"] for segment in body["segments"]] == ["Ann", "B", "Ann"]
    assert {word["speaker"] for word in body["words"]} == {"Ann", "B"}

    page.reload()
    page.locator("#settings-open").click()
    expect(page.get_by_label("Who speaks")).to_have_value("voices")


def test_channels_are_speakers_also_where_they_talk_at_once(
    page: Page, clips: list[Clip], tmp_path: Path
) -> None:
    ask_for(page, "Each channel is a speaker")
    sides = [clip.path for clip in clips[:2]]
    choose(page, make_call(sides, tmp_path / "call.wav", "-t", "8"))
    transcript_of(page)

    expect(page.locator(".speaker")).to_have_text(["A", "B"])
    texts = page.locator(".sentence .words").all_text_contents()
    assert sorted(texts) == sorted(clip.text for clip in clips[:2])
    # The page's own cues and the server's are by the same rules.
    assert saved(page, "vtt")[1].count("<v ") >= 2
