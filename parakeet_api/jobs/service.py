"""Accept jobs at once, process them in order, keep their results until they are fetched."""

from __future__ import annotations

import dataclasses
import hmac
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from parakeet_api.allowed_hosts import webhook_hosts
from parakeet_api.errors import JobsUnavailableError, NotFoundError
from parakeet_api.formats.request_params import TranscriptionParams
from parakeet_api.jobs.job import Job, JobCounts, job_object
from parakeet_api.jobs.live import LiveJobs
from parakeet_api.jobs.postgres_store import PostgresJobStore
from parakeet_api.jobs.recordings import FolderRecordings, StoredRecordings
from parakeet_api.jobs.runner import JobRunner
from parakeet_api.jobs.sqlite_store import SqliteJobStore
from parakeet_api.jobs.store import JobStore
from parakeet_api.jobs.webhooks import WebhookSender
from parakeet_api.metrics import Metrics
from parakeet_api.pipeline import Pipeline
from parakeet_api.settings import Settings

logger = logging.getLogger(__name__)

_MAINTENANCE_S = 5.0
"""How often expired jobs are removed, and an unusable DATA_DIR is tried again."""
_CLOSING_S = 5.0
"""A job stops within half a second, unless ffmpeg or the model hangs."""
_NO_JOBS = JobCounts(queued=0, running=0)

MIN_WORKERS = 2
"""Jobs that are processed at a time. Their chunks take turns with those of requests: on a CPU, more
would only delay each of them."""
MAX_WORKERS = 8


