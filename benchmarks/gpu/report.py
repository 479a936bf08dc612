"""The results of a section: lines of markdown, failures and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


class Report:
    """What a section finds.

    It is also written to a file, line by line: if its process dies, what it had found stands.
    """

    def __init__(
        self, *, figures: Mapping[str, float] | None = None, file: Path | None = None
    ) -> None:
        """Begin with the figures of earlier sections."""
        self.lines: list[str] = []
        self.failures: list[str] = []
        self.figures: dict[str, float] = dict(figures or {})
        self.seconds: float | None = None
        """What it took; `None` = it has not ended."""
        self._file = file

    @classmethod
    def read(cls, file: Path) -> Report:
        """Read what a section has written so far."""
        report = cls()
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        for line in text.splitlines():
            # The last line may be cut off.
            with suppress(json.JSONDecodeError):
                report._take(json.loads(line))
        return report

    def line(self, text: str) -> None:
        """Add a line of markdown."""
        self._tell({"line": text})

    def header(self, *names: str) -> None:
        """Add a table's header."""
        self.row(*names)
        self.line("|" + "---|" * len(names))

    def row(self, *cells: str) -> None:
        """Add a table's row."""
        self.line(f"| {' | '.join(cells)} |")

    def check(self, passed: bool, failure: str) -> None:
        """Add a failure unless the condition holds."""
        if not passed:
            self._tell({"failure": failure})

    def figure(self, name: str, value: float) -> None:
        """Pass a figure to later sections."""
        self._tell({"name": name, "value": value})

    def end(self, seconds: float) -> None:
        """Record that the section has ended, after so many seconds."""
        self._tell({"seconds": seconds})

    def _tell(self, event: dict[str, str | float]) -> None:
        self._take(event)
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")

    def _take(self, event: Mapping[str, str | float]) -> None:
        if "line" in event:
            self.lines.append(str(event["line"]))
        elif "failure" in event:
            self.failures.append(str(event["failure"]))
        elif "seconds" in event:
            self.seconds = float(event["seconds"])
        else:
            self.figures[str(event["name"])] = float(event["value"])


def batch_name(count: int, seconds: float) -> str:
    """Name a batch, in tables and figures."""
    return f"{count} x {seconds:g} s"


def library_figure(count: int, seconds: float) -> str:
    """Name how many times real time the recognizer alone takes a batch."""
    return f"library, {batch_name(count, seconds)}"


def nemo_figure(count: int, seconds: float) -> str:
    """Name how many times real time NeMo's `transcribe()` takes a batch."""
    return f"NeMo, {batch_name(count, seconds)}"
