"""Restore a NeMo checkpoint for inference: its device, its precision, its token decoder.

NeMo and torch are imported inside functions: that takes ten seconds and a gigabyte.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import fcntl
import logging
import logging.handlers
import os
import shutil
import tarfile
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from parakeet_api.errors import DISK_FULL, CheckpointError, SettingsError
from parakeet_api.settings import DecodingStrategy, MatmulPrecision, Precision
from parakeet_api.token_decoder import GraphShape, TokenDecoder, forget_all_graphs
from parakeet_api.transcript import SAMPLE_RATE

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor

logger = logging.getLogger(__name__)

EncoderPrecision = Literal["fp16", "bf16", "int8", "fp32"]

_UNPACKED = "parakeet-api-checkpoint-"
"""How folders of unpacked checkpoints are called in TMPDIR."""
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
"""Relative encoder error against fp32. Half precision measures 0.004 on the demo model; with random
weights in full size bf16 measures 0.015 and int8 0.030. An overflow measures far more."""


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
    largest_batch: int = 1
    """Chunks that one forward pass may have."""
    cuda_graphs: bool = True
    """Whether a card's token decoder captures graphs, for the largest batch of longest chunks."""
    cpu_threads: int = 1
    """Threads that one forward pass may use on a CPU."""
    keep_cached_mb: float | None = None
    """Megabytes of a card's memory that torch may keep cached but unused; `None` = any amount."""
    cleanup_above: float = 1.0
    """Share of the card in use above which unused memory is given back before a batch."""
    allow_tf32: bool = True
    cudnn_benchmark: bool = True
    matmul_precision: MatmulPrecision = "highest"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """A card's memory, bytes."""

    used: int
    """By all programs."""
    total: int
    allocated: int
    """By this process' tensors."""
    reserved: int
    """By this process, tensors and what torch keeps for the next ones."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A checkpoint, ready for inference; nothing in it changes any more."""

    network: Any
    """NeMo's `EncDecRNNTBPEModel`: preprocessor, encoder, decoder, joint and tokenizer."""
    decoder: TokenDecoder
    """Over that network."""
    info: ModelInfo


_importing = threading.Lock()


def load_model(path: Path, options: ModelOptions) -> LoadedModel:
    """Restore a `.nemo` file for inference.

    Raises `CheckpointError`, naming the file, if it is not a complete Parakeet-TDT checkpoint;
    `SettingsError` for a precision that the device does not have; `OSError` or `MemoryError` where
    the disk or the memory does not suffice.
    """
    forget_all_graphs()
    model = _restore(path)
    _prepare_for_inference(model, longest_s=options.longest_s)
    _set_backend_flags(model, options)
    precision, reason = _place(model, options)
    info = ModelInfo(
        device=str(device_of(model)),
        precision=precision,
        precision_reason=reason,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        decoding="greedy" if options.strategy == "greedy" else f"beam of {options.beam_size}",
    )
    return LoadedModel(model, _build_decoder(model, options), info)


def context_is_lost(device: str) -> bool:
    """Tell whether the card refuses all further work of this process.

    After an illegal memory access, a failed assertion in a kernel or an error of the memory, every
    later call reports it again; after any other error the card goes on.
    """
    import torch

    if device == "cpu":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def is_memory_shortage(error: Exception) -> bool:
    """Tell whether an error says that the card's memory does not suffice.

    torch has a type for it; libraries that it calls, and CUDA itself, say it in words.
    """
    import torch

    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and any(part in str(error) for part in ("CUDA error: out of memory", "ALLOC_FAILED"))
    )


def limit_device_memory(device: str, fraction: float) -> None:
    """Let this process take at most a share of the card."""
    import torch

    torch.cuda.set_per_process_memory_fraction(fraction, device)


