"""Keywords inside NeMo's decoders: what a row's list adds to the scores of its next piece.

NeMo's own `GPUBiasingMultiModel` looks states up over the whole vocabulary, link by link, with a
wait for the device at each: without Triton that takes longer than the decoder's own step. Here each
state's arcs are complete, so one lookup is enough, and its number says whose list it is of, so that
beams, which pass no ids, work as well.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parakeet_api.keywords import KeywordTree

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor


class KeywordBoosts:
    """The trees of a batch's rows, in the place of NeMo's fusion models.

    Duck-typed after `NGramGPULanguageModel`: NeMo calls what is public here.
    """

    def __init__(
        self, trees: Sequence[KeywordTree | None], *, vocabulary: int, device: str
    ) -> None:
        """Take each row's tree; rows without one gain nothing."""
        import torch

        self.vocab_size = vocabulary
        distinct = list({id(tree): tree for tree in trees if tree is not None}.values())
        # State 0 is that of rows without a list.
        firsts = np.cumsum([1, *(tree.states for tree in distinct)])
        first_of = {id(tree): int(first) for tree, first in zip(distinct, firsts, strict=False)}
        arcs_before = np.cumsum([0, *(len(tree.pieces) for tree in distinct)])

        def joined(*parts: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.concatenate(parts)).to(device)

        starts = [tree.first_arc[:-1] + n for tree, n in zip(distinct, arcs_before, strict=False)]
        none = np.zeros(1, np.int64)
        self._first_arc = joined(none, *starts, arcs_before[-1:])
        # One arc more, of no piece, for the places that a state with few arcs does not need.
        self._pieces = joined(*(tree.pieces for tree in distinct), np.array([vocabulary]))
        self._targets = joined(*(tree.targets + first_of[id(tree)] for tree in distinct), none)
        self._bonuses = joined(*(tree.bonuses for tree in distinct), np.zeros(1, np.float32))
        self._places = torch.arange(max(1, *(tree.most_arcs for tree in distinct)), device=device)
        self._list_of = joined(
            none, *(np.full(tree.states, n, np.int64) for n, tree in enumerate(distinct, 1))
        )
        self._start_bonuses, self._start_targets = self._starts(distinct, first_of, device)
        self._rows = torch.tensor(
            [0 if tree is None else first_of[id(tree)] for tree in trees], device=device
        )

    def _starts(
        self, trees: Sequence[KeywordTree], first_of: dict[int, int], device: str
    ) -> tuple[Tensor, Tensor]:
        """Lay the arcs of the starts out over the vocabulary, shape (lists + 1, V + 1)."""
        import torch

        bonuses = np.zeros((len(trees) + 1, self.vocab_size + 1), np.float32)
        targets = np.zeros(bonuses.shape, np.int64)
        for number, tree in enumerate(trees, 1):
            first, arcs = first_of[id(tree)], slice(0, tree.first_arc[1])
            targets[number] = first
            targets[number, tree.pieces[arcs]] = tree.targets[arcs] + first
            bonuses[number, tree.pieces[arcs]] = tree.bonuses[arcs]
        return torch.from_numpy(bonuses).to(device), torch.from_numpy(targets).to(device)

    def to(self, device: object) -> KeywordBoosts:
        """Stay: everything is on the device already."""
        del device
        return self

    def compatible_with_cuda_graphs(self) -> bool:
        """Tell NeMo that the tables change from batch to batch."""
        return False

    def get_init_states(self, batch_size: int, bos: bool = True) -> Tensor:
        """Return each row's start; a beam's rows follow each other. Shape (batch_size,)."""
        del bos
        return self._rows.repeat_interleave(batch_size // len(self._rows))

    def advance(self, states: Tensor, eos_id: int | None = None) -> tuple[Tensor, Tensor]:
        """Return what each piece gains, and where it leads, from states (N,): both (N, V)."""
        import torch

        del eos_id
        lists = self._list_of[states]
        scores, targets = self._start_bonuses[lists], self._start_targets[lists]
        arcs = self._first_arc[states][:, None] + self._places
        arcs = torch.where(arcs < self._first_arc[states + 1][:, None], arcs, len(self._pieces) - 1)
        pieces = self._pieces[arcs]
        scores.scatter_(1, pieces, self._bonuses[arcs])
        targets.scatter_(1, pieces, self._targets[arcs])
        return scores[:, :-1], targets[:, :-1]


def boosted(decoding: Any, boosts: KeywordBoosts) -> Any:
    """Return a decoding object of NeMo's that adds boosts to its scores, and shares all weights.

    A copy: other threads decode with the original meanwhile. Whether a frame is blank stays NeMo's
    own decision: no boost makes a piece of silence, or of a word that was passed over.
    """
    from nemo.collections.asr.parts.utils.batched_beam_decoding_utils import (
        BlankLMScoreMode,
        PruningMode,
    )

    computer = copy.copy(decoding.decoding_computer)
    # The tables are of this batch alone: nothing that could be captured.
    computer.cuda_graphs_mode = None
    computer.fusion_models = [boosts]
    computer.fusion_models_alpha = [1.0]
    # For beams: every piece gains, not only the likeliest, and the blank nothing.
    computer.pruning_mode = PruningMode.LATE
    computer.blank_lm_score_mode = BlankLMScoreMode.NO_SCORE
    boosted_decoding = copy.copy(decoding)
    boosted_decoding.decoding_computer = computer
    return boosted_decoding
