from __future__ import annotations

import itertools
import random
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PATIENCE_S, Clock, wait_until
from model_helpers import INFO, Model, Models, assert_true, files, run_all

from parakeet_api.errors import (
    CheckpointError,
    ModelLoadError,
    ModelNotReadyError,
    ServiceUnavailableError,
)
from parakeet_api.model import slot
from parakeet_api.model.recognizer import Recognizer
from parakeet_api.model.slot import ModelSlot

IDLE_S = 100.0


def new_manager(
    models: Models, *, clock: Callable[[], float] = time.monotonic, idle_s: float = IDLE_S
) -> ModelSlot[Model]:
    return ModelSlot(files(), models.load, idle_timeout_s=idle_s, clock=clock)


# Loading


def test_a_load_reports_its_progress() -> None:
    progress: list[float | None] = []

    def load(_: Path, on_warm_up: Callable[[float], None]) -> Recognizer:
        on_warm_up(0.4)
        progress.append(manager.progress)
        return Models().load()

    manager = ModelSlot(files(), load, idle_timeout_s=0)
    assert manager.progress is None
    with manager.lease():
        progress.append(manager.progress)

    assert progress == [0.4, None]


def test_what_a_load_needs_is_prepared_once_and_in_the_background() -> None:
    prepared: list[str] = []
    hold = threading.Event()

    def prepare() -> None:
        assert hold.wait(PATIENCE_S)
        prepared.append(threading.current_thread().name)

    manager = ModelSlot(files(), Models().load, idle_timeout_s=IDLE_S, prepare=prepare)
    for _ in range(3):
        manager.prepare()
    assert manager.state == "unloaded"
    hold.set()

    wait_until(lambda: prepared == ["prepare"])
    manager.close()


def test_nothing_is_loaded_before_the_first_lease() -> None:
    models = Models()
    manager = new_manager(models)

    assert (manager.state, manager.info, manager.error) == ("unloaded", None, None)
    assert models.loads == 0

    with manager.lease() as recognizer:
        recognizer.recognize([])

    assert (manager.state, manager.info, manager.error) == ("ready", INFO, None)
    assert models.alive == 1


def test_fifty_threads_at_a_cold_manager_load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class SlowFuture(Future[Recognizer]):
        def __init__(self) -> None:
            # Lets the others in between the look at who loads and the answer.
            time.sleep(0.005)
            super().__init__()

    monkeypatch.setattr(slot, "Future", SlowFuture)
    models = Models()
    manager = new_manager(models)
    # The load ends once all fifty hold a lease, so that none is late.
    models.before = lambda: wait_until(lambda: manager._leases == 50)
    lent: list[object] = []

    def use() -> None:
        with manager.lease() as recognizer:
            recognizer.recognize([])
            lent.append(recognizer)

    assert run_all(*[use] * 50) == []
    assert models.loads == 1
    assert len(lent) == 50
    assert len(set(map(id, lent))) == 1


def test_all_who_wait_for_a_load_that_fails_see_its_error_and_the_next_tries_again() -> None:
    models = Models()
    manager = new_manager(models)

    def fail() -> None:
        wait_until(lambda: manager._leases == 20)
        raise RuntimeError("no room on the GPU")

    def use() -> None:
        with manager.lease():
            pytest.fail("there is nothing to lend")

    models.before = fail
    raised = run_all(*[use] * 20)

    assert len(raised) == 20
    assert all(isinstance(error, ModelLoadError) for error in raised)
    assert {str(error) for error in raised} == {"The model could not be loaded: no room on the GPU"}
    assert (manager.state, models.loads) == ("failed", 1)
    assert manager.error == "The model could not be loaded: no room on the GPU"

    models.before = lambda: None
    with manager.lease() as recognizer:
        recognizer.recognize([])
    assert (manager.state, models.loads) == ("ready", 2)
    assert manager.error is None


def test_a_bad_checkpoint_is_a_model_load_error_that_names_its_cause() -> None:
    def fail(*_: object) -> Model:
        raise CheckpointError("x.nemo is cut short.")

    manager = ModelSlot(files(), fail, idle_timeout_s=IDLE_S)

    with pytest.raises(ModelLoadError, match=r"x\.nemo is cut short") as caught, manager.lease():
        pass

    assert isinstance(caught.value.__cause__, CheckpointError)


