from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.settings import Settings
from parakeet_api.speech.chunking import ChunkPolicy, plan_chunks
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Pcm

LOUD = 8000


def speech_like(seconds: float, *, seed: int = 0) -> Pcm:
    """Make noise without silences."""
    samples = np.random.default_rng(seed).normal(0, LOUD, round(seconds * SAMPLE_RATE))
    return samples.clip(-32768, 32767).astype(np.int16)


def blocks_of(samples: Pcm, size: int) -> Iterator[Pcm]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def policy(longest_s: float, **changes: object) -> ChunkPolicy:
    return ChunkPolicy.from_settings(replace(Settings(), **changes), longest_s=longest_s)  # type: ignore[arg-type]


def seams(chunks: list[Chunk]) -> list[float]:
    return [chunk.owned_end / SAMPLE_RATE for chunk in chunks[:-1]]


@st.composite
def recordings(draw: st.DrawFn) -> Pcm:
    """Draw noise of up to 4 s with silences anywhere; the sample values do not matter."""
    samples = np.full(draw(st.integers(0, 4 * SAMPLE_RATE)), LOUD, np.int16)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, max(0, len(samples) - 1)))
        samples[start : start + draw(st.integers(1, SAMPLE_RATE))] = 0
    return samples


@st.composite
def policies(draw: st.DrawFn) -> ChunkPolicy:
    settings = Settings.from_env(
        {
            "CHUNK_OVERLAP_SECONDS": str(draw(st.sampled_from([0, 0.001, 0.1, 1, 30]))),
            "ENABLE_OVERLAP_CHUNKING": str(draw(st.booleans())),
            "ENABLE_SILENCE_ALIGNED_CHUNKING": str(draw(st.booleans())),
            "SILENCE_MAX_SHIFT_SECONDS": str(draw(st.sampled_from([0, 0.01, 0.3, 2, 60]))),
            "MIN_SILENCE_DURATION": str(draw(st.sampled_from([0.01, 0.1, 0.35]))),
            "SILENCE_THRESHOLD_DB": draw(st.sampled_from(["-38dB", "-90", "0"])),
        }
    )
    return ChunkPolicy.from_settings(settings, longest_s=draw(st.floats(0.05, 5)))


@given(samples=recordings(), policy=policies(), block=st.integers(1, SAMPLE_RATE))
def test_owned_ranges_tile_any_recording_under_any_policy(
    samples: Pcm, policy: ChunkPolicy, block: int
) -> None:
    chunks = list(plan_chunks(blocks_of(samples, block), policy))

    borders = [0, *(chunk.owned_end for chunk in chunks)]
    assert [chunk.owned_start for chunk in chunks] == borders[:-1]
    assert borders[-1] == len(samples)
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    for chunk in chunks:
        assert chunk.start <= chunk.owned_start < chunk.owned_end <= chunk.end
        assert len(chunk.samples) <= policy.longest
        np.testing.assert_array_equal(chunk.samples, samples[chunk.start : chunk.end])


@given(samples=recordings(), policy=policies())
def test_neighbours_share_at_most_the_overlap_and_every_chunk_advances(
    samples: Pcm, policy: ChunkPolicy
) -> None:
    chunks = list(plan_chunks([samples], policy))

    for earlier, later in pairwise(chunks):
        assert earlier.end - later.start <= policy.overlap
        assert later.start >= earlier.start
        assert later.owned_end > earlier.owned_end


def test_a_cut_moves_to_the_nearest_silence() -> None:
    samples = speech_like(60)
    for start_s in (22.0, 24.5, 26.9):
        samples[round(start_s * SAMPLE_RATE) : round((start_s + 0.5) * SAMPLE_RATE)] = 0

    chunks = list(plan_chunks([samples], policy(30)))

    # Between 23.5 and 27.5 s; the middle, 25.5 s, lies nearer 24.5-25.0 than 26.9-27.4.
    assert 24.5 < seams(chunks)[0] < 25.0


@pytest.mark.parametrize(("silence_s", "shared_s"), [(0.0, 5.0), (0.5, 5.0), (0.7, 1.0)])
def test_neighbours_share_less_at_a_long_silence(silence_s: float, shared_s: float) -> None:
    samples = speech_like(60)
    samples[25 * SAMPLE_RATE : round((25 + silence_s) * SAMPLE_RATE)] = 0

    first, second = list(plan_chunks([samples], policy(30)))[:2]

    # A chunk starts on the recording's grid of 80 ms.
    assert (first.end - second.start) / SAMPLE_RATE == pytest.approx(shared_s, abs=0.08)


def test_a_silence_shorter_than_the_minimum_does_not_count_as_one() -> None:
    samples = speech_like(60)
    samples[round(25.4 * SAMPLE_RATE) : round(25.6 * SAMPLE_RATE)] = 300
    samples[round(26.5 * SAMPLE_RATE) : round(27.0 * SAMPLE_RATE)] = 300

    chunks = list(plan_chunks([samples], policy(30)))

    assert 26.5 < seams(chunks)[0] < 27.0


