"""Run features and encoder over a batch of chunks: shapes, staging, CUDA graphs of small batches.

On a GPU the first pass of each new shape costs 50 ms and more, so there are few shapes: lengths and
row counts are rounded up in steps whose padding costs at most 5 % of a pass. A pass of few rows
keeps the GPU busy for less time than Python needs to launch its 2,000 kernels, so these passes are
captured as CUDA graphs, which are launched at once.
"""

from __future__ import annotations

import copy
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parakeet_api.model.cuda import (
    context_is_lost,
    has_bfloat16,
    is_memory_shortage,
    turn_on,
)
from parakeet_api.model.nemo_internals import (
    ending_allocation_in,
    extend_positions,
    float_dtype,
    own_workspaces,
)
from parakeet_api.transcript import SAMPLE_RATE, Pcm

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor

logger = logging.getLogger(__name__)

_STEP_FRAMES = 4
"""Encoder frames (0.32 s). Every length is a multiple of this. On a CPU, oneDNN caches a plan for
each of up to 1,024 shapes, in the heap among a pass' tensors: with unrounded lengths the heap grew
by 750 MB in ten hours of audio; with this step, by 100 MB. The padding is 0.6 % of a chunk of 30 s
and does not change the output."""
_FINE_STEPS = 20
"""On a GPU the step doubles with the rounded count: from this count on it is at most a twentieth
of it."""
_GRAPHED_ROWS = (1, 2, 4)
_GRAPHED_STEP_S = 2.56
"""Lengths of graphs are multiples of this, and of twice as much beyond 12 steps. Most of the time
of such a pass does not depend on its length, so this padding, too, costs less than 5 % of it."""
_FINE_GRAPHED_STEPS = 12
_MIN_SAMPLES = 320
"""20 ms, two feature windows: with one, NeMo raises an error on a GPU. Shorter chunks are padded
with silence."""
_AGREEMENT = 0.02
"""Relative error of a graph's output against the same pass without it. A graph runs the same
kernels; half precision measures 0.004 against fp32."""
_RETRY_S = 30.0
"""Wait before the next capture after one that ran out of memory."""
_WARM_UP_S = 8.0
"""Time for capturing graphs while a model loads; the others are captured when first needed."""


@dataclass(frozen=True, slots=True, eq=False)
class Staged:
    """A batch in host memory, ready to be copied to the device."""

    samples: Tensor
    """int16, shape (rows, width); pinned if there is a GPU."""
    lengths: Tensor
    """Samples of each row, shape (rows,), int64."""
    chunks: int
    """Rows that are chunks; the others are padding."""


