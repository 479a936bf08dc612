"""NeMo's token decoder, and the CUDA graphs that it captures of itself on a card."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor

logger = logging.getLogger(__name__)

_decoders: weakref.WeakSet[TokenDecoder] = weakref.WeakSet()
"""Those of this process that capture graphs."""
_registering = threading.Lock()


@dataclass(frozen=True, slots=True)
class GraphShape:
    """The largest batch that graphs are captured for."""

    rows: int
    frames: int
    """Encoder frames a row."""
    width: int
    """Numbers a frame."""


class TokenDecoder:
    """Find the tokens in an encoder's output.

    On a card the graphs own one set of buffers, so one caller at a time is let in. They are
    captured for the largest batch before the first one is decoded: NeMo captures anew whenever a
    batch has more rows or frames than the last capture, and for that batch alone, so a long chunk
    and a large batch in turns would each pay for a capture.
    """

    def __init__(self, nemo: Any, *, device: str, graphs: GraphShape | None) -> None:
        """Take over NeMo's decoding object, made for graphs if a shape for them is given."""
        self.nemo = nemo
        self._device = device
        self._graphs = graphs
        self._captured = False
        self._lock = threading.Lock() if device != "cpu" else contextlib.nullcontext()
        if graphs is not None:
            with _registering:
                _decoders.add(self)

    def decode(self, encoded: Tensor, lengths: Tensor) -> Sequence[Any]:
        """Find each row's tokens; gives NeMo's hypotheses."""
        with self._lock:
            self._capture_once()
            try:
                return self._decode(encoded, lengths)
            except Exception:
                # An error while a graph is captured leaves its state half made, and the next call
                # would use it.
                self._forget()
                raise

    def capture(self) -> None:
        """Capture the graphs, if that was not done yet; without them decoding is slower."""
        with self._lock:
            self._capture_once()

    def forget_graphs(self) -> None:
        """Give the graphs' memory back; they are captured anew when the next batch comes."""
        with self._lock:
            self._forget()

    def _decode(self, encoded: Tensor, lengths: Tensor) -> Sequence[Any]:
        found: Sequence[Any]
        found, *_ = self.nemo.decoding(encoder_output=encoded, encoded_lengths=lengths)
        return found

    def _capture_once(self) -> None:
        if self._graphs is None or self._captured:
            return
        import torch

        shape = self._graphs
        try:
            with torch.inference_mode():
                # Buffers are sized by the shape; a frame a row keeps the decoding itself short.
                self._decode(
                    torch.zeros(shape.rows, shape.width, shape.frames, device=self._device),
                    torch.ones(shape.rows, dtype=torch.long, device=self._device),
                )
        # NeMo, CUDA's bindings and torch each have errors of their own for it.
        except Exception as error:
            logger.warning(
                "no CUDA graphs, decoding is slower (ENABLE_CUDA_GRAPHS=false avoids the try): %s",
                str(error).strip().partition("\n")[0],
            )
            self._graphs = None
            self._forget()
            self.nemo.decoding.disable_cuda_graphs()
        else:
            self._captured = True

    def _forget(self) -> None:
        self._captured = False
        computer = getattr(self.nemo.decoding, "decoding_computer", None)
        if computer is not None and hasattr(computer, "reset_cuda_graphs_state"):
            computer.reset_cuda_graphs_state()


def forget_all_graphs() -> None:
    """Drop the graphs of every decoder in this process: before another model is loaded.

    A capture was seen to damage what `torch.load` read after it (NeMo issue 15423).
    """
    with _registering:
        decoders = list(_decoders)
    for decoder in decoders:
        decoder.forget_graphs()
