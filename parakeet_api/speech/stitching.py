"""Merge the words of overlapping chunks without losing or repeating a word.

Near a seam two chunks share audio. The middle half of it is the reliable window: there, neither
chunk's edge is nearer than a quarter of the shared audio. Within it the words of both chunks are
aligned. A word that both have is output once. A word that only one of them has is output too, as a
lost word is worse than an extra one. Where they have different words at the same time, between two
words that both have, all words of one of the chunks are output.

The contract: if the two timings of each word differ by less than half the distance to its
neighbours, and by less than 0.24 s, a word that either chunk has in the reliable window is output
exactly once, unless the other chunk has another word at its time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile

from parakeet_api.transcript import SAMPLE_RATE, Chunk, Word, mean_logprob

_JITTER_S = 0.24
"""Three frames: two timings of the same word differ by less. Up to this distance a pair costs less
than one unpaired word, and up to twice this distance less than two."""
_ALIGNED_S = 1.0
"""Words are aligned up to this distance beyond the reliable window, so that those at its edges have
their counterparts."""
_SAME_PLACE_S = 0.08
"""One frame: words of the two chunks that are closer are two hypotheses for the same audio."""
_SENTENCE_ENDS = (".", "?", "!")


class Stitcher:
    """Merge chunks as they arrive; yield each word once no later chunk can change it."""

    def __init__(self, *, sentence_boundary_threshold_s: float) -> None:
        self._sentence_window_s = sentence_boundary_threshold_s
        self._previous: Chunk | None = None
        self._pending: list[Word] = []
        """Words near and after the previous chunk's end, which the next chunk may change."""
        self._last_end = 0.0
        """End of the last word that was yielded, in seconds."""
        self.settled_s = 0.0
        """Time in seconds after which the middles of all further words lie."""

    def add(self, chunk: Chunk, words: Sequence[Word]) -> Iterator[Word]:
        """Add the next chunk of the recording; yield the words that are now final.

        `words` are all words of the chunk, context included, in order of time.
        """
        joined = list(words)
        if self._previous is not None:
            seam = Seam.between(self._previous, chunk, sentence_window_s=self._sentence_window_s)
            joined = join(self._pending, words, seam)
        self._previous = chunk
        settled = self.settled_s = _settled_before(chunk)
        final = list(takewhile(lambda word: word.middle < settled, joined))
        self._pending = joined[len(final) :]
        yield from self._in_order(final)

    def finish(self) -> Iterator[Word]:
        """Yield the remaining words after the last chunk."""
        yield from self._in_order(self._pending)
        self._pending = []
        self._previous = None

    def _in_order(self, words: Iterable[Word]) -> Iterator[Word]:
        """Move a word's start that, by another chunk's timing, precedes the previous word's end."""
        for word in words:
            start = max(word.start, self._last_end)
            end = max(word.end, start)
            self._last_end = end
            moved = (start, end) != (word.start, word.end)
            yield replace(word, start=start, end=end) if moved else word


@dataclass(frozen=True, slots=True)
class Seam:
    """The boundary between the owned ranges of two chunks; times in seconds."""

    at: float
    window: float
    """Half the length of the reliable window around the seam; 0 if the chunks share no audio."""
    sentence_window: float
    """Distance from the seam within which a sentence end is preferred as the hand-over."""

    @classmethod
    def between(cls, earlier: Chunk, later: Chunk, *, sentence_window_s: float) -> Seam:
        """Describe the seam of two neighbours."""
        context = min(earlier.end - later.owned_start, later.owned_start - later.start)
        return cls(
            at=later.owned_start / SAMPLE_RATE,
            window=_window_s(context),
            sentence_window=sentence_window_s,
        )

    @property
    def begin(self) -> float:
        """Return the start of the reliable window; before it the earlier chunk is used."""
        return self.at - self.window

    @property
    def end(self) -> float:
        """Return the end of the reliable window; after it the later chunk is used."""
        return self.at + self.window


def _window_s(context: int) -> float:
    """Exclude the outer half of the context: words near a chunk's edge are unreliable."""
    return max(0.0, context / 2 / SAMPLE_RATE)


