"""Join the words of overlapping chunks: nothing lost, nothing twice.

Near a seam two chunks share some sound, and both know its middle part well: the part that is at
least half of the shared context away from where either chunk ends. The words of both versions are
aligned there. What both found is taken once. A word that one version alone has is taken too, for
leaving a word out is worse than a word too many. Where the versions have different words at the
same place, one of them is taken for the whole stretch between the words that they agree on.

The contract: if the two timings of each word differ by less than half the distance to its
neighbours, and by less than 0.24 s, a word that either chunk found in the part that both know well
comes out exactly once, unless the other chunk found another word at its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile

from parakeet_api.transcript import SAMPLE_RATE, Chunk, Word, mean_logprob

_JITTER_S = 0.24
"""Three frames: two timings of one word differ by less. Such a pair costs less than leaving one of
the two unpaired, and up to twice as much less than leaving both."""
_ALIGNED_S = 1.0
"""Beyond the part that both know well, words are aligned so much farther: the other version of a
word at its edge lies there."""
_SAME_PLACE_S = 0.08
"""One frame: words of different versions whose times are closer are two readings of one sound."""
_SENTENCE_ENDS = (".", "?", "!")


class Stitcher:
    """Join chunks as they come; give each word out once no later chunk can change it."""

    def __init__(self, *, sentence_boundary_threshold_s: float) -> None:
        self._sentence_window_s = sentence_boundary_threshold_s
        self._previous: Chunk | None = None
        self._held: list[Word] = []
        """Words near the previous chunk's end and beyond."""
        self._last_end = 0.0
        """Seconds; where the last word that was given out ends."""

    def add(self, chunk: Chunk, words: Sequence[Word]) -> Iterator[Word]:
        """Take the next chunk of the recording; yield the words that are now final.

        `words` are all that the chunk has, context included, in order of time.
        """
        joined = list(words)
        if self._previous is not None:
            seam = Seam.between(self._previous, chunk, sentence_window_s=self._sentence_window_s)
            joined = join(self._held, words, seam)
        self._previous = chunk
        settled = _settled_before(chunk)
        final = list(takewhile(lambda word: word.middle < settled, joined))
        self._held = joined[len(final) :]
        yield from self._in_order(final)

    def finish(self) -> Iterator[Word]:
        """Yield what is left after the last chunk."""
        yield from self._in_order(self._held)
        self._held = []
        self._previous = None

    def _in_order(self, words: Iterable[Word]) -> Iterator[Word]:
        """Move a start that lies, by another chunk's timing, before the end of the last word."""
        for word in words:
            start = max(word.start, self._last_end)
            end = max(word.end, start)
            self._last_end = end
            moved = (start, end) != (word.start, word.end)
            yield replace(word, start=start, end=end) if moved else word


@dataclass(frozen=True, slots=True)
class Seam:
    """Where one chunk's answer ends and the next one's begins; seconds."""

    at: float
    window: float
    """Both chunks know the sound up to so far from the seam well; 0 where they share none."""
    sentence_window: float
    """How near the seam a sentence end is preferred."""

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
        """Give where the part that both know well begins; before it the earlier chunk decides."""
        return self.at - self.window

    @property
    def end(self) -> float:
        """Give where that part ends; from there on the later chunk decides."""
        return self.at + self.window


def _window_s(context: int) -> float:
    """Leave the outer half of the context out: words cut by a chunk's edge are unreliable."""
    return max(0.0, context / 2 / SAMPLE_RATE)


def _settled_before(chunk: Chunk) -> float:
    """Give the moment, in seconds, before which the next chunk has no say."""
    context = chunk.end - chunk.owned_end
    if not context:
        # The next chunk shares no sound with this one.
        return chunk.owned_end / SAMPLE_RATE
    return chunk.owned_end / SAMPLE_RATE - _window_s(context) - _ALIGNED_S


