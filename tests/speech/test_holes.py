from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import jiwer
import numpy as np
import pytest
from conftest import decode, whole

from benchmarks.fidelity import SPEECH, Policy, normalize
from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.model.voice_activity import SileroDetector
from parakeet_api.speech.holes import Span, SpeechWithoutWords, complete_words
from parakeet_api.speech.stitching import Stitcher
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Pcm, Word


@pytest.fixture(scope="module")
def detector() -> Iterator[SileroDetector]:
    detector = SileroDetector()
    yield detector
    detector.close()


@pytest.fixture(scope="module", params=["long-pauses", "long-dense"])
def samples(request: pytest.FixtureRequest, decoder: FfmpegDecoder) -> Pcm:
    """Three minutes of speech."""
    return decode(decoder, SPEECH / f"{request.param}.ogg")[: 180 * SAMPLE_RATE]


@pytest.fixture(scope="module")
def recognized(
    samples: Pcm, recognizer: NemoRecognizer, detector: SileroDetector
) -> list[tuple[Chunk, list[Word]]]:
    """Return chunks with their words, in which the model skipped no speech."""
    chunks = list(Policy(0.5, 5, align=True).chunks(samples))
    return [
        (
            chunk,
            complete_words(
                chunk,
                recognizer.recognize([chunk])[0],
                detector=detector,
                recognize=recognizer.recognize,
            ).words,
        )
        for chunk in chunks
    ]


def transcribe(
    recognized: Sequence[tuple[Chunk, list[Word]]],
    *,
    detector: SileroDetector,
    recognize: Callable[[Sequence[Chunk]], list[list[Word]]],
) -> tuple[list[Word], list[Span]]:
    """Process recognised chunks as the pipeline does."""
    stitcher, without_words = Stitcher(sentence_boundary_threshold_s=0.5), SpeechWithoutWords()
    words: list[Word] = []
    for chunk, found in recognized:
        completed = complete_words(chunk, found, detector=detector, recognize=recognize)
        words.extend(stitcher.add(chunk, completed.words))
        without_words.add(completed.without_words)
    words.extend(stitcher.finish())
    without_words.remove_covered(words)
    return words, without_words.spans()


def texts(words: Sequence[Word]) -> list[str]:
    return [normalize(word.text) or "-" for word in words]


def nothing(chunks: Sequence[Chunk]) -> list[list[Word]]:
    """Return no words, as a transducer that emits only blanks."""
    return [[] for _ in chunks]


def test_without_holes_nothing_is_decoded_again_and_nothing_changes(
    recognized: list[tuple[Chunk, list[Word]]], detector: SileroDetector
) -> None:
    for chunk, words in recognized:
        decoded: list[Chunk] = []

        def recognize(parts: Sequence[Chunk], decoded: list[Chunk] = decoded) -> list[list[Word]]:
            decoded.extend(parts)
            return nothing(parts)

        completed = complete_words(chunk, words, detector=detector, recognize=recognize)

        assert completed.words == words
        assert completed.without_words == ()
        assert decoded == []


@pytest.mark.parametrize("seed", range(3))
def test_skipped_speech_is_recovered_once(
    seed: int,
    recognized: list[tuple[Chunk, list[Word]]],
    recognizer: NemoRecognizer,
    detector: SileroDetector,
) -> None:
    draw = random.Random(seed)
    begins = [draw.uniform(30 * n, 30 * n + 10) for n in range(6)]
    stuck = [(begin, begin + draw.uniform(2, 20)) for begin in begins]

    def is_lost(word: Word) -> bool:
        return any(begin <= word.middle < end for begin, end in stuck)

    complete, _ = transcribe(recognized, detector=detector, recognize=nothing)
    holed = [(chunk, [w for w in words if not is_lost(w)]) for chunk, words in recognized]

    found, without_words = transcribe(holed, detector=detector, recognize=recognizer.recognize)

    lost = [n for n, word in enumerate(complete) if is_lost(word)]
    equal = {
        n
        for step in jiwer.process_words(
            " ".join(texts(complete)), " ".join(texts(found))
        ).alignments[0]
        if step.type == "equal"
        for n in range(step.ref_start_idx, step.ref_end_idx)
    }
    assert len(lost) > 40
    assert sum(n in equal for n in lost) >= 0.95 * len(lost)
    assert len(found) <= len(complete)
    assert without_words == []


