"""Cut a stream of samples into overlapping chunks whose seams lie in silence.

The contract: owned ranges tile the recording, first sample to last; every chunk holds what it
owns plus up to half the overlap on each side, less if the seam lies in a long silence; no chunk
is longer than `ChunkPolicy.longest` samples; every chunk owns at least one sample. Before the range
that it owns, a chunk may have up to one step of `ChunkPolicy.grid` more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from parakeet_api.settings import Settings
from parakeet_api.transcript import FRAME, SAMPLE_RATE, Chunk, Pcm

_LEVEL_FRAME = SAMPLE_RATE // 100
"""The level is measured in frames of 10 ms."""
_MOMENT_FRAMES = 5
"""The quietest point is the quietest 50 ms: shorter than a syllable, longer than a pitch period."""
_FULL_SCALE = 32768.0
_OVERLAP_SHARE = 6
"""Overlap is at most 1/6 of a chunk: 5 s of 30. More changed no word of the recordings measured,
and every forward pass would have to process it."""


_LONG_SILENCE = round(0.6 * SAMPLE_RATE)
"""A pause between sentences rather than between words."""
_QUIET_CONTEXT = round(0.5 * SAMPLE_RATE)
"""Context beyond a seam in a long silence, where words do not depend on the neighbour. Words and
punctuation are as accurate, and the model processes 7 % more audio than the recording has instead
of 21 %."""


@dataclass(frozen=True, slots=True)
class ChunkPolicy:
    """How to cut; all lengths in samples."""

    longest: int
    """Longest chunk, context included."""
    overlap: int
    """Longest audio that two neighbours share: half on each side of the seam."""
    max_shift: int
    """How far a cut may move to reach a silence, to either side; 0 = it does not move."""
    min_silence: int
    """Shortest silence that counts."""
    silence_level: float
    """Root mean square below which a frame is silent, int16 units."""
    grid: int = FRAME
    """Chunks with context start at multiples of this. Neighbours then divide their shared audio
    into the same frames, or the same spans of attention, and agree on words and their times."""

    @property
    def context(self) -> int:
        """Longest context that a chunk has beyond a seam."""
        return self.overlap // 2

    @classmethod
    def from_settings(cls, settings: Settings, *, longest_s: float) -> ChunkPolicy:
        """Derive a policy for chunks of at most `longest_s` seconds."""
        longest = round(longest_s * SAMPLE_RATE)
        overlap_s = settings.chunk_overlap_s if settings.enable_overlap_chunking else 0
        overlap = min(round(overlap_s * SAMPLE_RATE), longest // _OVERLAP_SHARE)
        shift = settings.silence_max_shift_s if settings.enable_silence_aligned_chunking else 0
        return cls(
            longest=longest,
            overlap=overlap,
            # A cut moves over 2 x max_shift: at most half of what a chunk owns.
            max_shift=min(round(shift * SAMPLE_RATE), (longest - overlap) // 4),
            min_silence=round(settings.min_silence_duration_s * SAMPLE_RATE),
            silence_level=_FULL_SCALE * 10 ** (settings.silence_threshold_db / 20),
        )

    def on_grid(self, grid: int) -> ChunkPolicy:
        """Return the same policy for chunks on a grid, unless they are too short for it."""
        return replace(self, grid=grid) if grid * _OVERLAP_SHARE <= self.longest else self


def plan_chunks(blocks: Iterable[Pcm], policy: ChunkPolicy) -> Generator[Chunk]:
    """Cut a recording, given as consecutive blocks of int16 samples, into chunks.

    Separate channels, shape `(samples, channels)`, are cut at the same places, by their mean power.

    Lazy: buffers the samples of one chunk and of the block in which it ends. A recording without
    samples has no chunks.
    """
    buffer = _Buffer(blocks)
    owned_start = context_before = 0
    for index in itertools.count():
        start = _start(owned_start, context_before, policy.grid)
        buffer.drop_before(start)
        if is_last := buffer.end_within(start + policy.longest):
            owned_end = end = buffer.end
        else:
            # The latest possible cut leaves room for the context behind it.
            latest = start + policy.longest - policy.context
            earliest = latest - 2 * policy.max_shift
            cut = _find_cut(buffer.view(earliest, latest), policy)
            owned_end = earliest + cut.position
            end = owned_end + cut.context
            context_before = cut.context
        if owned_end > owned_start:
            yield Chunk(
                index=index,
                start=start,
                samples=buffer.view(start, end),
                owned_start=owned_start,
                owned_end=owned_end,
            )
        if is_last:
            return
        owned_start = owned_end


def split_channels(chunks: Iterable[Chunk]) -> Generator[Chunk]:
    """Split a chunk of several channels into one for each, with the same span.

    A mono chunk, shape `(samples,)`, is unchanged.
    """
    for chunk in chunks:
        if chunk.samples.ndim == 1:
            yield chunk
            continue
        channels = chunk.samples.shape[1]
        for number in range(1, channels + 1):
            samples = chunk.samples[:, number - 1].copy()
            yield replace(chunk, samples=samples, channel=number, channels=channels)


def _start(owned_start: int, context: int, grid: int) -> int:
    """Return the first sample of a chunk: on the grid, with up to a frame less context.

    A chunk without context starts with its owned range: the previous chunk has the words before.
    """
    if not context:
        return owned_start
    start = max(0, owned_start - context)
    return min((start + FRAME - 1) // grid * grid, owned_start)


class _Buffer:
    """The latest samples of a stream, addressed by position in the recording."""

    def __init__(self, blocks: Iterable[Pcm]) -> None:
        self._blocks = iter(blocks)
        self._pending: list[Pcm] = []
        self._first = 0
        """Position of the first pending sample."""
        self.end = 0
        """One past the last sample read so far."""

    def end_within(self, position: int) -> bool:
        """Read past `position`; return whether the recording ends at or before it."""
        while self.end <= position:
            block = next(self._blocks, None)
            if block is None:
                return True
            self._pending.append(block)
            self.end += len(block)
        return False

    def view(self, start: int, end: int) -> Pcm:
        """Copy samples `[start, end)`, which must have been read and not dropped."""
        if len(self._pending) != 1:
            self._pending = [np.concatenate(self._pending)] if self._pending else []
        return self._pending[0][start - self._first : end - self._first].copy()

    def drop_before(self, position: int) -> None:
        """Drop the samples before `position`."""
        if self._pending:
            self._pending = [self.view(position, self.end)]
            self._first = position


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where to cut."""

    position: int
    context: int
    """Samples of context that each neighbour has beyond the cut."""


