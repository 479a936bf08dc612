from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.model.batch_queue import BatchQueue
from parakeet_api.model.devices import InferencePlan
from parakeet_api.transcript import SAMPLE_RATE, Chunk

PLAN = InferencePlan(longest_chunk_s=30, batch_size=4, batch_s=60)
"""A CPU's."""
GPU_PLAN = InferencePlan(longest_chunk_s=60, batch_size=128, batch_s=9000, memory_mb=30_000)


@dataclass(frozen=True, eq=False)
class Waiting:
    """A job; its chunk's `owned_start` identifies its request."""

    chunk: Chunk


def job(request: int, index: int, seconds: float) -> Waiting:
    samples = np.zeros(round(seconds * SAMPLE_RATE), np.int16)
    return Waiting(Chunk(index, 0, samples, request, request + 1))


def queue_of(lengths: dict[int, list[float]]) -> BatchQueue[Waiting]:
    """Build a queue from the seconds of the queued chunks, by request."""
    queue: BatchQueue[Waiting] = BatchQueue()
    for request, seconds in lengths.items():
        for index, length_s in enumerate(seconds):
            queue.add(request, job(request, index, length_s))
    return queue


def names(batch: Iterable[Waiting]) -> list[str]:
    return [f"{job.chunk.owned_start}.{job.chunk.index}" for job in batch]


def taken(queue: BatchQueue[Waiting], plan: InferencePlan = PLAN) -> list[str]:
    return names(queue.take(plan))


def test_requests_take_turns() -> None:
    queue = queue_of({1: [1] * 6, 2: [1] * 2, 3: [1]})

    assert taken(queue) == ["1.0", "2.0", "3.0", "1.1"]
    assert taken(queue) == ["2.1", "1.2", "1.3", "1.4"]
    assert taken(queue) == ["1.5"]
    assert len(queue) == 0
    assert taken(queue) == []


def test_on_a_cpu_a_batch_takes_chunks_of_similar_length_alone() -> None:
    lengths: dict[int, list[float]] = {1: [0.5], 2: [1.1], 3: [0.6], 4: [1.2]}

    assert taken(queue_of(lengths)) == ["1.0", "3.0"]
    assert taken(queue_of(lengths), GPU_PLAN) == ["1.0", "2.0", "3.0", "4.0"]


def test_a_batch_is_bounded_in_padded_seconds() -> None:
    # Three of 25 s would be 75 s; and padding 15 s to 25 takes longer than a pass of its own.
    queue = queue_of({1: [25], 2: [25], 3: [25], 4: [15], 5: [15]})

    assert taken(queue) == ["1.0", "2.0"]
    assert taken(queue) == ["3.0"]
    assert taken(queue) == ["4.0", "5.0"]


def test_one_chunk_always_fits() -> None:
    queue = queue_of({1: [600, 600]})

    assert taken(queue) == ["1.0"]
    assert taken(queue) == ["1.1"]


def test_those_nearest_in_length_go_together_where_more_wait_than_fit() -> None:
    queue = queue_of({1: [10], 2: [12], 3: [6], 4: [10.1], 5: [9.9], 6: [10.2], 7: [14]})

    assert taken(queue) == ["1.0", "4.0", "5.0", "6.0"]


def test_on_a_gpu_few_clips_are_batched_regardless_of_their_lengths() -> None:
    queue = queue_of({1: [2], 2: [25], 3: [6], 4: [12]})

    assert taken(queue, GPU_PLAN) == ["1.0", "2.0", "3.0", "4.0"]


def test_on_a_gpu_many_clips_of_mixed_lengths_waste_little_padding() -> None:
    lengths = np.random.default_rng(3).uniform(2, 25, 512)
    queue = queue_of({number: [length] for number, length in enumerate(lengths)})
    plan = replace(GPU_PLAN, batch_size=64)
    padded = sounding = 0

    while batch := queue.take(plan):
        samples = [len(job.chunk.samples) for job in batch]
        padded += len(samples) * max(samples)
        sounding += sum(samples)

    # In the order in which they came: 1.83.
    assert padded / sounding < 1.25


