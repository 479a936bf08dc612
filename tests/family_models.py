"""Small checkpoints of every kind in the Parakeet family, with random weights, made by NeMo.

As a program it writes those that are named into a folder and has NeMo's own `transcribe()` hear
recordings with them: `python family_models.py FOLDER RECORDINGS.npz`. What it heard is printed as
JSON. The tests run it in a process of its own, as `transcribe()` changes the model.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
"""Shape (samples,), 16 kHz, within +-1."""
DEMO_MODEL = Path(__file__).parent / "grammar-model" / "parakeet-tdt-demo-en.nemo"
_WIDTH, _HIDDEN, _CHANNELS = 64, 48, 16
_RNNT = "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel"
_HYBRID = "nemo.collections.asr.models.hybrid_rnnt_ctc_bpe_models.EncDecHybridRNNTCTCBPEModel"
CTC = "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE"
_PROMPT = "nemo.collections.asr.models.rnnt_bpe_models_prompt.EncDecRNNTBPEModelWithPrompt"
PROMPTS = {"en-US": 0, "en-GB": 1, "de-DE": 2, "fr-FR": 3, "ja-JP": 4, "auto": 101}
TAGS = ("<en-US>", "<de-DE>", "<fr-FR>", "<ja-JP>")


@dataclass(frozen=True)
class Kind:
    """A checkpoint of the family, as far as it differs from parakeet-tdt-0.6b-v2."""

    target: str = _RNNT
    durations: tuple[int, ...] = (0, 1, 2, 3, 4)
    mels: int = 128
    vocabulary: int = 200
    """NeMo copies it many times: 8,192 pieces take it half a minute."""
    encoder: dict[str, Any] = field(default_factory=dict)
    normalize: str = "per_feature"
    words: tuple[str, ...] = ("piece",)
    """What the pieces beyond the demo model's own begin with, in turns."""
    marks: tuple[str, ...] = ()
    """The vocabulary's last pieces."""


_BIASED = {"use_bias": True}
_STREAMING = {
    "att_context_style": "chunked_limited",
    "causal_downsampling": True,
    "conv_context_size": "causal",
    "conv_norm_type": "layer_norm",
}
FAMILY = {
    "parakeet-tdt-0.6b-v2": Kind(),
    "parakeet-tdt-0.6b-v3": Kind(vocabulary=1000, words=("piece", "слово", "λέξη")),
    "parakeet-tdt-1.1b": Kind(mels=80, encoder=_BIASED),
    "parakeet-tdt_ctc-110m": Kind(_HYBRID, mels=80),
    "parakeet-tdt_ctc-1.1b": Kind(
        _HYBRID,
        mels=80,
        encoder={
            "self_attention_model": "rel_pos_local_attn",
            "att_context_size": [128, 128],
            "use_bias": None,
        },
    ),
    "parakeet-tdt_ctc-0.6b-ja": Kind(_HYBRID, mels=80, vocabulary=500),
    "parakeet-rnnt-0.6b": Kind(durations=(), mels=80, encoder=_BIASED),
    "parakeet-ctc-0.6b": Kind(CTC, durations=(), mels=80, encoder=_BIASED),
    "parakeet-unified-en-0.6b": Kind(
        durations=(),
        encoder={
            "att_context_style": "chunked_limited_with_rc",
            "att_chunk_context_size": [[70], [1, 2, 7, 13], [0, 1, 3, 7, 13]],
        },
    ),
    "nemotron-speech-streaming-en-0.6b": Kind(
        durations=(),
        encoder=_STREAMING | {"att_context_size": [[70, 13], [70, 6], [70, 1], [70, 0]]},
        normalize="NA",
    ),
    "nemotron-3.5-asr-streaming-0.6b": Kind(
        _PROMPT,
        durations=(),
        vocabulary=650,
        encoder=_STREAMING | {"att_context_size": [[56, 3], [56, 0], [56, 6], [56, 13]]},
        normalize="NA",
        marks=TAGS,
    ),
    "parakeet_realtime_eou_120m-v1": Kind(
        durations=(),
        vocabulary=500,
        encoder=_STREAMING | {"att_context_size": [70, 1]},
        normalize="NA",
        marks=("<EOU>", "<EOB>"),
    ),
}
"""By the name of the checkpoint whose keys it has; sizes are a test's."""


