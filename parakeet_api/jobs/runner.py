"""Process jobs, oldest first; retry those that fail for temporary reasons."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from parakeet_api.errors import (
    ApiError,
    JobsUnavailableError,
    ModelNotReadyError,
    ServerError,
    ServiceUnavailableError,
)
from parakeet_api.formats.rendering import Rendered, render
from parakeet_api.formats.transcribe import transcribe_recording
from parakeet_api.jobs.job import Failure, Job
from parakeet_api.jobs.live import LiveJobs
from parakeet_api.jobs.store import JobStore
from parakeet_api.model.batching import RequestCancelled
from parakeet_api.pipeline import Pipeline, Progress
from parakeet_api.settings import Settings

logger = logging.getLogger(__name__)

_POLL_S = 1.0
"""How often the queue is checked for jobs whose pause has ended."""
_MAX_PAUSE_S = 300.0
"""Between two attempts at a job."""
_DISK_RETRY_S = 5.0
_RENEWAL_S = 2.0
"""How often a server tells the others that its jobs go on, and learns which were cancelled."""
_MAX_UNEXPECTED = 3
"""A job fails after this many unexpected errors. A single one is often temporary: a GPU error, or a
lack of memory."""


@dataclass(eq=False, slots=True)
class _Run:
    """A job that is being processed."""

    job: Job
    """With its current progress; replaced as a whole."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    def record(self, progress: Progress) -> None:
        self.job = dataclasses.replace(
            self.job, done_s=progress.done_s, total_s=progress.total_s or self.job.total_s
        )


@dataclass(frozen=True, slots=True)
class _Pause:
    """The time until the next attempt at a job."""

    attempts: int
    unexpected: int
    """Attempts that failed with an unexpected error."""
    until: float
    """On the monotonic clock."""


_NO_PAUSE = _Pause(attempts=0, unexpected=0, until=0.0)


