"""Chunks of all requests in flight, through the model together, behind its semaphore.

Each permit of the semaphore is one worker thread: the model is entered by no other, so torch keeps
one thread pool a permit however many requests there are. Requests take turns; a worker that is
free takes what waits and does not wait for more.

A forward pass cannot be interrupted, and one over long chunks takes ten times as long as a clip's.
So of three permits or more one is kept for clips that come while all others are at long chunks.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from parakeet_api.errors import DeviceLostError, ServiceUnavailableError, StoppingError
from parakeet_api.metrics import Metrics
from parakeet_api.model.batch_queue import BatchQueue
from parakeet_api.model.devices import InferencePlan, main_permits
from parakeet_api.model.recognizer import OutOfDeviceMemoryError, Recognizer
from parakeet_api.speech.chunking import quietest_moment
from parakeet_api.speech.stitching import Stitcher
from parakeet_api.transcript import FRAME, SAMPLE_RATE, Chunk, Word

logger = logging.getLogger(__name__)

_DOUBLED_S = 30.0
"""So long after a batch that did not fit, and so long again each time, twice as much is tried.
What filled the memory is often another program, and it may have ended."""
_ENOUGH = 20
"""Doublings after which any length is tried."""
_SHORTEST = 5 * SAMPLE_RATE
"""Samples. So little is always tried; if it does not fit, the GPU is full."""
_CONTEXT = 2 * SAMPLE_RATE
"""Samples of the other half that each half of a chunk hears."""
_REACH = SAMPLE_RATE
"""Samples. How far from a chunk's middle its halves may be parted."""
_CLIP = 10 * SAMPLE_RATE
"""Samples. Chunks up to here are clips, which need not wait for longer ones: most of what is said
to a machine is shorter."""
_POLL_S = 0.5
"""How often a waiting request looks whether its client is still there."""


class RequestCancelled(Exception):  # noqa: N818 - an outcome, not an error
    """The client has gone; nothing is answered."""


class Outcome:
    """A chunk's words or why there are none, for the one thread that waits.

    What `Future` does for many, with its condition and its waiters, costs 0.1 ms a clip.
    """

    __slots__ = ("_done", "_error", "_words")

    def __init__(self) -> None:
        self._done = threading.Lock()
        self._done.acquire()
        self._words: list[Word] = []
        self._error: BaseException | None = None

    def set_result(self, words: list[Word]) -> None:
        """Give the words; of this and `set_exception` one is called, and once."""
        self._words = words
        self._done.release()

    def set_exception(self, error: BaseException) -> None:
        """Tell why there are none."""
        self._error = error
        self._done.release()

    def done(self) -> bool:
        """Tell whether either was called."""
        return not self._done.locked()

    def wait(self, timeout_s: float) -> bool:
        """Wait for that, and tell whether it came in time."""
        if self._done.acquire(timeout=timeout_s):
            self._done.release()
            return True
        return False

    def result(self) -> list[Word]:
        """Give the words of an outcome that is done, or raise its error."""
        if self._error is not None:
            raise self._error
        return self._words


