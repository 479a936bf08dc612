"""Iterate over the items of a worker thread, with `None` as heartbeats."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import TypeVar

from parakeet_api.model.batching import RequestCancelled

Item = TypeVar("Item")
Emit = Callable[[Item], None]
Cancelled = Callable[[], bool]

_POLL_S = 0.5
"""How often each side checks that the other, or the client, is still active."""
_MAX_WAITING = 16
"""Queued items, beyond which the worker waits for a slow reader, to bound memory."""


@dataclass(frozen=True, slots=True)
class _End:
    """The work's last message."""

    error: Exception | None


def in_background(
    work: Callable[[Emit[Item], Cancelled], None], *, gone: Cancelled, heartbeat_s: float
) -> Generator[Item | None]:
    """Run `work(emit, cancelled)`; yield what it emits, and `None` after each quiet `heartbeat_s`.

    Raises what `work` raised, and `RequestCancelled` once `gone` returns true. Closing the
    generator makes `cancelled` true and waits for the work to end.
    """
    waiting: Queue[Item | _End] = Queue(_MAX_WAITING)
    stopped = threading.Event()

    def cancelled() -> bool:
        return stopped.is_set() or gone()

    def put(item: Item | _End) -> None:
        while not cancelled():
            try:
                waiting.put(item, timeout=_POLL_S)
            except Full:
                continue
            return
        raise RequestCancelled

    def run() -> None:
        try:
            work(put, cancelled)
            put(_End(None))
        except RequestCancelled:
            # The consumer checks `gone` itself, or has closed the generator.
            return
        # Raised again in the consumer.
        except Exception as error:
            with contextlib.suppress(RequestCancelled):
                put(_End(error))

    worker = threading.Thread(target=run, name="stream", daemon=True)
    worker.start()
    try:
        yield from _received(waiting, gone, heartbeat_s)
    finally:
        stopped.set()
        worker.join()


def _received(
    waiting: Queue[Item | _End], gone: Cancelled, heartbeat_s: float
) -> Generator[Item | None]:
    last_yield = time.monotonic()
    while True:
        try:
            item = waiting.get(timeout=min(_POLL_S, heartbeat_s))
        except Empty:
            if gone():
                raise RequestCancelled from None
            if time.monotonic() - last_yield < heartbeat_s:
                continue
            yield None
        else:
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
        last_yield = time.monotonic()