def workers_for(*, cores: int, batch_size: int) -> int:
    """Return the number of jobs that keep a model with batches of `batch_size` chunks busy.

    One file is decoded on one core, at 1,300 times real time; a large GPU recognises at 7,000.
    """
    return max(MIN_WORKERS, min(MAX_WORKERS, cores // 2, batch_size // 16))


@dataclass(frozen=True, slots=True)
class _OpenStore:
    """The store of a usable DATA_DIR, and the threads that work on it."""

    store: JobStore
    runner: JobRunner
    sender: WebhookSender


class Jobs:
    """Accept and process jobs, call their webhooks, and keep their results for a while.

    While `DATA_DIR` is unusable, every method raises `JobsUnavailableError`, and the rest of the
    server works.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        pipeline_of: Callable[[str], Pipeline],
        workers: int = MIN_WORKERS,
        metrics: Metrics | None = None,
    ) -> None:
        """Process `workers` jobs at a time, once started.

        `pipeline_of` gives a model's pipeline by name; see `JobRunner`.
        """
        self._settings = settings
        self.live = LiveJobs(settings)
        """The words of running jobs."""
        self._pipeline_of = pipeline_of
        self._workers = workers
        self._hosts = webhook_hosts(settings.allow_webhooks)
        self._closing = threading.Event()
        self._maintenance = threading.Thread(
            target=self._maintain, name="job-maintenance", daemon=True
        )
        self._open: _OpenStore | None = None
        self.fault: JobsUnavailableError | None = None
        """Why no jobs are accepted."""
        if metrics is not None:
            metrics.jobs.labels("queued").set_function(lambda: self.counts.queued)
            metrics.jobs.labels("running").set_function(lambda: self.counts.running)

    def start(self) -> None:
        """Open the store and continue with unfinished jobs."""
        self._try_to_open()
        self._maintenance.start()

    def close(self) -> None:
        """Stop; unfinished jobs are processed after the next start."""
        self._closing.set()
        if self._maintenance.is_alive():
            self._maintenance.join()
        opened, self._open = self._open, None
        if opened is not None:
            deadline = time.monotonic() + _CLOSING_S
            opened.runner.close(within_s=_CLOSING_S)
            opened.sender.close(within_s=max(0.0, deadline - time.monotonic()))
            opened.store.close()

    @property
    def counts(self) -> JobCounts:
        """Count the unfinished jobs, without locking."""
        opened = self._open
        return opened.store.counts if opened else _NO_JOBS

    def refuse_if_full(self) -> None:
        """Raise `QueueFullError` where `submit` would, before the upload is read."""
        self._require_open().store.check_capacity(self._settings.max_queued_jobs)

    def submit(
        self,
        upload: Path,
        params: TranscriptionParams,
        *,
        owner: str | None,
        webhook_url: str | None = None,
    ) -> Job:
        """Queue a job for a recording; the caller still deletes `upload`.

        Raises `InvalidRequestError` for a webhook that is not allowed, `QueueFullError`.
        """
        if webhook_url:
            self._hosts.check(webhook_url)
        opened = self._require_open()
        job = opened.store.add(
            upload,
            params,
            owner=owner,
            webhook_url=webhook_url or None,
            max_unfinished=self._settings.max_queued_jobs,
        )
        opened.runner.notify()
        return job

    def get(self, job_id: str, *, owner: str | None) -> Job:
        """Return one of the owner's jobs, with its result if it succeeded.

        Raises `NotFoundError`, also for a job of another owner.
        """
        opened = self._require_open()
        job = opened.store.get(job_id)
        if job is None or not hmac.compare_digest(job.owner or "", owner or ""):
            raise NotFoundError("There is no such job; finished ones are removed after a while.")
        return opened.runner.latest(job)

    def newest(self, *, owner: str | None, limit: int, after: str | None = None) -> list[Job]:
        """List the owner's jobs, newest first, without results.

        `after` is the id of the last job on the previous page.
        """
        opened = self._require_open()
        jobs = opened.store.newest(owner, limit=limit, after=after)
        # A job that ends meanwhile is read again, with its result.
        return [dataclasses.replace(opened.runner.latest(job), result=None) for job in jobs]

    def queue_position(self, job: Job) -> int | None:
        """Return a waiting job's place among all that wait, from 1; `None` where it does not."""
        if job.status != "queued":
            return None
        waiting = [queued.id for queued in self._require_open().store.queued()]
        return waiting.index(job.id) + 1 if job.id in waiting else None

    def delete(self, job: Job) -> Job | None:
        """Cancel an unfinished job and give it; delete a finished one with its result."""
        opened = self._require_open()
        if opened.runner.cancel(job):
            return opened.store.get(job.id)
        opened.store.remove(job)
        return None

    def _require_open(self) -> _OpenStore:
        opened = self._open
        if opened is None:
            raise self.fault or JobsUnavailableError("The server is starting or stopping.")
        return opened

    def _maintain(self) -> None:
        while not self._closing.wait(_MAINTENANCE_S):
            try:
                self._maintain_store()
            # Thread boundary: disk errors may be temporary.
            except Exception:
                logger.exception("the job store could not be maintained")

    def _maintain_store(self) -> None:
        opened, hours = self._open, self._settings.job_retention_hours
        if opened is None:
            self._try_to_open()
        elif hours:
            opened.store.remove_finished_before(time.time() - hours * 3600)

    def _try_to_open(self) -> None:
        try:
            store = open_store(self._settings)
        except JobsUnavailableError as error:
            if self.fault is None or self.fault.message != error.message:
                logger.error("jobs are not accepted for now: %s", error)
            self.fault = error
            return
        counts = store.counts
        place = "DATABASE_URL" if store.shared else self._settings.jobs_dir
        logger.info("jobs in %s: %d unfinished", place, counts.queued + counts.running)
        sender = WebhookSender(
            store,
            hosts=self._hosts,
            body=lambda job: json.dumps(job_object(store.get(job.id) or job)).encode(),
        )
        runner = JobRunner(
            store,
            pipeline_of=self._pipeline_of,
            live=self.live,
            settings=self._settings,
            on_end=sender.notify,
            workers=self._workers,
        )
        self._open, self.fault = _OpenStore(store, runner, sender), None


def open_store(settings: Settings) -> JobStore:
    """Open the store of this server's jobs, or of several servers'.

    Raises `JobsUnavailableError` if the database or the storage cannot be used.
    """
    folder = settings.jobs_dir
    try:
        recordings = (
            StoredRecordings(settings.jobs_storage)
            if settings.jobs_storage
            else FolderRecordings(folder / "recordings")
            if settings.database_url
            else None
        )
    except OSError as error:
        raise JobsUnavailableError(f"Recordings of jobs cannot be stored: {error}.") from error
    if settings.database_url is None or recordings is None:
        return SqliteJobStore(folder, recordings)
    return PostgresJobStore(settings.database_url, recordings)
