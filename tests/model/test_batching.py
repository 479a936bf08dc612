from __future__ import annotations

import math
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PATIENCE_S, Clock, wait_until
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.errors import (
    AudioDecodeError,
    DeviceLostError,
    ModelNotReadyError,
    ServiceUnavailableError,
)
from parakeet_api.model import batching
from parakeet_api.model.batching import Batcher, RequestCancelled, halve, padded_s
from parakeet_api.model.devices import InferencePlan
from parakeet_api.model.loading import ModelInfo
from parakeet_api.model.recognizer import OutOfDeviceMemoryError
from parakeet_api.transcript import FRAME, SAMPLE_RATE, Chunk, Word

PLAN = InferencePlan(longest_chunk_s=30, batch_size=4, batch_s=60)
LONG, CLIP, OTHER, PLUG = 1, 2, 3, 9
"""Requests; a chunk's `owned_start` identifies its request."""


def chunk(request: int, index: int, seconds: float = 1.0) -> Chunk:
    samples = np.zeros(round(seconds * SAMPLE_RATE), np.int16)
    return Chunk(index, 0, samples, request, request + 1)


def chunks_of(request: int, count: int, seconds: float = 1.0) -> list[Chunk]:
    return [chunk(request, index, seconds) for index in range(count)]


def name(piece: Chunk) -> str:
    return f"{piece.owned_start}.{piece.index}"


def names(pieces: Sequence[Chunk]) -> list[str]:
    return [name(piece) for piece in pieces]


class Model:
    """A fake that returns each chunk's name as its word, one batch at a time, when released."""

    info = ModelInfo(
        device="cpu", precision="fp32", precision_reason="a test", parameters=3, decoding="greedy"
    )

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.finished = 0
        self.started = threading.Event()
        self.let = threading.Event()
        self.let.set()
        self.during: Callable[[Sequence[Chunk]], None] = lambda _: None

    def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        self.batches.append(names(chunks))
        self.started.set()
        assert self.let.wait(PATIENCE_S)
        self.during(chunks)
        self.finished += 1
        return [[Word(name(piece), 0, 1)] for piece in chunks]

    def close(self) -> None: ...


@contextmanager
def running(
    model: Model,
    plan: InferencePlan = PLAN,
    permits: int = 1,
    on_device_lost: Callable[[], None] = lambda: None,
    eager_passes: int | None = None,
) -> Iterator[tuple[Batcher, ThreadPoolExecutor]]:
    """Run a batcher, and threads for requests."""

    @contextmanager
    def lease() -> Iterator[Model]:
        yield model

    batcher = Batcher(
        lease,
        plan=plan,
        permits=permits,
        eager_passes=eager_passes,
        on_device_lost=on_device_lost,
    )
    with ThreadPoolExecutor(20) as requests:
        try:
            yield batcher, requests
        finally:
            model.let.set()
            batcher.close()


def recognize_all(batcher: Batcher, pieces: Sequence[Chunk]) -> list[str]:
    """Recognise a recording; return its words, which must be paired with their chunks."""
    words = []
    for piece, (word,) in batcher.recognize(pieces):
        assert word.text == name(piece)
        words.append(word.text)
    return words


@contextmanager
def held(model: Model, batcher: Batcher, requests: ThreadPoolExecutor) -> Iterator[None]:
    """Keep an idle model busy with another request's chunk until the block ends."""
    model.started.clear()
    model.let.clear()
    try:
        plug = requests.submit(recognize_all, batcher, chunks_of(PLUG, 1))
        assert model.started.wait(PATIENCE_S)
        yield
    finally:
        model.let.set()
    assert plug.result(PATIENCE_S) == ["9.0"]


# Order and turns


@pytest.mark.parametrize("permits", [1, 3])
def test_words_come_in_the_order_of_the_chunks(permits: int) -> None:
    lengths = np.random.default_rng(7).uniform(0.1, 30, 60)
    pieces = [chunk(LONG, index, seconds) for index, seconds in enumerate(lengths)]

    with running(Model(), permits=permits) as (batcher, _):
        assert recognize_all(batcher, pieces) == names(pieces)


def test_no_chunks_give_no_words() -> None:
    with running(Model()) as (batcher, _):
        assert recognize_all(batcher, []) == []


