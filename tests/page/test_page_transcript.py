"""Using a transcript on the page: playback, reading, search, editing, export, storage."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from browser import (
    Look,
    Proxy,
    choose,
    count_uploads,
    edit_word,
    saved,
    transcript_of,
    visit,
    without_jobs,
)
from conftest import SPEECH, Server, wait_until
from http_helpers import ENDPOINT, Fields, transcribe, uploads
from playwright.sync_api import Browser, Page, Route, expect

pytestmark = pytest.mark.integration

CLIP = SPEECH / "clip-001.flac"
TALK = SPEECH / "long-pauses.ogg"
WORDS: Fields = {
    "response_format": "verbose_json",
    "timestamp_granularities[]": ["word", "segment"],
    "include[]": ["logprobs"],
}
SENTENCE = ["Every", "sentence", "has", "a", "few", "words,", "nine", "with", "this."]
RESTING = """async () => {
    for (let still = 0, at = scrollY; still < 30; still += 1) {
        await new Promise(requestAnimationFrame);
        if (scrollY !== at) [still, at] = [0, scrollY];
    }
}"""
SECONDS = "document.querySelector('audio').currentTime"


@pytest.fixture(scope="module")
def talk(browser: Browser, server: Server) -> Iterator[Page]:
    """Show the transcript of twelve minutes to the tests that change nothing about it."""
    with visit(browser, server.url) as page:
        choose(page, TALK)
        transcript_of(page)
        yield page


@pytest.fixture(scope="module")
def answer(server: Server) -> dict[str, Any]:
    """Return the server's own answer for the same recording."""
    body: dict[str, Any] = transcribe(server, TALK, WORDS, name=TALK.name).json()
    return body


class TestListening:
    def test_a_click_on_a_word_plays_from_there_and_marks_it(
        self, talk: Page, answer: dict[str, Any]
    ) -> None:
        word = talk.locator('[data-word="30"]')
        word.click()
        wait_until(
            lambda: talk.evaluate(SECONDS) > answer["words"][30]["start"] + 0.05,
            what="playing",
        )
        expect(talk.locator(".speaking")).to_have_count(1)
        talk.get_by_role("button", name="Pause", exact=True).click()
        current = int(talk.locator(".speaking").get_attribute("data-word") or -1)
        now = talk.evaluate(SECONDS)
        assert answer["words"][current]["start"] <= now + 0.05
        assert now - 0.05 < answer["words"][current + 1]["start"]

    def test_the_waveform_is_drawn_and_moves_by_mouse_and_keyboard(self, talk: Page) -> None:
        slider = talk.get_by_role("slider", name="Position in the recording")
        whole = talk.locator("#waveform-whole")
        colours = whole.evaluate(
            """(canvas) => new Set(canvas.getContext("2d")
                .getImageData(0, 0, canvas.width, canvas.height).data).size"""
        )
        assert colours > 5
        box = whole.bounding_box()
        assert box is not None
        talk.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert talk.evaluate(SECONDS) == pytest.approx(721.5 / 2, abs=3)
        slider.press("ArrowRight")
        assert talk.evaluate(SECONDS) == pytest.approx(721.5 / 2 + 5, abs=3)
        slider.press("Home")
        expect(slider).to_have_attribute("aria-valuetext", "0:00 of 12:01")

    def test_the_words_are_reached_by_keyboard(self, talk: Page) -> None:
        talk.locator("#sentences").get_by_role("button", name="Play from 0:00").focus()
        talk.keyboard.press("ArrowDown")
        talk.keyboard.press("ArrowRight")
        talk.keyboard.press("ArrowRight")
        focused = talk.locator(":focus")
        expect(focused).to_have_text("was")
        expect(focused).to_have_attribute("role", "button")
        talk.keyboard.press("Enter")
        expect(talk.get_by_role("button", name="Pause", exact=True)).to_be_visible()
        talk.get_by_role("button", name="Pause", exact=True).click()
        assert talk.locator('#sentences [tabindex="0"]').count() == 1