@dataclass(frozen=True, slots=True)
class Stretch:
    """One word that both versions have, or what they have between two such words."""

    earlier: tuple[Word, ...]
    later: tuple[Word, ...]
    agreed: bool

    @property
    def first(self) -> float:
        """Give the middle of the first word of either version, seconds."""
        return min(words[0].middle for words in (self.earlier, self.later) if words)

    @property
    def last(self) -> float:
        """Give the middle of the last word of either version, seconds."""
        return max(words[-1].middle for words in (self.earlier, self.later) if words)


def join(earlier: Sequence[Word], later: Sequence[Word], seam: Seam) -> list[Word]:
    """Join the words of two chunks, each in order of time, at their seam."""
    if seam.window == 0:
        # No shared audio: each chunk is the only witness of its sound.
        return [*earlier, *later]
    first, last = seam.begin - _ALIGNED_S, seam.end + _ALIGNED_S
    head = list(takewhile(lambda word: word.middle < first, earlier))
    skipped = sum(1 for _ in takewhile(lambda word: word.middle < first, later))
    near_later = list(takewhile(lambda word: word.middle < last, later[skipped:]))
    near_earlier = list(takewhile(lambda word: word.middle < last, earlier[len(head) :]))
    stretches = [stretch for stretch in align(near_earlier, near_later) if _counts(stretch, seam)]
    hand_over = _hand_over(stretches, seam)
    return [
        *head,
        *(
            word
            for number, stretch in enumerate(stretches)
            for word in _chosen(stretch, seam, prefer_earlier=number < hand_over)
        ),
        *later[skipped + len(near_later) :],
    ]


def align(earlier: Sequence[Word], later: Sequence[Word]) -> list[Stretch]:
    """Pair equal words at the least cost in time; what lies between the pairs is a stretch each.

    A word without a partner costs 1, a pair its distance in units of `_JITTER_S`.
    """
    cost = _alignment_costs(earlier, later)
    stretches: list[Stretch] = []
    here = there = 0
    begin_here = begin_there = 0

    def close_stretch() -> None:
        if here > begin_here or there > begin_there:
            parts = tuple(earlier[begin_here:here]), tuple(later[begin_there:there])
            stretches.append(Stretch(*parts, agreed=False))

    while here < len(earlier) and there < len(later):
        best = cost[here][there]
        pair = _pair_cost(earlier[here], later[there])
        if pair is not None and best == pair + cost[here + 1][there + 1]:
            close_stretch()
            stretches.append(Stretch((earlier[here],), (later[there],), agreed=True))
            here, there = here + 1, there + 1
            begin_here, begin_there = here, there
        elif best == 1 + cost[here + 1][there]:
            here += 1
        else:
            there += 1
    here, there = len(earlier), len(later)
    close_stretch()
    return stretches


def _alignment_costs(earlier: Sequence[Word], later: Sequence[Word]) -> list[list[float]]:
    """Give the least cost of aligning all words from each place of both versions on."""
    cost = [[0.0] * (len(later) + 1) for _ in range(len(earlier) + 1)]
    for here in range(len(earlier), -1, -1):
        for there in range(len(later), -1, -1):
            options = []
            if here < len(earlier):
                options.append(1 + cost[here + 1][there])
            if there < len(later):
                options.append(1 + cost[here][there + 1])
            if here < len(earlier) and there < len(later):
                pair = _pair_cost(earlier[here], later[there])
                if pair is not None:
                    options.append(pair + cost[here + 1][there + 1])
            cost[here][there] = min(options, default=0.0)
    return cost


def _pair_cost(one: Word, other: Word) -> float | None:
    """Tell what it costs to take two words for one; `None` where they are two."""
    distance = abs(one.middle - other.middle) / _JITTER_S
    return distance if distance < 2 and _bare(one.text) == _bare(other.text) else None  # noqa: PLR2004