def device_memory(device: str) -> DeviceMemory:
    """Look at a card's memory."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(
        used=total - free,
        total=total,
        allocated=torch.cuda.memory_allocated(device),
        reserved=torch.cuda.memory_reserved(device),
    )


def _restore(path: Path) -> Any:
    import_libraries()
    from nemo.collections.asr.models import ASRModel, EncDecRNNTBPEModel
    from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

    try:
        with (
            _folder_to_unpack() as folder,
            _no_random_init(),
            warnings.catch_warnings(),
        ):
            _unpack(path, folder)
            connector = SaveRestoreConnector()
            connector.model_extracted_dir = str(folder)
            # About training options of the checkpoint, which do not concern inference.
            warnings.simplefilter("ignore")
            model = ASRModel.restore_from(
                str(path.absolute()),
                map_location="cpu",
                strict=True,
                save_restore_connector=connector,
            )
    # A damaged archive can fail anywhere in tar, yaml, pickle or NeMo.
    except Exception as error:
        if _is_machine_shortage(error):
            raise
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


@contextlib.contextmanager
def _folder_to_unpack() -> Iterator[Path]:
    """Make a folder for the time of the block; first remove those of processes that were killed.

    A lock tells those that still run. With the 0.6B model such a folder holds 2.5 GB.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_UNPACKED}*"):
        with contextlib.suppress(OSError), _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(left)
    with (
        tempfile.TemporaryDirectory(prefix=_UNPACKED) as name,
        _locked(Path(name), fcntl.LOCK_SH),
    ):
        yield Path(name)


@contextlib.contextmanager
def _locked(folder: Path, lock: int) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, lock)
        yield
    finally:
        os.close(descriptor)


def _is_machine_shortage(error: Exception) -> bool:
    """Tell whether it is the machine that has too little of something, and not a damaged file."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in DISK_FULL | {errno.ENOMEM}
    )


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a `.nemo` file's files, and nothing outside the folder.

    NeMo's own way needs Python 3.11.4 or newer; Debian 12 has 3.11.2.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            target = (folder / member.name).resolve()
            content = tar.extractfile(member) if member.isfile() else None
            if content is None or not target.is_relative_to(folder.resolve()):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file, 1024 * 1024)


def import_libraries() -> None:
    """Import torch and NeMo, which takes some seconds the first time.

    One thread at a time: two that import one package can see it half made.
    """
    with _importing:
        _import_nemo_quietly()


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
    extend_positions(model.encoder, frames_of(model, longest_s))
    # NeMo would size the table by mel frames, eight times too many: 1.1 GB for 24 minutes.
    model.encoder.max_audio_length = 2**40


def extend_positions(encoder: Any, frames: int) -> None:
    parameter = next(encoder.pre_encode.parameters())
    encoder.pos_enc.extend_pe(frames, parameter.device, float_dtype(encoder))


def _set_backend_flags(model: Any, options: ModelOptions) -> None:
    import torch

    if options.device == "cpu":
        torch.set_num_threads(options.cpu_threads if _is_large(model) else 1)
    # Not allow_tf32 of matmul as well: each of the two overwrites the other.
    torch.set_float32_matmul_precision(
        options.matmul_precision if options.allow_tf32 else "highest"
    )
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
    reference = _self_test_output(model) if candidates else None
    reason = "exact; nothing faster is known for this model on this device"
    for precision in candidates:
        model.encoder = copy.deepcopy(original)
        _cast_encoder(model, precision, device=options.device)
        model.to(options.device)
        error = _relative_error(_self_test_output(model), reference)
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
    if not _is_large(model):
        return ()
    features = _cpu_features()
    if features & {"avx512_bf16", "amx_bf16"}:
        # As fast as int8, with half its error.
        return ("bf16",)
    return ("int8",) if "avx2" in features else ()


def _is_large(model: Any) -> bool:
    size: int = sum(parameter.numel() for parameter in model.encoder.parameters())
    return size >= _LARGE_ENCODER


def _cpu_features() -> set[str]:
    """Give the names of what the processor can do, as Linux lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.partition(":")[2].split())


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
                model.encoder, {torch.nn.Linear}, dtype=torch.qint8, inplace=True
            )
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
        encoded, _ = encode(model, waveform, [waveform.shape[1]])
    return encoded.cpu()


