"""Time the encoder of full size on a CPU in torch, ONNX Runtime and OpenVINO, side by side.

    .venv/bin/pip install --no-deps onnxruntime==1.32.0 flatbuffers==25.12.19 \
        openvino==2026.4.1 openvino-telemetry==2025.2.0
    .venv/bin/python -m benchmarks.runtimes

The weights are random, in the shape of the 0.6B models; the input is a chunk of speech. Only the
encoder is timed, which is nearly all of the work. Each runtime takes turns with torch in fp32, in
one process, and is gone before the next one, so that 16 GB of memory suffice. A second table says
what the processor can do at most: the rate of its matrix products, and the time that the encoder's
would take at that rate.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cpu import PASSIVE, begin_with, beginning, options, recording
from benchmarks.full_size import FULL, write_checkpoint
from parakeet_api.model.devices import available_cores
from parakeet_api.model.heap import trim_heap
from parakeet_api.model.loading import load_model
from parakeet_api.model.precision import EncoderPrecision, cpu_features
from parakeet_api.model.restore import restore

Run = Callable[[Tensor], Tensor]
"""Encodes features (1, mels, frames)."""

_PRODUCT = (380, 1024, 4096)
"""Rows, width in and width out of the encoder's most frequent product, for a chunk of 30 s."""


@dataclass(frozen=True, slots=True)
class Measured:
    """An encoder beside torch in fp32; seconds are medians."""

    seconds: float
    torch_seconds: float
    error: float
    """Of the output, relative to torch in fp32."""


def engines(checkpoint: Path, folder: Path, threads: int) -> dict[str, Callable[[], Run]]:
    """Return what loads the encoder into each runtime."""
    exported, smaller = folder / "encoder.onnx", folder / "encoder-int8.onnx"
    # In a process of its own: what the export allocates is not given back.
    prepare = multiprocessing.get_context("spawn").Process(
        target=_prepare, args=(checkpoint, exported, smaller)
    )
    prepare.start()
    prepare.join()
    if prepare.exitcode:
        raise RuntimeError("the encoder could not be exported")
    precisions: tuple[EncoderPrecision, ...] = ("int8",)
    if "avx512_bf16" in cpu_features():
        precisions += ("bf16",)
    return {
        **{f"torch, {p}": partial(_torch, checkpoint, p, threads) for p in precisions},
        "ONNX Runtime, fp32": lambda: _onnx_runtime(exported, threads),
        "ONNX Runtime, int8": lambda: _onnx_runtime(smaller, threads),
        "OpenVINO, fp32": lambda: _open_vino(exported, threads, "f32"),
        "OpenVINO, its choice": lambda: _open_vino(exported, threads, ""),
        "OpenVINO, int8": lambda: _open_vino(smaller, threads, ""),
    }


def _prepare(checkpoint: Path, exported: Path, smaller: Path) -> None:
    _export(checkpoint, exported)
    _quantize(exported, smaller)


def _torch(checkpoint: Path, precision: EncoderPrecision, threads: int) -> Run:
    encoder = load_model(checkpoint, options(precision, threads)).network.encoder

    def run(features: Tensor) -> Tensor:
        lengths = torch.tensor([features.shape[2]])
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        encoded: Tensor = encoder(audio_signal=features.to(dtype), length=lengths)[0]
        return encoded.float()

    return run


def _export(checkpoint: Path, target: Path) -> None:
    encoder = restore(checkpoint)[0].eval().encoder
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        encoder.export(str(target), onnx_opset_version=17, check_trace=False)


