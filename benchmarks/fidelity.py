"""Count the words that chunking loses or repeats, over all chunkings and formats.

    make fidelity                                     the whole table: about an hour on two cores
    .venv/bin/python -m benchmarks.fidelity --quick   a sample of it

Chunk lengths are forced here: the service itself prefers 30 s on a CPU, and would never show the
others' seams. An error is a word that differs from what was really said, counted by an alignment
with the reference; it is a seam's if it lies within 1 s of one. Beside it stands what one single
pass over the whole recording gets wrong at those same places.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import jiwer
import numpy as np

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.model.loading import ModelOptions
from parakeet_api.model.recognizer import NemoRecognizer, Recognizer
from parakeet_api.model.voice_activity import SileroDetector
from parakeet_api.settings import Settings
from parakeet_api.speech.activity import SpeechDetector
from parakeet_api.speech.chunking import ChunkPolicy, plan_chunks
from parakeet_api.speech.holes import complete_words
from parakeet_api.speech.stitching import Stitcher
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Pcm, Word

ROOT = Path(__file__).resolve().parent.parent
SPEECH = ROOT / "samples" / "speech"
DEMO_MODEL = ROOT / "tests" / "grammar-model" / "parakeet-tdt-demo-en.nemo"
"""The tests' model, whose output is exactly known."""
ENGLISH_MODEL = ROOT / "samples" / "english-model" / "whisper-tdt-small-en.nemo"

RECORDINGS = ("long-pauses", "long-dense")
FORMATS: dict[str, tuple[str, ...]] = {
    "wav": (),
    "flac": (),
    "mp3": ("-b:a", "64k"),
    "m4a": ("-c:a", "aac", "-b:a", "64k"),
    "ogg": ("-c:a", "libopus", "-b:a", "32k"),
    "webm": ("-c:a", "libopus", "-b:a", "32k"),
    "mp4": ("-f", "lavfi", "-i", "color=size=64x64:rate=5", "-shortest", "-c:a", "aac"),
}
"""Formats and their ffmpeg options; the mp4 is a video with this audio."""

NEAR_SEAM_S = 1.0


@dataclass(frozen=True)
class Policy:
    """A chunking: chunk length and overlap."""

    chunk_minutes: float
    overlap_s: float
    align: bool

    def chunks(self, samples: Pcm) -> Iterator[Chunk]:
        """Cut a recording this way; the overlap is taken as asked, up to half a chunk."""
        longest_s = self.chunk_minutes * 60
        settings = replace(Settings(), enable_silence_aligned_chunking=self.align)
        policy = ChunkPolicy.from_settings(settings, longest_s=longest_s)
        overlap = round(min(self.overlap_s, longest_s / 2) * SAMPLE_RATE)
        return plan_chunks([samples], replace(policy, overlap=overlap))


@dataclass(frozen=True)
class Pass:
    """A transcript of a whole recording, and where it was cut."""

    words: list[Word]
    seams_s: list[float]


@dataclass(frozen=True)
class Errors:
    """Differences from the reference, in words."""

    changed: int = 0
    lost: int = 0
    doubled: int = 0
    """Words too many, of whatever kind."""

    @property
    def total(self) -> int:
        return self.changed + self.lost + self.doubled

    def __str__(self) -> str:
        return f"{self.total} ({self.changed}/{self.lost}/{self.doubled})"


DETECTOR = SileroDetector()
"""Loaded when it is first used."""


def transcribe(
    recognizer: Recognizer,
    chunks: Iterator[Chunk],
    *,
    detector: SpeechDetector | None = DETECTOR,
) -> Pass:
    """Recognise and stitch, as the service does, one chunk after the other."""
    stitcher = Stitcher(sentence_boundary_threshold_s=Settings().sentence_boundary_threshold_s)
    words: list[Word] = []
    seams: list[float] = []
    for chunk in chunks:
        found = recognizer.recognize([chunk])[0]
        completed = complete_words(chunk, found, detector=detector, recognize=recognizer.recognize)
        words.extend(stitcher.add(chunk, completed.words))
        seams.append(chunk.owned_end / SAMPLE_RATE)
    words.extend(stitcher.finish())
    return Pass(words, seams[:-1])


def single_pass(recognizer: Recognizer, samples: Pcm) -> Pass:
    """Recognise a whole recording at once."""
    return transcribe(recognizer, iter([Chunk(0, 0, samples, 0, len(samples))]))


