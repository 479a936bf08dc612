from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from conftest import Clip, decode, whole
from numpy.typing import NDArray

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.model.voice_activity import SileroDetector
from parakeet_api.speech.activity import STEP, SpeechActivity
from parakeet_api.speech.speech_gate import drop_hallucinations
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Pcm, Token, Word

SECONDS = 6
CONFIDENT, DOUBTFUL = -0.01, -0.6


def word(text: str, start: float, end: float, logprob: float | None = CONFIDENT) -> Word:
    return Word(text, start, end, (Token(1, f" {text}", logprob), Token(2, "s", logprob)))


def spread(logprob: float | None) -> list[Word]:
    """Spread words over the whole chunk."""
    return [word(f"word{at}", at + 0.2, at + 0.6, logprob) for at in range(SECONDS)]


def silence() -> Pcm:
    return np.zeros(SECONDS * SAMPLE_RATE, np.int16)


def hiss(level: float = 300.0) -> Pcm:
    noise = np.random.default_rng(3).normal(0, level, SECONDS * SAMPLE_RATE)
    return noise.astype(np.int16)


def hum(harmonics: int = 1) -> Pcm:
    time = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    tones: list[NDArray[np.float64]] = [
        np.sin(2 * np.pi * 50 * n * time) / n for n in range(1, harmonics + 1)
    ]
    samples: Pcm = (4000 * np.sum(tones, 0)).astype(np.int16)
    return samples


def varying() -> Pcm:
    """Make noise modulated at 4 Hz, the rate of syllables."""
    time = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    envelope = 0.05 + np.clip(np.sin(2 * np.pi * 4 * time), 0, 1)
    return (hiss(3000) * envelope).astype(np.int16)


class Loud:
    """A detector that takes everything above half of full scale for speech."""

    def __init__(self) -> None:
        self.measured_s: list[float] = []

    def probabilities(self, samples: Pcm) -> NDArray[np.float32]:
        self.measured_s.append(len(samples) / SAMPLE_RATE)
        steps = np.pad(samples, (0, -len(samples) % STEP)).reshape(-1, STEP)
        is_speech: NDArray[np.bool_] = steps.max(1) > np.iinfo(np.int16).max // 2
        return is_speech.astype(np.float32)


def spoken(*spans: tuple[float, float]) -> Pcm:
    """Make hiss that `Loud` takes for speech between some moments, seconds."""
    samples = hiss()
    for start, end in spans:
        samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)] = 20_000
    return samples


def gate(chunk: Chunk, words: list[Word], detector: SileroDetector | Loud) -> list[Word]:
    return drop_hallucinations(chunk, words, SpeechActivity(chunk, detector))


@pytest.fixture(scope="module")
def silero() -> Iterator[SileroDetector]:
    detector = SileroDetector()
    yield detector
    detector.close()


def texts(words: list[Word]) -> list[str]:
    return [word.text for word in words]


@pytest.mark.parametrize("logprob", [CONFIDENT, DOUBTFUL, None])
def test_words_in_digital_silence_are_dropped(logprob: float | None) -> None:
    assert gate(whole(silence()), spread(logprob), Loud()) == []


def test_the_last_bits_of_a_converter_are_silence() -> None:
    dither = np.random.default_rng(3).integers(-2, 3, SECONDS * SAMPLE_RATE).astype(np.int16)

    assert gate(whole(dither), spread(CONFIDENT), Loud()) == []


@pytest.mark.parametrize("sound", [hiss(), hiss(20), hiss(6000), hum(), hum(8)])
def test_doubtful_words_in_a_steady_sound_are_dropped(sound: Pcm, silero: SileroDetector) -> None:
    assert gate(whole(sound), spread(DOUBTFUL), silero) == []


@pytest.mark.parametrize("sound", [hiss(), hiss(20), hiss(6000), hum()])
def test_confident_words_in_a_steady_sound_are_kept(sound: Pcm) -> None:
    assert gate(whole(sound), spread(CONFIDENT), Loud()) == spread(CONFIDENT)


def test_doubtful_words_in_a_modulated_noise_are_dropped(silero: SileroDetector) -> None:
    assert gate(whole(varying()), spread(DOUBTFUL), silero) == []


