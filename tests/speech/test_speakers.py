from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.speech.diarization import FloatArray
from parakeet_api.speech.speakers import SpeakerActivity, assign_speakers, letter
from parakeet_api.transcript import Word

FRAME_S = 0.08
SPEAKERS = 4


def activity_of(frames: FloatArray) -> SpeakerActivity:
    activity = SpeakerActivity(frame_s=FRAME_S, speakers=frames.shape[1])
    activity.add(frames)
    return activity


def frames_of(*turns: tuple[int, tuple[int, ...]]) -> FloatArray:
    """Make frames: `(count, speakers)` for each stretch in which these speak."""
    frames = [
        [0.97 if speaker in active else 0.02 for speaker in range(SPEAKERS)]
        for count, active in turns
        for _ in range(count)
    ]
    return np.array(frames, np.float32)


def words_at(*spans: tuple[float, float], text: str = "word") -> list[Word]:
    return [Word(text, start, end) for start, end in spans]


def test_words_have_the_speaker_of_their_time() -> None:
    activity = activity_of(frames_of((25, (2,)), (25, (0,))))
    words = words_at((0.1, 0.5), (0.6, 1.4), (2.1, 2.5), (2.6, 3.2))

    assert assign_speakers(words, activity) == [2, 2, 0, 0]


def test_a_short_yes_amid_the_speech_of_another_is_found() -> None:
    activity = activity_of(frames_of((25, (0,)), (4, (1,)), (25, (0,))))
    words = words_at((0.5, 1.0), (1.1, 1.9), (2.0, 2.32), (2.4, 2.8), (3.0, 3.5))

    assert assign_speakers(words, activity) == [0, 0, 1, 0, 0]


def test_a_flicker_of_one_frame_parts_no_phrase() -> None:
    activity = activity_of(frames_of((25, (0,)), (1, (1,)), (25, (0,))))
    words = words_at((0.5, 1.0), (1.1, 1.9), (1.96, 2.2), (2.4, 2.8))

    assert assign_speakers(words, activity) == [0, 0, 0, 0]


def test_where_two_speak_at_once_a_phrase_goes_on() -> None:
    activity = activity_of(frames_of((20, (0,)), (20, (0, 1)), (20, (1,))))
    words = words_at((0.2, 0.8), (1.0, 1.5), (1.7, 2.2), (2.4, 3.0), (3.4, 4.0))

    assert assign_speakers(words, activity) == [0, 0, 0, 0, 1]


def test_words_that_nobody_was_heard_to_say_stay_with_their_neighbours() -> None:
    activity = activity_of(frames_of((20, (3,)), (20, ()), (20, (1,))))
    words = words_at((0.2, 0.8), (2.0, 2.4), (3.5, 4.0))

    assert assign_speakers(words, activity)[1] in {1, 3}


def test_a_turn_may_change_inside_a_sentence() -> None:
    activity = activity_of(frames_of((12, (0,)), (12, (1,))))
    words = words_at((0.1, 0.4), (0.45, 0.9), (1.0, 1.3), (1.4, 1.8))

    assert assign_speakers(words, activity) == [0, 0, 1, 1]


def test_only_allowed_speakers_get_words() -> None:
    activity = activity_of(frames_of((50, (0,)), (10, (1,)), (40, (2,))))
    words = words_at((1.0, 2.0), (4.1, 4.7), (5.5, 6.5))

    assert activity.most_active(2) == {0, 2}
    assert assign_speakers(words, activity, allowed={0, 2})[::2] == [0, 2]
    assert 1 not in assign_speakers(words, activity, allowed={0, 2})


@given(st.data())
def test_every_word_gets_one_speaker(data: st.DataObject) -> None:
    levels = data.draw(
        st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), min_size=0)
    )
    lengths = data.draw(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 2)), max_size=12))
    activity = activity_of(np.array(levels, np.float32).reshape(-1, 3))
    words, at = [], 0.0
    for length, pause in lengths:
        words.append(Word("a.", at, at + length))
        at += length + pause

    speakers = assign_speakers(words, activity)

    assert len(speakers) == len(words)
    assert set(speakers) <= {0, 1, 2}


@given(
    st.lists(st.tuples(st.integers(4, 30), st.integers(0, SPEAKERS - 1)), min_size=1, max_size=9)
)
def test_one_active_speaker_at_a_time_is_followed_exactly(turns: list[tuple[int, int]]) -> None:
    activity = activity_of(frames_of(*((count, (speaker,)) for count, speaker in turns)))
    words, expected, at = [], [], 0.0
    for count, speaker in turns:
        # Whole words of three frames or more, inside their turn.
        words.append(Word("w", at, at + count * FRAME_S))
        expected.append(speaker)
        at += count * FRAME_S

    assert assign_speakers(words, activity) == expected


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=6))
def test_activity_does_not_depend_on_how_it_arrives(sizes: list[int]) -> None:
    frames = np.random.default_rng(0).random((sum(sizes), 2), np.float32)
    whole, parts = activity_of(frames), SpeakerActivity(frame_s=FRAME_S, speakers=2)
    at = 0
    for size in sizes:
        parts.add(frames[at : at + size])
        at += size

    word = Word("w", sum(sizes) * FRAME_S / 3, sum(sizes) * FRAME_S / 2)
    assert parts.covered_s == whole.covered_s
    assert parts.of(word) == pytest.approx(whole.of(word))


def test_ten_hours_take_two_megabytes() -> None:
    activity = SpeakerActivity(frame_s=FRAME_S, speakers=4)
    for _ in range(600):
        activity.add(np.zeros((750, 4), np.float32))

    assert activity.covered_s == pytest.approx(36_000)
    assert activity._levels.nbytes < 4_000_000


def test_a_word_is_unchanged_but_for_its_speaker() -> None:
    word = Word("Yes.", 0.1, 0.4)

    assert replace(replace(word, speaker="A"), speaker=None) == word


def test_speakers_have_letters() -> None:
    assert [letter(number) for number in (0, 1, 25, 26, 27, 51, 52)] == [
        *("A", "B", "Z", "AA", "AB", "AZ", "BA")
    ]
