"""Find holes, speech without words in a chunk's transcript, and decode them again.

A transducer can emit only blanks for seconds of speech, at any precision. Decoded alone, with a
fresh decoder state and other boundaries, the same audio usually yields its words (FluidAudio issues
909 and 910). A hole that stays empty is reported with its time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from parakeet_api.speech.activity import SpeechActivity, SpeechDetector
from parakeet_api.speech.speech_gate import DOUBT, drop_hallucinations
from parakeet_api.speech.stitching import align
from parakeet_api.transcript import FRAME, SAMPLE_RATE, Chunk, Word, mean_logprob

MIN_SPEECH_S = 1.0
"""Shorter speech without words is a cough, a breath, or a word with an inaccurate time."""
_LEVEL_FRAME = SAMPLE_RATE * 30 // 1000
_QUIETEST_PERCENT = 10
_ABOVE_FLOOR = 4.0
"""6 dB above the quietest tenth of the chunk; frames below are a pause and are not passed to the
detector. Of 360 s of pauses in 58 minutes of recordings 120 s remain, mostly breath and noise."""
_MIN_FLOOR = 9.0
"""Mean square, int16 units: the dither of a converter."""
_MIN_LOUD_S = 0.5
"""A gap between words with less audio above that level is not examined."""
_MAX_HOLE_S = 20.0
"""Longer holes are decoded in parts, as the length may be what made the model skip them."""
_EDGES_S = ((1.0, 1.0), (0.3, 0.54), (1.9, 1.66))
"""Context before and after a hole that is decoded with it, one pair for each attempt. The first
attempt gives words at the edges their context; the others shift the boundaries and the frames."""
_EDGE_S = 0.12
"""A new word's middle may lie so far outside its hole."""
_ALIGNED_S = 3.0
_MIN_LOGPROB = -0.5
"""Minimum mean log-probability of the tokens of recovered words if the chunk's other words have
`DOUBT` (-0.25) or more, as nearly all speech has."""
_MIN_LOGPROB_ALONE = -0.25
"""The same if the chunk has no other words."""
_MIN_LOGPROB_AMID_DOUBT = -0.1
"""The same if the other words have less. In a minute of three simultaneous voices, the demo model
added 22 words at -0.5, two at -0.25, one at -0.15 and none at -0.08; of eight voices 13 at -0.5
and none at -0.25. The English model added none."""

Recognize = Callable[[Sequence[Chunk]], Iterable[list[Word]]]
"""Return the words of each chunk, in order."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the recording, in seconds."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Completed:
    """A chunk's words after its holes were decoded again."""

    words: list[Word]
    without_words: tuple[Span, ...] = ()
    """Speech in the chunk's owned range that still has no words."""
    recovered: int = 0
    """Number of words added by decoding again."""


def complete_words(
    chunk: Chunk, words: Sequence[Word], *, detector: SpeechDetector | None, recognize: Recognize
) -> Completed:
    """Drop hallucinated words, and decode speech without words again.

    Without a detector only words in digital silence are dropped, and nothing is decoded again.
    """
    activity = SpeechActivity(chunk, detector) if detector else None
    words = drop_hallucinations(chunk, words, activity)
    if activity is None:
        return Completed(words)
    before = len(words)
    holes = find_holes(chunk, words, activity)
    required = _required_logprob(words)
    for edges in _EDGES_S:
        if not holes:
            break
        parts = [_part(chunk, hole, edges) for hole in holes]
        for hole, part, candidates in zip(holes, parts, recognize(parts), strict=True):
            recovered = drop_hallucinations(part, candidates, activity)
            words = _inserted(words, recovered, hole, required)
        holes = find_holes(chunk, words, activity)
    return Completed(words, tuple(_owned(chunk, holes)), len(words) - before)


def find_holes(chunk: Chunk, words: Sequence[Word], activity: SpeechActivity) -> list[Span]:
    """List the holes of a chunk: gaps between words with `MIN_SPEECH_S` of speech or more."""
    gaps = _audible_gaps(chunk, words)
    activity.measure([(gap.start, gap.end) for gap in gaps])
    return [
        part
        for gap in gaps
        if activity.speech_s(gap.start, gap.end) >= MIN_SPEECH_S
        for part in _parts(Span(*activity.speech_between(gap.start, gap.end)))
    ]


