"""Word error rates on recordings of people, by source: one pass beside what the service does.

    make accuracy                                  the recordings of samples/real-speech
    .venv/bin/python -m benchmarks.accuracy --model FILE.nemo --recordings FOLDER

A folder holds recordings and `recordings.json`: a list of `file`, `text` and `source`. Texts are
compared in lower case, without punctuation, hyphens as spaces. `changed`, `lost` and `too many` are
words. A recording is cut here as the service cuts long ones, also where it would fit one chunk: the
short recordings of a source are joined, with half a second of silence between them, for the rows
that say so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np

from benchmarks.fidelity import Errors, Policy, single_pass, transcribe
from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.model.loading import ModelOptions
from parakeet_api.model.recognizer import NemoRecognizer, Recognizer
from parakeet_api.transcript import SAMPLE_RATE, Pcm, Word

ROOT = Path(__file__).resolve().parent.parent
REAL_SPEECH = ROOT / "samples" / "real-speech"
ENGLISH_MODEL = ROOT / "samples" / "english-model" / "whisper-tdt-small-en.nemo"
LONG_S = 60.0
"""Longer recordings are not joined with others."""
WAYS = (
    Policy(10 / 60, 1.7, align=True),
    Policy(0.5, 5, align=True),
    Policy(0.5, 2, align=True),
    Policy(1, 10, align=True),
)
_PAUSE = np.zeros(SAMPLE_RATE // 2, np.int16)


@dataclass(frozen=True, eq=False)
class Recording:
    """Audio and its reference text."""

    source: str
    text: str
    samples: Pcm


@dataclass(frozen=True)
class Rate:
    """Word errors of some recordings, and their number of words."""

    errors: Errors
    words: int
    recordings: int

    @property
    def percent(self) -> float:
        """Return the word error rate."""
        return 100 * self.errors.total / max(1, self.words)


def read_recordings(folder: Path) -> list[Recording]:
    """Decode a folder's recordings."""
    decoder = FfmpegDecoder(executable=find_ffmpeg(), max_seconds=3600)
    return [
        Recording(
            entry["source"],
            entry["text"],
            np.concatenate([*decoder.stream(folder / entry["file"]), np.zeros(0, np.int16)]),
        )
        for entry in json.loads((folder / "recordings.json").read_text(encoding="utf-8"))
    ]


def joined(recordings: Sequence[Recording]) -> list[Recording]:
    """Join the short recordings of one source to a long one; long ones stay as they are."""
    long = [r for r in recordings if len(r.samples) >= LONG_S * SAMPLE_RATE]
    short = [r for r in recordings if len(r.samples) < LONG_S * SAMPLE_RATE]
    if not short:
        return long
    sound = np.concatenate([part for r in short for part in (r.samples, _PAUSE)])
    return [*long, Recording(short[0].source, " ".join(r.text for r in short), sound)]


def error_rate(recordings: Sequence[Recording], transcripts: Sequence[Sequence[Word]]) -> Rate:
    """Count the differences between recordings' texts and their transcripts."""
    return count_errors(
        [plain(recording.text) for recording in recordings],
        [plain(" ".join(word.text for word in words)) for words in transcripts],
    )


def count_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Rate:
    """Count the differences between normalized texts, one of each for a recording."""
    compared = jiwer.process_words(list(references), list(hypotheses))
    return Rate(
        Errors(compared.substitutions, compared.deletions, compared.insertions),
        sum(len(reference.split()) for reference in references),
        len(references),
    )


def plain(text: str) -> str:
    """Leave lower-case words alone."""
    spaced = text.lower().replace("-", " ").replace("\u2019", "'")
    return " ".join(
        word
        for part in spaced.split()
        if (word := "".join(c for c in part if c.isalnum() or c == "'").strip("'"))
    )


def rows(
    recognizer: Recognizer, recordings: Sequence[Recording], ways: Sequence[Policy] = WAYS
) -> Iterator[tuple[str, Rate]]:
    """Return the error rates of one source: single passes, then the ways to cut it."""
    single = [single_pass(recognizer, recording.samples).words for recording in recordings]
    yield "single pass, each recording", error_rate(recordings, single)
    long = joined(recordings)
    if len(long) != len(recordings):
        single = [single_pass(recognizer, recording.samples).words for recording in long]
        yield "single pass, joined", error_rate(long, single)
    for way in ways:
        cut = [transcribe(recognizer, way.chunks(r.samples)).words for r in long]
        name = f"chunks of {60 * way.chunk_minutes:.0f} s, overlap {way.overlap_s:g} s"
        yield name, error_rate(long, cut)


def load(path: Path, *, longest_s: float) -> NemoRecognizer:
    """Load a checkpoint as the service does on a CPU."""
    return NemoRecognizer.load(
        path,
        ModelOptions(
            device="cpu", precision="fp32", strategy="greedy", beam_size=4, longest_s=longest_s
        ),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ENGLISH_MODEL)
    parser.add_argument("--recordings", type=Path, default=REAL_SPEECH)
    arguments = parser.parse_args()
    recordings = read_recordings(arguments.recordings)
    longest_s = sum(len(recording.samples) for recording in recordings) / SAMPLE_RATE
    recognizer = load(arguments.model, longest_s=min(1200.0, longest_s + 60))
    print(f"{'source':18} {'way':34} {'WER %':>6} {'words':>6} {'changed/lost/too many':>22}")
    for source in sorted({recording.source for recording in recordings}):
        own = [recording for recording in recordings if recording.source == source]
        for way, rate in rows(recognizer, own):
            errors = f"{rate.errors.changed}/{rate.errors.lost}/{rate.errors.doubled}"
            print(
                f"{source:18} {way:34} {rate.percent:6.2f} {rate.words:6} {errors:>22}", flush=True
            )


if __name__ == "__main__":
    main()
