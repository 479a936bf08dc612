from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.speech.speaker_segments import ChannelSegments, VoiceSegments
from parakeet_api.speech.speakers import SpeakerActivity
from parakeet_api.transcript import Segment, Word


def english(_: object) -> str:
    return "en"


def texts(segments: list[Segment]) -> list[tuple[str | None, str]]:
    return [(segment.speaker, segment.text) for segment in segments]


def words_of(text: str, start: float, each: float = 0.4) -> list[Word]:
    return [
        Word(word, start + at * each, start + at * each + each * 0.8)
        for at, word in enumerate(text.split())
    ]


def heard(*speakers: int, frame_s: float = 1.0, most: int = 4) -> SpeakerActivity:
    """Make the activity of one speaker in each second."""
    activity = SpeakerActivity(frame_s=frame_s, speakers=most)
    activity.add(np.eye(most, dtype=np.float32)[list(speakers)])
    return activity


class TestVoices:
    def test_segments_break_at_a_change_of_speaker_and_at_sentences(self) -> None:
        voices = VoiceSegments(heard(1, 1, 1, 0, 0, 1, 1), language_of=english)
        voices.add(
            [
                *words_of("I think so. Do", 0.0, 0.7),
                *words_of("Not I.", 3.1),
                *words_of("you agree?", 5.1),
            ],
            None,
        )

        assert texts(voices.finish()) == [
            ("A", "I think so."),
            ("A", "Do"),
            ("B", "Not I."),
            ("A", "you agree?"),
        ]

    def test_letters_are_in_the_order_of_speaking_and_names_are_kept(self) -> None:
        voices = VoiceSegments(
            heard(3, 3, 0, 0, 2, 2), language_of=english, names=lambda: {0: "Ann"}
        )
        voices.add([Word("Yes.", 0.2, 1.8), Word("No.", 2.2, 3.8), Word("Ah.", 4.2, 5.8)], None)

        assert [segment.speaker for segment in voices.finish()] == ["A", "Ann", "B"]
        assert voices.speakers == 3

    def test_a_name_that_is_a_letter_is_no_other_speakers_letter(self) -> None:
        voices = VoiceSegments(heard(3, 3, 0, 0, 2, 2), language_of=english, names=lambda: {0: "A"})
        voices.add([Word("Yes.", 0.2, 1.8), Word("No.", 2.2, 3.8), Word("Ah.", 4.2, 5.8)], None)

        assert [segment.speaker for segment in voices.finish()] == ["B", "A", "C"]

    def test_words_wait_until_the_diarizer_has_heard_them(self) -> None:
        activity = heard(0, 0)
        voices = VoiceSegments(activity, language_of=english)
        voices.add(words_of("One is. Two are. Three were.", 0.0, 1.0), None)

        assert voices.ready(6.0) == []

        activity.add(np.eye(4, dtype=np.float32)[[1] * 10])

        assert texts(voices.ready(12.0))[0] == ("A", "One is.")

    def test_only_so_many_speakers_get_words(self) -> None:
        voices = VoiceSegments(heard(0, 0, 0, 1, 2, 2, 2), language_of=english, max_speakers=2)
        voices.add([Word("Yes.", 0.2, 2.8), Word("No.", 3.1, 3.9), Word("Ah.", 4.2, 6.8)], None)

        assert {segment.speaker for segment in voices.finish()} == {"A", "B"}


