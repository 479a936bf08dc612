"""The chunks that wait for the model, by request, and which of them go into the next batch.

Requests take turns, and whose turn it is goes in with its next chunk, whatever else waits. What
joins it is chosen so that a pass has much audio and little padding: all are padded to the longest.
Urgent requests, of people who are speaking, come before others, but never twice in a row while
others wait.
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
"""How many times as long as the shortest chunk of a batch the longest may be: what is tried. A CPU
gains little from batches, and on a GPU one pass is better than two while both are small."""
_GPU_SPANS = (math.inf, 4.0, *_CPU_SPANS)
_CPU_PASS_S = 4.0
_GPU_PASS_S = 100.0
"""Seconds of audio that take as long as a pass does however little is in it: with models of 3 and
600 M parameters on a CPU 3.6 and 5, on an H200 some 130, on slower GPUs less."""
_CHOICE = 4
"""Times what fits that is looked at, at most."""


class Job(Protocol):
    """What waits."""

    @property
    def chunk(self) -> Chunk: ...


J = TypeVar("J", bound=Job)


class BatchQueue(Generic[J]):
    """Jobs that wait, by request, in the order in which requests have their turns."""

    def __init__(self) -> None:
        self._requests: OrderedDict[int, deque[J]] = OrderedDict()
        self._urgent: set[int] = set()
        """Of these requests those that are urgent."""
        self._urgent_led = False
        """Whether the first job of the last batch was urgent, with others waiting."""
        self._count = 0

    def __len__(self) -> int:
        """Count the jobs that wait."""
        return self._count

    def add(self, request: int, job: J, *, urgent: bool = False) -> None:
        """Append a request's next job."""
        if urgent:
            self._urgent.add(request)
        self._requests.setdefault(request, deque()).append(job)
        self._count += 1

    def drop(self, request: int) -> None:
        """Forget a request's jobs, if it has any."""
        self._count -= len(self._requests.pop(request, ()))
        self._urgent.discard(request)

    def clear(self) -> list[J]:
        """Forget all jobs; give them."""
        jobs = [job for waiting in self._requests.values() for job in waiting]
        self._requests.clear()
        self._urgent.clear()
        self._count = 0
        return jobs

    def fills_batch(self, plan: InferencePlan) -> bool:
        """Tell whether what waits is enough for a full batch, whichever of it is chosen."""
        if self._count >= plan.batch_size:
            return True
        waiting = sum(_length(job) for jobs in self._requests.values() for job in jobs)
        return waiting >= plan.batch_s * SAMPLE_RATE

    def take(self, plan: InferencePlan, *, longest: float = math.inf) -> list[J]:
        """Take the next batch out.

        The first request's next job is in it; which others are, their lengths decide, and where
        these are equal, turns: one job a request and round. Requests that gave a job move to the
        back. Jobs of more than `longest` samples are passed over.
        """
        turns = [*islice(self._in_turns(longest), _CHOICE * plan.batch_size)]
        if turns:
            first, _ = turns[0]
            self._urgent_led = first in self._urgent and len(self._urgent) < len(self._requests)
        batch = [turns[number] for number in sorted(_choose([_length(j) for _, j in turns], plan))]
        for request, _ in batch:
            self._requests.move_to_end(request)
        for request in dict.fromkeys(request for request, _ in batch):
            self._remove(request, {id(job) for giver, job in batch if giver == request})
        return [job for _, job in batch]

    def _in_turns(self, longest: float) -> Iterator[tuple[int, J]]:
        """Go round the requests, one job at a time; each job with its request."""
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
        """List the requests, urgent ones first, unless one of them was the first in last batch."""
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
    """Choose a batch by the jobs' lengths, samples, in the order of their turns; give their places.

    Of all that could be together with the first, those with the most audio for the time they take.
    """
    if not lengths:
        return []
    first = lengths[0]
    # Beside the first one in length stand, of equals, those whose turn is next.
    order = sorted(
        range(len(lengths)),
        key=lambda place: (lengths[place], place if lengths[place] >= first else -place),
    )
    ascending = [lengths[place] for place in order]
    sums = [0, *accumulate(ascending)]
    at_first = order.index(0)
    is_cpu = plan.memory_mb is None
    spans, overhead_s = (_CPU_SPANS, _CPU_PASS_S) if is_cpu else (_GPU_SPANS, _GPU_PASS_S)
    best, chosen = 0.0, (at_first, at_first + 1)
    for end in range(at_first + 1, len(ascending) + 1):
        high = ascending[end - 1]
        most = max(1, min(plan.batch_size, int(plan.batch_s * SAMPLE_RATE // high)))
        for span in spans:
            begin = max(end - most, bisect_left(ascending, high / span))
            if begin > at_first:
                break
            padded = (end - begin) * high
            value = (sums[end] - sums[begin]) / (overhead_s * SAMPLE_RATE + padded)
            if value > best:
                best, chosen = value, (begin, end)
    return order[slice(*chosen)]


def _length(job: Job) -> int:
    return len(job.chunk.samples)
