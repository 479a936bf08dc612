"""Correctness of a GPU's results, with the demo model, whose output is known."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from benchmarks.fidelity import DEMO_MODEL
from benchmarks.full_size import Shape, write_checkpoint
from benchmarks.gpu import Bench
from benchmarks.gpu.report import Report, batch_name
from parakeet_api.model.cuda import turn_on
from parakeet_api.model.encoder import Staged, encode
from parakeet_api.model.precision import EncoderPrecision
from parakeet_api.model.recognizer import NemoRecognizer, OutOfDeviceMemoryError
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Word

GROWTH_MB = 64
"""Permitted growth of memory between unloads: the allocator's granularity."""
AGREEMENT = 0.02
"""Relative error of an encoder's graph; its kernels are those of the pass without it."""
OTHER_WORDS = 0.05
"""Share of clips that may have other words in half precision, because of near ties."""
_ROWS = (1, 2, 5, 8)
_BYSTANDERS = (64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536, 262144, 1048576)
"""Size of each guard tensor, which must not be written."""
_CPU_SHAPES = ((1, SAMPLE_RATE), (2, 2 * SAMPLE_RATE))
"""As (rows, samples): on a CPU nothing is captured."""
_SHOWN_CYCLES = 5
"""The table has the first cycles, and then one in so many."""
_LEFT_BYTES = 64 << 20
"""Free memory during a shortage: less than a batch of the demo model needs."""
_RECOVERY_S = 45.0
"""Graphs for which memory was short are tried again after half a minute."""


def tokens(bench: Bench, report: Report, *, benchmark: bool, empty: bool) -> None:
    """Compare tokens with graphs and without, over batches of mixed rows."""
    batches = _mixed_batches(bench.clips())
    load = partial(
        bench.recognizer,
        DEMO_MODEL,
        precision=_half(bench),
        warm=(max(_ROWS), 30),
        cudnn_benchmark=benchmark,
    )
    given = []
    with load() as graphed:
        bystanders = _bystanders(bench)
        for batch in batches:
            given += _tokens(graphed.recognize(batch))
            if empty:
                bench.empty_cache()
        in_use = _graphs_in_use(graphed)
        overwritten = sum(not bool((tensor == 7).all()) for tensor in bystanders)
        shapes = graphed._encoder.shapes
    with load(cuda_graphs=False) as plain:
        # In others, half precision rounds differently, which may decide near ties.
        plain._encoder.shapes, plain._encoder._graphs_work = shapes, False
        expected = [row for batch in batches for row in _tokens(plain.recognize(batch))]
    differing = sum(one != other for one, other in zip(expected, given, strict=True))
    report.header(
        *("cuDNN benchmark", "`empty_cache()`", "clips that differ"),
        *("tensors overwritten", "graphs", '`b" "`'),
    )
    report.row(
        *("on" if benchmark else "off", "after each batch" if empty else "no"),
        *(f"{differing} of {len(given)}", f"{overwritten} of {len(bystanders)}"),
        *(in_use if bench.on_gpu else "none: CPU", _space()),
    )
    report.check(differing == 0, f"{differing} clips have other tokens with graphs than without")
    report.check(overwritten == 0, f"{overwritten} tensors were overwritten by graphs")
    report.check(in_use == "in use" or not bench.on_gpu, f"graphs are {in_use}")
    _check_space(report)


def encoder_graphs(bench: Bench, report: Report) -> None:
    """Compare each graph of the encoder with the same pass without it."""
    with bench.recognizer(DEMO_MODEL, precision=_half(bench), warm=(4, 60)) as recognizer:
        shapes = recognizer._encoder.shapes.graphed or _CPU_SHAPES
        # Twice, as capturing later graphs must not damage earlier ones.
        errors = [_graph_error(bench, recognizer, shape) for _ in range(2) for shape in shapes]
        captured = len(recognizer._encoder._graphs)
    failed = sum(not error <= AGREEMENT for error in errors)
    report.header("shapes", "graphs captured", "largest relative error, each twice")
    note = "" if bench.on_gpu else "; CPU: none to capture"
    report.row(str(len(shapes)), f"{captured}{note}", f"{max(errors):.2g}")
    report.check(failed == 0, f"{failed} encoder graphs differ from the pass without")
    report.check(
        captured == len(shapes) or not bench.on_gpu,
        f"{captured} of {len(shapes)} encoder graphs were captured",
    )


