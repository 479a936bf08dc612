"""Queue chunks by request, and select the next batch.

Requests take turns: a batch always contains the next chunk of the request whose turn it is. The
other chunks are selected for much audio and little padding, since all are padded to the longest.
Urgent requests (live speech) go first, but not twice in a row while others wait.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence, Set
from itertools import accumulate, islice
from typing import Generic, Protocol, TypeVar

from parakeet_api.model.devices import InferencePlan
from parakeet_api.transcript import SAMPLE_RATE, Chunk

_CPU_SPANS = (2.0, 1.5, 1.25)
"""Ratios of the longest to the shortest chunk of a batch that are tried. A CPU gains little from
batches; on a GPU one pass is better than two while both are small."""
_GPU_SPANS = (math.inf, 4.0, *_CPU_SPANS)
_CPU_PASS_S = 4.0
_GPU_PASS_S = 100.0
"""Fixed cost of a pass, as seconds of audio that take the same time. Measured: 3.6 and 5 on a CPU
with models of 3 and 600 M parameters, about 130 on an H200, less on slower GPUs."""
_CANDIDATES = 4
"""At most this many batches' worth of jobs are considered."""


class Job(Protocol):
    """A queued chunk."""

    @property
    def chunk(self) -> Chunk: ...


J = TypeVar("J", bound=Job)


class BatchQueue(Generic[J]):
    """Queued jobs by request, in the order of the requests' turns."""

    def __init__(self) -> None:
        self._requests: OrderedDict[int, deque[J]] = OrderedDict()
        self._urgent: set[int] = set()
        """The urgent ones among these requests."""
        self._urgent_led = False
        """Whether the first job of the last batch was urgent while others waited."""
        self._count = 0

    def __len__(self) -> int:
        """Count the queued jobs."""
        return self._count

    def add(self, request: int, job: J, *, urgent: bool = False) -> None:
        """Append a request's next job."""
        if urgent:
            self._urgent.add(request)
        self._requests.setdefault(request, deque()).append(job)
        self._count += 1

    def drop(self, request: int) -> None:
        """Remove a request's jobs, if it has any."""
        self._count -= len(self._requests.pop(request, ()))
        self._urgent.discard(request)

    def clear(self) -> list[J]:
        """Remove and return all jobs."""
        jobs = [job for waiting in self._requests.values() for job in waiting]
        self._requests.clear()
        self._urgent.clear()
        self._count = 0
        return jobs

    def fills_batch(self, plan: InferencePlan) -> bool:
        """Tell whether the queued jobs fill a batch, whichever are selected."""
        if self._count >= plan.batch_size:
            return True
        waiting = sum(_length(job) for jobs in self._requests.values() for job in jobs)
        return waiting >= plan.batch_s * SAMPLE_RATE

    def take(self, plan: InferencePlan, *, longest: float = math.inf) -> list[J]:
        """Remove and return the next batch.

        It contains the next job of the request whose turn it is. The others are selected by length
        and, where lengths are equal, by turn: one job per request and round. Requests with a job in
        the batch move to the back. Jobs of more than `longest` samples are skipped.
        """
        turns = [*islice(self._in_turns(longest), _CANDIDATES * plan.batch_size)]
        if turns:
            first, _ = turns[0]
            self._urgent_led = first in self._urgent and len(self._urgent) < len(self._requests)
        batch = [turns[number] for number in sorted(_choose([_length(j) for _, j in turns], plan))]
        for request, _ in batch:
            self._requests.move_to_end(request)
        for request in dict.fromkeys(request for request, _ in batch):
            self._remove(request, {id(job) for owner, job in batch if owner == request})
        return [job for _, job in batch]

    def _in_turns(self, longest: float) -> Iterator[tuple[int, J]]:
        """Yield `(request, job)` round-robin over the requests."""
        rounds = {
            request: iter([job for job in jobs if _length(job) <= longest])
            for request, jobs in self._ordered()
        }
        while rounds:
            for request, jobs in [*rounds.items()]:
                job = next(jobs, None)
                if job is None:
                    del rounds[request]
                else:
                    yield request, job

    def _ordered(self) -> list[tuple[int, deque[J]]]:
        """List the requests: urgent ones first, unless an urgent one led the last batch."""
        requests = [*self._requests.items()]
        if self._urgent and not self._urgent_led:
            requests.sort(key=lambda item: item[0] not in self._urgent)
        return requests

    def _remove(self, request: int, taken: Set[int]) -> None:
        jobs = self._requests[request]
        left = deque(job for job in jobs if id(job) not in taken)
        self._count -= len(jobs) - len(left)
        if left:
            self._requests[request] = left
        else:
            del self._requests[request]
            self._urgent.discard(request)


def _choose(lengths: Sequence[int], plan: InferencePlan) -> list[int]:
    """Select a batch from the jobs' lengths in samples, in the order of turns; return positions.

    Of all batches that contain the first job, select the one with the most audio per time.
    """
    if not lengths:
        return []
    first = lengths[0]
    # Ties in length: sort jobs so that those whose turn is next are adjacent to the first one.
    order = sorted(
        range(len(lengths)),
        key=lambda position: (
            lengths[position],
            position if lengths[position] >= first else -position,
        ),
    )
    ascending = [lengths[position] for position in order]
    sums = [0, *accumulate(ascending)]
    first_position = order.index(0)
    is_cpu = plan.memory_mb is None
    spans, overhead_s = (_CPU_SPANS, _CPU_PASS_S) if is_cpu else (_GPU_SPANS, _GPU_PASS_S)
    best, chosen = 0.0, (first_position, first_position + 1)
    for end in range(first_position + 1, len(ascending) + 1):
        high = ascending[end - 1]
        max_jobs = max(1, min(plan.batch_size, int(plan.batch_s * SAMPLE_RATE // high)))
        for span in spans:
            begin = max(end - max_jobs, bisect_left(ascending, high / span))
            if begin > first_position:
                break
            padded = (end - begin) * high
            value = (sums[end] - sums[begin]) / (overhead_s * SAMPLE_RATE + padded)
            if value > best:
                best, chosen = value, (begin, end)
    return order[slice(*chosen)]


def _length(job: Job) -> int:
    return len(job.chunk.samples)
