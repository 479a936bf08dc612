"""Read a network's properties from a checkpoint's configuration: decoder, size, prompts, ...

Reads NeMo's `model_config.yaml` without loading the model. Missing values are NeMo's defaults;
invalid values count as missing, since loading the file validates it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from parakeet_api.model.prompts import prompt_languages
from parakeet_api.model.vocabulary import tagged_language
from parakeet_api.transcript import FRAME, SAMPLE_RATE

Decoder = Literal["tdt", "rnnt", "ctc"]

_FRAME_S = 0.08
_STRIDE_S = 0.01
_MAX_REFERENCES = 10
_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
_FULL_MELS, _FULL_CHANNELS, _FULL_HEADS = 128, 256, 8
"""Values of parakeet-tdt-0.6b-v2, on which the memory of a forward pass was measured."""
_LINEAR_MB_PER_S = 3.3
_QUADRATIC_MB_PER_S2 = 0.019
"""Peak activations of its encoder in half precision for a batch of B chunks padded to S seconds:
max(3.3 MB x B x S, 19 kB x B x S^2). The first term is the subsampling convolution, which grows
with its channels and the mel bands; the second is attention, which grows with its heads."""
_LAYER_MB_PER_S = 0.26
"""Peak activations per second of audio of a layer of width 1,024: five tensors of its feed-forward
module, each 12.5 frames of 4,096 numbers."""
_FULL_WIDTH = 1024
_WHISPER = "WhisperConformer"
_WHISPER_PARAMETERS, _WHISPER_STACK = 7_633_920, 4 * 384
"""Parameters of the small English model's front end without its last layer, and the input width of
that layer."""


@dataclass(frozen=True, slots=True)
class StreamingContext:
    """The context that a streaming model was trained with."""

    left_s: float
    """Seconds before a chunk; infinite = unbounded."""
    chunks_s: tuple[float, ...]
    """Lengths of chunks in seconds that a server may choose from; the first is the default."""


@dataclass(frozen=True, slots=True)
class Frames:
    """How the encoder divides time."""

    samples: int = FRAME
    """Samples of one frame."""
    attended: int = 1
    """Frames that see each other in attention by chunks, counted from a recording's start; 1 = the
    position of a frame makes no difference."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The properties of a network on which loading and planning depend."""

    decoder: Decoder
    encoder_parameters: int
    other_parameters: int
    mels: int
    subsampling_channels: int
    width: int
    heads: int
    attends_locally: bool
    """Whether the memory of attention grows linearly with the length of a chunk."""
    streaming: StreamingContext | None
    """`None` = not trained for streaming."""
    frames: Frames
    prompts: Mapping[str, int]
    """Index of each prompt by its name, such as `de-DE` and `auto`; empty = no prompts."""
    pieces: tuple[str, ...]
    """The vocabulary, if the configuration contains it."""
    license: str | None
    """As in the configuration."""

    @cached_property
    def languages(self) -> frozenset[str]:
        """ISO 639-1 codes of its language tags or prompts; empty = it has neither."""
        tagged = {code for piece in self.pieces if (code := tagged_language(piece)) is not None}
        prompted = set(prompt_languages(self.prompts))
        # Prompts may exist for languages that the model was not trained on.
        return frozenset((tagged & prompted) or prompted or tagged)

    @property
    def chunk_grid(self) -> int:
        """Return the samples after which the encoder's division of time repeats."""
        return self.frames.samples * self.frames.attended

    @property
    def parameters(self) -> int:
        """Count all weights."""
        return self.encoder_parameters + self.other_parameters

    def weights_mb(self, encoder_bytes: float = 2.0) -> float:
        """Return the size of the weights in MB: `encoder_bytes` per encoder weight, else fp32."""
        return (self.encoder_parameters * encoder_bytes + self.other_parameters * 4) / 1e6

    @cached_property
    def linear_mb_per_s(self) -> float:
        """Return the MB of a half-precision pass per second of audio."""
        subsampling = self.subsampling_channels * self.mels / (_FULL_CHANNELS * _FULL_MELS)
        layer = self.width / _FULL_WIDTH
        return max(_LINEAR_MB_PER_S * subsampling, _LAYER_MB_PER_S * layer)

    @property
    def quadratic_mb_per_s2(self) -> float:
        """Return the MB of a pass per squared second of a chunk; 0 for local attention."""
        return 0.0 if self.attends_locally else _QUADRATIC_MB_PER_S2 * self.heads / _FULL_HEADS

    def activations_mb(self, rows: int, seconds: float) -> float:
        """Return the peak MB of a half-precision forward pass, without the weights."""
        return rows * max(self.linear_mb_per_s * seconds, self.quadratic_mb_per_s2 * seconds**2)


