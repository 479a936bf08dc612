"""Work on jobs, oldest first; what ends without their fault is tried again."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from parakeet_api.errors import (
    ApiError,
    JobsUnavailableError,
    ModelNotReadyError,
    ServerError,
    ServiceUnavailableError,
)
from parakeet_api.formats.rendering import Rendered, render
from parakeet_api.formats.request_params import TranscriptionParams
from parakeet_api.jobs.job import Failure, Job
from parakeet_api.jobs.store import JobStore
from parakeet_api.model.batching import RequestCancelled
from parakeet_api.pipeline import Pipeline, Progress
from parakeet_api.settings import Settings

logger = logging.getLogger(__name__)

_POLL_S = 1.0
"""How often a job that is to be tried again is looked at."""
_LONGEST_PAUSE_S = 300.0
"""Between two tries of a job that the server cannot do for now."""
_DISK_RETRY_S = 5.0
_MOST_FAULTS = 3
"""A job that fails so often for a reason that nobody foresaw is not tried again. Once is often a
card's hiccup, or a lack of memory, that is soon over."""


class Transcribe(Protocol):
    """What is done for a job, as for a request."""

    def __call__(
        self,
        recording: Path,
        params: TranscriptionParams,
        *,
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> Rendered: ...


def transcriber(*, settings: Settings, pipeline_of: Callable[[str], Pipeline]) -> Transcribe:
    """Give the work of a job.

    `pipeline_of` gives a model's, and raises `ServiceUnavailableError` while there is no file of
    that model: that is told before the recording is decoded.
    """

    def transcribe(
        recording: Path,
        params: TranscriptionParams,
        *,
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> Rendered:
        transcript = pipeline_of(params.model).transcribe(
            recording,
            languages=params.languages,
            track=params.audio_track,
            allow_partial=params.allow_partial,
            on_progress=on_progress,
            cancelled=cancelled,
        )
        return render(transcript, params, settings=settings)

    return transcribe


@dataclass(eq=False, slots=True)
class _Run:
    """A job that is worked on."""

    job: Job
    """With its progress; replaced as a whole."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    def note(self, progress: Progress) -> None:
        self.job = dataclasses.replace(
            self.job, done_s=progress.done_s, total_s=progress.total_s or self.job.total_s
        )


@dataclass(frozen=True, slots=True)
class _Pause:
    """How long a job waits that the server cannot do for now."""

    tries: int
    faults: int
    """Tries that failed for a reason that nobody foresaw."""
    until: float
    """On the monotonic clock."""


_NO_PAUSE = _Pause(tries=0, faults=0, until=0.0)


class JobRunner:
    """Run the jobs of a store."""

    def __init__(
        self, store: JobStore, *, transcribe: Transcribe, on_end: Callable[[], None], workers: int
    ) -> None:
        """Begin with what is queued, `workers` jobs at a time.

        `on_end` is called after each job's end.
        """
        self._store = store
        self._transcribe = transcribe
        self._on_end = on_end
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._runs: dict[str, _Run] = {}
        """By job."""
        self._pauses: dict[str, _Pause] = {}
        """By job that the server could not do for now."""
        self._threads = [
            threading.Thread(target=self._work, name=f"job-{n}", daemon=True)
            for n in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def notify(self) -> None:
        """Tell that a job was added."""
        with self._changed:
            self._changed.notify_all()

    def latest(self, job: Job) -> Job:
        """Give a job with the progress that it has made, which is not on the disk."""
        if job.status != "running":
            return job
        run = self._runs.get(job.id)
        # Without one it has ended since it was read.
        return run.job if run is not None else self._store.get(job.id) or job

    def cancel(self, job: Job) -> bool:
        """End an unfinished job; tell whether it was one."""
        with self._changed:
            cancelled = self._store.cancel(self.latest(job))
            if job.id in self._runs:
                self._runs[job.id].cancelled.set()
        if cancelled:
            self._on_end()
        return cancelled

    def close(self, *, within_s: float) -> None:
        """Stop; jobs under way are queued again, and nothing is waited for longer than told."""
        deadline = time.monotonic() + within_s
        self._closing.set()
        self.notify()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                run = self._next()
                if run is not None:
                    self._do(run)
            # A thread's border: a disk that refuses now may not in a while.
            except Exception:
                logger.exception("jobs cannot be worked on")
                self._closing.wait(_DISK_RETRY_S)

    def _next(self) -> _Run | None:
        """Wait for a job and start it. `None` once closed."""
        with self._changed:
            while not self._closing.is_set():
                queued = self._store.queued()
                self._forget_pauses_except(queued)
                oldest = next((job for job in queued if self._is_due(job)), None)
                if oldest is not None and self._has_room_for(oldest):
                    started = self._store.start(oldest)
                    if started is not None:
                        run = self._runs[started.id] = _Run(started)
                        return run
                self._changed.wait(_POLL_S if queued else None)
        return None

    def _is_due(self, job: Job) -> bool:
        # One that was put back a moment ago may still be counted among those that run.
        return job.id not in self._runs and time.monotonic() >= self._pause_of(job).until

    def _pause_of(self, job: Job) -> _Pause:
        return self._pauses.get(job.id, _NO_PAUSE)

    def _forget_pauses_except(self, queued: list[Job]) -> None:
        unfinished = {job.id for job in queued} | self._runs.keys()
        self._pauses = {key: self._pauses[key] for key in unfinished & self._pauses.keys()}

    def _has_room_for(self, job: Job) -> bool:
        """Let a job that the process died in run alone: if it does so again, no other is blamed."""
        suspected = [run for run in self._runs.values() if run.job.interruptions]
        return not suspected and not (job.interruptions and self._runs)

    def _do(self, run: _Run) -> None:
        try:
            keep = self._outcome(run)
            while not _is_kept(keep) and not self._closing.wait(_DISK_RETRY_S):
                pass
        finally:
            with self._changed:
                del self._runs[run.job.id]
                self._changed.notify_all()
        self._on_end()

    def _outcome(self, run: _Run) -> Callable[[], None]:
        """Work on a job; give the change of the store that keeps its outcome."""

        def cancelled() -> bool:
            return run.cancelled.is_set() or self._closing.is_set()

        job, recording = run.job, self._store.recording(run.job)
        logger.info("job %s: started", job.id)
        try:
            if not recording.is_file():
                raise ServerError("The job's recording is gone from DATA_DIR.")
            result = self._transcribe(
                recording, job.params, on_progress=run.note, cancelled=cancelled
            )
        except RequestCancelled:
            # Where it was the job and not the server that was stopped, this changes nothing.
            return partial(self._store.put_back, job)
        except ServiceUnavailableError as error:
            self._postpone(job, error)
            return partial(self._store.put_back, job)
        except ApiError as error:
            logger.info("job %s: failed: %s", job.id, error)
            return partial(self._store.fail, run.job, Failure.of(error))
        # A thread's border, as the error handler of HTTP is one.
        except Exception:
            if not run.cancelled.is_set():
                logger.exception("job %s: failed", job.id)
            fault = ServerError("The server had an error while processing your request.")
            if self._pause_of(job).faults + 1 < _MOST_FAULTS:
                self._postpone(job, ServiceUnavailableError(fault.message), unforeseen=True)
                return partial(self._store.put_back, job)
            return partial(self._store.fail, run.job, Failure.of(fault))
        logger.info("job %s: succeeded", job.id)
        return partial(self._store.succeed, run.job, result)

    def _postpone(
        self, job: Job, error: ServiceUnavailableError, *, unforeseen: bool = False
    ) -> None:
        """Let a job wait until the server may be able to do it; longer each time."""
        assert error.retry_after_s is not None
        was = self._pause_of(job)
        pause_s = min(error.retry_after_s * 2.0**was.tries, _LONGEST_PAUSE_S)
        # To ask for a model costs nothing, and once it is there nobody should wait.
        tries = was.tries + (not isinstance(error, ModelNotReadyError))
        faults = was.faults + unforeseen
        with self._changed:
            self._pauses[job.id] = _Pause(tries, faults, until=time.monotonic() + pause_s)
        logger.info("job %s: is tried again in %.0f s: %s", job.id, pause_s, error)


def _is_kept(keep: Callable[[], None]) -> bool:
    try:
        keep()
    except JobsUnavailableError as error:
        logger.error("a job's outcome cannot be kept for now: %s", error)
        return False
    return True