def test_answers_of_the_load_reach_the_client_as_they_are() -> None:
    failure = ModelNotReadyError("50 % done.")

    def fail(*_: object) -> Model:
        raise failure

    manager = ModelSlot(files(), fail, idle_timeout_s=IDLE_S)

    with pytest.raises(ModelNotReadyError) as caught, manager.lease():
        pass

    assert caught.value is failure


def test_health_reads_the_state_during_a_load_without_waiting() -> None:
    models = Models()
    manager = new_manager(models)
    go_on = threading.Event()
    models.before = lambda: assert_true(go_on.wait(PATIENCE_S))

    def use() -> None:
        with manager.lease():
            pass

    def look() -> None:
        wait_until(lambda: manager.state == "loading")
        assert manager.info is None
        assert not manager.unload_if_idle()
        go_on.set()

    assert run_all(use, look) == []
    assert manager.state == "ready"


# Unloading


def test_the_idle_clock_starts_when_the_last_lease_ends() -> None:
    models, clock = Models(), Clock()
    manager = new_manager(models, clock=clock)

    with manager.lease():
        clock.now += 10 * IDLE_S
        with manager.lease():
            clock.now += 10 * IDLE_S
        assert not manager.unload_if_idle()
        clock.now += 10 * IDLE_S
        assert not manager.unload_if_idle()
        assert models.alive == 1

    clock.now += IDLE_S - 1
    assert not manager.unload_if_idle()
    assert manager.state == "ready"
    clock.now += 1
    assert manager.unload_if_idle()
    assert (manager.state, models.alive) == ("unloaded", 0)


def test_a_lease_that_fails_ends_like_any_other() -> None:
    models, clock = Models(), Clock()
    manager = new_manager(models, clock=clock)

    with pytest.raises(AssertionError), manager.lease():
        assert_true(False)

    clock.now += IDLE_S - 1
    assert not manager.unload_if_idle()
    clock.now += 1
    assert manager.unload_if_idle()


def test_an_unloaded_model_is_loaded_again_by_the_next_lease() -> None:
    models, clock = Models(), Clock()
    manager = new_manager(models, clock=clock)
    for expected in (1, 2, 3):
        with manager.lease() as recognizer:
            recognizer.recognize([])
        clock.now += IDLE_S
        assert manager.unload_if_idle()
        assert not manager.unload_if_idle()
        assert (models.loads, models.alive) == (expected, 0)


def test_a_timeout_of_0_means_never() -> None:
    models, clock = Models(), Clock()
    manager = new_manager(models, clock=clock, idle_s=0)
    before = threading.active_count()
    manager.unload_when_idle()
    with manager.lease():
        pass

    clock.now += 1e9

    assert threading.active_count() == before
    assert not manager.unload_if_idle()
    assert models.alive == 1


def test_the_watch_unloads_and_ends_with_the_manager() -> None:
    models = Models()
    manager = new_manager(models, idle_s=0.02)
    before = set(threading.enumerate())
    manager.unload_when_idle()
    (watch,) = set(threading.enumerate()) - before
    with manager.lease():
        pass

    wait_until(lambda: models.alive == 0)
    assert manager.state == "unloaded"

    manager.close()
    watch.join(PATIENCE_S)
    assert not watch.is_alive()


def test_the_watch_survives_a_model_that_does_not_unload_cleanly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    models = Models()
    failures = itertools.count()

    class Stubborn(Model):
        def close(self) -> None:
            super().close()
            if next(failures) == 0:
                raise RuntimeError("CUDA error")

    def load(*_: object) -> Model:
        models.load()
        return Stubborn(models)

    manager = ModelSlot(files(), load, idle_timeout_s=0.02)
    manager.unload_when_idle()
    for _ in range(2):
        with manager.lease() as recognizer:
            recognizer.recognize([])
        wait_until(lambda: models.alive == 0)
        wait_until(lambda: manager.state == "unloaded")

    manager.close()
    assert next(failures) == 2
    assert "could not be unloaded cleanly" in caplog.text