def read_architecture(config: Mapping[str, Any], *, decoder: Decoder) -> Architecture:
    """Read the configuration of a model whose decoder is known."""
    read = Config(config)
    # Measured: a pass through Whisper's front end fits the memory planned for the 0.6 B model.
    is_full = _has_whisper(read)
    return Architecture(
        decoder=decoder,
        encoder_parameters=_encoder_parameters(read),
        other_parameters=_head_parameters(read, decoder) + _prompt_parameters(read),
        mels=_FULL_MELS if is_full else read.number("preprocessor.features", 80),
        subsampling_channels=_FULL_CHANNELS if is_full else _subsampling_channels(read),
        width=read.number("encoder.d_model", 512),
        heads=_FULL_HEADS if is_full else read.number("encoder.n_heads", 4),
        attends_locally=read.text("encoder.self_attention_model") == "rel_pos_local_attn",
        streaming=_streaming(read),
        frames=_frames(read),
        prompts={
            name: index
            for name, index in read.section("model_defaults.prompt_dictionary").items()
            if isinstance(name, str) and isinstance(index, int)
        },
        pieces=_pieces(read),
        license=read.text("license") or None,
    )


class Config:
    """Values of a nested configuration by their path, such as `encoder.d_model`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def value(self, path: str, *, references: int = 0) -> Any:
        """Return a value, following a reference to another path; `None` = missing."""
        found: Any = self._config
        for part in path.split("."):
            found = found.get(part) if hasattr(found, "get") else None
        if isinstance(found, str) and (other := _INTERPOLATION.fullmatch(found)):
            # More references are a cycle.
            is_near = references < _MAX_REFERENCES
            return self.value(other[1], references=references + 1) if is_near else None
        return found

    def section(self, path: str) -> Mapping[str, Any]:
        found = self.value(path)
        return found if hasattr(found, "items") else {}

    def number(self, path: str, default: int) -> int:
        found = self.value(path)
        is_number = isinstance(found, int) and not isinstance(found, bool) and found > 0
        return found if is_number else default

    def text(self, path: str) -> str:
        found = self.value(path)
        return found if isinstance(found, str) else ""

    def is_on(self, path: str, default: bool) -> bool:
        found = self.value(path)
        return found if isinstance(found, bool) else default

    def numbers(self, path: str) -> list[Any]:
        found = self.value(path)
        return list(found) if _is_list(found) else []


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))


def _pieces(read: Config) -> tuple[str, ...]:
    for path in ("labels", "joint.vocabulary", "decoder.vocabulary"):
        if pieces := read.numbers(path):
            return tuple(piece for piece in pieces if isinstance(piece, str))
    return ()


def _vocabulary(read: Config) -> int:
    """Count the pieces without the blank."""
    stated = read.number("joint.num_classes", 0) or read.number("decoder.num_classes", 0)
    return stated or len(_pieces(read))


def _subsampling_channels(read: Config) -> int:
    return read.number("encoder.subsampling_conv_channels", read.number("encoder.d_model", 512))


def _has_whisper(read: Config) -> bool:
    return read.text("encoder._target_").endswith(_WHISPER)


def _encoder_parameters(read: Config) -> int:
    layers = read.number("encoder.n_layers", 0) * _layer_parameters(read)
    if _has_whisper(read):
        width = read.number("encoder.d_model", 512)
        return layers + _WHISPER_PARAMETERS + (_WHISPER_STACK + 1) * width
    return layers + _subsampling_parameters(read)


def _layer_parameters(read: Config) -> int:
    """Count the weights of one of NeMo's ConformerLayers with relative positions."""
    d = read.number("encoder.d_model", 512)
    wide = d * read.number("encoder.ff_expansion_factor", 4)
    bias = read.is_on("encoder.use_bias", True)
    feed_forward = 2 * d * wide + bias * (wide + d)
    # Query, key, value, output and position projections; two position biases.
    attention = 5 * d * d + 2 * d + bias * 4 * d
    kernel = read.number("encoder.conv_kernel_size", 31)
    convolution = 3 * d * d + d * kernel + 2 * d + bias * 4 * d
    return 2 * feed_forward + attention + convolution + 5 * 2 * d