class Shapes:
    """The shapes of the encoder's batches, as (rows, samples)."""

    def __init__(self, *, frame_samples: int, on_gpu: bool, longest_s: float, graphed_s: float):
        """Plan for chunks of up to `longest_s`; graphs for batches of up to `graphed_s` in all."""
        self._step = _STEP_FRAMES * frame_samples
        self._on_gpu = on_gpu
        longest = self._width(round(longest_s * SAMPLE_RATE))
        lengths = self._graphed_lengths(longest) if on_gpu else []
        self.graphed: list[tuple[int, int]] = [
            (rows, width)
            for rows, width in itertools.product(_GRAPHED_ROWS, lengths)
            if rows * width <= graphed_s * SAMPLE_RATE
        ]
        """The shapes that are graphs, small ones first."""
        self.longest = max([longest, *(width for _, width in self.graphed)])
        """Samples of the longest row, padding included."""

    def padded(self, rows: int, samples: int) -> tuple[int, int]:
        """Return the padded shape of a batch of `rows` chunks of at most `samples` samples."""
        if self._on_gpu:
            graphed_rows = next((count for count in _GRAPHED_ROWS if count >= rows), None)
            for shape in self.graphed:
                if shape[0] == graphed_rows and shape[1] >= samples:
                    return shape
            rows = _round_up(rows)
        return rows, self._width(samples)

    def _width(self, samples: int) -> int:
        steps = -(-samples // self._step)
        return self._step * (_round_up(steps) if self._on_gpu else steps)

    def _graphed_lengths(self, longest: int) -> list[int]:
        step = round(_GRAPHED_STEP_S * SAMPLE_RATE / self._step) * self._step
        lengths = [0]
        while lengths[-1] < longest:
            coarse = len(lengths) > _FINE_GRAPHED_STEPS
            lengths.append(lengths[-1] + step * (2 if coarse else 1))
        return lengths[1:]


def _round_up(count: int) -> int:
    """Round up to a multiple of a power of two that is at most a twentieth of the count, or 1."""
    step = 1
    while count >= 2 * step * _FINE_STEPS:
        step *= 2
    return -(-count // step) * step


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    """A captured pass and its input and output tensors."""

    graph: Any
    samples: Tensor
    lengths: Tensor
    encoded: Tensor
    encoded_lengths: Tensor

    def run(self, staged: Staged) -> tuple[Tensor, Tensor]:
        """Run the pass over a batch of the graph's shape."""
        self.samples.copy_(staged.samples, non_blocking=True)
        self.lengths.copy_(staged.lengths, non_blocking=True)
        self.graph.replay()
        return self.encoded, self.encoded_lengths


class Encoder:
    """Turn waveforms into encoder output. On a GPU, for one caller at a time."""

    def __init__(
        self,
        network: Any,
        *,
        device: str,
        longest_s: float,
        graphed_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap NeMo's network; use graphs for batches of up to `graphed_s` seconds of audio."""
        self._network = network
        self._device = device
        self.shapes = Shapes(
            frame_samples=frame_samples(network),
            on_gpu=device != "cpu",
            longest_s=longest_s,
            graphed_s=graphed_s,
        )
        self._is_half = float_dtype(network.encoder).itemsize < 4  # noqa: PLR2004 - fp32's bytes
        """Whether its floats are so short that they can overflow: fp16 and, rarely, bf16."""
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._graphs_work = True
        self._pool: Any = None
        """Memory that all graphs share, since their passes run one after the other."""
        self._stream: Any = None
        """The stream on which graphs are captured."""
        self._clock = clock
        self._retry_at = clock()
        self._sizing = threading.Lock()
        self._sized = 0
        """Samples that the table of positions covers."""
        self._size_positions(self.shapes.longest)

    @property
    def longest_frames(self) -> int:
        """Return the maximum number of encoder frames in a row."""
        return self._frames(self.shapes.longest)

    def stage(self, waveforms: Sequence[Pcm]) -> Staged:
        """Copy waveforms into one batch in host memory; does not use the GPU."""
        import torch

        shape = self.shapes.padded(len(waveforms), max(len(wave) for wave in waveforms))
        pinned = self._device != "cpu"
        samples = torch.empty(shape, dtype=torch.int16, pin_memory=pinned)
        lengths = torch.full((shape[0],), _MIN_SAMPLES, dtype=torch.int64, pin_memory=pinned)
        for row, wave in zip(samples.numpy(), waveforms, strict=False):
            row[: len(wave)] = wave
            row[len(wave) :] = 0
        samples[len(waveforms) :] = 0
        lengths[: len(waveforms)] = torch.tensor([len(wave) for wave in waveforms])
        return Staged(samples, lengths.clamp_(min=_MIN_SAMPLES), len(waveforms))

    def encode(self, staged: Staged) -> tuple[Tensor, Tensor]:
        """Return the encoder's output, fp32 of shape (chunks, D, T), and frames, (chunks,).

        Both are on the model's device and valid until the next call.
        """
        import torch

        shape = tuple(staged.samples.shape)
        graph = self._graph_for(shape) if shape in self.shapes.graphed else None
        with torch.inference_mode():
            if graph is None:
                self._size_positions(shape[1])
                encoded, frames = encode(self._network, staged.samples, staged.lengths)
            else:
                encoded, frames = graph.run(staged)
            encoded, frames = encoded[: staged.chunks], frames[: staged.chunks]
            if self._is_half and not _finite_rows(encoded, frames).all():
                encoded = self._encode_again(staged, encoded, frames)
            return encoded, frames

    def _encode_again(self, staged: Staged, encoded: Tensor, frames: Tensor) -> Tensor:
        """Encode the rows that overflowed again, in bf16 if the device has it, and then in fp32.

        Raises `ArithmeticError` if they overflow in fp32 too.
        """
        import torch

        repeated = encoded.clone()
        wider = (torch.bfloat16,) if has_bfloat16(self._device) else ()
        for dtype in (*wider, torch.float32):
            rows = (~_finite_rows(repeated, frames)).nonzero()[:, 0].cpu()
            if not len(rows):
                break
            logger.warning(
                "the encoder's output of %d of %d chunks is not finite: encoded again in %s"
                " (PRECISION=bf16 or fp32 avoids this)",
                len(rows),
                staged.chunks,
                str(dtype).removeprefix("torch."),
            )
            # Not kept: another overflow may never come.
            network = _Network(
                self._network.preprocessor, copy.deepcopy(self._network.encoder).to(dtype)
            )
            again, _ = encode(network, staged.samples[rows], staged.lengths[rows])
            repeated[rows.to(repeated.device)] = again[..., : repeated.shape[2]]
        if not _finite_rows(repeated, frames).all():
            raise ArithmeticError("the encoder's output is not finite, in fp32 neither")
        return repeated

    def warm_up(self, on_progress: Callable[[float], None] = lambda _: None) -> None:
        """Capture graphs for some seconds; report the share that is done.

        The largest is first, since later ones fit into the memory that its pass has freed. From
        small to large each would need blocks of its own: 680 MB instead of 150 for batches of up to
        31 s, in a simulation of torch's allocator. The others follow, small ones first.
        """
        largest = max(self.shapes.graphed, key=_samples_and_rows, default=None)
        shapes = sorted(self.shapes.graphed, key=lambda shape: shape != largest)
        deadline = self._clock() + _WARM_UP_S
        for done, shape in enumerate(shapes):
            if self._clock() >= deadline or self._graph_for(shape) is None:
                return
            on_progress((done + 1) / len(shapes))

    def forget_graphs(self) -> None:
        """Release the graphs and their memory; they are captured again when needed."""
        self._graphs.clear()
        self._pool = None

    def _graph_for(self, shape: tuple[int, int]) -> _Graph | None:
        """Return a shape's graph, captured if necessary; `None` = not available now."""
        known = self._graphs.get(shape)
        if known is not None or not self._graphs_work or self._clock() < self._retry_at:
            return known
        try:
            with turn_on(self._device):
                self._graphs[shape] = self._capture(shape)
        # torch, CUDA and its libraries raise many types of errors.
        except Exception as error:
            if is_memory_shortage(error):
                self._retry_at = self._clock() + _RETRY_S
                logger.warning("no memory for a CUDA graph of %d x %d samples", *shape)
            elif context_is_lost(self._device):
                raise
            else:
                self._give_up(error)
        return self._graphs.get(shape)

    def _capture(self, shape: tuple[int, int]) -> _Graph:
        """Capture a pass, and check it against the same pass without a graph."""
        import torch

        rows, width = shape
        noise = torch.randint(-3000, 3000, shape, generator=torch.Generator().manual_seed(0))
        samples = noise.to(torch.int16).to(self._device)
        lengths = torch.full((rows,), width, dtype=torch.int64, device=self._device)
        with torch.inference_mode():
            # In the first pass libraries choose kernels and allocate workspaces, which cannot be
            # captured.
            expected, _ = encode(self._network, samples, lengths)
            if not self._graphs:
                # Also after a failed capture: torch refuses a pool that no graph keeps.
                self._pool = torch.cuda.graph_pool_handle()
                # One for all: memory freed by a capture is only reused on the same stream.
                self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            graph = torch.cuda.CUDAGraph()
            with (
                own_workspaces(),
                ending_allocation_in(self._pool),
                # A capture that fails leaves its stream the current one.
                torch.cuda.stream(self._stream),
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                encoded, frames = encode(self._network, samples, lengths)
        graph.replay()
        error = float((encoded - expected).norm() / expected.norm())
        if not error <= _AGREEMENT:
            raise RuntimeError(f"a graph's output is wrong by {error:.2f}")
        return _Graph(graph, samples, lengths, encoded, frames)

    def _give_up(self, error: Exception) -> None:
        logger.warning(
            "no CUDA graphs of the encoder, short clips take longer"
            " (ENABLE_CUDA_GRAPHS=false avoids the try): %s",
            str(error).strip().partition("\n")[0],
        )
        self._graphs_work = False
        self.forget_graphs()

    def _size_positions(self, samples: int) -> None:
        """Extend the encoder's table of positions if it is too short."""
        with self._sizing:
            if samples > self._sized:
                # Graphs read the table that is replaced here.
                self.forget_graphs()
                encoder = self._network.encoder
                extend_positions(encoder, self._frames(samples), float_dtype(encoder))
                self._sized = samples

    def _frames(self, samples: int) -> int:
        """Return the encoder frames of `samples` samples, including what padding adds."""
        return samples // frame_samples(self._network) + 2


@dataclass(frozen=True, slots=True, eq=False)
class _Network:
    """The parts of NeMo's network that `encode` uses."""

    preprocessor: Any
    encoder: Any


def _samples_and_rows(shape: tuple[int, int]) -> tuple[int, int]:
    rows, width = shape
    return rows * width, rows


def _finite_rows(encoded: Tensor, frames: Tensor) -> Tensor:
    """Tell for each row of (B, D, T) whether its frames are finite; padding is ignored."""
    import torch

    is_padding = torch.arange(encoded.shape[2], device=encoded.device) >= frames[:, None]
    return (encoded.sum(1).isfinite() | is_padding).all(1)


def encode(network: Any, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Run features and encoder over waveforms of shape (B, samples), int16 or fp32 within +-1.

    Return the encoder's output on the model's device, fp32, shape (B, D, T), and lengths (B,).
    """
    import torch

    device = device_of(network)
    # A copy from pinned memory does not block the thread, and int16 halves its size.
    waveforms = samples.to(device, non_blocking=True)
    if waveforms.dtype == torch.int16:
        waveforms = waveforms.to(torch.float32).div_(32768)
    features, feature_lengths = network.preprocessor(
        input_signal=waveforms, length=lengths.to(device, non_blocking=True)
    )
    encoded, encoded_lengths = network.encoder(
        audio_signal=features.to(float_dtype(network.encoder)), length=feature_lengths
    )
    return encoded.float(), encoded_lengths


def device_of(network: Any) -> torch.device:
    """Return the model's device."""
    device: torch.device = next(network.encoder.parameters()).device
    return device


def frame_samples(network: Any) -> int:
    """Return the number of samples per encoder frame: 1,280 (80 ms)."""
    # The defaults are NeMo's.
    stride = float(network.cfg.preprocessor.get("window_stride", 0.01)) * SAMPLE_RATE
    return round(stride) * int(network.cfg.encoder.get("subsampling_factor", 4))