class TestChannels:
    def test_an_interjection_stands_behind_the_sentence_that_it_falls_into(self) -> None:
        channels = ChannelSegments(2, language_of=english)
        channels.add(words_of("This is a long sentence indeed.", 0.0), 1)
        channels.add(words_of("Yes.", 1.0), 2)

        assert texts(channels.finish()) == [("A", "This is a long sentence indeed."), ("B", "Yes.")]

    def test_a_segment_waits_for_an_earlier_sentence_of_the_other_channel(self) -> None:
        channels = ChannelSegments(2, language_of=english)
        channels.add(words_of("This sentence is not", 0.0), 1)
        channels.add(words_of("Yes. It is. Well", 0.5), 2)

        assert channels.ready(2.0) == []

        channels.add(words_of("over yet.", 2.0), 1)

        assert texts(channels.finish())[0] == ("A", "This sentence is not over yet.")

    def test_channels_may_have_names(self) -> None:
        channels = ChannelSegments(2, language_of=english, names=["Agent"])
        channels.add(words_of("Hello.", 0.0), 1)
        channels.add(words_of("Good day.", 1.0), 2)

        assert texts(channels.finish()) == [("Agent", "Hello."), ("B", "Good day.")]

    def test_a_name_that_is_a_letter_is_no_other_channels_letter(self) -> None:
        channels = ChannelSegments(3, language_of=english, names=["B"])
        for channel in (1, 2, 3):
            channels.add(words_of("Hello.", channel), channel)

        assert [segment.speaker for segment in channels.finish()] == ["B", "C", "D"]

    def test_more_names_than_channels_are_left_over(self) -> None:
        channels = ChannelSegments(1, language_of=english, names=["Ann", "Bob"])
        channels.add(words_of("Hello.", 0.0), 1)

        assert texts(channels.finish()) == [("Ann", "Hello.")]


@st.composite
def speech(draw: st.DrawFn) -> list[Word]:
    words, at = [], draw(st.floats(0, 3))
    for text in draw(st.lists(st.sampled_from(["a", "b,", "c.", "d?", "Dr."]), max_size=25)):
        length = draw(st.floats(0.05, 1))
        words.append(Word(text, at, at + length))
        at += length + draw(st.sampled_from([0.0, 0.1, 0.4, 2.5]))
    return words


@given(speech(), speech(), st.lists(st.floats(0, 30), max_size=6))
def test_channels_lose_no_word_and_give_segments_in_order(
    left: list[Word], right: list[Word], times: list[float]
) -> None:
    channels = ChannelSegments(2, language_of=english)
    pending = {1: list(left), 2: list(right)}
    segments: list[Segment] = []
    for until in sorted(times):
        for channel, words in pending.items():
            # What the stitcher gives: words whose middle lies before.
            ready = [word for word in words if word.middle < until]
            pending[channel] = words[len(ready) :]
            channels.add(ready, channel)
        segments += channels.ready(until)
    for channel, words in pending.items():
        channels.add(words, channel)
    segments += channels.finish()

    for channel, said in ((1, left), (2, right)):
        given_words = [w for s in segments if s.channel == channel for w in s.words]
        assert [(w.text, w.start, w.end) for w in given_words] == [
            (w.text, w.start, w.end) for w in said
        ]
    for segment in segments:
        assert len({word.speaker for word in segment.words}) == 1
    # A word may begin before the time that its middle lies behind.
    assert all(one.start <= other.start + 0.5 for one, other in pairwise(segments))


@given(speech(), st.lists(st.integers(0, 3), max_size=40), st.lists(st.floats(0, 40), max_size=6))
def test_voices_lose_no_word_however_they_arrive(
    said: list[Word], speakers: list[int], times: list[float]
) -> None:
    activity = heard()
    frames = np.eye(4, dtype=np.float32)[speakers]
    voices = VoiceSegments(activity, language_of=english)
    pending, fed = list(said), 0
    segments: list[Segment] = []
    for until in sorted(times):
        ready = [word for word in pending if word.middle < until]
        pending = pending[len(ready) :]
        voices.add(ready, None)
        activity.add(frames[fed : int(until)])
        fed = max(fed, min(len(frames), int(until)))
        segments += voices.ready(until)
    voices.add(pending, None)
    activity.add(frames[fed:])
    segments += voices.finish()

    words = [word for segment in segments for word in segment.words]
    assert [(w.text, w.start) for w in words] == [(w.text, w.start) for w in said]
    assert all(word.speaker for word in words)
    for segment in segments:
        assert len({word.speaker for word in segment.words}) == 1
