from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.speech.stitching import Stitcher
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Token, Word


def chunk(index: int, start_s: float, owned: tuple[float, float], end_s: float) -> Chunk:
    samples = np.zeros(round((end_s - start_s) * SAMPLE_RATE), np.int16)
    start, owned_start, owned_end = (round(s * SAMPLE_RATE) for s in (start_s, *owned))
    return Chunk(index, start, samples, owned_start, owned_end)


FIRST = chunk(0, 0, (0, 10), 12)
SECOND = chunk(1, 8, (10, 20), 22)
"""Two chunks that share 8 to 12 s, with the seam at 10 s."""


def word(text: str, middle: float, *, length: float = 0.2, logprob: float = 0.0) -> Word:
    return Word(text, middle - length / 2, middle + length / 2, (Token(1, text, logprob),))


def stitch(*parts: tuple[Chunk, list[Word]], threshold_s: float = 0.5) -> list[Word]:
    stitcher = Stitcher(sentence_boundary_threshold_s=threshold_s)
    words = [final for part in parts for final in stitcher.add(*part)]
    return [*words, *stitcher.finish()]


def texts(words: list[Word]) -> list[str]:
    return [word.text for word in words]


def test_words_in_the_overlap_appear_once() -> None:
    words = [word(text, at) for text, at in [("a", 8.5), ("b", 9.5), ("c", 10.5), ("d", 11.5)]]

    assert texts(stitch((FIRST, words), (SECOND, words))) == ["a", "b", "c", "d"]


def test_a_word_timed_on_either_side_of_the_seam_appears_once() -> None:
    def around(at: float) -> list[Word]:
        return [word("in", 9.6), word("Boston", at), word("today.", 10.5)]

    assert texts(stitch((FIRST, around(9.95)), (SECOND, around(10.05)))) == [
        "in",
        "Boston",
        "today.",
    ]
    assert texts(stitch((FIRST, around(10.05)), (SECOND, around(9.95)))) == [
        "in",
        "Boston",
        "today.",
    ]


def test_repeated_words_are_not_taken_for_duplicates() -> None:
    words = [word("two", 9.1 + 0.3 * n) for n in range(7)]

    assert texts(stitch((FIRST, words), (SECOND, words))) == ["two"] * 7


def test_the_less_doubtful_version_of_a_word_is_kept() -> None:
    sure = [word("in", 9.3), word("April", 9.9), word("we", 10.5)]
    unsure = [word("in", 9.3), word("Jpril", 9.9, logprob=-2.0), word("we", 10.5)]

    assert texts(stitch((FIRST, unsure), (SECOND, sure))) == ["in", "April", "we"]
    assert texts(stitch((FIRST, sure), (SECOND, unsure))) == ["in", "April", "we"]


def test_a_sentence_end_near_the_seam_is_preferred_as_the_hand_over() -> None:
    earlier = [word("right.", 9.55), word("So", 9.9), word("now", 10.5)]
    later = [word("right", 9.55), word("so", 9.9), word("now", 10.5)]

    near = stitch((FIRST, earlier), (SECOND, later), threshold_s=0.5)
    not_preferred = stitch((FIRST, earlier), (SECOND, later), threshold_s=0)

    assert texts(near) == ["right.", "so", "now"]
    assert texts(not_preferred) == ["right.", "So", "now"]


def test_without_shared_audio_every_word_is_kept() -> None:
    first, second = chunk(0, 0, (0, 10), 10), chunk(1, 10, (10, 20), 20)

    joined = stitch((first, [word("a", 9.99)]), (second, [word("b", 10.01)]))

    assert texts(joined) == ["a", "b"]


def test_words_far_from_a_seam_are_output_at_once() -> None:
    stitcher = Stitcher(sentence_boundary_threshold_s=0.5)

    given_out = list(stitcher.add(FIRST, [word("a", 1.0), word("b", 7.9), word("c", 9.9)]))

    assert texts(given_out) == ["a", "b"]


def test_times_never_run_backwards_where_two_chunks_time_a_word_differently() -> None:
    earlier = [word("a", 9.0, length=0.6), word("b", 9.7, length=0.6)]
    later = [word("b", 9.7), word("c", 10.1, length=0.6)]

    joined = stitch((FIRST, earlier), (SECOND, later))

    assert all(one.end <= other.start for one, other in pairwise(joined))
    assert all(one.start <= one.end for one in joined)


Spread = Callable[[float, float], float]
"""Draws a number between two others."""


def spoken_words(
    spread: Spread, choose: Callable[[Sequence[float]], float]
) -> tuple[list[float], list[list[float]], list[float]]:
    """Place words around the seam; return their middles by each chunk, and the space around each.

    The timings differ by less than half the distance to the next word, and by less than 0.24 s.
    """
    middles = [spread(7.0, 9.0)]
    while middles[-1] < 12.5:
        middles.append(middles[-1] + choose([0.12, 0.2, 0.3, 0.5, 1.5]))
    gaps = [b - a for a, b in pairwise(middles)]
    rooms = [min(pair) for pair in zip([9.0, *gaps], [*gaps, 9.0], strict=True)]
    # Each chunk is off by less than a quarter, so the two differ by less than a half.
    timed = [
        [
            middle + spread(-1, 1) * min(0.24 * room, 0.119)
            for middle, room in zip(middles, rooms, strict=True)
        ]
        for _ in range(2)
    ]
    return middles, timed, rooms