def write_checkpoint(folder: Path, name: str, sound: Samples, kind: Kind | None = None) -> Any:
    """Write the `.nemo` file of that name, which finds words in a recording; give its model."""
    import torch

    kind = kind or FAMILY[name]
    with tempfile.TemporaryDirectory() as scratch:
        pieces = _write_tokenizer(Path(scratch), kind)
        torch.manual_seed(0)
        model = _class_of(kind)(cfg=_config(kind, Path(scratch), pieces)).eval()
        _let_it_speak(model, kind, sound)
        model.save_to(str(folder / f"{name}.nemo"))
    return model


def _class_of(kind: Kind) -> Any:
    import importlib

    module, _, name = kind.target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _write_tokenizer(folder: Path, kind: Kind) -> list[str]:
    """Write the demo model's tokenizer with so many pieces, and give them."""
    from sentencepiece import sentencepiece_model_pb2 as protobuf

    tokenizer: Any = vars(protobuf)["ModelProto"]()
    with tarfile.open(DEMO_MODEL) as demo:
        name = next(member for member in demo.getnames() if member.endswith(".model"))
        content = demo.extractfile(name)
        assert content is not None
        tokenizer.ParseFromString(content.read())
    words = kind.vocabulary - len(kind.marks)
    del tokenizer.pieces[words:]
    for number in range(len(tokenizer.pieces), words):
        word = kind.words[number % len(kind.words)]
        tokenizer.pieces.add(piece=f"\u2581{word}{number}", score=-float(number))
    for mark in kind.marks:
        tokenizer.pieces.add(piece=mark, score=0.0, type=4)
    tokenizer.trainer_spec.vocab_size = kind.vocabulary
    (folder / "tokenizer.model").write_bytes(tokenizer.SerializeToString())
    pieces = [piece.piece for piece in tokenizer.pieces]
    (folder / "vocab.txt").write_text("\n".join(f"##{piece}" for piece in pieces))
    (folder / "tokenizer.vocab").write_text("\n".join(f"{piece}\t0" for piece in pieces))
    return pieces