def reloads(bench: Bench, report: Report) -> None:
    """Load models after a capture, on the CPU and on the GPU; look at the byte of a space."""
    clips = bench.clips()[:1]
    benches = {device: Bench(device, DEMO_MODEL, bench.extent) for device in ("cpu", bench.device)}
    report.header("loads after a capture", "failed, or other words", '`b" "`')
    with bench.recognizer(DEMO_MODEL, precision="fp32") as first:
        expected = _texts(first.recognize(clips))
        for device, other in benches.items():
            failed = [
                reason
                for _ in range(bench.extent.reloads)
                if (reason := _reload_failure(other, clips, expected)) is not None
            ]
            report.row(device, f"{len(failed)} of {bench.extent.reloads}", _space())
            report.check(not failed, f"loads on {device} after a capture failed: {failed[:1]}")
    _check_space(report)


def second_model(bench: Bench, report: Report) -> None:
    """Load and unload a second model while the first one serves."""
    clips = bench.clips()
    failed = 0
    with bench.recognizer(DEMO_MODEL) as first:
        expected = _texts(first.recognize(clips[:8]))
        with _serving(first, clips[:8], expected) as served:
            for _ in range(bench.extent.reloads):
                with bench.recognizer(DEMO_MODEL) as second:
                    failed += _texts(second.recognize(clips[:8])) != expected
    report.header("second models", "with other words", "passes of the first", "with other words")
    report.row(
        *(str(bench.extent.reloads), str(failed)), *(str(served.passes), str(served.differing))
    )
    report.check(failed == 0, f"{failed} second models had other words")
    report.check(served.differing == 0, f"{served.differing} passes beside a second one differed")


def words(bench: Bench, report: Report) -> None:
    """Compare each precision with fp32 on the CPU: the encoder's output, tokens and words."""
    clips = bench.clips()
    with Bench("cpu", DEMO_MODEL, bench.extent).recognizer(precision="fp32") as exact:
        expected = [exact.recognize([clip])[0] for clip in clips]
        reference = _encoded(exact, clips[0])
    report.header("precision", "encoder error", "other tokens", "other words")
    for precision in bench.extent.precisions:
        with bench.recognizer(DEMO_MODEL, precision=precision) as reduced:
            given = [reduced.recognize([clip])[0] for clip in clips]
            error = relative_error(_encoded(reduced, clips[0]), reference)
        other_tokens = _differing(_tokens(given), _tokens(expected))
        other_words = _differing(_texts(given), _texts(expected))
        of = f"of {len(clips)}"
        report.row(precision, f"{error:.4f}", f"{other_tokens} {of}", f"{other_words} {of}")
        report.check(
            other_words <= OTHER_WORDS * len(clips), f"{precision}: {other_words} {of} clips differ"
        )


def loads(bench: Bench, report: Report) -> None:
    """Load, work and unload, many times: memory must not grow, nor words change."""
    clips = bench.clips()
    cycles = bench.extent.cycles
    report.header(f"load, {bench.extent.jobs} passes, unload", "before MB", "loaded MB", "after MB")
    after, whole, outputs = list[float](), list[float](), list[list[list[str]]]()
    for turn in range(cycles):
        before_mb = bench.held_mb()
        # Only short chunks, as capturing all graphs of the encoder takes seconds.
        with bench.recognizer(DEMO_MODEL, warm=(8, 10), graphed_s=_graphed_s(bench)) as recognizer:
            outputs += [_texts(recognizer.recognize(clips[:8])) for _ in range(bench.extent.jobs)]
            loaded_mb = bench.held_mb()
        gc.collect()
        after.append(bench.held_mb())
        whole.append(bench.whole_gpu_mb())
        if turn < 2 or (turn + 1) % _SHOWN_CYCLES == 0 or turn == cycles - 1:
            report.row(str(turn + 1), f"{before_mb:.0f}", f"{loaded_mb:.0f}", f"{after[-1]:.0f}")
    grown_mb = after[-1] - after[0]
    report.check(grown_mb <= GROWTH_MB, f"memory grows by {grown_mb:.0f} MB")
    if bench.on_gpu:
        report.line("")
        report.line(f"The whole GPU, after the unloadings: {whole[0]:.0f} to {whole[-1]:.0f} MB.")
        report.check(not keeps_growing(whole), "what is taken of the whole GPU keeps growing")
    differing = sum(texts != outputs[0] for texts in outputs)
    report.check(differing == 0, f"{differing} of {len(outputs)} passes had other words")


