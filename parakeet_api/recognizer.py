"""Words from waveforms: the `Recognizer` protocol and its adapter to NVIDIA NeMo.

The only module that knows torch and NeMo; both are imported inside functions, because that takes
ten seconds and a gigabyte. The model is driven below `transcribe()`, which is not thread-safe,
leaves modules in training mode and pads short clips: preprocessor (fp32) -> encoder (half
precision where it pays) -> token decoder (fp32).
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import logging.handlers
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from parakeet_api.errors import CheckpointError, SettingsError
from parakeet_api.settings import DecodingStrategy, MatmulPrecision, Precision
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Token, Word

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor

logger = logging.getLogger(__name__)

EncoderPrecision = Literal["fp16", "bf16", "int8", "fp32"]

WORD_START = "\u2581"
"""SentencePiece's mark of a space before a piece."""
_MOST_TOKENS_A_FRAME = 10
"""As NVIDIA's checkpoints were evaluated; without a limit a broken frame emits for ever."""
_LARGE_ENCODER = 100_000_000
"""Parameters. On a CPU smaller encoders gain nothing from bf16 or a second thread: with 2.8 M, 60
clips took 1.0 s either way, and up to 47 s with two threads on cores that others use too."""
_RANDOM_INITS = (
    *("uniform_", "normal_", "trunc_normal_", "orthogonal_", "sparse_"),
    *("xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"),
)
"""The functions of torch.nn.init whose values a checkpoint overwrites."""
_SELF_TEST_MAX_ERROR = 0.05
"""Relative encoder error against fp32; half precision measures 0.004, an overflow far more."""


class OutOfDeviceMemoryError(Exception):
    """The batch needs more of the card's memory than is free."""


class Recognizer(Protocol):
    """What the rest of the service asks of a model."""

    info: ModelInfo

    def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        """Give each chunk's words, in order, with times in the recording."""
        ...

    def close(self) -> None:
        """Give the model's memory back; the recognizer is of no use afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What was loaded, for logs and `/health`."""

    device: str
    """`cpu`, `cuda:0`, ..."""
    precision: EncoderPrecision
    """The encoder's."""
    precision_reason: str
    parameters: int
    decoding: str
    """`greedy`, or `beam of 4`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """How to load a checkpoint."""

    device: str
    """`cpu`, `cuda` or `cuda:1`: already resolved, no `auto`."""
    precision: Precision
    strategy: DecodingStrategy
    beam_size: int
    longest_s: float
    """Seconds of audio that one chunk may have; position tables are sized for it."""
    cpu_threads: int = 1
    """Threads that one forward pass may use on a CPU."""
    keep_cached_mb: float | None = None
    """Megabytes of a card's memory that torch may keep cached but unused; `None` = any amount."""
    cleanup_above: float = 1.0
    """Share of the card in use above which unused memory is given back before a batch."""
    allow_tf32: bool = True
    cudnn_benchmark: bool = True
    matmul_precision: MatmulPrecision = "highest"


