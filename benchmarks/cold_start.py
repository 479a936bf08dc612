"""Time the first request to a server whose model is not loaded, and its peak memory.

    .venv/bin/python -m benchmarks.cold_start [--checkpoint FILE] [--rounds 3]

Each round starts a server, waits until it answers, and sends a clip. The checkpoint has random
weights in the shape of the 0.6B models, 2.5 GB. The file was just written, so it is read from the
system's cache: a slow disk comes on top.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.fidelity import SPEECH
from benchmarks.full_size import FULL, write_checkpoint
from benchmarks.service import running_service

CLIP = SPEECH / "clip-003.flac"


def main() -> int:
    """Print the medians; give the process' exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="instead of random weights")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = given.checkpoint or Path(folder) / "random.nemo"
        if given.checkpoint is None:
            write_checkpoint(checkpoint, FULL)
        size = checkpoint.stat().st_size / 1e6
        rounds = [one_round(checkpoint, given.precision) for _ in range(given.rounds)]
    first, second, peak = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"first answer {first:.1f} s, second {second:.1f} s")
    print(f"peak memory {peak:.0f} MB, {peak / size:.2f} times the checkpoint")
    return 0


def one_round(checkpoint: Path, precision: str) -> tuple[float, float, float]:
    """Return the seconds of the first and the second answer, and the peak memory in MB."""
    with running_service(MODEL_PATH=str(checkpoint), PRECISION=precision) as service:
        with service.peak() as peak:
            started = time.perf_counter()
            service.transcribe(CLIP)
            first = time.perf_counter()
        service.transcribe(CLIP)
        return first - started, time.perf_counter() - first, peak.server_mb


if __name__ == "__main__":
    sys.exit(main())
