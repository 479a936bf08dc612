"""Where people begin and stop to speak, by the probabilities of a voice activity detector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from parakeet_api.realtime.session_config import TurnDetection
from parakeet_api.speech.activity import STEP
from parakeet_api.transcript import SAMPLE_RATE, Pcm

_STEPS = 6
"""Asked at a time, 192 ms of sound: each call costs 2 ms, however few steps it has."""
_MIN_STEPS = 2
"""Steps of speech that begin a turn, 64 ms: a click or a hum that sets in has one."""
_HYSTERESIS = 0.15
"""Speech goes on down to so much below the threshold: Silero's own rule."""
_PEAK_DECAY = 0.98
"""A step. Quiet sound is made louder for the detector, by the loudest of the last seconds."""
_LOUD = 0.35 * 32768
_MAX_GAIN = 100.0


class Listener(Protocol):
    """Tells speech from other sounds, bit by bit."""

    def hear(self, samples: Pcm) -> NDArray[np.float32]:
        """Return the probability of speech for each of the next steps of `STEP` samples."""
        ...


@dataclass(frozen=True, slots=True)
class Edge:
    """A moment at which a turn begins or ends."""

    begins: bool
    at: int
    """Sample at which speech begins, or at which the silence after it was long enough."""


class SpeechEdges:
    """Listens to the sound of a session."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._rest: Pcm = np.zeros(0, np.int16)
        self._peak = 1.0
        self._heard = 0
        """One past the last sample that the detector has heard."""
        self._run = 0
        """Steps of speech in a row, before a turn."""
        self._is_speaking = False
        self.speech_end = 0
        """One past the last sample of speech."""

    def hear(self, samples: Pcm, detection: TurnDetection) -> list[Edge]:
        """Take what was heard next; give the turns' edges in it."""
        self._rest = np.concatenate([self._rest, samples])
        size = len(self._rest) // (_STEPS * STEP) * (_STEPS * STEP)
        if not size:
            return []
        steps, self._rest = self._rest[:size], self._rest[size:]
        probabilities = self._listener.hear(self._raised(steps))
        edges = [self._step(float(p), detection) for p in probabilities]
        return [edge for edge in edges if edge is not None]

    def end_turn(self) -> None:
        """Forget that someone is speaking: the turn was ended otherwise."""
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
        loudest = max(1.0, float(np.abs(samples.astype(np.int32)).max()))
        self._peak = max(loudest, self._peak * _PEAK_DECAY ** (len(samples) // STEP))
        gain = min(_MAX_GAIN, _LOUD / self._peak)
        return (samples * np.float32(gain)).astype(np.int16) if gain > 1 else samples