def _subsampling_parameters(read: Config) -> int:
    """Count the weights of depthwise striding convolutions, the family's only subsampling."""
    channels, mels = _subsampling_channels(read), read.number("encoder.feat_in", 80)
    steps = round(math.log2(read.number("encoder.subsampling_factor", 4)))
    causal = read.is_on("encoder.causal_downsampling", False)
    for _ in range(steps):
        mels = mels // 2 + 1 if causal else (mels + 1) // 2
    first = 10 * channels
    others = (steps - 1) * (10 * channels + channels * channels + channels)
    d = read.number("encoder.d_model", 512)
    return first + others + channels * mels * d + d


def _head_parameters(read: Config, decoder: Decoder) -> int:
    d, labels = read.number("encoder.d_model", 512), _vocabulary(read) + 1
    ctc = d * labels + labels
    if decoder == "ctc":
        return ctc
    predictor = read.number("decoder.prednet.pred_hidden", 640)
    layers = read.number("decoder.prednet.pred_rnn_layers", 1)
    hidden = read.number("joint.jointnet.joint_hidden", 640)
    outputs = labels + read.number("joint.num_extra_outputs", 0)
    predicting = labels * predictor + layers * 8 * predictor * (predictor + 1)
    joint = (d + 1) * hidden + (predictor + 1) * hidden + (hidden + 1) * outputs
    return predicting + joint + (ctc if read.section("aux_ctc") else 0)


def _prompt_parameters(read: Config) -> int:
    if not read.is_on("model_defaults.initialize_prompt_feature", False):
        return 0
    d = read.number("encoder.d_model", 512)
    prompts = read.number("model_defaults.num_prompts", 128)
    return (d + prompts + 1) * 2 * d + (2 * d + 1) * d


def _streaming(read: Config) -> StreamingContext | None:
    lefts, chunks = _contexts(read)
    if not lefts or not chunks:
        return None
    left_s = math.inf if lefts[0] < 0 else round(lefts[0] * _FRAME_S, 2)
    return StreamingContext(left_s, tuple(round(frames * _FRAME_S, 2) for frames in chunks))


def _frames(read: Config) -> Frames:
    stride = read.value("preprocessor.window_stride")
    # At least a millisecond, so that a frame has samples.
    seconds = stride if isinstance(stride, float) and 0.001 <= stride < 1 else _STRIDE_S  # noqa: PLR2004
    samples = round(seconds * SAMPLE_RATE) * read.number("encoder.subsampling_factor", 4)
    # With a right context as well, the default is to attend to everything.
    is_limited = read.text("encoder.att_context_style") == "chunked_limited"
    sizes = _contexts(read)[1] if is_limited else []
    return Frames(samples, max([1, *sizes[:1]]))


def _contexts(read: Config) -> tuple[list[int], list[int]]:
    """Return the left contexts and the chunk sizes, in encoder frames, of the training."""
    style = read.text("encoder.att_context_style")
    if style == "chunked_limited_with_rc":
        contexts = [_integers(sizes) for sizes in read.numbers("encoder.att_chunk_context_size")]
        return (contexts[0], contexts[1]) if len(contexts) > 1 else ([], [])
    if style != "chunked_limited":
        return [], []
    sizes = read.numbers("encoder.att_context_size")
    pairs = [_integers(pair) for pair in (sizes if sizes and _is_list(sizes[0]) else [sizes])]
    pairs = [pair for pair in pairs if len(pair) > 1]
    # A chunk is one frame plus its look-ahead.
    return [left for left, *_ in pairs], [ahead + 1 for _, ahead, *_ in pairs]


def _integers(values: Any) -> list[int]:
    given = values if _is_list(values) else []
    return [value for value in given if isinstance(value, int) and not isinstance(value, bool)]


FULL_SIZE = read_architecture(
    {
        "preprocessor": {"features": _FULL_MELS},
        "encoder": {
            "feat_in": _FULL_MELS,
            "n_layers": 24,
            "d_model": _FULL_WIDTH,
            "n_heads": _FULL_HEADS,
            "use_bias": False,
            "subsampling_factor": 8,
            "subsampling_conv_channels": _FULL_CHANNELS,
            "conv_kernel_size": 9,
        },
        "decoder": {"prednet": {"pred_hidden": 640, "pred_rnn_layers": 2}},
        "joint": {"num_classes": 1024, "num_extra_outputs": 5},
    },
    decoder="tdt",
)
"""parakeet-tdt-0.6b-v2: assumed for a checkpoint that is not on disk yet."""
