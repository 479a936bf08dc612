from __future__ import annotations

import numpy as np
import pytest
from conftest import Clip, decode, whole

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.speech.speech_gate import heard_words
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


def hum() -> Pcm:
    time = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    return (8000 * np.sin(2 * np.pi * 50 * time)).astype(np.int16)


def varying() -> Pcm:
    """Make noise that comes and goes four times a second, as syllables do."""
    time = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    envelope = 0.05 + np.clip(np.sin(2 * np.pi * 4 * time), 0, 1)
    return (hiss(3000) * envelope).astype(np.int16)


def texts(words: list[Word]) -> list[str]:
    return [word.text for word in words]


@pytest.mark.parametrize("logprob", [CONFIDENT, DOUBTFUL, None])
def test_digital_silence_says_nothing(logprob: float | None) -> None:
    assert heard_words(whole(silence()), spread(logprob)) == []


def test_the_last_bits_of_a_converter_are_silence() -> None:
    dither = np.random.default_rng(3).integers(-2, 3, SECONDS * SAMPLE_RATE).astype(np.int16)

    assert heard_words(whole(dither), spread(CONFIDENT)) == []


@pytest.mark.parametrize("sound", [hiss(), hiss(20), hiss(6000), hum()])
def test_doubtful_words_in_a_steady_sound_are_dropped(sound: Pcm) -> None:
    assert heard_words(whole(sound), spread(DOUBTFUL)) == []


@pytest.mark.parametrize("sound", [hiss(), hiss(20), hiss(6000), hum()])
def test_confident_words_in_a_steady_sound_are_kept(sound: Pcm) -> None:
    assert heard_words(whole(sound), spread(CONFIDENT)) == spread(CONFIDENT)


def test_doubtful_words_in_a_varying_sound_are_kept() -> None:
    assert heard_words(whole(varying()), spread(DOUBTFUL)) == spread(DOUBTFUL)


def test_words_whose_probability_is_unknown_are_kept() -> None:
    # A beam gives none: there is no second witness.
    assert heard_words(whole(hiss()), spread(None)) == spread(None)
    bare = [Word("word", 1.0, 1.5)]
    assert heard_words(whole(hiss()), bare) == bare


def test_the_doubt_of_all_words_counts_not_of_one() -> None:
    one_doubtful = [*spread(CONFIDENT)[:-1], word("last", 5.2, 5.6, DOUBTFUL)]

    assert heard_words(whole(hiss()), one_doubtful) == one_doubtful


def test_words_beside_a_sound_are_kept_and_the_others_are_not() -> None:
    samples = silence()
    samples[3 * SAMPLE_RATE : 4 * SAMPLE_RATE] = hiss()[:SAMPLE_RATE]
    words = [
        word("long-before", 1.0, 2.0),
        word("just-before", 2.3, 2.8),  # ends 0.2 s before the sound
        word("inside", 3.2, 3.6),
        word("just-after", 4.2, 4.6),  # begins 0.2 s after it
        word("long-after", 4.5, 5.0),
    ]

    assert texts(heard_words(whole(samples), words)) == ["just-before", "inside", "just-after"]


def test_a_single_click_is_a_sound() -> None:
    samples = silence()
    samples[SAMPLE_RATE] = 3
    words = [word("here", 0.9, 1.1), word("there", 3.0, 3.5)]

    assert texts(heard_words(whole(samples), words)) == ["here"]


@pytest.mark.parametrize("extreme", [np.iinfo(np.int16).min, np.iinfo(np.int16).max])
def test_the_loudest_samples_are_not_taken_for_silence(extreme: int) -> None:
    samples = silence()
    samples[SAMPLE_RATE : SAMPLE_RATE + 100] = extreme

    assert texts(heard_words(whole(samples), spread(CONFIDENT))) == ["word1"]


def test_a_square_wave_at_full_scale_is_steady() -> None:
    samples = np.full(SECONDS * SAMPLE_RATE, np.iinfo(np.int16).min, np.int16)

    assert heard_words(whole(samples), spread(DOUBTFUL)) == []
    assert heard_words(whole(samples), spread(CONFIDENT)) == spread(CONFIDENT)


def test_times_count_from_the_start_of_the_recording() -> None:
    samples = silence()
    samples[SAMPLE_RATE : 2 * SAMPLE_RATE] = hiss()[:SAMPLE_RATE]
    later = Chunk(5, 100 * SAMPLE_RATE, samples, 101 * SAMPLE_RATE, 105 * SAMPLE_RATE)
    words = [word("inside", 101.2, 101.6), word("outside", 103.0, 103.5)]

    assert texts(heard_words(later, words)) == ["inside"]


@pytest.mark.parametrize("length", [0, 1, 100, 479, 480])
def test_chunks_of_hardly_a_sample_are_no_fault(length: int) -> None:
    samples = np.full(length, 1000, np.int16)

    assert heard_words(whole(samples), []) == []
    assert heard_words(whole(samples), [word("x", 0, 0.02, DOUBTFUL)]) == []


def test_no_word_of_real_speech_is_dropped(
    clips: list[Clip], decoder: FfmpegDecoder, recognizer: NemoRecognizer
) -> None:
    chunks = [whole(decode(decoder, clip.path)) for clip in clips[:20]]
    told = [recognizer.recognize([chunk])[0] for chunk in chunks]

    assert sum(map(len, told)) > 100
    for chunk, words in zip(chunks, told, strict=True):
        assert heard_words(chunk, words) == words


# Digital silence never reaches the model.
@pytest.mark.parametrize("sound", [hiss(), hiss(30), hum()])
def test_the_model_says_nothing_where_nothing_is_said(
    recognizer: NemoRecognizer, sound: Pcm
) -> None:
    chunk = whole(sound)
    imagined = recognizer.recognize([chunk])[0]

    assert imagined, "the gate has nothing to do"
    assert heard_words(chunk, imagined) == []
