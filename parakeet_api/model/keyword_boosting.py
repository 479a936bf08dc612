"""Boost keywords inside NeMo's decoders: add bonuses to the scores of a row's next piece.

NeMo's `GPUBiasingMultiModel` looks states up over the whole vocabulary, following back-off links
with a device synchronisation at each: without Triton that takes longer than the decoder's own
step. Here each state's arcs are complete, so one lookup is enough. The state's number identifies
its list, so beam search, which passes no ids, works as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parakeet_api.keywords import KeywordTree
from parakeet_api.model.fusion import BatchTables

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor


class KeywordBoosts(BatchTables):
    """The keyword trees of a batch's rows, used as a fusion model by NeMo.

    Implements `FusionModel`.
    """

    def __init__(
        self, trees: Sequence[KeywordTree | None], *, vocabulary: int, device: str
    ) -> None:
        """Join the trees of all rows into one table; rows without a tree get no bonus."""
        import torch

        self.vocab_size = vocabulary
        distinct = list({id(tree): tree for tree in trees if tree is not None}.values())
        # State 0 is for rows without a list.
        first_states = np.cumsum([1, *(tree.states for tree in distinct)])
        first_of = {
            id(tree): int(first) for tree, first in zip(distinct, first_states, strict=False)
        }
        arcs_before = np.cumsum([0, *(len(tree.pieces) for tree in distinct)])

        def joined(*parts: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.concatenate(parts)).to(device)

        starts = [tree.first_arc[:-1] + n for tree, n in zip(distinct, arcs_before, strict=False)]
        none = np.zeros(1, np.int64)
        self._first_arc = joined(none, *starts, arcs_before[-1:])
        # One more arc, without a piece, pads the arcs of states that have few.
        self._pieces = joined(*(tree.pieces for tree in distinct), np.array([vocabulary]))
        self._targets = joined(*(tree.targets + first_of[id(tree)] for tree in distinct), none)
        self._bonuses = joined(*(tree.bonuses for tree in distinct), np.zeros(1, np.float32))
        self._arc_offsets = torch.arange(
            max(1, *(tree.most_arcs for tree in distinct)), device=device
        )
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
        """Expand the arcs of the start states over the vocabulary, shape (lists + 1, V + 1)."""
        import torch

        bonuses = np.zeros((len(trees) + 1, self.vocab_size + 1), np.float32)
        targets = np.zeros(bonuses.shape, np.int64)
        for number, tree in enumerate(trees, 1):
            first, arcs = first_of[id(tree)], slice(0, tree.first_arc[1])
            targets[number] = first
            targets[number, tree.pieces[arcs]] = tree.targets[arcs] + first
            bonuses[number, tree.pieces[arcs]] = tree.bonuses[arcs]
        return torch.from_numpy(bonuses).to(device), torch.from_numpy(targets).to(device)

    def advance(self, states: Tensor, eos_id: int | None = None) -> tuple[Tensor, Tensor]:
        """Return each piece's bonus and next state from states (N,); both have shape (N, V)."""
        import torch

        del eos_id
        lists = self._list_of[states]
        scores, targets = self._start_bonuses[lists], self._start_targets[lists]
        arcs = self._first_arc[states][:, None] + self._arc_offsets
        arcs = torch.where(arcs < self._first_arc[states + 1][:, None], arcs, len(self._pieces) - 1)
        pieces = self._pieces[arcs]
        scores.scatter_(1, pieces, self._bonuses[arcs])
        targets.scatter_(1, pieces, self._targets[arcs])
        return scores[:, :-1], targets[:, :-1]
