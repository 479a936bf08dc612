"""A `Recognizer` whose model is in the replicas of a Ray cluster."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from parakeet_api.errors import (
    ClusterUnavailableError,
    DeviceLostError,
    ModelLoadError,
    QueueFullError,
    ServiceUnavailableError,
    SettingsError,
    StoppingError,
)
from parakeet_api.model.checkpoints import BundledModels
from parakeet_api.model.loading import ModelInfo
from parakeet_api.scale.cluster import connect, require_ray
from parakeet_api.scale.deployment import ReplicatedModel, deploy, is_deployed
from parakeet_api.scale.replica import Served
from parakeet_api.settings import Settings
from parakeet_api.transcript import Chunk, Word

logger = logging.getLogger(__name__)

CALLS = 32
"""Calls of a server under way at a time: enough for the batches of eight replicas."""
EAGER_CALLS = 8
"""While so many are under way, chunks wait for a full call: each costs 10 ms of a core or more, and
200 clips from 16 clients took 1.34 times as long as in one process with a call for each."""
CALL_S = 240.0
"""Seconds of audio in a call; at least one chunk."""
_MAX_TRIES = 8
"""Tries of a call whose replica ended meanwhile. A recording that ends every replica must not end
them for ever."""
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.05, 5.0
"""Before the next try; doubled each time."""
_POLL_S = 0.5
_PATIENCE_S = 60.0
"""How long calls wait for a cluster that says nothing."""
_START_PATIENCE_S = 600.0
"""How long they wait for a replica that starts: a large model is read in a minute, and a machine
may have to be started for it."""


def connect_recognizer(
    checkpoint: Path, on_warm_up: Callable[[float], None], *, replicated: ReplicatedModel
) -> RemoteRecognizer:
    """Find a model's replicas, or start them, and wait until one is ready.

    Raises `ClusterUnavailableError` if there is no cluster or it has no room for a replica, and
    `ModelLoadError` if the model cannot be loaded there, or is another one than `checkpoint`.
    """
    del on_warm_up
    connect(_address(replicated))
    replicas = Replicas(replicated.application)
    if not is_deployed(replicated.application):
        deploy(replicated)
    replicas.wait_until_running(_START_PATIENCE_S)
    recognizer = RemoteRecognizer(replicas)
    expected = checkpoint.name.removesuffix(".nemo").partition("@")[0]
    if recognizer.checkpoint != expected:
        recognizer.close()
        raise ModelLoadError(
            f"The cluster serves {recognizer.checkpoint!r} and this server {expected!r}: give both"
            " the same settings and model files, then run `python app.py deploy`."
        )
    return recognizer


def deploy_models(settings: Settings, *, bundled: BundledModels, root: Path) -> None:
    """Start the replicas of all models, or replace those that run, and wait until some are ready.

    Raises `SettingsError` without a `RAY_ADDRESS`, and otherwise as `connect_recognizer` does.
    """
    if settings.ray_address is None:
        raise SettingsError("app.py deploy needs RAY_ADDRESS")
    require_ray()
    connect(settings.ray_address)
    for name in settings.models or (None,):
        replicated = ReplicatedModel(settings, model=name, bundled=bundled, root=root)
        deploy(replicated)
        Replicas(replicated.application).wait_until_running(_START_PATIENCE_S)


def _address(replicated: ReplicatedModel) -> str:
    address = replicated.settings.ray_address
    assert address is not None
    return address


class Replicas:
    """The state of a model's replicas, asked for in the background while calls wait."""

    def __init__(self, application: str) -> None:
        from ray import serve

        self._application = application
        self._status = serve.status
        self._asked_since: float | None = None
        """Since when there is no answer whether a replica runs; `None` = there is."""
        self._missing_since: float | None = None
        """Since when the answer is that none does."""
        self._problem = ""
        self._asking = threading.Lock()

    @property
    def handle(self) -> Any:
        """Return what calls are made with."""
        from ray import serve

        return serve.get_app_handle(self._application)

    def wait_until_running(self, patience_s: float) -> None:
        """Wait for the first replica; raise as `connect_recognizer` does."""
        deadline = time.monotonic() + patience_s
        while not self._ask():
            if time.monotonic() >= deadline:
                raise self._unavailable(patience_s)
            time.sleep(_POLL_S)

    def note_answer(self) -> None:
        """Note that a replica has answered."""
        self._asked_since = self._missing_since = None

    def check(self) -> None:
        """Raise `ClusterUnavailableError` if none has run for a while; does not wait for Ray."""
        if self._asking.acquire(blocking=False):
            self._asked_since = self._asked_since or time.monotonic()
            threading.Thread(target=self._ask_and_release, name="replicas", daemon=True).start()
        for since, patience_s in (
            (self._asked_since, _PATIENCE_S),
            (self._missing_since, _START_PATIENCE_S),
        ):
            if since is not None and time.monotonic() - since > patience_s:
                raise self._unavailable(patience_s)

    def _ask_and_release(self) -> None:
        try:
            self._ask()
        # Thread boundary: an error means that the cluster is away, and it may come back.
        except Exception as error:
            self._problem = str(error).partition("\n")[0]
        finally:
            self._asking.release()

    def _ask(self) -> bool:
        """Ask Serve; tell whether a replica runs. Raises `ModelLoadError`."""
        found = self._status().applications.get(self._application)
        self._asked_since = None
        self._missing_since = self._missing_since or time.monotonic()
        if found is None:
            self._problem = "the model is not deployed"
            return False
        if found.status == "DEPLOY_FAILED":
            raise ModelLoadError(f"No replica could load the model: {_last_line(found.message)}")
        for deployment in found.deployments.values():
            self._problem = deployment.message or "its replicas are starting"
            if deployment.replica_states.get("RUNNING", 0):
                self._missing_since = None
                return True
        return False

    def _unavailable(self, waited_s: float) -> ClusterUnavailableError:
        problem = self._problem.partition("\n")[0]
        return ClusterUnavailableError(
            f"No replica of the model has run for {waited_s:.0f} s"
            f"{f': {problem}' if problem else ''}. Try again later."
        )


