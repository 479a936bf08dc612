from __future__ import annotations

import numpy as np
import pytest
from diarizers import FRAME_S, Scripted, Tones, tone

from parakeet_api.speech.speaker_hearing import SpeakerHearing
from parakeet_api.speech.speakers import SpeakerActivity, assign_speakers
from parakeet_api.transcript import SAMPLE_RATE, KnownSpeaker, Pcm, Word


def known(name: str, samples: Pcm) -> KnownSpeaker:
    return KnownSpeaker(name, samples.astype("<i2").tobytes())


def listen(hearing: SpeakerHearing, samples: Pcm, block: int = 7000) -> Pcm:
    blocks = [samples[at : at + block] for at in range(0, len(samples), block)]
    passed = np.concatenate([*hearing.through(blocks), np.zeros(0, np.int16)])
    hearing.close()
    return passed


def activity_in(hearing: SpeakerHearing) -> SpeakerActivity:
    assert hearing.activity is not None
    return hearing.activity


def test_all_samples_pass_and_all_whole_frames_are_heard() -> None:
    hearing = SpeakerHearing(Tones())
    samples = np.concatenate([tone(200, 3.2), tone(300, 1.6)])

    assert np.array_equal(listen(hearing, samples), samples)
    assert activity_in(hearing).covered_s == pytest.approx(4.8)
    words = [Word("a", 0.5, 1.0), Word("b", 3.5, 4.0)]
    assert assign_speakers(words, activity_in(hearing)) == [0, 1]


@pytest.mark.parametrize("length", [2.0, 3.333, 9.99])
def test_a_known_voice_has_its_name_and_times_count_from_the_recording(length: float) -> None:
    references = [known("Ann", tone(300, length)), known("Bob", tone(200, 2.5))]
    hearing = SpeakerHearing(Tones(), references)
    listen(hearing, np.concatenate([tone(400, 4.0), tone(200, 4.0), tone(300, 4.0)]))

    words = [Word("a", 0.0, 3.9), Word("b", 4.1, 7.9), Word("c", 8.1, 11.9)]
    speakers = assign_speakers(words, activity_in(hearing))
    assert [hearing.names.get(speaker) for speaker in speakers] == [None, "Bob", "Ann"]
    assert activity_in(hearing).covered_s == pytest.approx(12.0)
    assert hearing.caveats == []


def test_a_reference_without_a_voice_is_a_warning() -> None:
    hearing = SpeakerHearing(Tones(), [known("Ann", np.zeros(3 * SAMPLE_RATE, np.int16))])
    listen(hearing, tone(200, 4.0))

    assert dict(hearing.names) == {}
    assert [caveat.code for caveat in hearing.caveats] == ["known_speaker_not_found"]


def test_a_name_without_a_reference_names_no_voice() -> None:
    hearing = SpeakerHearing(Tones(), [known("Agent", np.zeros(0, np.int16))])
    listen(hearing, tone(200, 4.0))

    assert dict(hearing.names) == {}
    assert activity_in(hearing).covered_s == pytest.approx(4.0)


def test_two_references_of_one_voice_are_a_warning() -> None:
    twice = [known("Ann", tone(200, 3.0)), known("B\u00f6b", tone(200, 3.0))]
    hearing = SpeakerHearing(Tones(), twice)
    listen(hearing, tone(200, 4.0))

    assert dict(hearing.names) == {0: "Ann"}
    (caveat,) = hearing.caveats
    assert caveat.message.isascii()


def test_channels_apart_are_not_heard() -> None:
    diarizer = Scripted([])
    hearing = SpeakerHearing(diarizer)
    block = np.zeros((SAMPLE_RATE, 2), np.int16)

    assert [passed.shape for passed in hearing.through([block])] == [block.shape]
    assert hearing.activity is None
    assert diarizer.streams == []


def test_a_single_channel_is_heard_like_a_mix() -> None:
    hearing = SpeakerHearing(Tones())
    block = tone(200, 10 * FRAME_S)

    (passed,) = hearing.through([block[:, np.newaxis]])

    assert np.array_equal(passed, block)
    assert activity_in(hearing).covered_s == pytest.approx(10 * FRAME_S)
