"""Run NeMo's token decoder, and manage the CUDA graphs that it captures on a GPU."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parakeet_api.model.cuda import context_is_lost, is_memory_shortage, keep_memory, turn_on
from parakeet_api.model.fusion import FusionModel, with_fusion
from parakeet_api.model.nemo_internals import own_workspaces

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor

logger = logging.getLogger(__name__)

_RETRY_S = 30.0
"""Wait before the next capture after one that ran out of memory."""
_CHECK_ROWS = 8
"""Rows of the batch on which graphs are checked."""
_CHECK_FRAMES = 100
"""8 s: enough for some hundred steps of the decoder's loops."""
_CHECK_AGREEING = 7
"""Rows that must agree. Rounding may change one near tie, since a beam's graph computes in the
largest batch's shape; a graph whose memory was overwritten agrees in none."""


@dataclass(frozen=True, slots=True)
class GraphShape:
    """The largest batch that graphs are captured for."""

    rows: int
    frames: int
    """Encoder frames per row."""
    width: int
    """Values per frame."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The tokens of a batch, on the model's device; rows are padded at their end."""

    ids: Tensor
    """Shape (B, U), int64."""
    frames: Tensor
    """Encoder frame of each, shape (B, U), int64."""
    durations: Tensor | None
    """Duration of each in frames, shape (B, U), int64; `None` = run one more joint pass."""
    counts: list[int]
    """Tokens in each row; the maximum is U."""
    logprobs: Tensor | None = None
    """Log-probability of each, shape (B, U); `None` = run one more joint pass."""


