"""The models of this server, each with its slot, batcher and pipeline."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.errors import DiarizationOffError, ModelNotFoundError
from parakeet_api.keywords import Keyword
from parakeet_api.languages import languages_of
from parakeet_api.metrics import Metrics
from parakeet_api.model.batching import Batcher, UrgentRecognizer
from parakeet_api.model.checkpoints import BundledModels, CheckpointStore
from parakeet_api.model.cuda import DeviceMemory, known_device_memory
from parakeet_api.model.devices import Gpu, InferencePlan, plan_inference
from parakeet_api.model.diarizer import SpeakerModel
from parakeet_api.model.keyword_trees import KeywordTrees, read_keywords_file
from parakeet_api.model.memory import has_room
from parakeet_api.model.pool import ModelPool
from parakeet_api.model.recognizer import Recognizer, load_recognizer
from parakeet_api.model.restore import import_libraries
from parakeet_api.model.slot import ModelSlot, Unloading
from parakeet_api.model.voice_activity import SileroDetector
from parakeet_api.pipeline import Pipeline
from parakeet_api.scale.deployment import ReplicatedModel
from parakeet_api.scale.remote_recognizer import CALL_S, CALLS, EAGER_CALLS, connect_recognizer
from parakeet_api.settings import Settings, model_basename
from parakeet_api.speech.chunking import ChunkPolicy
from parakeet_api.speech.diarization import Diarizer
from parakeet_api.transcript import SpeakerRequest

ALIASES = frozenset(
    {
        "whisper-1",
        "gpt-transcribe",
        "gpt-4o-transcribe",
        "gpt-4o-mini-transcribe",
        "gpt-4o-transcribe-diarize",
    }
)
"""Names of OpenAI's models; each stands for the first model of this server."""