@dataclass(eq=False, slots=True)
class _Job:
    chunk: Chunk
    outcome: Outcome = field(default_factory=Outcome)
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
        on_device_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the workers; `on_device_lost` is called once if the GPU refuses all work."""
        self._lease = lease
        self._on_device_lost = on_device_lost
        self._metrics = metrics or Metrics()
        self._plan = plan
        self._queue: BatchQueue[_Job] = BatchQueue()
        self._changed = threading.Condition()
        self._refusal: ServiceUnavailableError | None = None
        """Why nothing is taken any more."""
        self._memory = _MemoryLimit()
        self._main_permits = main_permits(permits)
        self._passes = self._long_passes = 0
        """How many workers are at a batch, and how many of these at long chunks."""
        # What is in the model, and as much again, so that the next batch is full too.
        self._passes_ahead = 2 * self._main_permits
        self._workers = [
            threading.Thread(target=self._work, name=f"inference-{n}", daemon=True)
            for n in range(permits)
        ]
        for worker in self._workers:
            worker.start()

    def recognize(
        self,
        chunks: Iterable[Chunk],
        *,
        cancelled: Callable[[], bool] = lambda: False,
        urgent: bool = False,
    ) -> Generator[tuple[Chunk, list[Word]]]:
        """Yield each chunk of one recording with its words, in order.

        With `urgent`, they go before those of other recordings. Takes from `chunks` only as far
        ahead as the workers can use. Closing the generator, or `cancelled` turning true (then
        `RequestCancelled` is raised), takes what waits out of the queue. Raises what the lease
        or the model raised for a chunk, `StoppingError` once the batcher is closed, and
        `DeviceLostError` once the GPU refuses all work.
        """
        waiting: deque[_Job] = deque()
        request = id(waiting)
        try:
            for chunk in chunks:
                # Here too: filling the look-ahead is minutes of audio to decode.
                if cancelled():
                    raise RequestCancelled
                waiting.append(self._submit(request, chunk, urgent=urgent))
                if self._is_far_ahead(waiting) or waiting[0].outcome.done():
                    yield _first(waiting, cancelled)
            while waiting:
                yield _first(waiting, cancelled)
        finally:
            with self._changed:
                self._queue.drop(request)

    def waiting(self) -> int:
        """Count the chunks that wait for a worker."""
        with self._changed:
            return len(self._queue)

    def close(self, *, timeout_s: float | None = None) -> None:
        """Refuse what waits, and wait for the workers to be done with what they hold.

        At most `timeout_s` s in all: a forward pass cannot be interrupted.
        """
        self._refuse(StoppingError())
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for worker in self._workers:
            worker.join(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _is_far_ahead(self, waiting: deque[_Job]) -> bool:
        """Tell whether one request's chunks fill the passes that it may be ahead."""
        samples = sum(len(job.chunk.samples) for job in waiting)
        return (
            len(waiting) >= self._passes_ahead * self._plan.batch_size
            or samples >= self._passes_ahead * self._plan.batch_s * SAMPLE_RATE
        )

    def _submit(self, request: int, chunk: Chunk, *, urgent: bool) -> _Job:
        job = _Job(chunk)
        with self._changed:
            if self._refusal is not None:
                raise self._refusal
            self._queue.add(request, job, urgent=urgent)
            self._changed.notify()
        return job

    def _refuse(self, refusal: ServiceUnavailableError) -> bool:
        """Refuse what waits and what comes; tell whether nothing was refused before."""
        with self._changed:
            first = self._refusal is None
            self._refusal = self._refusal or refusal
            refused = self._queue.clear()
            self._changed.notify_all()
        for job in refused:
            job.outcome.set_exception(refusal)
        return first

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
                if isinstance(error, DeviceLostError) and self._refuse(error):
                    logger.critical("the GPU refuses all further work", exc_info=error)
                    self._on_device_lost()
            self._passed(batch)
            # Else the last batch, samples and all, would live until the next one comes.
            del batch

    def _recognize(self, recognizer: Recognizer, batch: list[_Job]) -> None:
        """Run a batch; where it does not fit the device's memory, halves of it, then of a chunk."""
        started = time.monotonic()
        outcomes = self._run(recognizer, [job.chunk for job in batch])
        if outcomes is not None:
            for job, words in zip(batch, outcomes, strict=True):
                self._metrics.chunk_wait_seconds.observe(started - job.queued)
                job.outcome.set_result(words)
        elif len(batch) > 1:
            self._recognize(recognizer, batch[: len(batch) // 2])
            self._recognize(recognizer, batch[len(batch) // 2 :])
        else:
            try:
                words = self._run_halves(recognizer, batch[0].chunk)
            except DeviceLostError:
                raise
            except ServiceUnavailableError as error:
                # Set, not raised: other chunks of the batch are still to be tried.
                batch[0].outcome.set_exception(error)
            else:
                batch[0].outcome.set_result(words)

    def _run(self, recognizer: Recognizer, chunks: Sequence[Chunk]) -> list[list[Word]] | None:
        """Make one forward pass; `None` where the memory does not suffice, which is remembered."""
        if padded_s(chunks) > self._memory.most_s():
            return None
        started = time.monotonic()
        try:
            outcomes = recognizer.recognize(chunks)
        except OutOfDeviceMemoryError:
            logger.warning("out of device memory with %d chunks", len(chunks))
            self._memory.failed(padded_s(chunks))
            return None
        self._metrics.batch_chunks.observe(len(chunks))
        self._metrics.inference_seconds.observe(time.monotonic() - started)
        return outcomes

    def _run_halves(self, recognizer: Recognizer, chunk: Chunk) -> list[Word]:
        """Recognise a chunk in parts, as small as the memory wants them, joined like chunks."""
        if len(chunk.samples) <= _SHORTEST:
            raise ServiceUnavailableError(
                "The device has not enough free memory for this recording. Try again later, or"
                " lower CHUNK_MINITE or MAX_CHUNK_MEMORY_MB."
            )
        stitcher = Stitcher(sentence_boundary_threshold_s=0.0)
        words: list[Word] = []
        for half in halve(chunk):
            outcome = self._run(recognizer, [half])
            heard = outcome[0] if outcome else self._run_halves(recognizer, half)
            words.extend(stitcher.add(half, heard))
        return [*words, *stitcher.finish()]

    def _next_batch(self) -> list[_Job] | None:
        """Wait for jobs; take a fair batch of them. `None` once closed."""
        with self._changed:
            while self._refusal is None:
                if batch := self._take():
                    self._passes += 1
                    self._long_passes += _is_long(batch)
                    if self._queue:
                        # What is left may be for another worker now, which could not take it
                        # when it came.
                        self._changed.notify()
                    return batch
                self._changed.wait()
        return None

    def _take(self) -> list[_Job]:
        """Take what may go into the model now, with the lock held."""
        plan = replace(self._plan, batch_s=min(self._plan.batch_s, self._memory.most_s()))
        if self._passes < self._main_permits:
            return [] if self._may_fill_up(plan) else self._queue.take(plan)
        if self._passes == self._long_passes:
            return self._queue.take(plan, longest=_CLIP)
        return []

    def _may_fill_up(self, plan: InferencePlan) -> bool:
        """Tell whether a batch had better wait for more, with the lock held.

        Passes on a GPU follow each other. What is taken during one is prepared meanwhile, but what
        comes after it must wait for yet another pass: only a full batch gains by that.
        """
        return (
            self._plan.memory_mb is not None
            and self._passes > 0
            and not self._queue.fills_batch(plan)
        )

    def _passed(self, batch: list[_Job]) -> None:
        with self._changed:
            self._passes -= 1
            self._long_passes -= _is_long(batch)


class UrgentRecognizer:
    """A batcher for people who are speaking: their chunks go before those of recordings."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    def recognize(
        self, chunks: Iterable[Chunk], *, cancelled: Callable[[], bool] = lambda: False
    ) -> Generator[tuple[Chunk, list[Word]]]:
        """Do what `Batcher.recognize` does."""
        return self._batcher.recognize(chunks, cancelled=cancelled, urgent=True)


def _is_long(batch: list[_Job]) -> bool:
    return max(len(job.chunk.samples) for job in batch) > _CLIP


def padded_s(chunks: Sequence[Chunk]) -> float:
    """Give the seconds of audio in a forward pass, padding included."""
    return len(chunks) * max(len(chunk.samples) for chunk in chunks) / SAMPLE_RATE


def halve(chunk: Chunk) -> tuple[Chunk, Chunk]:
    """Part a chunk near its middle; each half hears some of the other and owns its own.

    The seam lies where it is quietest: 12 minutes of dense speech in pieces of 5 s then have 4.3 %
    wrong words instead of 5.5 (2.8 in whole chunks).
    """
    samples = chunk.samples
    middle = len(samples) // 2
    reach = min(_REACH, middle // 4)
    seam = middle - reach + quietest_moment(samples[middle - reach : middle + reach])
    # From the encoder's grid on, where both halves time a word alike.
    begin = (seam - min(_CONTEXT, seam // 2)) // FRAME * FRAME
    end = seam + (seam - begin)
    owned_end = chunk.start + seam
    return (
        replace(
            chunk,
            index=0,
            samples=samples[:end],
            owned_start=chunk.start,
            owned_end=owned_end,
        ),
        replace(
            chunk,
            index=1,
            start=chunk.start + begin,
            samples=samples[begin:],
            owned_start=owned_end,
            owned_end=chunk.end,
        ),
    )


class _MemoryLimit:
    """How much audio a forward pass may hold, learnt from those that did not fit."""

    def __init__(self) -> None:
        self._most_s = math.inf
        self._learnt = 0.0

    def failed(self, seconds: float) -> None:
        """Learn that so much did not fit: half of it is tried next."""
        self._most_s = max(min(seconds / 2, self.most_s()), _SHORTEST / SAMPLE_RATE)
        self._learnt = time.monotonic()

    def most_s(self) -> float:
        """Give the most that is tried now, seconds; others may have freed memory since."""
        doublings = int((time.monotonic() - self._learnt) / _DOUBLED_S)
        return math.ldexp(self._most_s, min(doublings, _ENOUGH))


def _first(waiting: deque[_Job], cancelled: Callable[[], bool]) -> tuple[Chunk, list[Word]]:
    """Wait for the oldest job's words."""
    job = waiting[0]
    while not job.outcome.wait(_POLL_S):
        if cancelled():
            raise RequestCancelled
    if cancelled():
        raise RequestCancelled
    waiting.popleft()
    return job.chunk, job.outcome.result()