class NemoRecognizer:
    """A Parakeet-TDT checkpoint, ready for inference.

    Safe to call from several threads: nothing in the model changes between calls.
    """

    def __init__(
        self, model: Any, *, decoding: Any, info: ModelInfo, options: ModelOptions
    ) -> None:
        self.info = info
        self._options = options
        self._model = model
        self._decoding = decoding
        self._encoder_dtype = _float_dtype(model.encoder)
        self._pieces: list[str] = model.tokenizer.ids_to_tokens(list(range(_blank_id(model))))
        self._frame_samples = _frame_samples(model)
        self._positions_lock = threading.Lock()
        # The CUDA graphs of the token decoder own one set of buffers.
        self._decoding_lock = threading.Lock() if info.device != "cpu" else contextlib.nullcontext()

    @classmethod
    def load(cls, path: Path, options: ModelOptions) -> NemoRecognizer:
        """Restore a `.nemo` file for inference.

        Raises `CheckpointError`, naming the file, if it is not a complete Parakeet-TDT checkpoint;
        `SettingsError` for a precision that the device does not have.
        """
        model = _restore(path)
        _prepare_for_inference(model, longest_s=options.longest_s)
        _set_backend_flags(model, options)
        precision, reason = _place(model, options)
        info = ModelInfo(
            device=str(next(model.joint.parameters()).device),
            precision=precision,
            precision_reason=reason,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            decoding="greedy" if options.strategy == "greedy" else f"beam of {options.beam_size}",
        )
        return cls(model, decoding=_build_decoding(model, options), info=info, options=options)

    def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        """Give each chunk's words, in order, with times in the recording.

        One forward pass for all: the result is the same as one by one, up to the encoder's
        rounding (2e-6 in fp32). Raises `OutOfDeviceMemoryError`.
        """
        import torch

        self._make_room()
        try:
            with torch.inference_mode():
                encoded, lengths = self._encode(chunks)
                with self._decoding_lock:
                    hypotheses = self._decoding.decoding(
                        encoder_output=encoded, encoded_lengths=lengths
                    )[0]
                emissions = self._emissions(encoded, hypotheses)
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise OutOfDeviceMemoryError(str(error)) from error
        self._give_back()
        return [
            self._words(chunk, emission) for chunk, emission in zip(chunks, emissions, strict=True)
        ]

    def close(self) -> None:
        """Drop the model; what torch cached of the card's memory goes back to it."""
        import torch

        for decoding in (self._decoding, self._model.decoding):
            computer = getattr(decoding.decoding, "decoding_computer", None)
            if computer is not None and hasattr(computer, "reset_cuda_graphs_state"):
                computer.reset_cuda_graphs_state()
        del self._decoding, self._model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _make_room(self) -> None:
        """Before a batch: give unused memory back if the card is nearly full, whoever fills it."""
        import torch

        if self.info.device != "cpu":
            free, total = torch.cuda.mem_get_info(self.info.device)
            if 1 - free / total > self._options.cleanup_above:
                torch.cuda.empty_cache()

    def _give_back(self) -> None:
        """After a batch: give memory back that torch keeps but does not use, beyond a limit."""
        import torch

        device, limit_mb = self.info.device, self._options.keep_cached_mb
        if device != "cpu" and limit_mb is not None:
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            if unused > limit_mb * 1e6:
                torch.cuda.empty_cache()

    def _encode(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        """Run features and encoder; encoder output is fp32, shape (B, D, T), with lengths (B,)."""
        import torch

        waveforms = np.zeros((len(chunks), max(len(c.samples) for c in chunks)), dtype=np.float32)
        for row, chunk in zip(waveforms, chunks, strict=True):
            np.divide(chunk.samples, 32768.0, out=row[: len(chunk.samples)], dtype=np.float32)
        self._size_positions(waveforms.shape[1])
        device = self.info.device
        features, feature_lengths = self._model.preprocessor(
            input_signal=torch.from_numpy(waveforms).to(device),
            length=torch.tensor([len(chunk.samples) for chunk in chunks], device=device),
        )
        encoded, lengths = self._model.encoder(
            audio_signal=features.to(self._encoder_dtype), length=feature_lengths
        )
        return encoded.float(), lengths

    def _emissions(self, encoded: Tensor, hypotheses: Sequence[Any]) -> list[list[_Emission]]:
        """Read each hypothesis' tokens, with the model's own probability and duration for each.

        The decoder reports neither reliably: its confidences cost time in its inner loop and are
        missing from beams, and its batched torch path overwrites durations of other rows (NeMo
        issue 16097). The joint network is asked once more instead, along the path taken: one pass
        for the whole batch, exact to 5e-7, a twentieth of the decoder's time.
        """
        import torch

        model = self._model
        paths = [_Path(_integers(h.y_sequence), _integers(h.timestamp)) for h in hypotheses]
        sizes = [len(path.tokens) for path in paths]
        if not any(sizes):
            return [[] for _ in paths]
        device = encoded.device
        tokens = torch.full((len(paths), max(sizes)), _blank_id(model), device=device)
        for row, path in zip(tokens, paths, strict=True):
            row[: len(path.tokens)] = torch.tensor(path.tokens, device=device)
        predicted, _ = model.decoder.predict(tokens, state=None, add_sos=True)
        # Every token of every path, one after the other: its row, its place there, its frame.
        rows = torch.tensor([r for r, size in enumerate(sizes) for _ in range(size)], device=device)
        places = torch.tensor([place for size in sizes for place in range(size)], device=device)
        frames = torch.tensor([frame for path in paths for frame in path.frames], device=device)
        scores = model.joint.joint_after_projection(
            model.joint.project_encoder(encoded[rows, :, frames].unsqueeze(1)),
            model.joint.project_prednet(predicted[rows, places].unsqueeze(1)),
        )[:, 0, 0]
        vocabulary = _blank_id(model) + 1
        chosen = tokens[rows, places]
        logprobs = scores[:, :vocabulary].log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        durations = self._durations(scores[:, vocabulary:].argmax(-1), hypotheses)
        columns = (chosen.tolist(), frames.tolist(), durations, logprobs.tolist())
        emissions = iter([_Emission(*values) for values in zip(*columns, strict=True)])
        return [list(itertools.islice(emissions, size)) for size in sizes]

    def _durations(self, most_probable: Tensor, hypotheses: Sequence[Any]) -> list[int]:
        """Give each token's frames: greedy takes the most probable, a beam remembers its own."""
        if self.info.decoding == "greedy":
            table = self._model.cfg.decoding.durations
            return [int(table[index]) for index in most_probable.tolist()]
        return [frames for h in hypotheses for frames in _integers(h.token_duration)]

    def _words(self, chunk: Chunk, emissions: Sequence[_Emission]) -> list[Word]:
        """Group tokens into words at the pieces that begin with a space."""
        groups: list[list[_Emission]] = []
        for emission in emissions:
            if not groups or self._pieces[emission.token_id].startswith(WORD_START):
                groups.append([])
            groups[-1].append(emission)
        return [word for group in groups if (word := self._word(chunk, group)).text]

    def _word(self, chunk: Chunk, group: Sequence[_Emission]) -> Word:
        tokens = tuple(
            Token(e.token_id, self._pieces[e.token_id].replace(WORD_START, " "), e.logprob)
            for e in group
        )
        # Punctuation is emitted whenever the model is sure of it, often in the pause after.
        spoken = [
            emission
            for emission, token in zip(group, tokens, strict=True)
            if any(character.isalnum() for character in token.text)
        ] or group
        start = chunk.start + spoken[0].frame * self._frame_samples
        end = chunk.start + (spoken[-1].frame + spoken[-1].frames) * self._frame_samples
        return Word(
            text="".join(token.text for token in tokens).strip(),
            start=min(start, chunk.end) / SAMPLE_RATE,
            end=min(max(start, end), chunk.end) / SAMPLE_RATE,
            tokens=tokens,
        )

    def _size_positions(self, samples: int) -> None:
        """Extend the encoder's position table under a lock: NeMo's own way races."""
        frames = samples // self._frame_samples + 2
        with self._positions_lock:
            _extend_positions(self._model.encoder, frames)


@dataclass(frozen=True, slots=True)
class _Path:
    """What a hypothesis emitted, and at which encoder frames."""

    tokens: list[int]
    frames: list[int]


@dataclass(frozen=True, slots=True)
class _Emission:
    """A token as the decoder emitted it."""

    token_id: int
    frame: int
    """Encoder frame at which it was emitted."""
    frames: int
    """Its duration."""
    logprob: float


def select_device(wanted: str) -> str:
    """Resolve `auto` to a CUDA card on which a kernel really runs, else `cpu`.

    Raises `SettingsError` if a card was asked for by name and cannot be used.
    """
    import torch

    if wanted == "cpu":
        return "cpu"
    device = "cuda:0" if wanted in ("auto", "cuda") else wanted
    try:
        # Properties alone do not tell: a card may lack kernels for its architecture, or be full.
        torch.ones(8, device=device).sum().item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        if wanted != "auto":
            raise SettingsError(f"DEVICE={wanted!r} is not usable: {reason}") from error
        if torch.cuda.is_available():
            logger.warning("the CUDA card cannot be used, the CPU takes over: %s", reason)
        return "cpu"
    return device


def limit_device_memory(device: str, fraction: float) -> None:
    """Let this process take at most a share of the card."""
    import torch

    torch.cuda.set_per_process_memory_fraction(fraction, device)


def _restore(path: Path) -> Any:
    _import_nemo_quietly()
    from nemo.collections.asr.models import ASRModel, EncDecRNNTBPEModel

    try:
        with _no_random_init(), warnings.catch_warnings():
            # About training options of the checkpoint, which do not concern inference.
            warnings.simplefilter("ignore")
            model = ASRModel.restore_from(str(path.absolute()), map_location="cpu", strict=True)
    # A damaged archive can fail anywhere in tar, yaml, pickle or NeMo.
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be loaded as a NeMo checkpoint"
            f" ({type(error).__name__}: {str(error).strip().splitlines()[0][:200] or 'no reason'})."
            " Download it again, or name another file in MODEL_PATH."
        ) from error
    if not isinstance(model, EncDecRNNTBPEModel) or not model.cfg.decoding.get("durations"):
        raise CheckpointError(
            f"{path} holds a {type(model).__name__}, not a Parakeet-TDT model"
            " (EncDecRNNTBPEModel with token durations)."
        )
    return model


