"""The manifest of an archive: one line of JSON for each file that is done or has failed.

It is kept beside the transcripts, in parts that are only added to, so that a run that was killed is
continued by the next one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from parakeet_api.archive.files import Files

FOLDER = "manifest"
_LINES = 1000
"""Lines of a part; it is rewritten as a whole where files cannot be appended to."""
_MIN_PAUSE_S = 5.0
"""Between two writes of a part that is not on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What came of a file."""

    file: str
    """Its name in the archive."""
    status: Literal["done", "failed"]
    duration_s: float = 0.0
    """Of the recording."""
    words: int = 0
    seconds: float = 0.0
    """How long its transcription took."""
    warnings: tuple[str, ...] = ()
    """Codes of its caveats."""
    error: str | None = None

    def line(self) -> bytes:
        """Write it as a line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False).encode() + b"\n"


def read_manifest(output: Files) -> dict[str, Entry]:
    """Read the last entry of each file; a line that was cut off counts as not written."""
    entries = [
        entry
        for name in output.names()
        if name.startswith(f"{FOLDER}/")
        for line in output.read(name).splitlines()
        if (entry := _parse(line)) is not None
    ]
    return {entry.file: entry for entry in entries}


def _parse(line: bytes) -> Entry | None:
    try:
        fields: dict[str, Any] = json.loads(line)
        return Entry(**{**fields, "warnings": tuple(fields["warnings"])})
    except (ValueError, TypeError, KeyError):
        return None


class ManifestWriter:
    """Add entries to a manifest."""

    def __init__(self, output: Files, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin a part after those that are there."""
        self._output = output
        self._clock = clock
        parts = [name for name in output.names() if name.startswith(f"{FOLDER}/")]
        self._number = len(parts)
        self._begin_part()

    def add(self, entry: Entry) -> None:
        """Add an entry; where writing is slow, a few seconds later."""
        self._lines.append(entry.line())
        is_full = len(self._lines) >= _LINES
        pause_s = 0.0 if self._output.is_local else _MIN_PAUSE_S
        if is_full or self._clock() - self._written_at >= pause_s:
            self.flush()
        if is_full:
            self._begin_part()

    def flush(self) -> None:
        """Write what was added."""
        if self._lines:
            self._output.write(self._name, b"".join(self._lines))
            self._written_at = self._clock()

    def _begin_part(self) -> None:
        self._number += 1
        self._name = f"{FOLDER}/{self._number:06d}.jsonl"
        self._lines: list[bytes] = []
        self._written_at = self._clock()
