"""Detect the start and end of speech from the probabilities of a voice activity detector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from parakeet_api.realtime.session_config import TurnDetection
from parakeet_api.speech.activity import STEP, amplified, peak_of
from parakeet_api.transcript import SAMPLE_RATE, Pcm

_STEPS = 6
"""Steps per call of the detector, 192 ms of audio: each call has a fixed cost of 2 ms."""
_MIN_STEPS = 2
"""Steps of speech that start a turn, 64 ms: a click or the onset of a hum has one."""
_HYSTERESIS = 0.15
"""Hysteresis: speech continues down to this much below the threshold, as in Silero's code."""
_PEAK_DECAY = 0.98
"""Decay per step. Quiet audio is amplified for the detector by the peak of the last seconds."""


class Listener(Protocol):
    """Detects speech in streamed audio."""

    def hear(self, samples: Pcm) -> NDArray[np.float32]:
        """Return the probability of speech for each of the next steps of `STEP` samples."""
        ...


@dataclass(frozen=True, slots=True)
class Edge:
    """The start or end of speech."""

    begins: bool
    at: int
    """Sample at which speech starts, or at which the silence after it is long enough."""


class SpeechEdges:
    """Detects the edges of speech in a session's audio."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._rest: Pcm = np.zeros(0, np.int16)
        self._peak = 1.0
        self._heard = 0
        """Position after the last sample that the detector has processed."""
        self._run = 0
        """Steps of speech in a row, before a turn."""
        self._is_speaking = False
        self.speech_end = 0
        """Position after the last sample of speech."""

    def hear(self, samples: Pcm, detection: TurnDetection) -> list[Edge]:
        """Process the next samples; return the edges of speech in them."""
        self._rest = np.concatenate([self._rest, samples])
        size = len(self._rest) // (_STEPS * STEP) * (_STEPS * STEP)
        if not size:
            return []
        steps, self._rest = self._rest[:size], self._rest[size:]
        probabilities = self._listener.hear(self._raised(steps))
        edges = [self._step(float(p), detection) for p in probabilities]
        return [edge for edge in edges if edge is not None]

    def end_turn(self) -> None:
        """Reset after a turn that was ended by other means."""
        self._is_speaking, self._run = False, 0

    def _step(self, probability: float, detection: TurnDetection) -> Edge | None:
        begin, self._heard = self._heard, self._heard + STEP
        lowest = detection.threshold - (_HYSTERESIS if self._is_speaking else 0.0)
        if probability >= max(lowest, _HYSTERESIS / 2):
            self.speech_end = self._heard
            self._run += 1
            if self._is_speaking or self._run < _MIN_STEPS:
                return None
            self._is_speaking = True
            return Edge(begins=True, at=begin - (self._run - 1) * STEP)
        self._run = 0
        silence = detection.silence_duration_ms * SAMPLE_RATE // 1000
        if self._is_speaking and self._heard - self.speech_end >= silence:
            self._is_speaking = False
            return Edge(begins=False, at=self._heard)
        return None

    def _raised(self, samples: Pcm) -> Pcm:
        self._peak = max(peak_of(samples), self._peak * _PEAK_DECAY ** (len(samples) // STEP))
        return amplified(samples, self._peak)