def test_many_requests_at_once_get_their_own_words() -> None:
    model = Model()

    with running(model, permits=2) as (batcher, requests):
        recordings = [chunks_of(request, 25) for request in range(20)]
        results = list(requests.map(lambda pieces: recognize_all(batcher, pieces), recordings))

    assert results == [names(pieces) for pieces in recordings]
    done = Counter(piece for batch in model.batches for piece in batch)
    assert set(done.values()) == {1}
    assert any(len({piece.split(".")[0] for piece in batch}) > 1 for batch in model.batches)


def test_a_clip_is_in_the_next_batch_while_a_long_recording_has_chunks_waiting() -> None:
    model = Model()

    with running(model) as (batcher, requests):
        with held(model, batcher, requests):
            long = requests.submit(recognize_all, batcher, chunks_of(LONG, 100))
            wait_until(lambda: batcher.waiting() == 8)
            clip = requests.submit(recognize_all, batcher, chunks_of(CLIP, 1))
            wait_until(lambda: batcher.waiting() == 9)
        assert clip.result(PATIENCE_S) == ["2.0"]
        assert long.result(PATIENCE_S) == names(chunks_of(LONG, 100))

    assert model.batches[:2] == [["9.0"], ["1.0", "2.0", "1.1", "1.2"]]


def test_a_clip_too_short_for_the_next_batch_is_in_the_one_after_it() -> None:
    model = Model()

    with running(model) as (batcher, requests):
        with held(model, batcher, requests):
            requests.submit(recognize_all, batcher, chunks_of(LONG, 100, seconds=15))
            wait_until(lambda: batcher.waiting() == 8)
            clip = requests.submit(recognize_all, batcher, chunks_of(CLIP, 1, seconds=2))
            wait_until(lambda: batcher.waiting() == 9)
        assert clip.result(PATIENCE_S) == ["2.0"]

    assert model.batches[:3] == [["9.0"], ["1.0", "1.1", "1.2", "1.3"], ["2.0"]]


@contextmanager
def busy(
    batcher: Batcher, requests: ThreadPoolExecutor, model: Model, *seconds: float
) -> Iterator[None]:
    """Keep the model at one chunk of each length until the block ends; others pass through it."""
    let = threading.Event()

    def hold(pieces: Sequence[Chunk]) -> None:
        if pieces[0].owned_start >= PLUG:
            assert let.wait(PATIENCE_S)

    model.during = hold
    plugs = []
    try:
        for number, length in enumerate(seconds):
            started = len(model.batches)
            plugs.append(
                requests.submit(recognize_all, batcher, chunks_of(PLUG + number, 1, length))
            )
            wait_until(lambda started=started: len(model.batches) == started + 1)  # type: ignore[misc]
        yield
    finally:
        let.set()
    for plug in plugs:
        plug.result(PATIENCE_S)


def test_a_clip_does_not_wait_for_long_chunks_that_hold_all_other_permits() -> None:
    model = Model()

    with running(model, permits=3) as (batcher, requests), busy(batcher, requests, model, 30, 11):
        assert requests.submit(recognize_all, batcher, chunks_of(CLIP, 1, 10)).result(
            PATIENCE_S
        ) == ["2.0"]
        assert requests.submit(recognize_all, batcher, chunks_of(OTHER, 2)).result(PATIENCE_S) == [
            "3.0",
            "3.1",
        ]


def test_the_permit_for_clips_is_not_for_long_chunks() -> None:
    model = Model()

    with running(model, permits=3) as (batcher, requests):
        with busy(batcher, requests, model, 30, 30):
            long = requests.submit(recognize_all, batcher, chunks_of(LONG, 1, 10.1))
            wait_until(lambda: batcher.waiting() == 1)
            # Nor does it keep a clip behind it in the queue waiting.
            assert requests.submit(recognize_all, batcher, chunks_of(CLIP, 1)).result(
                PATIENCE_S
            ) == ["2.0"]
            assert batcher.waiting() == 1
        assert long.result(PATIENCE_S) == ["1.0"]


