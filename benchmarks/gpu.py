"""Measure the service's model code on a CUDA card, with random weights as large as the 0.6 B model.

    make gpu                                              the report, as markdown
    .venv/bin/python -m benchmarks.gpu --device cuda:1    on another card

Everything runs through the code that serves: `NemoRecognizer.load`, its precision, its CUDA graphs,
the plan and the pipeline. Ends with status 1 if memory grows over loading and unloading, and with 2
where there is no card that can be used.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import psutil
import torch

from benchmarks.cpu import beginning, recording
from benchmarks.fidelity import DEMO_MODEL, SPEECH
from benchmarks.full_size import FULL, Shape, write_checkpoint
from parakeet_api.audio import FfmpegDecoder, find_ffmpeg
from parakeet_api.batching import Batcher
from parakeet_api.card_check import CardReport, check_card
from parakeet_api.chunking import ChunkPolicy
from parakeet_api.devices import Gpu, activations_mb, advice, plan_inference
from parakeet_api.nemo_model import EncoderPrecision, ModelOptions, encode, load_model
from parakeet_api.pipeline import Pipeline
from parakeet_api.recognizer import NemoRecognizer, OutOfDeviceMemoryError
from parakeet_api.settings import Settings
from parakeet_api.transcript import Chunk, Pcm

GROWTH_MB = 64
"""What memory may grow by from the first unloading to the last: the allocator's grain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much is measured."""

    precisions: tuple[EncoderPrecision, ...] = ("fp16", "bf16", "fp32")
    batches: tuple[int, ...] = (1, 4, 8, 16, 32)
    chunks_s: tuple[float, ...] = (10, 30, 60)
    rounds: int = 5
    """Passes of each kind, after one that warms up; the fastest counts."""
    loads: int = 3
    jobs: int = 20
    clips: int = 60


