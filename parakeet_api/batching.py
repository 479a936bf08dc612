"""Chunks of all requests in flight, through the model together, behind its semaphore.

Each permit of the semaphore is one worker thread: the model is entered by no other, so torch keeps
one thread pool a permit however many requests there are. Requests take turns; a worker that is
free takes what waits and does not wait for more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from parakeet_api.devices import InferencePlan
from parakeet_api.errors import ServiceUnavailableError, StoppingError
from parakeet_api.metrics import Metrics
from parakeet_api.recognizer import OutOfDeviceMemoryError, Recognizer
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Word

logger = logging.getLogger(__name__)

_SIMILAR = 2.0
"""Chunks in a batch differ in length by at most this factor: shorter ones are padded."""
_POLL_S = 0.5
"""How often a waiting request looks whether its client is still there."""


class RequestCancelled(Exception):  # noqa: N818 - an outcome, not an error
    """The client has gone; nothing is answered."""


@dataclass(eq=False, slots=True)
class _Job:
    chunk: Chunk
    outcome: Future[list[Word]] = field(default_factory=Future)
    queued: float = field(default_factory=time.monotonic)


class Batcher:
    """Run chunks through the leased model in fair, similar-length batches."""

    def __init__(
        self,
        lease: Callable[[], AbstractContextManager[Recognizer]],
        *,
        plan: InferencePlan,
        permits: int,
        metrics: Metrics | None = None,
    ) -> None:
        self._lease = lease
        self._metrics = metrics or Metrics()
        self._plan = plan
        self._queue: OrderedDict[int, deque[_Job]] = OrderedDict()
        """Jobs that wait, by request; the request at the front is next."""
        self._changed = threading.Condition()
        self._closed = False
        # What is in the model, and as much again, so that the next batch is full too.
        self._look_ahead = 2 * plan.batch_size * permits
        self._workers = [
            threading.Thread(target=self._work, name=f"inference-{n}", daemon=True)
            for n in range(permits)
        ]
        for worker in self._workers:
            worker.start()

    def recognize(
        self, chunks: Iterable[Chunk], *, cancelled: Callable[[], bool] = lambda: False
    ) -> Generator[tuple[Chunk, list[Word]]]:
        """Yield each chunk of one recording with its words, in order.

        Takes from `chunks` only as far ahead as the workers can use. Closing the generator, or
        `cancelled` turning true (then `RequestCancelled` is raised), takes what waits out of the
        queue. Raises what the lease or the model raised for a chunk, and
        `StoppingError` once the batcher is closed.
        """
        waiting: deque[_Job] = deque()
        request = id(waiting)
        try:
            for chunk in chunks:
                waiting.append(self._submit(request, chunk))
                if len(waiting) >= self._look_ahead or waiting[0].outcome.done():
                    yield _first(waiting, cancelled)
            while waiting:
                yield _first(waiting, cancelled)
        finally:
            with self._changed:
                self._queue.pop(request, None)

    def waiting(self) -> int:
        """Count the chunks that wait for a worker."""
        with self._changed:
            return sum(len(jobs) for jobs in self._queue.values())

    def close(self, *, timeout_s: float | None = None) -> None:
        """Refuse what waits, and wait for the workers to be done with what they hold.

        At most `timeout_s` s in all: a forward pass cannot be interrupted.
        """
        with self._changed:
            self._closed = True
            refused = [job for jobs in self._queue.values() for job in jobs]
            self._queue.clear()
            self._changed.notify_all()
        for job in refused:
            job.outcome.set_exception(StoppingError())
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for worker in self._workers:
            worker.join(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _submit(self, request: int, chunk: Chunk) -> _Job:
        job = _Job(chunk)
        with self._changed:
            if self._closed:
                raise StoppingError
            self._queue.setdefault(request, deque()).append(job)
            self._changed.notify()
        return job

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            try:
                with self._lease() as recognizer:
                    self._recognize(recognizer, batch)
            except Exception as error:
                # A thread's border: the error belongs to the requests, the worker goes on.
                for job in batch:
                    if not job.outcome.done():
                        job.outcome.set_exception(error)
            # Else the last batch, samples and all, would live until the next one comes.
            del batch

    def _recognize(self, recognizer: Recognizer, batch: list[_Job]) -> None:
        """Run a batch; where it does not fit the device's memory, its halves."""
        started = time.monotonic()
        try:
            outcomes = recognizer.recognize([job.chunk for job in batch])
        except OutOfDeviceMemoryError:
            logger.warning("out of device memory with %d chunks", len(batch))
        else:
            self._metrics.batch_chunks.observe(len(batch))
            self._metrics.inference_seconds.observe(time.monotonic() - started)
            for job, words in zip(batch, outcomes, strict=True):
                self._metrics.chunk_wait_seconds.observe(started - job.queued)
                job.outcome.set_result(words)
            return
        if len(batch) == 1:
            # Set, not raised: the other halves are still to be tried.
            batch[0].outcome.set_exception(
                ServiceUnavailableError(
                    "The device has not enough free memory for this recording. Try again later, or"
                    " lower CHUNK_MINITE or MAX_CHUNK_MEMORY_MB."
                )
            )
            return
        self._recognize(recognizer, batch[: len(batch) // 2])
        self._recognize(recognizer, batch[len(batch) // 2 :])

    def _next_batch(self) -> list[_Job] | None:
        """Wait for jobs; take a fair batch of them. `None` once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            return None if self._closed else take_batch(self._queue, self._plan)


def take_batch(queue: OrderedDict[int, deque[_Job]], plan: InferencePlan) -> list[_Job]:
    """Take the next batch out of a queue of requests, one job a request and round.

    The first job is the front request's; others join while they are of similar length and the
    padded batch stays within the plan. Requests that gave a job move to the back.
    """
    batch: list[_Job] = []
    taking = True
    while taking and queue:
        taking = False
        for request in list(queue):
            if not _fits(batch, queue[request][0], plan):
                continue
            batch.append(queue[request].popleft())
            taking = True
            if queue[request]:
                queue.move_to_end(request)
            else:
                del queue[request]
    return batch


def _fits(batch: list[_Job], job: _Job, plan: InferencePlan) -> bool:
    if not batch:
        return True
    lengths = [len(member.chunk.samples) for member in (*batch, job)]
    padded_s = len(lengths) * max(lengths) / SAMPLE_RATE
    return (
        len(lengths) <= plan.batch_size
        and max(lengths) <= _SIMILAR * min(lengths)
        and padded_s <= plan.batch_s
    )


def _first(waiting: deque[_Job], cancelled: Callable[[], bool]) -> tuple[Chunk, list[Word]]:
    """Wait for the oldest job's words."""
    job = waiting[0]
    while not wait([job.outcome], timeout=_POLL_S).done:
        if cancelled():
            raise RequestCancelled
    if cancelled():
        raise RequestCancelled
    waiting.popleft()
    return job.chunk, job.outcome.result()
