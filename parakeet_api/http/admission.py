"""Limit the number of requests processed at a time; queue the others."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from parakeet_api.errors import QueueFullError, StoppingError
from parakeet_api.metrics import Metrics
from parakeet_api.model.batching import RequestCancelled

_POLL_S = 0.5
"""How often a waiting request checks that its client is still connected."""


class Admission:
    """Slots for requests in progress; first come, first served."""

    def __init__(self, *, active: int, waiting: int, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()
        self._max_active = active
        self._max_waiting = waiting
        self._changed = threading.Condition()
        self._active = 0
        self._queue: deque[object] = deque()
        self._stopping = False
        self._metrics.requests_active.set_function(lambda: self.counts()[0])
        self._metrics.requests_waiting.set_function(lambda: self.counts()[1])

    @contextmanager
    def slot(
        self,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        on_wait: Callable[[int], None] = lambda _: None,
    ) -> Iterator[None]:
        """Hold a slot while a request is processed.

        `on_wait` is called with the position in the queue, from 1, each time it changes. Raises
        `QueueFullError` at once if too many wait, `StoppingError` if the server is stopping, and
        `RequestCancelled` if the client disconnects.
        """
        since = time.monotonic()
        ticket = self._enqueue()
        try:
            self._wait(ticket, cancelled, on_wait)
        except BaseException:
            with self._changed:
                self._queue.remove(ticket)
                self._changed.notify_all()
            raise
        self._metrics.request_wait_seconds.observe(time.monotonic() - since)
        try:
            yield
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify_all()

    def refuse_if_full(self) -> None:
        """Raise what `slot` would raise at once, before an upload is received."""
        with self._changed:
            self._refuse_if_full()

    def stop(self) -> None:
        """Reject new requests from now on; those in the queue are still served."""
        with self._changed:
            self._stopping = True

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait until no request is in progress or queued; return whether that was in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._active or self._queue), timeout_s)

    @property
    def stopping(self) -> bool:
        """Whether the server is stopping."""
        return self._stopping

    def counts(self) -> tuple[int, int]:
        """Return the numbers of requests in progress and in the queue."""
        with self._changed:
            return self._active, len(self._queue)

    def _enqueue(self) -> object:
        ticket = object()
        with self._changed:
            self._refuse_if_full()
            self._queue.append(ticket)
        return ticket

    def _refuse_if_full(self) -> None:
        if self._stopping:
            raise StoppingError
        if self._active + len(self._queue) >= self._max_active + self._max_waiting:
            raise QueueFullError("Too many requests are waiting. Try again in a few seconds.")

    def _wait(
        self, ticket: object, cancelled: Callable[[], bool], on_wait: Callable[[int], None]
    ) -> None:
        """Wait until the ticket is first and a slot is free; then take the slot."""
        position = 0
        while True:
            with self._changed:
                if self._queue[0] is ticket and self._active < self._max_active:
                    self._queue.popleft()
                    self._active += 1
                    # The next one has moved up.
                    self._changed.notify_all()
                    return
                was, position = position, self._queue.index(ticket) + 1
                if was == position:
                    self._changed.wait(_POLL_S)
            # Outside the lock: both may be slow.
            if was != position:
                on_wait(position)
            if cancelled():
                raise RequestCancelled
