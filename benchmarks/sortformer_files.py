"""Sortformer checkpoints with random weights, of any size."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parakeet_api.model.restore import import_libraries

_ASR = "nemo.collections.asr"
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SortformerShape:
    """The sizes that differ between checkpoints."""

    mels: int
    channels: int
    """Of the subsampling convolutions."""
    layers: int
    width: int
    head_layers: int
    head_width: int
    speakers: int = 4
    cache: int = 188
    fifo: int = 188
    chunk: int = 188
    update: int = 144
    left: int = 1
    right: int = 1


FULL_SORTFORMER = SortformerShape(
    mels=128, channels=256, layers=17, width=512, head_layers=18, head_width=192
)
"""nvidia/diar_streaming_sortformer_4spk-v2: 117 million parameters."""


def write_sortformer(target: Path, shape: SortformerShape, *, is_async: bool = False) -> None:
    """Write a `.nemo` file of that shape; the same one each time."""
    import_libraries()
    import torch
    from nemo.collections.asr.models.sortformer_diar_models import SortformerEncLabelModel
    from omegaconf import OmegaConf

    torch.manual_seed(_SEED)
    config = _config(shape) | {"async_streaming": is_async}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SortformerEncLabelModel(OmegaConf.create(config)).eval().save_to(str(target))


def _config(shape: SortformerShape) -> dict[str, Any]:
    return {
        "target": f"{_ASR}.models.sortformer_diar_models.SortformerEncLabelModel",
        "sample_rate": 16_000,
        "max_num_of_spks": min(shape.speakers, 4),
        "streaming_mode": True,
        "model_defaults": {"fc_d_model": shape.width, "tf_d_model": shape.head_width},
        "preprocessor": {
            "_target_": f"{_ASR}.modules.AudioToMelSpectrogramPreprocessor",
            "normalize": "NA",
            "window_size": 0.025,
            "sample_rate": 16_000,
            "window_stride": 0.01,
            "window": "hann",
            "features": shape.mels,
            "n_fft": 512,
            "frame_splicing": 1,
            "dither": 1e-5,
        },
        "sortformer_modules": {
            "_target_": f"{_ASR}.modules.sortformer_modules.SortformerModules",
            "num_spks": shape.speakers,
            "fc_d_model": shape.width,
            "tf_d_model": shape.head_width,
            "subsampling_factor": 8,
            "spkcache_len": shape.cache,
            "fifo_len": shape.fifo,
            "chunk_len": shape.chunk,
            "spkcache_update_period": shape.update,
            "chunk_left_context": shape.left,
            "chunk_right_context": shape.right,
        },
        "encoder": {
            "_target_": f"{_ASR}.modules.ConformerEncoder",
            "feat_in": shape.mels,
            "n_layers": shape.layers,
            "d_model": shape.width,
            "subsampling": "dw_striding",
            "subsampling_factor": 8,
            "subsampling_conv_channels": shape.channels,
            "self_attention_model": "rel_pos",
            "n_heads": 8,
            "conv_kernel_size": 9,
        },
        "transformer_encoder": {
            "_target_": f"{_ASR}.modules.transformer.transformer_encoders.TransformerEncoder",
            "num_layers": shape.head_layers,
            "hidden_size": shape.head_width,
            "inner_size": 4 * shape.head_width,
            "num_attention_heads": 8,
            "pre_ln_final_layer_norm": True,
        },
        "loss": {"_target_": f"{_ASR}.losses.bce_loss.BCELoss"},
    }