def test_the_permit_for_clips_is_not_used_while_others_are_at_clips() -> None:
    # They will end soon, and waiting for them makes a fuller batch.
    model = Model()

    with running(model, permits=3) as (batcher, requests):
        with busy(batcher, requests, model, 30, 3):
            clip = requests.submit(recognize_all, batcher, chunks_of(CLIP, 1))
            wait_until(lambda: batcher.waiting() == 1)
            assert not clip.done()
        assert clip.result(PATIENCE_S) == ["2.0"]


def test_of_two_permits_none_is_reserved() -> None:
    model = Model()

    with running(model, permits=2) as (batcher, requests), busy(batcher, requests, model, 30):
        assert requests.submit(recognize_all, batcher, chunks_of(LONG, 1, 30)).result(
            PATIENCE_S
        ) == ["1.0"]


GPU_PLAN = replace(PLAN, memory_mb=1500.0)


@pytest.mark.parametrize(
    ("waiting", "seconds", "taken"), [(1, 1.0, False), (3, 1.0, False), (4, 1.0, True)]
)
def test_on_a_gpu_a_second_batch_is_prepared_once_it_is_full(
    waiting: int, seconds: float, taken: bool
) -> None:
    assert GPU_PLAN.batch_size == 4
    model = Model()
    with running(model, GPU_PLAN, permits=2) as (batcher, requests):
        with held(model, batcher, requests):
            submitted = [
                requests.submit(recognize_all, batcher, chunks_of(number, 1, seconds))
                for number in range(waiting)
            ]
            wait_until(lambda: len(model.batches) == 2 or batcher.waiting() == waiting)
            if not taken:
                assert batcher.waiting() == waiting
        answers = [answer.result(PATIENCE_S) for answer in submitted]

    assert answers == [[f"{number}.0"] for number in range(waiting)]
    assert sorted(map(len, model.batches)) == sorted([1, waiting]), "together, and in one pass"


@pytest.mark.parametrize(("waiting", "taken"), [(1, False), (3, False), (4, True)])
def test_beside_the_eager_passes_only_a_full_batch_is_taken(waiting: int, taken: bool) -> None:
    model = Model()
    with running(model, permits=8, eager_passes=2) as (batcher, requests):
        with held(model, batcher, requests):
            eager = requests.submit(recognize_all, batcher, chunks_of(OTHER, 1))
            wait_until(lambda: len(model.batches) == 2)
            submitted = [
                requests.submit(recognize_all, batcher, chunks_of(10 + number, 1))
                for number in range(waiting)
            ]
            # Those that are taken are counted as waiting for a moment before.
            left = 0 if taken else waiting
            wait_until(lambda: len(model.batches) == 2 + taken and batcher.waiting() == left)
        answers = [answer.result(PATIENCE_S) for answer in (eager, *submitted)]

    assert answers == [[f"{OTHER}.0"], *([f"{10 + number}.0"] for number in range(waiting))]
    assert sorted(map(len, model.batches)) == sorted([1, 1, waiting]), "together, and in one pass"


def test_a_clip_that_came_while_no_permit_was_free_is_taken_as_soon_as_one_is() -> None:
    model = Model()
    lets = {request: threading.Event() for request in (1, 2, 3, 4)}

    def hold(pieces: Sequence[Chunk]) -> None:
        assert lets[pieces[0].owned_start].wait(PATIENCE_S)

    model.during = hold

    with running(model, permits=3) as (batcher, requests):
        first = requests.submit(recognize_all, batcher, chunks_of(1, 1, 30))
        wait_until(lambda: len(model.batches) == 1)
        clip = requests.submit(recognize_all, batcher, chunks_of(2, 1))
        wait_until(lambda: len(model.batches) == 2)
        long = requests.submit(recognize_all, batcher, chunks_of(3, 1, 30))
        wait_until(lambda: batcher.waiting() == 1)
        late = requests.submit(recognize_all, batcher, chunks_of(4, 1))
        wait_until(lambda: batcher.waiting() == 2)
        lets[4].set()
        # The worker that is done with the clip takes the long chunk; another must take the clip.
        lets[2].set()
        assert clip.result(PATIENCE_S) == ["2.0"]
        assert late.result(PATIENCE_S) == ["4.0"]
        assert not first.done()
        assert not long.done()
        for let in lets.values():
            let.set()
        assert (first.result(PATIENCE_S), long.result(PATIENCE_S)) == (["1.0"], ["3.0"])