class Bench:
    """One device, one checkpoint of random weights, one recording."""

    def __init__(self, device: str, checkpoint: Path, extent: Extent) -> None:
        self.device = device
        self.checkpoint = checkpoint
        self.extent = extent
        self.samples: Pcm = recording()

    @contextmanager
    def recognizer(
        self,
        checkpoint: Path | None = None,
        *,
        warm: tuple[int, float] = (1, 60),
        **changes: object,
    ) -> Iterator[NemoRecognizer]:
        """Load a model, with graphs for so many chunks of so many seconds; close it afterwards."""
        rows, seconds = warm
        options = ModelOptions(
            device=self.device,
            precision="auto",
            strategy="greedy",
            beam_size=4,
            longest_s=seconds,
            largest_batch=rows,
        )
        loaded = NemoRecognizer.load(checkpoint or self.checkpoint, replace(options, **changes))  # type: ignore[arg-type]
        try:
            yield loaded
        finally:
            loaded.close()

    def precisions(self) -> list[str]:
        """Compare what the card computes in each precision with fp32 on the CPU.

        Tokens and words are those of the demo model's clips; speed is times real time.
        """
        rows = [
            "| precision | encoder error | other tokens, words | speed | weights MB | peak MB |",
            "|---|---|---|---|---|---|",
        ]
        rows_of_60 = min(8, max(self.extent.batches))
        longest_s = max(self.extent.chunks_s)
        for precision in self.extent.precisions:
            error = self._encoder_error(precision)
            tokens, words, total = self._changed(precision)
            before_mb = self.used_mb()
            with self.recognizer(precision=precision, warm=(rows_of_60, longest_s)) as recognizer:
                weights_mb = self.used_mb() - before_mb
                speed, peak_mb = self.speed(recognizer, rows_of_60, longest_s)
            rows.append(
                f"| {precision} | {error:.4f} | {tokens}, {words} of {total} | {speed:.0f}"
                f" | {weights_mb:.0f} | {peak_mb:.0f} |"
            )
        return rows

    def sizes(self) -> list[str]:
        """Time batches and chunks, and compare their memory with the planner's formula."""
        rows = [
            "| chunks | of | times real time | peak MB | formula MB | peak / formula |",
            "|---|---|---|---|---|---|",
        ]
        largest = (max(self.extent.batches), max(self.extent.chunks_s))
        with self.recognizer(warm=largest) as recognizer:
            for count, seconds in product(self.extent.batches, self.extent.chunks_s):
                expected_mb = activations_mb(count, seconds)
                try:
                    speed, peak_mb = self.speed(recognizer, count, seconds)
                except OutOfDeviceMemoryError:
                    told = "out of memory | | "
                    rows.append(f"| {count} | {seconds:g} s | {told}| {expected_mb:.0f} | |")
                    continue
                rows.append(
                    f"| {count} | {seconds:g} s | {speed:.0f} | {peak_mb:.0f} | {expected_mb:.0f}"
                    f" | {peak_mb / expected_mb:.2f} |"
                )
        return rows

    def graphs(self) -> list[str]:
        """Time the token decoder's CUDA graphs."""
        count, seconds = min(8, max(self.extent.batches)), min(30, max(self.extent.chunks_s))
        rows = [f"| CUDA graphs | {count} x {seconds:g} s, times real time |", "|---|---|"]
        for graphs in (True, False):
            with self.recognizer(cuda_graphs=graphs, warm=(count, seconds)) as recognizer:
                speed, _ = self.speed(recognizer, count, seconds)
            rows.append(f"| {'on' if graphs else 'off'} | {speed:.0f} |")
        return rows

    def loads(self) -> tuple[list[str], bool]:
        """Load, work and unload, several times; tell too whether memory grows."""
        rows = [
            f"| load, {self.extent.jobs} jobs, unload | before MB | loaded MB | after MB |",
            "|---|---|---|---|",
        ]
        after: list[float] = []
        chunk = beginning(self.samples, min(30, max(self.extent.chunks_s)))
        for turn in range(self.extent.loads):
            before_mb = self.held_mb()
            with self.recognizer() as recognizer:
                for _ in range(self.extent.jobs):
                    recognizer.recognize([chunk])
                loaded_mb = self.held_mb()
            gc.collect()
            after.append(self.held_mb())
            rows.append(f"| {turn + 1} | {before_mb:.0f} | {loaded_mb:.0f} | {after[-1]:.0f} |")
        return rows, after[-1] - after[0] > GROWTH_MB

    def pipeline(self, gpu: Gpu | None) -> list[str]:
        """Transcribe a file of 12 minutes on the service's main path, as planned for the card."""
        settings = Settings.from_env({}, detected_vram_gb=gpu.total_gb if gpu else None)
        plan = plan_inference(settings, gpu)
        with self.recognizer(warm=(plan.batch_size, plan.longest_chunk_s)) as recognizer:

            @contextmanager
            def lease() -> Iterator[NemoRecognizer]:
                yield recognizer

            batcher = Batcher(lease, plan=plan, permits=settings.max_concurrent_inferences)
            pipeline = Pipeline(
                decoder=FfmpegDecoder(executable=find_ffmpeg(), max_seconds=3600),
                batcher=batcher,
                policy=ChunkPolicy.from_settings(settings, longest_s=plan.longest_chunk_s),
                settings=settings,
            )
            started = time.perf_counter()
            transcript = pipeline.transcribe(SPEECH / "long-dense.ogg", languages=frozenset({"en"}))
            took_s = time.perf_counter() - started
            pipeline.close()
            batcher.close()
        duration_s = transcript.duration
        return [
            f"{duration_s:.0f} s in one file, file to transcript: {took_s:.1f} s",
            f"{duration_s / took_s:.0f} times real time",
        ]

    def speed(self, recognizer: NemoRecognizer, count: int, seconds: float) -> tuple[float, float]:
        """Give how many times real time a batch takes, and its peak memory in MB."""
        chunks = [beginning(self.samples, seconds)] * count
        recognizer.recognize(chunks)
        before_mb = self._start_of_peak()
        times = []
        for _ in range(self.extent.rounds):
            started = time.perf_counter()
            recognizer.recognize(chunks)
            times.append(time.perf_counter() - started)
        return count * seconds / min(times), self._peak_mb() - before_mb

    def used_mb(self) -> float:
        """Give what this process' tensors take of the card, or without one its memory."""
        if self.device == "cpu":
            return float(psutil.Process().memory_info().rss) / 1e6
        torch.cuda.synchronize(self.device)
        return torch.cuda.memory_allocated(self.device) / 1e6

    def held_mb(self) -> float:
        """Give the same with what torch keeps for later, and in pools of CUDA graphs."""
        return (
            self.used_mb()
            if self.device == "cpu"
            else torch.cuda.memory_reserved(self.device) / 1e6
        )

    def _start_of_peak(self) -> float:
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats(self.device)
        return self.used_mb()

    def _peak_mb(self) -> float:
        if self.device == "cpu":
            return self.used_mb()
        return torch.cuda.max_memory_allocated(self.device) / 1e6

    def _encoder_error(self, precision: EncoderPrecision) -> float:
        """Compare the encoder's output with fp32 on the CPU, relative."""
        chunk = beginning(self.samples, 10)
        reference = self._encoded(chunk, "cpu", "fp32")
        return float(
            (self._encoded(chunk, self.device, precision) - reference).norm() / reference.norm()
        )

    def _encoded(self, chunk: Chunk, device: str, precision: EncoderPrecision) -> torch.Tensor:
        options = ModelOptions(
            device=device, precision=precision, strategy="greedy", beam_size=4, longest_s=60
        )
        network = load_model(self.checkpoint, options).network
        waveform = torch.from_numpy(chunk.samples.astype(np.float32) / 32768.0)[None]
        with torch.inference_mode():
            return encode(network, waveform, [waveform.shape[1]])[0].cpu()

    def _changed(self, precision: EncoderPrecision) -> tuple[int, int, int]:
        """Count the clips whose tokens, and whose words, differ from fp32's on the CPU, and all."""
        files = [entry["file"] for entry in json.loads((SPEECH / "clips.json").read_text())]
        decoder = FfmpegDecoder(executable=find_ffmpeg(), max_seconds=3600)
        clips = [
            np.concatenate(list(decoder.stream(SPEECH / file)))
            for file in files[: self.extent.clips]
        ]
        chunks = [Chunk(0, 0, clip, 0, len(clip)) for clip in clips]
        on_cpu = Bench("cpu", DEMO_MODEL, self.extent)
        with on_cpu.recognizer(precision="fp32") as exact:
            expected = [exact.recognize([chunk])[0] for chunk in chunks]
        with self.recognizer(DEMO_MODEL, precision=precision) as reduced:
            given = [reduced.recognize([chunk])[0] for chunk in chunks]
        pairs = list(zip(expected, given, strict=True))
        tokens = sum(
            [t.id for w in one for t in w.tokens] != [t.id for w in other for t in w.tokens]
            for one, other in pairs
        )
        words = sum([w.text for w in one] != [w.text for w in other] for one, other in pairs)
        return tokens, words, len(pairs)


