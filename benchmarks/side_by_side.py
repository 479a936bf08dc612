"""Measure the decoding time of one recording by the number of parallel ffmpegs.

python -m benchmarks.side_by_side hour.mp3 hour.wav

The order of the numbers of workers changes from round to round; what is printed are medians.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections import defaultdict
from pathlib import Path

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.transcript import SAMPLE_RATE


def cpu_s() -> float:
    """Return the time on cores of this process and of the decoders that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, kinds))


def measure(path: Path, executable: str, workers: int) -> tuple[float, float, float]:
    """Decode a file; give the wall time, the time on cores and the sound's length, seconds."""
    decoder = FfmpegDecoder(executable=executable, max_seconds=24 * 3600, workers=workers)
    started, spent = time.perf_counter(), cpu_s()
    samples = sum(map(len, decoder.stream(path)))
    return time.perf_counter() - started, cpu_s() - spent, samples / SAMPLE_RATE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ffmpeg", default=find_ffmpeg())
    options = parser.parse_args()
    for path in options.files:
        measured: dict[int, list[tuple[float, float, float]]] = defaultdict(list)
        for turn in range(options.rounds):
            for workers in options.workers[:: 1 if turn % 2 else -1]:
                measured[workers].append(measure(path, options.ffmpeg, workers))
        for workers in options.workers:
            wall, cores, seconds = map(statistics.median, zip(*measured[workers], strict=True))
            print(
                f"{path.name}, {workers} at a time: {wall:.2f} s ({seconds / wall:.0f} times real"
                f" time), {cores:.2f} s on cores",
                flush=True,
            )


if __name__ == "__main__":
    main()