def recovery(bench: Bench, report: Report) -> None:
    """Fill the GPU, exceed its memory, free it: words must be correct and graphs be back."""
    report.header("shortage", "found")
    if not bench.on_gpu:
        report.row("none: a CPU's memory is not filled", "")
        return
    shape = bench.extent.shortage
    clip, batch = bench.clips()[:1], bench.chunks(*shape)
    with bench.recognizer(DEMO_MODEL, precision="fp16", warm=shape) as recognizer:
        expected, before_s = _texts(recognizer.recognize(batch)), _pass_s(bench, recognizer, batch)
        clip_words = _texts(recognizer.recognize(clip))
        bench.empty_cache()
        with _filled(bench):
            refusals = [_refusal(recognizer, batch), _small_pass(recognizer, clip, clip_words)]
        report.row(f"batch of {batch_name(*shape)} beside a full GPU", refusals[0])
        report.row("clip beside a full GPU, graphs given back", refusals[1])
        right = _texts(recognizer.recognize(batch)) == expected
        back_s = _seconds_until(lambda: _returned(recognizer, clip))
        after_s = _pass_s(bench, recognizer, batch)
    report.row("graphs back after", "never" if back_s is None else f"{back_s:.0f} s")
    report.row("batch before and after", f"{1000 * before_s:.0f} ms, {1000 * after_s:.0f} ms")
    report.check(refusals[0] == "refused", f"a full GPU: a batch was {refusals[0]}")
    report.check(refusals[1] in ("refused", "right"), f"a full GPU: a clip was {refusals[1]}")
    report.check(right, "after a shortage a batch has other words")
    report.check(back_s is not None, "graphs did not come back after a shortage")


def checkpoint(bench: Bench, report: Report, *, shape: Shape) -> None:
    """Write the checkpoint of the sections on speed."""
    if not bench.checkpoint.exists():
        write_checkpoint(bench.checkpoint, shape)
    size_mb = bench.checkpoint.stat().st_size / 1e6
    report.line(f"{shape.layers} layers of {shape.width}, random weights: {size_mb:.0f} MB.")


