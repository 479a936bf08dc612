"""Measure where a chunk holds speech; run a voice activity detector only where that is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from parakeet_api.transcript import SAMPLE_RATE, Chunk, Pcm

STEP = 512
"""Samples per probability of the detector, 32 ms."""
SPEECH = 0.5
"""Probability from which a step is speech: the detector's default threshold. It is not critical: of
9,852 words in 46 minutes of speech, 7 have no step above 0.5 within a quarter second, and 6 none
above 0.05. A minute each of hiss, pink noise, dither, hum, two kinds of synthetic music and
applause never exceeds 0.15; the onset of a buzz reaches 0.31."""
_SYLLABLE = 4
"""Shortest run of steps that counts as speech, 0.13 s."""
_LEAD = SAMPLE_RATE
"""Samples fed to the detector before a range, to initialise its recurrent state."""
_TARGET_PEAK = 0.35
"""Peak, as a share of full scale, to which a quiet window is amplified: the detector misses very
quiet speech. Amplified noise is still not taken for speech."""
_MAX_GAIN = 100.0


class SpeechDetector(Protocol):
    """A voice activity detector."""

    def probabilities(self, samples: Pcm) -> NDArray[np.float32]:
        """Return the probability of speech of each `STEP` samples, shape `(ceil(n / STEP),)`."""
        ...


class SpeechActivity:
    """The speech in one chunk, measured where it is asked for, and kept."""

    def __init__(self, chunk: Chunk, detector: SpeechDetector) -> None:
        self._chunk = chunk
        self._detector = detector
        self._probabilities: NDArray[np.float32] | None = None
        """Probability of each step of the chunk; NaN = not measured yet."""

    def measure(self, spans: Sequence[tuple[float, float]]) -> None:
        """Measure spans of the recording, in seconds, in as few passes as possible."""
        for start, end in _merged([self._steps(*span) for span in spans]):
            self._measure_steps(start, end)

    def speech_s(self, start: float, end: float) -> float:
        """Return the seconds of speech between two times of the recording, in seconds."""
        return float(np.count_nonzero(self._measured(start, end) >= SPEECH)) * STEP / SAMPLE_RATE

    def speech_between(self, start: float, end: float) -> tuple[float, float]:
        """Return start and end of the speech within a span; the span itself if it has none.

        Speech shorter than a syllable does not count: it may be the end of the previous word.
        """
        first, _ = self._steps(start, end)
        runs = _runs(self._measured(start, end) >= SPEECH)
        runs = runs[runs[:, 1] - runs[:, 0] >= _SYLLABLE]
        return self._times(first, runs[0, 0], runs[-1, 1]) if len(runs) else (start, end)

    def longest_pause(self, start: float, end: float) -> tuple[float, float] | None:
        """Return start and end of the longest time without speech within a span, in seconds."""
        first, _ = self._steps(start, end)
        runs = _runs(self._measured(start, end) < SPEECH)
        if not len(runs):
            return None
        return self._times(first, *runs[np.argmax(runs[:, 1] - runs[:, 0])])

    def _times(self, first: int, begin: int, end: int) -> tuple[float, float]:
        """Return the times of two steps, counted from the step `first`, in seconds."""
        offset = self._chunk.start + first * STEP
        return (offset + int(begin) * STEP) / SAMPLE_RATE, (offset + int(end) * STEP) / SAMPLE_RATE

    def _measured(self, start: float, end: float) -> NDArray[np.float32]:
        """Return the probabilities of the steps that a span in seconds touches."""
        first, last = self._steps(start, end)
        probabilities = self._measure_steps(first, last)
        return probabilities[first:last]

    def _steps(self, start: float, end: float) -> tuple[int, int]:
        """Return the first step of a span in seconds and the one after its last."""
        size = -(-len(self._chunk.samples) // STEP)
        first = int((start * SAMPLE_RATE - self._chunk.start) // STEP)
        last = -int(-(end * SAMPLE_RATE - self._chunk.start) // STEP)
        return min(max(0, first), size), min(max(0, last), size)

    def _measure_steps(self, first: int, last: int) -> NDArray[np.float32]:
        """Measure the steps of a range that are not yet; return the probabilities of all steps."""
        samples = self._chunk.samples
        if self._probabilities is None:
            self._probabilities = np.full(-(-len(samples) // STEP), np.nan, np.float32)
        unmeasured = np.flatnonzero(np.isnan(self._probabilities[first:last]))
        if len(unmeasured):
            begin, end = first + int(unmeasured[0]), first + int(unmeasured[-1]) + 1
            window, lead = _with_lead_in(samples, begin, end)
            window = amplified(window, peak_of(window))
            self._probabilities[begin:end] = self._detector.probabilities(window)[lead:]
        return self._probabilities


def _with_lead_in(samples: Pcm, begin: int, end: int) -> tuple[Pcm, int]:
    """Cut out a range of steps with the lead-in before it; return also the lead-in's steps.

    At the start of a chunk the lead-in is its mirror image: the detector would take the sudden
    onset of a hum for 0.2 s of speech.
    """
    steps = _LEAD // STEP
    before = min(begin, steps)
    mirrored = samples[: min(steps - before, len(samples) // STEP) * STEP][::-1]
    window = np.concatenate([mirrored, samples[(begin - before) * STEP : end * STEP]])
    return window, len(mirrored) // STEP + before


def peak_of(samples: Pcm) -> int:
    """Return the largest absolute value, 1 for digital silence."""
    # Not np.abs: the lowest int16 has no positive counterpart.
    return max(int(samples.max(initial=0)), -int(samples.min(initial=0)), 1)


def amplified(samples: Pcm, peak: float) -> Pcm:
    """Amplify quiet audio, whose loudest sample is `peak`, for the detector."""
    gain = min(_MAX_GAIN, _TARGET_PEAK * 32768 / peak)
    return (samples * np.float32(gain)).astype(np.int16) if gain > 1 else samples


def _runs(flags: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return begin and end of each run of true flags, shape `(runs, 2)`."""
    changes = np.diff(np.concatenate(([0], flags.astype(np.int8), [0])))
    return np.flatnonzero(changes).reshape(-1, 2)


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge ranges of steps whose distance is below the detector's lead-in."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start - merged[-1][1] <= _LEAD // STEP:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
