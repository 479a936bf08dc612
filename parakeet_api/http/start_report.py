"""The start report: device, memory, models, plan and every setting."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from parakeet_api.formats.status import (
    GpuJson,
    HostMemoryJson,
    ModelReport,
    PlanReport,
    StartReportJson,
)
from parakeet_api.model.devices import (
    Gpu,
    InferencePlan,
    available_cores,
    main_permits,
    missing_gpu,
)
from parakeet_api.model.memory import HostMemory, host_memory
from parakeet_api.served_models import ServedModel, ServedModels
from parakeet_api.settings import Settings

logger = logging.getLogger(__name__)


_GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model that requests can name, and its file."""

    name: str
    model_id: str
    """The model to download if there is no file."""
    path: Path | None
    """`None` during the download."""
    bytes: int | None
    """From the file; `None` if there is none."""
    demo: bool
    note: str | None
    """What a bundled model is, in one sentence."""
    languages: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReport:
    """The facts that an operator needs to diagnose a problem."""

    gpu: Gpu | None
    """The GPU that would be used."""
    cores: int
    """Processor cores that this process may use."""
    memory: HostMemory | None
    models: tuple[ModelFile, ...]
    plan: InferencePlan
    settings: Settings

    def text(self) -> str:
        """Write the report for the log."""
        return "\n".join(
            [
                "started with:",
                f"  device     {self._device()}; DEVICE={self.settings.device}",
                f"  memory     {self._memory()}",
                f"  precision  {self.settings.precision} wanted, {self._decoding()} decoding",
                *(f"  model      {_line(model)}" for model in self.models),
                f"  plan       {self._plan()}",
                f"  requests   {self._requests()}",
                "  settings",
                *(
                    f"    {name}={value or '(empty)'}  [{origin}]"
                    for name, value, origin in self.settings.describe()
                ),
            ]
        )

    def body(self) -> StartReportJson:
        """Return the report as JSON, with only the last part of paths."""
        settings = self.settings
        return {
            "device": {
                "wanted": settings.device,
                "card": _gpu_json(self.gpu) if self.gpu else None,
                "cores": self.cores,
            },
            "memory": _memory_json(self.memory) if self.memory else None,
            "precision": settings.precision,
            "decoding": self._decoding(),
            "models": [_model_json(model) for model in self.models],
            "plan": _plan_json(self.plan, permits=settings.max_concurrent_inferences),
            "settings": [
                {"name": name, "value": value, "origin": origin}
                for name, value, origin in settings.describe(whole_paths=False)
            ],
        }

    def _device(self) -> str:
        cores = f"{self.cores} processor cores"
        return f"{self.gpu.name}, {self.gpu.total_gb:.1f} GB; {cores}" if self.gpu else cores

    def _memory(self) -> str:
        if self.memory is None:
            return "unknown"
        available, total = self.memory.available / _GIB, self.memory.total / _GIB
        return f"{available:.1f} of {total:.1f} GiB available"

    def _decoding(self) -> str:
        beam = f"beam of {self.settings.beam_size}"
        return "greedy" if self.settings.decoding_strategy == "greedy" else beam

    def _plan(self) -> str:
        plan = self.plan
        reason = (
            "as measured on a CPU"
            if plan.memory_mb is None
            else f"as a pass may take {plan.memory_mb:.0f} MB of the GPU: {plan.memory_limit}"
        )
        permits = self.settings.max_concurrent_inferences
        for_clips = ", one of them for clips" if main_permits(permits) < permits else ""
        return (
            f"chunks of at most {plan.longest_chunk_s:.0f} s, batches of at most"
            f" {plan.batch_size} chunks and {plan.batch_s:.0f} s, {reason};"
            f" {permits} at a time{for_clips}"
        )

    def _requests(self) -> str:
        settings = self.settings
        processes = (
            f"; {settings.clip_processes} processes receive clips"
            if settings.clip_processes
            else ""
        )
        return (
            f"{settings.app_threads} at a time, {settings.max_queued_requests} more may wait"
            f"{processes}"
        )


def report_start(settings: Settings, *, models: ServedModels, gpu: Gpu | None) -> StartReport:
    """Collect the facts, without waiting for a load or for inference."""
    return StartReport(
        gpu=gpu,
        cores=available_cores(),
        memory=host_memory(),
        models=tuple(_file_of(model) for model in models),
        plan=models.first.plan,
        settings=settings,
    )


def log_start(settings: Settings, *, models: ServedModels, gpu: Gpu | None) -> None:
    """Log what the server was started with."""
    logger.info("%s", report_start(settings, models=models, gpu=gpu).text())
    is_on_cpu = gpu is None and settings.ray_address is None
    if is_on_cpu and settings.device == "auto" and (reason := missing_gpu()):
        logger.info("no GPU, the CPU is used: %s", reason)
    if settings.origins["enable_gradient_checkpointing"] == "environment":
        logger.info("ENABLE_GRADIENT_CHECKPOINTING has no effect: inference keeps no gradients")


def _file_of(model: ServedModel) -> ModelFile:
    checkpoint = model.checkpoints.status.checkpoint
    return ModelFile(
        name=model.name,
        model_id=model.checkpoints.model_id,
        path=checkpoint.path if checkpoint else None,
        bytes=_size_of(checkpoint.path) if checkpoint else None,
        demo=checkpoint.is_demo if checkpoint else False,
        note=checkpoint.note if checkpoint else None,
        languages=tuple(sorted(model.languages)),
    )


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _gpu_json(gpu: Gpu) -> GpuJson:
    return {
        "name": gpu.name,
        "total_gb": gpu.total_gb,
        "free_gb": gpu.free_gb,
        "device": gpu.device,
        "driver": gpu.driver,
    }


def _memory_json(memory: HostMemory) -> HostMemoryJson:
    return {"available": memory.available, "total": memory.total}


def _model_json(model: ModelFile) -> ModelReport:
    return {
        "name": model.name,
        "model_id": model.model_id,
        "path": model.path.name if model.path else None,
        "bytes": model.bytes,
        "demo": model.demo,
        "note": model.note,
        "languages": list(model.languages),
    }


def _plan_json(plan: InferencePlan, *, permits: int) -> PlanReport:
    return {
        "longest_chunk_s": plan.longest_chunk_s,
        "batch_size": plan.batch_size,
        "batch_s": plan.batch_s,
        "memory_mb": plan.memory_mb,
        "memory_limit": plan.memory_limit,
        "graphed_s": plan.graphed_s,
        "permits": permits,
    }


def _line(model: ModelFile) -> str:
    if model.path is None:
        return f"{model.name}: to be fetched as {model.model_id}"
    size = "gone" if model.bytes is None else f"{model.bytes / 1e6:,.0f} MB"
    note = f"; BUNDLED MODEL: {model.note}" if model.note else ""
    return f"{model.name}: {model.path}, {size}, speaks {', '.join(model.languages)}{note}"