def _audible_gaps(chunk: Chunk, words: Sequence[Word]) -> list[Span]:
    """List the gaps between words that are not quiet and reach into the chunk's owned range."""
    owned = Span(chunk.owned_start / SAMPLE_RATE, chunk.owned_end / SAMPLE_RATE)
    starts = [chunk.start / SAMPLE_RATE, *(word.end for word in words)]
    ends = [*(word.start for word in words), chunk.end / SAMPLE_RATE]
    gaps = [
        Span(start, end)
        for start, end in zip(starts, ends, strict=True)
        # A gap that lies in the context only is left to the neighbour.
        if min(end, owned.end) - max(start, owned.start) > 0 and end - start >= MIN_SPEECH_S
    ]
    frames = len(chunk.samples) // _LEVEL_FRAME
    if not gaps or not frames:
        return []
    framed = chunk.samples[: frames * _LEVEL_FRAME].reshape(frames, _LEVEL_FRAME)
    level = np.einsum("ij,ij->i", framed, framed, dtype=np.float32) / _LEVEL_FRAME
    loud = level > _ABOVE_FLOOR * max(_MIN_FLOOR, float(np.percentile(level, _QUIETEST_PERCENT)))
    per_s = SAMPLE_RATE / _LEVEL_FRAME
    offset = chunk.start / SAMPLE_RATE

    def is_loud(gap: Span) -> bool:
        within = loud[int((gap.start - offset) * per_s) : math.ceil((gap.end - offset) * per_s)]
        return bool(np.count_nonzero(within) >= _MIN_LOUD_S * per_s)

    return [gap for gap in gaps if is_loud(gap)]


def _parts(hole: Span) -> list[Span]:
    """Split a long hole into equal parts."""
    count = max(1, math.ceil((hole.end - hole.start) / _MAX_HOLE_S))
    length = (hole.end - hole.start) / count
    return [
        Span(hole.start + number * length, hole.start + (number + 1) * length)
        for number in range(count)
    ]


def _part(chunk: Chunk, hole: Span, edges: tuple[float, float]) -> Chunk:
    """Cut a hole out of a chunk, with context around it."""
    before, after = edges
    start = max(0, round((hole.start - before) * SAMPLE_RATE) - chunk.start)
    if edges is _EDGES_S[0]:
        # On the chunk's grid of encoder frames, so that word times agree.
        start = start // FRAME * FRAME
    end = max(start + 1, round((hole.end + after) * SAMPLE_RATE) - chunk.start)
    return chunk.part(start, end)


def _required_logprob(words: Sequence[Word]) -> float:
    """Return the mean log-probability that words to be added to a chunk must have."""
    mean = mean_logprob(words)
    if mean is None:
        return _MIN_LOGPROB_ALONE if not words else _MIN_LOGPROB
    return _MIN_LOGPROB if mean >= DOUBT else _MIN_LOGPROB_AMID_DOUBT


def _inserted(
    words: list[Word], recovered: Sequence[Word], hole: Span, required: float
) -> list[Word]:
    """Insert the words recovered in a hole into a chunk's words, without duplicates."""
    near = [word for word in words if hole.start - _ALIGNED_S < word.middle < hole.end + _ALIGNED_S]
    new = [
        word
        for span in align(near, recovered)
        if not span.agreed
        for word in span.later
        if hole.start - _EDGE_S <= word.middle <= hole.end + _EDGE_S
        and not any(word.middle < other.end and other.start < word.middle for other in near)
    ]
    mean = mean_logprob(new)
    if not new or (mean is not None and mean < required):
        return words
    return sorted([*words, *new], key=lambda word: word.middle)


def _owned(chunk: Chunk, holes: Sequence[Span]) -> list[Span]:
    """Clip holes to the chunk's owned range."""
    start_s, end_s = chunk.owned_start / SAMPLE_RATE, chunk.owned_end / SAMPLE_RATE
    cut = [Span(max(hole.start, start_s), min(hole.end, end_s)) for hole in holes]
    return [span for span in cut if span.end > span.start]


class SpeechWithoutWords:
    """Collect the speech of a recording without words; a neighbouring chunk may have the words."""

    def __init__(self) -> None:
        self._spans: list[Span] = []

    def add(self, spans: Iterable[Span]) -> None:
        """Add a chunk's spans of speech without words, in order of time."""
        for span in spans:
            last = self._spans[-1] if self._spans else None
            if last is not None and span.start - last.end < MIN_SPEECH_S / 2:
                self._spans[-1] = Span(last.start, max(last.end, span.end))
            else:
                self._spans.append(span)

    def remove_covered(self, words: Iterable[Word]) -> None:
        """Remove the parts that are covered by words of the final transcript."""
        if not self._spans:
            return
        for word in words:
            self._spans = [
                part
                for span in self._spans
                for part in (
                    (Span(span.start, word.start), Span(word.end, span.end))
                    if span.start < word.middle < span.end
                    else (span,)
                )
            ]

    def spans(self) -> list[Span]:
        """List the remaining spans of `MIN_SPEECH_S` or more."""
        return [span for span in self._spans if span.end - span.start >= MIN_SPEECH_S]