@st.composite
def two_versions(draw: st.DrawFn) -> tuple[list[Word], list[Word], list[str]]:
    """Draw words around the seam, of few texts, so that they repeat, as two chunks time them."""
    middles, timed, rooms = spoken_words(
        lambda low, high: draw(st.floats(low, high)), lambda gaps: draw(st.sampled_from(gaps))
    )
    names = [draw(st.sampled_from(["a", "b", "c."])) for _ in middles]
    first, second = (
        [
            word(name, at, length=min(0.2, room), logprob=draw(st.floats(-1, 0)))
            for name, at, room in zip(names, times, rooms, strict=True)
        ]
        for times in timed
    )
    return (
        [w for w in first if w.middle < 12],
        [w for w in second if w.middle >= 8],
        names,
    )


@given(two_versions())
def test_stitching_loses_and_repeats_no_word_within_its_contract(
    versions: tuple[list[Word], list[Word], list[str]],
) -> None:
    earlier, later, names = versions

    assert texts(stitch((FIRST, earlier), (SECOND, later))) == names


@given(
    st.lists(st.floats(0, 12), max_size=20),
    st.lists(st.floats(8, 22), max_size=20),
    st.floats(0, 2),
)
def test_any_two_word_lists_join_in_order_and_keep_words_of_one_chunk(
    first: list[float], second: list[float], threshold_s: float
) -> None:
    earlier = [word(f"e{n}", at) for n, at in enumerate(sorted(first))]
    later = [word(f"l{n}", at) for n, at in enumerate(sorted(second))]

    joined = stitch((FIRST, earlier), (SECOND, later), threshold_s=threshold_s)

    assert all(one.end <= other.start for one, other in pairwise(joined))
    alone = [w.text for w in earlier if w.middle < 9] + [w.text for w in later if w.middle > 11]
    assert [text for text in texts(joined) if text in alone] == alone
    assert len(set(texts(joined))) == len(joined)


# Two chunks that disagree. The reliable window is 9 to 11 s.


def test_a_word_of_one_chunk_is_kept_however_doubtful_it_is() -> None:
    complete = [word("did", 9.5), word("not", 9.8, logprob=-0.3), word("agree", 10.1)]
    without = [word("did", 9.5), word("agree", 10.1)]

    assert texts(stitch((FIRST, complete), (SECOND, without))) == ["did", "not", "agree"]
    assert texts(stitch((FIRST, without), (SECOND, complete))) == ["did", "not", "agree"]


def test_a_word_outside_a_chunks_reliable_window_is_not_taken_from_it() -> None:
    assert texts(stitch((FIRST, [word("cut", 11.5)]), (SECOND, []))) == []
    assert texts(stitch((FIRST, []), (SECOND, [word("cut", 8.5)]))) == []


def test_where_two_chunks_differ_the_words_of_one_are_taken() -> None:
    around = word("please", 9.1), word("today", 10.9)
    earlier = [around[0], word("recognise", 9.6), word("speech", 10.1), around[1]]
    later = [
        around[0],
        *(word(text, 9.45 + 0.2 * n) for n, text in enumerate(["wreck", "a", "nice", "beach"])),
        around[1],
    ]

    def doubtful(words: list[Word]) -> list[Word]:
        return [word(w.text, w.middle, logprob=-1.0) for w in words]

    assert texts(stitch((FIRST, earlier), (SECOND, doubtful(later)))) == texts(earlier)
    assert texts(stitch((FIRST, doubtful(earlier)), (SECOND, later))) == texts(later)


def test_words_far_from_those_that_differ_are_kept() -> None:
    earlier = [word("so", 9.1), word("April", 9.5), word("we", 10.8)]
    later = [
        word("so", 9.1),
        word("Jpril", 9.5, logprob=-2.0),
        word("then", 10.3),
        word("we", 10.8),
    ]

    joined = stitch((FIRST, earlier), (SECOND, later))

    assert texts(joined) == ["so", "April", "then", "we"]


def test_two_chunks_without_a_common_word_are_joined_at_one_time() -> None:
    earlier = [word(f"e{n}", 8.1 + 0.4 * n) for n in range(10)]
    later = [word(f"l{n}", 8.1 + 0.4 * n) for n in range(10)]

    joined = texts(stitch((FIRST, earlier), (SECOND, later)))

    assert joined == [*(f"e{n}" for n in range(5)), *(f"l{n}" for n in range(5, 10))]


