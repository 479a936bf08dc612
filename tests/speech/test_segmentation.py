from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.speech.segmentation import LONG_PAUSE_S, split_into_segments
from parakeet_api.transcript import Word

NASTY = [
    "...", "…", ".", "—", "", " ", "?!", '"', '"Stop."', "“Ja.”", "'Tis", "(He", "did.)", "U.S.",
    "3.5", "3.Ja", "今日は。", "元気。はい", "मैं।", "naïve", "A\u00a0.", "A.\u3000b", "two\nlines.",
    "x\u2028y.", "\u200b", "😀", "Mr.", "No.",
]  # fmt: skip

texts = st.sampled_from(NASTY) | st.text(max_size=8)
pauses = st.sampled_from([0.0, 0.1, LONG_PAUSE_S - 0.01, LONG_PAUSE_S, 60.0])


def words_of(*texts: str, pause: float = 0.0) -> list[Word]:
    """Make words of a quarter of a second each."""
    step = 0.25 + pause
    return [Word(text, at * step, at * step + 0.25) for at, text in enumerate(texts)]


def sentences(text: str, *, language: str = "en") -> list[str]:
    segments = split_into_segments(words_of(*text.split(" ")), language=language)
    return [segment.text for segment in segments]


@st.composite
def recordings(draw: st.DrawFn) -> list[Word]:
    words: list[Word] = []
    end = 0.0
    for text, pause in draw(st.lists(st.tuples(texts, pauses), max_size=40)):
        words.append(Word(text, end + pause, end + pause + 0.25))
        end = words[-1].end
    return words


@given(recordings(), st.sampled_from(["en", "de", "fr", "hi", "ru", "zh", "xx", ""]))
def test_every_word_appears_once_and_in_order(words: list[Word], language: str) -> None:
    segments = split_into_segments(words, language=language)

    assert [word for segment in segments for word in segment.words] == words
    assert all(segment.words for segment in segments)


@given(recordings())
def test_no_segment_holds_a_long_pause(words: list[Word]) -> None:
    for segment in split_into_segments(words):
        for before, after in zip(segment.words, segment.words[1:], strict=False):
            assert after.start - before.end < LONG_PAUSE_S


def test_sentences_become_segments() -> None:
    assert sentences("We met. Where? In Boston! It rained.") == [
        "We met.",
        "Where?",
        "In Boston!",
        "It rained.",
    ]


@pytest.mark.parametrize(
    "sentence",
    [
        "Dr. Smith paid 3.5 dollars at 5 p.m. on Monday.",
        "I live in the U.S. and like it.",
        "No. 5 is alive.",
        "Well... what then?",
        "See example.com for e.g. prices.",
    ],
)
def test_a_full_stop_inside_a_sentence_does_not_end_it(sentence: str) -> None:
    assert sentences(f"{sentence} Next one.") == [sentence, "Next one."]


def test_the_language_decides_what_an_abbreviation_is() -> None:
    text = "Das gilt bzw. Ähnliches auch."

    assert sentences(text, language="de") == [text]
    assert sentences(text, language="en") == ["Das gilt bzw.", "Ähnliches auch."]


def test_east_asian_full_stops_end_sentences() -> None:
    assert sentences("今日は。 元気ですか。 はい", language="ja") == [
        "今日は。",
        "元気ですか。",
        "はい",
    ]


def test_a_sentence_end_inside_a_word_does_not_cut_it() -> None:
    assert sentences("今日は。元気 ですか。", language="ja") == ["今日は。元気 ですか。"]


def test_multibyte_spaces_inside_a_word_are_accepted() -> None:
    # These made sentencex 1.0.32 panic.
    assert sentences("A\u00a0.b A\u2028.b Yes. A\u3000.b") == [
        "A\u00a0.b A\u2028.b Yes.",
        "A\u3000.b",
    ]


def test_a_long_pause_ends_a_segment_without_punctuation() -> None:
    words = [Word("and", 0.0, 0.5), Word("so", 2.25, 2.5), Word("we", 4.5, 5.0)]

    assert [segment.words for segment in split_into_segments(words)] == [
        (words[0], words[1]),
        (words[2],),
    ]


def test_no_words_make_no_segments() -> None:
    assert split_into_segments(iter([])) == []


@pytest.mark.parametrize("text", ["word", "word.", "U.S.", '"word.', "word.”", "..."])
def test_ten_hours_of_speech_take_less_than_two_seconds(text: str) -> None:
    words = words_of(*[text] * 100_000)

    began = time.thread_time()
    segments = split_into_segments(words)

    assert time.thread_time() - began < 2.0
    assert sum(len(segment.words) for segment in segments) == 100_000
