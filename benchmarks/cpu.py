"""Time the encoder's precisions on a CPU, with random weights of the 0.6B model's shape.

    make cpu                                     the table
    .venv/bin/python -m benchmarks.cpu --avx2    as a processor without AVX-512 and bf16 would do it

The precisions take turns in one run, so that their ratios hold where other work shares the cores.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.fidelity import SPEECH
from benchmarks.full_size import FULL, write_checkpoint
from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.model.devices import available_cores
from parakeet_api.model.encoder import encode
from parakeet_api.model.loading import LoadedModel, ModelOptions, load_model
from parakeet_api.model.precision import EncoderPrecision
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Pcm

PRECISIONS: tuple[EncoderPrecision, ...] = ("fp32", "bf16", "int8")
CHUNKS_S = (10, 30)
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""As the service sets it: busy-waiting threads would slow each other down."""
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
"""Variables that disable newer CPU instructions; torch reads them when it is imported."""


@dataclass(frozen=True, slots=True)
class Row:
    """One precision on chunks of one length; medians."""

    precision: EncoderPrecision
    chunk_s: float
    seconds: float
    """A chunk's whole recognition."""
    error: float
    """The encoder's, relative to fp32."""
    tokens: int


def measure(
    checkpoint: Path,
    samples: Pcm,
    *,
    precisions: Sequence[EncoderPrecision],
    chunks_s: Sequence[float],
    rounds: int,
    threads: int,
) -> list[Row]:
    """Time each precision on the beginning of a recording, in turns."""
    loaded = {p: load_model(checkpoint, options(p, threads)) for p in precisions}
    recognizers = {p: NemoRecognizer(loaded[p], options(p, threads)) for p in precisions}
    rows = []
    for chunk_s in chunks_s:
        chunk = beginning(samples, chunk_s)
        times: dict[EncoderPrecision, list[float]] = {p: [] for p in precisions}
        tokens: dict[EncoderPrecision, int] = {}
        # The first round warms up.
        for _ in range(rounds + 1):
            for precision, recognizer in recognizers.items():
                started = time.perf_counter()
                words = recognizer.recognize([chunk])[0]
                times[precision].append(time.perf_counter() - started)
                tokens[precision] = sum(len(word.tokens) for word in words)
        rows += [
            Row(p, chunk_s, statistics.median(times[p][1:]), error, tokens[p])
            for p, error in errors(loaded, chunk).items()
        ]
    return rows


def options(precision: EncoderPrecision, threads: int) -> ModelOptions:
    return ModelOptions(
        device="cpu",
        precision=precision,
        strategy="greedy",
        beam_size=4,
        longest_s=60,
        cpu_threads=threads,
    )


def beginning(samples: Pcm, seconds: float) -> Chunk:
    """Make a chunk of the first seconds of a recording."""
    part = samples[: round(seconds * SAMPLE_RATE)]
    return Chunk(0, 0, part, 0, len(part))


def errors(
    loaded: dict[EncoderPrecision, LoadedModel], chunk: Chunk
) -> dict[EncoderPrecision, float]:
    """Return each precision's encoder error against fp32, relative."""
    waveform = torch.from_numpy(chunk.samples.astype(np.float32) / 32768.0)[None]
    with torch.inference_mode():
        outputs = {
            precision: encode(model.network, waveform, torch.tensor([waveform.shape[1]]))[0].cpu()
            for precision, model in loaded.items()
        }
    reference = outputs["fp32"]
    return {
        precision: float((output - reference).norm() / reference.norm())
        for precision, output in outputs.items()
    }


def permits(
    checkpoint: Path, samples: Pcm, *, precision: EncoderPrecision, cores: int, rounds: int
) -> dict[int, float]:
    """Time four chunks of 30 s with one permit of all cores, and with one permit a core."""
    chunk = beginning(samples, 30)
    recognizer = NemoRecognizer.load(checkpoint, options(precision, cores))
    times: dict[int, list[float]] = {1: [], cores: []}
    for _ in range(rounds + 1):
        for count, taken in times.items():
            torch.set_num_threads(max(1, cores // count))
            started = time.perf_counter()
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(recognizer.recognize, [[chunk]] * 4))
            taken.append(time.perf_counter() - started)
    return {count: statistics.median(taken[1:]) for count, taken in times.items()}


def table(rows: Sequence[Row]) -> str:
    """Write the rows as markdown."""
    fp32 = {row.chunk_s: row.seconds for row in rows if row.precision == "fp32"}
    lines = [
        "| chunk | precision | seconds | times real time | times fp32 | encoder error | tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.chunk_s:g} s | {row.precision} | {row.seconds:.2f}"
        f" | {row.chunk_s / row.seconds:.1f} | {fp32[row.chunk_s] / row.seconds:.2f}"
        f" | {row.error:.4f} | {row.tokens} |"
        for row in rows
    ]
    return "\n".join(lines)


def recording() -> Pcm:
    decoder = FfmpegDecoder(executable=find_ffmpeg(), max_seconds=3600)
    return np.concatenate(list(decoder.stream(SPEECH / "long-dense.ogg")))


def main() -> int:
    """Print the tables; give the process' exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--avx2", action="store_true", help="leave AVX-512 and bf16 alone")
    parser.add_argument("--checkpoint", type=Path, help="of that size, instead of random weights")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    begin_with("benchmarks.cpu", PASSIVE | AVX2 if given.avx2 else PASSIVE)
    # Without its instructions bf16 is emulated: that table took more than 20 minutes.
    precisions = PRECISIONS if not given.avx2 else ("fp32", "int8")
    cores, rounds, samples = available_cores(), given.rounds, recording()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = given.checkpoint or Path(folder) / "random.nemo"
        if given.checkpoint is None:
            write_checkpoint(checkpoint, FULL)
        capability = torch.backends.cpu.get_cpu_capability()
        print(f"{cores} cores, {capability}, torch {torch.__version__}\n")
        rows = measure(
            checkpoint,
            samples,
            precisions=precisions,
            chunks_s=CHUNKS_S,
            rounds=rounds,
            threads=cores,
        )
        print(table(rows), flush=True)
        gc.collect()
        fast = precisions[1]
        times = permits(checkpoint, samples, precision=fast, cores=cores, rounds=rounds)
        for count, seconds in times.items():
            print(f"\nfour chunks of 30 s in {fast}, permits: {count}, {seconds:.2f} s")
    return 0


def begin_with(module: str, environ: Mapping[str, str]) -> None:
    """Start this program, a module's, again if it was not started with these variables."""
    if not environ.items() <= os.environ.items():
        command = [sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | environ)


if __name__ == "__main__":
    sys.exit(main())