# Failures


def test_an_error_reaches_the_requests_of_its_batch_alone() -> None:
    model = Model()

    def fail(pieces: Sequence[Chunk]) -> None:
        if pieces[0].owned_start == CLIP:
            raise RuntimeError("CUDA error")

    model.during = fail
    one_by_one = InferencePlan(longest_chunk_s=30, batch_size=1, batch_s=60)

    with running(model, one_by_one) as (batcher, requests):
        with held(model, batcher, requests):
            fine = requests.submit(recognize_all, batcher, chunks_of(LONG, 5))
            bad = requests.submit(recognize_all, batcher, chunks_of(CLIP, 5))
            wait_until(lambda: batcher.waiting() == 4)
        assert isinstance(bad.exception(10), RuntimeError)
        assert fine.result(PATIENCE_S) == names(chunks_of(LONG, 5))
        assert batcher.waiting() == 0
        assert recognize_all(batcher, chunks_of(OTHER, 2)) == ["3.0", "3.1"]


def test_an_error_of_the_lease_reaches_the_request_and_the_next_is_served() -> None:
    model = Model()
    ready = False

    @contextmanager
    def lease() -> Iterator[Model]:
        if not ready:
            raise ModelNotReadyError("50 % done.")
        yield model

    batcher = Batcher(lease, plan=PLAN, permits=1)
    try:
        with pytest.raises(ModelNotReadyError, match="50 %"):
            recognize_all(batcher, chunks_of(CLIP, 3))
        ready = True
        assert recognize_all(batcher, chunks_of(CLIP, 3)) == ["2.0", "2.1", "2.2"]
    finally:
        batcher.close()


def out_of_memory_above(limit: int) -> Callable[[Sequence[Chunk]], None]:
    def check(pieces: Sequence[Chunk]) -> None:
        if len(pieces) > limit:
            raise OutOfDeviceMemoryError("no room")

    return check


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_batch_that_does_not_fit_the_memory_is_halved_and_nothing_is_lost(limit: int) -> None:
    model = Model()
    model.during = out_of_memory_above(limit)
    plan = InferencePlan(longest_chunk_s=30, batch_size=7, batch_s=60)

    with running(model, plan) as (batcher, requests):
        with held(model, batcher, requests):
            results = [requests.submit(recognize_all, batcher, chunks_of(r, 4)) for r in range(4)]
            wait_until(lambda: batcher.waiting() == 16)
        for request in range(4):
            assert results[request].result(PATIENCE_S) == names(chunks_of(request, 4))

    assert max(map(len, model.batches)) == 7
    done = Counter(piece for batch in model.batches if len(batch) <= limit for piece in batch)
    assert len(done) == 16 + 1
    assert set(done.values()) == {1}


def test_an_error_in_one_half_of_a_batch_leaves_the_other_its_words() -> None:
    model = Model()

    def check(pieces: Sequence[Chunk]) -> None:
        if len(pieces) > 2:
            raise OutOfDeviceMemoryError("no room")
        if pieces[0].owned_start == OTHER:
            raise RuntimeError("CUDA error")

    model.during = check

    with running(model) as (batcher, requests):
        with held(model, batcher, requests):
            results = []
            for request in (LONG, CLIP, OTHER, OTHER + 1):
                results.append(requests.submit(recognize_all, batcher, chunks_of(request, 1)))
                wait_until(lambda: batcher.waiting() == len(results))
        assert [request.result(PATIENCE_S) for request in results[:2]] == [["1.0"], ["2.0"]]
        assert [type(request.exception(10)) for request in results[2:]] == [RuntimeError] * 2
        assert recognize_all(batcher, chunks_of(CLIP, 1)) == ["2.0"]