def errors(reference: str, words: Sequence[Word], *, near_s: Sequence[float] | None) -> Errors:
    """Align words with the reference; count the differences, all or those near some moments."""
    output_words = [word for word in words if normalize(word.text)]
    hypothesis = " ".join(normalize(word.text) for word in output_words)
    counts = {"substitute": 0, "delete": 0, "insert": 0}
    for step in jiwer.process_words(normalize(reference), hypothesis).alignments[0]:
        if step.type == "equal":
            continue
        start = output_words[step.hyp_start_idx - 1].middle if step.hyp_start_idx else 0.0
        end = (
            output_words[step.hyp_end_idx].middle
            if step.hyp_end_idx < len(output_words)
            else float("inf")
        )
        if near_s is None or any(start - NEAR_SEAM_S < seam < end + NEAR_SEAM_S for seam in near_s):
            counts[step.type] += max(
                step.ref_end_idx - step.ref_start_idx, step.hyp_end_idx - step.hyp_start_idx
            )
    return Errors(counts["substitute"], counts["delete"], counts["insert"])


def start_shifts(one: Sequence[Word], other: Sequence[Word]) -> list[float]:
    """Return the differences, in seconds, between the starts of the words that both have."""
    left, right = (" ".join(normalize(w.text) or "-" for w in words) for words in (one, other))
    return [
        abs(one[step.ref_start_idx + n].start - other[step.hyp_start_idx + n].start)
        for step in jiwer.process_words(left, right).alignments[0]
        if step.type == "equal"
        for n in range(step.ref_end_idx - step.ref_start_idx)
    ]


def normalize(text: str) -> str:
    """Strip case and punctuation."""
    return " ".join(
        "".join(c for c in word.lower() if c.isalnum()) for word in text.split()
    ).strip()


def reference_text(recording: str) -> str:
    """Read the reference text of a long recording."""
    sentences = json.loads((SPEECH / f"{recording}.json").read_text())
    return " ".join(sentence["text"] for sentence in sentences)


def encode(source: Path, target: Path, options: Sequence[str]) -> Path:
    """Convert a recording with ffmpeg."""
    command = [find_ffmpeg(), "-hide_banner", "-loglevel", "error", "-y", "-i", str(source)]
    subprocess.run([*command, *options, str(target)], check=True)
    return target


def policies(*, quick: bool) -> list[Policy]:
    """List the ways to cut; a recording of 12 minutes in chunks of 20 is a single pass."""
    lengths, overlaps = ((0.5, 2), (2, 10)) if quick else ((0.5, 1, 2), (2, 10, 30))
    return [Policy(*values) for values in product(lengths, overlaps, (True, False))]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two formats, fewer policies")
    quick = parser.parse_args().quick
    recognizer = NemoRecognizer.load(
        DEMO_MODEL,
        ModelOptions(
            device="cpu", precision="fp32", strategy="greedy", beam_size=4, longest_s=1200
        ),
    )
    decoder = FfmpegDecoder(executable=find_ffmpeg(), max_seconds=3600)
    print("errors are words: all (changed/lost/too many)")
    print(
        f"{'recording':12} {'format':6} {'chunk':>5} {'overlap':>7} {'align':5} {'WER %':>6}"
        f" {'near seams':>16} {'single pass there':>18} {'start shift p50/p99/max':>24}"
    )
    formats = ("wav", "mp3") if quick else tuple(FORMATS)
    with tempfile.TemporaryDirectory() as folder:
        for recording, extension in product(RECORDINGS, formats):
            source = SPEECH / f"{recording}.ogg"
            file = encode(source, Path(folder) / f"audio.{extension}", FORMATS[extension])
            samples = np.concatenate(list(decoder.stream(file)))
            _print_rows(recognizer, recording, extension, samples, policies(quick=quick))


def _print_rows(
    recognizer: Recognizer, recording: str, extension: str, samples: Pcm, ways: list[Policy]
) -> None:
    reference = reference_text(recording)
    size = len(normalize(reference).split())
    whole = single_pass(recognizer, samples)
    wer = 100 * errors(reference, whole.words, near_s=None).total / size
    print(f"{recording:12} {extension:6} {20:>5} {'':>7} {'':5} {wer:6.2f}", flush=True)
    for way in ways:
        cut = transcribe(recognizer, way.chunks(samples))
        wer = 100 * errors(reference, cut.words, near_s=None).total / size
        near = errors(reference, cut.words, near_s=cut.seams_s)
        there = errors(reference, whole.words, near_s=cut.seams_s)
        shifts = np.percentile(start_shifts(whole.words, cut.words), (50, 99, 100))
        print(
            f"{recording:12} {extension:6} {way.chunk_minutes:>5g} {way.overlap_s:>7g}"
            f" {'on' if way.align else 'off':5} {wer:6.2f} {near!s:>16} {there!s:>18}"
            f" {'/'.join(f'{shift:.2f}' for shift in shifts):>24}",
            flush=True,
        )


if __name__ == "__main__":
    main()