def _config(kind: Kind, tokenizer: Path, pieces: list[str]) -> Any:
    from omegaconf import OmegaConf

    modules = "nemo.collections.asr.modules"
    encoder: dict[str, Any] = {
        "_target_": f"{modules}.ConformerEncoder",
        "feat_in": kind.mels,
        "feat_out": -1,
        "n_layers": 2,
        "d_model": _WIDTH,
        "use_bias": False,
        "subsampling": "dw_striding",
        "subsampling_factor": 8,
        "subsampling_conv_channels": _CHANNELS,
        "causal_downsampling": False,
        "ff_expansion_factor": 4,
        "self_attention_model": "rel_pos",
        "n_heads": 4,
        "att_context_size": [-1, -1],
        "att_context_style": "regular",
        "xscaling": False,
        "pos_emb_max_len": 5000,
        "conv_kernel_size": 9,
        "conv_norm_type": "batch_norm",
    } | kind.encoder
    config: dict[str, Any] = {
        "target": kind.target,
        "sample_rate": 16000,
        "model_defaults": {"enc_hidden": _WIDTH, "pred_hidden": _HIDDEN, "joint_hidden": _HIDDEN},
        "tokenizer": {"dir": str(tokenizer), "type": "bpe"},
        "preprocessor": {
            "_target_": f"{modules}.AudioToMelSpectrogramPreprocessor",
            "sample_rate": 16000,
            "normalize": kind.normalize,
            "window_size": 0.025,
            "window_stride": 0.01,
            "features": kind.mels,
            "n_fft": 512,
            "dither": 1e-5,
            "pad_to": 0,
        },
        "encoder": {key: value for key, value in encoder.items() if value is not None},
    }
    ctc = {
        "_target_": f"{modules}.ConvASRDecoder",
        "feat_in": _WIDTH,
        "num_classes": len(pieces),
        "vocabulary": pieces,
    }
    greedy = {"strategy": "greedy_batch", "greedy": {"max_symbols": 10}}
    if kind.target == CTC:
        config |= {"decoder": ctc, "decoding": {"strategy": "greedy_batch"}}
        return OmegaConf.create(config)
    config |= {
        "decoder": {
            "_target_": f"{modules}.RNNTDecoder",
            "blank_as_pad": True,
            "vocab_size": len(pieces),
            "prednet": {"pred_hidden": _HIDDEN, "pred_rnn_layers": 1, "dropout": 0.1},
        },
        "joint": {
            "_target_": f"{modules}.RNNTJoint",
            "log_softmax": None,
            "num_classes": len(pieces),
            "num_extra_outputs": len(kind.durations),
            "jointnet": {"joint_hidden": _HIDDEN, "activation": "relu", "dropout": 0.1},
        },
        "decoding": copy.deepcopy(greedy),
    }
    if kind.durations:
        durations = list(kind.durations)
        config["decoding"] |= {"model_type": "tdt", "durations": durations}
        config["loss"] = {"loss_name": "tdt", "tdt_kwargs": {"durations": durations}}
    if kind.target == _HYBRID:
        config["aux_ctc"] = {
            "ctc_loss_weight": 0.3,
            "decoder": ctc,
            "decoding": {"strategy": "greedy"},
        }
    if kind.target == _PROMPT:
        config["model_defaults"] |= {
            "initialize_prompt_feature": True,
            "num_prompts": 128,
            "prompt_dictionary": PROMPTS,
        }
        config["decoding"]["strip_lang_tags"] = True
    return OmegaConf.create(config)


def _let_it_speak(model: Any, kind: Kind, sound: Samples) -> None:
    """Let random weights find about as many tokens in a recording as there are, marks among them.

    Their encoder's output hardly changes over time: it is scaled, about its mean, so that it does.
    Then the blank, and each mark, is made the likeliest in a share of frames.
    """
    import torch

    waveform, length = torch.from_numpy(sound)[None], torch.tensor([len(sound)])
    with torch.no_grad():
        features, lengths = model.preprocessor(input_signal=waveform, length=length)
        encoded = model.encoder(audio_signal=features, length=lengths)[0].transpose(1, 2)
        if kind.target == _PROMPT:
            model.prompt_kernel[0].weight[:, _WIDTH:] *= 4
            prompt = torch.zeros(1, encoded.shape[1], 128)
            encoded = model.prompt_kernel(torch.cat([encoded, prompt], -1))
        is_ctc = kind.target == CTC
        layer = model.decoder.decoder_layers[0] if is_ctc else model.joint.enc
        mean, deviation = encoded[0].mean(0), encoded[0].std(0).mean()
        layer.weight *= 4 / deviation
        layer.bias -= layer.weight.flatten(1) @ mean
        scores = _scores(model, encoded, is_ctc=is_ctc)
        bias = layer.bias if is_ctc else model.joint.joint_net[-1].bias
        # <unk>, which NeMo writes in a way of its own.
        bias[0] -= 1e4
        scores[:, 0] -= 1e4
        labels = kind.vocabulary + 1
        marks = range(labels - 1 - len(kind.marks), labels - 1)
        blanks = 0.5 if kind.durations else 0.97 if kind.target == _PROMPT else 0.85
        for label, share in ((labels - 1, blanks), *((mark, 0.05) for mark in marks)):
            others = torch.cat([scores[:, :label], scores[:, label + 1 : labels]], 1).amax(1)
            lift = (others - scores[:, label]).quantile(share)
            bias[label] += lift
            scores[:, label] += lift


