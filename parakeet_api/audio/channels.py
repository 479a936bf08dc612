"""Mix a recording's channels, or keep them apart where each holds speech of its own.

    ask for    a call, one person a channel    one microphone, a film, a stereo mix
    mix        mixed                           mixed
    separate   apart                           apart
    auto       apart                           mixed

`auto` listens to the start: channels that hold different speech do not resemble each other at any
moment, whatever their levels; a voice that leaks from one into the other does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, combinations

import numpy as np

from parakeet_api.audio.downmix import (
    Downmix,
    Floats,
    Mono,
    bounded,
    channels_of,
    silence,
    speech_band,
)
from parakeet_api.audio.timeline import Frames, Gap
from parakeet_api.errors import InvalidRequestError
from parakeet_api.transcript import SAMPLE_RATE, ChannelChoice

MAX_CHANNELS = 8
"""Each is a recording of its own to the model."""
_OPENING_S = 120
"""`auto` decides after so much at the latest; it is kept in memory until then."""
_BAND_RATE = 4000
_MAX_LAG = _BAND_RATE // 40
"""Two microphones in one room hear a voice within 25 ms: 8 m."""
_ALIKE = 0.25
"""Cross-correlation of a second from which channels count as alike. In 129 s of eight people, two
voices have at most 0.14; a voice that leaks into the other channel at -30 dB has 0.9, and 0.5 or
more if there is noise of -60 dB."""
_AUDIBLE = 1e-8
"""Mean square of the speech band, -80 dB."""
_BELOW_LOUDEST = 0.01
"""A second 20 dB below the channel's loudest is a pause."""
_ENOUGH_S = 5
"""Seconds of own speech on each of two channels that decide."""
_LEAST_S = 1
"""The same at the end of a recording that is shorter than the opening."""
_MAX_SHARED = 0.1
"""Share of the seconds with speech in which channels may be alike."""


class Channels:
    """What becomes of one recording's channels; the parts of a recording share it."""

    def __init__(self, choice: ChannelChoice) -> None:
        self._choice: ChannelChoice = choice
        self.count: int | None = None
        """How many are apart, once that is known; `None` = they are mixed."""

    @property
    def keeps_all(self) -> bool:
        """Whether all channels are kept: nothing may mix them before."""
        return self._choice == "separate"

    def blocks(
        self, pieces: Iterable[Frames | Gap], downmix: Downmix, *, rate: int = SAMPLE_RATE
    ) -> Iterator[Mono]:
        """Yield a track's blocks: mixed, shape `(samples,)`; apart, `(samples, channels)`.

        Raises `InvalidRequestError` for more than `MAX_CHANNELS` to keep apart.
        """
        if self._choice == "auto":
            pieces = self._decided(iter(pieces), rate)
        if self._choice == "mix":
            yield from downmix.mix(pieces)
        else:
            yield from self._apart(pieces)

    def _apart(self, pieces: Iterable[Frames | Gap]) -> Iterator[Mono]:
        silent = 0
        for piece in pieces:
            if isinstance(piece, Gap):
                silent += piece.samples
                continue
            self._count(piece)
            yield from silence(silent, self.count)
            silent = 0
            yield self._fitted(bounded(piece))
        yield from silence(silent, self.count or 1)

    def _count(self, frames: Frames) -> None:
        if self.count is None:
            if frames.shape[1] > MAX_CHANNELS:
                raise InvalidRequestError(
                    f"channels=separate: the recording has {frames.shape[1]} channels, more than"
                    f" the {MAX_CHANNELS} that are transcribed apart.",
                    param="channels",
                )
            self.count = frames.shape[1]

    def _fitted(self, frames: Frames) -> Mono:
        """Return frames with the recording's number of channels, also where a part has another."""
        if frames.shape[1] == self.count:
            return frames
        mono = channels_of(frames).mean(axis=0, dtype=np.float32)
        return np.repeat(mono[:, np.newaxis], self.count or 1, axis=1)

    def _decided(self, pieces: Iterator[Frames | Gap], rate: int) -> Iterator[Frames | Gap]:
        """Decide about `auto`; return the pieces again."""
        comparison = _Comparison(rate)
        opening: list[Frames | Gap] = []
        samples = 0
        for piece in pieces:
            opening.append(piece)
            samples += piece.samples if isinstance(piece, Gap) else len(piece)
            if isinstance(piece, Gap):
                continue
            if not 1 < piece.shape[1] <= MAX_CHANNELS:
                break
            comparison.add(piece)
            if comparison.differs(_ENOUGH_S) or samples >= _OPENING_S * rate:
                break
        self._choice = "separate" if comparison.differs(_LEAST_S) else "mix"
        return chain(opening, pieces)


class _Comparison:
    """Whether channels hold different speech, by whole seconds."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._pending: list[Floats] = []
        self._length = 0
        self._loudest: Floats | None = None
        self._own: Floats | None = None
        """Seconds in which a channel has speech that no other one has, by channel."""
        self._spoken = 0
        self._shared = 0

    def add(self, frames: Frames) -> None:
        """Compare the channels of the next frames, shape `(samples, channels)`."""
        channels = channels_of(bounded(frames))
        if self._pending and len(channels) != len(self._pending[0]):
            self._pending, self._length = [], 0
            self._loudest = self._own = None
        self._pending.append(channels)
        self._length += channels.shape[1]
        if self._length < self._rate:
            return
        joined = np.concatenate(self._pending, axis=1)
        whole = joined.shape[1] // self._rate * self._rate
        for start in range(0, whole, self._rate):
            self._compare(joined[:, start : start + self._rate])
        self._pending = [joined[:, whole:]]
        self._length = joined.shape[1] - whole

    def differs(self, enough_s: int) -> bool:
        """Tell whether two channels have so many seconds of speech of their own."""
        if self._own is None:
            return False
        is_shared = self._shared > _MAX_SHARED * self._spoken
        return not is_shared and int(np.count_nonzero(self._own >= enough_s)) > 1

    def _compare(self, second: Floats) -> None:
        bands = np.stack([speech_band(channel, self._rate) for channel in second])
        powers: Floats = np.mean(bands**2, axis=1, dtype=np.float32)
        if self._loudest is None or self._own is None:
            self._loudest = np.zeros_like(powers)
            self._own = np.zeros_like(powers)
        self._loudest = np.maximum(self._loudest, powers)
        active = (powers > _AUDIBLE) & (powers > _BELOW_LOUDEST * self._loudest)
        if not active.any():
            return
        self._spoken += 1
        alike = np.zeros(len(bands), bool)
        for one, other in combinations(range(len(bands)), 2):
            if (active[one] or active[other]) and _likeness(bands[one], bands[other]) > _ALIKE:
                alike[[one, other]] = True
        self._shared += bool((alike & active).any())
        self._own += active & ~alike


def _likeness(one: Floats, other: Floats) -> float:
    """Return the largest cross-correlation at a short lag, 0 to 1; the levels do not matter."""
    size = 2 ** int(np.ceil(np.log2(2 * len(one))))
    spectra = np.fft.rfft(one, size) * np.conj(np.fft.rfft(other, size))
    correlation = np.abs(np.fft.irfft(spectra, size))
    near = max(correlation[: _MAX_LAG + 1].max(), correlation[-_MAX_LAG:].max())
    scale = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(near) / scale if scale > 0 else 0.0
