"""Add scores to a transducer's tokens while NeMo decodes: its interface for fusion models.

NeMo adds them only where the model itself decided against the blank, so they change which token
is emitted, never whether one is: they insert no words into silence and restore none that were
skipped.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor


class FusionModel(Protocol):
    """Scores for the tokens of one batch: the part of `NGramGPULanguageModel` that NeMo calls."""

    vocab_size: int
    """Tokens, without the blank (V)."""

    def to(self, device: object) -> FusionModel:
        """Move the tables to a device."""
        ...

    def compatible_with_cuda_graphs(self) -> bool:
        """Tell whether `advance` reads the same memory in every batch."""
        ...

    def get_init_states(self, batch_size: int, bos: bool = True) -> Tensor:
        """Return each row's start state, shape (batch_size,); a beam's rows are adjacent."""
        ...

    def advance(self, states: Tensor, eos_id: int | None = None) -> tuple[Tensor, Tensor]:
        """Return each token's score and next state from states (N,); both have shape (N, V)."""
        ...


class BatchTables:
    """The base of fusion models whose tables are on the device, and specific to a batch."""

    _rows: Tensor
    """Start state of each row, shape (rows,)."""

    def to(self, device: object) -> Any:
        """Do nothing: all tensors are on the device already."""
        del device
        return self

    def compatible_with_cuda_graphs(self) -> bool:
        """Tell NeMo that the tables change from batch to batch."""
        return False

    def get_init_states(self, batch_size: int, bos: bool = True) -> Tensor:
        """Return each row's start state, shape (batch_size,); a beam's rows are adjacent."""
        del bos
        return self._rows.repeat_interleave(batch_size // len(self._rows))


def with_fusion(decoding: Any, models: Sequence[FusionModel]) -> Any:
    """Return a copy of NeMo's decoding object that adds the scores and shares all weights.

    A copy, since other threads use the original.
    """
    from nemo.collections.asr.parts.utils.batched_beam_decoding_utils import (
        BlankLMScoreMode,
        PruningMode,
    )

    computer = copy.copy(decoding.decoding_computer)
    # The tables are specific to this batch, so a graph cannot be captured.
    computer.cuda_graphs_mode = None
    computer.fusion_models = list(models)
    computer.fusion_models_alpha = [1.0] * len(models)
    # For beams: score all tokens, not only the most probable ones, and never the blank.
    computer.pruning_mode = PruningMode.LATE
    computer.blank_lm_score_mode = BlankLMScoreMode.NO_SCORE
    fused = copy.copy(decoding)
    fused.decoding_computer = computer
    return fused