def test_a_long_file_alone_fills_a_gpus_batches() -> None:
    lengths = list(np.random.default_rng(4).uniform(45, 60, 200))
    queue = queue_of({1: lengths})

    assert len(queue.take(GPU_PLAN)) == 128


def test_chunks_above_the_longest_are_passed_over() -> None:
    queue = queue_of({1: [20, 2], 2: [3]})

    assert names(queue.take(PLAN, longest=10 * SAMPLE_RATE)) == ["1.1", "2.0"]
    assert queue.take(PLAN, longest=10 * SAMPLE_RATE) == []
    assert taken(queue) == ["1.0"]


def test_urgent_requests_come_first_and_never_twice_in_a_row_while_others_wait() -> None:
    plan = replace(PLAN, batch_size=1)
    queue = queue_of({1: [30, 30], 2: [30]})
    for request in (8, 9):
        queue.add(request, job(request, 0, 5), urgent=True)
        queue.add(request, job(request, 1, 5), urgent=True)

    order = [taken(queue, plan)[0] for _ in range(7)]

    assert order == ["8.0", "1.0", "9.0", "2.0", "8.1", "1.1", "9.1"]


def test_urgent_requests_go_together() -> None:
    queue = queue_of({1: [5, 5, 5, 5]})
    for request in (8, 9):
        queue.add(request, job(request, 0, 5), urgent=True)

    assert taken(queue)[:2] == ["8.0", "9.0"]


def test_a_request_that_is_dropped_has_nothing_in_the_queue() -> None:
    queue = queue_of({1: [1, 1], 2: [1]})

    queue.drop(1)
    queue.drop(9)

    assert len(queue) == 1
    assert names(queue.clear()) == ["2.0"]
    assert len(queue) == 0


recordings = st.dictionaries(
    st.integers(0, 50), st.lists(st.floats(0.05, 40), min_size=1, max_size=8), max_size=6
)


@given(recordings, st.integers(1, 8), st.floats(1, 100), st.sampled_from([None, 500.0]))
def test_batches_keep_within_the_plan_and_lose_nothing(
    lengths: dict[int, list[float]], size: int, batch_s: float, memory_mb: float | None
) -> None:
    plan = InferencePlan(longest_chunk_s=40, batch_size=size, batch_s=batch_s, memory_mb=memory_mb)
    queue = queue_of(lengths)
    done: dict[int, list[int]] = {request: [] for request in lengths}

    while batch := queue.take(plan):
        samples = [len(job.chunk.samples) for job in batch]
        assert len(batch) <= size
        assert memory_mb or max(samples) <= 2 * min(samples)
        assert len(batch) == 1 or len(batch) * max(samples) <= batch_s * SAMPLE_RATE
        for taken_job in batch:
            done[taken_job.chunk.owned_start].append(taken_job.chunk.index)

    assert len(queue) == 0
    assert {request: sorted(indices) for request, indices in done.items()} == {
        request: list(range(len(seconds))) for request, seconds in lengths.items()
    }


@given(recordings, st.sampled_from([PLAN, GPU_PLAN, replace(GPU_PLAN, batch_size=2)]))
def test_no_request_waits_for_more_batches_than_there_are_others(
    lengths: dict[int, list[float]], plan: InferencePlan
) -> None:
    queue = queue_of(lengths)
    batches = [queue.take(plan) for _ in lengths]

    assert {job.chunk.owned_start for batch in batches for job in batch} == set(lengths)


@pytest.mark.parametrize("longest", [math.inf, 10 * SAMPLE_RATE])
@given(lengths=recordings)
def test_a_request_whose_turn_it_is_gives_its_next_chunk(
    longest: float, lengths: dict[int, list[float]]
) -> None:
    queue = queue_of(lengths)
    first = next(
        (
            f"{request}.{index}"
            for request, seconds in lengths.items()
            for index, length_s in enumerate(seconds)
            if round(length_s * SAMPLE_RATE) <= longest
        ),
        None,
    )

    assert next(iter(names(queue.take(PLAN, longest=longest))), None) == first
