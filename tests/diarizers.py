"""Diarizers whose output is known exactly: by the time, or by the pitch of tones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from parakeet_api.speech.diarization import FloatArray
from parakeet_api.transcript import SAMPLE_RATE, Pcm

FRAME_S = 0.08
FRAME = round(FRAME_S * SAMPLE_RATE)
SPEAKERS = 4
DELAY_FRAMES = 25
"""As a model with context after each frame, it holds frames back."""


class FrameStream:
    """A stream that judges each frame by its position and samples."""

    def __init__(self, judge: Callable[[int, FloatArray], FloatArray]) -> None:
        self._judge = judge
        self._samples: FloatArray = np.zeros(0, np.float32)
        self._frames: list[FloatArray] = []
        self._given = self._judged = 0
        self.is_closed = False

    def add(self, samples: FloatArray) -> FloatArray:
        assert samples.dtype == np.float32
        assert samples.ndim == 1
        self._samples = np.concatenate([self._samples, samples])
        while len(self._samples) >= FRAME:
            self._frames.append(self._judge(self._judged, self._samples[:FRAME]))
            self._samples = self._samples[FRAME:]
            self._judged += 1
        return self._give(len(self._frames) - DELAY_FRAMES)

    def finish(self) -> FloatArray:
        return self._give(len(self._frames))

    def close(self) -> None:
        self.is_closed = True

    def _give(self, count: int) -> FloatArray:
        given, self._frames = self._frames[: max(0, count)], self._frames[max(0, count) :]
        return np.array(given, np.float32).reshape(-1, SPEAKERS)


@dataclass
class Scripted:
    """Speakers by the time: `(start, end, speaker)` in seconds."""

    turns: Sequence[tuple[float, float, int]]
    frame_seconds: float = FRAME_S
    max_speakers: int = SPEAKERS
    streams: list[FrameStream] = field(default_factory=list)

    def start(self) -> FrameStream:
        self.streams.append(FrameStream(self._judge))
        return self.streams[-1]

    def _judge(self, frame: int, samples: FloatArray) -> FloatArray:
        middle = (frame + 0.5) * FRAME_S
        heard = np.full(SPEAKERS, 0.01, np.float32)
        for start, end, speaker in self.turns:
            if start <= middle < end:
                heard[speaker] = 0.98
        return heard


class Tones:
    """Speakers by the pitch of a tone, numbered as they arrive; silence is nobody."""

    frame_seconds = FRAME_S
    max_speakers = SPEAKERS

    def start(self) -> FrameStream:
        pitches: list[int] = []

        def judge(_: int, samples: FloatArray) -> FloatArray:
            heard = np.zeros(SPEAKERS, np.float32)
            if np.abs(samples).max() > 0.05:
                pitch = int(np.argmax(np.abs(np.fft.rfft(samples))))
                if pitch not in pitches and len(pitches) < SPEAKERS:
                    pitches.append(pitch)
                if pitch in pitches:
                    heard[pitches.index(pitch)] = 0.97
            return heard

        return FrameStream(judge)


def tone(pitch_hz: float, seconds: float) -> Pcm:
    """Make a tone; 100, 200, ... Hz are whole waves in a frame."""
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (8000 * np.sin(2 * np.pi * pitch_hz * times)).astype(np.int16)
