from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import PATIENCE_S, ROOT

from parakeet_api.model import heap
from parakeet_api.model.heap import HeapTrimmer, resident_bytes

MB = 1_000_000


class Process:
    """A process whose memory and clock are the test's."""

    def __init__(self) -> None:
        self.resident: int | None = 500 * MB
        self.now = 100.0
        self.trims = 0

    def trim(self) -> None:
        self.trims += 1
        self.resident = 400 * MB

    def trimmer(self) -> HeapTrimmer:
        return HeapTrimmer(trim=self.trim, resident=lambda: self.resident, clock=lambda: self.now)


def test_it_trims_when_the_process_has_grown_and_not_too_often() -> None:
    process = Process()
    trimmer = process.trimmer()

    trimmer.trim_if_grown()
    assert process.trims == 1

    process.resident = 900 * MB
    process.now += 4.9
    trimmer.trim_if_grown()
    assert process.trims == 1

    process.now += 0.1
    trimmer.trim_if_grown()
    assert process.trims == 2


def test_a_process_that_has_not_grown_is_left_alone() -> None:
    process = Process()
    trimmer = process.trimmer()
    trimmer.trim_if_grown()

    process.resident = 463 * MB
    process.now += 1000
    trimmer.trim_if_grown()
    assert process.trims == 1

    process.resident = 464 * MB
    trimmer.trim_if_grown()
    assert process.trims == 2


def test_where_the_system_does_not_tell_nothing_is_done() -> None:
    process = Process()
    process.resident = None

    process.trimmer().trim_if_grown()

    assert process.trims == 0


def test_a_thread_does_not_wait_for_another_that_trims() -> None:
    started, let = threading.Event(), threading.Event()

    def slow() -> None:
        started.set()
        assert let.wait(PATIENCE_S)

    trimmer = HeapTrimmer(trim=slow, resident=lambda: 500 * MB)
    other = threading.Thread(target=trimmer.trim_if_grown)
    other.start()
    assert started.wait(PATIENCE_S)

    trimmer.trim_if_grown()

    assert other.is_alive()
    let.set()
    other.join(PATIENCE_S)
    assert not other.is_alive()


def test_resident_memory_is_that_of_the_system() -> None:
    before = resident_bytes()
    filled = bytearray(b"x" * 200 * MB)
    after = resident_bytes()

    assert before is not None
    assert after is not None
    assert after - before > 150 * MB
    assert len(filled) == 200 * MB


def test_without_proc_it_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_STATM", Path("/nowhere/statm"))

    assert resident_bytes() is None


def test_a_trim_gives_freed_memory_back_that_the_library_kept() -> None:
    # In a process of its own: what else is on the heap there is known. Blocks of 100 KB are below
    # the size that has a mapping of its own; the small one after them keeps the heap's end.
    script = """
import numpy as np
from parakeet_api.model.heap import resident_bytes, trim_heap
blocks = [np.ones(100_000, np.uint8) for _ in range(2000)]
end = np.ones(100_000, np.uint8)
del blocks
kept = resident_bytes()
trim_heap()
print(kept - resident_bytes())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert int(done.stdout) > 100 * MB
