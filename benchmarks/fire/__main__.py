"""Soak test: run a real server under mixed load with injected faults, and check for errors.

    make fire                                        an hour
    .venv/bin/python -m benchmarks.fire --minutes 5  less of it
    .venv/bin/python -m benchmarks.fire --seed 7     other requests, other faults

A finding is a transcript that differs from the one that the quiet server gave, an error that no
fault of that moment explains or that is not in OpenAI's shape, an accepted job that is lost or
failed, a probe that is not answered, an exception in the log that was not asked for, and what is
left at the end: a file, a process, a thread, a descriptor, memory. The exit status is 1 if there is
any.

In the first half the process is killed or stopped every one to three minutes. In the second it
lives on, so that it can be seen whether it grows. A disk can be filled by root alone.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import astuple, dataclass, field
from pathlib import Path

from benchmarks.faulty_server import FAULT, InUse
from benchmarks.fire.faults import Faults
from benchmarks.fire.journal import Journal
from benchmarks.fire.load import Load
from benchmarks.fire.recordings import MOST_CLIPS, ask_all, make_recordings
from benchmarks.fire.server import Resources, Server, processes_of, small_disk

FAULT_EVERY_S = (1.0, 5.0)
RESTART_EVERY_S = (60.0, 180.0)
PROGRESS_S = 60.0
SHORT_MIN = 1.0
"""Shorter runs use only a few clips, as each is transcribed twice before the run."""
IDLE_WITHIN_S = 400.0
"""A job that the server could not do for now waits for up to five minutes."""
LAST_LIFE = 0.5
"""Share of the run."""
WARM_UP = 1 / 3
"""Share of the last life, for threads to start and for oneDNN's plans of common shapes."""
JUDGED_FROM_S = 600.0
"""Memory and threads are judged over such a time, and reported over less: pools start their threads
when they first need them, and after a second not every one of them had reason to."""
REQUEST_THREADS = "waitress"
"""Not judged: the pool starts one when all others are busy, up to a limit, and keeps some."""
CLOSED_WITHIN_S = 30.0
"""A connection is closed a moment after its last response, and a thread ends a moment after its
work. A leak stays."""
MOST_GROWTH = 0.05
"""Of memory in use, from one quiet moment to another, as oneDNN still meets new shapes. A leak of
1 KB a request would be more in an hour."""
EXPECTED = (FAULT, "No space left on device", "database or disk is full")
"""What exceptions in the log may say."""

FIRST, NEW, WARM, END = "first life, quiet", "last life, new", "last life, warm", "last life, end"


@dataclass(frozen=True, slots=True)
class Measured:
    """What an idle server held."""

    at: float
    """On the monotonic clock."""
    in_use: InUse
    resources: Resources


@dataclass(slots=True)
class Fire:
    """One run."""

    server: Server
    load: Load
    faults: Faults
    journal: Journal
    rng: random.Random
    started: float = field(default_factory=time.monotonic)
    measured: dict[str, Measured] = field(default_factory=dict)
    """Quiet moments by name."""

    def run(self, length_s: float) -> None:
        """Run for so long, then check what is left."""
        self.measure(FIRST)
        self.load.start()
        self._burn(length_s * (1 - LAST_LIFE), with_restarts=True)
        self._quieten()
        self.faults.restart(by_force=False)
        if ask_all(self.server.url, self.load.recordings) != self.load.right:
            self.journal.find("restart", "the transcripts of the quiet server differ")
        self.measure(NEW)
        for share, name in ((WARM_UP, WARM), (1 - WARM_UP, END)):
            self.load.go_on()
            self._burn(length_s * LAST_LIFE * share, with_restarts=False)
            self._quieten()
            self.measure(name)
        self.load.close()
        self._check_growth()
        for problem in self.load.missing_jobs():
            self.journal.find("jobs", problem)

    def measure(self, name: str) -> None:
        """Record what an idle server holds."""
        in_use = self.server.in_use()
        self.measured[name] = Measured(time.monotonic(), in_use, self.server.resources())

    def _burn(self, seconds: float, *, with_restarts: bool) -> None:
        """Inject a fault every few seconds."""
        end = time.monotonic() + seconds
        reported_at = time.monotonic()
        restart_at = self._next_restart(seconds) if with_restarts else end
        by_force = itertools.cycle((True, False))
        while (now := time.monotonic()) < end:
            if not self.server.is_running():
                self.journal.find("server", "it ended by itself")
                self.server.start()
            if now >= restart_at:
                self.faults.restart(by_force=next(by_force))
                restart_at = self._next_restart(seconds)
            self.faults.make_one()
            if now - reported_at > PROGRESS_S:
                reported_at = now
                print(self._progress(), flush=True)
            time.sleep(max(0.0, min(self.rng.uniform(*FAULT_EVERY_S), end - time.monotonic())))

    def _next_restart(self, seconds: float) -> float:
        # Of a short run, too, there are two.
        return time.monotonic() + min(self.rng.uniform(*RESTART_EVERY_S), seconds / 3)

    def _progress(self) -> str:
        held = self.server.resources()
        return (
            f"{(time.monotonic() - self.started) / 60:5.1f} min:"
            f" {self.journal.requests.total():,} requests, {self.journal.faults().total()} faults,"
            f" {len(self.journal.findings)} findings; {held.resident_mb:.0f} MB,"
            f" {held.threads} threads, {held.descriptors} descriptors, {held.children} ffmpegs,"
            f" {held.files} files, {len(self.load.jobs)} unfinished jobs"
        )

    def _quieten(self) -> None:
        """Wait for all responses; then check that nothing of the requests is left."""
        self.load.pause()
        deadline = time.monotonic() + IDLE_WITHIN_S
        while self.load.jobs or not self.server.is_idle():
            if time.monotonic() > deadline:
                files = [str(path) for path in self.server.files()]
                summary = f"{self.server.resources()}, {files}, jobs {list(self.load.jobs)}"
                self.journal.find("quiet", f"not idle after {IDLE_WITHIN_S:.0f} s: {summary}")
                return
            time.sleep(0.2)

    def _check_growth(self) -> None:
        deadline = time.monotonic() + CLOSED_WITHIN_S
        while (growth := self._growth()) and time.monotonic() < deadline:
            time.sleep(1)
            self.measure(END)
        for what in growth:
            self.journal.find("leak", what)

    def _growth(self) -> list[str]:
        warm, end = self.measured[WARM], self.measured[END]
        growth = [
            f"{name}: {old} became {new}"
            for name in ("descriptors", "children", "files")
            if (new := getattr(end.resources, name)) > (old := getattr(warm.resources, name))
        ]
        if end.at - warm.at < JUDGED_FROM_S:
            return growth
        growth += [
            f"{name}: {old:,.0f} became {new:,.0f}"
            for name in ("heap_mb", "blocks")
            if (new := getattr(end.in_use, name))
            > (old := getattr(warm.in_use, name)) * (1 + MOST_GROWTH)
        ]
        return growth + [
            f"threads {name!r}: {warm.in_use.threads.get(name, 0)} became {count}"
            for name, count in end.in_use.threads.items()
            if name != REQUEST_THREADS and count > warm.in_use.threads.get(name, 0)
        ]


