"""The speaker model on the GPU: equal to the CPU, how fast, and gone when it is unloaded."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.diarization import diarize
from benchmarks.gpu import Bench
from benchmarks.gpu.report import Report
from benchmarks.sortformer_files import SortformerShape, write_sortformer
from parakeet_api.model.devices import Gpu
from parakeet_api.model.sortformer import Sortformer, load_sortformer
from parakeet_api.settings import Settings
from parakeet_api.transcript import SAMPLE_RATE

SMALL_SORTFORMER = SortformerShape(
    mels=80, channels=8, layers=1, width=32, head_layers=1, head_width=16
)
"""The dry run's."""
_SECONDS = 45
"""Three chunks, so that the speaker cache has been compressed once."""
_MAX_ERROR = 0.02
"""Of a probability: TF32 in the convolutions, and in fp32 another order of sums."""


def speakers(bench: Bench, report: Report, *, shape: SortformerShape) -> None:
    """Compare probabilities on the device with those on the CPU."""
    samples = (bench.samples[: _SECONDS * SAMPLE_RATE] / 32_768).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sortformer.nemo"
        write_sortformer(path, shape)
        reference = _load(path, "cpu")
        expected = diarize(reference, samples, speakers=shape.speakers)
        reference.close()
        before = _allocated_mb(bench)
        sortformer = _load(path, bench.device)
        held = _allocated_mb(bench) - before
        diarize(sortformer, samples, speakers=shape.speakers)
        started = time.perf_counter()
        found = diarize(sortformer, samples, speakers=shape.speakers)
        faster = _SECONDS / (time.perf_counter() - started)
        parameters = sortformer.info.parameters
        sortformer.close()
        left = _allocated_mb(bench) - before
    error = float(np.abs(found - expected).max())
    report.header("parameters", "largest error", "times real time", "MB loaded", "MB left")
    report.row(
        f"{parameters / 1e6:.1f} M", f"{error:.2g}", f"{faster:.0f}", f"{held:.0f}", f"{left:.0f}"
    )
    report.check(error <= _MAX_ERROR, f"the speakers' probabilities differ by {error:.2g}")
    report.check(left < 1, f"{left:.0f} MB were left by the speaker model")


def _load(path: Path, device: str) -> Sortformer:
    gpu = None
    if device != "cpu":
        total_gb = torch.cuda.get_device_properties(device).total_memory / 1e9
        gpu = Gpu(torch.cuda.get_device_name(device), total_gb, device=device)
    return load_sortformer(path, lambda _: None, settings=Settings(), gpu=gpu)


def _allocated_mb(bench: Bench) -> float:
    return torch.cuda.memory_allocated(bench.device) / 1e6 if bench.on_gpu else 0.0
