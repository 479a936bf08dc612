from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from parakeet_api.audio.timeline import Frames
from parakeet_api.audio.track_decoding import _with_end
from parakeet_api.transcript import SAMPLE_RATE

MIN_LAST = SAMPLE_RATE // 10


@pytest.mark.parametrize("size", [1, 1024, MIN_LAST, 5000])
def test_all_samples_pass_and_the_last_block_is_not_short(size: int) -> None:
    samples = np.arange(3 * SAMPLE_RATE + 7, dtype=np.int32)[:, np.newaxis]
    blocks = [samples[at : at + size] for at in range(0, len(samples), size)]

    passed = list(_with_end(iter(blocks)))

    assert np.array_equal(np.concatenate([block for block, _ in passed]), samples)
    assert [at_end for _, at_end in passed] == [False] * (len(passed) - 1) + [True]
    assert len(passed[-1][0]) >= MIN_LAST


def test_short_blocks_are_passed_on_as_they_come() -> None:
    """Such as those of many channels, of which ffmpeg writes 32 KiB at a time."""
    taken = 0

    def short() -> Iterator[Frames]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield np.zeros((1024, 8), np.float32)

    next(_with_end(short()))

    assert taken == 2
