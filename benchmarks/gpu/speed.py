"""How fast a GPU is, and how much memory that takes, with random weights in full size."""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.cpu import beginning
from benchmarks.gpu import Bench
from benchmarks.gpu.correctness import relative_error
from benchmarks.gpu.report import Report, batch_name, library_figure, nemo_figure
from parakeet_api.model.architecture import FULL_SIZE
from parakeet_api.model.cuda import current, is_memory_shortage, turn_on
from parakeet_api.model.encoder import encode
from parakeet_api.model.recognizer import NemoRecognizer, OutOfDeviceMemoryError
from parakeet_api.model.restore import import_libraries
from parakeet_api.transcript import Chunk

_MIN_S = 1.0
_GRAPHED_S = 31.0
"""Seconds of audio of the encoder's graphs where it is not they that are measured: capturing all
takes seconds of each load."""
_BUSY_THREADS = 4
_INTERVALS_S = (0.005, 0.0005)
"""Python's own, after which a thread must give the interpreter to one that waits, and a tenth."""


@dataclass(frozen=True, slots=True)
class Phases:
    """Seconds of a pass, each of its steps by itself; the fastest of some rounds."""

    total: float
    stage: float
    encode: float
    decode: float
    probabilities: float
    words: float


def nemo(bench: Bench, report: Report) -> None:
    """Time NeMo's own `transcribe()` on the same weights."""
    model = _nemo_model(bench)
    report.header("batch", f"NeMo's `transcribe()`, {_nemo_type(bench)}, times real time")
    for count, seconds in bench.extent.batches:
        waves = [_floats(chunk) for chunk in bench.chunks(count, seconds)]
        transcribe = partial(
            model.transcribe, waves, batch_size=count, verbose=False, num_workers=0
        )
        try:
            with current(bench.device):
                transcribe()
                elapsed_s, _ = bench.fastest(transcribe)
        except RuntimeError as error:
            if not is_memory_shortage(error):
                raise
            report.row(batch_name(count, seconds), "out of memory")
            continue
        report.figure(nemo_figure(count, seconds), count * seconds / elapsed_s)
        report.row(batch_name(count, seconds), f"{count * seconds / elapsed_s:.0f}")


def speed(bench: Bench, report: Report) -> None:
    """Time batches, step by step, and compare their memory with the plan's formula."""
    report.header(
        *("batch", "times real time", "NeMo", "ratio", "total ms"),
        *("stage", "encode", "decode", "probabilities", "words"),
    )
    memory = []
    with bench.recognizer(warm=_largest(bench)) as recognizer:
        for count, seconds in bench.extent.batches:
            chunks = bench.chunks(count, seconds)
            try:
                phases = time_phases(bench, recognizer, chunks)
                peak_mb = _peak_mb(bench, recognizer, chunks)
            except OutOfDeviceMemoryError:
                report.row(batch_name(count, seconds), "out of memory", *[""] * 8)
                continue
            memory.append((count, seconds, peak_mb))
            _report_speed(report, count, seconds, phases)
    _report_memory(report, memory)


def time_phases(bench: Bench, recognizer: NemoRecognizer, chunks: Sequence[Chunk]) -> Phases:
    """Time a batch as a whole, and each of its steps by itself."""
    encoder, decoder = recognizer._encoder, recognizer._decoder
    waves = [chunk.samples for chunk in chunks]
    # Twice: the first pass of a shape may capture graphs.
    for _ in range(2):
        recognizer.recognize(chunks)
    total, _ = bench.fastest(lambda: recognizer.recognize(chunks))
    with turn_on(bench.device), torch.inference_mode():
        stage, staged = bench.fastest(lambda: encoder.stage(waves))
        encode_s, (encoded, lengths) = bench.fastest(lambda: encoder.encode(staged))
        decode_s, found = bench.fastest(lambda: decoder.decode(encoded, lengths))
        scores_s, scored = bench.fastest(lambda: recognizer._emissions(encoded, found))
    words_s, _ = bench.fastest(
        lambda: [recognizer._words(*row) for row in zip(chunks, scored, strict=True)]
    )
    return Phases(total, stage, encode_s, decode_s, scores_s, words_s)