def _counts(stretch: Stretch, seam: Seam) -> bool:
    """Tell whether any word of a stretch can be chosen; else it is no sign of a disagreement."""
    return (
        stretch.agreed
        or any(word.middle < seam.end for word in stretch.earlier)
        or any(word.middle >= seam.begin for word in stretch.later)
    )


def _hand_over(stretches: Sequence[Stretch], seam: Seam) -> int:
    """Choose before which stretch the later version takes over, where nothing else decides.

    Its spelling, times and punctuation then hold. First choice is a place between two words that
    both versions have; then the end of a sentence; then the nearest to the seam.
    """

    def cost(place: int) -> tuple[bool, bool, bool, float]:
        around = stretches[max(0, place - 1) : place + 1]
        before = stretches[place - 1] if place else None
        left = before.last if before else float("-inf")
        right = stretches[place].first if place < len(stretches) else float("inf")
        moment = min(max(seam.at, left), right)
        distance = abs(moment - seam.at)
        ends_sentence = (
            before is not None
            and bool(before.earlier)
            and before.earlier[-1].text.endswith(_SENTENCE_ENDS)
        )
        return (
            distance > seam.window,
            not all(stretch.agreed for stretch in around),
            not (ends_sentence and distance <= seam.sentence_window),
            distance,
        )

    return min(range(len(stretches) + 1), key=cost)


def _chosen(stretch: Stretch, seam: Seam, *, prefer_earlier: bool) -> Sequence[Word]:
    """Choose the words of a stretch."""
    if stretch.agreed:
        return stretch.earlier if prefer_earlier else stretch.later
    earlier = [word for word in stretch.earlier if word.middle < seam.end]
    later = [word for word in stretch.later if word.middle >= seam.begin]
    # Where a stretch reaches beyond the part that both know well, one version alone decides.
    before, after = stretch.first < seam.begin, stretch.last >= seam.end
    if before and after:
        # They agree on nothing near the seam.
        moment = _clear_moment([*stretch.earlier, *stretch.later], seam)
        base = [word for word in earlier if word.middle < moment]
        base += [word for word in later if word.middle >= moment]
    elif before or after:
        base = earlier if before else later
    else:
        doubt, other_doubt = _doubt(earlier), _doubt(later)
        is_earlier = prefer_earlier if doubt == other_doubt else doubt < other_doubt
        base = earlier if is_earlier else later
    alone = [
        word
        for word in (*earlier, *later)
        if word not in base and all(_distance_s(word, taken) >= _SAME_PLACE_S for taken in base)
    ]
    return sorted([*base, *alone], key=lambda word: word.middle) if alone else base


def _clear_moment(words: Sequence[Word], seam: Seam) -> float:
    """Choose a moment near the seam as far from any middle as `_JITTER_S` / 2, or as can be."""
    middles = sorted(word.middle for word in words if abs(word.middle - seam.at) < seam.window)
    edges = [seam.begin, *middles, seam.end]

    def nearest(left: float, right: float) -> float:
        clear = min(_JITTER_S / 2, (right - left) / 2)
        return min(max(seam.at, left + clear), right - clear)

    gaps = [(min(_JITTER_S, right - left), nearest(left, right)) for left, right in pairwise(edges)]
    return min(gaps, key=lambda gap: (-gap[0], abs(gap[1] - seam.at)))[1]


def _distance_s(one: Word, other: Word) -> float:
    """Give the time between two words; negative where they overlap."""
    return max(one.start, other.start) - min(one.end, other.end)


def _doubt(words: Sequence[Word]) -> float:
    """Average the negative log-probability of words' tokens.

    In steps of 0.1: less is the noise of two views of the same sound.
    """
    mean = mean_logprob(words)
    return 0.0 if mean is None else -round(mean, 1)


def _bare(text: str) -> str:
    """Strip what differs with a chunk's view of the sentence: case and punctuation."""
    return "".join(character for character in text.casefold() if character.isalnum())
