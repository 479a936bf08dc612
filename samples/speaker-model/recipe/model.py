"""Build the small Sortformer: NeMo's own class, 2.2 M parameters."""

from __future__ import annotations

from nemo.collections.asr.models.sortformer_diar_models import SortformerEncLabelModel
from omegaconf import OmegaConf

WIDTH = 128

CONFIG = {
    "target": "nemo.collections.asr.models.sortformer_diar_models.SortformerEncLabelModel",
    "sample_rate": 16_000,
    "license": "CC BY 4.0",
    "max_num_of_spks": 4,
    "streaming_mode": True,
    "async_streaming": False,
    "pil_weight": 0.2,
    "ats_weight": 0.8,
    "model_defaults": {"fc_d_model": WIDTH, "tf_d_model": WIDTH},
    "preprocessor": {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        "normalize": "NA",
        "window_size": 0.025,
        "sample_rate": 16_000,
        "window_stride": 0.01,
        "window": "hann",
        "features": 80,
        "n_fft": 512,
        "frame_splicing": 1,
        "dither": 0.0,
        "pad_to": 0,
    },
    "sortformer_modules": {
        "_target_": "nemo.collections.asr.modules.sortformer_modules.SortformerModules",
        "num_spks": 4,
        "dropout_rate": 0.0,
        "fc_d_model": WIDTH,
        "tf_d_model": WIDTH,
        "subsampling_factor": 8,
        "spkcache_len": 96,
        "fifo_len": 0,
        "chunk_len": 94,
        "spkcache_update_period": 94,
        "chunk_left_context": 1,
        "chunk_right_context": 1,
    },
    "encoder": {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder",
        "feat_in": 80,
        "feat_out": -1,
        "n_layers": 4,
        "d_model": WIDTH,
        "subsampling": "stacking",
        "subsampling_factor": 8,
        "causal_downsampling": False,
        "ff_expansion_factor": 4,
        "self_attention_model": "abs_pos",
        "n_heads": 4,
        "att_context_size": [-1, -1],
        "xscaling": False,
        "pos_emb_max_len": 1_000,
        "conv_kernel_size": 9,
        "conv_norm_type": "layer_norm",
        "dropout": 0.0,
        "dropout_pre_encoder": 0.0,
        "dropout_emb": 0.0,
        "dropout_att": 0.0,
        "use_pytorch_sdpa": True,
        "use_pytorch_sdpa_backends": ["MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION"],
    },
    "transformer_encoder": {
        "_target_": "nemo.collections.asr.modules.transformer.transformer_encoders.TransformerEncoder",
        "num_layers": 3,
        "hidden_size": WIDTH,
        "inner_size": 4 * WIDTH,
        "num_attention_heads": 4,
        "attn_score_dropout": 0.0,
        "attn_layer_dropout": 0.0,
        "ffn_dropout": 0.0,
        "hidden_act": "relu",
        "pre_ln": True,
        "pre_ln_final_layer_norm": True,
    },
    "loss": {
        "_target_": "nemo.collections.asr.losses.bce_loss.BCELoss",
        "weight": None,
        "reduction": "mean",
    },
    "optim": {"name": "adamw", "lr": 1e-3},
}


def build() -> SortformerEncLabelModel:
    return SortformerEncLabelModel(OmegaConf.create(CONFIG))