def _import_nemo_quietly() -> None:
    """Import NeMo, then undo what it does to this process' logging and warnings."""
    # A telemetry package among its dependencies reports at length that it is off.
    logging.getLogger("nv_one_logger").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nemo.collections.asr  # noqa: F401
        from nemo.utils import logging as nemo_logging

    nemo_logging.captureWarnings(False)
    nemo_logger = logging.getLogger("nemo_logger")
    # It prints the checkpoint's whole configuration as warnings.
    nemo_logger.setLevel(logging.ERROR)
    for handler in list(nemo_logger.handlers):
        # Handlers without a target keep every record for ever.
        if isinstance(handler, logging.handlers.MemoryHandler):
            nemo_logger.removeHandler(handler)


@contextlib.contextmanager
def _no_random_init() -> Iterator[None]:
    """Skip random initial weights: 10 s for 0.6 B parameters that the checkpoint overwrites."""
    from torch.nn import init

    originals = {name: getattr(init, name) for name in _RANDOM_INITS}
    try:
        for name in originals:
            setattr(init, name, lambda tensor, *_args, **_kwargs: tensor)
        yield
    finally:
        for name, original in originals.items():
            setattr(init, name, original)


def _prepare_for_inference(model: Any, *, longest_s: float) -> None:
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer in model.encoder.layers:
        if hasattr(layer.self_attn, "use_pytorch_sdpa"):
            layer.self_attn.use_pytorch_sdpa = True
    _extend_positions(model.encoder, round(longest_s * SAMPLE_RATE) // _frame_samples(model) + 2)
    # NeMo would size the table by mel frames, eight times too many: 1.1 GB for 24 minutes.
    model.encoder.max_audio_length = 2**40


def _extend_positions(encoder: Any, frames: int) -> None:
    parameter = next(encoder.pre_encode.parameters())
    encoder.pos_enc.extend_pe(frames, parameter.device, _float_dtype(encoder))


def _set_backend_flags(model: Any, options: ModelOptions) -> None:
    import torch

    if options.device == "cpu":
        torch.set_num_threads(options.cpu_threads if _is_large(model) else 1)
    torch.set_float32_matmul_precision(options.matmul_precision)
    torch.backends.cuda.matmul.allow_tf32 = options.allow_tf32
    torch.backends.cudnn.allow_tf32 = options.allow_tf32
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    torch.backends.cudnn.deterministic = not options.cudnn_benchmark


def _place(model: Any, options: ModelOptions) -> tuple[EncoderPrecision, str]:
    """Cast the encoder and move the model; give the precision in use and why."""
    if options.precision != "auto":
        _cast_encoder(model, options.precision, device=options.device)
        model.to(options.device)
        return options.precision, "PRECISION"
    candidates = _precision_candidates(model, options.device)
    original = model.encoder
    reference = _self_test_output(model, "cpu") if candidates else None
    reason = "the fastest exact one for this model here"
    for precision in candidates:
        model.encoder = copy.deepcopy(original)
        _cast_encoder(model, precision, device=options.device)
        model.to(options.device)
        error = _relative_error(_self_test_output(model, options.device), reference)
        if error <= _SELF_TEST_MAX_ERROR:
            return precision, f"self-test passed: encoder error {error:.4f} against fp32"
        reason = f"{precision} failed its self-test: encoder error {error:.4f} against fp32"
        logger.warning("%s", reason)
    model.encoder = original
    model.to(options.device)
    return "fp32", reason


def _precision_candidates(model: Any, device: str) -> tuple[EncoderPrecision, ...]:
    import torch

    if device != "cpu":
        # fp16 has three more bits than bf16 at the same speed, but can overflow.
        return ("fp16", "bf16") if torch.cuda.is_bf16_supported() else ("fp16",)
    return ("bf16",) if _is_large(model) and _cpu_has_bf16() else ()


def _is_large(model: Any) -> bool:
    size: int = sum(parameter.numel() for parameter in model.encoder.parameters())
    return size >= _LARGE_ENCODER


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _cast_encoder(model: Any, precision: EncoderPrecision, *, device: str) -> None:
    """Cast the encoder alone: casting more would round the mel filters and the probabilities."""
    import torch

    if precision == "int8":
        if device != "cpu":
            raise SettingsError("PRECISION='int8' is not available on a CUDA card: use fp16")
        with warnings.catch_warnings():
            # torch says that this moves to another package; that one is not among ours.
            warnings.simplefilter("ignore")
            model.encoder = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
                model.encoder, {torch.nn.Linear}, dtype=torch.qint8
            )
    elif precision != "fp32":
        model.encoder.to(torch.float16 if precision == "fp16" else torch.bfloat16)


