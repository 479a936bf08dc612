"""Merge the plain and the boosted transcript of a chunk.

Boosting finds keywords that were spoken, but also changes other words to keywords and affects the
words after them. So both transcripts are decoded, and the boosted one is used only where it has a
complete keyword that the plain one lacks and whose probability without boosts is not much lower.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from parakeet_api.keywords import bare
from parakeet_api.transcript import Word, mean_logprob

_JITTER_S = 0.4
"""Maximum difference between the times of the same word in the two transcripts."""
_MAX_LOSS = 10.0
"""Maximum loss of log-probability (natural) when a keyword replaces words. In 117 recordings 42
correct names lost up to this and 2 lost more; wrong ones lost 7 (two of them) or at least 14."""
_MIN_LOGPROB = -1.6
"""Minimum mean log-probability of a keyword's tokens without boosts. It rejects 3 of those 42
names, and the 2 wrong ones."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference between two words that both transcripts have; one side may be empty."""

    plain: slice
    boosted: slice


def choose(
    plain: Sequence[Word], boosted: Sequence[Word], phrases: Collection[tuple[str, ...]]
) -> list[Word]:
    """Return the plain words, with boosted keywords where they are probable enough.

    `phrases` are the keywords, each as a tuple of normalised words.
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
    """Replace the words that are nearest in time to a keyword, if it is probable enough.

    `boosted` are all boosted words of the difference, the keyword among them.
    """
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
    """Yield the runs of consecutive positions."""
    start = 0
    for at in range(1, len(places) + 1):
        if at == len(places) or places[at] != places[at - 1] + 1:
            yield slice(places[start], places[at - 1] + 1)
            start = at


def keyword_places(words: Sequence[Word], phrases: Collection[tuple[str, ...]]) -> set[int]:
    """Return the positions of words that are part of a complete keyword."""
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
    """Align equal words in time order; yield the differences between them."""
    plain_start = boosted_start = 0
    for at, word in enumerate(plain):
        for other in range(boosted_start, len(boosted)):
            distance = boosted[other].start - word.start
            if distance > _JITTER_S:
                break
            if distance >= -_JITTER_S and bare(boosted[other].text) == bare(word.text):
                if at > plain_start or other > boosted_start:
                    yield Difference(slice(plain_start, at), slice(boosted_start, other))
                plain_start, boosted_start = at + 1, other + 1
                break
    if plain_start < len(plain) or boosted_start < len(boosted):
        yield Difference(slice(plain_start, len(plain)), slice(boosted_start, len(boosted)))


def _logprob(words: Sequence[Word]) -> float:
    return sum(word.logprob or 0.0 for word in words)
