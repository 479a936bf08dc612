"""NeMo's streaming Sortformer: load a checkpoint, and continue recordings chunk by chunk.

Does not use NeMo's `diarize()`, which reads files and keeps a whole recording in memory, but its
step: [speaker cache, FIFO, chunk] -> probabilities of the chunk. Cache and FIFO are bounded, so
memory does not grow with the recording, and they keep each speaker's number.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parakeet_api.errors import DeviceLostError, ModelLoadError, ServiceUnavailableError
from parakeet_api.model.cuda import (
    context_is_lost,
    current,
    is_memory_shortage,
    limit_device_memory,
    release_cached_memory,
    turn_on,
)
from parakeet_api.model.devices import Gpu
from parakeet_api.model.heap import HeapTrimmer
from parakeet_api.model.loading import ModelInfo
from parakeet_api.model.nemo_internals import (
    avoid_convolution_plans,
    extend_positions,
    float_dtype,
    share_fourier_plans,
    sortformer_step,
    use_fused_attention,
)
from parakeet_api.model.restore import import_libraries, restore_network
from parakeet_api.settings import Settings
from parakeet_api.speech.diarization import FloatArray

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkShape:
    """Sizes of the chunks that a checkpoint was configured for, in mel frames."""

    chunk: int
    left: int
    right: int
    hop: int
    """Samples from one mel frame to the next."""
    reach: int
    """Samples on each side of a mel frame's centre that it depends on."""

    @property
    def margin(self) -> int:
        """Mel frames at the start of a stretch of samples that depend on samples before it.

        The pre-emphasis reaches one sample further back.
        """
        return -(-(self.reach + 1) // self.hop)


@dataclass(slots=True, eq=False)
class SpeakerState:
    """What a recording's past left behind: NeMo's speaker cache and FIFO."""

    tensors: Any


def load_sortformer(
    path: Path, on_warm_up: Callable[[float], None], *, settings: Settings, gpu: Gpu | None
) -> Sortformer:
    """Restore a `.nemo` file for inference in fp32.

    There is no warm-up, so `on_warm_up` is called once. Raises `CheckpointError`, naming the file,
    if it is not complete; `ModelLoadError` if the GPU has too little free memory,
    `DeviceLostError` if its context is lost.
    """
    import_libraries()
    device = gpu.device if gpu else "cpu"
    if gpu is not None:
        limit_device_memory(device, settings.gpu_memory_fraction)
    model = restore_network(path, setting="DIARIZER_PATH")
    gc.collect()
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    use_fused_attention(model.encoder)
    try:
        with current(device):
            if gpu is not None:
                share_fourier_plans(model.preprocessor)
                avoid_convolution_plans(model.encoder)
            model.to(device)
            extend_positions(model.encoder, _longest(model), float_dtype(model.encoder))
    except RuntimeError as error:
        if is_memory_shortage(error):
            raise ModelLoadError(
                "The GPU has not enough free memory for the speaker model."
            ) from error
        if context_is_lost(device):
            raise DeviceLostError from error
        raise
    on_warm_up(1.0)
    return Sortformer(model, device=device, trims_heap=settings.aggressive_memory_cleanup)


def _longest(model: Any) -> int:
    """Return the most frames that one step encodes."""
    modules = model.sortformer_modules
    context = modules.chunk_left_context + modules.chunk_right_context
    return int(modules.spkcache_len + modules.fifo_len + modules.chunk_len + context)


class Sortformer:
    """A checkpoint ready for inference; nothing in it changes between steps."""

    def __init__(self, model: Any, *, device: str, trims_heap: bool = False) -> None:
        self._model = model
        self._heap = HeapTrimmer() if trims_heap and device == "cpu" else None
        self.info = ModelInfo(
            device=device,
            precision="fp32",
            precision_reason="exact",
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            decoding="streaming",
        )
        modules, features = model.sortformer_modules, model.cfg.preprocessor
        factor = int(modules.subsampling_factor)
        rate = int(features.sample_rate)
        window = round(float(features.window_size) * rate)
        self.shape = ChunkShape(
            chunk=modules.chunk_len * factor,
            left=modules.chunk_left_context * factor,
            right=modules.chunk_right_context * factor,
            hop=round(float(features.window_stride) * rate),
            reach=int(features.get("n_fft") or 2 ** math.ceil(math.log2(window))) // 2,
        )

    def new_state(self) -> SpeakerState:
        """Return the state before a recording begins."""
        return SpeakerState(
            self._model.sortformer_modules.init_streaming_state(
                batch_size=1, async_streaming=self._model.async_streaming, device=self.info.device
            )
        )

    def step(
        self,
        state: SpeakerState,
        samples: FloatArray,
        *,
        skip: int,
        frames: int,
        left: int,
        right: int,
    ) -> FloatArray:
        """Continue a recording by one chunk; return its probabilities, float32 [frames, speakers].

        Of the samples' mel frames, the first `skip` are dropped and `frames` used; `left` and
        `right` of these are the chunk's context. Raises `ServiceUnavailableError` if the GPU has
        not enough free memory, `DeviceLostError` if it fails for the rest of the process.
        """
        for is_last_try in (False, True):
            try:
                return self._step(state, samples, slice(skip, skip + frames), (left, right))
            except RuntimeError as error:
                if not is_memory_shortage(error):
                    if context_is_lost(self.info.device):
                        raise DeviceLostError from error
                    raise
            # After the handler: the error referred to the tensors of the failed step.
            release_cached_memory(self.info.device)
            if is_last_try:
                break
        raise ServiceUnavailableError("The GPU has not enough free memory to tell speakers apart.")

    def close(self) -> None:
        """Drop the model, and release GPU memory cached by torch."""
        del self._model
        # NeMo's modules form reference cycles, which would keep their memory in use.
        gc.collect()
        if not context_is_lost(self.info.device):
            release_cached_memory(self.info.device)

    def _step(
        self, state: SpeakerState, samples: FloatArray, used: slice, context: tuple[int, int]
    ) -> FloatArray:
        import torch

        device = self.info.device
        with turn_on(device), torch.inference_mode():
            waveform = torch.from_numpy(np.ascontiguousarray(samples, np.float32)[None]).to(device)
            count = torch.tensor([waveform.shape[1]], device=device)
            features, _ = self._model.preprocessor(input_signal=waveform, length=count)
            tensors, probabilities = sortformer_step(
                self._model, state.tensors, features[:, :, used], context
            )
            result: FloatArray = probabilities[0].float().cpu().numpy()
        # Only now: a step that failed is repeated from the state before it.
        state.tensors = tensors
        if self._heap is not None:
            self._heap.trim_if_grown()
        return result
