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
from parakeet_api.transcript import Word

_JITTER_S = 0.4
"""The same word may be so far apart in the two versions."""
_MAX_LOSS = 12.0


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the versions differ, between two words that both have; one may have nothing there."""

    plain: slice
    boosted: slice


def choose(
    plain: Sequence[Word], boosted: Sequence[Word], phrases: Collection[tuple[str, ...]]
) -> list[Word]:
    """Give the plain words, with keywords of the boosted ones where they are likely enough.

    `phrases` are the keywords, each as its bare words.
    """
    found = keyword_places(boosted, phrases)
    chosen: list[Word] = []
    taken = 0
    for difference in differences(plain, boosted):
        words = boosted[difference.boosted]
        places = found.intersection(range(len(boosted))[difference.boosted])
        if places and _loss(plain[difference.plain], words) <= _MAX_LOSS:
            first = difference.boosted.start
            chosen += plain[taken : difference.plain.start]
            chosen += [
                replace(word, from_keyword=True) if place in places else word
                for place, word in enumerate(words, first)
            ]
            taken = difference.plain.stop
    return [*chosen, *plain[taken:]]


def keyword_places(words: Sequence[Word], phrases: Collection[tuple[str, ...]]) -> set[int]:
    """Give the places of the words that are part of a whole keyword."""
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


def _loss(plain: Sequence[Word], boosted: Sequence[Word]) -> float:
    """Tell how much less likely the model thinks the boosted words, natural logarithm."""
    return _logprob(plain) - _logprob(boosted)


def _logprob(words: Sequence[Word]) -> float:
    return sum(word.logprob or 0.0 for word in words)
