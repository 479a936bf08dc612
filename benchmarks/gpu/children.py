"""Run sections in their own processes, so that one that crashes or hangs affects no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import ChainMap, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from benchmarks.fidelity import ROOT
from benchmarks.gpu.report import Report
from benchmarks.gpu.sections import Section

_LOOK_S = 0.1
_MIN_S = 15.0
"""With less time left, a section is not started."""
_LOG_LINES = 4
"""Characters of a crashed process' output to report."""

Outcomes = Mapping[Section, Report]
"""Sections that have ended or were not started, and their results."""


class Process(Protocol):
    """The interface of a process that the schedule uses."""

    sections: Sequence[Section]
    """Its sections, in order."""

    def begin(self, figures: Mapping[str, float], *, limit_s: float) -> None:
        """Let it begin, with the figures of those before; it may take so many seconds."""
        ...

    def has_ended(self) -> bool:
        """Tell whether it has ended, or its time is up."""
        ...

    def outcomes(self) -> Outcomes:
        """Tell what it found, once it has ended."""
        ...

    def kill(self) -> None:
        """End it."""
        ...


class Child:
    """A process that imports its libraries, then waits for its turn."""

    def __init__(
        self, sections: Sequence[Section], *, options: Sequence[str], folder: Path
    ) -> None:
        """Start it; it writes what it finds into the folder."""
        self.sections = sections
        self._folder = folder
        self._log = folder / f"{sections[0].name}.log"
        self._ends = 0.0
        self._stopped = False
        names = [text for section in sections for text in ("--section", section.name)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*_COMMAND, *names, "--findings", str(folder), *options],
                cwd=ROOT,
                env=_environ(sections),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # A group of its own, with the server and the clients that it starts.
                start_new_session=True,
            )

    def begin(self, figures: Mapping[str, float], *, limit_s: float) -> None:
        """Let it begin, with the figures of those before; end it after so many seconds."""
        self._ends = time.monotonic() + limit_s
        assert self._process.stdin is not None
        # It may have crashed already.
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(dict(figures)).encode() + b"\n")
            self._process.stdin.flush()

    def has_ended(self) -> bool:
        """Tell whether it has ended; end it if its time is up."""
        if self._process.poll() is None and time.monotonic() >= self._ends:
            self._stopped = True
            self.kill()
        return self._process.poll() is not None

    def outcomes(self) -> Outcomes:
        """Tell what it found, once it has ended."""
        # Kill its server, if it crashed before stopping it.
        self.kill()
        return {section: self._outcome(section) for section in self.sections}

    def kill(self) -> None:
        """End it, with all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with suppress(BrokenPipeError):
            self._process.communicate()

    def _outcome(self, section: Section) -> Report:
        report = Report.read(findings(self._folder, section))
        if report.seconds is not None:
            return report
        if self._stopped:
            report.check(not section.is_check, "did not come to its end in time")
            report.line("")
            report.line("Not measured to its end: its time was up.")
        else:
            status = self._process.returncode
            report.check(False, f"its process ended with status {status}: {self._last_words()}")
        return report

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        return " / ".join([line.strip() for line in lines if line.strip()][-_LOG_LINES:])


_COMMAND = (sys.executable, "-m", "benchmarks.gpu")


def findings(folder: Path, section: Section) -> Path:
    """Return the file for a section's results."""
    return folder / f"{section.name}.jsonl"


def _environ(sections: Sequence[Section]) -> dict[str, str]:
    return dict(ChainMap(*(dict(section.environ) for section in sections), dict(os.environ)))


class Schedule:
    """The schedule: exclusive sections run alone, and all within one time limit."""

    def __init__(
        self,
        groups: Sequence[Sequence[Section]],
        start: Callable[[Sequence[Section]], Process],
        *,
        workers: int,
        limit_s: float | None,
    ) -> None:
        """`start` makes a group's process; `limit_s` is the time of all, if there is one."""
        self._waiting = deque(groups)
        self._start = start
        self._workers = workers
        self._ends = None if limit_s is None else time.monotonic() + limit_s
        self._running: list[Process] = []
        self._next: Process | None = None
        self._figures: dict[str, float] = {}

    def run(self) -> Iterator[Outcomes]:
        """Run all; give what each process found, in the order in which they end."""
        try:
            self._prepare()
            while self._next is not None or self._running:
                if self._next is not None and self._may_begin(self._next):
                    yield from self._begin(self._next)
                else:
                    time.sleep(_LOOK_S)
                    yield from self._ended()
        finally:
            for process in [*self._running, *([self._next] if self._next else [])]:
                process.kill()

    def _prepare(self) -> None:
        """Start the next process: it imports its libraries while the others load models."""
        self._next = self._start(self._waiting.popleft()) if self._waiting else None

    def _may_begin(self, process: Process) -> bool:
        if not self._running:
            return True
        beside = {member.sections[0].beside for member in (process, *self._running)}
        return len(beside) == 1 and "" not in beside and len(self._running) < self._workers

    def _begin(self, process: Process) -> Iterator[Outcomes]:
        left_s = float("inf") if self._ends is None else self._ends - time.monotonic()
        if left_s < _MIN_S:
            process.kill()
            yield {section: _not_begun(section) for section in process.sections}
        else:
            own_s = sum(section.limit_s for section in process.sections)
            limit_s = float("inf") if self._ends is None else min(own_s, left_s)
            process.begin(self._figures, limit_s=limit_s)
            self._running.append(process)
        self._prepare()

    def _ended(self) -> Iterator[Outcomes]:
        for process in [process for process in self._running if process.has_ended()]:
            self._running.remove(process)
            outcomes = process.outcomes()
            for report in outcomes.values():
                self._figures |= report.figures
            yield outcomes


def _not_begun(section: Section) -> Report:
    report = Report()
    report.check(not section.is_check, "was not begun: no time was left")
    report.line("Not measured: no time was left.")
    return report
