"""How many requests are worked on at a time, and the line of those that wait for their turn."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from parakeet_api.batching import RequestCancelled
from parakeet_api.errors import QueueFullError

_POLL_S = 0.5
"""How often a waiting request looks whether its client is still there."""


class Admission:
    """Places for the requests that are worked on; first come, first served."""

    def __init__(self, *, active: int, waiting: int) -> None:
        self._most_active = active
        self._most_waiting = waiting
        self._changed = threading.Condition()
        self._active = 0
        self._line: deque[object] = deque()

    @contextmanager
    def place(
        self,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        on_wait: Callable[[int], None] = lambda _: None,
    ) -> Iterator[None]:
        """Hold a place while a request is worked on.

        `on_wait` is told the position in the line, from 1, each time it changes. Raises
        `QueueFullError` at once if too many wait, `RequestCancelled` if the client goes.
        """
        ticket = self._queue_up()
        try:
            self._wait(ticket, cancelled, on_wait)
        except BaseException:
            with self._changed:
                self._line.remove(ticket)
                self._changed.notify_all()
            raise
        try:
            yield
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify_all()

    def refuse_if_full(self) -> None:
        """Raise `QueueFullError` where `place` would: before an upload is looked at."""
        with self._changed:
            self._refuse_if_full()

    def counts(self) -> tuple[int, int]:
        """Count the requests that are worked on, and those that wait."""
        with self._changed:
            return self._active, len(self._line)

    def _queue_up(self) -> object:
        ticket = object()
        with self._changed:
            self._refuse_if_full()
            self._line.append(ticket)
        return ticket

    def _refuse_if_full(self) -> None:
        if self._active + len(self._line) >= self._most_active + self._most_waiting:
            raise QueueFullError("Too many requests are waiting. Try again in a few seconds.")

    def _wait(
        self, ticket: object, cancelled: Callable[[], bool], on_wait: Callable[[int], None]
    ) -> None:
        """Wait until the ticket is the first and a place is free; leave the line for it."""
        position = 0
        while True:
            with self._changed:
                if self._line[0] is ticket and self._active < self._most_active:
                    self._line.popleft()
                    self._active += 1
                    # The next one has moved up.
                    self._changed.notify_all()
                    return
                was, position = position, self._line.index(ticket) + 1
                if was == position:
                    self._changed.wait(_POLL_S)
            # Outside the lock: both may take their time.
            if was != position:
                on_wait(position)
            if cancelled():
                raise RequestCancelled