def _self_test_output(model: Any, device: str) -> Tensor:
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
        features, lengths = model.preprocessor(
            input_signal=waveform.to(device), length=torch.tensor([waveform.shape[1]]).to(device)
        )
        encoded, _ = model.encoder(
            audio_signal=features.to(_float_dtype(model.encoder)), length=lengths
        )
    output: Tensor = encoded.float().cpu()
    return output


def _relative_error(output: Tensor, reference: Tensor | None) -> float:
    assert reference is not None
    error = float((output - reference).norm() / reference.norm())
    return error if np.isfinite(error) else float("inf")


def _build_decoding(model: Any, options: ModelOptions) -> Any:
    """Make the token decoder, once: changing it later would throw its CUDA graphs away."""
    from nemo.collections.asr.parts.submodules.rnnt_decoding import RNNTBPEDecoding
    from omegaconf import open_dict

    config = copy.deepcopy(model.cfg.decoding)
    with open_dict(config):
        config.strategy = "greedy_batch" if options.strategy == "greedy" else "malsd_batch"
        config.greedy.max_symbols = _MOST_TOKENS_A_FRAME
        config.beam.beam_size = options.beam_size
        config.beam.return_best_hypothesis = True
        config.tdt_include_token_duration = True
        # NeMo's own timestamps take a hundred times longer than grouping tokens into words.
        config.compute_timestamps = False
    return RNNTBPEDecoding(
        decoding_cfg=config,
        decoder=model.decoder,
        joint=model.joint,
        tokenizer=model.tokenizer,
    )


def _frame_samples(model: Any) -> int:
    """Samples that one encoder frame stands for: 1,280 (80 ms)."""
    stride = float(model.cfg.preprocessor.window_stride) * SAMPLE_RATE
    return round(stride) * int(model.cfg.encoder.subsampling_factor)


def _blank_id(model: Any) -> int:
    return int(model.decoder.blank_idx)


def _float_dtype(module: Any) -> torch.dtype:
    import torch

    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter.dtype  # type: ignore[no-any-return]
    return torch.float32


def _integers(values: Any) -> list[int]:
    """Read a hypothesis' field: a tensor, an array or, when empty, a list."""
    return [int(value) for value in values]
