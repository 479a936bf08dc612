"""Choose between what a model hears and what it hears with keywords in mind.

A boost does not only find keywords that were said: it also pulls other words towards them, and the
words after them along. So both versions are decoded, and the second one counts only where it
completes a keyword that the first one lacks, and where the model itself thinks it not much less
likely.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from parakeet_api.keywords import bare
from parakeet_api.transcript import Word, mean_logprob

_JITTER_S = 0.4
"""The same word may be so far apart in the two versions."""
_MAX_LOSS = 10.0
"""How much less likely, natural logarithm, the model may think a keyword than what it replaces. In
117 recordings 42 names cost up to that, 2 more; of wrong ones 2 cost 7, the next ones 14."""
_MIN_LOGPROB = -1.6
"""Mean log-probability that the tokens of a keyword must have for the model itself. It leaves out 3
of those 42, and the 2 wrong ones."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the versions differ, between two words that both have; one may have nothing there."""

    plain: slice
    boosted: slice


def choose(
    plain: Sequence[Word], boosted: Sequence[Word], phrases: Collection[tuple[str, ...]]
) -> list[Word]:
    """Return the plain words, with keywords of the boosted ones where they are likely enough.

    `phrases` are the keywords, each as its bare words.
    """
    found = keyword_places(boosted, phrases)
    chosen: list[Word] = []
    taken = 0
    for difference in differences(plain, boosted):
        places = sorted(found.intersection(range(len(boosted))[difference.boosted]))
        chosen += plain[taken : difference.plain.start]
        words = list(plain[difference.plain])
        for run in _runs(places):
            words = _with_keyword(words, boosted[run], boosted[difference.boosted])
        chosen += words
        taken = difference.plain.stop
    return [*chosen, *plain[taken:]]


def _with_keyword(
    words: list[Word], keyword: Sequence[Word], boosted: Sequence[Word]
) -> list[Word]:
    """Put a keyword in the place of those words that it is nearest to, if it is likely enough."""
    replaced = [
        word
        for word in words
        if min(boosted, key=lambda other: abs(other.middle - word.middle)) in keyword
    ]
    mean = mean_logprob(keyword)
    if mean is not None and mean < _MIN_LOGPROB:
        return words
    if _logprob(replaced) - _logprob(keyword) > _MAX_LOSS:
        return words
    kept = [word for word in words if word not in replaced]
    marked = [replace(word, from_keyword=True) for word in keyword]
    return sorted([*kept, *marked], key=lambda word: word.middle)


def _runs(places: Sequence[int]) -> Iterator[slice]:
    """Return the runs of places that follow each other."""
    start = 0
    for at in range(1, len(places) + 1):
        if at == len(places) or places[at] != places[at - 1] + 1:
            yield slice(places[start], places[at - 1] + 1)
            start = at


def keyword_places(words: Sequence[Word], phrases: Collection[tuple[str, ...]]) -> set[int]:
    """Return the places of the words that are part of a whole keyword."""
    bares = [bare(word.text) for word in words]
    lengths = sorted({len(phrase) for phrase in phrases})
    return {
        place
        for start in range(len(bares))
        for length in lengths
        if tuple(bares[start : start + length]) in phrases
        for place in range(start, start + length)
    }


def differences(plain: Sequence[Word], boosted: Sequence[Word]) -> Iterator[Difference]:
    """Pair equal words in order of time; give what lies between the pairs."""
    here = there = 0
    for at, word in enumerate(plain):
        for other in range(there, len(boosted)):
            distance = boosted[other].start - word.start
            if distance > _JITTER_S:
                break
            if distance >= -_JITTER_S and bare(boosted[other].text) == bare(word.text):
                if at > here or other > there:
                    yield Difference(slice(here, at), slice(there, other))
                here, there = at + 1, other + 1
                break
    if here < len(plain) or there < len(boosted):
        yield Difference(slice(here, len(plain)), slice(there, len(boosted)))


def _logprob(words: Sequence[Word]) -> float:
    return sum(word.logprob or 0.0 for word in words)
