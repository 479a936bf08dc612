"""Restore a NeMo checkpoint for inference: its device, its precision, its token decoder.

NeMo and torch are imported inside functions: that takes ten seconds and a gigabyte.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import fcntl
import gc
import logging
import logging.handlers
import os
import shutil
import tarfile
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from parakeet_api.errors import DISK_FULL, CheckpointError, SettingsError
from parakeet_api.model.cuda import GraphVerdict, current
from parakeet_api.model.encoder import Encoder, encode
from parakeet_api.model.nemo_internals import (
    avoid_convolution_plans,
    extend_positions,
    float_dtype,
    mend_kernel_compilation,
    no_random_init,
    use_fused_attention,
)
from parakeet_api.model.token_decoder import GraphShape, TokenDecoder
from parakeet_api.settings import DecodingStrategy, MatmulPrecision, Precision
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
_SELF_TEST_FRAMES = 100
"""Encoder frames: more than the 4 s of the self-test have."""
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
    """Whether a GPU's passes are captured as graphs: the token decoder's for the largest batch of
    longest chunks, the encoder's for small batches."""
    graphed_s: float = 0.0
    """Seconds of audio, padding included, that a batch may have whose encoder pass is a graph."""
    graph_verdict: GraphVerdict | None = None
    """Where it is remembered that graphs ended in a lost GPU."""
    cpu_threads: int = 1
    """Threads that one forward pass may use on a CPU."""
    keep_cached_mb: float | None = None
    """Megabytes of a GPU's memory that torch may keep cached but unused; `None` = any amount."""
    cleanup_above: float = 1.0
    """Share of the GPU's memory in use above which unused memory is given back before a batch."""
    allow_tf32: bool = True
    cudnn_benchmark: bool = False
    """Whether cuDNN convolves, and times its algorithms anew for each new shape."""
    matmul_precision: MatmulPrecision = "highest"
    on_warm_up: Callable[[float], None] = lambda _: None
    """Told the share of the warm-up that is done."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A checkpoint, ready for inference; nothing in it changes any more."""

    network: Any
    """NeMo's `EncDecRNNTBPEModel`: preprocessor, encoder, decoder, joint and tokenizer."""
    encoder: Encoder
    decoder: TokenDecoder
    info: ModelInfo


_importing = threading.Lock()


def load_model(path: Path, options: ModelOptions) -> LoadedModel:
    """Restore a `.nemo` file for inference.

    Raises `CheckpointError`, naming the file, if it is not a complete Parakeet-TDT checkpoint;
    `SettingsError` for a precision that the device does not have; `OSError` or `MemoryError` where
    the disk or the memory does not suffice.
    """
    model = _restore(path)
    _prepare_for_inference(model)
    _set_backend_flags(model, options)
    with current(options.device):
        return _on_its_device(model, options)


def _on_its_device(model: Any, options: ModelOptions) -> LoadedModel:
    precision, reason = _place(model, options)
    info = ModelInfo(
        device=options.device,
        precision=precision,
        precision_reason=reason,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        decoding="greedy" if options.strategy == "greedy" else f"beam of {options.beam_size}",
    )
    graphs = _graphs_are_allowed(options)
    encoder = Encoder(
        model,
        device=options.device,
        longest_s=options.longest_s,
        graphed_s=options.graphed_s if graphs else 0.0,
    )
    shape = GraphShape(
        rows=options.largest_batch,
        frames=encoder.longest_frames,
        width=int(model.cfg.encoder.d_model),
    )
    decoder = _build_decoder(model, options, graphs=shape if graphs else None)
    decoder.capture()
    encoder.warm_up(options.on_warm_up)
    return LoadedModel(model, encoder, decoder, info)


def _graphs_are_allowed(options: ModelOptions) -> bool:
    if not options.cuda_graphs or options.device == "cpu":
        return False
    reason = options.graph_verdict.reason_against() if options.graph_verdict else None
    if reason is not None:
        logger.warning("no CUDA graphs, recognition is slower: %s", reason)
    return reason is None


