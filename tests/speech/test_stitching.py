from __future__ import annotations

from itertools import pairwise

import numpy as np
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


def test_words_far_from_a_seam_come_out_at_once() -> None:
    stitcher = Stitcher(sentence_boundary_threshold_s=0.5)

    given_out = list(stitcher.add(FIRST, [word("a", 1.0), word("b", 7.9), word("c", 9.9)]))

    assert texts(given_out) == ["a", "b"]


def test_times_never_run_backwards_where_two_chunks_time_a_word_differently() -> None:
    earlier = [word("a", 9.0, length=0.6), word("b", 9.7, length=0.6)]
    later = [word("b", 9.7), word("c", 10.1, length=0.6)]

    joined = stitch((FIRST, earlier), (SECOND, later))

    assert all(one.end <= other.start for one, other in pairwise(joined))
    assert all(one.start <= one.end for one in joined)


@st.composite
def two_versions(draw: st.DrawFn) -> tuple[list[Word], list[Word], list[str]]:
    """Draw words around the seam, of few texts, so that they repeat, as two chunks time them.

    The timings differ by less than half the distance to the next word, and by less than 0.24 s.
    """
    middles: list[float] = [draw(st.floats(7.0, 9.0))]
    while middles[-1] < 12.5:
        middles.append(middles[-1] + draw(st.sampled_from([0.12, 0.2, 0.3, 0.5, 1.5])))
    names = [draw(st.sampled_from(["a", "b", "c."])) for _ in middles]
    gaps = [b - a for a, b in pairwise(middles)]
    rooms = [min(pair) for pair in zip([9.0, *gaps], [*gaps, 9.0], strict=True)]
    # Each chunk is off by less than a quarter, so the two differ by less than a half.
    jitters = [
        [draw(st.floats(-1, 1)) * min(0.24 * room, 0.119) for room in rooms] for _ in range(2)
    ]
    first, second = (
        [
            word(name, middle + off, length=min(0.2, room), logprob=draw(st.floats(-1, 0)))
            for name, middle, off, room in zip(names, middles, jitter, rooms, strict=True)
        ]
        for jitter in jitters
    )
    return (
        [w for w in first if w.middle < 12],
        [w for w in second if w.middle >= 8],
        names,
    )


@given(two_versions())
def test_stitching_loses_and_doubles_nothing_within_its_contract(
    versions: tuple[list[Word], list[Word], list[str]],
) -> None:
    earlier, later, names = versions

    assert texts(stitch((FIRST, earlier), (SECOND, later))) == names


@given(
    st.lists(st.floats(0, 12), max_size=20),
    st.lists(st.floats(8, 22), max_size=20),
    st.floats(0, 2),
)
def test_any_two_word_lists_join_in_order_and_keep_what_one_chunk_alone_heard(
    first: list[float], second: list[float], threshold_s: float
) -> None:
    earlier = [word(f"e{n}", at) for n, at in enumerate(sorted(first))]
    later = [word(f"l{n}", at) for n, at in enumerate(sorted(second))]

    joined = stitch((FIRST, earlier), (SECOND, later), threshold_s=threshold_s)

    assert all(one.end <= other.start for one, other in pairwise(joined))
    alone = [w.text for w in earlier if w.middle < 9] + [w.text for w in later if w.middle > 11]
    assert [text for text in texts(joined) if text in alone] == alone
    assert len(set(texts(joined))) == len(joined)