def test_speech_without_words_is_reported_once_with_its_times(
    recognized: list[tuple[Chunk, list[Word]]], detector: SileroDetector
) -> None:
    # Across the first seam.
    seam = recognized[0][0].owned_end / SAMPLE_RATE
    begin, end = seam - 6, seam + 6
    holed = [
        (chunk, [w for w in words if not begin <= w.middle < end]) for chunk, words in recognized
    ]

    found, without_words = transcribe(holed, detector=detector, recognize=nothing)

    assert without_words
    assert sum(span.end - span.start for span in without_words) > 5
    for span in without_words:
        assert begin - 1 < span.start < span.end < end + 1
        assert not [w for w in found if span.start < w.middle < span.end]


def test_doubtful_words_do_not_fill_a_hole(
    recognized: list[tuple[Chunk, list[Word]]],
    recognizer: NemoRecognizer,
    detector: SileroDetector,
) -> None:
    def guess(chunks: Sequence[Chunk]) -> list[list[Word]]:
        return [
            [replace(w, tokens=tuple(replace(t, logprob=-0.9) for t in w.tokens)) for w in words]
            for words in recognizer.recognize(chunks)
        ]

    chunk, words = recognized[1]
    begin = chunk.owned_start / SAMPLE_RATE + 5
    left = [w for w in words if not begin <= w.middle < begin + 10]

    completed = complete_words(chunk, left, detector=detector, recognize=guess)

    assert completed.words == left
    assert completed.recovered == 0
    assert completed.without_words


def music(seconds: int) -> Pcm:
    """Play chords of decaying tones with some vibrato, and a beat."""
    draw = np.random.default_rng(5)
    sound = np.zeros((seconds + 2) * SAMPLE_RATE)
    for beat in range(4 * seconds):
        at = beat * SAMPLE_RATE // 4
        time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
        for note in draw.choice([0, 2, 4, 5, 7, 9, 11], 2):
            pitch = 220 * 2 ** (note / 12)
            for harmonic in range(1, 6):
                phase = 2 * np.pi * pitch * harmonic * time + 0.1 * np.sin(2 * np.pi * 5 * time)
                sound[at : at + SAMPLE_RATE] += np.sin(phase) / harmonic * np.exp(-3 * time)
        sound[at : at + 800] += draw.normal(0, 1, 800) * np.exp(-np.arange(800) / 200)
    sound = sound[: seconds * SAMPLE_RATE]
    pcm: Pcm = (sound / np.abs(sound).max() * 12000).astype(np.int16)
    return pcm


def applause(seconds: int) -> Pcm:
    draw = np.random.default_rng(7)
    sound = draw.normal(0, 60, seconds * SAMPLE_RATE)
    for _ in range(60 * seconds):
        at = draw.integers(0, len(sound) - 700)
        sound[at : at + 700] += draw.normal(0, 1500, 700) * np.exp(-np.arange(700) / 100)
    return np.clip(sound, -32000, 32000).astype(np.int16)


@pytest.mark.parametrize("sound", [music(20), applause(20)], ids=["music", "applause"])
def test_music_and_applause_are_no_holes(
    sound: Pcm, recognizer: NemoRecognizer, detector: SileroDetector
) -> None:
    chunk = whole(sound)
    words = recognizer.recognize([chunk])[0]

    completed = complete_words(chunk, words, detector=detector, recognize=recognizer.recognize)

    assert completed.recovered == 0
    assert completed.without_words == ()
    assert len(completed.words) <= len(words) / 3


def test_speech_with_words_in_the_neighbour_is_not_reported() -> None:
    without_words = SpeechWithoutWords()
    without_words.add([Span(8.0, 10.0)])
    without_words.add([Span(10.0, 11.0), Span(20.0, 22.0)])

    without_words.remove_covered(
        [Word("here", 8.2, 8.6), Word("and", 9.2, 9.6), Word("there", 10.4, 10.6)]
    )

    assert without_words.spans() == [Span(20.0, 22.0)]
