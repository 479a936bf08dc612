"""One model of the server: load on first use, lend by leases, unload when idle."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from parakeet_api.errors import ApiError, ModelLoadError, StoppingError
from parakeet_api.metrics import Metrics
from parakeet_api.model.checkpoints import CheckpointStore
from parakeet_api.model.heap import trim_heap
from parakeet_api.model.loading import ModelInfo

logger = logging.getLogger(__name__)

LoadState = Literal["unloaded", "loading", "ready", "failed"]
Unloading = Literal["unloaded", "not_loaded", "in_use"]
"""Outcome of a request to unload a model."""

_MAX_POLL_S = 60.0


class LoadedNetwork(Protocol):
    """What a slot needs of a loaded model: a recognizer's or a diarizer's."""

    info: ModelInfo

    def close(self) -> None:
        """Release the model's memory."""
        ...


NetworkT = TypeVar("NetworkT", bound=LoadedNetwork)
Load = Callable[[Path, Callable[[float], None]], NetworkT]
"""Loads a checkpoint; reports the share of the warm-up that is done."""


class ModelSlot(Generic[NetworkT]):
    """Own one model, loaded or not.

    `state`, `error` and `info` may be read at any time without waiting for a load.
    """

    def __init__(
        self,
        checkpoints: CheckpointStore,
        load: Load[NetworkT],
        *,
        idle_timeout_s: float,
        name: str = "",
        prepare: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        metrics: Metrics | None = None,
    ) -> None:
        """Begin without a model; `name` distinguishes several in the metrics."""
        self.checkpoints = checkpoints
        self._metrics = metrics or Metrics()
        self._name = name
        self._load = load
        self._prepare = prepare
        self._preparing: threading.Thread | None = None
        self._idle_timeout_s = idle_timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._network: NetworkT | None = None
        self._loading: Future[NetworkT] | None = None
        self._leases = 0
        self._idle_since = clock()
        self._closed = threading.Event()
        self.state: LoadState
        self._enter("unloaded")
        self.error: str | None = None
        """Why the last load failed."""
        self.failed_at: float | None = None
        """When the last load failed, on the slot's clock."""
        self.info: ModelInfo | None = None
        self.progress: float | None = None
        """Share of the current load's warm-up that is done, once it has begun."""

    @contextmanager
    def lease(self) -> Iterator[NetworkT]:
        """Lend the model; load it first if necessary, and never unload it during a lease.

        Of concurrent callers one loads the model and the others share the outcome. The next lease
        retries a failed load. Raises what the load raised, as an `ApiError`, and `StoppingError`
        once the slot is closed.
        """
        with self._lock:
            if self._closed.is_set():
                raise StoppingError
            self._leases += 1
        try:
            yield self._loaded()
        finally:
            with self._lock:
                self._leases -= 1
                self._idle_since = self._clock()
                if self._closed.is_set() and not self._leases:
                    self._unload()

    def prepare(self) -> None:
        """Run, once and in the background, the part of the first load that needs no GPU."""
        with self._lock:
            if self._preparing is not None or self._closed.is_set():
                return
            self._preparing = threading.Thread(target=self._prepare, name="prepare", daemon=True)
        self._preparing.start()

    def failed_lately(self, within_s: float) -> bool:
        """Tell whether the last load failed within the last `within_s` seconds."""
        failed_at = self.failed_at
        return (
            self.state == "failed"
            and failed_at is not None
            and self._clock() - failed_at < within_s
        )

    def unload_if_idle(self) -> bool:
        """Unload the model after the idle timeout; return whether it was unloaded."""
        if self._idle_timeout_s <= 0:
            return False
        with self._lock:
            idle = self._clock() - self._idle_since >= self._idle_timeout_s
            if self._network is None or self._leases or not idle:
                return False
            self._unload()
        return True

    def unload_unused(self) -> Unloading:
        """Unload unless the model is lent or being loaded; wait for neither."""
        with self._lock:
            if self._leases:
                return "in_use"
            if self._network is None:
                return "not_loaded"
            self._unload()
        return "unloaded"

    def unload_when_idle(self) -> None:
        """Start the thread that unloads the idle model, unless the timeout is 0 = never."""
        if self._idle_timeout_s > 0:
            threading.Thread(target=self._watch_idleness, name="idle-unload", daemon=True).start()

    def close(self) -> None:
        """Lend no more, stop watching, and unload: now, or when the last lease ends."""
        with self._lock:
            self._closed.set()
            if not self._leases:
                self._unload()

    def _loaded(self) -> NetworkT:
        with self._lock:
            if self._network is not None:
                return self._network
            mine = self._loading is None
            if self._loading is None:
                self._loading = Future()
                self._enter("loading")
            loading = self._loading
        if mine:
            self._load_into(loading)
        return loading.result()

    def _load_into(self, loading: Future[NetworkT]) -> None:
        started = self._clock()
        try:
            network = self._load(self.checkpoints.checkpoint().path, self._note_progress)
        # All waiting requests share the error; the next request tries again.
        except Exception as error:
            failure = error if isinstance(error, ApiError) else _load_error(error)
            with self._lock:
                self._loading, self.error, self.failed_at = None, failure.message, self._clock()
                self._enter("failed")
            loading.set_exception(failure)
            return
        with self._lock:
            self._network, self._loading = network, None
            self.error, self.info = None, network.info
            self._enter("ready")
        self._metrics.model_load_seconds.observe(self._clock() - started)
        loading.set_result(network)
        info = network.info
        logger.info(
            "model loaded in %.1f s: %.1f M parameters on %s, encoder in %s (%s), %s decoding",
            self._clock() - started,
            info.parameters / 1e6,
            info.device,
            info.precision,
            info.precision_reason,
            info.decoding,
        )

    def _unload(self) -> None:
        """Drop the model, if there is one; called with the lock held."""
        network, self._network = self._network, None
        if network is None:
            return
        self._enter("unloaded")
        network.close()
        del network
        # Free reference cycles now, not at some later allocation.
        gc.collect()
        trim_heap()
        logger.info("model unloaded")

    def _enter(self, state: LoadState) -> None:
        """Change the state; called with the lock held."""
        self.state = state
        self.progress = None
        self._metrics.model_state.labels(self._name).state(state)

    def _note_progress(self, share: float) -> None:
        self.progress = share

    def _watch_idleness(self) -> None:
        while not self._closed.wait(min(self._idle_timeout_s / 4, _MAX_POLL_S)):
            try:
                self.unload_if_idle()
            # Must not end the thread: after one failure the next attempt may succeed.
            except Exception:
                logger.exception("the idle model could not be unloaded cleanly")


def _load_error(error: Exception) -> ModelLoadError:
    logger.error("the model could not be loaded", exc_info=error)
    # A MemoryError has no message.
    reason = str(error) or type(error).__name__
    failure = ModelLoadError(f"The model could not be loaded: {reason}")
    failure.__cause__ = error
    return failure