class JobRunner:
    """Process the jobs of a store in worker threads."""

    def __init__(
        self,
        store: JobStore,
        *,
        pipeline_of: Callable[[str], Pipeline],
        live: LiveJobs,
        settings: Settings,
        on_end: Callable[[], None],
        workers: int,
    ) -> None:
        """Start with the queued jobs, `workers` at a time.

        `pipeline_of` gives a model's pipeline by name; it raises `ServiceUnavailableError` while
        the model's file is missing, before the recording is decoded. `on_end` is called when a job
        has ended.
        """
        self._store = store
        self._pipeline_of = pipeline_of
        self._live = live
        self._settings = settings
        self._on_end = on_end
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._runs: dict[str, _Run] = {}
        """By job id."""
        self._pauses: dict[str, _Pause] = {}
        """By id, of jobs that wait for another attempt."""
        self._threads = [
            threading.Thread(target=self._work, name=f"job-{n}", daemon=True)
            for n in range(workers)
        ]
        if store.shared:
            self._threads.append(
                threading.Thread(target=self._renew, name="job-renewal", daemon=True)
            )
        for thread in self._threads:
            thread.start()

    def notify(self) -> None:
        """Wake the workers: a job was added."""
        with self._changed:
            self._changed.notify_all()

    def latest(self, job: Job) -> Job:
        """Add the progress of a job that runs here, which is in memory only."""
        if job.status != "running":
            return job
        run = self._runs.get(job.id)
        # Without a run, the job has ended since it was read, or another server works on it.
        return run.job if run is not None else self._store.get(job.id) or job

    def cancel(self, job: Job) -> bool:
        """Cancel an unfinished job; tell whether it was unfinished."""
        with self._changed:
            cancelled = self._store.cancel(self.latest(job))
            if job.id in self._runs:
                self._runs[job.id].cancelled.set()
        if cancelled:
            self._on_end()
        return cancelled

    def close(self, *, within_s: float) -> None:
        """Stop; queue running jobs again. Wait at most `within_s` for the workers."""
        deadline = time.monotonic() + within_s
        self._closing.set()
        self.notify()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                run = self._take_next()
                if run is not None:
                    self._process(run)
            # Thread boundary: disk errors may be temporary.
            except Exception:
                logger.exception("jobs cannot be processed")
                self._closing.wait(_DISK_RETRY_S)

    def _renew(self) -> None:
        """Renew this server's jobs, and stop those that another one has cancelled or taken over."""
        while not self._closing.wait(_RENEWAL_S):
            runs = [*self._runs.values()]
            try:
                mine = self._store.renew([run.job for run in runs])
            except JobsUnavailableError as error:
                logger.warning("jobs cannot be renewed for now: %s", error)
                continue
            for run in runs:
                if run.job.id not in mine:
                    run.cancelled.set()
            # Webhooks of a server that ended.
            self._on_end()

    def _take_next(self) -> _Run | None:
        """Wait for a job and start it; `None` once closed."""
        with self._changed:
            while not self._closing.is_set():
                queued = self._store.queued()
                self._drop_pauses_except(queued)
                oldest = next((job for job in queued if self._is_due(job)), None)
                if oldest is not None and self._may_start(oldest):
                    started = self._store.start(oldest)
                    if started is not None:
                        run = self._runs[started.id] = _Run(started)
                        return run
                # Other servers queue jobs without a notification.
                self._changed.wait(_POLL_S if queued or self._store.shared else None)
        return None

    def _is_due(self, job: Job) -> bool:
        # A job that was just queued again may still have its run.
        return job.id not in self._runs and time.monotonic() >= self._pause_of(job).until

    def _pause_of(self, job: Job) -> _Pause:
        return self._pauses.get(job.id, _NO_PAUSE)

    def _drop_pauses_except(self, queued: list[Job]) -> None:
        unfinished = {job.id for job in queued} | self._runs.keys()
        self._pauses = {key: self._pauses[key] for key in unfinished & self._pauses.keys()}

    def _may_start(self, job: Job) -> bool:
        """Let a job run alone if the process ended during it: it may be what ended the process."""
        suspects = [run for run in self._runs.values() if run.job.interruptions]
        return not suspects and not (job.interruptions and self._runs)

    def _process(self, run: _Run) -> None:
        try:
            save = self._outcome(run)
            while not _try_to_save(save) and not self._closing.wait(_DISK_RETRY_S):
                pass
        finally:
            with self._changed:
                del self._runs[run.job.id]
                self._changed.notify_all()
        self._on_end()

    def _outcome(self, run: _Run) -> Callable[[], None]:
        """Process a job; give the call that saves its outcome in the store."""
        job = run.job
        logger.info("job %s: started", job.id)
        try:
            result = self._transcribe(run)
        except RequestCancelled:
            # Either the server stops, or the job was cancelled, and then this changes nothing.
            return partial(self._store.requeue, job)
        # Thread boundary, like the error handler of HTTP.
        except Exception as error:
            return self._outcome_of_error(run, error)
        logger.info("job %s: succeeded", job.id)
        return partial(self._store.succeed, run.job, result)

    def _outcome_of_error(self, run: _Run, error: Exception) -> Callable[[], None]:
        """Postpone a job, or let it fail; give the call that saves this in the store."""
        job = run.job
        if self._was_cancelled(run):
            # Its recording is deleted, which may be what failed. This changes nothing.
            return partial(self._store.requeue, job)
        if isinstance(error, ServiceUnavailableError):
            self._postpone(job, error)
            return partial(self._store.requeue, job)
        if isinstance(error, ApiError):
            logger.info("job %s: failed: %s", job.id, error)
            return partial(self._store.fail, job, Failure.of(error))
        logger.error("job %s: failed", job.id, exc_info=error)
        message = "The server had an error while processing your request."
        if self._pause_of(job).unexpected + 1 < _MAX_UNEXPECTED:
            self._postpone(job, ServiceUnavailableError(message), unexpected=True)
            return partial(self._store.requeue, job)
        return partial(self._store.fail, job, Failure.of(ServerError(message)))

    def _was_cancelled(self, run: _Run) -> bool:
        """Tell whether a job is cancelled, by this server or by another."""
        if run.cancelled.is_set():
            return True
        with contextlib.suppress(JobsUnavailableError):
            stored = self._store.get(run.job.id)
            return stored is None or stored.status == "cancelled"
        return False

    def _transcribe(self, run: _Run) -> Rendered:
        params = run.job.params
        with contextlib.ExitStack() as stack:
            try:
                recording = stack.enter_context(self._store.recording(run.job))
            except FileNotFoundError as error:
                raise ServerError("The job's recording is gone from DATA_DIR.") from error
            transcript = transcribe_recording(
                self._pipeline_of(params.model),
                recording,
                params,
                on_progress=self._live.follow(run.job, run.record),
                cancelled=lambda: run.cancelled.is_set() or self._closing.is_set(),
            )
        return render(transcript, params, settings=self._settings)

    def _postpone(
        self, job: Job, error: ServiceUnavailableError, *, unexpected: bool = False
    ) -> None:
        """Delay the next attempt at a job; the pauses double."""
        assert error.retry_after_s is not None
        last = self._pause_of(job)
        pause_s = min(error.retry_after_s * 2.0**last.attempts, _MAX_PAUSE_S)
        # Checking for a model is cheap, and once it is ready the job should start soon.
        attempts = last.attempts + (not isinstance(error, ModelNotReadyError))
        with self._changed:
            self._pauses[job.id] = _Pause(
                attempts, last.unexpected + unexpected, until=time.monotonic() + pause_s
            )
        logger.info("job %s: retried in %.0f s: %s", job.id, pause_s, error)


def _try_to_save(save: Callable[[], None]) -> bool:
    try:
        save()
    except JobsUnavailableError as error:
        logger.error("the outcome of a job cannot be saved for now: %s", error)
        return False
    return True