def quietest_moment(samples: Pcm) -> int:
    """Find the middle of the quietest 50 ms of `samples`; of equally quiet ones, the most central.

    Shape `(samples,)`, of 50 ms or more.
    """
    return _quietest_moment(_frame_power(samples), len(samples) // 2)


def _find_cut(samples: Pcm, policy: ChunkPolicy) -> _Cut:
    """Choose where to cut `samples`, the range within which the cut may move.

    That is the point in a silence that is nearest to the middle, half a `min_silence` or more from
    the silence's edges; without a silence, the middle of the quietest 50 ms.
    """
    middle = len(samples) // 2
    if len(samples) < _LEVEL_FRAME * _MOMENT_FRAMES:
        return _Cut(middle, policy.context)
    power = _frame_power(samples)
    cut = _cut_in_silence(power, policy, middle)
    return cut or _Cut(_quietest_moment(power, middle), policy.context)


def _frame_power(samples: Pcm) -> NDArray[np.float32]:
    """Compute the mean square of each whole 10 ms frame, over all channels; shape `(frames,)`."""
    frames = len(samples) // _LEVEL_FRAME
    width = _LEVEL_FRAME * math.prod(samples.shape[1:])
    framed = samples[: frames * _LEVEL_FRAME].reshape(frames, width).astype(np.float32)
    return np.asarray(np.mean(framed**2, axis=1))


def _cut_in_silence(power: NDArray[np.float32], policy: ChunkPolicy, middle: int) -> _Cut | None:
    """Choose the point of a silence that is nearest to the middle; `None` without a silence."""
    quiet = np.concatenate(([False], power < policy.silence_level**2, [False])).astype(np.int8)
    edges = np.diff(quiet)
    starts = np.flatnonzero(edges == 1) * _LEVEL_FRAME
    ends = np.flatnonzero(edges == -1) * _LEVEL_FRAME
    long_enough = ends - starts >= policy.min_silence
    if not long_enough.any():
        return None
    starts, ends = starts[long_enough], ends[long_enough]
    margin = policy.min_silence // 2
    points = np.clip(middle, starts + margin, ends - margin)
    nearest = np.argmin(np.abs(points - middle))
    is_long = ends[nearest] - starts[nearest] >= _LONG_SILENCE
    context = min(policy.context, _QUIET_CONTEXT) if is_long else policy.context
    return _Cut(int(points[nearest]), context)


def _quietest_moment(power: NDArray[np.float32], middle: int) -> int:
    window = np.convolve(power, np.ones(_MOMENT_FRAMES, dtype=np.float32), mode="valid")
    centres = np.arange(len(window)) * _LEVEL_FRAME + _MOMENT_FRAMES * _LEVEL_FRAME // 2
    # Of equally quiet points, the one nearest to the middle.
    order = np.lexsort((np.abs(centres - middle), window))
    return int(centres[order[0]])