class TokenDecoder:
    """Decode an encoder's output to tokens.

    The graphs are captured for the largest batch before the first batch is decoded. NeMo would
    capture again whenever a batch has more rows or frames than the last capture, and only for that
    batch: a long chunk and a large batch in turns would each cost a capture.

    Graphs share one set of buffers, so only one caller may decode at a time. All memory that they
    write is in a private pool: NeMo captures the loops on streams that torch's allocator does not
    attribute to the capture, so their memory would otherwise be freed when the capture ends.
    """

    supports_keywords = True
    """Whether `decode` takes fusion models whose states change from token to token."""

    def __init__(
        self,
        nemo: Any,
        *,
        device: str,
        graphs: GraphShape | None,
        beam: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap NeMo's decoding object, which supports graphs if `graphs` is given."""
        self.nemo = nemo
        self._device = device
        self._graphs = graphs
        self._beam = beam
        self._captured = False
        self._pool: Any = None
        """Must live as long as the graphs captured in it."""
        self._clock = clock
        self._retry_at = clock()

    @property
    def uses_graphs(self) -> bool:
        """Whether the next batch is decoded with graphs."""
        return self._captured

    def decode(
        self, encoded: Tensor, lengths: Tensor, fusion: Sequence[FusionModel] = ()
    ) -> Tokens:
        """Decode fp32 encoder output of shape (B, D, T), lengths (B,), to each row's tokens.

        With fusion models graphs are not used: their tables are specific to the batch.
        """
        import torch

        with turn_on(self._device), torch.inference_mode():
            self._capture_once()
            try:
                return self._decode(encoded, lengths, fusion)
            except Exception:
                # A graph's buffers may be partly written, which would affect the next batch.
                self._forget()
                raise

    def capture(self) -> None:
        """Capture the graphs if they are not captured yet; without them decoding is slower."""
        with turn_on(self._device):
            self._capture_once()

    def forget_graphs(self) -> None:
        """Release the graphs and their memory; the next batch captures them again."""
        with turn_on(self._device):
            self._forget()

    def _decode(
        self, encoded: Tensor, lengths: Tensor, fusion: Sequence[FusionModel] = ()
    ) -> Tokens:
        decoding: Any = self.nemo.decoding
        if fusion:
            decoding = with_fusion(decoding, fusion)
        with self._graphs_as_captured(encoded):
            if self._beam:
                return _of_beams(*decoding(encoder_output=encoded, encoded_lengths=lengths))
            # Not through `decoding`: it would split the decoder's state for all rows of the graphs'
            # shape, and copy their whole buffers to the host.
            hypotheses, _ = decoding.decoding_computer(x=encoded.transpose(1, 2), out_len=lengths)
        counts = hypotheses.current_lengths[: len(lengths)].tolist()
        longest = max(counts)
        return Tokens(
            ids=hypotheses.transcript[: len(counts), :longest],
            frames=hypotheses.timestamps[: len(counts), :longest],
            # Without graphs NeMo overwrites those of other rows (issue 16097).
            durations=None,
            counts=counts,
        )

    @contextlib.contextmanager
    def _graphs_as_captured(self, encoded: Tensor) -> Iterator[None]:
        """Let NeMo use graphs that are captured for such a batch; keep it from capturing others."""
        if self._captured and self._fits(encoded):
            yield
            return
        computer = self.nemo.decoding.decoding_computer
        mode, computer.cuda_graphs_mode = computer.cuda_graphs_mode, None
        try:
            yield
        finally:
            computer.cuda_graphs_mode = mode

    def _fits(self, encoded: Tensor) -> bool:
        rows, _, frames = encoded.shape
        shape = self._graphs
        return shape is not None and rows <= shape.rows and frames <= shape.frames

    def _capture_once(self) -> None:
        if self._graphs is None or self._captured or self._clock() < self._retry_at:
            return
        computer = self.nemo.decoding.decoding_computer
        mode = computer.cuda_graphs_mode
        try:
            self._capture(self._graphs)
            differing = self._rows_that_differ(self._graphs)
        # NeMo, CUDA's bindings and torch raise many types of errors.
        except Exception as error:
            self._forget()
            # NeMo has left the loops out of all later graphs, but the shortage may pass.
            computer.cuda_graphs_mode = mode
            if is_memory_shortage(error):
                self._retry_at = self._clock() + _RETRY_S
                logger.warning("no memory for CUDA graphs now, decoding is slower: %s", error)
                return
            if context_is_lost(self._device):
                raise
            self._give_up(str(error).strip().partition("\n")[0])
        else:
            if differing > _CHECK_ROWS - _CHECK_AGREEING:
                self._give_up(f"they give other tokens in {differing} of {_CHECK_ROWS} rows")
            elif computer.cuda_graphs_mode is not mode:
                logger.warning("NeMo could not capture the decoder's loops, decoding is slower")

    def _capture(self, shape: GraphShape) -> None:
        import torch

        self._captured = True
        # The minimum length of NeMo's buffers, so that a batch of one frame per row is enough to
        # size them: a full-length batch would take 800 MB of a large GPU, and the pool would keep
        # it.
        self.nemo.decoding.decoding_computer.INITIAL_MAX_TIME = shape.frames
        encoded = torch.zeros(shape.rows, shape.width, 1, device=self._device)
        lengths = torch.ones(shape.rows, dtype=torch.long, device=self._device)
        with torch.inference_mode(), self._own_pool():
            self._decode(encoded, lengths)

    @contextlib.contextmanager
    def _own_pool(self) -> Iterator[None]:
        if self._device == "cpu":
            yield
            return
        import torch

        self._pool = torch.cuda.MemPool()
        with torch.cuda.use_mem_pool(self._pool, self._device), own_workspaces():
            yield

    def _rows_that_differ(self, shape: GraphShape) -> int:
        """Decode noise with and without graphs; count the rows whose tokens differ.

        This detects a driver or a torch version with faulty graphs before a user does.
        """
        import torch

        rows, frames = min(_CHECK_ROWS, shape.rows), min(_CHECK_FRAMES, shape.frames)
        # Empty rows, so that both ways compute in the same shape: in another one, rounding may
        # decide a near tie.
        noise = torch.zeros(rows if self._beam else shape.rows, shape.width, frames)
        noise[:rows].normal_(generator=torch.Generator().manual_seed(0))
        noise = noise.to(self._device)
        lengths = torch.zeros(len(noise), dtype=torch.long, device=self._device)
        lengths[:rows] = frames
        if self._device != "cpu":
            # Release memory that is not in the graphs' pool, so that its misuse shows in this test.
            torch.cuda.empty_cache()
        with torch.inference_mode():
            with_graphs = _rows(self._decode(noise, lengths))
            self._captured = False
            without = _rows(self._decode(noise, lengths))
            self._captured = True
        return sum(one != other for one, other in zip(with_graphs, without, strict=True))

    def _give_up(self, reason: str) -> None:
        logger.warning(
            "no CUDA graphs, decoding is slower (ENABLE_CUDA_GRAPHS=false avoids the try): %s",
            reason,
        )
        self._graphs = None
        self._forget()
        self.nemo.decoding.disable_cuda_graphs()

    def _forget(self) -> None:
        self._captured = False
        computer = getattr(self.nemo.decoding, "decoding_computer", None)
        if computer is not None and hasattr(computer, "reset_cuda_graphs_state"):
            computer.reset_cuda_graphs_state()
        # After the graphs that write into it.
        pool, self._pool = self._pool, None
        if pool is not None and context_is_lost(self._device):
            keep_memory(pool)


def _of_beams(hypotheses: list[Any]) -> Tokens:
    """Gather NeMo's hypotheses, whose fields are tensors, arrays or, when empty, lists."""
    import torch

    def column(name: str) -> Tensor:
        rows = [torch.as_tensor(getattr(h, name), dtype=torch.long).cpu() for h in hypotheses]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    has_durations = all(h.token_duration is not None for h in hypotheses)
    return Tokens(
        ids=column("y_sequence"),
        frames=column("timestamp"),
        durations=column("token_duration") if has_durations else None,
        counts=[len(h.y_sequence) for h in hypotheses],
    )


def _rows(tokens: Tokens) -> list[list[tuple[int, int]]]:
    """Return each row's tokens and their frames."""
    columns = zip(tokens.ids.tolist(), tokens.frames.tolist(), tokens.counts, strict=True)
    return [list(zip(ids[:count], frames[:count], strict=True)) for ids, frames, count in columns]
