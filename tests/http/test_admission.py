from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import PATIENCE_S, wait_until

import parakeet_api.http.admission
from parakeet_api.errors import AudioDecodeError, QueueFullError
from parakeet_api.http.admission import Admission
from parakeet_api.model.batching import RequestCancelled


@pytest.fixture
def quick_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parakeet_api.http.admission, "_POLL_S", 0.01)


def enter(admission: Admission, leave: threading.Event, order: list[int], number: int) -> None:
    with admission.slot():
        order.append(number)
        assert leave.wait(PATIENCE_S)


def held(admission: Admission) -> int:
    return sum(admission.counts())


def test_places_are_limited_and_given_to_waiting_requests() -> None:
    admission = Admission(active=2, waiting=1)
    leave = [threading.Event() for _ in range(4)]
    order: list[int] = []

    with ThreadPoolExecutor(4) as threads:
        requests = []
        for number in range(3):
            requests.append(threads.submit(enter, admission, leave[number], order, number))
            wait_until(lambda: held(admission) == number + 1)  # noqa: B023
        wait_until(lambda: len(order) == 2)

        with pytest.raises(QueueFullError) as caught, admission.slot():
            pass
        assert caught.value.status == 503
        assert caught.value.retry_after_s

        assert order == [0, 1]
        leave[1].set()
        wait_until(lambda: order == [0, 1, 2])
        requests.append(threads.submit(enter, admission, leave[3], order, 3))
        for event in leave:
            event.set()
        for request in requests:
            request.result(PATIENCE_S)

    assert order == [0, 1, 2, 3]
    assert admission.counts() == (0, 0)


def test_no_request_waits_if_the_queue_has_length_zero() -> None:
    admission = Admission(active=1, waiting=0)

    with admission.slot(), pytest.raises(QueueFullError), admission.slot():
        pass

    with admission.slot():
        pass


@pytest.mark.usefixtures("quick_poll")
def test_a_client_that_disconnects_while_waiting_frees_its_place() -> None:
    admission = Admission(active=1, waiting=1)
    cancelled = threading.Event()

    def wait() -> None:
        with admission.slot(cancelled=cancelled.is_set):
            pytest.fail("there is no place")

    with ThreadPoolExecutor(1) as threads, admission.slot():
        waiter = threads.submit(wait)
        wait_until(lambda: admission.counts() == (1, 1))
        cancelled.set()
        assert isinstance(waiter.exception(10), RequestCancelled)
        assert admission.counts() == (1, 0)


def test_places_are_given_back_after_errors() -> None:
    admission = Admission(active=1, waiting=0)

    for _ in range(3):
        with pytest.raises(AudioDecodeError), admission.slot():
            raise AudioDecodeError("no audio")

    assert admission.counts() == (0, 0)


def test_waiting_requests_get_their_position_and_are_served_in_order() -> None:
    admission = Admission(active=1, waiting=3)
    positions: list[list[int]] = [[], [], []]
    served: list[int] = []

    def wait(number: int) -> None:
        with admission.slot(on_wait=positions[number].append):
            served.append(number)

    with ThreadPoolExecutor(3) as threads:
        with admission.slot():
            for number in range(3):
                threads.submit(wait, number)
                wait_until(lambda: positions[number] == [number + 1])  # noqa: B023
        wait_until(lambda: admission.counts() == (0, 0))

    assert served == [0, 1, 2]
    assert positions[0] == [1]
    assert positions[1][0] == 2
    assert positions[2] == sorted(positions[2], reverse=True)


def test_a_new_request_does_not_overtake_the_queue() -> None:
    admission = Admission(active=1, waiting=2)
    order: list[str] = []

    def wait(name: str) -> None:
        with admission.slot():
            order.append(name)

    with ThreadPoolExecutor(2) as threads, admission.slot():
        threads.submit(wait, "first")
        wait_until(lambda: admission.counts() == (1, 1))
        threads.submit(wait, "second")
        wait_until(lambda: admission.counts() == (1, 2))

    assert order == ["first", "second"]


def test_a_full_queue_is_reported_before_a_request_enters_it() -> None:
    admission = Admission(active=1, waiting=0)
    admission.refuse_if_full()

    with admission.slot(), pytest.raises(QueueFullError):
        admission.refuse_if_full()
