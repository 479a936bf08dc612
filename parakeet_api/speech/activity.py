"""Where a chunk holds speech: a voice activity detector, asked on suspicion alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from parakeet_api.transcript import SAMPLE_RATE, Chunk, Pcm

STEP = 512
"""Samples, 32 ms: what one probability of the detector stands for."""
SPEECH = 0.5
"""Probability from which a step is speech: the detector's own threshold. It is not critical: of
9,852 words in 46 minutes of speech, 7 have no step above 0.5 within a quarter second, and 6 none
above 0.05; a minute each of hiss, pink noise, dither, a hum, two kinds of synthetic music and
applause never exceed 0.15, a buzz 0.31 where it sets in."""
_LEAD = SAMPLE_RATE
"""The detector listens so long before what it is asked about: it remembers what came before."""
_LOUD = 0.35
"""Share of full scale that the peaks of a window are raised to: the detector does not know very
quiet speech. Noise stays noise when it is raised."""
_MAX_GAIN = 100.0


class SpeechDetector(Protocol):
    """Tells speech from other sounds."""

    def probabilities(self, samples: Pcm) -> NDArray[np.float32]:
        """Give the probability of speech for each `STEP` of samples; shape `(ceil(n / STEP),)`."""
        ...


class SpeechActivity:
    """The speech in one chunk, measured where it is asked for, and once."""

    def __init__(self, chunk: Chunk, detector: SpeechDetector) -> None:
        self._chunk = chunk
        self._detector = detector
        self._known: NDArray[np.float32] | None = None
        """Probabilities by step of the chunk; NaN where nothing is known yet."""

    def measure(self, moments: Sequence[tuple[float, float]]) -> None:
        """Look at some stretches of the recording, seconds, in as few passes as possible."""
        for start, end in _merged([self._steps(*moment) for moment in moments]):
            self._look_at(start, end)

    def speech_s(self, start: float, end: float) -> float:
        """Give the seconds of speech between two moments of the recording."""
        return float(np.count_nonzero(self._at(start, end) >= SPEECH)) * STEP / SAMPLE_RATE

    def speech_between(self, start: float, end: float) -> tuple[float, float]:
        """Give where speech begins and ends between two moments; the moments where it is none."""
        first, _ = self._steps(start, end)
        steps = np.flatnonzero(self._at(start, end) >= SPEECH)
        if not len(steps):
            return start, end
        offset = self._chunk.start
        return (
            (offset + (first + int(steps[0])) * STEP) / SAMPLE_RATE,
            (offset + (first + int(steps[-1]) + 1) * STEP) / SAMPLE_RATE,
        )

    def _at(self, start: float, end: float) -> NDArray[np.float32]:
        first, last = self._steps(start, end)
        known = self._look_at(first, last)
        return known[first:last]

    def _steps(self, start: float, end: float) -> tuple[int, int]:
        size = -(-len(self._chunk.samples) // STEP)
        first = int((start * SAMPLE_RATE - self._chunk.start) // STEP)
        last = -int(-(end * SAMPLE_RATE - self._chunk.start) // STEP)
        return min(max(0, first), size), min(max(0, last), size)

    def _look_at(self, first: int, last: int) -> NDArray[np.float32]:
        samples = self._chunk.samples
        if self._known is None:
            self._known = np.full(-(-len(samples) // STEP), np.nan, np.float32)
        unknown = np.flatnonzero(np.isnan(self._known[first:last]))
        if len(unknown):
            begin, end = first + int(unknown[0]), first + int(unknown[-1]) + 1
            lead = min(begin, _LEAD // STEP)
            window = samples[(begin - lead) * STEP : end * STEP]
            self._known[begin:end] = self._detector.probabilities(_raised(window))[lead:]
        return self._known


def _raised(samples: Pcm) -> Pcm:
    """Make quiet sound louder."""
    largest = max(int(samples.max(initial=0)), -int(samples.min(initial=0)), 1)
    gain = min(_MAX_GAIN, _LOUD * 32768 / largest)
    return (samples * np.float32(gain)).astype(np.int16) if gain > 1 else samples


def _merged(stretches: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join stretches that are closer than what the detector listens to before each."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(stretches):
        if merged and start - merged[-1][1] <= _LEAD // STEP:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
