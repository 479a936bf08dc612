"""Classify checkpoints: which can be served, and what the others are.

The only module with the names of NeMo's classes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from parakeet_api.errors import CheckpointError
from parakeet_api.model.architecture import (
    FULL_SIZE,
    Architecture,
    Config,
    Decoder,
    read_architecture,
)
from parakeet_api.transcript import SAMPLE_RATE

_UNSUPPORTED = (
    (r"\w*MultiTalker\w*", "a multitalker model, which must be told who speaks when"),
    (r"\w*MultiTask\w*", "a Canary model, whose attention decoder is another program's work"),
    (r"\w*Sortformer\w*|\w*Diar\w*", "a model that tells speakers apart and writes no words"),
    (r"\w*SALM\w*|\w*SpeechLM\w*", "a language model that listens"),
    (r"\w*Label\w*|\w*Classification\w*", "a model that classifies sound and writes no words"),
    (
        r"EncDec(CTC|RNNT|HybridRNNTCTC)Model",
        "an older model, which writes single characters instead of word pieces",
    ),
)
"""Other classes of NeMo, described for error messages."""
_TRANSDUCER = re.compile(r"EncDec\w*RNNT\w*BPE\w*")
"""EncDecRNNTBPEModel and EncDecHybridRNNTCTCBPEModel, each also with a prompt."""
_CTC = re.compile(r"EncDecCTCModelBPE")
_CONFORMER = re.compile(r"ConformerEncoder|WhisperConformer")
_WORD_PIECES = "bpe"
_SERVED = "a Parakeet of the kinds TDT, RNNT or CTC, alone, hybrid or with a prompt"


_SIZE = re.compile(r"(?<![\d.])(\d{1,4}(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)
"""As in parakeet-tdt-1.1b."""


class UnsupportedModelError(CheckpointError):
    """A checkpoint contains a model that cannot be served; the message says what it is."""


def describe(config: Mapping[str, Any]) -> Architecture:
    """Return a configuration's architecture; raise `UnsupportedModelError` for other models."""
    read = Config(config)
    kind = str(config.get("target") or "model of no known kind").rpartition(".")[2]
    decoder = _decoder(kind, read)
    rate = read.value("preprocessor.sample_rate")
    if isinstance(rate, (int, float)) and rate != SAMPLE_RATE:
        raise UnsupportedModelError(f"a {kind} for audio of {rate} Hz; {SAMPLE_RATE} are needed")
    encoder = read.text("encoder._target_").rpartition(".")[2]
    if encoder and not _CONFORMER.fullmatch(encoder):
        raise UnsupportedModelError(f"a {kind} whose encoder is a {encoder}; needed is {_SERVED}")
    tokenizer = read.text("tokenizer.type")
    if tokenizer and tokenizer != _WORD_PIECES:
        raise UnsupportedModelError(
            f"a {kind} whose tokenizer is of the type {tokenizer};"
            f" needed is {_WORD_PIECES}, which is SentencePiece's"
        )
    return read_architecture(config, decoder=decoder)


def expect(model_id: str) -> Architecture:
    """Estimate the architecture of a checkpoint that is not on disk from the size in its name."""
    size = _SIZE.search(model_id)
    if size is None:
        return FULL_SIZE
    parameters = round(float(size[1]) * (1e9 if size[2].lower() == "b" else 1e6))
    encoder = parameters - FULL_SIZE.other_parameters
    return dataclasses.replace(FULL_SIZE, encoder_parameters=max(encoder, 0))


def _decoder(kind: str, read: Config) -> Decoder:
    for pattern, what in _UNSUPPORTED:
        if re.fullmatch(pattern, kind):
            raise UnsupportedModelError(f"a {kind}, {what}; needed is {_SERVED}")
    if _CTC.fullmatch(kind):
        return "ctc"
    if not _TRANSDUCER.fullmatch(kind):
        raise UnsupportedModelError(f"a {kind}; needed is {_SERVED}")
    loss = read.value("loss.loss_name")
    if loss == "multiblank_rnnt" or read.value("decoding.big_blank_durations"):
        raise UnsupportedModelError(f"a {kind} with several blanks; needed is {_SERVED}")
    # As in NeMo, which reads durations from the loss if there is one.
    return "tdt" if loss == "tdt" or read.value("decoding.durations") else "rnnt"
