"""Mix channels to mono without loss, even where channels cancel each other.

A balanced microphone in a stereo input yields two channels of opposite polarity: audible in stereo,
but silent in the mix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parakeet_api.audio.timeline import Frames, Gap
from parakeet_api.transcript import SAMPLE_RATE, Caveat

Mono = NDArray[Any]
"""Samples at `SAMPLE_RATE`, shape `(samples,)`: int16, or float32 whose full scale is 1. Where
channels are kept apart, shape `(samples, channels)`."""
Floats = NDArray[np.float32]

_CANCELLED = 0.25
"""Channels cancel each other if the power of the mix, relative to the mix of uncorrelated channels
of the same power, is below this. Equal channels have 2, one channel alone 1. Channels in antiphase
have 0.006 if they differ by 1 dB, 0.2 by 6 dB, less than 0.02 by one sample of 48 kHz."""
_MIN_CANCELLED = 0.1
"""Channels count as out of phase in a window if those of its tenths that the mix would cancel hold
more than this share of its power."""
_TENTHS = 10
"""Sections in which a window's power is measured."""
_AS_LOUD = 0.5
"""A channel of at least this share of the loudest one's power is kept."""
_BAND_RATE = 4000
"""Sample rate at which the speech band is measured."""
_FADE_S = 0.01
"""Length of the cross-fade between the mix and a single channel."""
_FULL_SCALE = np.float32(32768)
_MAX_FLOAT = 2.0**40
"""Bound of float samples: integers of 32 bits, stored without scaling, are below it. The square of
it is finite."""
_DAMAGED_NEARBY = 16
"""Samples before and after one beyond the bound that are damaged as well: of arbitrary bytes, every
third value is beyond it."""
_SILENT = 1e-10
"""Mean square, -100 dB: too quiet for a choice of channel."""


class Downmix:
    """Mix a recording's frames to mono, in windows of one second."""

    def __init__(self, rate: int = SAMPLE_RATE) -> None:
        """Start a recording with `rate` frames a second."""
        self._rate = rate
        self._pending: list[Frames] = []
        self._length = 0
        self._position = 0
        self._channel: int | None = None
        """The channel used instead of the mix; `None` = the mix is used."""
        self._cancelled: list[tuple[int, int]] = []
        """Windows in which the mix would have cancelled audio, as sample ranges."""

    def mix(self, pieces: Iterable[Frames | Gap]) -> Iterator[Mono]:
        """Yield mono blocks, shape `(samples,)`."""
        for piece in pieces:
            if isinstance(piece, Gap):
                yield from self._end()
                yield from silence(piece.samples)
                self._position += piece.samples
            elif piece.shape[1] == 1:
                self._position += len(piece)
                yield bounded(piece)[:, 0]
            else:
                self._pending.append(bounded(piece))
                self._length += len(piece)
                if self._length >= self._rate:
                    yield from self._whole_windows()
        yield from self._end()

    def caveats(self) -> list[Caveat]:
        """Report where channels were out of phase."""
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
        frames = np.concatenate(self._pending)
        whole = len(frames) - len(frames) % self._rate
        self._pending = [frames[whole:]]
        self._length = len(frames) - whole
        for start in range(0, whole, self._rate):
            yield self._mix_window(frames[start : start + self._rate])

    def _end(self) -> Iterator[Mono]:
        """Mix the remaining frames: the recording ends here, or a gap begins."""
        frames = np.concatenate(self._pending) if self._length else None
        self._pending, self._length = [], 0
        if frames is not None:
            yield self._mix_window(frames)

    def _mix_window(self, frames: Frames) -> Mono:
        channels = channels_of(frames)
        mix = channels[0] + channels[1] if len(channels) == 2 else channels.sum(axis=0)  # noqa: PLR2004
        mix *= np.float32(1 / len(channels))
        previous, self._channel = self._channel, self._better_channel(channels, mix)
        end = self._position + len(mix)
        if self._channel is not None:
            self._cancelled.append((self._position, end))
        self._position = end
        mixed: Mono = mix if self._channel is None else channels[self._channel].copy()
        if previous != self._channel:
            fading = mix if previous is None else channels[previous]
            _cross_fade(mixed, fading, round(_FADE_S * self._rate))
        return mixed if frames.dtype != np.int16 else np.rint(mixed * _FULL_SCALE).astype(np.int16)

    def _better_channel(self, channels: Floats, mix: Floats) -> int | None:
        """Choose a channel if the mix would cancel it; `None` = use the mix."""
        powers = [_powers(channel, self._rate) for channel in channels]
        means = [float(power.mean()) for power in powers]
        loudest = int(np.argmax(means))
        if not means[loudest] > _SILENT:
            return self._channel
        if self._channel is not None and means[self._channel] > _AS_LOUD * means[loudest]:
            # The channels may be of opposite polarity: a change would be audible.
            loudest = self._channel
        unrelated = np.sum(powers, axis=0) / len(powers) ** 2
        mixed = _powers(mix, self._rate)
        if not mixed.mean() > _CANCELLED * unrelated.mean():
            return loudest
        cancelled = unrelated[mixed <= _CANCELLED * unrelated].sum()
        return loudest if cancelled > _MIN_CANCELLED * unrelated.sum() else None


