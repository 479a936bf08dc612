from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PATIENCE_S, Clock, wait_until
from model_helpers import Models, assert_true, files, run_all

from parakeet_api.errors import ModelLoadError, ServiceUnavailableError, StoppingError
from parakeet_api.model import slot
from parakeet_api.model.pool import ModelPool
from parakeet_api.model.slot import ModelSlot

BIT_S = 0.02
"""A forward pass."""


@pytest.fixture(autouse=True)
def quick_unloading(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch in the process, collecting takes a third of a second."""
    monkeypatch.setattr(slot, "gc", SimpleNamespace(collect=lambda: 0))


class Memory:
    """A memory for a number of models, and the models."""

    def __init__(self, room: int, names: str, *, clock: Callable[[], float], permits: int) -> None:
        self.room = room
        self.models = {name: Models() for name in names}
        self.slots = {
            name: ModelSlot(files(name), models.load, idle_timeout_s=0, name=name, clock=clock)
            for name, models in self.models.items()
        }
        self.room_checks = 0
        self.most_alive = 0
        self.pool = ModelPool(
            list(self.slots.values()), permits=permits, has_room=self._has_room, clock=clock
        )

    def _has_room(self, checkpoint: Path, device: str) -> bool:
        assert (checkpoint.suffix, device) == (".nemo", "cpu")
        self.room_checks += 1
        return self.alive() < self.room

    def alive(self) -> int:
        alive = sum(models.alive for models in self.models.values())
        self.most_alive = max(self.most_alive, alive)
        return alive

    def loaded(self) -> str:
        return "".join(name for name, models in self.models.items() if models.alive)

    @contextmanager
    def lease(self, name: str) -> Iterator[None]:
        with self.pool.lease(self.slots[name]) as recognizer:
            recognizer.recognize([])
            self.alive()
            yield

    def use(self, *names: str) -> None:
        for name in names:
            with self.lease(name):
                pass


def memory(
    room: int, names: str, *, clock: Callable[[], float] = time.monotonic, permits: int = 1
) -> Memory:
    return Memory(room, names, clock=clock, permits=permits)


@contextmanager
def in_threads(*tasks: Callable[[], None]) -> Iterator[list[BaseException]]:
    """Run tasks during the block, which signals them when to end."""
    raised: list[BaseException] = []
    with ExitStack() as stack:
        thread = threading.Thread(target=lambda: raised.extend(run_all(*tasks)))
        thread.start()
        stack.callback(thread.join)
        yield raised


# One model


def test_a_single_model_never_asks_for_room() -> None:
    alone = memory(0, "a")

    alone.use("a", "a")

    assert (alone.loaded(), alone.room_checks) == ("a", 0)


# Which models stay loaded


def test_models_that_fit_stay() -> None:
    both = memory(2, "ab")

    both.use("a", "b", "a", "b")

    assert both.loaded() == "ab"
    assert [models.loads for models in both.models.values()] == [1, 1]


def test_the_one_used_longest_ago_makes_room() -> None:
    clock = Clock()
    three = memory(2, "abc", clock=clock)
    for name in "aba":
        three.use(name)
        clock.now += 10

    three.use("c")

    assert three.loaded() == "ac"
    assert three.most_alive == 2


def test_where_even_an_empty_memory_has_no_room_the_load_is_tried() -> None:
    clock = Clock()
    small = memory(0, "ab", clock=clock)
    small.use("a")
    clock.now += 10

    small.use("b")

    assert small.loaded() == "b"


def test_a_model_at_work_is_waited_for() -> None:
    clock = Clock()
    narrow = memory(1, "ab", clock=clock, permits=2)
    go_on, inside = threading.Event(), threading.Event()

    def work() -> None:
        with narrow.lease("a"):
            inside.set()
            assert go_on.wait(PATIENCE_S)
            assert narrow.loaded() == "a"

    def wait() -> None:
        assert inside.wait(PATIENCE_S)
        # Its turn is long over.
        clock.now += 1000
        narrow.use("b")

    def end() -> None:
        wait_until(lambda: narrow.pool._turns[narrow.slots["a"]].is_evicting)
        assert narrow.loaded() == "a"
        go_on.set()

    assert run_all(work, wait, end) == []
    assert (narrow.loaded(), narrow.most_alive) == ("b", 1)


def test_a_wait_for_memory_is_limited_and_gives_the_reason() -> None:
    clock = Clock()
    narrow = memory(1, "ab", clock=clock, permits=2)

    def wait() -> None:
        with pytest.raises(ServiceUnavailableError, match="no room for the model 'b'"):
            narrow.use("b")

    def pass_time() -> None:
        wait_until(lambda: bool(narrow.pool._queue))
        clock.now += 1000

    with narrow.lease("a"):
        assert run_all(wait, pass_time) == []
    narrow.use("a")
    assert narrow.loaded() == "a"


def test_requests_that_wait_for_memory_get_the_stopping_error() -> None:
    narrow = memory(1, "ab", permits=2)

    def wait() -> None:
        with pytest.raises(StoppingError):
            narrow.use("b")

    def stop() -> None:
        wait_until(lambda: bool(narrow.pool._queue))
        narrow.pool.close()

    with narrow.lease("a"):
        assert run_all(wait, stop) == []


def test_a_load_that_fails_lets_the_next_one_try() -> None:
    pair = memory(1, "ab")

    def fail() -> None:
        raise RuntimeError("no such luck")

    pair.models["a"].before = fail
    with pytest.raises(ModelLoadError, match="no such luck"):
        pair.use("a")
    pair.use("b")
    pair.models["a"].before = lambda: None
    pair.use("a")

    assert pair.loaded() == "a"


# Turns


@pytest.mark.parametrize("workers", [1, 2])
def test_a_steady_stream_for_one_model_does_not_starve_the_other(workers: int) -> None:
    narrow = memory(1, "ab", permits=2)
    stop = threading.Event()

    def stream() -> None:
        while not stop.is_set():
            with narrow.lease("a"):
                time.sleep(BIT_S)

    with in_threads(*[stream] * workers) as raised:
        wait_until(lambda: narrow.models["a"].loads == 1)
        for expected in (1, 2):
            narrow.use("b")
            assert narrow.models["b"].loads == expected
            # And the stream continues.
            wait_until(lambda e=expected: narrow.models["a"].loads == e + 1)  # type: ignore[misc]
        stop.set()

    assert raised == []
    assert narrow.most_alive == 1


def test_two_steady_streams_take_turns_that_are_worth_their_loads() -> None:
    narrow = memory(1, "ab", permits=2)
    stop = threading.Event()
    passes = dict.fromkeys("ab", 0)

    def stream(name: str) -> None:
        while not stop.is_set():
            with narrow.lease(name):
                passes[name] += 1
                time.sleep(BIT_S)

    with in_threads(partial(stream, "a"), partial(stream, "b")) as raised:
        wait_until(lambda: sum(models.loads for models in narrow.models.values()) >= 4)
        stop.set()

    assert raised == []
    assert narrow.most_alive == 1
    # Two turns each, and a turn lasts a second: 50 passes on an idle machine.
    assert all(count > 4 * narrow.models[name].loads for name, count in passes.items())


# Permits


def test_permits_hold_for_all_models_together() -> None:
    both = memory(2, "ab", permits=2)
    lock, at_work, most = threading.Lock(), [0], [0]

    def work(name: str) -> None:
        for _ in range(20):
            with both.lease(name):
                with lock:
                    at_work[0] += 1
                    most[0] = max(most[0], at_work[0])
                time.sleep(1e-3)
                with lock:
                    at_work[0] -= 1

    assert run_all(*[partial(work, name) for name in "ababab"]) == []
    assert most == [2]


def test_permits_are_first_come_first_served() -> None:
    both = memory(2, "ab")
    line, order = both.pool._permits._queue, []

    def come(number: int) -> None:
        wait_until(lambda: len(line) == number)
        with both.lease("ab"[number % 2]):
            order.append(number)

    both.use("a", "b")
    with ExitStack() as held:
        held.enter_context(both.lease("a"))
        with in_threads(*[partial(come, number) for number in range(5)]) as raised:
            wait_until(lambda: len(line) == 5)
            held.close()

    assert raised == []
    assert order == [0, 1, 2, 3, 4]


# By hand


def test_a_load_by_hand_is_one_for_all_who_ask() -> None:
    pair = memory(2, "ab")
    go_on = threading.Event()
    pair.models["a"].before = lambda: assert_true(go_on.wait(PATIENCE_S))

    first, second = (pair.pool.load(pair.slots["a"]) for _ in range(2))
    go_on.set()

    assert first is second
    assert first.result(PATIENCE_S) is None
    assert pair.pool.load(pair.slots["a"]).result(PATIENCE_S) is None
    assert pair.models["a"].loads == 1


def test_a_load_by_hand_returns_its_error() -> None:
    pair = memory(2, "ab")

    def fail() -> None:
        raise RuntimeError("broken")

    pair.models["a"].before = fail

    with pytest.raises(ModelLoadError, match="broken"):
        pair.pool.load(pair.slots["a"]).result(PATIENCE_S)


def test_an_unload_by_hand_waits_for_nothing() -> None:
    pair = memory(2, "ab")
    resident = pair.slots["a"]
    assert pair.pool.unload(resident) == "not_loaded"

    with pair.lease("a"):
        assert pair.pool.unload(resident) == "in_use"
        assert pair.loaded() == "a"

    assert pair.pool.unload(resident) == "unloaded"
    assert pair.loaded() == ""


def test_an_unload_by_hand_during_a_load_finds_it_in_use() -> None:
    pair = memory(2, "ab")
    resident = pair.slots["a"]
    go_on = threading.Event()
    pair.models["a"].before = lambda: assert_true(go_on.wait(PATIENCE_S))

    loading = pair.pool.load(resident)
    wait_until(lambda: pair.models["a"].loads == 1)
    outcome = pair.pool.unload(resident)
    go_on.set()
    loading.result(PATIENCE_S)

    assert outcome == "in_use"
    assert pair.loaded() == "a"


# All at once


def test_many_threads_and_models_never_exceed_the_memory_nor_meet_a_closed_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Short turns make many swaps.
    monkeypatch.setattr("parakeet_api.model.pool._MIN_TURN_S", 0.02)
    monkeypatch.setattr("parakeet_api.model.pool._QUIET_S", 0.005)
    monkeypatch.setattr("parakeet_api.model.pool._POLL_S", 0.002)
    tight = memory(2, "abcd", permits=3)
    unloads: list[str] = []

    def use(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(40):
            name = chance.choice("abcd")
            with tight.lease(name):
                time.sleep(chance.random() * 2e-3)
            if chance.random() < 0.1 and tight.pool.unload(tight.slots[name]) == "unloaded":
                unloads.append(name)

    assert run_all(*[partial(use, seed) for seed in range(8)]) == []
    assert tight.most_alive <= 2
    assert all(models.most_alive == 1 for models in tight.models.values())
    swaps = sum(models.loads for models in tight.models.values()) - len(unloads)
    assert swaps > 8, "the models did not make room for each other"
    assert all(turn.leases == 0 for turn in tight.pool._turns.values())
    assert not tight.pool._queue
