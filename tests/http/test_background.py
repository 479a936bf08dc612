from __future__ import annotations

import threading
from collections.abc import Generator
from itertools import count

import pytest
from conftest import PATIENCE_S, wait_until

import parakeet_api.http.background
from parakeet_api.http.background import Cancelled, Emit, in_background
from parakeet_api.model.batching import RequestCancelled


def never() -> bool:
    return False


@pytest.fixture(autouse=True)
def quick_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parakeet_api.http.background, "_POLL_S", 0.01)


@pytest.fixture(autouse=True)
def all_threads_end() -> Generator[None]:
    yield
    wait_until(lambda: not any(thread.name == "stream" for thread in threading.enumerate()))


def test_what_is_emitted_comes_out_in_order() -> None:
    def work(emit: Emit[int], cancelled: Cancelled) -> None:
        for number in range(100):
            emit(number)

    assert list(in_background(work, gone=never, heartbeat_s=60)) == list(range(100))


def test_silence_is_reported() -> None:
    released = threading.Event()

    def work(emit: Emit[str], cancelled: Cancelled) -> None:
        assert released.wait(PATIENCE_S)
        emit("at last")

    items = in_background(work, gone=never, heartbeat_s=0.01)

    assert [next(items), next(items)] == [None, None]
    released.set()
    assert [item for item in items if item is not None] == ["at last"]


def test_an_error_comes_after_what_was_emitted_before_it() -> None:
    def work(emit: Emit[str], cancelled: Cancelled) -> None:
        emit("first")
        raise ValueError("broken")

    items = in_background(work, gone=never, heartbeat_s=60)

    assert next(items) == "first"
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_closing_ends_the_work() -> None:
    ended = threading.Event()

    def work(emit: Emit[int], cancelled: Cancelled) -> None:
        try:
            for number in count():
                emit(number)
        finally:
            ended.set()

    items = in_background(work, gone=never, heartbeat_s=60)
    assert next(items) == 0
    items.close()

    assert ended.is_set()


def test_work_that_looks_sees_that_it_is_cancelled() -> None:
    observed = threading.Event()

    def work(emit: Emit[int], cancelled: Cancelled) -> None:
        emit(1)
        wait_until(cancelled)
        observed.set()

    items = in_background(work, gone=never, heartbeat_s=60)
    assert next(items) == 1
    items.close()

    assert observed.is_set()


@pytest.mark.parametrize("chatty", [True, False])
def test_a_disconnected_client_stops_both_sides(chatty: bool) -> None:
    gone = threading.Event()

    def work(emit: Emit[int], cancelled: Cancelled) -> None:
        emit(1)
        while chatty:
            emit(2)
        wait_until(cancelled)
        raise RequestCancelled

    items = in_background(work, gone=gone.is_set, heartbeat_s=60)
    assert next(items) == 1
    gone.set()

    with pytest.raises(RequestCancelled):
        list(items)


def test_a_slow_reader_holds_the_work_back() -> None:
    emitted = 0

    def work(emit: Emit[int], cancelled: Cancelled) -> None:
        nonlocal emitted
        for number in range(1000):
            emit(number)
            emitted += 1

    items = in_background(work, gone=never, heartbeat_s=60)
    assert next(items) == 0
    wait_until(lambda: emitted > parakeet_api.http.background._MAX_WAITING)

    assert emitted <= parakeet_api.http.background._MAX_WAITING + 2
    assert list(items) == list(range(1, 1000))
