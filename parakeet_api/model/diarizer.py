"""The server's diarizer: a Sortformer that is lent for one step at a time.

A recording holds its own state and leases the model for each chunk only, so that many recordings
share it, and a model that memory is needed for can be unloaded in the middle of a recording and
loaded again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from parakeet_api.errors import DeviceLostError
from parakeet_api.metrics import Metrics
from parakeet_api.model.checkpoints import BundledModels
from parakeet_api.model.devices import Gpu
from parakeet_api.model.diarizer_checkpoints import DiarizerStore
from parakeet_api.model.pool import ModelPool
from parakeet_api.model.restore import import_libraries
from parakeet_api.model.slot import ModelSlot
from parakeet_api.model.sortformer import Sortformer, SpeakerState, load_sortformer
from parakeet_api.settings import Settings
from parakeet_api.speech.diarization import FloatArray

Lease = Callable[[], AbstractContextManager[Sortformer]]


class SortformerDiarizer:
    """Tells the speakers of recordings apart; safe to use from many threads."""

    def __init__(
        self,
        lease: Lease,
        *,
        store: DiarizerStore,
        on_device_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._lease = lease
        self._store = store
        self._on_device_lost = on_device_lost
        self.frame_seconds = store.output.frame_seconds
        self.max_speakers = store.output.speakers

    def start(self) -> SortformerStream:
        """Begin a recording.

        Raises `ModelNotReadyError` while the checkpoint is downloaded, `ModelLoadError` if that
        failed.
        """
        self._store.checkpoint()
        output = self._store.output
        self.frame_seconds, self.max_speakers = output.frame_seconds, output.speakers
        return SortformerStream(
            self._lease, speakers=output.speakers, on_device_lost=self._on_device_lost
        )


class SortformerStream:
    """The speakers of one recording, in order of arrival; for one thread at a time.

    The probabilities equal those of NeMo's own pass over the whole recording. Raises what the
    model's lease and steps raise.
    """

    def __init__(
        self, lease: Lease, *, speakers: int, on_device_lost: Callable[[], None] = lambda: None
    ) -> None:
        self._lease = lease
        self._on_device_lost = on_device_lost
        self._nothing: FloatArray = np.zeros((0, speakers), np.float32)
        self._state: SpeakerState | None = None
        self._samples: FloatArray = np.zeros(0, np.float32)
        """The samples that the next chunk needs, and what came after them."""
        self._added: list[FloatArray] = []
        """Samples behind them."""
        self._first = 0
        """Position of the first sample in the recording; a multiple of the hop."""
        self._count = 0
        """Samples of the recording so far."""
        self._done = 0
        """Mel frames whose probabilities have been returned."""
        self._needed = 0
        """Samples of the recording that the next chunk needs."""

    def add(self, samples: FloatArray) -> FloatArray:
        """Take the next samples, float32 [n], 16 kHz; return the probabilities that became final.

        Returns float32 [frames, speakers], often no frames. A request waits here for the model.
        """
        self._added.append(np.array(samples, np.float32))
        self._count += len(samples)
        return self._advance(is_end=False) if self._count >= self._needed else self._nothing

    def finish(self) -> FloatArray:
        """Return the remaining frames, float32 [frames, speakers]."""
        return self._advance(is_end=True)

    def close(self) -> None:
        """Free the samples and the state."""
        self._samples, self._added, self._state = self._nothing[:, 0], [], None

    def _advance(self, *, is_end: bool) -> FloatArray:
        """Continue by every chunk that is complete; at the end, also by the last one."""
        self._samples = np.concatenate([self._samples, *self._added])
        self._added = []
        found = [self._nothing]
        while (chunk := self._next_chunk(is_end=is_end)) is not None:
            found.append(chunk)
        return np.concatenate(found)

    def _next_chunk(self, *, is_end: bool) -> FloatArray | None:
        """Return the next chunk's probabilities; `None` = more samples are needed."""
        if self._count < (1 if is_end else self._needed):
            return None
        try:
            with self._lease() as model:
                return self._step(model, is_end=is_end)
        except DeviceLostError:
            self._on_device_lost()
            raise

    def _step(self, model: Sortformer, *, is_end: bool) -> FloatArray | None:
        shape = model.shape
        begin, end = self._done, self._done + shape.chunk
        last = end + shape.right
        # A mel frame is exact once the samples that it reaches to are there.
        self._needed = (last - 1) * shape.hop + shape.reach
        if is_end:
            total = self._count // shape.hop
            end, last = min(end, total), min(last, total)
        if begin >= end or (not is_end and self._count < self._needed):
            return None
        first = max(0, begin - shape.left)
        start = max(0, first - shape.margin)
        stop = self._count if is_end and last == self._count // shape.hop else self._needed
        if self._state is None:
            self._state = model.new_state()
        probabilities = model.step(
            self._state,
            self._samples[start * shape.hop - self._first : stop - self._first],
            skip=first - start,
            frames=last - first,
            left=begin - first,
            right=last - end,
        )
        self._done = end
        self._forget(max(0, end - shape.left - shape.margin) * shape.hop)
        self._needed += shape.chunk * shape.hop
        return probabilities

    def _forget(self, before: int) -> None:
        """Drop the samples before a position that no later chunk needs."""
        self._samples = self._samples[before - self._first :]
        self._first = before


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerModel:
    """The diarizer's checkpoint and slot."""

    store: DiarizerStore
    slot: ModelSlot[Sortformer]

    @property
    def name(self) -> str:
        return self.store.name

    @classmethod
    def from_settings(
        cls, settings: Settings, *, gpu: Gpu | None, bundled: BundledModels, metrics: Metrics
    ) -> Self | None:
        """Choose the checkpoint; `None` with `DIARIZATION=off`. Raises `CheckpointError`."""
        if not settings.diarization:
            return None
        store = DiarizerStore(settings, bundled=bundled.speakers)
        store.start()
        slot = ModelSlot(
            store,
            partial(load_sortformer, settings=settings, gpu=gpu),
            idle_timeout_s=settings.idle_timeout_minutes * 60,
            name="diarizer",
            prepare=import_libraries,
            metrics=metrics,
        )
        slot.unload_when_idle()
        return cls(store=store, slot=slot)

    def diarizer(self, pool: ModelPool, on_device_lost: Callable[[], None]) -> SortformerDiarizer:
        """Build the diarizer, whose steps share memory and permits with the other models."""
        return SortformerDiarizer(
            partial(pool.lease, self.slot), store=self.store, on_device_lost=on_device_lost
        )