def precisions(bench: Bench, report: Report) -> None:
    """Compare precisions, and passes with and without CUDA graphs."""
    small, large = bench.extent.batches[0], _medium(bench)
    report.header(
        *("precision", "graphs", "encoder error", "times real time, " + batch_name(*small)),
        *(batch_name(*large), "weights MB", "peak MB"),
    )
    last = bench.extent.precisions[-1]
    reference = None
    for precision, graphs in [*((p, True) for p in bench.extent.precisions), (last, False)]:
        before_mb = bench.used_mb()
        with bench.recognizer(
            precision=precision,
            warm=large,
            cuda_graphs=graphs,
            graphed_s=_GRAPHED_S if bench.on_gpu else 0.0,
        ) as recognizer:
            weights_mb = bench.used_mb() - before_mb
            output = _encoded(bench, recognizer)
            reference = output if reference is None else reference
            rates = [_rate(bench, recognizer, *batch) for batch in (small, large)]
            peak_mb = _peak_mb(bench, recognizer, bench.chunks(*large)) if rates[1] else 0.0
        report.row(
            *(precision, _graphs(bench, graphs), f"{relative_error(output, reference):.4f}"),
            *(f"{rates[0]:.0f}", f"{rates[1]:.0f}", f"{weights_mb:.0f}", f"{peak_mb:.0f}"),
        )


def shapes(bench: Bench, report: Report) -> None:
    """Time clips of lengths, and batches of numbers of rows, that were not met before."""
    plan = bench.plan()
    with bench.recognizer(
        warm=(plan.batch_size, plan.longest_chunk_s), graphed_s=plan.graphed_s
    ) as recognizer:
        _new_lengths(bench, report, recognizer)
        report.line("")
        _new_rows(bench, report, recognizer)


def busy(bench: Bench, report: Report) -> None:
    """Time a clip beside threads of Python that compute."""
    chunk = bench.chunks(1, bench.extent.clip_s)
    report.header(
        "busy threads", "switch interval ms", f"clip of {bench.extent.clip_s:g} s, median ms"
    )
    with bench.recognizer(
        warm=(1, 30), graphed_s=_GRAPHED_S if bench.on_gpu else 0.0
    ) as recognizer:
        recognize = partial(recognizer.recognize, chunk)

        def median_ms() -> float:
            times = [bench.timed(recognize)[0] for _ in range(bench.extent.passes)]
            return 1000 * statistics.median(times)

        median_ms()
        report.row("0", "", f"{median_ms():.1f}")
        with _busy_threads(_BUSY_THREADS):
            for interval_s in _INTERVALS_S:
                with _switch_interval(interval_s):
                    report.row(str(_BUSY_THREADS), f"{1000 * interval_s:g}", f"{median_ms():.1f}")


def _report_speed(report: Report, count: int, seconds: float, phases: Phases) -> None:
    rate = count * seconds / phases.total
    report.figure(library_figure(count, seconds), rate)
    nemos = report.figures.get(nemo_figure(count, seconds))
    report.row(
        *(batch_name(count, seconds), f"{rate:.0f}"),
        *(("", "") if nemos is None else (f"{nemos:.0f}", f"{rate / nemos:.2f}")),
        *(f"{1000 * step_s:.1f}" for step_s in astuple(phases)),
    )


def _report_memory(report: Report, memory: Sequence[tuple[int, float, float]]) -> None:
    report.line("")
    report.header("chunks", "of", "peak MB", "formula MB", "peak / formula")
    for count, seconds, peak_mb in memory:
        formula_mb = FULL_SIZE.activations_mb(count, seconds)
        report.row(
            *(str(count), f"{seconds:g} s", f"{peak_mb:.0f}", f"{formula_mb:.0f}"),
            f"{peak_mb / formula_mb:.2f}",
        )


