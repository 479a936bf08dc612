from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import Clip, decode

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.model.voice_activity import SileroDetector, weights_file
from parakeet_api.speech.activity import SPEECH, STEP
from parakeet_api.transcript import SAMPLE_RATE, Pcm


@pytest.fixture
def detector() -> Iterator[SileroDetector]:
    detector = SileroDetector()
    yield detector
    detector.close()


def test_it_answers_as_its_own_network_does_step_by_step(
    detector: SileroDetector, clips: list[Clip], decoder: FfmpegDecoder
) -> None:
    samples = decode(decoder, clips[0].path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        network = torch.jit.load(str(weights_file().with_name("silero_vad.jit")))  # type: ignore[no-untyped-call]
    whole = samples[: len(samples) // STEP * STEP].astype(np.float32) / 32768
    with torch.inference_mode():
        expected = [
            float(network(torch.from_numpy(step), SAMPLE_RATE)) for step in whole.reshape(-1, STEP)
        ]

    answers = detector.probabilities(samples)

    assert len(answers) == -(-len(samples) // STEP)
    assert answers[: len(expected)] == pytest.approx(np.array(expected), abs=1e-4)
    assert np.mean(answers > SPEECH) > 0.5


@pytest.mark.parametrize("level", [2, 300, 6000])
def test_hiss_is_no_speech(detector: SileroDetector, level: int) -> None:
    hiss = np.random.default_rng(1).normal(0, level, 10 * SAMPLE_RATE).astype(np.int16)

    assert detector.probabilities(hiss).max() < 0.2


@pytest.mark.parametrize("length", [0, 1, STEP - 1, STEP, STEP + 1])
def test_any_length_has_an_answer_for_each_step(detector: SileroDetector, length: int) -> None:
    samples: Pcm = np.ones(length, np.int16)

    assert len(detector.probabilities(samples)) == -(-length // STEP)


def test_asking_leaves_torchs_number_of_threads_alone(detector: SileroDetector) -> None:
    before = torch.get_num_threads()

    detector.probabilities(np.ones(SAMPLE_RATE, np.int16))

    assert torch.get_num_threads() == before


def test_listening_bit_by_bit_hears_the_same(detector: SileroDetector) -> None:
    samples = (np.random.default_rng(1).normal(size=40 * STEP) * 5000).astype(np.int16)
    listener = detector.listen()

    bits = [listener.hear(samples[s : s + 8 * STEP]) for s in range(0, len(samples), 8 * STEP)]

    assert np.concatenate(bits) == pytest.approx(detector.probabilities(samples), abs=1e-5)
