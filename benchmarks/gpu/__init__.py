"""Measure the service on a GPU: correctness, then speed, then over HTTP.

    make gpu                                             the report, as markdown
    make gpu DRY_RUN=1                                   the same on a CPU, with a small model
    .venv/bin/python -m benchmarks.gpu --device cuda:1   on another GPU
    .venv/bin/python -m benchmarks.gpu --section speed   one of its sections, in this process

Everything runs through the code that serves: `NemoRecognizer.load`, its precisions, its CUDA graphs
and the plan. What is right is seen with the demo model and its clips; speed and memory are those of
random weights as large as the 0.6 B model's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import torch

from benchmarks.cpu import beginning, recording
from benchmarks.fidelity import SPEECH
from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.model.devices import Gpu, InferencePlan, plan_inference
from parakeet_api.model.loading import ModelOptions
from parakeet_api.model.precision import EncoderPrecision
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.settings import Settings
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Pcm

_Result = TypeVar("_Result")

GRAPHED_S = 246.0
"""Seconds of audio of a batch up to which its encoder pass is a graph, as on a GPU of 24 GB."""
_HOP_S = 1.25
"""By so much the chunks of a batch are apart, so that no two rows are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Amounts of the measurements."""

    clips: int = 60
    """Number of the demo model's clips for checking words and tokens."""
    cycles: int = 20
    """Times that a model is loaded, works and is unloaded."""
    jobs: int = 10
    """Passes in each of them."""
    reloads: int = 4
    """Loads after a capture of graphs."""
    shortage: tuple[int, float] = (32, 30.0)
    """Chunks, and seconds of each, for which a full GPU has too little memory."""
    precisions: tuple[EncoderPrecision, ...] = ("fp32", "bf16", "fp16")
    """Full precision first: the others' error is measured against it."""
    batches: tuple[tuple[int, float], ...] = (
        *((1, 10.0), (8, 10.0), (32, 10.0), (128, 10.0), (256, 10.0)),
        *((1, 30.0), (8, 30.0), (32, 30.0), (128, 30.0)),
    )
    """Chunks, and seconds of each."""
    rounds: int = 4
    """Passes of each kind, after those that warm up; the fastest counts."""
    lengths: int = 200
    """Clips of as many lengths, one after the other."""
    rows: tuple[int, ...] = (3, 5, 6, 7, 11, 13, 19, 27, 37, 53)
    """Numbers of chunks in a batch that were not met before."""
    longest_s: float = 30.0
    """The longest of these clips."""
    passes: int = 20
    """Of a clip, alone and beside busy threads; their median counts."""
    clip_s: float = 10.0
    """Clips that are sent over HTTP, and those of these batches."""
    clients: tuple[int, ...] = (1, 16, 128)
    load_s: float = 8.0
    """How long they ask, after a third of it that is not counted."""
    file_minutes: float = 60.0


class Bench:
    """One device, one checkpoint, one recording."""

    def __init__(self, device: str, checkpoint: Path, extent: Extent) -> None:
        self.device = device
        self.checkpoint = checkpoint
        self.extent = extent

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU; a dry run has none."""
        return self.device != "cpu"

    @cached_property
    def samples(self) -> Pcm:
        """Twelve minutes of dense speech, shape `(samples,)`."""
        return recording()

    @contextmanager
    def recognizer(
        self,
        checkpoint: Path | None = None,
        *,
        warm: tuple[int, float] = (1, 60),
        **changes: object,
    ) -> Iterator[NemoRecognizer]:
        """Load a model, with graphs for so many chunks of so many seconds; close it afterwards.

        `changes` are fields of `ModelOptions`.
        """
        rows, seconds = warm
        options = ModelOptions(
            device=self.device,
            precision="auto",
            strategy="greedy",
            beam_size=4,
            longest_s=seconds,
            largest_batch=rows,
            graphed_s=GRAPHED_S if self.on_gpu else 0.0,
        )
        loaded = NemoRecognizer.load(checkpoint or self.checkpoint, replace(options, **changes))  # type: ignore[arg-type]
        try:
            yield loaded
        finally:
            loaded.close()

    def clips(self) -> list[Chunk]:
        """Decode the demo model's clips, a chunk each."""
        files = [entry["file"] for entry in json.loads((SPEECH / "clips.json").read_text())]
        decoder = FfmpegDecoder(executable=find_ffmpeg(), max_seconds=3600)
        waveforms = [
            np.concatenate(list(decoder.stream(SPEECH / file)))
            for file in files[: self.extent.clips]
        ]
        return [Chunk(0, 0, wave, 0, len(wave)) for wave in waveforms]

    def chunks(self, count: int, seconds: float) -> list[Chunk]:
        """Take so many different chunks from the recording."""
        hop = round(_HOP_S * SAMPLE_RATE)
        last = len(self.samples) - round(seconds * SAMPLE_RATE)
        return [beginning(self.samples[n * hop % last :], seconds) for n in range(count)]

    def plan(self) -> InferencePlan:
        """Plan as the service does by default."""
        gpu = None
        if self.on_gpu:
            free, total = torch.cuda.mem_get_info(self.device)
            name = torch.cuda.get_device_name(self.device)
            gpu = Gpu(name, total / 1e9, free / 1e9, self.device)
        settings = Settings.from_env({}, detected_vram_gb=gpu.total_gb if gpu else None)
        return plan_inference(settings, gpu)

    def timed(self, run: Callable[[], _Result]) -> tuple[float, _Result]:
        """Run, and wait for the GPU; return the seconds."""
        self._synchronize()
        started = time.perf_counter()
        result = run()
        self._synchronize()
        return time.perf_counter() - started, result

    def fastest(self, run: Callable[[], _Result]) -> tuple[float, _Result]:
        """Run several times; return the seconds of the fastest run, and the last result."""
        times = []
        for _ in range(self.extent.rounds):
            seconds, result = self.timed(run)
            times.append(seconds)
        return min(times), result

    def used_mb(self) -> float:
        """Return the GPU memory of this process' tensors; without a GPU its resident memory."""
        if not self.on_gpu:
            return float(psutil.Process().memory_info().rss) / 1e6
        self._synchronize()
        return torch.cuda.memory_allocated(self.device) / 1e6

    def held_mb(self) -> float:
        """Return the same plus torch's cache and the pools of CUDA graphs."""
        return torch.cuda.memory_reserved(self.device) / 1e6 if self.on_gpu else self.used_mb()

    def whole_gpu_mb(self) -> float:
        """Return the GPU memory in use by all processes, kernels and graphs included."""
        if not self.on_gpu:
            return self.used_mb()
        free, total = torch.cuda.mem_get_info(self.device)
        return (total - free) / 1e6

    def begin_peak(self) -> None:
        """Reset the peak of memory."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_mb(self) -> float:
        """Return the tensors' peak memory since; without a GPU, the present memory."""
        return torch.cuda.max_memory_allocated(self.device) / 1e6 if self.on_gpu else self.used_mb()

    def empty_cache(self) -> None:
        """Make torch release its cache."""
        if self.on_gpu:
            torch.cuda.empty_cache()

    def _synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