def test_the_hand_over_may_lie_in_a_pause_that_begins_before_the_window() -> None:
    """Words that were already output do not count as a disagreement."""
    earlier = [word("Right.", 7.0), word("So", 10.9)]
    later = [word("right", 8.2), word("so", 10.9)]

    stitcher = Stitcher(sentence_boundary_threshold_s=0.5)
    given_out = list(stitcher.add(FIRST, earlier))
    given_out += stitcher.add(SECOND, later)

    assert texts([*given_out, *stitcher.finish()]) == ["Right.", "so"]


@dataclass(frozen=True)
class Seam:
    """The words of two chunks around the seam, and the expected result."""

    earlier: list[Word]
    later: list[Word]
    expected: Counter[str]
    """Expected number of occurrences of each text."""
    alone: int
    """Words in the reliable window that only one chunk has."""


def draw_seam(draw: random.Random, *, missing: str) -> Seam:
    """Draw words of few texts of which one chunk or the other lacks `one`, or one in ten."""
    middles, timed, rooms = spoken_words(draw.uniform, draw.choice)
    names = [draw.choice("abc") for _ in middles]
    first, second = (
        [
            word(name, at, length=min(0.2, room), logprob=draw.uniform(-1, 0))
            for name, at, room in zip(names, times, rooms, strict=True)
        ]
        for times in timed
    )
    known = [n for n in range(len(names)) if 9 < first[n].middle < 11 and 9 < second[n].middle < 11]
    lacks: tuple[set[int], set[int]] = (set(), set())
    if missing == "one":
        for n in known[: draw.randint(0, len(known))][-1:]:
            draw.choice(lacks).add(n)
    else:
        # Far apart, so that the other chunk has no word at the same time.
        for n in range(draw.randint(0, 4), len(names), 10):
            draw.choice(lacks).add(n)
    expected: Counter[str] = Counter()
    alone = 0
    for n, name in enumerate(names):
        by_earlier = n not in lacks[0] and first[n].middle < (11 if n in lacks[1] else 12)
        by_later = n not in lacks[1] and second[n].middle >= (9 if n in lacks[0] else 8)
        expected[name] += by_earlier or by_later
        alone += n in known and (n in lacks[0] or n in lacks[1])
    return Seam(
        [w for n, w in enumerate(first) if n not in lacks[0] and w.middle < 12],
        [w for n, w in enumerate(second) if n not in lacks[1] and w.middle >= 8],
        expected,
        alone,
    )


@pytest.mark.parametrize("missing", ["one", "one in ten"])
def test_over_4000_seams_no_word_of_one_chunk_is_lost_or_repeated(missing: str) -> None:
    draw = random.Random(16)
    alone = 0
    lost: Counter[str] = Counter()
    doubled: Counter[str] = Counter()
    for _ in range(4000):
        seam = draw_seam(draw, missing=missing)
        found = Counter(texts(stitch((FIRST, seam.earlier), (SECOND, seam.later))))
        alone += seam.alone
        lost += seam.expected - found
        doubled += found - seam.expected

    assert alone > 1500
    assert lost.total() == 0
    assert doubled.total() == 0


@st.composite
def disagreeing_versions(draw: st.DrawFn) -> tuple[list[Word], list[Word], list[tuple[str, ...]]]:
    """Draw distinct words in the reliable window, some of which one chunk drops, adds,
    changes or splits; give both versions and, for each place, what each of them has there.

    The words are 0.4 s apart, so that no two are at one place, and up to 0.15 s off in one version.
    """
    versions: tuple[list[Word], list[Word]] = ([], [])
    places: list[tuple[str, ...]] = []
    for n in range(5):
        middle = 9.2 + 0.4 * n
        kinds = ["both", "drop", "change", "split"]
        kind = draw(st.sampled_from(kinds)) if n % 2 else "both"
        changed, other = versions if draw(st.booleans()) else versions[::-1]
        off = draw(st.floats(-0.15, 0.15))
        other.append(word(f"w{n}", middle, logprob=draw(st.floats(-1, 0))))
        logprob = draw(st.floats(-1, 0))
        match kind:
            case "both":
                changed.append(word(f"W{n},", middle + off, logprob=logprob))
                places.append((f"w{n}",))
            case "drop":
                places.append((f"w{n}",))
            case "change":
                changed.append(word(f"x{n}", middle + off, logprob=logprob))
                places.append((f"w{n}", f"x{n}"))
            case "split":
                for part, shift in (("x", -0.05), ("y", 0.05)):
                    at = middle + off / 3 + shift
                    changed.append(word(f"{part}{n}", at, length=0.1, logprob=logprob))
                places.append((f"w{n}", f"x{n} y{n}"))
    return (*versions, places)


@given(disagreeing_versions())
def test_each_place_has_the_words_of_one_chunk(
    versions: tuple[list[Word], list[Word], list[tuple[str, ...]]],
) -> None:
    earlier, later, places = versions

    joined = [w.text.lower().strip(",") for w in stitch((FIRST, earlier), (SECOND, later))]

    for number, allowed in enumerate(places):
        here = " ".join(text for text in joined if text.endswith(str(number)))
        assert here in allowed
    assert [int(text[1:]) for text in joined] == sorted(int(text[1:]) for text in joined)
