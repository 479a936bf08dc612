"""The models that requests can name, each with its slot, its batcher and its pipeline."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Self

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.errors import ModelNotFoundError
from parakeet_api.languages import languages_of
from parakeet_api.metrics import Metrics
from parakeet_api.model.batching import Batcher, UrgentRecognizer
from parakeet_api.model.checkpoints import BundledModels, CheckpointStore
from parakeet_api.model.cuda import DeviceMemory, known_device_memory
from parakeet_api.model.devices import Gpu, InferencePlan
from parakeet_api.model.memory import has_room
from parakeet_api.model.pool import ModelPool
from parakeet_api.model.recognizer import load_recognizer
from parakeet_api.model.restore import import_libraries
from parakeet_api.model.slot import ModelSlot, Unloading
from parakeet_api.model.voice_activity import SileroDetector
from parakeet_api.pipeline import Pipeline
from parakeet_api.settings import Settings, model_basename
from parakeet_api.speech.chunking import ChunkPolicy

ALIASES = frozenset(
    {
        "whisper-1",
        "gpt-transcribe",
        "gpt-4o-transcribe",
        "gpt-4o-mini-transcribe",
    }
)
"""OpenAI's models; they mean the first model of this server."""

_FOREIGN_NAMES = re.compile(r"whisper|^gpt-", re.IGNORECASE)
"""Sent by clients that were written for another server. `large-v3` alone could be a typing error,
`Systran/faster-whisper-large-v3` could not."""
_MAX_ECHOED_CHARS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model with what works for it alone: a batch never mixes two models."""

    slot: ModelSlot
    batcher: Batcher
    pipeline: Pipeline
    live: Pipeline
    """The same for people who are speaking: it goes before the other."""
    configured_languages: tuple[str, ...]
    """`MODEL_LANGUAGES`."""

    @property
    def checkpoints(self) -> CheckpointStore:
        return self.slot.checkpoints

    @property
    def name(self) -> str:
        return self.checkpoints.name

    @property
    def languages(self) -> frozenset[str]:
        """The languages it recognises, ISO 639-1 codes."""
        return languages_of(self.name, self.configured_languages)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModels:
    """All models of this server; a request that names none gets the first."""

    members: tuple[ServedModel, ...]
    """At least one."""
    pool: ModelPool
    selectable: bool
    """Whether requests select one by name (`MODELS`); else every name means the first."""
    detector: SileroDetector
    """Tells speech from other sounds for all of them."""

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        *,
        gpu: Gpu | None,
        plan: InferencePlan,
        decoder: FfmpegDecoder,
        bundled: BundledModels,
        metrics: Metrics,
        on_device_lost: Callable[[], None] = lambda: None,
    ) -> Self:
        """Set up the models of `MODELS`, or the one that the other settings name.

        Begins to download those without a file on disk; loads none. `on_device_lost` is called if
        the GPU refuses all further work.
        """
        slots = [
            ModelSlot(
                CheckpointStore(settings, bundled=bundled, only=name),
                partial(load_recognizer, settings=settings, gpu=gpu, plan=plan),
                idle_timeout_s=settings.idle_timeout_minutes * 60,
                name=model_basename(name) if name else "",
                prepare=import_libraries,
                metrics=metrics,
            )
            for name in settings.models or (None,)
        ]
        for slot in slots:
            slot.checkpoints.start()
            slot.unload_when_idle()
        pool = ModelPool(
            slots,
            permits=settings.max_concurrent_inferences,
            has_room=partial(has_room, settings=settings),
        )

        detector = SileroDetector()

        def serve(slot: ModelSlot) -> ServedModel:
            batcher = Batcher(
                partial(pool.lease, slot),
                plan=plan,
                permits=settings.max_concurrent_inferences,
                metrics=metrics,
                on_device_lost=on_device_lost,
            )
            pipeline_with = partial(
                Pipeline,
                decoder=decoder,
                policy=ChunkPolicy.from_settings(settings, longest_s=plan.longest_chunk_s),
                settings=settings,
                metrics=metrics,
                detector=detector,
            )
            return ServedModel(
                slot=slot,
                batcher=batcher,
                pipeline=pipeline_with(batcher=batcher),
                live=pipeline_with(batcher=UrgentRecognizer(batcher)),
                configured_languages=settings.model_languages,
            )

        models = cls(
            members=tuple(serve(slot) for slot in slots),
            pool=pool,
            selectable=bool(settings.models),
            detector=detector,
        )
        models._export(metrics, with_gpu=gpu is not None)
        return models

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self.members)

    @property
    def first(self) -> ServedModel:
        return self.members[0]

    def named(self, name: str) -> ServedModel:
        """Give the model that a request means; without a name, or with an alias, the first.

        Raises `ModelNotFoundError` for a name that is neither one of `MODELS` nor of a model that
        another server has: its transcript would be another model's without a sign of it.
        """
        if not self.selectable:
            return self.first
        known = self._known(name)
        if known is None and name and not _FOREIGN_NAMES.search(name):
            raise self._not_found(name)
        return known or self.first

    def pipeline_of(self, name: str) -> Pipeline:
        """Give the pipeline of the model that is meant.

        Raises `ServiceUnavailableError` while there is no file of it.
        """
        model = self.named(name)
        model.checkpoints.checkpoint()
        return model.pipeline

    def described(self, name: str) -> ServedModel:
        """Give the model that answers to a name. Raises `ModelNotFoundError`."""
        known = self.first if name in ALIASES else self._known(name)
        if known is None:
            raise self._not_found(name)
        return known

    def unload(self, model: ServedModel) -> Unloading:
        """Unload a model unless it is at work or being loaded; waits for neither."""
        return (
            "in_use"
            if model.pipeline.recordings or model.live.recordings
            else self.pool.unload(model.slot)
        )

    def load(self, model: ServedModel) -> Future[None]:
        """Begin to load a model. Raises `ServiceUnavailableError` while there is no file of it."""
        model.checkpoints.checkpoint()
        return self.pool.load(model.slot)

    def waiting_chunks(self) -> int:
        """Count the chunks that wait for a worker."""
        return sum(model.batcher.waiting() for model in self)

    def device(self) -> str | None:
        """Tell where models are loaded, once one was: `cpu`, `cuda:0`."""
        return next((model.slot.info.device for model in self if model.slot.info), None)

    def close(self, *, last_pass_s: float) -> None:
        """Stop, and unload; forward passes under way have so many seconds to end."""
        deadline = time.monotonic() + last_pass_s
        self.pool.close()
        for model in self:
            model.pipeline.close()
            model.live.close()
            model.batcher.close(timeout_s=max(0.0, deadline - time.monotonic()))
            model.slot.close()

    def _export(self, metrics: Metrics, *, with_gpu: bool) -> None:
        """Set up the gauges that are read when metrics are collected."""
        metrics.chunks_waiting.set_function(self.waiting_chunks)
        if with_gpu:
            for field in dataclasses.fields(DeviceMemory):
                gauge = metrics.device_memory_bytes.labels(field.name)
                gauge.set_function(partial(self._device_memory, field.name))

    def _device_memory(self, kind: str) -> float:
        memory = known_device_memory(self.device())
        return math.nan if memory is None else float(getattr(memory, kind))

    def _known(self, name: str) -> ServedModel | None:
        return next((m for m in self if name in (m.name, m.checkpoints.model_id)), None)

    def _not_found(self, name: str) -> ModelNotFoundError:
        listed = ", ".join(repr(model.name) for model in self)
        hint = "" if self.selectable else " Transcription requests may name any model."
        return ModelNotFoundError(
            f"The model {name[:_MAX_ECHOED_CHARS]!r} does not exist;"
            f" this server has {listed}.{hint}"
        )
