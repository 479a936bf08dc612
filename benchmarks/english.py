"""Word error rates on recordings of people, by source, through the service's HTTP API.

    .venv/bin/python -m benchmarks.english RECORDINGS                    the small English model
    MODEL_PATH=x.nemo .venv/bin/python -m benchmarks.english RECORDINGS  another one

RECORDINGS is a folder; the file of the same name with `.json` lists what is in it, each recording
with its `file`, `text`, `source` and `duration` in seconds. Words are compared in lower case,
without punctuation, with hyphens as spaces: many of such transcripts have neither.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jiwer

from benchmarks.service import Service, running_service

_CLIENTS = 4
"""Recordings sent at a time: enough for batches."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording of a person, and what is said in it."""

    path: Path
    text: str
    source: str
    """Where it is from: the rows of the table."""
    duration_s: float


@dataclass(frozen=True, slots=True)
class WordErrors:
    """How many words of some recordings came out wrong."""

    recordings: int = 0
    words: int = 0
    substituted: int = 0
    deleted: int = 0
    inserted: int = 0

    def __add__(self, other: WordErrors) -> WordErrors:
        return WordErrors(
            self.recordings + other.recordings,
            self.words + other.words,
            self.substituted + other.substituted,
            self.deleted + other.deleted,
            self.inserted + other.inserted,
        )

    @property
    def rate(self) -> float:
        """The word error rate, percent."""
        return 100 * (self.substituted + self.deleted + self.inserted) / self.words


def normalized(text: str) -> str:
    """Give the words in lower case, without punctuation, hyphens as spaces."""
    spaced = text.lower().replace("-", " ")
    return " ".join(re.sub(r"[^a-z0-9 ]", "", spaced).split())


def word_errors(said: str, recognized: str) -> WordErrors:
    """Compare what was recognized in one recording with what is said in it."""
    reference, hypothesis = normalized(said), normalized(recognized)
    if not reference:
        return WordErrors(1, 0, inserted=len(hypothesis.split()))
    found = jiwer.process_words(reference, hypothesis)
    return WordErrors(
        recordings=1,
        words=len(reference.split()),
        substituted=found.substitutions,
        deleted=found.deletions,
        inserted=found.insertions,
    )


def load_recordings(folder: Path) -> list[Recording]:
    """Read a folder's list; recordings without a transcript are left out."""
    entries = json.loads(folder.with_suffix(".json").read_text(encoding="utf-8"))
    return [
        Recording(folder / entry["file"], entry["text"], entry["source"], entry["duration"])
        for entry in entries
        if normalized(entry["text"])
    ]


def transcripts(service: Service, recordings: Sequence[Recording]) -> list[str]:
    """Send recordings over HTTP, some at a time; give their texts in order."""

    def transcribe(recording: Recording) -> str:
        text: str = json.loads(service.transcribe(recording.path))["text"]
        return text

    with ThreadPoolExecutor(_CLIENTS) as pool:
        return list(pool.map(transcribe, recordings))


def by_source(recordings: Iterable[Recording], texts: Iterable[str]) -> dict[str, WordErrors]:
    """Add the errors up, for each source."""
    found: dict[str, WordErrors] = {}
    for recording, text in zip(recordings, texts, strict=True):
        errors = word_errors(recording.text, text)
        found[recording.source] = found.get(recording.source, WordErrors()) + errors
    return dict(sorted(found.items()))


def table(found: Mapping[str, WordErrors]) -> str:
    """Write the errors as a table, with all of them in the last row."""
    every = sum(found.values(), WordErrors())
    rows = [
        f"| {source} | {e.recordings} | {e.words} | {e.rate:.1f} |"
        f" {e.substituted}, {e.deleted}, {e.inserted} |"
        for source, e in [*found.items(), ("all", every)]
    ]
    head = (
        "| source | recordings | words | WER % | changed, lost, too many |\n|---|---|---|---|---|"
    )
    return "\n".join([head, *rows])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--texts", type=Path, help="write the texts to this file, as JSON")
    options = parser.parse_args()
    recordings = load_recordings(options.recordings)
    model = {} if "MODEL_PATH" in os.environ else {"DEMO_MODEL": "always"}
    with running_service(**model) as service:
        started = time.perf_counter()
        texts = transcripts(service, recordings)
        elapsed_s = time.perf_counter() - started
    print(table(by_source(recordings, texts)))
    audio_s = sum(recording.duration_s for recording in recordings)
    print(f"\n{audio_s / 60:.0f} minutes in {elapsed_s:.0f} s, the load of the model included")
    if options.texts:
        pairs = {r.path.name: text for r, text in zip(recordings, texts, strict=True)}
        options.texts.write_text(json.dumps(pairs, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
