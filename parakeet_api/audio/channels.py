"""Mix a recording's channels, or keep them apart where each holds speech of its own.

    channels=  a call, one person a channel    one microphone, a film, a stereo mix
    mix        mixed                           mixed
    separate   apart                           apart
    auto       apart                           mixed

`auto` measures the opening: channels that hold different speech do not correlate, whatever their
levels; a voice that leaks from one into the other does.
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
"""Each is transcribed as a recording of its own."""
_OPENING_S = 120
"""`auto` decides after this duration at the latest, which is kept in memory."""
_BAND_RATE = 4000
_MAX_LAG = _BAND_RATE // 40
"""Two microphones in one room hear a voice within 25 ms: 8 m."""
_MIN_CORRELATION = 0.25
"""Peak cross-correlation from which channels hold the same speech in a second. In 129 s of eight
people, two voices have at most 0.14; a voice that leaks into the other channel at -30 dB has 0.9,
and 0.5 or more if there is noise of -60 dB."""
_MIN_POWER = 1e-8
"""Mean square of the speech band, -80 dB, from which a second may hold speech."""
_MIN_RELATIVE_POWER = 0.01
"""The same relative to the channel's loudest second: 20 dB below it, a second is a pause."""
_ENOUGH_S = 5
"""Seconds of speech of its own that each of two channels must have before `auto` separates them."""
_LEAST_S = 1
"""The same at the end of the opening, or of a shorter recording."""
_MAX_SHARED = 0.1
"""Share of the seconds with speech in which channels may hold the same."""


class Channels:
    """Mix one recording's channels or keep them apart; all its parts share the choice."""

    def __init__(self, choice: ChannelChoice) -> None:
        self._choice: ChannelChoice = choice
        self.count: int | None = None
        """Number of channels kept apart, once known; `None` = they are mixed."""

    @property
    def keeps_all(self) -> bool:
        """Whether all channels are kept, so that ffmpeg must not mix them."""
        return self._choice == "separate"

    def blocks(
        self, pieces: Iterable[Frames | Gap], downmix: Downmix, *, rate: int = SAMPLE_RATE
    ) -> Iterator[Mono]:
        """Yield a track's blocks: mixed, shape `(samples,)`; apart, `(samples, channels)`.

        Raises `InvalidRequestError` for more than `MAX_CHANNELS` to keep apart.
        """
        if self._choice == "auto":
            pieces = self._after_decision(iter(pieces), rate)
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
            self._set_count(piece)
            yield from silence(silent, self.count)
            silent = 0
            yield self._with_count(bounded(piece))
        yield from silence(silent, self.count or 1)

    def _set_count(self, frames: Frames) -> None:
        """Take the number of channels from the first frames. Raises `InvalidRequestError`."""
        if self.count is not None:
            return
        if frames.shape[1] > MAX_CHANNELS:
            raise InvalidRequestError(
                f"channels=separate: the recording has {frames.shape[1]} channels, more than"
                f" the {MAX_CHANNELS} that are transcribed apart.",
                param="channels",
            )
        self.count = frames.shape[1]

    def _with_count(self, frames: Frames) -> Mono:
        """Return frames with the recording's number of channels; others are mixed and copied."""
        if frames.shape[1] == self.count:
            return frames
        mono = channels_of(frames).mean(axis=0, dtype=np.float32)
        return np.repeat(mono[:, np.newaxis], self.count or 1, axis=1)

    def _after_decision(self, pieces: Iterator[Frames | Gap], rate: int) -> Iterator[Frames | Gap]:
        """Replace `auto` by the choice that the opening suggests; return all pieces."""
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
    """Measure, second by second, whether channels hold different speech."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._pending: list[Floats] = []
        self._length = 0
        self._loudest: Floats | None = None
        """Power of each channel's loudest second."""
        self._own: Floats | None = None
        """Seconds in which each channel has speech that no other one has."""
        self._spoken = 0
        """Seconds in which a channel has speech."""
        self._shared = 0
        """Those in which two channels have the same."""

    def add(self, frames: Frames) -> None:
        """Measure the next frames, shape `(samples, channels)`."""
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
        """Tell whether two channels have `enough_s` seconds of speech of their own."""
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
        active = (powers > _MIN_POWER) & (powers > _MIN_RELATIVE_POWER * self._loudest)
        if not active.any():
            return
        self._spoken += 1
        shared = np.zeros(len(bands), bool)
        for one, other in combinations(range(len(bands)), 2):
            if not (active[one] or active[other]):
                continue
            if _peak_correlation(bands[one], bands[other]) > _MIN_CORRELATION:
                shared[[one, other]] = True
        self._shared += bool((shared & active).any())
        self._own += active & ~shared


def _peak_correlation(one: Floats, other: Floats) -> float:
    """Return the largest normalised cross-correlation at a lag up to `_MAX_LAG`, 0 to 1."""
    size = 2 ** int(np.ceil(np.log2(2 * len(one))))
    spectra = np.fft.rfft(one, size) * np.conj(np.fft.rfft(other, size))
    correlation = np.abs(np.fft.irfft(spectra, size))
    near = max(correlation[: _MAX_LAG + 1].max(), correlation[-_MAX_LAG:].max())
    scale = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(near) / scale if scale > 0 else 0.0
