from __future__ import annotations

import numpy as np
import pytest

from parakeet_api.audio.levels import level_of
from parakeet_api.transcript import SAMPLE_RATE


@pytest.mark.parametrize("block_samples", [1, 159, 4096, 100_001])
def test_a_level_does_not_depend_on_the_blocks_that_the_sound_arrives_in(
    block_samples: int,
) -> None:
    rng = np.random.default_rng(3)
    envelope = np.abs(np.sin(np.arange(2 * SAMPLE_RATE) / 3000)).astype(np.float32)
    sound = rng.normal(0, 0.001, 2 * SAMPLE_RATE).astype(np.float32) * envelope

    blocks = [sound[at : at + block_samples] for at in range(0, len(sound), block_samples)]

    assert level_of(blocks) == level_of([sound])
