"""A replica: a process of the cluster with one model, which recognises chunks for all servers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from parakeet_api.errors import EXIT_DEVICE_LOST, DeviceLostError
from parakeet_api.model.batching import Batcher
from parakeet_api.model.checkpoints import BundledModels, CheckpointStore
from parakeet_api.model.devices import available_cores, find_gpu, plan_inference
from parakeet_api.model.loading import ModelInfo
from parakeet_api.model.recognizer import load_recognizer
from parakeet_api.settings import Settings
from parakeet_api.transcript import Chunk, Word

logger = logging.getLogger(__name__)

_CLOSING_S = 5.0
"""How long a replica that is replaced waits for its last forward pass."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a replica serves."""

    checkpoint: str
    """The checkpoint's name; its pieces are those of the servers' keyword trees."""
    info: ModelInfo


class RecognizerReplica:
    """One loaded model, whose batches are filled with the chunks of many calls.

    Calls are requests of its `Batcher`, so they take turns and share forward passes, whichever
    server they come from.
    """

    def __init__(
        self, settings: Settings, *, model: str | None, bundled: BundledModels, calls: int
    ) -> None:
        """Load a model of `MODELS`, or the one that the other settings name.

        `settings` are those of the server that deployed it; what presets derive follows this
        machine. `calls` is how many calls run at a time. Raises what `load_recognizer` raises, and
        `ModelNotReadyError` where there is no checkpoint.
        """
        gpu = find_gpu(settings.device)
        settings = settings.for_device(
            detected_vram_gb=gpu.total_gb if gpu else None, cores=available_cores()
        )
        store = CheckpointStore(settings, bundled=bundled, only=model)
        store.start()
        store.wait_until_decided()
        checkpoint = store.checkpoint()
        plan = plan_inference(settings, gpu, store.architecture)
        self._recognizer = load_recognizer(
            checkpoint.path, lambda _: None, settings=settings, gpu=gpu, plan=plan
        )
        self._checkpoint = checkpoint.name
        self._lost = threading.Event()
        self._batcher = Batcher(
            lambda: contextlib.nullcontext(self._recognizer),
            plan=plan,
            permits=settings.max_concurrent_inferences,
            on_device_lost=self._end,
        )
        self._threads = ThreadPoolExecutor(calls, thread_name_prefix="call")

    def describe(self) -> Served:
        """Say what is served."""
        return Served(self._checkpoint, self._recognizer.info)

    async def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        """Return each chunk's words, in order. A cancelled call leaves the queue.

        Raises what the model raises for one of them.
        """
        cancelled = threading.Event()

        def words() -> list[list[Word]]:
            found = self._batcher.recognize(chunks, cancelled=cancelled.is_set)
            with contextlib.closing(found):
                return [chunk_words for _, chunk_words in found]

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, words)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def check_health(self) -> None:
        """Raise `DeviceLostError` once the GPU has failed; Serve then replaces the replica."""
        if self._lost.is_set():
            raise DeviceLostError

    def _end(self) -> None:
        """End the process: its calls are made again elsewhere, and Serve starts another replica.

        No answer is waited for: whatever is under way waits for the GPU that has failed.
        """
        self._lost.set()
        logging.shutdown()
        os._exit(EXIT_DEVICE_LOST)

    def __del__(self) -> None:
        """Stop; called by Serve when the replica has answered its calls."""
        with contextlib.suppress(AttributeError):
            self._batcher.close(timeout_s=_CLOSING_S)
            self._threads.shutdown(wait=False)
            self._recognizer.close()