def _restore(path: Path) -> Any:
    import_libraries()
    from nemo.collections.asr.models import ASRModel, EncDecRNNTBPEModel
    from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

    try:
        with (
            _folder_to_unpack() as folder,
            no_random_init(),
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

    mend_kernel_compilation()
    nemo_logging.captureWarnings(False)
    nemo_logger = logging.getLogger("nemo_logger")
    # It prints the checkpoint's whole configuration as warnings.
    nemo_logger.setLevel(logging.ERROR)
    for handler in list(nemo_logger.handlers):
        # Handlers without a target keep every record for ever.
        if isinstance(handler, logging.handlers.MemoryHandler):
            nemo_logger.removeHandler(handler)


def _prepare_for_inference(model: Any) -> None:
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    use_fused_attention(model.encoder)
    extend_positions(model.encoder, _SELF_TEST_FRAMES, float_dtype(model.encoder))


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
    # It makes a plan for every new shape, 16 ms a layer; torch's other kernels take none.
    torch.backends.cuda.enable_cudnn_sdp(options.cudnn_benchmark)


def _place(model: Any, options: ModelOptions) -> tuple[EncoderPrecision, str]:
    """Cast the encoder and move the model; give the precision in use and why."""
    if options.precision != "auto":
        _cast_encoder(model, options.precision, device=options.device)
        _send(model, options)
        return options.precision, "PRECISION"
    candidates = _precision_candidates(model, options.device)
    original = model.encoder
    reference = _self_test_output(model) if candidates else None
    reason = "exact; nothing faster is known for this model on this device"
    for precision in candidates:
        model.encoder = copy.deepcopy(original)
        _cast_encoder(model, precision, device=options.device)
        _send(model, options)
        error = _relative_error(_self_test_output(model), reference)
        if error <= _SELF_TEST_MAX_ERROR:
            return precision, f"self-test passed: encoder error {error:.4f} against fp32"
        reason = f"{precision} failed its self-test: encoder error {error:.4f} against fp32"
        logger.warning("%s", reason)
        model.encoder = original
        # Its layers refer to each other: else it would stay in the GPU's memory beside the next.
        gc.collect()
    _send(model, options)
    return "fp32", reason


def _send(model: Any, options: ModelOptions) -> None:
    """Send the model to its device."""
    if options.device != "cpu" and not options.cudnn_benchmark:
        avoid_convolution_plans(model.encoder)
    model.to(options.device)


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
        encoded, _ = encode(model, waveform, torch.tensor([waveform.shape[1]]))
    return encoded.cpu()


def _relative_error(output: Tensor, reference: Tensor | None) -> float:
    assert reference is not None
    error = float((output - reference).norm() / reference.norm())
    return error if np.isfinite(error) else float("inf")


def _build_decoder(model: Any, options: ModelOptions, *, graphs: GraphShape | None) -> TokenDecoder:
    """Make the token decoder, once: changing it later would throw its CUDA graphs away."""
    from nemo.collections.asr.parts.submodules.rnnt_decoding import RNNTBPEDecoding
    from omegaconf import open_dict

    beam = options.strategy == "beam"
    config = copy.deepcopy(model.cfg.decoding)
    with open_dict(config):
        config.strategy = "malsd_batch" if beam else "greedy_batch"
        config.greedy.max_symbols = _MOST_TOKENS_A_FRAME
        config.greedy.use_cuda_graph_decoder = graphs is not None
        config.beam.allow_cuda_graphs = graphs is not None
        config.beam.beam_size = options.beam_size
        config.beam.return_best_hypothesis = True
        # Greedy takes the most probable, which the joint network tells again; a beam may not.
        config.tdt_include_token_duration = beam
        # NeMo's own timestamps take a hundred times longer than grouping tokens into words.
        config.compute_timestamps = False
    decoding = RNNTBPEDecoding(
        decoding_cfg=config,
        decoder=model.decoder,
        joint=model.joint,
        tokenizer=model.tokenizer,
    )
    return TokenDecoder(decoding, device=options.device, graphs=graphs, beam=beam)


def blank_id(model: Any) -> int:
    return int(model.decoder.blank_idx)
