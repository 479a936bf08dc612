"""Mix channels to one, so that none is lost: also where two of them cancel each other.

A balanced microphone in a stereo socket gives one channel that is the other turned over: a person
with two ears hears it well, and the mix of both is silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parakeet_api.audio.timeline import Frames, Hole
from parakeet_api.transcript import SAMPLE_RATE, Caveat

Mono = NDArray[Any]
"""Samples at `SAMPLE_RATE`, shape `(samples,)`: int16, or float32 whose full scale is 1."""
Floats = NDArray[np.float32]

_CANCELLED = 0.25
"""Power that the mix has, beside what channels that have nothing to do with each other leave in it.
Equal channels have twice that power, and one alone has it once. Channels in antiphase that differ
by 1 dB leave 0.006 of it, by 6 dB 0.2, and by one sample of 48 kHz less than 0.02."""
_BAND_RATE = 4000
"""Samples a second that the band of speech is judged by."""
_FADE_S = 0.01
"""From one way to mix to another."""
_FULL_SCALE = np.float32(32768)
_WILD = 2.0**40
_SILENT = 1e-10
"""Mean square, -100 dB: nothing to judge by."""


class Downmix:
    """Mix a recording's frames, second by second."""

    def __init__(self, rate: int = SAMPLE_RATE) -> None:
        """Begin; `rate` is how many frames a second has."""
        self._rate = rate
        self._held: list[Frames] = []
        self._length = 0
        self._position = 0
        self._channel: int | None = None
        """The one that is taken alone; `None` = the mix."""
        self._cancelled: list[tuple[int, int]] = []
        """Stretches in which the mix would have cancelled sound, in samples."""

    def mix(self, pieces: Iterable[Frames | Hole]) -> Iterator[Mono]:
        """Give one channel; shape `(samples,)` each."""
        for piece in pieces:
            if isinstance(piece, Hole):
                yield from self._end()
                yield from silence(piece.samples)
                self._position += piece.samples
            elif piece.shape[1] == 1:
                self._position += len(piece)
                yield _tame(piece)[:, 0]
            else:
                self._held.append(_tame(piece))
                self._length += len(piece)
                if self._length >= self._rate:
                    yield from self._whole_windows()
        yield from self._end()

    def caveats(self) -> list[Caveat]:
        """Tell where channels were out of phase."""
        if not self._cancelled:
            return []
        start, end = self._cancelled[0][0], self._cancelled[-1][1]
        return [
            Caveat(
                "channels_out_of_phase",
                "Channels were out of phase and would have cancelled each other: one of them was"
                " used.",
                start / self._rate,
                end / self._rate,
            )
        ]

    def _whole_windows(self) -> Iterator[Mono]:
        frames = np.concatenate(self._held)
        whole = len(frames) - len(frames) % self._rate
        self._held = [frames[whole:]]
        self._length = len(frames) - whole
        for start in range(0, whole, self._rate):
            yield self._mix_window(frames[start : start + self._rate])

    def _end(self) -> Iterator[Mono]:
        """Mix what there is: the recording ends here, or a hole begins."""
        frames = np.concatenate(self._held) if self._length else None
        self._held, self._length = [], 0
        if frames is not None:
            yield self._mix_window(frames)

    def _mix_window(self, frames: Frames) -> Mono:
        channels = _channels(frames)
        mix = channels[0] + channels[1] if len(channels) == 2 else channels.sum(axis=0)  # noqa: PLR2004
        mix *= np.float32(1 / len(channels))
        before, self._channel = self._channel, self._better_channel(channels, mix)
        end = self._position + len(mix)
        if self._channel is not None:
            self._cancelled.append((self._position, end))
        self._position = end
        mixed: Mono = mix if self._channel is None else channels[self._channel].copy()
        if before != self._channel:
            fading = mix if before is None else channels[before]
            _fade_in(mixed, fading, round(_FADE_S * self._rate))
        return mixed if frames.dtype != np.int16 else np.rint(mixed * _FULL_SCALE).astype(np.int16)

    def _better_channel(self, channels: Floats, mix: Floats) -> int | None:
        """Choose a channel where the mix loses what is in it; `None` where the mix is as good."""
        powers = [_power(channel, self._rate) for channel in channels]
        loudest = int(np.argmax(powers))
        if not powers[loudest] > _SILENT:
            return self._channel
        unrelated = sum(powers) / len(powers) ** 2
        return None if _power(mix, self._rate) > _CANCELLED * unrelated else loudest


def _tame(frames: Frames) -> Frames:
    """Bound floats: in a file they can be anything, and their squares are taken."""
    if frames.dtype == np.int16 or (frames.max() <= _WILD and frames.min() >= -_WILD):
        return frames
    finite = np.nan_to_num(frames, nan=0.0, posinf=1.0, neginf=-1.0)
    bounded: Frames = np.clip(finite, -_WILD, _WILD)
    return bounded


def _channels(frames: Frames) -> Floats:
    """Give frames as floats, one row a channel, shape `(channels, samples)`."""
    channels = np.ascontiguousarray(frames.T, dtype=np.float32)
    return channels / _FULL_SCALE if frames.dtype == np.int16 else channels


def _power(sound: Floats, rate: int) -> float:
    """Give the mean square of what speech has most of, some 300 to 2000 Hz.

    Rumble and hum may be in phase where the speech is not, and lossy codecs make high tones so.
    """
    group = max(1, rate // _BAND_RATE)
    low = sound[: len(sound) // group * group].reshape(-1, group).mean(axis=1)
    steps = low[1:] - low[:-1]
    return float(np.dot(steps, steps)) / max(1, len(steps))


def _fade_in(mixed: Floats, before: Floats, length: int) -> None:
    """Let a window begin as the one before it was mixed."""
    length = min(length, len(mixed))
    share = np.arange(length, dtype=np.float32) / length
    mixed[:length] = share * mixed[:length] + (1 - share) * before[:length]


def silence(samples: int) -> Iterator[Mono]:
    """Give silence, in pieces of a minute; it is the same as floats."""
    for start in range(0, samples, 60 * SAMPLE_RATE):
        yield np.zeros(min(60 * SAMPLE_RATE, samples - start), np.int16)