class RemoteRecognizer:
    """Recognise chunks in a replica, and in another one if it ends meanwhile; thread-safe."""

    info: ModelInfo

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._handle = replicas.handle
        self._closed = threading.Event()
        served: Served = self._tried(self._handle.describe)
        # Not a device of this machine, whose memory could be asked for.
        self.info = dataclasses.replace(served.info, device=f"ray:{served.info.device}")
        self.checkpoint = served.checkpoint

    def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        """Return each chunk's words, in order, with times in the recording.

        Raises `ClusterUnavailableError` while no replica runs, `QueueFullError` if Serve's queue is
        full, `StoppingError` once closed, and what the replica raises.
        """
        words: list[list[Word]] = self._tried(self._handle.recognize, list(chunks))
        return words

    def close(self) -> None:
        """Give up the calls under way; the replicas stay."""
        self._closed.set()

    def _tried(self, method: Any, *arguments: object) -> Any:
        """Call a replica, and another one each time that it is lost."""
        for tries in range(1, _MAX_TRIES + 1):
            try:
                answer = self._answer(method.remote(*arguments))
            except _ReplicaLostError as error:
                logger.warning("a replica was lost during a call (%d): %s", tries, error)
                self._closed.wait(min(_MIN_PAUSE_S * 2**tries, _MAX_PAUSE_S))
            else:
                self._replicas.note_answer()
                return answer
        raise ServiceUnavailableError(
            f"{_MAX_TRIES} replicas ended while they recognised this recording. Try again later."
        )

    def _answer(self, response: Any) -> Any:
        """Wait for the answer to a call. Raises `_ReplicaLostError`."""
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import BackPressureError, RayServeException

        while True:
            try:
                return response.result(timeout_s=_POLL_S)
            except TimeoutError:
                self._check(response)
            except BackPressureError as error:
                raise QueueFullError("The cluster's queue is full. Try again later.") from error
            except RayTaskError as error:
                cause = error.cause
                if isinstance(cause, DeviceLostError | StoppingError):
                    raise _ReplicaLostError(str(cause)) from error
                raise cause from error
            except (RayError, RayServeException) as error:
                raise _ReplicaLostError(str(error).partition("\n")[0]) from error

    def _check(self, response: Any) -> None:
        """Raise, and cancel the call, if it is not worth waiting for."""
        try:
            if self._closed.is_set():
                raise StoppingError
            self._replicas.check()
        except ServiceUnavailableError:
            response.cancel()
            raise


class _ReplicaLostError(Exception):
    """A replica ended, or is about to, before it answered."""


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
