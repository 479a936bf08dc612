"""Choose the encoder's precision by a self-test, cast it, and move the model to its device."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from parakeet_api.errors import SettingsError
from parakeet_api.model.cuda import has_bfloat16, turn_on
from parakeet_api.model.encoder import encode
from parakeet_api.model.nemo_internals import avoid_convolution_plans, share_fourier_plans
from parakeet_api.settings import Precision
from parakeet_api.transcript import SAMPLE_RATE

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor

logger = logging.getLogger(__name__)

EncoderPrecision = Literal["fp16", "bf16", "int8", "fp32"]

_LARGE_ENCODER = 100_000_000
"""Parameters. On a CPU smaller encoders gain nothing from bf16 or a second thread: with 2.8 M, 60
clips took 1.0 s either way, and up to 47 s with two threads on cores that others use too."""
_SELF_TEST_MAX_ERROR = 0.05
"""Relative encoder error against fp32. Half precision measures 0.004 on the demo model; with random
weights in full size bf16 measures 0.015 and int8 0.030. An overflow measures far more."""


def place(
    model: Any,
    *,
    device: str,
    precision: Precision,
    keep_cudnn: bool,
    read_encoder: Callable[[], Any],
) -> tuple[EncoderPrecision, str]:
    """Cast the encoder and move the model to its device; return the precision in use and why.

    With `keep_cudnn`, convolutions on a GPU use cuDNN, which builds a plan for each new shape.
    The encoder is cast in place, as a copy would double the memory: `read_encoder` returns it anew,
    in fp32 on the CPU, if a precision fails its self-test.
    Raises `SettingsError` for a precision that the device does not support.
    """
    if precision != "auto":
        _cast_encoder(model, precision, device=device)
        _move(model, device, keep_cudnn=keep_cudnn)
        return precision, "PRECISION"
    candidates = _candidates(model, device)
    reference = _self_test_output(model) if candidates else None
    reason = "exact; nothing faster is known for this model on this device"
    for candidate in candidates:
        _cast_encoder(model, candidate, device=device)
        _move(model, device, keep_cudnn=keep_cudnn)
        with turn_on(device):
            error = _relative_error(_self_test_output(model), reference)
        if error <= _SELF_TEST_MAX_ERROR:
            return candidate, f"self-test passed: encoder error {error:.4f} against fp32"
        reason = f"{candidate} failed its self-test: encoder error {error:.4f} against fp32"
        logger.warning("%s", reason)
        model.encoder = None
        # Its layers form reference cycles, which would keep it in memory.
        gc.collect()
        model.encoder = read_encoder()
    _move(model, device, keep_cudnn=keep_cudnn)
    return "fp32", reason


def _move(model: Any, device: str, *, keep_cudnn: bool) -> None:
    if device != "cpu":
        share_fourier_plans(model.preprocessor)
        if not keep_cudnn:
            avoid_convolution_plans(model.encoder)
    model.to(device)


def _candidates(model: Any, device: str) -> tuple[EncoderPrecision, ...]:
    if device != "cpu":
        # fp16 has three more bits than bf16 at the same speed, but can overflow.
        return ("fp16", "bf16") if has_bfloat16(device) else ("fp16",)
    if not is_large(model):
        return ()
    features = cpu_features()
    if features & {"avx512_bf16", "amx_bf16"}:
        # As fast as int8, with half its error.
        return ("bf16",)
    return ("int8",) if "avx2" in features else ()


def is_large(model: Any) -> bool:
    """Tell whether the encoder is large enough to gain from reduced precision on a CPU."""
    size: int = sum(parameter.numel() for parameter in model.encoder.parameters())
    return size >= _LARGE_ENCODER


def cpu_features() -> set[str]:
    """Return the processor's feature flags, as listed by Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.partition(":")[2].split())


def _cast_encoder(model: Any, precision: EncoderPrecision, *, device: str) -> None:
    """Cast only the encoder: casting more would round the mel filters and the probabilities."""
    import torch

    if precision == "int8":
        if device != "cpu":
            raise SettingsError("PRECISION='int8' is not available on a GPU: use fp16")
        from parakeet_api.model.int8_linear import quantize_linear_layers

        quantize_linear_layers(model.encoder)
    elif precision != "fp32":
        model.encoder.to(torch.float16 if precision == "fp16" else torch.bfloat16)


def _self_test_output(model: Any) -> Tensor:
    """Encode 4 s of varied sound: a voice-like sweep, a loud stretch, noise, near silence."""
    import torch

    generator = torch.Generator().manual_seed(0)
    time = torch.arange(SAMPLE_RATE) / SAMPLE_RATE
    harmonics = torch.arange(1, 20)[:, None]
    phase = 2 * torch.pi * (110 + 60 * time) * time
    sweep = (torch.sin(harmonics * phase) / harmonics).sum(0)
    noise = torch.randn(SAMPLE_RATE, generator=generator)
    waveform = torch.cat([0.1 * sweep, sweep.clamp(-1, 1), 0.1 * noise, 1e-4 * noise])[None]
    with torch.inference_mode():
        encoded, _ = encode(model, waveform, torch.tensor([waveform.shape[1]]))
    return encoded.cpu()


def _relative_error(output: Tensor, reference: Tensor | None) -> float:
    assert reference is not None
    error = float((output - reference).norm() / reference.norm())
    return error if np.isfinite(error) else float("inf")