def bounded(frames: Frames) -> Frames:
    """Silence what no sound can be: floats of a damaged file may have any value.

    Most of such a section has values that are plausible, but too loud: left as they are, the level
    would be chosen by them, and everything else would be silent.
    """
    if frames.dtype == np.int16 or (frames.max() <= _MAX_FLOAT and frames.min() >= -_MAX_FLOAT):
        return frames
    wild = ~(np.abs(frames) <= _MAX_FLOAT).all(axis=1)
    is_damaged = np.convolve(wild, np.ones(2 * _DAMAGED_NEARBY + 1))[_DAMAGED_NEARBY:] > 0.5  # noqa: PLR2004
    sound: Frames = np.where(is_damaged[: len(frames), np.newaxis], 0, frames)
    return sound


def channels_of(frames: Frames) -> Floats:
    """Convert frames to floats, shape `(channels, samples)`."""
    channels = np.ascontiguousarray(frames.T, dtype=np.float32)
    return channels / _FULL_SCALE if frames.dtype == np.int16 else channels


def _powers(sound: Floats, rate: int) -> Floats:
    """Return the mean squares of the speech band in each tenth of a window, shape `(tenths,)`.

    Not of all frequencies: rumble and hum may be in phase where speech is not, and lossy codecs
    store high frequencies of both channels as one.
    """
    squares = speech_band(sound, rate) ** 2
    if not len(squares):
        # Less than a millisecond.
        return np.zeros(1, np.float32)
    tenth = max(1, len(squares) // _TENTHS)
    whole = squares[: len(squares) // tenth * tenth].reshape(-1, tenth)
    powers: Floats = whole.mean(axis=1)
    return powers


def speech_band(sound: Floats, rate: int) -> Floats:
    """Filter out about 300 to 2000 Hz, most of speech's power; the rate is about `_BAND_RATE`."""
    group = max(1, rate // _BAND_RATE)
    low = sound[: len(sound) // group * group].reshape(-1, group).mean(axis=1)
    band: Floats = low[1:] - low[:-1]
    return band


def _cross_fade(mixed: Floats, before: Floats, length: int) -> None:
    """Cross-fade, in place, from the previous channel or mix to the current one."""
    length = min(length, len(mixed))
    share = np.arange(length, dtype=np.float32) / length
    mixed[:length] = share * mixed[:length] + (1 - share) * before[:length]


def silence(samples: int, channels: int | None = None) -> Iterator[Mono]:
    """Yield silence in blocks of a minute; int16 zeros serve as floats too."""
    apart = () if channels is None else (channels,)
    for start in range(0, samples, 60 * SAMPLE_RATE):
        yield np.zeros((min(60 * SAMPLE_RATE, samples - start), *apart), np.int16)