def _scores(model: Any, encoded: Any, *, is_ctc: bool) -> Any:
    """Score all labels in each frame, after some tokens that might have gone before."""
    import torch

    if is_ctc:
        return model.decoder.decoder_layers(encoded.transpose(1, 2))[0].T.clone()
    model.joint.pred.weight *= 4
    before = torch.randint(1, model.decoder.blank_idx, (16, 3))
    predicted, _ = model.decoder.predict(before, state=None, add_sos=True)
    joined = model.joint.joint_after_projection(
        model.joint.project_encoder(encoded),
        model.joint.project_prednet(predicted.flatten(0, 1)[None]),
    )
    return joined.flatten(0, 2)


def transcribe(model: Any, recordings: list[Samples], **options: Any) -> list[Any]:
    """Have NeMo transcribe recordings, each by itself."""
    return [
        model.transcribe([each], batch_size=1, return_hypotheses=True, verbose=False, **options)[0]
        for each in recordings
    ]


def heard(hypothesis: Any) -> dict[str, Any]:
    """Give what is compared of one of NeMo's hypotheses."""
    if np.ndim(hypothesis.y_sequence) > 1:
        # Of CTC it gives scores in the place of tokens, (T, V + 1).
        labels = np.asarray(hypothesis.y_sequence).argmax(1)
        blank = hypothesis.y_sequence.shape[1] - 1
        begins = (labels != blank) & (np.diff(labels, prepend=blank) != 0)
        frames = np.flatnonzero(begins)
        return {
            "text": hypothesis.text,
            "ids": labels[frames].tolist(),
            "frames": frames.tolist(),
        }
    return {
        "text": hypothesis.text,
        "ids": [int(token) for token in hypothesis.y_sequence],
        "frames": [int(frame) for frame in hypothesis.timestamp],
    }


def floats(samples: NDArray[np.int16]) -> Samples:
    """Scale 16-bit samples as NeMo takes them."""
    return samples.astype(np.float32) / np.float32(32768)


def heard_by_nemo(folder: Path, sounds: Mapping[str, Samples]) -> dict[str, Any]:
    """Run this file as a program: write all checkpoints, give the report of each by its name.

    All hear every sound, except one under `NAME:...`, which is for the checkpoint of that name.
    """
    recordings = folder / "sounds.npz"
    # numpy declares its keywords as flags.
    arrays: dict[str, Any] = dict(sounds)
    np.savez(recordings, **arrays)
    done = subprocess.run(
        [sys.executable, __file__, str(folder), str(recordings)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reports: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return reports


def main(folder: Path, recordings: Path) -> None:
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    import torch
    from nemo.utils import logging as nemo_logging

    nemo_logging.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    sounds = np.load(recordings)
    shared = [sounds[key] for key in sounds if ":" not in key]
    reports = {}
    for name in FAMILY:
        own = [sounds[key] for key in sounds if key.startswith(f"{name}:")]
        reports[name] = _report(folder, name, shared, own)
    print(json.dumps(reports))


def _report(folder: Path, name: str, shared: list[Samples], own: list[Samples]) -> dict[str, Any]:
    """Write a checkpoint; tell how large it is and what NeMo hears with it, for each prompt.

    Its own recordings are heard with the first prompt alone.
    """
    model = write_checkpoint(folder, name, [*shared, *own][0])
    prompts = ["auto", "de-DE"] if FAMILY[name].target == _PROMPT else [""]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "encoder": sum(parameter.numel() for parameter in model.encoder.parameters()),
        "heard": {
            prompt: [
                heard(hypothesis)
                for hypothesis in transcribe(
                    model,
                    shared + (own if prompt == prompts[0] else []),
                    **({"target_lang": prompt} if prompt else {}),
                )
            ]
            for prompt in prompts
        },
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