def run(device: str, report: CardReport, *, shape: Shape, extent: Extent) -> int:
    """Print the report; give the process' exit status."""
    gpu = None
    if device != "cpu":
        gpu = Gpu(report.name, report.total_bytes / 1e9, report.free_bytes / 1e9, device)
    print(
        f"{report.name or 'CPU'} ({report.capability or 'no card'}), driver {report.driver},"
        f" torch {torch.__version__}, CUDA {report.cuda}; random weights\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "random.nemo"
        write_checkpoint(checkpoint, shape)
        bench = Bench(device, checkpoint, extent)
        for section in (bench.precisions, bench.sizes, bench.graphs):
            print("\n".join(section()), end="\n\n", flush=True)
        rows, grows = bench.loads()
        print("\n".join([*rows, "", *bench.pipeline(gpu)]))
    if grows:
        print(f"\nmemory grows by more than {GROWTH_MB} MB", file=sys.stderr)
    return 1 if grows else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Look for the card, then measure; give the process' exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    device = parser.parse_args(arguments).device
    report = check_card(device)
    if report.error is not None:
        print(f"{device} cannot be used: {advice(report)}", file=sys.stderr)
        return 2
    return run(device, report, shape=FULL, extent=Extent())


if __name__ == "__main__":
    sys.exit(main())