def test_a_single_chunk_that_does_not_fit_is_refused_and_its_neighbours_are_served() -> None:
    model = Model()

    def check(pieces: Sequence[Chunk]) -> None:
        if any(piece.owned_start == OTHER for piece in pieces):
            raise OutOfDeviceMemoryError("no room")

    model.during = check

    with running(model) as (batcher, requests):
        with held(model, batcher, requests):
            # One batch, with OTHER in its first half.
            bad = requests.submit(recognize_all, batcher, chunks_of(OTHER, 1))
            wait_until(lambda: batcher.waiting() == 1)
            fine = [requests.submit(recognize_all, batcher, chunks_of(r, 1)) for r in (4, 5, 6)]
            wait_until(lambda: batcher.waiting() == 4)
        assert isinstance(bad.exception(10), ServiceUnavailableError)
        assert sorted(results.result(PATIENCE_S)[0] for results in fine) == ["4.0", "5.0", "6.0"]

    assert {"3.0", "4.0", "5.0", "6.0"} in map(set, model.batches)


class Narrow(Model):
    """A fake that returns one word per second; only so many seconds fit its memory."""

    def __init__(self, fits_s: float) -> None:
        super().__init__()
        self.fits_s = fits_s
        self.passes: list[float] = []

    def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        self.passes.append(padded_s(chunks))
        if padded_s(chunks) > self.fits_s:
            raise OutOfDeviceMemoryError("no room")
        return [
            [
                Word(f"w{second}", second + 0.3, second + 0.7)
                for second in range(
                    math.ceil(chunk.start / SAMPLE_RATE), math.floor(chunk.end / SAMPLE_RATE)
                )
            ]
            for chunk in chunks
        ]


def minute(start_s: int) -> Chunk:
    samples = np.zeros(60 * SAMPLE_RATE, np.int16)
    start = start_s * SAMPLE_RATE
    return Chunk(0, start, samples, start, start + len(samples))


@pytest.mark.parametrize("fits_s", [40, 33, 20, 12])
def test_a_chunk_that_does_not_fit_the_memory_is_halved_and_nothing_is_lost(fits_s: float) -> None:
    model = Narrow(fits_s)

    with running(model) as (batcher, _):
        ((_, words),) = batcher.recognize([minute(60)])

    assert [word.text for word in words] == [f"w{second}" for second in range(60, 120)]
    assert [word.start for word in words] == sorted(word.start for word in words)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the batchers' clock."""
    clock = Clock()
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=clock))
    return clock


def test_what_did_not_fit_is_tried_again_step_by_step(clock: Clock) -> None:
    model = Narrow(12)
    with running(model) as (batcher, _):

        def most_tried() -> float:
            model.passes.clear()
            list(batcher.recognize([minute(0), minute(60)]))
            return max(model.passes)

        assert most_tried() == 60
        learnt = most_tried()
        assert 5 <= learnt <= 12

        # Another program has ended.
        model.fits_s = 60
        clock.now += 29
        assert most_tried() == learnt
        clock.now += 2
        assert learnt < most_tried() < 30
        clock.now += 60
        assert most_tried() == 60
        clock.now += 10**9
        assert most_tried() == 60


def test_a_gpu_that_stays_full_is_tried_once_in_a_while(clock: Clock) -> None:
    model = Narrow(20)
    with running(model) as (batcher, _):
        list(batcher.recognize([minute(0)]))
        for _ in range(4):
            clock.now += 31
            model.passes.clear()
            for start_s in (0, 60, 120):
                list(batcher.recognize([minute(start_s)]))
            assert sum(seconds > 20 for seconds in model.passes) <= 1


@given(st.integers(5 * SAMPLE_RATE + 1, 700 * SAMPLE_RATE), st.integers(0, 10**9))
def test_the_halves_of_a_chunk_tile_it_and_share_some_audio(length: int, start: int) -> None:
    samples = np.broadcast_to(np.int16(0), (length,))
    left, right = halve(Chunk(7, start, samples, start, start + length))

    assert (left.start, left.owned_start) == (start, start)
    assert left.owned_end == right.owned_start
    assert (right.owned_end, right.end) == (start + length, start + length)
    assert left.end - left.owned_end == right.owned_start - right.start > 0
    assert max(len(left.samples), len(right.samples)) < length


