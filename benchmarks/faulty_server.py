"""Serve with switchable faults: a recognizer that fails or waits, a clock that is changed.

    .venv/bin/python -m benchmarks.faulty_server SWITCHES

SWITCHES is a file by `Switches.write`, looked at ten times a second. The service itself has no hook
for faults: the recognizer's one method and `time.time` are replaced from outside.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_POLL_S = 0.1
SWITCHED_WITHIN_S = 3 * _POLL_S
"""Time until a switch takes effect, on a busy machine too."""
LITTLE_MEMORY_S = 10.0
"""Seconds of audio, padding included, that fit where the recognizer "has little memory"."""
FAULT = "this fault was asked for"
"""Message of each injected exception in the log."""

Recognition = Literal["works", "raises", "has little memory", "has no memory", "waits"]


@dataclass(frozen=True, slots=True)
class Switches:
    """The active faults."""

    recognizer: Recognition = "works"
    clock_s: float = 0.0
    """How far the wall clock is ahead."""

    def write(self, file: Path) -> None:
        """Set a server's faults; the file is replaced atomically."""
        new = file.with_suffix(".new")
        new.write_text(json.dumps(dataclasses.asdict(self)))
        new.replace(file)


class Watched:
    """The switches as they are now."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.now = self._read()
        threading.Thread(target=self._watch, name="switches", daemon=True).start()

    def _read(self) -> Switches:
        return Switches(**json.loads(self._file.read_text()))

    def _watch(self) -> None:
        while True:
            time.sleep(_POLL_S)
            self.now = self._read()


def set_clock(watched: Watched) -> None:
    """Shift `time.time`."""
    clock = time.time
    time.time = lambda: clock() + watched.now.clock_s


def make_recognizer_fail(watched: Watched) -> None:
    """Patch `NemoRecognizer.recognize` to fail as configured."""
    from parakeet_api.model.batching import padded_s
    from parakeet_api.model.recognizer import NemoRecognizer, OutOfDeviceMemoryError
    from parakeet_api.transcript import Chunk, Word

    recognize: Callable[[NemoRecognizer, Sequence[Chunk]], list[list[Word]]]
    recognize = NemoRecognizer.recognize

    def recognize_or_fail(self: NemoRecognizer, chunks: Sequence[Chunk]) -> list[list[Word]]:
        while watched.now.recognizer == "waits":
            time.sleep(_POLL_S)
        fault = watched.now.recognizer
        if fault == "raises":
            raise RuntimeError(FAULT)
        little = fault == "has little memory" and padded_s(chunks) > LITTLE_MEMORY_S
        if little or fault == "has no memory":
            raise OutOfDeviceMemoryError(FAULT)
        return recognize(self, chunks)

    NemoRecognizer.recognize = recognize_or_fail  # type: ignore[method-assign]


@dataclass(frozen=True, slots=True)
class InUse:
    """What only the process itself can tell: memory without what is free but kept, its threads."""

    heap_mb: float
    """Of the C library's allocator: tensors, plans of oneDNN, Python's larger objects."""
    blocks: int
    """Of Python's allocator, for objects of up to 512 bytes."""
    threads: dict[str, int]
    """Python's threads, by their name without its number."""


_NUMBER = re.compile(r"[-_]?\d+.*")
_MALLINFO = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _Mallinfo(ctypes.Structure):
    """The C library's `struct mallinfo2`, bytes; see mallinfo(3)."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO)


def memory_file(switches: Path) -> Path:
    """Return where a server writes its `InUse`."""
    return switches.with_suffix(".memory")


def measure_when_told(memory: Path) -> None:
    """On SIGUSR1, return free memory to the system and write down what is in use."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Mallinfo

    def measure(*_: object) -> None:
        from parakeet_api.model.heap import trim_heap

        gc.collect()
        trim_heap()
        counted = mallinfo()
        heap_mb = (counted.hblkhd + counted.uordblks) / 1e6
        names = (_NUMBER.sub("", thread.name) for thread in threading.enumerate())
        in_use = InUse(
            heap_mb=heap_mb, blocks=sys.getallocatedblocks(), threads=dict(Counter(names))
        )
        new = memory.with_suffix(".new")
        new.write_text(json.dumps(dataclasses.asdict(in_use)))
        new.replace(memory)

    signal.signal(signal.SIGUSR1, measure)


def main() -> None:
    """Serve, and end as `app.py` does."""
    switches = Path(sys.argv[1])
    measure_when_told(memory_file(switches))
    watched = Watched(switches)
    # Before any module imports `time.time` under another name.
    set_clock(watched)
    from app import main as run

    make_recognizer_fail(watched)
    outcome = run([])
    logging.shutdown()
    os._exit(outcome)


if __name__ == "__main__":
    main()
