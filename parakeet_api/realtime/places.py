"""Limit the number of open live sessions; evict an idle one for a new one."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from parakeet_api.errors import QueueFullError
from parakeet_api.metrics import Metrics

_NEVER_SPOKEN_S = 5.0
"""A session that has never sent audio may be evicted after this time."""
_QUIET_S = 60.0
"""A session that has sent audio may be evicted after this time without any."""


@dataclass(eq=False, slots=True, kw_only=True)
class Place:
    """An open session."""

    address: str
    """The client's address."""
    began: float = field(default_factory=time.monotonic)
    last_sound: Callable[[], float | None] = lambda: None
    """When audio last arrived, by the monotonic clock; `None` = never."""
    abort: Callable[[], None] = lambda: None
    """End the session at once."""
    evicted: bool = False
    """Whether the session must end for another one."""

    def is_idle(self, now: float) -> bool:
        """Tell whether the session may be evicted."""
        last = self.last_sound()
        return now - last > _QUIET_S if last else now - self.began > _NEVER_SPOKEN_S


class Places:
    """The open live sessions of this server."""

    def __init__(self, *, most: int, metrics: Metrics) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._taken: list[Place] = []
        """Sessions that count towards the limit."""
        self._open = 0
        """All sessions, including evicted ones that have not ended yet."""
        metrics.realtime_sessions.set_function(self.under_way)

    @contextmanager
    def take(self, address: str) -> Iterator[Place]:
        """Reserve a place for a session. Raises `QueueFullError` if none is free."""
        place = Place(address=address)
        with self._lock:
            if len(self._taken) >= self._most:
                self._make_room()
            self._taken.append(place)
            self._open += 1
        try:
            yield place
        finally:
            with self._lock:
                self._open -= 1
                if place in self._taken:
                    self._taken.remove(place)

    def under_way(self) -> int:
        """Count the open sessions."""
        return self._open

    def cancel(self) -> None:
        """End all sessions at once."""
        with self._lock:
            taken = [*self._taken]
        for place in taken:
            place.abort()

    def _make_room(self) -> None:
        """Evict an idle session of the address with the most; called with the lock held."""
        now = time.monotonic()
        idle = [place for place in self._taken if place.is_idle(now)]
        if not idle:
            raise QueueFullError("Too many live sessions are open. Try again later.")
        held = Counter(place.address for place in self._taken)
        victim = min(idle, key=lambda p: (-held[p.address], p.last_sound() or p.began))
        victim.evicted = True
        self._taken.remove(victim)