def _settled_before(chunk: Chunk) -> float:
    """Return the time, in seconds, before which the next chunk changes no word."""
    context = chunk.end - chunk.owned_end
    if not context:
        # The next chunk shares no audio with this one.
        return chunk.owned_end / SAMPLE_RATE
    return chunk.owned_end / SAMPLE_RATE - _window_s(context) - _ALIGNED_S


@dataclass(frozen=True, slots=True)
class AlignedSpan:
    """A word that both chunks have (`agreed`), or the words of each between two such words."""

    earlier: tuple[Word, ...]
    later: tuple[Word, ...]
    agreed: bool

    @property
    def first(self) -> float:
        """Return the middle of the first word of either chunk, in seconds."""
        return min(words[0].middle for words in (self.earlier, self.later) if words)

    @property
    def last(self) -> float:
        """Return the middle of the last word of either chunk, in seconds."""
        return max(words[-1].middle for words in (self.earlier, self.later) if words)


def join(earlier: Sequence[Word], later: Sequence[Word], seam: Seam) -> list[Word]:
    """Merge the words of two chunks, each in order of time, at their seam."""
    if seam.window == 0:
        # No shared audio, so no word occurs twice.
        return [*earlier, *later]
    first, last = seam.begin - _ALIGNED_S, seam.end + _ALIGNED_S
    head = list(takewhile(lambda word: word.middle < first, earlier))
    skipped = sum(1 for _ in takewhile(lambda word: word.middle < first, later))
    near_later = list(takewhile(lambda word: word.middle < last, later[skipped:]))
    near_earlier = list(takewhile(lambda word: word.middle < last, earlier[len(head) :]))
    spans = [span for span in align(near_earlier, near_later) if _is_relevant(span, seam)]
    hand_over = _hand_over(spans, seam)
    return [
        *head,
        *(
            word
            for number, span in enumerate(spans)
            for word in _choose_words(span, seam, prefer_earlier=number < hand_over)
        ),
        *later[skipped + len(near_later) :],
    ]


def align(earlier: Sequence[Word], later: Sequence[Word]) -> list[AlignedSpan]:
    """Align two word sequences with minimal cost; unpaired words between pairs form one span.

    An unpaired word costs 1, a pair of equal words their distance in units of `_JITTER_S`.
    """
    cost = _alignment_costs(earlier, later)
    spans: list[AlignedSpan] = []
    i = j = 0
    begin_i = begin_j = 0

    def close_span() -> None:
        if i > begin_i or j > begin_j:
            parts = tuple(earlier[begin_i:i]), tuple(later[begin_j:j])
            spans.append(AlignedSpan(*parts, agreed=False))

    while i < len(earlier) and j < len(later):
        best = cost[i][j]
        pair = _pair_cost(earlier[i], later[j])
        if pair is not None and best == pair + cost[i + 1][j + 1]:
            close_span()
            spans.append(AlignedSpan((earlier[i],), (later[j],), agreed=True))
            i, j = i + 1, j + 1
            begin_i, begin_j = i, j
        elif best == 1 + cost[i + 1][j]:
            i += 1
        else:
            j += 1
    i, j = len(earlier), len(later)
    close_span()
    return spans


def _alignment_costs(earlier: Sequence[Word], later: Sequence[Word]) -> list[list[float]]:
    """Return the minimal cost of aligning the remaining words, from each pair of positions on."""
    cost = [[0.0] * (len(later) + 1) for _ in range(len(earlier) + 1)]
    for i in range(len(earlier), -1, -1):
        for j in range(len(later), -1, -1):
            options = []
            if i < len(earlier):
                options.append(1 + cost[i + 1][j])
            if j < len(later):
                options.append(1 + cost[i][j + 1])
            if i < len(earlier) and j < len(later):
                pair = _pair_cost(earlier[i], later[j])
                if pair is not None:
                    options.append(pair + cost[i + 1][j + 1])
            cost[i][j] = min(options, default=0.0)
    return cost


