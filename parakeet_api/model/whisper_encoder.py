"""The front end of the small English model: Whisper's encoder, which NeMo lacks.

That model's encoder is NeMo's `ConformerEncoder` with the encoder of Whisper tiny.en instead of its
subsampling. NeMo builds its own encoder, and this module replaces the subsampling before the
weights are loaded, so NeMo's list of permitted classes need not change.

Imports torch and NeMo at module level for base classes: import this module inside functions.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from tarfile import TarInfo
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from parakeet_api.model.weights import InPlaceConnector

_TARGET = re.compile(r"(?m)^(\s+_target_: )whisper_conformer\.WhisperConformer$")
"""How the checkpoint's configuration names its encoder."""
_CONFORMER = r"\1nemo.collections.asr.modules.ConformerEncoder"

_MELS = 80
_WIDTH = 384
_HEADS = 6
_LAYERS = 4
"""These four are Whisper tiny's."""
_WINDOW = 1500
"""Frames of 20 ms: the 30 s that Whisper was trained on and has positions for."""
_STACKED = 4
"""Frames of 20 ms stacked to one of 80 ms."""
_SILENCE = -10.0
"""Decimal logarithm of the power used after a row's end: near silence."""
_RANGE = 8.0
"""Decades below the loudest cell that are kept, as in Whisper."""
_LOUDEST = 0.78
"""Level in decades to which the loudest cell of each row is scaled, as in training."""


class WhisperConnector(InPlaceConnector):
    """Restore a checkpoint whose encoder begins with Whisper's."""

    def load_instance_with_state_dict(self, instance: Any, state_dict: Any, strict: bool) -> None:
        """Put Whisper's encoder into NeMo's model, then load the weights of both."""
        instance.encoder.pre_encode = WhisperFrontEnd(instance.encoder.d_model)
        super().load_instance_with_state_dict(instance, state_dict, strict)


def connector_for(folder: Path, archive: Path, weights: TarInfo | None) -> InPlaceConnector:
    """Return the connector that restores the checkpoint unpacked into a folder.

    Its weights are read from the archive if its entry of them is given.
    If its encoder begins with Whisper's, change its configuration to name NeMo's class.
    """
    config = folder / "model_config.yaml"
    text, found = _TARGET.subn(_CONFORMER, config.read_text(encoding="utf-8"))
    if found:
        config.write_text(text, encoding="utf-8")
    return (WhisperConnector if found else InPlaceConnector)(folder, archive, weights)


class WhisperFrontEnd(nn.Module):
    """Whisper's encoder in windows of 30 s, four of its frames stacked to one of 80 ms.

    Shapes depend on those of the input alone and nothing is read back from the device, so a pass
    can be captured as a CUDA graph.
    """

    def __init__(self, output_width: int) -> None:
        """Build layers that output frames of width `output_width`."""
        super().__init__()
        self.conv1 = nn.Conv1d(_MELS, _WIDTH, 3, padding=1)
        self.conv2 = nn.Conv1d(_WIDTH, _WIDTH, 3, stride=2, padding=1)
        self.pos: Tensor
        self.register_buffer("pos", torch.zeros(_WINDOW, _WIDTH))
        self.blocks = nn.ModuleList(TransformerLayer(_WIDTH, _HEADS) for _ in range(_LAYERS))
        self.norm = nn.LayerNorm(_WIDTH)
        self.out = nn.Linear(_STACKED * _WIDTH, output_width)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Turn natural-log mel features (B, T, 80), 10 ms each, into (B, ceil(T / 8), width).

        `lengths` (B,) are the features of each row that count; so the second result for frames.
        """
        levelled = _levelled(x, lengths).to(self.conv1.weight.dtype)
        frames = functional.gelu(self.conv1(levelled.transpose(1, 2)))
        frames = functional.gelu(self.conv2(frames)).transpose(1, 2)
        counts = (lengths + 1) // 2
        frames = self._transformed(frames, counts)
        frames = frames * _is_present(frames, counts)[..., None]
        frames = functional.pad(frames, (0, 0, 0, -frames.shape[1] % _STACKED))
        stacked = frames.reshape(len(frames), -1, _STACKED * _WIDTH)
        return self.out(stacked), (counts + _STACKED - 1) // _STACKED

    def _transformed(self, frames: Tensor, counts: Tensor) -> Tensor:
        """Run the transformer separately over each window of 30 s and over the remainder.

        The remainder is not padded to a window: with the batch's padding a chunk of 30 s is a few
        frames longer than one window, and would take twice as long.
        """
        rows, time, width = frames.shape
        whole = time - time % _WINDOW
        parts = []
        if whole:
            windows = frames[:, :whole].reshape(-1, _WINDOW, width)
            starts = torch.arange(0, whole, _WINDOW, device=frames.device)
            left = (counts[:, None] - starts).flatten()
            parts.append(self._window(windows, left).reshape(rows, whole, width))
        if time > whole:
            parts.append(self._window(frames[:, whole:], counts - whole))
        return torch.cat(parts, 1)

    def _window(self, frames: Tensor, counts: Tensor) -> Tensor:
        """Run the transformer over (B, T, D), of which `counts` (B,) frames are present."""
        # A window after a row's end attends to its first frame; with no frame, it would be NaN.
        mask = _is_present(frames, counts.clamp(min=1))
        frames = frames + self.pos[: frames.shape[1]]
        for block in self.blocks:
            frames = block(frames, mask[:, None, None])
        normalized: Tensor = self.norm(frames)
        return normalized


class TransformerLayer(nn.Module):
    """A layer of Whisper's encoder."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Take frames (B, T, D) and which of them are attended to, (B, 1, 1, T)."""
        rows, time, width = x.shape
        heads = self.qkv(self.norm1(x)).view(rows, time, 3, self._heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).reshape(rows, time, width))
        mixed: Tensor = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return mixed


def _levelled(features: Tensor, lengths: Tensor) -> Tensor:
    """Scale natural-log mel features as Whisper does, every row at the same level; in fp32.

    Half precision would round logarithms of -16 to 0.06, before the level is taken out.
    """
    decades = features.float() / math.log(10)
    decades = decades.masked_fill(~_is_present(features, lengths)[..., None], _SILENCE)
    loudest = decades.amax((1, 2), keepdim=True)
    return ((decades - loudest).clamp(min=-_RANGE) + _LOUDEST + 4) / 4


def _is_present(frames: Tensor, counts: Tensor) -> Tensor:
    """Tell which frames of (B, T, D) are before each row's end, shape (B, T)."""
    return torch.arange(frames.shape[1], device=frames.device) < counts[:, None]
