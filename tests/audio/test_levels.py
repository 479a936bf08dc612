from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from parakeet_api.audio.downmix import Mono
from parakeet_api.audio.levels import level_of, to_pcm
from parakeet_api.transcript import SAMPLE_RATE, Pcm


@pytest.mark.parametrize("block_samples", [1, 159, 4096, 100_001])
def test_a_level_does_not_depend_on_the_blocks_that_the_sound_arrives_in(
    block_samples: int,
) -> None:
    rng = np.random.default_rng(3)
    envelope = np.abs(np.sin(np.arange(2 * SAMPLE_RATE) / 3000)).astype(np.float32)
    sound = rng.normal(0, 0.001, 2 * SAMPLE_RATE).astype(np.float32) * envelope

    blocks = [sound[at : at + block_samples] for at in range(0, len(sound), block_samples)]

    assert level_of(blocks) == level_of([sound])


def converted(blocks: Iterator[Mono]) -> Iterator[Pcm]:
    return to_pcm(blocks, max_level=lambda: 1.0, measure=lambda: 0.001)


def test_silence_is_passed_on_before_the_recording_ends() -> None:
    """Hours of it would not fit into memory."""
    taken = 0

    def silence() -> Iterator[Mono]:
        nonlocal taken
        for _ in range(60):
            taken += 1
            yield np.zeros(SAMPLE_RATE, np.int16)

    blocks = converted(silence())

    assert len(next(blocks)) == 30 * SAMPLE_RATE
    assert taken == 30
    assert sum(map(len, blocks)) == 30 * SAMPLE_RATE


@pytest.mark.parametrize("silent_s", [0.5, 30, 47.3, 90])
@pytest.mark.parametrize("block_s", [0.1, 7, 100])
def test_silence_before_quiet_floats_changes_no_sample(silent_s: float, block_s: float) -> None:
    rng = np.random.default_rng(3)
    quiet = rng.normal(0, 0.0005, 40 * SAMPLE_RATE).astype(np.float32)
    silent, block = round(silent_s * SAMPLE_RATE), round(block_s * SAMPLE_RATE)
    silence = [np.zeros(min(block, silent - at), np.int16) for at in range(0, silent, block)]

    pcm = np.concatenate(list(converted(iter([*silence, quiet]))))

    whole = np.concatenate([np.zeros(silent, np.float32), quiet])
    assert np.array_equal(pcm, np.concatenate(list(converted(iter([whole])))))
    assert np.abs(pcm).max() > 5000