def _new_lengths(bench: Bench, report: Report, recognizer: NemoRecognizer) -> None:
    lengths_s = np.linspace(_MIN_S, bench.extent.longest_s, bench.extent.lengths).tolist()
    random.Random(0).shuffle(lengths_s)
    first_s, *times = [
        bench.timed(partial(recognizer.recognize, [beginning(bench.samples, seconds)]))[0]
        for seconds in lengths_s
    ]
    median_s, p95_s = statistics.median(times), quantile(times, 0.95)
    report.header(
        *("clips, each of its own length", "first ms", "median ms of the others"),
        *("p95", "slowest", "p95 / median"),
    )
    report.row(
        f"{bench.extent.lengths} of {_MIN_S:g} to {bench.extent.longest_s:g} s",
        *(f"{1000 * seconds:.0f}" for seconds in (first_s, median_s, p95_s, max(times))),
        f"{p95_s / median_s:.2f}",
    )


def _new_rows(bench: Bench, report: Report, recognizer: NemoRecognizer) -> None:
    report.header(f"chunks of {bench.extent.clip_s:g} s", "first ms", "again ms")
    for count in bench.extent.rows:
        run = partial(recognizer.recognize, bench.chunks(count, bench.extent.clip_s))
        first_s, again_s = bench.timed(run)[0], bench.timed(run)[0]
        report.row(str(count), f"{1000 * first_s:.0f}", f"{1000 * again_s:.0f}")


def quantile(times: Sequence[float], share: float) -> float:
    """Return the time that so great a share of them does not exceed."""
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def _nemo_model(bench: Bench) -> Any:
    import_libraries()
    from nemo.collections.asr.models import ASRModel

    model = ASRModel.restore_from(str(bench.checkpoint), map_location=bench.device).eval()
    return model.to(torch.bfloat16) if bench.on_gpu else model


def _nemo_type(bench: Bench) -> str:
    return "bf16" if bench.on_gpu else "fp32 on a CPU"


def _floats(chunk: Chunk) -> NDArray[np.float32]:
    return chunk.samples.astype(np.float32) / np.float32(32768)


def _largest(bench: Bench) -> tuple[int, float]:
    counts, seconds = zip(*bench.extent.batches, strict=True)
    return max(counts), max(seconds)


def _medium(bench: Bench) -> tuple[int, float]:
    """Return the largest batch of up to 32 of the longest chunks."""
    longest_s = max(seconds for _, seconds in bench.extent.batches)
    fitting = [count for count, s in bench.extent.batches if s == longest_s and count <= 32]
    return max(fitting), longest_s


def _graphs(bench: Bench, graphs: bool) -> str:
    return (
        ("on" if graphs else "off") if bench.on_gpu else f"{'on' if graphs else 'off'} (CPU: none)"
    )


def _encoded(bench: Bench, recognizer: NemoRecognizer) -> torch.Tensor:
    wave = torch.from_numpy(_floats(bench.chunks(1, bench.extent.clip_s)[0]))[None]
    with torch.inference_mode():
        return encode(recognizer._model, wave, torch.tensor([wave.shape[1]]))[0].cpu()


def _rate(bench: Bench, recognizer: NemoRecognizer, count: int, seconds: float) -> float:
    """Return how many times real time a batch takes; 0 = the GPU has too little memory."""
    chunks = bench.chunks(count, seconds)
    try:
        for _ in range(2):
            recognizer.recognize(chunks)
        elapsed_s, _ = bench.fastest(lambda: recognizer.recognize(chunks))
    except OutOfDeviceMemoryError:
        return 0.0
    return count * seconds / elapsed_s


def _peak_mb(bench: Bench, recognizer: NemoRecognizer, chunks: Sequence[Chunk]) -> float:
    """Return the most memory that a pass takes beside what is there before it."""
    before_mb = bench.used_mb()
    bench.begin_peak()
    recognizer.recognize(chunks)
    return bench.peak_mb() - before_mb


@contextmanager
def _busy_threads(count: int) -> Iterator[None]:
    done = threading.Event()

    def compute() -> None:
        for number in itertools.count():
            if number % 10_000 == 0 and done.is_set():
                return

    threads = [threading.Thread(target=compute) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


@contextmanager
def _switch_interval(seconds: float) -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