def exceptions_in(log: Path) -> Counter[str]:
    """Count the exceptions in a log."""
    raised: Counter[str] = Counter()
    inside = False
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("Traceback "):
            inside = True
        elif inside and not line.startswith(" "):
            inside = False
            raised[line[:200]] += 1
    return raised


def fire(folder: Path, *, minutes: float, seed: int) -> int:
    """Run in a folder, print the tables; give the exit status."""
    journal = Journal()
    few = minutes < SHORT_MIN
    recordings = make_recordings(folder, clips=3 if few else MOST_CLIPS, long=not few)
    with small_disk(folder / "disk") as disk:
        server = Server(folder, disk)
        server.start()
        try:
            right = ask_all(server.url, recordings)
            load = Load(server, recordings, right, journal, seed)
            faults = Faults(server, disk, journal, seed=seed)
            run = Fire(server, load, faults, journal, random.Random(f"{seed} run"))
            run.run(minutes * 60)
            if status := server.stop():
                journal.find("end", f"exit status {status}")
        finally:
            if server.is_running():
                server.kill()
        for line in processes_of(disk.folder):
            journal.find("end", f"still runs: {line}")
        for file in server.files():
            journal.find("end", f"still there: {file}")
    raised = exceptions_in(server.log)
    for line in raised:
        if not any(text in line for text in EXPECTED):
            journal.find("log", line)
    print(f"\nseed {seed}, {minutes:g} minutes" + ("" if disk.is_small else ", no full disks"))
    print_tables(run, raised)
    return 1 if journal.findings else 0


def print_tables(run: Fire, raised: Counter[str]) -> None:
    """Print requests, faults, resources and findings, as markdown."""
    _table(
        "request | outcome | count",
        [(kind, what, f"{n:,}") for (kind, what), n in sorted(run.journal.requests.items())],
    )
    _table("fault | count", [(kind, f"{n:,}") for kind, n in run.journal.faults().most_common()])
    _table("exception in the log | count", [(line, str(n)) for line, n in raised.most_common()])
    _table(
        "moment | heap in use, MB | Python's blocks | resident, MB"
        " | threads | descriptors | children | files",
        [_row_of(name, measured) for name, measured in run.measured.items()],
    )
    print(f"\nslowest probe: {run.load.slowest_probe_s:.2f} s")
    print(f"\n{len(run.journal.findings)} findings")
    for finding in run.journal.findings:
        print(f"- {finding}")


def _row_of(name: str, measured: Measured) -> tuple[str, ...]:
    in_use, held = measured.in_use, measured.resources
    memory = (f"{in_use.heap_mb:.0f}", f"{in_use.blocks:,}", f"{held.resident_mb:.0f}")
    return (name, *memory, *map(str, astuple(held)[1:]))


def _table(head: str, rows: list[tuple[str, ...]]) -> None:
    print(f"\n| {head} |\n|{'---|' * (head.count('|') + 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def main() -> int:
    """Run; give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="where to keep the server's log")
    options = parser.parse_args()
    # So that its server, disk and folder are cleaned up.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="fire-") as name:
        folder = Path(name)
        try:
            return fire(folder, minutes=options.minutes, seed=options.seed)
        finally:
            if options.log:
                shutil.copyfile(folder / "server.log", options.log)


if __name__ == "__main__":
    sys.exit(main())
