"""The pipe between the thread that receives a body and the one that reads it."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import pytest
from conftest import PATIENCE_S, wait_until
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.http.request_body import MAX_HELD, RequestBody
from parakeet_api.model.batching import RequestCancelled


@given(
    content=st.binary(max_size=2000),
    splits=st.sets(st.integers(0, 2000)),
    size=st.integers(1, 300),
)
def test_what_is_read_is_what_was_received_in_its_order(
    content: bytes, splits: set[int], size: int
) -> None:
    body = RequestBody()
    for start, end in pairwise([0, *sorted(splits), len(content)]):
        body.append(content[start:end])
    body.end()
    assert len(body) == len(content)

    read = list(iter(partial(body.read, size), b""))

    assert b"".join(read) == content
    assert all(len(part) <= size for part in read)
    assert body.read(size) == b""


def test_a_reader_waits_for_as_much_as_it_wants_or_the_end() -> None:
    body = RequestBody()
    with ThreadPoolExecutor(1) as pool:
        read: Future[bytes] = pool.submit(body.read, 10)
        body.append(b"1234")
        wait_until(lambda: body._wanted == 10)
        assert not read.done()
        body.append(b"567890ab")
        assert read.result(PATIENCE_S) + body.read(6) + body.read(10) == b"1234567890ab"

        rest = pool.submit(body.read, 10)
        wait_until(lambda: body._wanted == 10)
        body.append(b"cd")
        body.end()
        assert rest.result(PATIENCE_S) == b"cd"


def test_a_full_body_calls_back_once_there_is_room() -> None:
    has_room = threading.Event()
    body = RequestBody(on_room=has_room.set)
    while not body.is_full:
        body.append(bytes(60_000))

    body.read(1)
    assert body.is_full == (len(body) > MAX_HELD)
    body.read(60_000)

    assert not body.is_full
    assert has_room.is_set()


def test_everything_can_be_read_at_once() -> None:
    body = RequestBody()
    while not body.is_full:
        body.append(bytes(60_000))

    body.end()
    assert len(body.read()) == len(body)


@pytest.mark.parametrize("waits", [True, False])
def test_a_reader_detects_a_disconnected_client(waits: bool) -> None:
    body = RequestBody()
    with ThreadPoolExecutor(1) as pool:
        if waits:
            read = pool.submit(body.read, 100)
            wait_until(lambda: body._wanted == 100)
            body.abort()
        else:
            body.abort()
            read = pool.submit(body.read, 100)
        with pytest.raises(RequestCancelled):
            read.result(PATIENCE_S)


def test_a_client_that_goes_after_the_end_is_no_error() -> None:
    body = RequestBody()
    body.append(b"whole")
    body.end()
    body.abort()

    assert body.read(100) == b"whole"


def test_a_closed_body_drops_what_arrives_and_is_never_full() -> None:
    has_room = threading.Event()
    body = RequestBody(on_room=has_room.set)
    while not body.is_full:
        body.append(bytes(60_000))
    body.close()
    received = len(body)

    assert has_room.is_set()
    for _ in range(10):
        body.append(bytes(60_000))
    assert not body.is_full
    assert len(body) == received + 600_000
    with pytest.raises(ValueError, match="closed"):
        body.read(1)


def test_the_first_read_alone_is_announced() -> None:
    calls: list[str] = []
    body = RequestBody(on_first_read=lambda: calls.append("wanted"))
    body.append(b"abc")
    body.end()
    assert calls == []

    body.read(1)
    body.read(1)

    assert calls == ["wanted"]
