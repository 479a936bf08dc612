"""Word error rates on recordings of people, by source, through the service's HTTP API.

    .venv/bin/python -m benchmarks.english RECORDINGS                    the small English model
    MODEL_PATH=x.nemo .venv/bin/python -m benchmarks.english RECORDINGS  another one

RECORDINGS is a folder; the file of the same name with `.json` lists what is in it, each recording
with its `file`, `text`, `source` and `duration` in seconds. Words are compared in lower case,
without punctuation, apostrophes included, with hyphens as spaces.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy import Rate, count_errors
from benchmarks.service import Service, running_service

_CLIENTS = 4
"""Recordings sent at a time: enough for batches."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording of a person, and its reference text."""

    path: Path
    text: str
    source: str
    """Its source, a row of the table."""
    duration_s: float


def normalized(text: str) -> str:
    """Return the words in lower case, without punctuation, hyphens as spaces.

    As the published figures of the model are; `accuracy.plain` leaves apostrophes.
    """
    spaced = text.lower().replace("-", " ")
    return " ".join(re.sub(r"[^a-z0-9 ]", "", spaced).split())


def word_errors(references: Sequence[str], recognized: Sequence[str]) -> Rate:
    """Compare what was recognized in recordings with what is said in them."""
    return count_errors(
        [normalized(text) for text in references], [normalized(text) for text in recognized]
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


def by_source(recordings: Sequence[Recording], texts: Sequence[str]) -> dict[str, Rate]:
    """Count the errors of each source."""
    pairs = list(zip(recordings, texts, strict=True))
    rates = {}
    for source in sorted({recording.source for recording in recordings}):
        own = [(r.text, text) for r, text in pairs if r.source == source]
        references, recognized = zip(*own, strict=True)
        rates[source] = word_errors(references, recognized)
    return rates


def table(rates: Mapping[str, Rate]) -> str:
    """Write the errors as a table."""
    rows = [
        f"| {source} | {rate.recordings} | {rate.words} | {rate.percent:.1f} |"
        f" {rate.errors.changed}, {rate.errors.lost}, {rate.errors.doubled} |"
        for source, rate in rates.items()
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
    every = word_errors([recording.text for recording in recordings], texts)
    print(table(by_source(recordings, texts) | {"all": every}))
    audio_s = sum(recording.duration_s for recording in recordings)
    print(f"\n{audio_s / 60:.0f} minutes in {elapsed_s:.0f} s, the load of the model included")
    if options.texts:
        pairs = {r.path.name: text for r, text in zip(recordings, texts, strict=True)}
        options.texts.write_text(json.dumps(pairs, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