def _relative_error(output: Tensor, reference: Tensor | None) -> float:
    assert reference is not None
    error = float((output - reference).norm() / reference.norm())
    return error if np.isfinite(error) else float("inf")


def _build_decoder(model: Any, options: ModelOptions) -> TokenDecoder:
    """Make the token decoder, once: changing it later would throw its CUDA graphs away."""
    from nemo.collections.asr.parts.submodules.rnnt_decoding import RNNTBPEDecoding
    from omegaconf import open_dict

    graphs = options.cuda_graphs and options.device != "cpu"
    config = copy.deepcopy(model.cfg.decoding)
    with open_dict(config):
        config.strategy = "greedy_batch" if options.strategy == "greedy" else "malsd_batch"
        config.greedy.max_symbols = _MOST_TOKENS_A_FRAME
        config.greedy.use_cuda_graph_decoder = config.beam.allow_cuda_graphs = graphs
        config.beam.beam_size = options.beam_size
        config.beam.return_best_hypothesis = True
        config.tdt_include_token_duration = True
        # NeMo's own timestamps take a hundred times longer than grouping tokens into words.
        config.compute_timestamps = False
    decoding = RNNTBPEDecoding(
        decoding_cfg=config,
        decoder=model.decoder,
        joint=model.joint,
        tokenizer=model.tokenizer,
    )
    shape = GraphShape(
        rows=options.largest_batch,
        frames=frames_of(model, options.longest_s),
        width=int(model.cfg.encoder.d_model),
    )
    decoder = TokenDecoder(decoding, device=options.device, graphs=shape if graphs else None)
    decoder.capture()
    return decoder


def encode(model: Any, waveforms: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Run features and encoder over padded waveforms: fp32, shape (B, samples), in main memory.

    Gives the encoder's output on the model's device, fp32, shape (B, D, T), and lengths (B,).
    """
    import torch

    device = device_of(model)
    # From pinned memory the copy does not hold the thread up. A stream of its own for it would win
    # next to nothing: 8 x 60 s are 31 MB, 1 to 3 ms over PCIe, beside a pass of 100 ms and more.
    features, feature_lengths = model.preprocessor(
        input_signal=waveforms.to(device, non_blocking=True),
        length=torch.tensor(lengths, device=device),
    )
    encoded, encoded_lengths = model.encoder(
        audio_signal=features.to(float_dtype(model.encoder)), length=feature_lengths
    )
    return encoded.float(), encoded_lengths


def device_of(model: Any) -> torch.device:
    """Tell where the model is."""
    device: torch.device = next(model.joint.parameters()).device
    return device


def frame_samples(model: Any) -> int:
    """Samples that one encoder frame stands for: 1,280 (80 ms)."""
    stride = float(model.cfg.preprocessor.window_stride) * SAMPLE_RATE
    return round(stride) * int(model.cfg.encoder.subsampling_factor)


def padded_width(model: Any, samples: int) -> int:
    """Give the samples that a batch is padded to whose longest waveform has so many.

    A multiple of four encoder frames, 0.32 s, so that few shapes come again and again. oneDNN
    keeps a plan for each of up to 1,024, in the heap among a pass' tensors: with a shape of its own
    for nearly every pass the heap grew by 750 MB in ten hours of audio, so by 100 MB. cuDNN times
    its algorithms anew for each. The padding is 0.6 % of a chunk of 30 s and changes nothing.
    """
    step = 4 * frame_samples(model)
    return -(-samples // step) * step


def frames_of(model: Any, seconds: float) -> int:
    """Give the most encoder frames that so much audio can have."""
    return padded_width(model, round(seconds * SAMPLE_RATE)) // frame_samples(model) + 2


def blank_id(model: Any) -> int:
    return int(model.decoder.blank_idx)


def float_dtype(module: Any) -> torch.dtype:
    import torch

    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter.dtype  # type: ignore[no-any-return]
    return torch.float32
