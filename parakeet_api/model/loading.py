"""Load a checkpoint for inference: restore, cast, move to its device, warm up.

torch and NeMo are imported inside functions: that takes seconds and half a gigabyte.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from parakeet_api.model.architecture import Architecture
from parakeet_api.model.ctc_decoder import CtcDecoder
from parakeet_api.model.cuda import GraphVerdict, current
from parakeet_api.model.devices import Gpu, InferencePlan, available_cores, main_permits
from parakeet_api.model.encoder import Encoder
from parakeet_api.model.heap import trim_heap
from parakeet_api.model.nemo_internals import extend_positions, float_dtype, use_fused_attention
from parakeet_api.model.precision import EncoderPrecision, is_large, place
from parakeet_api.model.restore import restore
from parakeet_api.model.token_decoder import GraphShape, TokenDecoder
from parakeet_api.settings import DecodingStrategy, MatmulPrecision, Precision, Settings

logger = logging.getLogger(__name__)

_MAX_TOKENS_PER_FRAME = 10
"""As in NVIDIA's evaluations; without a limit a broken frame emits tokens for ever."""
_SELF_TEST_FRAMES = 100
"""Encoder frames: more than in the 4 s of the self-test."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Properties of a loaded model, for logs and `/health`."""

    device: str
    """`cpu`, `cuda:0`, ...; `ray:cuda:0` in a replica of a cluster."""
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
    """Maximum seconds of audio in one chunk; position tables are sized for it."""
    largest_batch: int = 1
    """Maximum number of chunks in one forward pass."""
    cuda_graphs: bool = True
    """Whether a GPU's passes are captured as graphs: the token decoder's for the largest batch of
    longest chunks, the encoder's for small batches."""
    graphed_s: float = 0.0
    """Seconds of audio in a batch, padding included, up to which its encoder pass is a graph."""
    graph_verdict: GraphVerdict | None = None
    """Stores that graphs have failed, over a restart."""
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
    """Called with the share of the warm-up that is done."""

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        *,
        gpu: Gpu | None,
        plan: InferencePlan,
        on_warm_up: Callable[[float], None] = lambda _: None,
    ) -> Self:
        """Build the options from the settings and the plan for the device."""
        permits = main_permits(settings.max_concurrent_inferences)
        cached_mb = settings.max_chunk_memory_mb if settings.aggressive_memory_cleanup else None
        return cls(
            device=gpu.device if gpu else "cpu",
            precision=settings.precision,
            strategy=settings.decoding_strategy,
            beam_size=settings.beam_size,
            longest_s=plan.longest_chunk_s,
            largest_batch=plan.batch_size,
            cuda_graphs=settings.enable_cuda_graphs,
            graphed_s=plan.graphed_s,
            graph_verdict=_graph_verdict(settings, gpu) if gpu else None,
            cpu_threads=max(1, available_cores() // permits),
            keep_cached_mb=cached_mb,
            cleanup_above=settings.force_cleanup_threshold,
            allow_tf32=settings.enable_tensor_core,
            cudnn_benchmark=settings.enable_cudnn_benchmark,
            matmul_precision=settings.tensor_core_precision,
            on_warm_up=on_warm_up,
        )


def _graph_verdict(settings: Settings, gpu: Gpu) -> GraphVerdict:
    """Return the stored verdict on CUDA graphs for this GPU, driver, torch and NeMo."""
    packages = [f"{name} {version(name)}" for name in ("torch", "nemo_toolkit")]
    setup = ", ".join([gpu.name, f"driver {gpu.driver}", *packages])
    return GraphVerdict(settings.jobs_dir / "cuda-graphs.json", setup=setup)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A checkpoint ready for inference; immutable."""

    network: Any
    """NeMo's model: preprocessor, encoder, decoder, tokenizer, and a joint network unless CTC."""
    architecture: Architecture
    encoder: Encoder
    decoder: TokenDecoder
    info: ModelInfo


def load_model(path: Path, options: ModelOptions) -> LoadedModel:
    """Restore a `.nemo` file for inference.

    Raises `CheckpointError`, naming the file, if it is no complete Parakeet checkpoint;
    `SettingsError` for a precision that the device does not have; `OSError` or `MemoryError` where
    the disk or the memory does not suffice.
    """
    model, architecture = _restored(path)
    _set_backend_flags(model, options)
    with current(options.device):
        loaded = _on_its_device(
            model, architecture, options, read_encoder=lambda: _restored(path)[0].encoder
        )
    # The weights that were replaced by a cast or a copy on the GPU: up to 2.5 GB.
    trim_heap()
    return loaded


def _restored(path: Path) -> tuple[Any, Architecture]:
    model, architecture = restore(path)
    _prepare_for_inference(model)
    return model, architecture


def _on_its_device(
    model: Any,
    architecture: Architecture,
    options: ModelOptions,
    *,
    read_encoder: Callable[[], Any],
) -> LoadedModel:
    # Those of int8 are no parameters to torch.
    parameters = sum(parameter.numel() for parameter in model.parameters())
    precision, reason = place(
        model,
        device=options.device,
        precision=options.precision,
        keep_cudnn=options.cudnn_benchmark,
        read_encoder=read_encoder,
    )
    beam = options.strategy == "beam" and architecture.decoder != "ctc"
    info = ModelInfo(
        device=options.device,
        precision=precision,
        precision_reason=reason,
        parameters=parameters,
        decoding=f"beam of {options.beam_size}" if beam else "greedy",
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
    decoder = (
        CtcDecoder(model, device=options.device)
        if architecture.decoder == "ctc"
        else _build_decoder(model, options, graphs=shape if graphs else None)
    )
    decoder.capture()
    encoder.warm_up(options.on_warm_up)
    return LoadedModel(model, architecture, encoder, decoder, info)


def _graphs_are_allowed(options: ModelOptions) -> bool:
    if not options.cuda_graphs or options.device == "cpu":
        return False
    reason = options.graph_verdict.reason_against() if options.graph_verdict else None
    if reason is not None:
        logger.warning("no CUDA graphs, recognition is slower: %s", reason)
    return reason is None


def _prepare_for_inference(model: Any) -> None:
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if hasattr(model.preprocessor, "featurizer"):
        # As in NeMo's own transcription; padding would exceed the table of positions.
        model.preprocessor.featurizer.pad_to = 0
    use_fused_attention(model.encoder)
    extend_positions(model.encoder, _SELF_TEST_FRAMES, float_dtype(model.encoder))


def _set_backend_flags(model: Any, options: ModelOptions) -> None:
    import torch

    if options.device == "cpu":
        torch.set_num_threads(options.cpu_threads if is_large(model) else 1)
    # Do not set matmul.allow_tf32 as well: the two settings overwrite each other.
    torch.set_float32_matmul_precision(
        options.matmul_precision if options.allow_tf32 else "highest"
    )
    torch.backends.cudnn.allow_tf32 = options.allow_tf32
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    torch.backends.cudnn.deterministic = not options.cudnn_benchmark
    # cuDNN builds a plan for every new shape, 16 ms a layer; torch's other kernels need none.
    torch.backends.cuda.enable_cudnn_sdp(options.cudnn_benchmark)


def _build_decoder(model: Any, options: ModelOptions, *, graphs: GraphShape | None) -> TokenDecoder:
    """Build the token decoder once: changing it later would discard its CUDA graphs."""
    from nemo.collections.asr.parts.submodules.rnnt_decoding import RNNTBPEDecoding
    from omegaconf import open_dict

    beam = options.strategy == "beam"
    config = copy.deepcopy(model.cfg.decoding)
    with open_dict(config):
        for section in ("greedy", "beam"):
            config.setdefault(section, {})
        config.strategy = "malsd_batch" if beam else "greedy_batch"
        config.greedy.max_symbols = _MAX_TOKENS_PER_FRAME
        config.greedy.loop_labels = True
        config.greedy.use_cuda_graph_decoder = graphs is not None
        config.beam.allow_cuda_graphs = graphs is not None
        config.beam.beam_size = options.beam_size
        config.beam.return_best_hypothesis = True
        # Greedy decoding uses the most probable duration, which one more joint pass reproduces; a
        # beam may use another one.
        config.tdt_include_token_duration = beam and bool(config.get("durations"))
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
    """Return the id of the blank, which equals the size of the vocabulary."""
    if hasattr(model.decoder, "blank_idx"):
        return int(model.decoder.blank_idx)
    return int(model.decoder.num_classes_with_blank) - 1
