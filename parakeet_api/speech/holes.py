"""Find speech that got no words, and decode it again.

A transducer can stick to blank: it hears speech and emits nothing, for seconds, at any precision.
Decoded alone, with fresh state and other edges, the same sound gets its words (FluidAudio issues
909 and 910). What gets none stays a gap in the transcript, and the answer says where.
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
"""Shorter speech without words is a cough, a breath, or a word that the model timed elsewhere."""
_LEVEL_FRAME = SAMPLE_RATE * 30 // 1000
_QUIETEST_PERCENT = 10
_ABOVE_FLOOR = 4.0
"""6 dB above the quietest tenth of the chunk: less is a pause, of which the detector is not asked.
Of 360 s of pauses in 58 minutes of recordings this leaves 120 s, most of them breath and noise."""
_MIN_FLOOR = 9.0
"""Mean square, int16 units: the dither of a converter."""
_MIN_LOUD_S = 0.5
"""Between a word's end and the next one's start, so much must be louder than that."""
_MAX_HOLE_S = 20.0
"""Longer ones are decoded in parts: what made the model stick may be the length."""
_EDGES_S = ((1.0, 1.0), (0.3, 0.54), (1.9, 1.66))
"""Sound before and after a hole that is decoded with it, one pair for each attempt. The first gives
words at the edges their context; the others move the edges, also against the grid of frames."""
_EDGE_S = 0.12
"""A new word's middle may lie so far outside its hole."""
_ALIGNED_S = 3.0
_SURE = -0.5
"""Mean log-probability of the tokens that words from a second look must have where the model is
sure of the chunk's other words (-0.25 or more, as nearly everywhere in speech)."""
_SURE_OF_NOTHING = -0.25
"""The same where the chunk has no other words."""
_SURE_AMID_DOUBT = -0.1
"""The same where the model doubts the others. Of a minute of three voices at once, the demo model
took 22 words more at -0.5, two at -0.25, one at -0.15 and none at -0.08; of eight voices 13 at -0.5
and none at -0.25. The English model took none."""

Recognize = Callable[[Sequence[Chunk]], Iterable[list[Word]]]
"""Gives each chunk's words, in order."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the recording; seconds."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Completed:
    """A chunk's words once it was looked for holes."""

    words: list[Word]
    unheard: tuple[Span, ...] = ()
    """Speech that the chunk owns and that got no words."""
    recovered: int = 0
    """Words that a second look has added."""


def complete_words(
    chunk: Chunk, words: Sequence[Word], *, detector: SpeechDetector | None, recognize: Recognize
) -> Completed:
    """Drop the words that were imagined, and decode again the speech that got none.

    Without a detector neither is known, and only words in digital silence are dropped.
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
        for hole, part, found in zip(holes, parts, recognize(parts), strict=True):
            words = _inserted(words, drop_hallucinations(part, found, activity), hole, required)
        holes = find_holes(chunk, words, activity)
    return Completed(words, tuple(_owned(chunk, holes)), len(words) - before)


def find_holes(chunk: Chunk, words: Sequence[Word], activity: SpeechActivity) -> list[Span]:
    """Give the speech of a chunk between its words, `MIN_SPEECH_S` or more at a place."""
    gaps = _suspicious_gaps(chunk, words)
    activity.measure([(gap.start, gap.end) for gap in gaps])
    return [
        part
        for gap in gaps
        if activity.speech_s(gap.start, gap.end) >= MIN_SPEECH_S
        for part in _parts(Span(*activity.speech_between(gap.start, gap.end)))
    ]


def _suspicious_gaps(chunk: Chunk, words: Sequence[Word]) -> list[Span]:
    """Give the gaps between words, and what the chunk owns of it, in which something sounds."""
    owned = Span(chunk.owned_start / SAMPLE_RATE, chunk.owned_end / SAMPLE_RATE)
    starts = [chunk.start / SAMPLE_RATE, *(word.end for word in words)]
    ends = [*(word.start for word in words), chunk.end / SAMPLE_RATE]
    gaps = [
        Span(start, end)
        for start, end in zip(starts, ends, strict=True)
        # What lies in the context alone is the neighbour's.
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
    """Part a long hole evenly."""
    count = max(1, math.ceil((hole.end - hole.start) / _MAX_HOLE_S))
    length = (hole.end - hole.start) / count
    return [
        Span(hole.start + number * length, hole.start + (number + 1) * length)
        for number in range(count)
    ]


def _part(chunk: Chunk, hole: Span, edges: tuple[float, float]) -> Chunk:
    """Cut a hole out of a chunk, with some sound around it."""
    before, after = edges
    start = max(0, round((hole.start - before) * SAMPLE_RATE) - chunk.start)
    if edges is _EDGES_S[0]:
        # On the chunk's grid of frames, where words are timed alike.
        start = start // FRAME * FRAME
    end = max(start + 1, round((hole.end + after) * SAMPLE_RATE) - chunk.start)
    samples = chunk.samples[start:end]
    begin = chunk.start + start
    return Chunk(0, begin, samples, begin, begin + len(samples), chunk.keywords)


def _required_logprob(words: Sequence[Word]) -> float:
    """Tell how sure the model must be of more words in a chunk."""
    mean = mean_logprob(words)
    if mean is None:
        return _SURE_OF_NOTHING if not words else _SURE
    return _SURE if mean >= DOUBT else _SURE_AMID_DOUBT


def _inserted(words: list[Word], found: Sequence[Word], hole: Span, required: float) -> list[Word]:
    """Add the words that were found in a hole to a chunk's words, each once."""
    near = [word for word in words if hole.start - _ALIGNED_S < word.middle < hole.end + _ALIGNED_S]
    new = [
        word
        for stretch in align(near, found)
        if not stretch.agreed
        for word in stretch.later
        if hole.start - _EDGE_S <= word.middle <= hole.end + _EDGE_S
        and not any(word.middle < other.end and other.start < word.middle for other in near)
    ]
    mean = mean_logprob(new)
    if not new or (mean is not None and mean < required):
        return words
    return sorted([*words, *new], key=lambda word: word.middle)


def _owned(chunk: Chunk, holes: Sequence[Span]) -> list[Span]:
    """Give the parts of holes that the chunk answers for."""
    begin, end = chunk.owned_start / SAMPLE_RATE, chunk.owned_end / SAMPLE_RATE
    cut = [Span(max(hole.start, begin), min(hole.end, end)) for hole in holes]
    return [span for span in cut if span.end > span.start]


class UnheardSpeech:
    """The speech of a whole recording that has no words; neighbours may know better."""

    def __init__(self) -> None:
        self._spans: list[Span] = []

    def add(self, spans: Iterable[Span]) -> None:
        """Take note of what a chunk owns and has no words for, in order of time."""
        for span in spans:
            last = self._spans[-1] if self._spans else None
            if last is not None and span.start - last.end < MIN_SPEECH_S / 2:
                self._spans[-1] = Span(last.start, max(last.end, span.end))
            else:
                self._spans.append(span)

    def explain(self, words: Iterable[Word]) -> None:
        """Forget the speech at the place of words that are in the transcript."""
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
        """Give what is left, `MIN_SPEECH_S` or more each."""
        return [span for span in self._spans if span.end - span.start >= MIN_SPEECH_S]
