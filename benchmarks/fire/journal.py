"""The log of a run: requests, injected faults, and findings."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

CUT = "cut"
"""In an error code's place: the connection ended before the answer did."""

FaultKind = Literal[
    "ffmpeg killed",
    "ffmpeg asked to end",
    "recognizer raises",
    "little device memory",
    "no device memory",
    "wall clock set",
    "disk full",
    "server killed",
    "server stopped",
]

GRACE_S = 10
"""STOP_GRACE_SECONDS of the server."""
_WHILE_STARTING = frozenset({"model_not_ready", "jobs_unavailable"})
EXCUSES: dict[FaultKind, frozenset[str]] = {
    "ffmpeg killed": frozenset({"service_unavailable"}),
    "ffmpeg asked to end": frozenset({"service_unavailable"}),
    "recognizer raises": frozenset({"internal_error"}),
    # A batch that does not fit is halved, without an error.
    "little device memory": frozenset(),
    "no device memory": frozenset({"service_unavailable"}),
    "wall clock set": frozenset(),
    "disk full": frozenset({"service_unavailable", "jobs_unavailable", "model_load_failed"}),
    "server killed": _WHILE_STARTING | {CUT},
    "server stopped": _WHILE_STARTING | {CUT, "stopping"},
}
"""The errors that a request may end with while a fault lasts; see also `Fault.excuses`."""
SMALLER_CHUNKS_S = 120.0
"""How long after a lack of memory chunks may be smaller than usual: what is tried starts at 5 s and
doubles every 30 s."""


@dataclass(slots=True)
class Fault:
    """An injected fault."""

    kind: FaultKind
    began: float
    ended: float = math.inf

    def overlaps(self, began: float, ended: float) -> bool:
        return self.began <= ended and began <= self.ended

    def excuses(self, code: str, began: float, ended: float) -> bool:
        if not self.overlaps(began, ended) or code not in EXCUSES[self.kind]:
            return False
        # Requests in progress at a stop have the grace period to finish.
        orderly = self.kind == "server stopped" and ended < self.began + GRACE_S
        return not (orderly and code == CUT and began < self.began)


class Journal:
    """Record requests, faults and findings; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._faults: list[Fault] = []
        self.requests: Counter[tuple[str, str]] = Counter()
        """By kind and outcome."""
        self.findings: list[str] = []

    @contextmanager
    def fault(self, kind: FaultKind) -> Iterator[Fault]:
        """Record a fault that lasts as long as the block."""
        fault = Fault(kind, time.monotonic())
        with self._lock:
            self._faults.append(fault)
        try:
            yield fault
        finally:
            fault.ended = time.monotonic()

    def count(self, kind: str, outcome: str) -> None:
        """Count a request."""
        with self._lock:
            self.requests[kind, outcome] += 1

    def find(self, kind: str, details: str) -> None:
        """Record a finding, and print it at once."""
        finding = f"{(time.monotonic() - self._started) / 60:6.2f} min, {kind}: {details[:400]}"
        with self._lock:
            self.findings.append(finding)
        print(f"FINDING {finding}", flush=True)

    def excuse(self, code: str, began: float, ended: float) -> bool:
        """Tell whether a fault explains an error."""
        return any(fault.excuses(code, began, ended) for fault in self._all())

    def overlapping(self, began: float, ended: float) -> list[Fault]:
        """List the faults of a time."""
        return [fault for fault in self._all() if fault.overlaps(began, ended)]

    def memory_was_short(self, began: float, ended: float) -> bool:
        """Tell whether recordings may have been recognised in smaller chunks than usual."""
        return any(
            fault.kind in ("little device memory", "no device memory")
            and fault.overlaps(began - SMALLER_CHUNKS_S, ended)
            for fault in self._all()
        )

    def faults(self) -> Counter[str]:
        """Count the faults by kind."""
        return Counter(str(fault.kind) for fault in self._all())

    def _all(self) -> list[Fault]:
        with self._lock:
            return list(self._faults)
