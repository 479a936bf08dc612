"""Calls to replicas, without a cluster: what a fake of Serve alone has shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from conftest import wait_until, whole
from model_helpers import INFO
from ray_cluster import ray

from parakeet_api.errors import (
    ClusterUnavailableError,
    DeviceLostError,
    ModelLoadError,
    QueueFullError,
    ServiceUnavailableError,
    StoppingError,
)
from parakeet_api.model.cuda import known_device_memory
from parakeet_api.scale import remote_recognizer
from parakeet_api.scale.remote_recognizer import RemoteRecognizer, Replicas
from parakeet_api.scale.replica import Served
from parakeet_api.transcript import Word

CHUNK = whole(np.ones(16_000, np.int16))
WORDS = [[Word("Yes.", 0.0, 1.0)]]


class Response:
    """What Serve returns for a call."""

    def __init__(self, outcome: object) -> None:
        self._outcome = outcome
        self.cancelled = False

    def result(self, *, timeout_s: float) -> object:
        if self._outcome is TimeoutError:
            time.sleep(timeout_s)
            raise TimeoutError
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A deployment whose calls have given outcomes; the last one repeats."""

    def __init__(self, *outcomes: object) -> None:
        self._outcomes = [*outcomes]
        self.responses: list[Response] = []
        self.describe = SimpleNamespace(remote=lambda: Response(Served("a", INFO)))
        self.recognize = SimpleNamespace(remote=self._call)

    def _call(self, _: object) -> Response:
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        self.responses.append(Response(outcome))
        return self.responses[-1]


class FakeReplicas(Replicas):
    """Replicas whose state the test sets."""

    def __init__(self, handle: Handle, status: Callable[[], Any]) -> None:
        super().__init__("recognizer")
        self._fake = handle
        self._status = status

    @property
    def handle(self) -> Any:
        return self._fake


def status_of(state: str, *, status: str = "RUNNING", message: str = "") -> Callable[[], Any]:
    deployment = SimpleNamespace(message=message, replica_states={state: 1})
    found = SimpleNamespace(status=status, message=message, deployments={"replica": deployment})
    return lambda: SimpleNamespace(applications={"recognizer": found})


def recognizer_of(
    *outcomes: object, status: Callable[[], Any] | None = None
) -> tuple[RemoteRecognizer, Handle]:
    handle = Handle(*outcomes)
    return RemoteRecognizer(FakeReplicas(handle, status or status_of("RUNNING"))), handle


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_recognizer, "_POLL_S", 0.01)
    monkeypatch.setattr(remote_recognizer, "_MIN_PAUSE_S", 0.0)


def died() -> Exception:
    return cast(Exception, ray.exceptions.ActorDiedError())


def raised(cause: Exception) -> Exception:
    """Return an exception of a replica as a call raises it."""
    error = ray.exceptions.RayTaskError("recognize", "", cause)
    return cast(Exception, error.as_instanceof_cause())


def test_the_device_is_not_one_of_this_machine() -> None:
    recognizer, _ = recognizer_of(WORDS)

    assert recognizer.info.device == "ray:cpu"
    assert known_device_memory("ray:cuda:0") is None


@pytest.mark.parametrize("loss", [died(), raised(DeviceLostError()), raised(StoppingError())])
def test_a_call_whose_replica_is_lost_is_made_again(loss: Exception) -> None:
    recognizer, handle = recognizer_of(loss, loss, WORDS)

    assert recognizer.recognize([CHUNK]) == WORDS
    assert len(handle.responses) == 3


def test_a_recording_that_ends_every_replica_is_given_up() -> None:
    recognizer, handle = recognizer_of(died())

    with pytest.raises(ServiceUnavailableError, match="8 replicas ended"):
        recognizer.recognize([CHUNK])

    assert len(handle.responses) == 8


def test_an_error_of_the_model_is_raised_as_it_is_and_not_tried_again() -> None:
    recognizer, handle = recognizer_of(raised(ServiceUnavailableError("no memory")))

    with pytest.raises(ServiceUnavailableError, match="no memory"):
        recognizer.recognize([CHUNK])

    assert len(handle.responses) == 1


def test_a_full_cluster_is_a_503_with_the_code_of_a_full_queue() -> None:
    from ray.serve.exceptions import BackPressureError

    recognizer, _ = recognizer_of(BackPressureError(9, 9))

    with pytest.raises(QueueFullError) as caught:
        recognizer.recognize([CHUNK])

    assert (caught.value.status, caught.value.code) == (503, "queue_full")
    assert caught.value.retry_after_s


def test_a_slow_call_is_waited_for_while_a_replica_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer, handle = recognizer_of(TimeoutError)
    monkeypatch.setattr(remote_recognizer, "_PATIENCE_S", 5)
    monkeypatch.setattr(remote_recognizer, "_START_PATIENCE_S", 0.05)
    response = Response(TimeoutError)

    for _ in range(20):
        recognizer._check(response)
        time.sleep(0.01)

    assert not response.cancelled
    assert not handle.responses


def test_a_call_is_cancelled_once_no_replica_has_run_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status = status_of("STARTING", message="no GPU is free")
    recognizer, handle = recognizer_of(TimeoutError, status=status)
    monkeypatch.setattr(remote_recognizer, "_START_PATIENCE_S", 0.05)

    with pytest.raises(ClusterUnavailableError, match="no GPU is free") as caught:
        recognizer.recognize([CHUNK])

    assert (caught.value.status, caught.value.retry_after_s) == (503, 10)
    assert handle.responses[0].cancelled


def test_a_cluster_that_does_not_answer_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang() -> Any:
        time.sleep(0.5)
        raise ConnectionError("the head is away")

    recognizer, _ = recognizer_of(TimeoutError, status=hang)
    monkeypatch.setattr(remote_recognizer, "_PATIENCE_S", 0.05)

    with pytest.raises(ClusterUnavailableError):
        recognizer.recognize([CHUNK])


def test_a_replica_that_comes_back_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    state = ["STARTING"]

    def status() -> Any:
        return status_of(state[0])()

    recognizer, _ = recognizer_of(TimeoutError, status=status)
    monkeypatch.setattr(remote_recognizer, "_START_PATIENCE_S", 0.05)
    with pytest.raises(ClusterUnavailableError):
        recognizer.recognize([CHUNK])
    state[0] = "RUNNING"

    def is_back() -> bool:
        try:
            recognizer._check(Response(TimeoutError))
        except ClusterUnavailableError:
            return False
        return True

    wait_until(is_back)


def test_a_model_that_no_replica_can_load_is_reported() -> None:
    status = status_of("STOPPED", status="DEPLOY_FAILED", message="Traceback\nCheckpointError: cut")

    with pytest.raises(ModelLoadError, match="CheckpointError: cut"):
        FakeReplicas(Handle(WORDS), status).wait_until_running(1)


def test_a_call_ends_when_the_recognizer_is_closed() -> None:
    recognizer, handle = recognizer_of(TimeoutError)
    recognizer.close()

    with pytest.raises(StoppingError):
        recognizer.recognize([CHUNK])

    assert handle.responses[0].cancelled
