"""Final words of a turn in progress: none changes, none is lost, none is sent twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.realtime.spoken_words import SpokenWords
from parakeet_api.transcript import Word

TEXT = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def words(texts: list[str], *, first: float = 0.0, shift: float = 0.0) -> list[Word]:
    """Return words of 0.4 s, one every half second."""
    return [
        Word(text, first + number / 2 + shift, first + number / 2 + 0.4 + shift)
        for number, text in enumerate(texts)
    ]


def texts(found: list[Word]) -> list[str]:
    return [word.text for word in found]


def test_one_window_alone_makes_no_word_of_the_last_second_final() -> None:
    spoken = SpokenWords()

    assert spoken.hear(words(["one", "two"]), until=1.0) == []


def test_words_of_two_windows_that_agree_are_final_once_audio_follows() -> None:
    spoken = SpokenWords()
    spoken.hear(words(["one", "two"]), until=1.0)

    assert texts(spoken.hear(words(["one", "two", "three"]), until=1.5)) == ["one", "two"]


def test_a_word_that_changes_is_not_final_until_enough_audio_follows() -> None:
    spoken = SpokenWords()
    spoken.hear(words(["won"]), until=0.5)

    assert spoken.hear(words(["one"]), until=0.9) == []
    assert texts(spoken.hear(words(["wan"]), until=1.7)) == ["wan"]


def test_case_and_punctuation_do_not_count_as_disagreement() -> None:
    spoken = SpokenWords()
    spoken.hear(words(["One.", "two"]), until=1.0)

    assert texts(spoken.hear(words(["one", "Two"]), until=1.4)) == ["one", "Two"]


def test_a_window_that_begins_later_adds_only_what_is_new() -> None:
    spoken = SpokenWords()
    spoken.hear(words(TEXT[:4]), until=2.5)
    spoken.hear(words(TEXT[:4]), until=2.6)
    later = words(TEXT[2:6], first=1.0, shift=0.08)
    spoken.hear(later, until=2.95)

    assert texts(spoken.hear(later, until=3.4)) == ["five", "six"]


def test_another_version_of_the_last_word_is_not_sent_again() -> None:
    spoken = SpokenWords()
    spoken.hear(words(["one", "two"]), until=2.2)
    spoken.hear(words(["one", "too", "three"]), until=2.3)

    assert texts(spoken.finish(words(["one", "too", "three"]))) == ["three"]


def test_the_end_of_a_turn_sends_the_rest() -> None:
    spoken = SpokenWords()
    spoken.hear(words(TEXT[:3]), until=1.4)
    spoken.hear(words(TEXT[:3]), until=1.5)

    told = [*spoken.final, *spoken.finish(words(TEXT))]
    assert texts(told) == TEXT
    assert texts(spoken.final) == TEXT


@given(
    st.lists(st.floats(0.1, 0.9), min_size=1, max_size=30),
    st.lists(st.integers(0, 9), max_size=30),
)
def test_each_word_is_sent_once_for_any_sequence_of_windows(
    steps: list[float], mistakes: list[int]
) -> None:
    spoken = SpokenWords()
    told: list[str] = []
    until = 0.0
    for number, step in enumerate(steps):
        until += step
        heard = [word for word in words(TEXT) if word.start < until]
        if heard and number < len(mistakes):
            # The last word of a window is uncertain.
            last = heard[-1]
            heard[-1] = Word(f"{last.text}{mistakes[number]}", last.start, min(last.end, until))
        told += texts(spoken.hear(heard, until=until))
        assert told == texts(spoken.final)
    told += texts(spoken.finish(words(TEXT)))

    assert len(told) == len(TEXT)
    assert all(one.startswith(other) for one, other in zip(told, TEXT, strict=True))
