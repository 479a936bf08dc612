"""Share memory and permits among several models.

A model is loaded when it is first needed. If it does not fit, the least recently used model is
evicted, but never during a lease. Models in constant use take turns, each at least as long as its
load took, so that at most half of the time is spent loading.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parakeet_api.errors import ServiceUnavailableError, StoppingError
from parakeet_api.model.slot import ModelSlot, NetworkT, Unloading

_MIN_TURN_S = 1.0
_QUIET_S = 0.25
"""A model without a lease for this long has no work: between two batches it is milliseconds."""
_POLL_S = 0.05
"""Interval at which a waiting model checks for room: turns end, other programs free memory."""
_MAX_WAIT_S = 300.0
"""For room. A lease is one forward pass: it ends in seconds, unless the GPU hangs."""

HasRoom = Callable[[Path, str], bool]
"""Whether a checkpoint fits beside what is loaded on a device (`cpu`, `cuda:0`)."""


@dataclass(slots=True)
class _Turn:
    """Scheduling state of one slot; all times are on the pool's clock."""

    leases: int = 0
    """Leases that are held or about to be."""
    used_at: float = -math.inf
    """When the last lease ended."""
    ends_at: float = -math.inf
    """Until then the model is not evicted while it has work."""
    is_loading: bool = False
    """There is room for the model, and it is being loaded."""
    is_evicting: bool = False
    """The model is to be evicted once its leases end."""
    preload: Future[None] | None = None
    """The last load without a lease."""


class ModelPool:
    """Lend models and permits; safe to use from many threads."""

    def __init__(
        self,
        slots: Sequence[ModelSlot[Any]],
        *,
        permits: int,
        has_room: HasRoom,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._turns = {slot: _Turn() for slot in slots}
        self._permits = _Permits(permits)
        self._has_room = has_room
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        """Tickets of leases that wait for room, first come first served."""
        self._closed = False

    @contextmanager
    def lease(self, slot: ModelSlot[NetworkT]) -> Iterator[NetworkT]:
        """Lend a model together with one of the permits, which bound all models' batches.

        Raises what its load raises, `ServiceUnavailableError` if the others do not make room, and
        `StoppingError` once the pool is closed.
        """
        # In this order: the holder of a permit waits for nothing else, so a permit comes free.
        with self._loaded(slot) as network, self._permits.one():
            yield network

    def load(self, slot: ModelSlot[Any]) -> Future[None]:
        """Begin to load a model; calls during the load share its outcome."""
        with self._changed:
            turn = self._turns[slot]
            preload = turn.preload
            if preload is None or preload.done():
                preload = turn.preload = Future()
                threading.Thread(
                    target=self._preload, args=(slot, preload), name="load", daemon=True
                ).start()
        return preload

    def unload(self, slot: ModelSlot[Any]) -> Unloading:
        """Unload a model unless it is lent or being loaded; waits for neither."""
        with self._changed:
            return "in_use" if self._turns[slot].leases else slot.unload_unused()

    def close(self) -> None:
        """Make every lease that waits for room fail."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @contextmanager
    def _loaded(self, slot: ModelSlot[NetworkT]) -> Iterator[NetworkT]:
        loads = self._enter(slot)
        started = self._clock()
        try:
            with slot.lease() as network:
                if loads:
                    self._begin_turn(slot, load_s=self._clock() - started)
                yield network
        finally:
            self._leave(slot, loads)

    def _enter(self, slot: ModelSlot[Any]) -> bool:
        """Wait until the model is loaded or has room; tell whether this lease loads it."""
        with self._changed:
            loads = not self._is_open(slot) and self._wait_for_room(slot)
            self._turns[slot].leases += 1
        return loads

    def _is_open(self, slot: ModelSlot[Any]) -> bool:
        """Tell whether a lease may be taken without waiting for room."""
        turn = self._turns[slot]
        return (turn.is_loading or slot.state == "ready") and not turn.is_evicting

    def _wait_for_room(self, slot: ModelSlot[Any]) -> bool:
        """Wait in the queue; tell whether this lease loads the model. Called with the lock held."""
        ticket, deadline = object(), self._clock() + _MAX_WAIT_S
        self._queue.append(ticket)
        try:
            while not self._is_open(slot):
                if self._closed:
                    raise StoppingError
                if self._queue[0] is ticket and self._make_room(slot):
                    self._turns[slot].is_loading = True
                    return True
                if self._clock() >= deadline:
                    raise ServiceUnavailableError(
                        f"There is no room for the model {slot.checkpoints.name!r}:"
                        " others are in use."
                    )
                self._changed.wait(_POLL_S)
            return False
        finally:
            if self._queue[0] is ticket:
                for turn in self._turns.values():
                    turn.is_evicting = False
            self._queue.remove(ticket)
            self._changed.notify_all()

    def _make_room(self, slot: ModelSlot[Any]) -> bool:
        """Evict models as needed and permitted; return whether the model may be loaded now."""
        if any(turn.is_loading for turn in self._turns.values()):
            # The memory that it will use is not known yet.
            return False
        checkpoint = slot.checkpoints.checkpoint().path
        ready = [other for other in self._turns if other.state == "ready"]
        for other in sorted(ready, key=self._eviction_key):
            assert other.info is not None
            if self._has_room(checkpoint, other.info.device):
                return True
            turn = self._turns[other]
            turn.is_evicting = self._is_evictable(turn)
            if not turn.is_evicting or self.unload(other) == "in_use":
                return False
        # No other model is left to evict: the load itself fails if that was not enough.
        return True

    def _eviction_key(self, slot: ModelSlot[Any]) -> tuple[bool, float]:
        """Sort by order of eviction: least recently used, then earliest end of turn."""
        turn = self._turns[slot]
        return (True, turn.ends_at) if turn.leases else (False, turn.used_at)

    def _is_evictable(self, turn: _Turn) -> bool:
        now = self._clock()
        is_quiet = not turn.leases and now - turn.used_at >= _QUIET_S
        return is_quiet or now >= turn.ends_at

    def _begin_turn(self, slot: ModelSlot[Any], *, load_s: float) -> None:
        with self._changed:
            turn = self._turns[slot]
            turn.is_loading = False
            turn.ends_at = self._clock() + max(_MIN_TURN_S, load_s)
            self._changed.notify_all()

    def _leave(self, slot: ModelSlot[Any], loaded: bool) -> None:
        with self._changed:
            turn = self._turns[slot]
            turn.leases -= 1
            turn.used_at = self._clock()
            if loaded:
                # Also after a load that failed.
                turn.is_loading = False
            self._changed.notify_all()

    def _preload(self, slot: ModelSlot[Any], outcome: Future[None]) -> None:
        try:
            with self._loaded(slot):
                pass
        # Raised where the future is read.
        except Exception as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(None)


class _Permits:
    """A semaphore that is first come, first served, as `threading.Semaphore` is not."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._lock = threading.Lock()
        self._queue: deque[threading.Event] = deque()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a permit."""
        turn = threading.Event()
        with self._lock:
            if self._free:
                self._free -= 1
                turn.set()
            else:
                self._queue.append(turn)
        turn.wait()
        try:
            yield
        finally:
            with self._lock:
                if self._queue:
                    # Handed over, so that it is never free while others wait.
                    self._queue.popleft().set()
                else:
                    self._free += 1