def _quantize(exported: Path, target: Path) -> None:
    """Quantize as the int8 checkpoints that are offered for onnx-asr: matrix products, dynamic."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        exported,
        target,
        op_types_to_quantize=["MatMul"],
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )


def _onnx_runtime(path: Path, threads: int) -> Run:
    import onnxruntime

    given = onnxruntime.SessionOptions()
    given.intra_op_num_threads = threads
    given.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, given, providers=["CPUExecutionProvider"])

    def run(features: Tensor) -> Tensor:
        lengths = np.array([features.shape[2]], dtype=np.int64)
        inputs = dict(
            zip((i.name for i in session.get_inputs()), (features.numpy(), lengths), strict=True)
        )
        return torch.from_numpy(session.run(None, inputs)[0])

    return run


def _open_vino(path: Path, threads: int, precision: str) -> Run:
    import openvino

    hints: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision:
        hints["INFERENCE_PRECISION_HINT"] = precision
    compiled = openvino.Core().compile_model(path, "CPU", hints)

    def run(features: Tensor) -> Tensor:
        lengths = np.array([features.shape[2]], dtype=np.int64)
        return torch.from_numpy(compiled([features.numpy(), lengths])[0].copy())

    return run


def measure(load: Callable[[], Run], reference: Run, features: Tensor, rounds: int) -> Measured:
    """Time an encoder in turns with the reference, after a first round that warms up."""
    run = load()
    expected = reference(features)
    error = float((run(features) - expected).norm() / expected.norm())
    times = [(_seconds(run, features), _seconds(reference, features)) for _ in range(rounds)]
    own, others = (statistics.median(column) for column in zip(*times, strict=True))
    del run
    gc.collect()
    trim_heap()
    return Measured(own, others, error)


def _seconds(run: Run, features: Tensor) -> float:
    started = time.perf_counter()
    run(features)
    return time.perf_counter() - started


def _row(title: str, found: Measured, seconds: float) -> str:
    faster = found.torch_seconds / found.seconds
    return (
        f"| {title} | {found.seconds:.2f} | {seconds / found.seconds:.1f} | {faster:.2f}"
        f" | {found.error:.4f} |"
    )


def limits(run: Run, features: Tensor, seconds: float) -> str:
    """Write as markdown what the rate of matrix products allows at most."""
    counter = FlopCounterMode(display=False)
    with counter:
        run(features)
    rows, width, out = _PRODUCT
    work = counter.get_total_flops()
    x, weight = torch.randn(rows, width), torch.randn(out, width)
    linear = torch.nn.Sequential(torch.nn.Linear(width, out, bias=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        int8 = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            linear, {torch.nn.Linear}, dtype=torch.qint8
        )
    products: dict[str, Callable[[], Tensor]] = {
        "fp32": lambda: x @ weight.T,
        "int8, quantization included": lambda: int8(x),
    }
    fastest = "the encoder's at that rate, seconds | times real time"
    lines = [
        f"The encoder needs {work / 1e9:.0f} billion operations for {seconds:g} s.\n",
        f"| {rows} x {width} times {width} x {out} | billion operations a second | {fastest} |",
        "|---|---|---|---|",
    ]
    for name, product in products.items():
        rate = 2 * rows * width * out / _fastest(product)
        lines.append(
            f"| {name} | {rate / 1e9:.0f} | {work / rate:.2f} | {seconds * rate / work:.1f} |"
        )
    return "\n".join(lines)


def _fastest(work: Callable[[], object], times: int = 30) -> float:
    def once() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return min(once() for _ in range(times))


def main() -> int:
    """Print both tables; give the process' exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="of that size, instead of random weights")
    parser.add_argument("--seconds", type=float, default=30, help="of the chunk")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    begin_with("benchmarks.runtimes", PASSIVE)
    threads, chunk = available_cores(), beginning(recording(), given.seconds)
    with tempfile.TemporaryDirectory() as name:
        checkpoint = given.checkpoint or Path(name) / "random.nemo"
        if given.checkpoint is None:
            write_checkpoint(checkpoint, FULL)
        waveform = torch.from_numpy(chunk.samples.astype(np.float32) / 32768)[None]
        with torch.inference_mode():
            features, _ = restore(checkpoint)[0].preprocessor(
                input_signal=waveform, length=torch.tensor([waveform.shape[1]])
            )
        compared = engines(checkpoint, Path(name), threads)
        reference = _torch(checkpoint, "fp32", threads)
        print(f"{threads} threads, {torch.backends.cpu.get_cpu_capability()}\n")
        print("| encoder | seconds | times real time | times torch in fp32 | error |")
        print("|---|---|---|---|---|", flush=True)
        with torch.inference_mode():
            for title, load in compared.items():
                found = measure(load, reference, features, given.rounds)
                print(_row(title, found, given.seconds), flush=True)
            print("\n" + limits(reference, features, given.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
