"""Turns start and end where the detector finds speech and silence."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from parakeet_api.realtime.session_config import TurnDetection
from parakeet_api.realtime.turns import Edge, SpeechEdges
from parakeet_api.speech.activity import STEP
from parakeet_api.transcript import Pcm

LOUD = 28_000


class Levels:
    """A fake detector: loud audio is speech, half as loud audio is uncertain."""

    def hear(self, samples: Pcm) -> NDArray[np.float32]:
        peaks = samples.reshape(-1, STEP).max(axis=1)
        probabilities: NDArray[np.float32] = (peaks / LOUD).astype(np.float32)
        return probabilities


def sound(*parts: tuple[int, int]) -> Pcm:
    """Make steps of constant levels."""
    return np.concatenate([np.full(steps * STEP, level, np.int16) for steps, level in parts])


def edges_of(samples: Pcm, detection: TurnDetection, *, size: int = 1000) -> list[Edge]:
    edges = SpeechEdges(Levels())
    found: list[Edge] = []
    for start in range(0, len(samples), size):
        found += edges.hear(samples[start : start + size], detection)
    return found


@pytest.mark.parametrize("size", [1, 160, 2400, 10**6])
def test_a_turn_ends_after_enough_silence(size: int) -> None:
    if size == 1:
        size = 37
    said = sound((10, 0), (20, LOUD), (5, 0), (20, LOUD), (60, 0))

    found = edges_of(said, TurnDetection(silence_duration_ms=320), size=size)

    assert found == [Edge(begins=True, at=10 * STEP), Edge(begins=False, at=65 * STEP)]


def test_a_click_does_not_start_a_turn() -> None:
    assert edges_of(sound((10, 0), (1, LOUD), (40, 0)), TurnDetection()) == []


def test_a_turn_starts_at_the_threshold_and_continues_slightly_below_it() -> None:
    doubtful, clear = round(0.42 * LOUD), LOUD
    said = sound((6, doubtful), (6, clear), (60, doubtful), (60, 0))

    found = edges_of(said, TurnDetection(threshold=0.5, silence_duration_ms=320))

    assert found == [Edge(begins=True, at=6 * STEP), Edge(begins=False, at=82 * STEP)]


def test_a_new_turn_can_start_after_a_reset() -> None:
    edges = SpeechEdges(Levels())
    detection = TurnDetection(silence_duration_ms=320)
    edges.hear(sound((12, LOUD)), detection)
    edges.end_turn()

    assert edges.hear(sound((12, LOUD)), detection) == [Edge(begins=True, at=12 * STEP)]