class TestReading:
    def test_sentences_are_shown_with_their_times(self, talk: Page, answer: dict[str, Any]) -> None:
        sentences = talk.locator("#sentences .words").all_text_contents()
        assert sentences == [segment["text"].strip() for segment in answer["segments"]]
        seconds = int(answer["segments"][7]["start"])
        expect(talk.locator("#sentences .time").nth(7)).to_have_text(
            f"{seconds // 60}:{seconds % 60:02}"
        )

    def test_uncertain_words_are_those_of_low_probability(
        self, talk: Page, answer: dict[str, Any]
    ) -> None:
        doubted = [
            index for index, word in enumerate(answer["words"]) if math.exp(word["logprob"]) < 0.5
        ]
        assert doubted
        button = talk.get_by_role("button", name=f"Next uncertain word ({len(doubted)})")
        for index in doubted:
            button.click()
            focused = talk.locator(":focus")
            expect(focused).to_have_attribute("data-word", str(index))
            expect(focused).to_have_class(re.compile("uncertain"))
            percent = round(math.exp(answer["words"][index]["logprob"]) * 100)
            expect(focused).to_have_attribute("title", re.compile(rf"uncertain: {percent}\s?%"))

    def test_search_goes_from_match_to_match(self, talk: Page, answer: dict[str, Any]) -> None:
        count = answer["text"].lower().count("the chairs")
        assert count > 1
        talk.get_by_role("searchbox").fill("THE chairs")
        expect(talk.locator("#search-count")).to_have_text(f"1 of {count}")
        expect(talk.locator(".current")).to_have_text(["the", re.compile("chairs")])
        talk.keyboard.press("Enter")
        expect(talk.locator("#search-count")).to_have_text(f"2 of {count}")
        expect(talk.locator(".current").first).to_be_in_viewport()
        talk.get_by_role("searchbox").fill("zebra")
        expect(talk.locator("#search-count")).to_have_text("Not found")
        talk.get_by_role("searchbox").fill("")

    def test_a_search_ends_the_scroll_that_is_under_way(self, talk: Page) -> None:
        search = talk.get_by_role("searchbox")
        for _ in range(6):
            talk.get_by_role("button", name="Next uncertain word").click()
            search.fill("the chairs")
            expect(talk.locator(".current").first).to_be_attached()
            talk.evaluate(RESTING)
            expect(talk.locator(".current").first).to_be_in_viewport()
            search.fill("")
            expect(talk.locator(".current")).to_have_count(0)

    def test_playback_does_not_scroll_away_from_a_search_result(self, talk: Page) -> None:
        search = talk.get_by_role("searchbox")
        talk.locator('[data-word="0"]').click()
        search.fill("bridge with Ben")
        expect(talk.locator(".current").first).to_be_in_viewport()
        position_s = talk.evaluate(SECONDS)
        wait_until(
            lambda: talk.evaluate(SECONDS) > position_s + 1.5,
            what="words go by",
        )
        talk.evaluate(RESTING)
        expect(talk.locator(".current").first).to_be_in_viewport()
        talk.get_by_role("button", name="Pause", exact=True).click()
        search.fill("")

    def test_silence_shows_that_there_is_no_speech(self, browser: Browser, server: Server) -> None:
        with visit(browser, server.url) as page:
            _play_answer(page, [])
            choose(page, CLIP)
            expect(page.locator("#result-empty")).to_contain_text("No speech was recognised")