def test_an_unloaded_model_leaves_nothing_in_memory() -> None:
    clock = Clock()

    class Cyclic(Model):
        def __init__(self, models: Models) -> None:
            super().__init__(models)
            self.me = self  # as NeMo's modules do

    loaded: list[weakref.ref[Cyclic]] = []

    def load(*_: object) -> Model:
        models = Models()
        models.load()
        model = Cyclic(models)
        loaded.append(weakref.ref(model))
        return model

    manager = ModelSlot(files(), load, idle_timeout_s=IDLE_S, clock=clock)
    with manager.lease():
        pass
    assert loaded[0]() is not None

    clock.now += IDLE_S
    assert manager.unload_if_idle()
    assert loaded[0]() is None


def test_a_lease_during_an_unload_waits_for_its_end() -> None:
    clock, models = Clock(), Models()
    closing, go_on = threading.Event(), threading.Event()

    class Slow(Model):
        def close(self) -> None:
            closing.set()
            assert go_on.wait(PATIENCE_S)
            super().close()

    def load(*_: object) -> Model:
        models.load()
        return Slow(models)

    manager = ModelSlot(files(), load, idle_timeout_s=IDLE_S, clock=clock)
    with manager.lease():
        clock.now += IDLE_S
    clock.now += IDLE_S

    def unload() -> None:
        assert manager.unload_if_idle()

    def use() -> None:
        assert closing.wait(PATIENCE_S)
        with manager.lease() as recognizer:
            recognizer.recognize([])

    def end() -> None:
        assert closing.wait(PATIENCE_S)
        # Time enough for a lease that does not wait.
        time.sleep(0.05)
        go_on.set()

    assert run_all(unload, use, end) == []
    assert (models.loads, models.alive, models.most_alive) == (2, 1, 1)


def test_a_thousand_leases_raced_by_unloading_never_meet_a_second_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # With torch in the process it takes a third of a second, hundreds of times.
    monkeypatch.setattr(slot, "gc", SimpleNamespace(collect=lambda: 0))
    models, clock = Models(), Clock()
    manager = new_manager(models, clock=clock, idle_s=1e-9)
    unloads: list[int] = []

    def use(seed: int) -> None:
        pause = random.Random(seed)
        for _ in range(63):
            with manager.lease() as recognizer:
                time.sleep(pause.random() * 1e-3)
                recognizer.recognize([])
            clock.now += 1
            if manager.unload_if_idle():
                unloads.append(seed)
            time.sleep(pause.random() * 1e-2)

    assert run_all(*[partial(use, seed) for seed in range(16)]) == []
    assert models.most_alive == 1
    assert len(set(unloads)) > 5, "the race did not take place"
    assert models.alive == models.loads - len(unloads) <= 1


# The end


def test_close_unloads_and_lends_no_more() -> None:
    models = Models()
    manager = new_manager(models)
    with manager.lease():
        pass

    manager.close()
    manager.close()

    assert (manager.state, models.alive) == ("unloaded", 0)
    with pytest.raises(ServiceUnavailableError, match="stopping"), manager.lease():
        pass
    assert models.loads == 1


def test_close_during_a_load_lets_it_end_and_unloads() -> None:
    models = Models()
    manager = new_manager(models)
    go_on = threading.Event()
    models.before = lambda: assert_true(go_on.wait(PATIENCE_S))

    def use() -> None:
        with manager.lease() as recognizer:
            recognizer.recognize([])

    def close() -> None:
        wait_until(lambda: models.loads == 1)
        manager.close()
        go_on.set()

    assert run_all(use, close) == []
    assert (models.loads, models.alive, manager.state) == (1, 0, "unloaded")


def test_close_during_a_load_that_fails_leaves_the_failure() -> None:
    models = Models()
    manager = new_manager(models)

    def fail() -> None:
        manager.close()
        raise RuntimeError("no room")

    models.before = fail

    with pytest.raises(ModelLoadError), manager.lease():
        pass

    assert manager.state == "failed"


def test_close_during_a_lease_waits_for_its_end() -> None:
    models = Models()
    manager = new_manager(models)

    with manager.lease() as recognizer:
        with manager.lease():
            manager.close()
        recognizer.recognize([])
        assert models.alive == 1

    assert models.alive == 0