def test_without_silence_a_cut_moves_to_the_quietest_point() -> None:
    samples = speech_like(60)
    quiet = slice(round(24.0 * SAMPLE_RATE), round(24.1 * SAMPLE_RATE))
    samples[quiet] = samples[quiet] // 3

    chunks = list(plan_chunks([samples], policy(30)))

    assert seams(chunks)[0] == pytest.approx(24.05, abs=0.04)


def seam_with(quiet: dict[tuple[float, float], int], **environ: str) -> float:
    """Cut a minute of noise into 30 s chunks; `quiet` are spans in seconds and their level."""
    samples = speech_like(60)
    for (start_s, end_s), level in quiet.items():
        samples[round(start_s * SAMPLE_RATE) : round(end_s * SAMPLE_RATE)] = level
    settings = Settings.from_env(environ)
    return seams(list(plan_chunks([samples], ChunkPolicy.from_settings(settings, longest_s=30))))[0]


@pytest.mark.parametrize(("threshold", "at"), [("-38dB", (24.5, 25.0)), ("-50dB", (24.0, 24.1))])
def test_silence_is_what_is_below_the_threshold(threshold: str, at: tuple[float, float]) -> None:
    # -41 dB, long enough for a silence; and one that is too short for one, but quieter.
    quiet = {(24.5, 25.0): 300, (24.0, 24.1): 0}

    start_s, end_s = at
    assert start_s < seam_with(quiet, SILENCE_THRESHOLD_DB=threshold) < end_s


@pytest.mark.parametrize(("shortest", "at"), [("0.35", (26.5, 27.0)), ("0.1", (25.4, 25.6))])
def test_the_minimum_silence_is_the_configured_one(shortest: str, at: tuple[float, float]) -> None:
    quiet = {(25.4, 25.6): 300, (26.5, 27.0): 300}

    start_s, end_s = at
    assert start_s < seam_with(quiet, MIN_SILENCE_DURATION=shortest) < end_s


@pytest.mark.parametrize(("shift_s", "at"), [("2", (24.0, 24.5)), ("0.5", (26.5, 27.5))])
def test_a_cut_moves_no_further_than_configured(shift_s: str, at: tuple[float, float]) -> None:
    start_s, end_s = at
    assert start_s < seam_with({(24.0, 24.5): 0}, SILENCE_MAX_SHIFT_SECONDS=shift_s) < end_s


def test_without_alignment_chunks_have_the_maximum_length() -> None:
    unaligned = policy(30, enable_silence_aligned_chunking=False)
    chunks = list(plan_chunks([speech_like(100)], unaligned))

    # 30 s less the 2.5 s that the next chunk owns; then 2.5 s of context on both sides, which
    # starts on the grid of 80 ms.
    assert seams(chunks) == pytest.approx([27.5, 52.5, 77.5], abs=0.2)


def test_without_overlap_chunks_contain_only_what_they_own() -> None:
    chunks = list(plan_chunks([speech_like(100)], policy(30, enable_overlap_chunking=False)))

    assert all((c.start, c.end) == (c.owned_start, c.owned_end) for c in chunks)
    assert len(chunks) > 3


def test_the_overlap_setting_is_an_upper_bound_and_bounded_by_the_chunk() -> None:
    assert policy(30, chunk_overlap_s=2).overlap == 2 * SAMPLE_RATE
    assert policy(30, chunk_overlap_s=30).overlap == 5 * SAMPLE_RATE
    assert policy(600, chunk_overlap_s=30).overlap == 30 * SAMPLE_RATE


def test_a_recording_of_one_chunk_is_not_cut() -> None:
    chunks = list(plan_chunks(blocks_of(speech_like(30), 5000), policy(30)))

    assert len(chunks) == 1


def test_a_recording_without_samples_has_no_chunks() -> None:
    assert list(plan_chunks([], policy(30))) == []
    assert list(plan_chunks([np.zeros(0, np.int16)], policy(30))) == []


def test_chunks_are_yielded_before_the_recording_has_been_read() -> None:
    read = 0

    def endless() -> Iterator[Pcm]:
        nonlocal read
        while True:
            read += 1
            yield np.zeros(SAMPLE_RATE, np.int16)

    chunks = plan_chunks(endless(), policy(30))
    next(chunks)
    next(chunks)

    assert read < 60


def test_on_a_coarse_grid_chunks_start_earlier_rather_than_with_less_context() -> None:
    grid = 14 * 1280
    coarse = policy(30).on_grid(grid)

    chunks = list(plan_chunks([speech_like(100)], coarse))

    assert [chunk.owned_start for chunk in chunks[1:]] == [c.owned_end for c in chunks[:-1]]
    for chunk in chunks[1:]:
        assert chunk.start % grid == 0
        assert 0 <= chunk.owned_start - chunk.start - coarse.context + 1280 <= grid + 1280
    assert all(len(chunk.samples) <= coarse.longest for chunk in chunks)
    assert policy(5).on_grid(grid) == policy(5)
