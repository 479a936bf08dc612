"""Linear layers whose weights are int8 on a CPU; activations are quantized as they come.

torch's own conversion gives the same weights, but packs each three times and all before the first
is released: 7 s and 0.6 GB more with the 0.6B model.

Imports torch at module level for a base class: import this module inside functions.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

_LARGEST = 127.5
_SMALLEST_SCALE = 1e-12
"""Of a matrix of zeros."""


class Int8Linear(nn.Module):
    """A linear layer with int8 weights; fp32 in, fp32 out."""

    def __init__(self, layer: nn.Linear) -> None:
        """Quantize a layer's weights, (out, in)."""
        super().__init__()
        weight = layer.weight.detach()
        scale = max(float(weight.abs().max()) / _LARGEST, _SMALLEST_SCALE)
        with warnings.catch_warnings():
            # Deprecated in favour of a package that is not a requirement.
            warnings.simplefilter("ignore")
            quantized = torch.quantize_per_tensor(weight, scale, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(quantized, layer.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply inputs of shape (..., in)."""
        # Sums of 7-bit activations cannot overflow the 16 bits that AVX2 adds them in.
        product: Tensor = torch.ops.quantized.linear_dynamic(
            inputs, self._packed, reduce_range=True
        )
        return product


def quantize_linear_layers(module: nn.Module) -> None:
    """Replace all linear layers within a module, one at a time, so that little memory is needed."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            quantize_linear_layers(child)
