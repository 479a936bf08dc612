"""Jobs without HTTP: their order, their outcomes, and their behaviour under faults."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import SPEECH, Clip, wait_until
from pipeline_helpers import Counting, ffmpegs, pipeline_of

from parakeet_api.audio.media_info import TrackChoice
from parakeet_api.errors import (
    AudioDecodeError,
    JobsUnavailableError,
    ModelNotReadyError,
    NotFoundError,
    QueueFullError,
    ServiceUnavailableError,
)
from parakeet_api.formats.rendering import render
from parakeet_api.formats.request_params import TranscriptionParams
from parakeet_api.jobs import runner as job_runner
from parakeet_api.jobs import service as jobs
from parakeet_api.jobs.job import Job, job_object
from parakeet_api.jobs.service import Jobs, workers_for
from parakeet_api.jobs.sqlite_store import SqliteJobStore
from parakeet_api.jobs.store import JobStore
from parakeet_api.keywords import Keyword
from parakeet_api.model.batching import RequestCancelled
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.pipeline import Pipeline, Progress
from parakeet_api.settings import Settings
from parakeet_api.transcript import (
    NO_SPEAKERS,
    Chunk,
    Segment,
    SpeakerRequest,
    Transcript,
    Word,
)

TEXT = TranscriptionParams(response_format="text")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    file = tmp_path / "upload"
    file.write_bytes(b"sound")
    return file


@contextmanager
def jobs_of(folder: Path, pipeline: Pipeline, **environ: str) -> Iterator[Jobs]:
    started = Jobs(
        settings=Settings.from_env({"DATA_DIR": str(folder)} | environ),
        pipeline_of=lambda _: pipeline,
    )
    started.start()
    try:
        yield started
    finally:
        started.close()


def status(started: Jobs, job: Job) -> str:
    return started.get(job.id, owner=job.owner).status


def ends(started: Jobs, job: Job) -> Callable[[], bool]:
    return lambda: started.get(job.id, owner=job.owner).finished


class Scripted(Pipeline):
    """A pipeline whose recordings name the outcome: an error, or a gate to wait for."""

    def __init__(self) -> None:
        # Not calling super().__init__: nothing of the real pipeline is used.
        self.processed: list[str] = []
        self.together: list[set[str]] = []
        self.errors: dict[str, list[Exception]] = {}
        self.gates: dict[str, threading.Event] = {}
        self.errors_after_gate: dict[str, Exception] = {}
        self._now: set[str] = set()

    def transcribe(
        self,
        path: Path,
        *,
        languages: frozenset[str] = frozenset(),
        raw_pcm: bool = False,
        track: TrackChoice = None,
        allow_partial: bool = False,
        keywords: Sequence[Keyword] = (),
        speakers: SpeakerRequest = NO_SPEAKERS,
        on_progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Transcript:
        name = path.read_text()
        self.processed.append(name)
        self._now.add(name)
        self.together.append(set(self._now))
        try:
            if self.errors.get(name):
                raise self.errors[name].pop(0)
            while name in self.gates and not self.gates[name].wait(0.01):
                if cancelled():
                    raise RequestCancelled
            if name in self.errors_after_gate:
                raise self.errors_after_gate[name]
            return Transcript((Segment((Word(name, 0.0, 1.0),)),), 1.0, "en")
        finally:
            self._now.discard(name)


def recording_of(folder: Path, name: str) -> Path:
    file = folder.parent / name
    file.write_text(name)
    return file


def left_behind(store: JobStore, folder: Path, name: str) -> Job:
    """Queue a job as an earlier process may have done."""
    recording = recording_of(folder, name)
    return store.add(recording, TEXT, owner=None, webhook_url=None, max_unfinished=99)


def submit(started: Jobs, folder: Path, name: str) -> Job:
    upload = recording_of(folder, name)
    job = started.submit(upload, TEXT, owner=None)
    upload.unlink()
    return job


def soon(error: ServiceUnavailableError) -> ServiceUnavailableError:
    error.retry_after_s = 0
    return error


def recordings(folder: Path) -> list[Path]:
    return list((folder / "recordings").iterdir())


# With the model


@pytest.mark.parametrize(
    ("cores", "batch_size", "workers"),
    [(2, 8, 2), (64, 8, 2), (1, 4, 2), (4, 128, 2), (16, 32, 2), (16, 64, 4), (16, 256, 8)],
)
def test_a_large_gpu_is_given_more_jobs_at_a_time(
    cores: int, batch_size: int, workers: int
) -> None:
    assert workers_for(cores=cores, batch_size=batch_size) == workers


def test_a_jobs_result_is_the_response_of_a_request(
    recognizer: NemoRecognizer, clips: list[Clip], folder: Path
) -> None:
    settings = Settings.from_env({})
    params = TranscriptionParams(response_format="verbose_json")
    with pipeline_of(recognizer) as pipeline:
        with jobs_of(folder, pipeline) as started:
            job = started.submit(clips[1].path, params, owner=None)
            wait_until(ends(started, job))
            result = started.get(job.id, owner=None).result
        direct = render(pipeline.transcribe(clips[1].path), params, settings=settings)

    assert result == direct
    assert clips[1].path.is_file()
    assert recordings(folder) == []


def test_progress_is_reported_while_running_and_stored_at_the_end(folder: Path) -> None:
    recording = SPEECH / "long-pauses.ogg"
    with pipeline_of(Slow()) as pipeline, jobs_of(folder, pipeline) as started:
        job = started.submit(recording, TEXT, owner=None)
        wait_until(lambda: started.get(job.id, owner=None).done_s > 0)
        under_way = started.get(job.id, owner=None)
        wait_until(ends(started, job))
        done = started.get(job.id, owner=None)

    assert under_way.total_s == pytest.approx(done.done_s, abs=1)
    assert 0 < under_way.done_s < done.done_s
    length_s = round(done.done_s, 3)
    assert job_object(done)["progress"] == {
        "done_s": length_s,
        "total_s": length_s,
        "fraction": 1.0,
    }


class Slow(Counting):
    """Make the model slow."""

    def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        time.sleep(0.1)
        return super().recognize(chunks)


def test_a_cancelled_job_ends_its_work_in_the_middle(folder: Path) -> None:
    recording = SPEECH / "long-pauses.ogg"
    slow = Slow()
    with pipeline_of(slow) as pipeline, jobs_of(folder, pipeline) as started:
        job = started.submit(recording, TEXT, owner=None)
        wait_until(lambda: started.get(job.id, owner=None).done_s > 0)

        remaining = started.delete(started.get(job.id, owner=None))

        assert remaining is not None
        assert remaining.status == status(started, job) == "cancelled"
        batcher: Any = pipeline._batcher
        wait_until(lambda: not ffmpegs() and not batcher.waiting())
        assert slow.chunks < 10, "of the 24 or more that 12 minutes have"
        assert recordings(folder) == []
        assert started.delete(remaining) is None
        with pytest.raises(NotFoundError):
            started.get(job.id, owner=None)


@pytest.mark.parametrize("error", [FileNotFoundError("it is gone"), AudioDecodeError("it is gone")])
def test_a_job_whose_recording_is_deleted_by_its_cancellation_does_not_fail(
    error: Exception, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pipeline = Scripted()
    pipeline.gates["first"] = threading.Event()
    with jobs_of(folder, pipeline) as started:
        job = submit(started, folder, "first")
        wait_until(lambda: pipeline.processed == ["first"])
        pipeline.errors_after_gate["first"] = error
        # As another server cancels it: this one's worker is not told.
        assert started._require_open().store.cancel(started.get(job.id, owner=None))
        pipeline.gates["first"].set()
        wait_until(ends(started, submit(started, folder, "second")))

        assert status(started, job) == "cancelled"
    assert "failed" not in caplog.text
    assert "retried" not in caplog.text


def test_stopping_in_the_middle_ends_the_work_and_the_next_process_does_it(folder: Path) -> None:
    recording = SPEECH / "long-pauses.ogg"
    with pipeline_of(Slow()) as pipeline:
        with jobs_of(folder, pipeline) as started:
            job = started.submit(recording, TEXT, owner=None)
            wait_until(lambda: started.get(job.id, owner=None).done_s > 0)
        assert ffmpegs() == []

        with jobs_of(folder, pipeline) as started:
            wait_until(ends(started, job))
            done = started.get(job.id, owner=None)

    assert (done.status, done.interruptions) == ("succeeded", 0)


# Order and ends


def test_only_a_job_that_succeeded_has_a_result_whenever_it_is_read(folder: Path) -> None:
    with jobs_of(folder, Scripted()) as started:
        for name in "abcdefgh":
            job = submit(started, folder, name)
            ended = False
            while not ended:
                read = started.get(job.id, owner=None)
                assert (read.result is not None) == (read.status == "succeeded")
                (listed, *_) = started.newest(owner=None, limit=1)
                assert listed.result is None
                ended = read.finished
            assert read.result is not None
            assert read.result.body == f"{name}\n"


def test_a_job_that_ends_after_it_was_read_is_read_again_with_its_result(folder: Path) -> None:
    work = Scripted()
    work.gates = {"a": threading.Event()}
    with jobs_of(folder, work) as started:
        job = submit(started, folder, "a")
        wait_until(lambda: status(started, job) == "running")
        running = started.get(job.id, owner=None)
        work.gates["a"].set()
        wait_until(ends(started, job))
        assert started._open is not None
        runner = started._open.runner
        wait_until(lambda: not runner._runs)

        latest = runner.latest(running)

    assert (running.status, running.result) == ("running", None)
    assert latest.status == "succeeded"
    assert latest.result is not None


def test_two_jobs_are_processed_at_a_time_oldest_first(folder: Path) -> None:
    work = Scripted()
    work.gates = {name: threading.Event() for name in "abcd"}
    with jobs_of(folder, work) as started:
        submitted = [submit(started, folder, name) for name in "abcd"]
        wait_until(lambda: len(work.processed) == 2)
        time.sleep(0.1)
        assert set(work.processed) == {"a", "b"}
        assert (started.counts.running, started.counts.queued) == (2, 2)

        work.gates["b"].set()
        wait_until(lambda: work.processed[2:] == ["c"])
        for gate in work.gates.values():
            gate.set()
        for job in submitted:
            wait_until(ends(started, job))

    assert work.processed[2:] == ["c", "d"]


def test_a_file_that_cannot_be_decoded_fails_its_job_with_the_error_of_a_request(
    folder: Path,
) -> None:
    work = Scripted()
    work.errors = {"a": [AudioDecodeError("The file holds no sound.")]}
    with jobs_of(folder, work) as started:
        job = submit(started, folder, "a")
        wait_until(ends(started, job))
        failed = started.get(job.id, owner=None)

    assert failed.status == "failed"
    assert failed.failure is not None
    assert failed.failure.status == 400
    assert json.loads(failed.failure.body)["error"]["code"] == "invalid_audio"
    assert recordings(folder) == []


def test_an_unexpected_error_is_retried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServiceUnavailableError, "retry_after_s", 0)
    work = Scripted()
    work.errors = {"a": [RuntimeError("a hiccup"), RuntimeError("another")]}
    with jobs_of(folder, work) as started:
        job = submit(started, folder, "a")
        wait_until(ends(started, job))

        assert status(started, job) == "succeeded"
    assert len(work.processed) == 3


def test_a_permanent_unexpected_error_fails_its_job_and_no_other(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ServiceUnavailableError, "retry_after_s", 0)
    work = Scripted()
    work.errors = {"a": [RuntimeError("secret detail") for _ in range(3)]}
    with jobs_of(folder, work) as started:
        first, second = submit(started, folder, "a"), submit(started, folder, "b")
        wait_until(ends(started, first))
        wait_until(ends(started, second))
        failed = started.get(first.id, owner=None)
        assert status(started, second) == "succeeded"

    assert failed.failure is not None
    assert failed.failure.status == 500
    assert "secret" not in failed.failure.body
    assert "secret detail" in caplog.text


def test_a_job_waits_for_its_model_and_is_then_done(folder: Path) -> None:
    work = Scripted()
    work.errors = {"a": [soon(ModelNotReadyError("Being downloaded.")) for _ in range(5)]}
    with jobs_of(folder, work) as started:
        job = submit(started, folder, "a")
        wait_until(ends(started, job))

        assert status(started, job) == "succeeded"
    assert len(work.processed) == 6


def test_a_postponed_job_does_not_delay_others(folder: Path) -> None:
    work = Scripted()
    work.errors = {"a": [ServiceUnavailableError("Not enough memory.")]}
    with jobs_of(folder, work) as started:
        waiting = submit(started, folder, "a")
        others = [submit(started, folder, name) for name in "bcd"]
        for job in others:
            wait_until(ends(started, job))

        assert status(started, waiting) == "queued"
    assert work.processed.count("a") == 1


def test_the_pauses_between_attempts_grow_unless_a_job_waits_for_the_model(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = Scripted()
    temporary_errors = [
        ServiceUnavailableError("x"),
        ModelNotReadyError("x"),
        ServiceUnavailableError("x"),
    ]
    with jobs_of(folder, work) as started:
        opened = started._open
        assert opened is not None
        job = left_behind(opened.store, folder, "a")
        with caplog.at_level("INFO"):
            for error in [*temporary_errors, *[ServiceUnavailableError("x")] * 9]:
                opened.runner._postpone(job, error)

    pauses = [text.split(": retried in ")[1] for text in caplog.messages if ": retried in " in text]
    assert pauses[:4] == ["5 s: x", "20 s: x", "10 s: x", "20 s: x"]
    assert pauses[-1] == "300 s: x"


def test_jobs_that_may_have_crashed_the_process_run_alone(folder: Path) -> None:
    store = SqliteJobStore(folder)
    for name in "abc":
        job = store.add(
            recording_of(folder, name), TEXT, owner=None, webhook_url=None, max_unfinished=9
        )
        if name != "c":
            store.start(job)
    store.close()
    work = Scripted()
    work.gates = {name: threading.Event() for name in "abc"}

    with jobs_of(folder, work) as started:
        for name in "abc":
            wait_until(lambda: work.processed[-1:] == [name])  # noqa: B023
            time.sleep(0.05)
            work.gates[name].set()
        wait_until(lambda: started.counts.running == 0)

    assert work.together == [{"a"}, {"b"}, {"c"}]


def test_a_missing_recording_fails_its_job(folder: Path) -> None:
    store = SqliteJobStore(folder)
    job = store.add(recording_of(folder, "a"), TEXT, owner=None, webhook_url=None, max_unfinished=9)
    (folder / "recordings" / job.id).unlink()
    store.close()

    with jobs_of(folder, Scripted()) as started:
        wait_until(ends(started, job))
        failed = started.get(job.id, owner=None)

    assert failed.failure is not None
    assert "recording is gone" in failed.failure.body


# The disk


def test_an_outcome_is_stored_once_the_disk_works_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(job_runner, "_DISK_RETRY_S", 0.02)
    work = Scripted()
    work.gates = {"a": threading.Event()}
    with jobs_of(folder, work) as started:
        job = submit(started, folder, "a")
        wait_until(lambda: status(started, job) == "running")
        assert started._open is not None
        assert isinstance(started._open.store, SqliteJobStore)
        database = started._open.store._db
        database.execute("PRAGMA query_only = ON")
        work.gates["a"].set()
        wait_until(lambda: "cannot be saved for now" in caplog.text)
        assert status(started, job) == "running"

        database.execute("PRAGMA query_only = OFF")
        wait_until(ends(started, job))
        assert status(started, job) == "succeeded"

    assert work.processed == ["a"]


def test_a_disk_that_refuses_to_start_a_job_does_not_end_the_workers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(job_runner, "_DISK_RETRY_S", 0.02)
    with jobs_of(folder, Scripted()) as started:
        assert started._open is not None
        store = started._open.store
        assert isinstance(store, SqliteJobStore)
        job = store.add(
            recording_of(folder, "a"), TEXT, owner=None, webhook_url=None, max_unfinished=9
        )
        store._db.execute("PRAGMA query_only = ON")
        started._open.runner.notify()
        wait_until(lambda: "jobs cannot be processed" in caplog.text)

        store._db.execute("PRAGMA query_only = OFF")
        wait_until(ends(started, job))


def test_an_unusable_folder_is_reported_and_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, upload: Path
) -> None:
    monkeypatch.setattr(jobs, "_MAINTENANCE_S", 0.02)
    folder.write_text("a file stands where the folder should be")
    with jobs_of(folder, Scripted()) as started:
        time.sleep(0.2)
        assert started.fault is not None
        assert str(folder) in started.fault.message
        with pytest.raises(JobsUnavailableError, match="DATA_DIR="):
            started.submit(upload, TEXT, owner=None)
        assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1

        folder.unlink()
        wait_until(lambda: started.fault is None)
        wait_until(ends(started, submit(started, folder, "a")))


def test_two_processes_never_share_a_folder_and_the_second_takes_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch, upload: Path
) -> None:
    monkeypatch.setattr(jobs, "_MAINTENANCE_S", 0.02)
    with jobs_of(folder, Scripted()) as first:
        with jobs_of(folder, Scripted()) as second:
            with pytest.raises(JobsUnavailableError, match="another server uses it"):
                second.submit(upload, TEXT, owner=None)
            first.close()
            wait_until(lambda: second.fault is None)
            wait_until(ends(second, submit(second, folder, "a")))
        with pytest.raises(JobsUnavailableError):
            first.submit(upload, TEXT, owner=None)


def test_closing_before_the_start_and_twice_is_allowed(folder: Path) -> None:
    never_started = Jobs(
        settings=Settings.from_env({"DATA_DIR": str(folder)}), pipeline_of=lambda _: Scripted()
    )
    never_started.close()
    never_started.close()

    assert not folder.exists()


def test_no_thread_is_left(folder: Path) -> None:
    before = set(threading.enumerate())
    with jobs_of(folder, Scripted()) as started:
        wait_until(ends(started, submit(started, folder, "a")))

    assert set(threading.enumerate()) - before == set()


# Limits and owners


def test_unfinished_jobs_are_limited_by_the_settings(folder: Path) -> None:
    work = Scripted()
    work.gates = {name: threading.Event() for name in "abc"}
    with jobs_of(folder, work, MAX_QUEUED_JOBS="3") as started:
        for name in "abc":
            submit(started, folder, name)
        with pytest.raises(QueueFullError):
            submit(started, folder, "d")


@pytest.mark.parametrize(("hours", "is_kept"), [("0.00005", False), ("0", True), ("1", True)])
def test_finished_jobs_are_removed_after_their_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hours: str, is_kept: bool
) -> None:
    monkeypatch.setattr(jobs, "_MAINTENANCE_S", 0.02)
    with jobs_of(folder, Scripted(), JOB_RETENTION_HOURS=hours) as started:
        job = submit(started, folder, "a")
        wait_until(lambda: started.counts.queued + started.counts.running == 0)
        time.sleep(0.5)

        assert (started.newest(owner=None, limit=9) != []) == is_kept
        if not is_kept:
            with pytest.raises(NotFoundError):
                started.get(job.id, owner=None)


@pytest.mark.parametrize("other", [None, "b" * 64, ""])
def test_a_job_is_visible_only_to_its_owner(folder: Path, upload: Path, other: str | None) -> None:
    with jobs_of(folder, Scripted()) as started:
        job = started.submit(upload, TEXT, owner="a" * 64)

        with pytest.raises(NotFoundError):
            started.get(job.id, owner=other)
        assert started.newest(owner=other, limit=9) == []
        assert started.get(job.id, owner="a" * 64).id == job.id
