"""Beam search beside greedy decoding: word error rates on recordings of people, and CPU time.

    .venv/bin/python -m benchmarks.beam                           samples/real-speech, sizes 2 and 4
    .venv/bin/python -m benchmarks.beam RECORDINGS --sizes 2 4 8  a folder as for benchmarks.english

Each recording is one pass. CPU times are of this process, all ways in turns for each recording, so
that their ratio does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.accuracy import ENGLISH_MODEL, REAL_SPEECH, read_recordings
from benchmarks.english import load_recordings, word_errors
from benchmarks.fidelity import single_pass
from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.model.loading import ModelOptions
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.transcript import SAMPLE_RATE, Pcm, join_words

_LONGEST_S = 240.0
"""Longer recordings are left out: they would not be one pass in the service either."""


def load(size: int) -> NemoRecognizer:
    """Load the English model with a beam; greedy for a size of 1."""
    options = ModelOptions(
        device="cpu",
        precision="fp32",
        strategy="beam" if size > 1 else "greedy",
        beam_size=size,
        longest_s=_LONGEST_S,
    )
    return NemoRecognizer.load(ENGLISH_MODEL, options)


def read(folder: Path) -> list[tuple[str, Pcm]]:
    """Return texts and samples of a folder's recordings that are not too long."""
    if (folder / "recordings.json").exists():
        pairs = [(recording.text, recording.samples) for recording in read_recordings(folder)]
    else:
        decoder = FfmpegDecoder(executable=find_ffmpeg(), max_seconds=3600)
        pairs = [
            (r.text, np.concatenate([*decoder.stream(r.path)])) for r in load_recordings(folder)
        ]
    return [(text, samples) for text, samples in pairs if len(samples) < _LONGEST_S * SAMPLE_RATE]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", type=Path, nargs="?", default=REAL_SPEECH)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4])
    arguments = parser.parse_args()
    ways = {size: load(size) for size in (1, *arguments.sizes)}
    recordings = read(arguments.recordings)
    texts: dict[int, list[str]] = {size: [] for size in ways}
    cpu_s = dict.fromkeys(ways, 0.0)
    for _, samples in recordings:
        for size, recognizer in ways.items():
            began = time.process_time()
            texts[size].append(join_words(single_pass(recognizer, samples).words))
            cpu_s[size] += time.process_time() - began
    references = [text for text, _ in recordings]
    print("| decoding | WER % | changed, lost, too many | of words | CPU time |")
    print("|---|---|---|---|---|")
    for size, recognized in texts.items():
        rate = word_errors(references, recognized)
        errors = f"{rate.errors.changed}, {rate.errors.lost}, {rate.errors.doubled}"
        name = f"beam of {size}" if size > 1 else "greedy"
        ratio = cpu_s[size] / cpu_s[1]
        print(f"| {name} | {rate.percent:.2f} | {errors} | {rate.words} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
