"""Convert samples of more than 16 bits to 16 bits, scaled where necessary.

A float recording with an unadjusted gain may be so quiet that rounding to 16 bits loses speech, or
so loud that clipping does. One gain is used for the whole recording. Where a later passage is
louder it is lowered, and it is never raised: background noise keeps its level.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from parakeet_api.audio.downmix import Mono
from parakeet_api.transcript import SAMPLE_RATE, Pcm

_FULL_SCALE = 32768.0
_FRAME = SAMPLE_RATE // 100
"""10 ms."""
_FRAMES_PER_CLICK = 300
"""One frame of so many may be a click, and is left out of the level: 0.1 s of 30 s."""
_WINDOW = 30 * SAMPLE_RATE
"""Audio that is measured before the gain is chosen or changed."""
_RAMP = SAMPLE_RATE // 10
"""Samples over which a change of gain is spread."""
_QUIET = 10 ** (-40 / 20)
"""A peak of 300 steps of 16 bits. Louder audio is not scaled: rounding noise is 45 dB below."""
_SILENT = 10 ** (-100 / 20)
"""A lower level is an A/D converter's noise."""
_TARGET_LEVEL = 10 ** (-12 / 20)
"""Peak level of a scaled recording; leaves headroom for clicks."""


def to_pcm(
    sound: Iterable[Mono], *, max_level: Callable[[], float], measure: Callable[[], float]
) -> Iterator[Pcm]:
    """Convert audio to 16 bits, scaled if it is too quiet or too loud; 16-bit audio is unchanged.

    `max_level` returns the peak up to which samples are clipped rather than scaled; `measure`
    returns the level of the whole recording.
    """
    blocks = iter(sound)
    opening = yield from _leading_silence(blocks)
    rejoined = itertools.chain(opening, blocks)
    if not opening or opening[-1].dtype == np.int16:
        yield from map(round_to_pcm, rejoined)
        return
    gain, is_chosen = 1.0, False
    for window in _windows(rejoined):
        previous_gain = gain
        level = level_of([window]) if not is_chosen or peak(window) * gain > max_level() else 0.0
        if not is_chosen and level > _SILENT:
            # A recording that begins at a usual level need not be measured to its end.
            is_unusual = level < _QUIET or level > max_level()
            gain, is_chosen = gain_for(measure() if is_unusual else level, max_level()), True
            previous_gain = gain
        if level * gain > max_level():
            gain = _TARGET_LEVEL / level
        yield round_to_pcm(_scaled(window, gain, previous_gain))


def _leading_silence(blocks: Iterator[Mono]) -> Generator[Pcm, None, list[Mono]]:
    """Yield whole windows of 16-bit silence; return the blocks up to the first that is none.

    Inserted silence has 16 bits, whatever the audio has, and is the same at any gain.
    """
    opening: list[Mono] = []
    length = 0
    for block in blocks:
        opening.append(block)
        if block.dtype != np.int16 or block.any():
            break
        length += len(block)
        if length >= _WINDOW:
            joined = np.concatenate(opening)
            whole = length - length % _WINDOW
            yield joined[:whole]
            opening, length = [joined[whole:]], length - whole
    return opening


def level_of(sound: Iterable[Mono]) -> float:
    """Measure a recording's peak level without clicks; independent of the lengths of the blocks."""
    peaks = [_frame_peaks(window) for window in _windows(sound)]
    if not peaks:
        return 0.0
    sorted_peaks = np.sort(np.concatenate(peaks))
    return float(sorted_peaks[len(sorted_peaks) - 1 - len(sorted_peaks) // _FRAMES_PER_CLICK])


def gain_for(level: float, max_level: float) -> float:
    """Choose the gain for a recording of this level; `max_level` as in `to_pcm`."""
    return _TARGET_LEVEL / level if _SILENT < level < _QUIET or level > max_level else 1.0


def round_to_pcm(sound: Mono) -> Pcm:
    """Round samples to 16 bits and clip them at full scale."""
    if sound.dtype == np.int16:
        return sound
    steps = sound * np.float32(_FULL_SCALE)
    np.rint(steps, out=steps)
    np.clip(steps, -_FULL_SCALE, _FULL_SCALE - 1, out=steps)
    pcm: Pcm = steps.astype(np.int16)
    return pcm


def _windows(blocks: Iterable[Mono]) -> Iterator[Mono]:
    """Cut audio into windows, so that its gain does not depend on the sizes of the blocks."""
    pending: list[Mono] = []
    length = 0
    for block in blocks:
        # Inserted silence, and a part of another format, have 16 bits.
        is_16_bit = block.dtype == np.int16
        pending.append(block / np.float32(_FULL_SCALE) if is_16_bit else block)
        length += len(block)
        while length >= _WINDOW:
            joined = np.concatenate(pending)
            yield joined[:_WINDOW]
            pending, length = [joined[_WINDOW:]], length - _WINDOW
    if length:
        yield np.concatenate(pending)


def _scaled(window: Mono, gain: float, previous_gain: float) -> Mono:
    if gain == previous_gain:
        return window if gain == 1 else window * np.float32(gain)
    gains = np.full(len(window), gain, np.float32)
    ramp = np.linspace(previous_gain, gain, _RAMP, dtype=np.float32)[: len(window)]
    gains[: len(ramp)] = ramp
    return window * (gains if window.ndim == 1 else gains[:, np.newaxis])


def peak(sound: Mono) -> float:
    """Return the largest absolute sample, full scale = 1."""
    largest = max(float(sound.max(initial=0)), -float(sound.min(initial=0)))
    return largest / _FULL_SCALE if sound.dtype == np.int16 else largest


def is_quiet(sound: Mono) -> bool:
    """Tell whether audio is so quiet that the noise of rounding to 16 bits would be audible."""
    return peak(sound) < _QUIET


def _frame_peaks(sound: Mono) -> NDArray[np.float32]:
    """Return the largest absolute sample of each 10 ms, in any channel; shape `(frames,)`."""
    if sound.ndim > 1:
        sound = np.abs(sound).max(axis=1)
    whole = len(sound) // _FRAME * _FRAME
    framed = np.abs(sound[:whole] if whole else sound).reshape(-1, _FRAME if whole else 1)
    peaks: NDArray[np.float32] = framed.max(axis=1)
    return peaks