def _pair_cost(one: Word, other: Word) -> float | None:
    """Return the cost of pairing two words; `None` if they differ or are too far apart."""
    distance = abs(one.middle - other.middle) / _JITTER_S
    return distance if distance < 2 and bare(one.text) == bare(other.text) else None  # noqa: PLR2004


def _is_relevant(span: AlignedSpan, seam: Seam) -> bool:
    """Tell whether any word of a span can be output; otherwise it is no disagreement."""
    return (
        span.agreed
        or any(word.middle < seam.end for word in span.earlier)
        or any(word.middle >= seam.begin for word in span.later)
    )


def _hand_over(spans: Sequence[AlignedSpan], seam: Seam) -> int:
    """Choose the span from which on the later chunk is preferred, if nothing else decides.

    From there on its spelling, times and punctuation are used. The first criterion is a place
    between two words that both chunks have, then the end of a sentence, then closeness to the seam.
    """

    def cost(place: int) -> tuple[bool, bool, bool, float]:
        around = spans[max(0, place - 1) : place + 1]
        before = spans[place - 1] if place else None
        left = before.last if before else float("-inf")
        right = spans[place].first if place < len(spans) else float("inf")
        time_s = min(max(seam.at, left), right)
        distance = abs(time_s - seam.at)
        ends_sentence = (
            before is not None
            and bool(before.earlier)
            and before.earlier[-1].text.endswith(_SENTENCE_ENDS)
        )
        return (
            distance > seam.window,
            not all(span.agreed for span in around),
            not (ends_sentence and distance <= seam.sentence_window),
            distance,
        )

    return min(range(len(spans) + 1), key=cost)


def _choose_words(span: AlignedSpan, seam: Seam, *, prefer_earlier: bool) -> Sequence[Word]:
    """Choose the words of a span."""
    if span.agreed:
        return span.earlier if prefer_earlier else span.later
    earlier = [word for word in span.earlier if word.middle < seam.end]
    later = [word for word in span.later if word.middle >= seam.begin]
    # If a span extends beyond the reliable window, the chunk that is reliable there is used.
    before, after = span.first < seam.begin, span.last >= seam.end
    if before and after:
        # The chunks have no word in common near the seam.
        time_s = _time_between_words([*span.earlier, *span.later], seam)
        base = [word for word in earlier if word.middle < time_s]
        base += [word for word in later if word.middle >= time_s]
    elif before or after:
        base = earlier if before else later
    else:
        doubt, other_doubt = _doubt(earlier), _doubt(later)
        is_earlier = prefer_earlier if doubt == other_doubt else doubt < other_doubt
        base = earlier if is_earlier else later
    only_one = [
        word
        for word in (*earlier, *later)
        if word not in base and all(_distance_s(word, chosen) >= _SAME_PLACE_S for chosen in base)
    ]
    return sorted([*base, *only_one], key=lambda word: word.middle) if only_one else base


def _time_between_words(words: Sequence[Word], seam: Seam) -> float:
    """Choose a time near the seam, `_JITTER_S` / 2 from the middle of any word if possible."""
    middles = sorted(word.middle for word in words if abs(word.middle - seam.at) < seam.window)
    edges = [seam.begin, *middles, seam.end]

    def nearest(left: float, right: float) -> float:
        clear = min(_JITTER_S / 2, (right - left) / 2)
        return min(max(seam.at, left + clear), right - clear)

    gaps = [(min(_JITTER_S, right - left), nearest(left, right)) for left, right in pairwise(edges)]
    return min(gaps, key=lambda gap: (-gap[0], abs(gap[1] - seam.at)))[1]


def _distance_s(one: Word, other: Word) -> float:
    """Return the time between two words; negative if they overlap."""
    return max(one.start, other.start) - min(one.end, other.end)


def _doubt(words: Sequence[Word]) -> float:
    """Return the mean negative log-probability of words' tokens.

    Rounded to 0.1: smaller differences between two chunks are noise.
    """
    mean = mean_logprob(words)
    return 0.0 if mean is None else -round(mean, 1)


def bare(text: str) -> str:
    """Remove case and punctuation, which depend on how much of a sentence a chunk contains."""
    return "".join(character for character in text.casefold() if character.isalnum())
