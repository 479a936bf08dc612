"""Several models and one memory: which of them are in it, and whose turn it is at the permits.

A model is loaded when it is wanted. Where there is no room for it beside the others, the one that
was used longest ago makes room; never during a lease. Models that are wanted all the time take
turns, each as long as its load took, so that at most half of the time goes into loading.
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

from parakeet_api.errors import ServiceUnavailableError, StoppingError
from parakeet_api.model.checkpoints import ModelStore
from parakeet_api.model.model_manager import ModelManager, Unloading
from parakeet_api.model.recognizer import Recognizer

_SHORTEST_TURN_S = 1.0
_QUIET_S = 0.25
"""A model without a lease for so long has no work: between two batches it is milliseconds."""
_POLL_S = 0.05
"""How often a model that waits for room looks: turns end, and other programs free memory."""
_LONGEST_WAIT_S = 300.0
"""For room. A lease is a forward pass: it ends in seconds, unless the card is stuck."""

HasRoom = Callable[[Path, str], bool]
"""Whether a checkpoint fits beside what is loaded on a device (`cpu`, `cuda:0`)."""


@dataclass(eq=False, slots=True, kw_only=True)
class Resident:
    """A model that shares the memory; all but its first two fields are the pool's."""

    store: ModelStore
    manager: ModelManager
    users: int = 0
    """Leases that are held or about to be."""
    used_at: float = -math.inf
    """When the last one ended; on the pool's clock, as all its times."""
    turn_ends_at: float = -math.inf
    """Until then it makes no room for others while it has work."""
    is_coming: bool = False
    """There is room for it, and it is being loaded."""
    is_leaving: bool = False
    """It is to make room, and waits for its leases to end."""
    loading: Future[None] | None = None
    """The last load that was asked for by itself."""


class ModelPool:
    """Lend models and permits; safe to use from many threads."""

    def __init__(
        self,
        residents: Sequence[Resident],
        *,
        permits: int,
        has_room: HasRoom,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._residents = residents
        self._permits = _Permits(permits)
        self._has_room = has_room
        self._clock = clock
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        """Those who wait for room, first come first served."""
        self._closed = False

    @contextmanager
    def lease(self, model: Resident) -> Iterator[Recognizer]:
        """Lend a model together with one of the permits, which bound all models' batches.

        Raises what its load raises, `ServiceUnavailableError` if the others do not make room, and
        `StoppingError` once the pool is closed.
        """
        # In this order: who holds a permit waits for nobody, so a permit comes free.
        with self._residence(model) as recognizer, self._permits.one():
            yield recognizer

    def load(self, model: Resident) -> Future[None]:
        """Begin to load a model; who asks meanwhile is given the same load's outcome."""
        with self._changed:
            loading = model.loading
            if loading is None or loading.done():
                loading = model.loading = Future()
                threading.Thread(
                    target=self._load, args=(model, loading), name="load", daemon=True
                ).start()
        return loading

    def unload(self, model: Resident) -> Unloading:
        """Unload a model unless it is lent or being loaded; waits for neither."""
        with self._changed:
            return "in_use" if model.users else model.manager.unload_unused()

    def close(self) -> None:
        """Let nobody wait for room any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @contextmanager
    def _residence(self, model: Resident) -> Iterator[Recognizer]:
        brings = self._enter(model)
        started = self._clock()
        try:
            with model.manager.lease() as recognizer:
                if brings:
                    self._arrived(model, load_s=self._clock() - started)
                yield recognizer
        finally:
            self._leave(model, brings)

    def _enter(self, model: Resident) -> bool:
        """Wait until the model is in memory or may be loaded; tell whether it is ours to load."""
        with self._changed:
            brings = not _is_open(model) and self._wait_for_room(model)
            model.users += 1
        return brings

    def _wait_for_room(self, model: Resident) -> bool:
        """Wait in line, with the lock held but for the pauses; tell whether it is ours to load."""
        ticket, deadline = object(), self._clock() + _LONGEST_WAIT_S
        self._line.append(ticket)
        try:
            while not _is_open(model):
                if self._closed:
                    raise StoppingError
                if self._line[0] is ticket and self._make_room(model):
                    model.is_coming = True
                    return True
                if self._clock() >= deadline:
                    raise ServiceUnavailableError(
                        f"There is no room for the model {model.store.name!r}: others are in use."
                    )
                self._changed.wait(_POLL_S)
            return False
        finally:
            if self._line[0] is ticket:
                for other in self._residents:
                    other.is_leaving = False
            self._line.remove(ticket)
            self._changed.notify_all()

    def _make_room(self, model: Resident) -> bool:
        """Unload what is in the way and may go; tell whether the model may be loaded now."""
        if any(other.is_coming for other in self._residents):
            # What it will take cannot be seen yet.
            return False
        checkpoint = model.store.checkpoint().path
        for other in sorted(self._loaded(), key=_leaves_first):
            assert other.manager.info is not None
            if self._has_room(checkpoint, other.manager.info.device):
                return True
            other.is_leaving = self._may_leave(other)
            if not other.is_leaving or self.unload(other) == "in_use":
                return False
        # Nothing more can be done for it: its load tells if that was not enough.
        return True

    def _loaded(self) -> list[Resident]:
        return [model for model in self._residents if model.manager.state == "ready"]

    def _may_leave(self, model: Resident) -> bool:
        now = self._clock()
        is_quiet = not model.users and now - model.used_at >= _QUIET_S
        return is_quiet or now >= model.turn_ends_at

    def _arrived(self, model: Resident, *, load_s: float) -> None:
        with self._changed:
            model.is_coming = False
            model.turn_ends_at = self._clock() + max(_SHORTEST_TURN_S, load_s)
            self._changed.notify_all()

    def _leave(self, model: Resident, brought: bool) -> None:
        with self._changed:
            model.users -= 1
            model.used_at = self._clock()
            if brought:
                # Also after a load that failed.
                model.is_coming = False
            self._changed.notify_all()

    def _load(self, model: Resident, loading: Future[None]) -> None:
        try:
            with self._residence(model):
                pass
        # A thread's border: the error is raised where the future is looked at.
        except Exception as error:
            loading.set_exception(error)
        else:
            loading.set_result(None)


def _is_open(model: Resident) -> bool:
    """Tell whether a lease may be taken without making room."""
    return (model.is_coming or model.manager.state == "ready") and not model.is_leaving


def _leaves_first(model: Resident) -> tuple[bool, float]:
    """Order by who should make room: who was used longest ago, then whose turn ends first."""
    return (True, model.turn_ends_at) if model.users else (False, model.used_at)


class _Permits:
    """A semaphore that is first come, first served: `threading.Semaphore` lets others push in."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._lock = threading.Lock()
        self._line: deque[threading.Event] = deque()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a permit."""
        turn = threading.Event()
        with self._lock:
            if self._free:
                self._free -= 1
                turn.set()
            else:
                self._line.append(turn)
        turn.wait()
        try:
            yield
        finally:
            with self._lock:
                if self._line:
                    # Handed over, so that it is never free while somebody waits.
                    self._line.popleft().set()
                else:
                    self._free += 1
