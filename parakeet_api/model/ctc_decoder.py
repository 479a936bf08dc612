"""Greedy CTC decoding: each frame's most probable label, without repetitions and blanks.

As in a transducer, scores of fusion models change which token is emitted, never whether one is: a
frame whose most probable label is the blank keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from parakeet_api.model.fusion import FusionModel
from parakeet_api.model.token_decoder import TokenDecoder, Tokens

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor


class CtcDecoder(TokenDecoder):
    """Decode an encoder's output greedily, without CUDA graphs."""

    supports_keywords = False

    def __init__(self, network: Any, *, device: str) -> None:
        """Wrap NeMo's network, whose decoder scores every label of every frame."""
        super().__init__(network.decoding, device=device, graphs=None)
        self._network = network

    def _decode(
        self, encoded: Tensor, lengths: Tensor, fusion: Sequence[FusionModel] = ()
    ) -> Tokens:
        import torch

        # Log-probabilities, (B, T, labels); the last label is the blank.
        scores = self._network.decoder(encoder_output=encoded)
        blank = scores.shape[-1] - 1
        labels = scores.argmax(-1)
        if fusion:
            labels = torch.where(labels == blank, blank, _best_token(scores[..., :blank], fusion))
        scored = scores.gather(-1, labels[..., None])[..., 0]
        before = torch.nn.functional.pad(labels, (1, 0), value=blank)[:, :-1]
        present = torch.arange(labels.shape[1], device=labels.device) < lengths[:, None]
        begins = (labels != blank) & (labels != before) & present
        counts = begins.sum(1).tolist()
        # Not row by row: on a GPU each row would wait for it, and take a dozen kernels.
        rows, frames = begins.nonzero(as_tuple=True)
        places = begins.cumsum(1)[rows, frames] - 1

        def padded(values: Tensor) -> Tensor:
            column = values.new_zeros(len(counts), max(counts))
            column[rows, places] = values
            return column

        return Tokens(
            ids=padded(labels[rows, frames]),
            frames=padded(frames),
            durations=None,
            counts=counts,
            logprobs=padded(scored[rows, frames]),
        )


def _best_token(scores: Tensor, fusion: Sequence[FusionModel]) -> Tensor:
    """Return each frame's best token, (B, T), of scores (B, T, V) with those of fusion models."""
    for model in fusion:
        added, _ = model.advance(model.get_init_states(len(scores)))
        scores = scores + added[:, None]
    return scores.argmax(-1)
