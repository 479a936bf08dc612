"""Samples that are finer than 16 bits, scaled before they become 16 bits.

A float recording whose gain nobody set may be so quiet that rounding takes its words, or so loud
that clipping does. The scale is the whole recording's, and it falls, but never rises, where
something is louder than all before: nothing pumps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from parakeet_api.audio.downmix import Mono
from parakeet_api.transcript import SAMPLE_RATE, Pcm

_FULL_SCALE = 32768.0
_FRAME = SAMPLE_RATE // 100
"""10 ms."""
_CLICKS = 300
"""One frame of so many may be a click, which tells nothing of the level: 0.1 s of 30 s."""
_WINDOW = 30 * SAMPLE_RATE
"""What is heard before the scale is chosen, or changed."""
_RAMP = SAMPLE_RATE // 10
_QUIET = 10 ** (-40 / 20)
"""Peaks of 300 steps of 16 bits. Louder sound is left as it is: rounding is 45 dB below."""
_SILENT = 10 ** (-100 / 20)
"""Below it is the noise of a converter."""
_WANTED = 10 ** (-12 / 20)
"""What a scaled recording's peaks become; clicks have room above."""


def to_pcm(
    sound: Iterable[Mono], *, most: Callable[[], float], measure: Callable[[], float]
) -> Iterator[Pcm]:
    """Make samples 16 bits, scaled where they would be lost or clipped; 16 bits stay as they are.

    `most` is the largest sample that is clipped rather than scaled; `measure` gives the level of
    the whole recording.
    """
    blocks = iter(sound)
    opening: list[Mono] = []
    for block in blocks:
        opening.append(block)
        # Silence is of 16 bits, whatever the sound is.
        if block.dtype != np.int16 or block.any():
            break
    whole = itertools.chain(opening, blocks)
    if not opening or opening[-1].dtype == np.int16:
        yield from map(round_to_pcm, whole)
        return
    gain, is_chosen = 1.0, False
    for window in _windows(whole):
        before = gain
        level = level_of([window]) if not is_chosen or peak(window) * gain > most() else 0.0
        if not is_chosen and level > _SILENT:
            # Of a recording that begins as others do, the rest need not be looked at first.
            is_odd = level < _QUIET or level > most()
            gain, is_chosen = gain_for(measure() if is_odd else level, most()), True
            before = gain
        if level * gain > most():
            gain = _WANTED / level
        yield round_to_pcm(_scaled(window, gain, before))


def level_of(sound: Iterable[Mono]) -> float:
    """Measure the peaks of a recording, clicks left out; the same for blocks of any lengths."""
    peaks = [_frame_peaks(window) for window in _windows(sound)]
    if not peaks:
        return 0.0
    every = np.sort(np.concatenate(peaks))
    return float(every[len(every) - 1 - len(every) // _CLICKS])


def gain_for(level: float, most: float) -> float:
    """Choose the factor for a recording of this level."""
    return _WANTED / level if _SILENT < level < _QUIET or level > most else 1.0


def round_to_pcm(sound: Mono) -> Pcm:
    """Round samples to 16 bits; what is beyond full scale is clipped."""
    if sound.dtype == np.int16:
        return sound
    steps = sound * np.float32(_FULL_SCALE)
    np.rint(steps, out=steps)
    np.clip(steps, -_FULL_SCALE, _FULL_SCALE - 1, out=steps)
    pcm: Pcm = steps.astype(np.int16)
    return pcm


def _windows(blocks: Iterable[Mono]) -> Iterator[Mono]:
    """Cut sound into windows: its scale must not depend on the blocks that it arrives in."""
    held: list[Mono] = []
    length = 0
    for block in blocks:
        # A part of the recording, or silence, may be of 16 bits.
        is_coarse = block.dtype == np.int16
        held.append(block / np.float32(_FULL_SCALE) if is_coarse else block)
        length += len(block)
        while length >= _WINDOW:
            joined = np.concatenate(held)
            yield joined[:_WINDOW]
            held, length = [joined[_WINDOW:]], length - _WINDOW
    if length:
        yield np.concatenate(held)


def _scaled(window: Mono, gain: float, before: float) -> Mono:
    if gain == before:
        return window if gain == 1 else window * np.float32(gain)
    gains = np.full(len(window), gain, np.float32)
    ramp = np.linspace(before, gain, _RAMP, dtype=np.float32)[: len(window)]
    gains[: len(ramp)] = ramp
    return window * gains


def peak(sound: Mono) -> float:
    """Give the largest sample, full scale = 1."""
    largest = max(float(sound.max(initial=0)), -float(sound.min(initial=0)))
    return largest / _FULL_SCALE if sound.dtype == np.int16 else largest


def is_quiet(sound: Mono) -> bool:
    """Tell whether rounding to 16 bits would be heard."""
    return peak(sound) < _QUIET


def _frame_peaks(sound: Mono) -> NDArray[np.float32]:
    """Give the largest sample of each 10 ms, shape `(frames,)`."""
    whole = len(sound) // _FRAME * _FRAME
    framed = np.abs(sound[:whole] if whole else sound).reshape(-1, _FRAME if whole else 1)
    peaks: NDArray[np.float32] = framed.max(axis=1)
    return peaks
