"""Serve with switchable faults: a recognizer that fails or waits, a clock that is changed.

    .venv/bin/python -m benchmarks.faulty_server SWITCHES

SWITCHES is a file by `Switches.write`, looked at ten times a second. The service itself has no hook
for faults: the recognizer's one method and `time.time` are replaced from outside.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
import signal
import sys
import threading
import time
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


def trim_when_told() -> None:
    """Return free memory back to the system on SIGUSR1; what is left is in use, or leaks."""

    def trim(*_: object) -> None:
        from parakeet_api.model.heap import trim_heap

        gc.collect()
        trim_heap()

    signal.signal(signal.SIGUSR1, trim)


def main() -> None:
    """Serve, and end as `app.py` does."""
    trim_when_told()
    watched = Watched(Path(sys.argv[1]))
    # Before any module imports `time.time` under another name.
    set_clock(watched)
    from app import main as run

    make_recognizer_fail(watched)
    outcome = run([])
    logging.shutdown()
    os._exit(outcome)


if __name__ == "__main__":
    main()