_FOREIGN_NAMES = re.compile(r"whisper|^gpt-", re.IGNORECASE)
"""Names sent by clients that were written for another server. `large-v3` alone is not among them,
as it could be a misspelt name."""
_MAX_ECHOED_CHARS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model with the objects that belong to it alone: a batch never mixes two models."""

    slot: ModelSlot[Recognizer]
    plan: InferencePlan
    """How much of it is recognised at once, by its size and the device."""
    batcher: Batcher
    pipeline: Pipeline
    live: Pipeline
    """The same for live sessions, whose chunks go first."""
    keywords: KeywordTrees
    configured_languages: tuple[str, ...]
    """`MODEL_LANGUAGES`."""

    @property
    def checkpoints(self) -> CheckpointStore:
        return self.slot.checkpoints

    @property
    def name(self) -> str:
        return self.checkpoints.name

    def check_keywords(self, keywords: Sequence[Keyword], *, param: str = "keywords[]") -> None:
        """Build a request's tree, unless there is no checkpoint yet.

        Raises `InvalidRequestError` naming `param` and the phrase that the model cannot write.
        """
        if keywords and self.checkpoints.status.checkpoint is not None:
            self.keywords.tree(keywords, param=param)

    @property
    def languages(self) -> frozenset[str]:
        """The languages it recognises, ISO 639-1 codes."""
        checkpoint = self.checkpoints.status.checkpoint
        stated = checkpoint.languages if checkpoint else ()
        return languages_of(self.name, self.configured_languages, stated)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModels:
    """All models of this server; the first one is the default."""

    members: tuple[ServedModel, ...]
    """At least one."""
    pool: ModelPool
    selectable: bool
    """Whether requests select a model by name (`MODELS`); if not, every name means the first."""
    detector: SileroDetector
    """Voice activity detector, shared by all of them."""
    speakers: SpeakerModel | None = None
    """The model that tells speakers apart, for all of them; `None` with `DIARIZATION=off`."""
    diarizer: Diarizer | None = None
    """Runs it; `None` with `DIARIZATION=off`."""

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        *,
        gpu: Gpu | None,
        decoder: FfmpegDecoder,
        bundled: BundledModels,
        root: Path,
        metrics: Metrics,
        on_device_lost: Callable[[], None] = lambda: None,
    ) -> Self:
        """Set up the models of `MODELS`, or the single model that the other settings name.

        Starts downloads of missing checkpoints; loads no model. With `RAY_ADDRESS`, the models are
        in replicas, whose program is in the folder `root`. `on_device_lost` is called if the GPU
        fails for the rest of the process. Raises `SettingsError` for a KEYWORDS_FILE that
        cannot be used.
        """
        slots: list[ModelSlot[Recognizer]] = []
        plans: dict[ModelSlot[Recognizer], InferencePlan] = {}
        names = settings.models or (None,)
        stores = [CheckpointStore(settings, bundled=bundled, only=name) for name in names]
        for store in stores:
            store.start()
        speakers = SpeakerModel.from_settings(settings, gpu=gpu, bundled=bundled, metrics=metrics)
        speakers_mb = speakers.store.memory_mb if speakers else 0.0
        remote = settings.ray_address is not None
        permits = CALLS if remote else settings.max_concurrent_inferences
        for name, store in zip(names, stores, strict=True):
            plan = plan_inference(settings, gpu, store.architecture, beside_mb=speakers_mb)
            if remote:
                plan = dataclasses.replace(plan, batch_s=CALL_S)
            replicated = ReplicatedModel(settings, model=name, bundled=bundled, root=root)
            slot = ModelSlot(
                store,
                partial(connect_recognizer, replicated=replicated)
                if remote
                else partial(load_recognizer, settings=settings, gpu=gpu, plan=plan),
                idle_timeout_s=settings.idle_timeout_minutes * 60,
                name=model_basename(name) if name else "",
                prepare=_no_preparation if remote else import_libraries,
                metrics=metrics,
            )
            slot.unload_when_idle()
            slots.append(slot)
            plans[slot] = plan
        pool = ModelPool(
            slots if speakers is None else [*slots, speakers.slot],
            permits=permits,
            has_room=_has_room_elsewhere if remote else partial(has_room, settings=settings),
        )

        detector = SileroDetector()
        diarizer = speakers.diarizer(pool, on_device_lost) if speakers else None

        file = settings.keywords_file
        always = read_keywords_file(file, name="KEYWORDS_FILE") if file else ()

        def serve(slot: ModelSlot[Recognizer]) -> ServedModel:
            plan = plans[slot]
            batcher = Batcher(
                partial(pool.lease, slot),
                plan=plan,
                permits=permits,
                eager_passes=EAGER_CALLS if remote else None,
                metrics=metrics,
                on_device_lost=on_device_lost,
            )
            keywords = KeywordTrees(lambda: slot.checkpoints.checkpoint().path, always=always)
            pipeline_with = partial(
                Pipeline,
                decoder=decoder,
                policy=ChunkPolicy.from_settings(settings, longest_s=plan.longest_chunk_s),
                settings=settings,
                metrics=metrics,
                detector=detector,
                keywords=keywords,
                diarizer=diarizer,
                grid=lambda: slot.checkpoints.architecture.chunk_grid,
            )
            return ServedModel(
                slot=slot,
                plan=plan,
                batcher=batcher,
                pipeline=pipeline_with(batcher=batcher),
                live=pipeline_with(batcher=UrgentRecognizer(batcher)),
                keywords=keywords,
                configured_languages=settings.model_languages,
            )

        models = cls(
            members=tuple(serve(slot) for slot in slots),
            pool=pool,
            selectable=bool(settings.models),
            detector=detector,
            speakers=speakers,
            diarizer=diarizer,
        )
        models._export(metrics, with_gpu=gpu is not None)
        return models

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self.members)

    @property
    def first(self) -> ServedModel:
        return self.members[0]

    def named(self, name: str) -> ServedModel:
        """Return the model that a request names; without a name, or for an alias, the first.

        Raises `ModelNotFoundError` for a name that is neither in `MODELS` nor that of another
        server's model: the client would not notice that another model answered.
        """
        if not self.selectable:
            return self.first
        known = self._known(name)
        if known is None and name and not _FOREIGN_NAMES.search(name):
            raise self._not_found(name)
        return known or self.first

    def pipeline_of(self, name: str) -> Pipeline:
        """Return the pipeline of the model that a request names.

        Raises `ServiceUnavailableError` while its checkpoint is not on disk.
        """
        model = self.named(name)
        model.checkpoints.checkpoint()
        return model.pipeline

    def check_diarizer(self, speakers: SpeakerRequest) -> None:
        """Raise `DiarizationOffError` if a request wants what only a diarizer can tell."""
        if speakers.diarize and self.diarizer is None:
            raise DiarizationOffError

    def described(self, name: str) -> ServedModel:
        """Return the model of exactly this name or alias. Raises `ModelNotFoundError`."""
        known = self.first if name in ALIASES else self._known(name)
        if known is None:
            raise self._not_found(name)
        return known

    def unload(self, model: ServedModel | SpeakerModel) -> Unloading:
        """Unload a model unless it is in use or being loaded; do not wait for either."""
        if isinstance(model, SpeakerModel):
            return self.pool.unload(model.slot)
        in_use = model.pipeline.recordings or model.live.recordings
        return "in_use" if in_use else self.pool.unload(model.slot)

    def load_first(self) -> None:
        """Load the first model, once its checkpoint is there; raise what the load raises."""
        self.first.checkpoints.wait_until_decided()
        self.load(self.first).result()

    def load(self, model: ServedModel) -> Future[None]:
        """Start loading a model. Raises `ServiceUnavailableError` while it is not on disk."""
        model.checkpoints.checkpoint()
        return self.pool.load(model.slot)

    def waiting_chunks(self) -> int:
        """Count the chunks that wait for a worker."""
        return sum(model.batcher.waiting() for model in self)

    def device(self) -> str | None:
        """Return the models' device, `cpu` or `cuda:0`; `None` before the first load."""
        return next((model.slot.info.device for model in self if model.slot.info), None)

    def close(self, *, last_pass_s: float) -> None:
        """Stop and unload; wait up to `last_pass_s` for running forward passes."""
        deadline = time.monotonic() + last_pass_s
        self.pool.close()
        for model in self:
            model.pipeline.close()
            model.live.close()
            model.batcher.close(timeout_s=max(0.0, deadline - time.monotonic()))
            model.slot.close()
        if self.speakers is not None:
            self.speakers.slot.close()

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
        return next(
            (m for m in self if name in (m.name, m.checkpoints.model_id.partition("@")[0])), None
        )

    def _not_found(self, name: str) -> ModelNotFoundError:
        listed = ", ".join(repr(model.name) for model in self)
        hint = "" if self.selectable else " Transcription requests may name any model."
        return ModelNotFoundError(
            f"The model {name[:_MAX_ECHOED_CHARS]!r} does not exist;"
            f" this server has {listed}.{hint}"
        )


def _no_preparation() -> None:
    """Prepare nothing: a server without a model of its own needs no torch."""


def _has_room_elsewhere(checkpoint: Path, device: str) -> bool:
    """Tell that a model has room: Ray finds the machine that has."""
    del checkpoint, device
    return True