def test_doubtful_words_are_kept_where_there_is_speech_and_only_there() -> None:
    chunk = whole(spoken((3.1, 3.7)))

    assert texts(gate(chunk, spread(DOUBTFUL), Loud())) == ["word3"]


def test_a_short_burst_of_speech_is_not_enough() -> None:
    assert gate(whole(spoken((3.2, 3.25))), spread(DOUBTFUL), Loud()) == []


def test_the_detector_is_run_on_doubtful_words_only() -> None:
    confident, doubtful = Loud(), Loud()
    minute = whole(np.tile(hiss(), 10))

    gate(minute, [word("sure", at, at + 0.4) for at in range(60)], confident)
    gate(minute, [word("sure", 5, 5.4), word("not", 30, 30.4, DOUBTFUL)], doubtful)

    assert confident.measured_s == []
    assert sum(doubtful.measured_s) < 3


def test_log_probabilities_are_averaged_over_neighbouring_words() -> None:
    words = spread(DOUBTFUL)
    words[2] = word("word2", 2.2, 2.6, CONFIDENT)

    assert gate(whole(hiss()), words, Loud()) == []


def test_words_whose_probability_is_unknown_are_kept() -> None:
    # Beam search gives no log-probabilities, so no word is doubtful.
    assert gate(whole(hiss()), spread(None), Loud()) == spread(None)
    bare = [Word("word", 1.0, 1.5)]
    assert gate(whole(hiss()), bare, Loud()) == bare


def test_a_single_doubtful_word_is_kept() -> None:
    one_doubtful = [*spread(CONFIDENT)[:-1], word("last", 5.2, 5.6, DOUBTFUL)]

    assert gate(whole(hiss()), one_doubtful, Loud()) == one_doubtful


def test_the_first_word_of_a_chunk_may_be_spoken_as_late_as_the_second() -> None:
    words = [
        word("timed-early", 0.0, 0.32, DOUBTFUL),
        word("second", 1.28, 1.6, DOUBTFUL),
    ]
    chunk = whole(spoken((1.0, 1.6)))

    assert texts(gate(chunk, words, Loud())) == ["timed-early", "second"]
    assert gate(whole(hiss()), words, Loud()) == []
    assert gate(chunk, words[:1], Loud()) == []


def test_a_word_that_the_model_timed_itself_is_judged_where_it_is() -> None:
    words = [word("first", 0.16, 0.48, DOUBTFUL), word("second", 1.28, 1.6, DOUBTFUL)]

    assert texts(gate(whole(spoken((1.0, 1.6))), words, Loud())) == ["second"]


def test_only_words_near_a_sound_are_kept() -> None:
    samples = silence()
    samples[3 * SAMPLE_RATE : 4 * SAMPLE_RATE] = hiss()[:SAMPLE_RATE]
    words = [
        word("long-before", 1.0, 2.0),
        word("just-before", 2.3, 2.8),  # ends 0.2 s before the sound
        word("inside", 3.2, 3.6),
        word("just-after", 4.2, 4.6),  # begins 0.2 s after it
        word("long-after", 4.5, 5.0),
    ]

    assert texts(gate(whole(samples), words, Loud())) == ["just-before", "inside", "just-after"]


def test_a_single_click_is_a_sound() -> None:
    samples = silence()
    samples[SAMPLE_RATE] = 3
    words = [word("here", 0.9, 1.1), word("there", 3.0, 3.5)]

    assert texts(gate(whole(samples), words, Loud())) == ["here"]


@pytest.mark.parametrize("extreme", [np.iinfo(np.int16).min, np.iinfo(np.int16).max])
def test_the_loudest_samples_are_not_taken_for_silence(extreme: int) -> None:
    samples = silence()
    samples[SAMPLE_RATE : SAMPLE_RATE + 100] = extreme

    assert texts(gate(whole(samples), spread(CONFIDENT), Loud())) == ["word1"]