class TestKeys:
    def test_space_and_letters_control_playback_anywhere_on_the_page(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            choose(page, TALK)
            transcript_of(page)
            page.evaluate("document.activeElement.blur()")
            page.keyboard.press("l")
            page.keyboard.press("l")
            page.keyboard.press("j")
            assert page.evaluate(SECONDS) == pytest.approx(5, abs=0.1)
            page.keyboard.press(" ")
            expect(page.get_by_role("button", name="Pause", exact=True)).to_be_visible()
            page.keyboard.press("k")
            expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()
            page.keyboard.press("?")
            expect(page.get_by_role("heading", name="Keyboard shortcuts")).to_be_visible()
            page.get_by_label("Use single letters as shortcuts").uncheck()
            page.keyboard.press("Escape")
            at = page.evaluate(SECONDS)
            page.keyboard.press("l")
            assert page.evaluate(SECONDS) == at

    def test_scrolling_away_ends_following_until_it_is_switched_on(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            choose(page, TALK)
            transcript_of(page)
            page.locator('[data-word="3"]').click()
            expect(page.locator(".speaking")).to_be_attached()
            follow = page.get_by_role("button", name="Follow")
            expect(follow).to_have_attribute("aria-pressed", "true")
            page.mouse.move(640, 400)
            page.mouse.wheel(0, 4000)
            expect(follow).to_have_attribute("aria-pressed", "false")
            page.evaluate(RESTING)
            scrolled = page.evaluate("scrollY")
            position_s = page.evaluate(SECONDS)
            wait_until(lambda: page.evaluate(SECONDS) > position_s + 5, what="words")
            assert page.evaluate("scrollY") == scrolled
            follow.click()
            expect(page.locator(".speaking")).to_be_in_viewport()


class TestWarnings:
    def test_speech_without_words_is_marked_and_linked(
        self, browser: Browser, server: Server
    ) -> None:
        words = SENTENCE * 500
        hole = {"code": "speech_without_words", "message": "m", "start": 1200.0, "end": 1207.5}
        with visit(browser, server.url) as page:
            _play_answer(page, words, warnings=[hole])
            choose(page, CLIP)
            page.get_by_role("button", name="From 20:00 to 20:07 there is speech").click()
            expect(page.locator(".target")).to_be_in_viewport()
            # It is shown between the sentences as well.
            expect(page.locator(".hole")).to_have_text("Speech without words, 20:00 to 20:07")
            expect(page.locator(".hole")).to_be_in_viewport()
            expect(page.locator(".target .time")).to_have_text(re.compile("19:5.|20:0."))


class TestTakingAway:
    def test_a_word_processor_opens_the_docx(self, browser: Browser, server: Server) -> None:
        with visit(browser, server.url) as page:
            choose(page, CLIP)
            text = transcript_of(page)
            with page.expect_download() as download:
                page.get_by_role("button", name="Export").click()
                page.locator("#download-docx").click()
            assert download.value.suggested_filename == "clip-001.docx"
            with zipfile.ZipFile(download.value.path()) as archive:
                assert archive.testzip() is None
                assert archive.namelist()[0] == "[Content_Types].xml"
                body = ET.fromstring(archive.read("word/document.xml"))
            texts = [part.text for part in body.iter() if part.tag.endswith("}t")]
            assert texts == ["clip-001", text]

    def test_what_is_printed_is_the_text_alone_dark_on_white(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url, Look(dark=True)) as page:
            _play_answer(page, SENTENCE * 300)
            choose(page, CLIP)
            transcript_of(page)
            page.locator('[data-word="0"]').dblclick()
            page.get_by_label("Speaker from here on").fill("Ann")
            page.keyboard.press("Tab")
            expect(page.locator(".speaker")).to_have_text("Ann")
            # The dialog of a browser without a window returns at once.
            page.evaluate("window.print = () => { window.printedAs = document.title; }")
            page.get_by_role("button", name="Export").click()
            page.get_by_label("With times").check()
            page.locator("#download-pdf").click()
            assert page.evaluate("printedAs") == "clip-001"
            page.emulate_media(media="print")
            for shown in ("#document-title", ".speaker", ".words >> nth=0", ".time >> nth=0"):
                ink = page.locator(shown).evaluate("(shown) => getComputedStyle(shown).color")
                assert max(map(int, re.findall(r"\d+", ink)[:3])) < 0x60, shown
                expect(page.locator(shown)).to_be_visible()
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
                "rgb(255, 255, 255)"
            )
            for hidden in ("#bar", "#tools", "#side", ".top", "h1", "#rename"):
                expect(page.locator(hidden)).to_be_hidden()
            # Times stand at paragraphs only.
            paragraphs = page.locator(".paragraph").count()
            assert page.locator(".time:visible").count() == paragraphs
            assert page.pdf().count(b"/Type /Page\n") > 1

    def test_all_transcripts_are_one_archive_in_chosen_formats(
        self, browser: Browser, server: Server, tmp_path: Path
    ) -> None:
        twin = tmp_path / CLIP.name
        twin.write_bytes((SPEECH / "clip-002.flac").read_bytes())
        with visit(browser, server.url) as page:
            choose(page, CLIP, twin)
            expect(page.locator(".history-item")).to_have_count(2)
            page.get_by_role("button", name="Download all").click()
            page.get_by_role("checkbox", name="CSV").check()
            with page.expect_download() as download:
                page.get_by_role("button", name="Download ZIP").click()
            with zipfile.ZipFile(download.value.path()) as archive:
                assert archive.testzip() is None
                assert sorted(archive.namelist()) == sorted(
                    f"{name}.{kind}"
                    for name in ("clip-001", "clip-001 (2)")
                    for kind in ("txt", "srt", "csv")
                )
                texts = {archive.read(f"{name}.txt") for name in ("clip-001", "clip-001 (2)")}
            assert len(texts) == 2

    def test_every_format_has_the_recordings_name_and_what_the_server_writes(
        self, talk: Page, server: Server, answer: dict[str, Any]
    ) -> None:
        for name in ("srt", "vtt"):
            servers = transcribe(server, TALK, {"response_format": name}).text
            assert saved(talk, name) == (f"long-pauses.{name}", servers)
        file_name, text = saved(talk, "txt")
        assert file_name == "long-pauses.txt"
        assert text.split() == answer["text"].split()
        file_name, body = saved(talk, "json")
        assert file_name == "long-pauses.json"
        downloaded = json.loads(body)
        # The last digits of probabilities depend on the other chunks of a batch.
        for part, fields in (("words", "word start end"), ("segments", "id start end text")):
            for field in fields.split():
                assert [item[field] for item in downloaded[part]] == [
                    item[field] for item in answer[part]
                ]
            assert set(downloaded[part][0]) == set(answer[part][0])

    def test_the_text_is_copied(self, browser: Browser, server: Server) -> None:
        with visit(browser, server.url) as page:
            page.context.grant_permissions(["clipboard-read", "clipboard-write"])
            choose(page, CLIP)
            text = transcript_of(page)
            page.get_by_role("button", name="Copy text").first.click()
            expect(page.get_by_role("button", name="Copied")).to_be_visible()
            assert page.evaluate("navigator.clipboard.readText()").strip() == text

    def test_an_edited_word_is_in_every_download(self, browser: Browser, server: Server) -> None:
        with visit(browser, server.url) as page:
            choose(page, CLIP)
            transcript_of(page)
            edit_word(page, page.locator('[data-word="0"]'), "Dear <b>Rose</b>")
            edit_word(page, page.locator('[data-word="5"]'), "")
            edited = "Dear <b>Rose</b> likes writing, but likes working."
            assert transcript_of(page) == edited
            assert saved(page, "txt")[1] == f"{edited}\n"
            assert " ".join(saved(page, "srt")[1].split()[4:]) == edited
            assert "Dear &lt;b&gt;Rose&lt;/b&gt; likes" in saved(page, "vtt")[1]
            body = json.loads(saved(page, "json")[1])
            assert body["text"] == body["segments"][0]["text"].strip() == edited
            assert [word["word"] for word in body["words"][:3]] == ["Dear", "<b>Rose</b>", "likes"]
            assert [word.get("edited") for word in body["words"][:3]] == [True, True, None]
            # The two share the time of the one.
            first, second, third = body["words"][:3]
            assert first["start"] < first["end"] == second["start"] < second["end"]
            assert second["end"] <= third["start"]

    def test_a_word_is_edited_by_keyboard_and_escape_leaves_it(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            choose(page, CLIP)
            text = transcript_of(page)
            page.locator("#sentences .time").focus()
            page.keyboard.press("ArrowRight")
            page.keyboard.press("F2")
            page.keyboard.type("nonsense")
            page.keyboard.press("Escape")
            assert transcript_of(page) == text
            expect(page.locator(":focus")).to_have_text("Rosa")
            page.keyboard.press("F2")
            page.keyboard.type("Rose")
            page.keyboard.press("Enter")
            expect(page.locator(":focus")).to_have_text("Rose")

    def test_the_editor_of_the_last_sentence_is_not_behind_the_player(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url, Look(width=1024, height=768)) as page:
            _play_answer(page, SENTENCE * 100)
            choose(page, CLIP)
            transcript_of(page)
            last = page.evaluate(
                """() => {
                    const bar = document.querySelector("#bar").getBoundingClientRect().top;
                    return [...document.querySelectorAll(".sentence")]
                        .findLastIndex((item) => item.getBoundingClientRect().bottom < bar);
                }"""
            )
            page.locator(".sentence").nth(last).locator(".word").first.dblclick()
            done = page.get_by_role("button", name="Done", exact=True).bounding_box()
            bar = page.locator("#bar").bounding_box()
            assert done
            assert bar
            assert done["y"] + done["height"] < bar["y"]

    def test_a_click_edits_once_the_edit_button_is_pressed(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url, Look(width=390, height=844)) as page:
            choose(page, CLIP)
            transcript_of(page)
            page.get_by_role("button", name="Edit", exact=True).tap()
            page.locator('[data-word="1"]').tap()
            page.keyboard.insert_text("loves")
            page.get_by_role("button", name="Edit", exact=True).tap()
            expect(page.locator('[data-word="1"]')).to_have_text("loves")


class TestSettings:
    def test_captions_follow_the_settings(self, browser: Browser, server: Server) -> None:
        with visit(browser, server.url) as page:
            choose(page, TALK)
            transcript_of(page)
            page.locator("#settings-open").click()
            page.get_by_label("Characters in a line").fill("20")
            page.get_by_label("Lines").fill("1")
            page.get_by_role("button", name="Done").click()
            subtitles = saved(page, "srt")[1]
            for block in subtitles.strip().split("\n\n"):
                assert len(block.splitlines()) == 3
                assert len(block.splitlines()[2]) <= 20
            page.reload()
            page.locator("#settings-open").click()
            expect(page.get_by_label("Characters in a line")).to_have_value("20")

    def test_the_preferred_format_is_one_click_away(self, browser: Browser, server: Server) -> None:
        with visit(browser, server.url) as page:
            page.locator("#settings-open").click()
            page.get_by_label("Format of the download button").select_option("txt")
            page.get_by_role("button", name="Done").click()
            choose(page, CLIP)
            transcript_of(page)
            with page.expect_download() as download:
                page.get_by_role("button", name="Download TXT").click()
            assert download.value.suggested_filename == "clip-001.txt"

    def test_the_key_is_stored_only_on_request_and_never_in_a_url(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            urls: list[str] = []
            page.on("request", lambda request: urls.append(request.url))
            for keep in (False, True):
                page.locator("#settings-open").click()
                page.get_by_label("API key", exact=True).fill("open-sesame")
                page.get_by_label("Keep it in this browser").set_checked(keep)
                page.keyboard.press("Escape")
                choose(page, CLIP)
                transcript_of(page)
                stored = page.evaluate("JSON.stringify(localStorage)")
                assert ("open-sesame" in stored) is keep
                page.reload()
                expect(page.locator("#page")).to_be_visible()
                stored_key = page.locator("#api-key").input_value()
                assert stored_key == ("open-sesame" if keep else "")
            assert not any("sesame" in address for address in [*urls, page.url])

    def test_the_spoken_language_is_sent(self, browser: Browser, server: Server) -> None:
        with Proxy(server.url) as proxy, visit(browser, proxy.url) as page:
            expect(page.locator("#spoken option")).to_have_text(["Automatic", "English"])
            page.get_by_label("Spoken language").select_option("en")
            choose(page, CLIP)
            transcript_of(page)
            assert b'name="language"\r\n\r\nen\r\n' in proxy.upload

    def test_the_pages_language_is_switched_and_remembered(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            choose(page, CLIP)
            transcript_of(page)
            page.get_by_label("Language of this page").select_option("zh-CN")
            expect(page.locator("#copy")).to_have_text("复制文本")
            page.reload()
            expect(page.locator("h1")).to_have_text("把录音变成文字")


class TestHistory:
    def test_a_transcript_stays_with_its_edits_until_it_is_deleted(
        self, browser: Browser, server: Server
    ) -> None:
        with visit(browser, server.url) as page:
            choose(page, CLIP)
            transcript_of(page)
            edit_word(page, page.locator('[data-word="0"]'), "Rose")
            wait_until(lambda: "Rose" in _stored(page), what="saving")
            page.reload()
            upload_urls = count_uploads(page)
            page.get_by_role("button", name=CLIP.name, exact=True).click()
            assert transcript_of(page) == "Rose likes writing, but Olivia likes working."
            assert "Rose likes" in saved(page, "srt")[1]
            expect(page.get_by_role("slider")).to_be_visible()
            # The recording was stored, too.
            page.locator('[data-word="2"]').click()
            expect(page.get_by_role("button", name="Pause", exact=True)).to_be_visible()
            page.get_by_role("button", name=f"Delete: {CLIP.name}").click()
            expect(page.locator(".history-item")).to_have_count(0)
            page.locator("#history-restore").click()
            expect(page.locator(".history-item")).to_have_count(1)
            assert "Rose" in _stored(page)
            page.get_by_role("button", name=f"Delete: {CLIP.name}").click()
            expect(page.locator(".history-item")).to_have_count(0)
            assert upload_urls == []
            assert CLIP.name not in _stored(page)
        assert uploads(server) == []


class TestHostileAnswers:
    def test_markup_in_a_transcript_is_only_text(self, browser: Browser, server: Server) -> None:
        words = ["<img", "src=x", "onerror=alert(1)>", "<script>alert(2)</script>", "-->"]
        with visit(browser, server.url) as page:
            page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
            _play_answer(page, words)
            choose(page, CLIP)
            assert transcript_of(page) == " ".join(words)
            assert page.locator("main img, main script").count() == 0
            assert "&lt;script&gt;alert(2)" in saved(page, "vtt")[1]
            assert saved(page, "srt")[1].count("-->") == 1


class TestThreeHours:
    def test_a_jump_scrolls_to_its_sentence_once_and_marks_it(
        self, browser: Browser, server: Server
    ) -> None:
        # Sentences of one line and of several, so that no estimate of their heights holds.
        words = ["short.", *["long"] * 7, "end."] * 3000
        with _shown(browser, server, words) as page:
            whole = page.locator("#waveform-whole").bounding_box()
            assert whole is not None
            for percent in (1, 20, 50, 80, 95, 99):
                page.mouse.click(whole["x"] + whole["width"] * percent / 100, whole["y"] + 4)
                place, top, bottom = page.evaluate(
                    """() => {
                        const target = document.querySelector(".sentence.target");
                        const { top, bottom } = target.getBoundingClientRect();
                        return [Number(target.dataset.index), top, bottom];
                    }"""
                )
                assert place == pytest.approx(3000 * percent / 100, abs=3000 / whole["width"] + 1)
                assert 100 < top < bottom < 720, "in the window, between the tools and the player"
                page.evaluate(RESTING)
                later = page.locator(".sentence.target").evaluate(
                    "(target) => target.getBoundingClientRect().top"
                )
                assert later == pytest.approx(top, abs=1), "nothing moves afterwards"

    def test_the_last_place_of_a_search_is_in_the_window(
        self, browser: Browser, server: Server
    ) -> None:
        words = SENTENCE * 2999
        with _shown(browser, server, [*words, "zebra."]) as page:
            page.get_by_role("searchbox").fill("zebra")
            expect(page.locator("#search-count")).to_have_text("1 of 1")
            expect(page.locator(".current")).to_be_in_viewport()

    def test_a_word_is_replaced_by_two_in_every_sentence_and_the_words_find_back(
        self, browser: Browser, server: Server
    ) -> None:
        """As thousands of changed sentences at once, which are one step to undo."""
        words = SENTENCE * 9000
        with _shown(browser, server, words) as page:
            before = transcript_of(page)
            page.locator("#edit").click()
            page.get_by_role("searchbox").fill(words[1])
            page.locator("#replacement").fill("two words")
            page.locator("#replacement").press("Enter")
            expect(page.locator("#search-count")).to_have_text(re.compile("9,000"))
            assert transcript_of(page) == before.replace(words[1], "two words")
            page.locator("#undo").click()
            assert transcript_of(page) == before

    def test_only_sentences_near_the_window_have_an_element_for_each_word(
        self, browser: Browser, server: Server
    ) -> None:
        words = SENTENCE * 3000
        with _shown(browser, server, words) as page:
            expect(page.locator(".sentence")).to_have_count(3000)
            expect(page.locator('[data-word="0"]')).to_be_visible()
            assert page.locator(".word").count() < 2000
            page.locator(".sentence").last.scroll_into_view_if_needed()
            expect(page.locator(f'[data-word="{len(words) - 1}"]')).to_be_visible()
            assert page.locator(".word").count() < 2000


def _stored(page: Page) -> str:
    """Return the contents of the page's database, as text."""
    held: str = page.evaluate(
        """() => new Promise((resolve, reject) => {
            const opened = indexedDB.open("parakeet");
            opened.onerror = reject;
            opened.onsuccess = () => {
                const stores = [...opened.result.objectStoreNames];
                if (stores.length === 0) { opened.result.close(); resolve(""); return; }
                const transaction = opened.result.transaction(stores);
                const found = stores.map((name) => transaction.objectStore(name).getAll());
                transaction.oncomplete = () => {
                    opened.result.close();
                    resolve(JSON.stringify(found.map((request) => request.result)));
                };
            };
        })"""
    )
    return held


@contextmanager
def _shown(browser: Browser, server: Server, words: list[str]) -> Iterator[Page]:
    """Show a transcript of these words."""
    with visit(browser, server.url) as page:
        _play_answer(page, words)
        choose(page, CLIP)
        page.locator("#download-first").wait_for()
        yield page


def _play_answer(
    page: Page, words: list[str], *, warnings: list[dict[str, Any]] | None = None
) -> None:
    """Answer the next transcription with these words: no recording makes a model say them."""
    timed = [
        {"word": word, "start": index * 0.4, "end": index * 0.4 + 0.3, "logprob": -0.01}
        for index, word in enumerate(words)
    ]
    segments = [
        {
            "id": number,
            "start": timed[first]["start"],
            "end": timed[min(first + 8, len(words) - 1)]["end"],
            "text": " " + " ".join(words[first : first + 9]),
        }
        for number, first in enumerate(range(0, len(words), 9))
    ]
    body = {
        "task": "transcribe",
        "language": "english",
        "duration": max(3.2, len(words) * 0.4),
        "text": " ".join(words),
        "words": timed,
        "segments": segments,
        **({"warnings": warnings} if warnings else {}),
    }
    event = {"type": "transcript.text.done", "text": body["text"], "verbose_json": body}

    def answer(route: Route) -> None:
        route.fulfill(content_type="text/event-stream", body=f"data: {json.dumps(event)}\n\n")

    without_jobs(page)
    page.route(f"**{ENDPOINT}", answer)
