"""A checkpoint as large as `nvidia/parakeet-tdt-0.6b-v2`, with random weights.

It is the demo model's `.nemo` file scaled up, so the service loads and runs it as it does NVIDIA's:
speed, memory and the rounding of each precision are measured without a download. Its tokens are
noise.
"""

from __future__ import annotations

import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fidelity import DEMO_MODEL
from parakeet_api.model.encoder import encode
from parakeet_api.model.restore import import_libraries
from parakeet_api.transcript import SAMPLE_RATE

_CONFIG = "model_config.yaml"
_WEIGHTS = "model_weights.ckpt"
_SEED = 0
_BLANK_BIAS = 0.3
"""With this value it emits 3 tokens a second, as for speech; with 1.0 none."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions that differ from the demo model; the architecture is the same."""

    layers: int
    width: int
    heads: int
    subsampling_channels: int
    mel: int
    predictor_width: int
    predictor_layers: int
    vocabulary: int
    """Pieces, without the blank; at least the demo model's 600."""


FULL = Shape(
    layers=24,
    width=1024,
    heads=8,
    subsampling_channels=256,
    mel=128,
    predictor_width=640,
    predictor_layers=2,
    vocabulary=1024,
)
"""nvidia/parakeet-tdt-0.6b-v2: 618 million parameters."""


def write_checkpoint(target: Path, shape: Shape) -> None:
    """Write a `.nemo` file of that shape; the same one each time."""
    import_libraries()
    import torch
    from nemo.collections.asr.models import EncDecRNNTBPEModel
    from omegaconf import OmegaConf

    with tempfile.TemporaryDirectory(prefix="full-size-") as name:
        folder = Path(name)
        with tarfile.open(DEMO_MODEL) as demo:
            demo.extractall(folder, filter="data")
        config = OmegaConf.load(folder / _CONFIG)
        pieces = _grow_tokenizer(folder, config, shape.vocabulary)
        _grow(config, shape, pieces)
        OmegaConf.save(config, folder / _CONFIG)
        torch.manual_seed(_SEED)
        model = EncDecRNNTBPEModel(cfg=_resolved(config, folder)).eval()
        _let_it_speak(model, shape.vocabulary)
        torch.save(model.state_dict(), folder / _WEIGHTS)
        with tarfile.open(target, "w") as tar:
            for file in sorted(folder.iterdir()):
                tar.add(file, arcname=f"./{file.name}")


def _grow_tokenizer(folder: Path, config: Any, vocabulary: int) -> list[str]:
    """Add pieces that no text contains; return all of them."""
    from sentencepiece import sentencepiece_model_pb2 as protobuf

    path = folder / _artifact(config.tokenizer.model_path)
    tokenizer: Any = vars(protobuf)["ModelProto"]()
    tokenizer.ParseFromString(path.read_bytes())
    for number in range(len(tokenizer.pieces), vocabulary):
        tokenizer.pieces.add(piece=f"\u2581piece{number}", score=-float(number))
    tokenizer.trainer_spec.vocab_size = vocabulary
    path.write_bytes(tokenizer.SerializeToString())
    return [piece.piece for piece in tokenizer.pieces]


def _grow(config: Any, shape: Shape, pieces: list[str]) -> None:
    config.labels = pieces
    config.preprocessor.features = shape.mel
    config.model_defaults.enc_hidden = shape.width
    config.model_defaults.pred_hidden = shape.predictor_width
    config.model_defaults.joint_hidden = shape.predictor_width
    encoder = config.encoder
    encoder.feat_in, encoder.n_layers, encoder.d_model = shape.mel, shape.layers, shape.width
    encoder.n_heads = shape.heads
    encoder.subsampling_conv_channels = shape.subsampling_channels
    config.decoder.vocab_size = len(pieces)
    config.decoder.prednet.pred_hidden = shape.predictor_width
    config.decoder.prednet.pred_rnn_layers = shape.predictor_layers
    config.joint.num_classes, config.joint.vocabulary = len(pieces), pieces
    network = config.joint.jointnet
    network.encoder_hidden = shape.width
    network.joint_hidden = network.pred_hidden = shape.predictor_width


def _let_it_speak(model: Any, blank: int) -> None:
    """Make the token decoder work as much as for speech.

    The encoder's output with random weights hardly changes over time: each frame would emit ten
    tokens, or none. So the joint network is given its changes alone.
    """
    import torch

    noise = 0.1 * torch.randn(1, 4 * SAMPLE_RATE)
    with torch.inference_mode():
        encoded, _ = encode(model, noise, torch.tensor([noise.shape[1]]))
        mean, deviation = encoded[0].mean(-1), encoded[0].std(-1).mean()
        projection, output = model.joint.enc, model.joint.joint_net[-1]
        projection.weight /= deviation
        projection.bias -= projection.weight @ mean
        output.bias[blank] += _BLANK_BIAS


def _resolved(config: Any, folder: Path) -> Any:
    """Return the configuration with the tokenizer's files where they are now."""
    from omegaconf import OmegaConf

    tokenizer = {"dir": str(folder), "type": "bpe"} | {
        key: str(folder / _artifact(config.tokenizer[key]))
        for key in ("model_path", "vocab_path", "spe_tokenizer_vocab")
    }
    return OmegaConf.merge(config, {"tokenizer": tokenizer})


def _artifact(value: str) -> str:
    return value.removeprefix("nemo:")