def test_halves_are_parted_where_it_is_quiet() -> None:
    loud = np.random.default_rng(3).integers(-9000, 9000, 20 * SAMPLE_RATE).astype(np.int16)
    pause = slice(round(10.6 * SAMPLE_RATE), round(10.7 * SAMPLE_RATE))
    loud[pause] = 0

    left, right = halve(Chunk(7, 1280, loud, 1280, 1280 + len(loud)))

    seam = left.owned_end - 1280
    assert pause.start < seam < pause.stop
    # On the encoder's grid, where both halves divide what they share into the same frames.
    assert right.start % FRAME == 0


def test_an_error_of_the_decoder_reaches_its_request_and_leaves_the_queue_clean() -> None:
    model = Model()

    def broken() -> Iterator[Chunk]:
        yield from chunks_of(CLIP, 3)
        raise AudioDecodeError("no audio")

    with running(model) as (batcher, requests):
        with held(model, batcher, requests):
            results = requests.submit(lambda: list(batcher.recognize(broken())))
            assert isinstance(results.exception(10), AudioDecodeError)
            assert batcher.waiting() == 0
        assert recognize_all(batcher, chunks_of(OTHER, 1)) == ["3.0"]

    assert model.batches == [["9.0"], ["3.0"]]


def test_a_lost_gpu_fails_all_requests_and_is_reported_once() -> None:
    """Every later pass would fail as well, so none is tried."""

    def lose(_: Sequence[Chunk]) -> None:
        raise DeviceLostError

    model, results = Model(), list[None]()
    model.during = lose
    with running(model, permits=2, on_device_lost=lambda: results.append(None)) as (
        batcher,
        requests,
    ):
        model.let.clear()
        heard_by = [
            requests.submit(recognize_all, batcher, chunks_of(r, 20)) for r in (LONG, CLIP, OTHER)
        ]
        wait_until(lambda: len(model.batches) == 2 and batcher.waiting() > 0)
        model.let.set()
        for request in heard_by:
            with pytest.raises(DeviceLostError):
                request.result(PATIENCE_S)
        with pytest.raises(DeviceLostError):
            recognize_all(batcher, chunks_of(LONG, 1))
        assert batcher.waiting() == 0

    assert len(model.batches) == 2
    assert results == [None]


def test_a_gpu_lost_while_memory_is_short_is_reported() -> None:
    """Parts of a chunk are tried in turn, until one finds that the GPU is lost."""

    def fail(pieces: Sequence[Chunk]) -> None:
        if len(pieces[0].samples) > 10 * SAMPLE_RATE:
            raise OutOfDeviceMemoryError
        raise DeviceLostError

    model, results = Model(), list[None]()
    model.during = fail
    with (
        running(model, on_device_lost=lambda: results.append(None)) as (batcher, _),
        pytest.raises(DeviceLostError),
    ):
        recognize_all(batcher, chunks_of(LONG, 1, seconds=12))

    assert results == [None]


def test_a_gpu_lost_during_a_load_is_reported() -> None:
    @contextmanager
    def lease() -> Iterator[Model]:
        raise DeviceLostError
        yield

    results: list[None] = []
    batcher = Batcher(lease, plan=PLAN, permits=1, on_device_lost=lambda: results.append(None))
    with pytest.raises(DeviceLostError):
        recognize_all(batcher, chunks_of(CLIP, 1))
    batcher.close()

    assert results == [None]


# Going away


@pytest.fixture
def quick_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_POLL_S", 0.005)


@pytest.mark.usefixtures("quick_poll")
def test_chunks_of_a_disconnected_client_are_removed() -> None:
    model = Model()
    cancelled = threading.Event()

    with running(model) as (batcher, requests), held(model, batcher, requests):
        results = requests.submit(
            lambda: list(batcher.recognize(chunks_of(CLIP, 50), cancelled=cancelled.is_set))
        )
        wait_until(lambda: batcher.waiting() == 8)
        cancelled.set()
        assert isinstance(results.exception(10), RequestCancelled)
        assert batcher.waiting() == 0

    assert model.batches == [["9.0"]]


def test_decoding_stops_for_a_disconnected_client() -> None:
    model = Model()
    cancelled = threading.Event()
    decoded: list[Chunk] = []

    def decode() -> Iterator[Chunk]:
        for piece in chunks_of(CLIP, 8):
            decoded.append(piece)
            yield piece
            cancelled.set()

    with running(model) as (batcher, requests), held(model, batcher, requests):
        with pytest.raises(RequestCancelled):
            list(batcher.recognize(decode(), cancelled=cancelled.is_set))
        assert batcher.waiting() == 0

    assert len(decoded) == 2