def test_a_square_wave_at_full_scale_is_no_speech(silero: SileroDetector) -> None:
    samples = np.full(SECONDS * SAMPLE_RATE, np.iinfo(np.int16).min, np.int16)

    assert gate(whole(samples), spread(DOUBTFUL), silero) == []
    assert gate(whole(samples), spread(CONFIDENT), silero) == spread(CONFIDENT)


def test_times_count_from_the_start_of_the_recording() -> None:
    samples = silence()
    samples[SAMPLE_RATE : 2 * SAMPLE_RATE] = hiss()[:SAMPLE_RATE]
    later = Chunk(5, 100 * SAMPLE_RATE, samples, 101 * SAMPLE_RATE, 105 * SAMPLE_RATE)
    words = [word("inside", 101.2, 101.6), word("outside", 103.0, 103.5)]

    assert texts(gate(later, words, Loud())) == ["inside"]


@pytest.mark.parametrize("length", [0, 1, 100, 479, 480])
def test_chunks_of_hardly_a_sample_are_accepted(length: int) -> None:
    samples = np.full(length, 1000, np.int16)

    assert gate(whole(samples), [], Loud()) == []
    assert gate(whole(samples), [word("x", 0, 0.02, DOUBTFUL)], Loud()) == []


def test_no_word_of_real_speech_is_dropped(
    clips: list[Clip],
    decoder: FfmpegDecoder,
    recognizer: NemoRecognizer,
    silero: SileroDetector,
) -> None:
    chunks = [whole(decode(decoder, clip.path)) for clip in clips[:20]]
    recognized = [recognizer.recognize([chunk])[0] for chunk in chunks]

    assert sum(map(len, recognized)) > 100
    for chunk, words in zip(chunks, recognized, strict=True):
        assert gate(chunk, words, silero) == words


@pytest.mark.parametrize("gain", [1, 1 / 30])
def test_no_word_of_real_speech_is_dropped_even_if_all_are_doubtful(
    gain: float,
    clips: list[Clip],
    decoder: FfmpegDecoder,
    recognizer: NemoRecognizer,
    silero: SileroDetector,
) -> None:
    """Random weights produce such words, and so does a good model on quiet recordings."""
    chunks = [whole((decode(decoder, clip.path) * gain).astype(np.int16)) for clip in clips[:20]]

    for chunk in chunks:
        words = [
            replace(found, tokens=tuple(replace(t, logprob=-6.0) for t in found.tokens))
            for found in recognizer.recognize([chunk])[0]
        ]
        assert gate(chunk, words, silero) == words


@pytest.mark.parametrize("length_s", [6, 10, 20, 30, 60])
def test_a_sentence_36_db_above_hiss_survives_at_every_chunk_length(
    length_s: int,
    clips: list[Clip],
    decoder: FfmpegDecoder,
    recognizer: NemoRecognizer,
    silero: SileroDetector,
) -> None:
    speech = decode(decoder, min(clips, key=lambda clip: clip.duration_s).path)
    level = float(np.sqrt(np.mean(speech.astype(np.float64) ** 2))) / 10 ** (36 / 20)
    samples = np.random.default_rng(3).normal(0, level, length_s * SAMPLE_RATE).astype(np.int16)
    start = len(samples) // 2 - len(speech) // 2
    samples[start : start + len(speech)] += speech
    chunk = whole(samples)
    words = recognizer.recognize([chunk])[0]
    begin, end = start / SAMPLE_RATE, (start + len(speech)) / SAMPLE_RATE

    left = gate(chunk, words, silero)

    expected = [found for found in words if begin < found.middle < end]
    assert len(expected) >= 3
    assert [found for found in left if begin < found.middle < end] == expected
    # Words near the sentence get the mean log-probability of the sentence.
    assert [found for found in left if not begin - 5 < found.middle < end + 5] == []


# Digital silence never reaches the model.
@pytest.mark.parametrize("sound", [hiss(), hiss(30), hum()])
def test_no_words_are_left_where_there_is_no_speech(
    recognizer: NemoRecognizer, sound: Pcm, silero: SileroDetector
) -> None:
    chunk = whole(sound)
    imagined = recognizer.recognize([chunk])[0]

    assert imagined, "the gate has nothing to do"
    assert gate(chunk, imagined, silero) == []