def keeps_growing(megabytes: Sequence[float]) -> bool:
    """Tell whether memory grows in both halves, unlike when another program starts once."""
    # What is loaded with a first use, such as kernels, is there after the first cycle.
    used = megabytes[1:]
    begin, middle, end = used[0], used[len(used) // 2], used[-1]
    return min(middle - begin, end - middle) > GROWTH_MB / 2


def relative_error(output: torch.Tensor, reference: torch.Tensor) -> float:
    return float((output - reference).norm() / reference.norm())


def _half(bench: Bench) -> EncoderPrecision:
    return "fp16" if bench.on_gpu else "fp32"


def _graphed_s(bench: Bench) -> float:
    return 31.0 if bench.on_gpu else 0.0


def _mixed_batches(clips: Sequence[Chunk]) -> list[Sequence[Chunk]]:
    """Deal clips into batches of mixed numbers of rows; the same each time."""
    dice = random.Random(0)
    batches = []
    begin = 0
    while begin < len(clips):
        rows = dice.choice(_ROWS)
        batches.append(clips[begin : begin + rows])
        begin += rows
    return batches


def _tokens(recognized: Sequence[Sequence[Word]]) -> list[list[int]]:
    return [[token.id for word in row for token in word.tokens] for row in recognized]


def _texts(recognized: Sequence[Sequence[Word]]) -> list[list[str]]:
    return [[word.text for word in row] for row in recognized]


def _differing(given: Sequence[object], expected: Sequence[object]) -> int:
    return sum(one != other for one, other in zip(given, expected, strict=True))


def _bystanders(bench: Bench) -> list[torch.Tensor]:
    """Make guard tensors of all sizes, to detect out-of-bounds writes of graphs."""
    return [
        torch.full((size,), 7, dtype=torch.int32, device=bench.device)
        for size in _BYSTANDERS
        for _ in range(12)
    ]


def _graphs_in_use(recognizer: NemoRecognizer) -> str:
    missing = []
    if not recognizer._decoder.uses_graphs:
        missing.append("the token decoder's")
    if not recognizer._encoder._graphs:
        missing.append("the encoder's")
    return f"not in use: {' and '.join(missing)}" if missing else "in use"


def _space() -> str:
    """Tell whether the byte object that CPython shares is intact."""
    is_whole = bytes([32])[0] == 32 and b"a b"[1:2][0] == 32
    return "intact" if is_whole else "damaged"


def _check_space(report: Report) -> None:
    report.check(_space() == "intact", 'the byte `b" "` of the whole process is damaged')


def _graph_error(bench: Bench, recognizer: NemoRecognizer, shape: tuple[int, int]) -> float:
    """Encode full and half-full rows with a graph and without; give the relative error."""
    rows, width = shape
    chunks = bench.chunks(rows, width / SAMPLE_RATE)
    waves = [
        chunk.samples[: width if row % 2 == 0 else width // 2] for row, chunk in enumerate(chunks)
    ]
    staged = recognizer._encoder.stage(waves)
    with turn_on(bench.device):
        encoded, frames = (tensor.clone() for tensor in recognizer._encoder.encode(staged))
        expected, expected_frames = _without_graph(recognizer, staged)
    if not torch.equal(frames, expected_frames):
        return float("inf")
    valid_frames = [slice(int(count)) for count in frames]
    return max(
        relative_error(encoded[row, :, part], expected[row, :, part])
        for row, part in enumerate(valid_frames)
    )


def _without_graph(recognizer: NemoRecognizer, staged: Staged) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        encoded, frames = encode(recognizer._model, staged.samples, staged.lengths)
    return encoded[: staged.chunks], frames[: staged.chunks]


def _reload_failure(bench: Bench, clips: Sequence[Chunk], expected: list[list[str]]) -> str | None:
    try:
        with bench.recognizer(precision="fp32", graphed_s=_graphed_s(bench)) as again:
            given = _texts(again.recognize(clips))
    # Anything can be read wrongly where a constant of the process has changed.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if given == expected else f"other words: {given}"


@dataclass
class _Served:
    """What a model did while another was loaded."""

    passes: int = 0
    differing: int = 0


@contextmanager
def _serving(
    recognizer: NemoRecognizer, clips: Sequence[Chunk], expected: list[list[str]]
) -> Iterator[_Served]:
    """Run a model in another thread during the block; raise its errors at the end."""
    served, done = _Served(), threading.Event()

    def serve() -> None:
        while not done.is_set():
            served.differing += _texts(recognizer.recognize(clips)) != expected
            served.passes += 1

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(serve)
        try:
            yield served
        finally:
            done.set()
        ended.result()


def _encoded(recognizer: NemoRecognizer, chunk: Chunk) -> torch.Tensor:
    waveform = torch.from_numpy(chunk.samples.astype(np.float32) / 32768.0)[None]
    with torch.inference_mode():
        return encode(recognizer._model, waveform, torch.tensor([waveform.shape[1]]))[0].cpu()


@contextmanager
def _filled(bench: Bench) -> Iterator[None]:
    """Take all of the GPU's memory but `_LEFT_BYTES`."""
    free, _ = torch.cuda.mem_get_info(bench.device)
    taken = torch.empty(free - _LEFT_BYTES, dtype=torch.uint8, device=bench.device)
    try:
        yield
    finally:
        del taken
        bench.empty_cache()


def _refusal(recognizer: NemoRecognizer, chunks: Sequence[Chunk]) -> str:
    try:
        recognizer.recognize(chunks)
    except OutOfDeviceMemoryError:
        return "refused"
    return "not refused"


def _small_pass(
    recognizer: NemoRecognizer, clip: Sequence[Chunk], expected: list[list[str]]
) -> str:
    """Recognize a clip without graphs, for which there is no memory either."""
    recognizer._decoder.forget_graphs()
    recognizer._encoder.forget_graphs()
    with suppress(OutOfDeviceMemoryError):
        return "right" if _texts(recognizer.recognize(clip)) == expected else "wrong"
    return "refused"


def _returned(recognizer: NemoRecognizer, clip: Sequence[Chunk]) -> bool:
    recognizer.recognize(clip)
    return _graphs_in_use(recognizer) == "in use"


def _seconds_until(condition: Callable[[], bool]) -> float | None:
    started = time.monotonic()
    while time.monotonic() - started < _RECOVERY_S:
        if condition():
            return time.monotonic() - started
        time.sleep(0.5)
    return None


def _pass_s(bench: Bench, recognizer: NemoRecognizer, chunks: Sequence[Chunk]) -> float:
    return bench.fastest(lambda: recognizer.recognize(chunks))[0]