def test_closing_the_generator_takes_its_chunks_out_of_the_queue() -> None:
    model = Model()

    with running(model) as (batcher, requests):
        generator = batcher.recognize(chunks_of(CLIP, 50))
        with held(model, batcher, requests):
            first: Future[object] = requests.submit(next, generator)
            wait_until(lambda: batcher.waiting() == 8)
        first.result(PATIENCE_S)
        wait_until(lambda: model.finished == 3)
        with held(model, batcher, requests):
            # Each of these adds a chunk and does not wait, as results are available.
            for _ in range(3):
                next(generator)
            assert batcher.waiting() == 3
            generator.close()
            assert batcher.waiting() == 0

    first_batch, second_batch = ([f"2.{n}" for n in numbers] for numbers in (range(4), range(4, 8)))
    assert model.batches == [["9.0"], first_batch, second_batch, ["9.0"]]


@pytest.mark.parametrize("permits", [1, 2])
def test_chunks_are_taken_only_as_far_ahead_as_the_workers_can_use(permits: int) -> None:
    model = Model()
    pulled = 0

    def lazy() -> Iterator[Chunk]:
        nonlocal pulled
        for piece in chunks_of(LONG, 200, seconds=0.1):
            pulled += 1
            yield piece

    look_ahead = 2 * PLAN.batch_size * permits
    with running(model, permits=permits) as (batcher, requests):
        generator = batcher.recognize(lazy())
        with held(model, batcher, requests):
            first: Future[object] = requests.submit(next, generator)
            wait_until(lambda: pulled == look_ahead)
        first.result(PATIENCE_S)
        assert pulled == look_ahead
        for done, _ in enumerate(generator, start=2):
            assert pulled - done < look_ahead

    assert pulled == 200


def test_long_chunks_are_taken_ahead_by_their_seconds() -> None:
    model = Model()
    pulled = 0

    def lazy() -> Iterator[Chunk]:
        nonlocal pulled
        for piece in chunks_of(LONG, 50, seconds=25):
            pulled += 1
            yield piece

    with running(model) as (batcher, requests):
        generator = batcher.recognize(lazy())
        with held(model, batcher, requests):
            first: Future[object] = requests.submit(next, generator)
            # Two passes hold 120 s, which the fifth chunk goes beyond.
            wait_until(lambda: pulled == 5)
        first.result(PATIENCE_S)
        assert pulled == 5
        assert len(list(generator)) == 49


def test_what_was_recognised_is_not_kept() -> None:
    with running(Model()) as (batcher, _):
        pieces = chunks_of(LONG, 1)
        samples = weakref.ref(pieces[0].samples)
        assert samples() is not None
        assert recognize_all(batcher, pieces) == ["1.0"]
        pieces.clear()

        wait_until(lambda: samples() is None)


@pytest.mark.parametrize("permits", [1, 2])
def test_close_refuses_what_waits_and_ends_the_workers(permits: int) -> None:
    model = Model()

    with running(model, permits=permits) as (batcher, requests):
        with held(model, batcher, requests):
            results = [requests.submit(recognize_all, batcher, chunks_of(r, 20)) for r in range(6)]
            wait_until(lambda: batcher.waiting() >= 4 * PLAN.batch_size * permits)
            # All are at a batch: on a busy machine a worker may take its time to wake up.
            wait_until(lambda: len(model.batches) == permits)
            closing = requests.submit(batcher.close)
            wait_until(lambda: batcher.waiting() == 0)
            assert not closing.done()
        closing.result(PATIENCE_S)

        assert not any(worker.is_alive() for worker in batcher._workers)
        for request in results:
            assert isinstance(request.exception(10), ServiceUnavailableError)
    assert len(model.batches) == permits


def test_a_closed_batcher_refuses_rather_than_hang() -> None:
    with running(Model()) as (batcher, _):
        batcher.close()

        with pytest.raises(ServiceUnavailableError, match="stopping"):
            recognize_all(batcher, chunks_of(CLIP, 1))
