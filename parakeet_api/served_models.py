"""The models that requests can name, each with what works for it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from parakeet_api.errors import ModelNotFoundError
from parakeet_api.languages import languages_of
from parakeet_api.model.batching import Batcher
from parakeet_api.model.checkpoints import ModelStore
from parakeet_api.model.model_manager import ModelManager, Unloading
from parakeet_api.model.model_pool import ModelPool, Resident
from parakeet_api.pipeline import Pipeline

ALIASES = frozenset(
    {
        "whisper-1",
        "gpt-transcribe",
        "gpt-4o-transcribe",
        "gpt-4o-mini-transcribe",
    }
)
"""OpenAI's models, whose place the first one takes."""

_OF_OTHERS = re.compile(r"whisper|^gpt-", re.IGNORECASE)
"""What clients send that were written for another server: `large-v3` is not told from a typing
error, `Systran/faster-whisper-large-v3` is."""
_LONGEST_ECHO = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model, and what works for it alone: batches are never of two."""

    resident: Resident
    batcher: Batcher
    pipeline: Pipeline
    configured_languages: tuple[str, ...]
    """`MODEL_LANGUAGES`."""

    @property
    def store(self) -> ModelStore:
        return self.resident.store

    @property
    def manager(self) -> ModelManager:
        return self.resident.manager

    @property
    def name(self) -> str:
        return self.store.name

    @property
    def languages(self) -> frozenset[str]:
        """What it speaks, ISO 639-1 codes."""
        return languages_of(self.name, self.configured_languages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """All models of this server; the first is meant where none is named."""

    members: tuple[Model, ...]
    """At least one."""
    pool: ModelPool
    are_chosen: bool
    """By requests, as `MODELS` has it; else every name means the first."""

    def __iter__(self) -> Iterator[Model]:
        return iter(self.members)

    @property
    def first(self) -> Model:
        return self.members[0]

    def named(self, name: str) -> Model:
        """Give the model that a request means; without a name, or with an alias, the first.

        Raises `ModelNotFoundError` for a name that is neither one of `MODELS` nor of a model that
        another server has: its transcript would be another model's without a sign of it.
        """
        if not self.are_chosen:
            return self.first
        known = self._known(name)
        if known is None and name and not _OF_OTHERS.search(name):
            raise self._not_found(name)
        return known or self.first

    def pipeline_of(self, name: str) -> Pipeline:
        """Give the pipeline of the model that is meant.

        Raises `ServiceUnavailableError` while there is no file of it.
        """
        model = self.named(name)
        model.store.checkpoint()
        return model.pipeline

    def described(self, name: str) -> Model:
        """Give the model that answers to a name. Raises `ModelNotFoundError`."""
        known = self.first if name in ALIASES else self._known(name)
        if known is None:
            raise self._not_found(name)
        return known

    def unload(self, model: Model) -> Unloading:
        """Unload a model unless it is at work or being loaded; waits for neither."""
        return "in_use" if model.pipeline.recordings else self.pool.unload(model.resident)

    def load(self, model: Model) -> Future[None]:
        """Begin to load a model. Raises `ServiceUnavailableError` while there is no file of it."""
        model.store.checkpoint()
        return self.pool.load(model.resident)

    def waiting_chunks(self) -> int:
        """Count the chunks that wait for a worker."""
        return sum(model.batcher.waiting() for model in self)

    def device(self) -> str | None:
        """Tell where models are loaded, once one was: `cpu`, `cuda:0`."""
        return next((model.manager.info.device for model in self if model.manager.info), None)

    def close(self, *, last_pass_s: float) -> None:
        """Stop, and unload; forward passes under way have so many seconds to end."""
        deadline = time.monotonic() + last_pass_s
        self.pool.close()
        for model in self:
            model.pipeline.close()
            model.batcher.close(timeout_s=max(0.0, deadline - time.monotonic()))
            model.manager.close()

    def _known(self, name: str) -> Model | None:
        return next((m for m in self if name in (m.name, m.store.model_id)), None)

    def _not_found(self, name: str) -> ModelNotFoundError:
        listed = ", ".join(repr(model.name) for model in self)
        hint = "" if self.are_chosen else " Transcription requests may name any model."
        return ModelNotFoundError(
            f"The model {name[:_LONGEST_ECHO]!r} does not exist; this server has {listed}.{hint}"
        )
