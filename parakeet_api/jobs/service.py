"""Transcriptions that outlast a connection: accepted at once, done in turn, kept until fetched."""

from __future__ import annotations

import hmac
import json
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from parakeet_api.errors import JobsUnavailableError, NotFoundError
from parakeet_api.formats.rendering import Rendered
from parakeet_api.formats.request_params import TranscriptionParams
from parakeet_api.jobs.job import Job, JobCounts, job_object
from parakeet_api.jobs.runner import JobRunner, Transcribe
from parakeet_api.jobs.store import JobStore
from parakeet_api.jobs.webhooks import AllowedHosts, Courier
from parakeet_api.settings import Settings

logger = logging.getLogger(__name__)

_UPKEEP_S = 5.0
"""How often old jobs are removed, and a DATA_DIR that could not be used is tried again."""
_CLOSING_S = 5.0
"""A job stops within half a second, unless ffmpeg or the model is stuck."""
_NOTHING = JobCounts(queued=0, running=0)

LEAST_WORKERS = 2
"""Jobs that are worked on at a time. Their chunks take turns with those of requests: on a CPU more
would only make each of them later."""
MOST_WORKERS = 8


def workers_for(*, cores: int, batch_size: int) -> int:
    """Give the jobs that keep a model busy whose passes have `batch_size` chunks.

    One file is decoded on one core, at 1,300 times real time; a large GPU recognises at 7,000.
    """
    return max(LEAST_WORKERS, min(MOST_WORKERS, cores // 2, batch_size // 16))


@dataclass(frozen=True, slots=True)
class _Works:
    """What runs while DATA_DIR can be used."""

    store: JobStore
    runner: JobRunner
    courier: Courier


class Jobs:
    """Accept jobs, see that they are done and told of, and keep their results for a while.

    Where `DATA_DIR` cannot be used, everything else of the server works, and every method raises
    `JobsUnavailableError` until it can.
    """

    def __init__(
        self, *, settings: Settings, transcribe: Transcribe, workers: int = LEAST_WORKERS
    ) -> None:
        """Work on `workers` jobs at a time, once started."""
        self._settings = settings
        self._transcribe = transcribe
        self._workers = workers
        self._hosts = AllowedHosts(settings.allow_webhooks)
        self._closing = threading.Event()
        self._upkeep = threading.Thread(target=self._keep_up, name="job-upkeep", daemon=True)
        self._works: _Works | None = None
        self.fault: JobsUnavailableError | None = None
        """Why no jobs are taken."""

    def start(self) -> None:
        """Go on with the jobs that an earlier process left."""
        self._try_to_open()
        self._upkeep.start()

    def close(self) -> None:
        """Stop; what is unfinished is done after the next start."""
        self._closing.set()
        if self._upkeep.is_alive():
            self._upkeep.join()
        works, self._works = self._works, None
        if works is not None:
            deadline = time.monotonic() + _CLOSING_S
            works.runner.close(within_s=_CLOSING_S)
            works.courier.close(within_s=max(0.0, deadline - time.monotonic()))
            works.store.close()

    @property
    def counts(self) -> JobCounts:
        """Count the unfinished jobs, without waiting."""
        works = self._works
        return works.store.counts if works else _NOTHING

    def refuse_if_full(self) -> None:
        """Raise `QueueFullError` where `submit` would: before an upload is looked at."""
        self._opened().store.refuse_beyond(self._settings.max_queued_jobs)

    def submit(
        self,
        upload: Path,
        params: TranscriptionParams,
        *,
        owner: str | None,
        webhook_url: str | None = None,
    ) -> Job:
        """Accept a recording; `upload` itself stays the caller's.

        Raises `InvalidRequestError` for a webhook that must not be called, `QueueFullError`.
        """
        if webhook_url:
            self._hosts.check(webhook_url)
        works = self._opened()
        job = works.store.add(
            upload,
            params,
            owner=owner,
            webhook_url=webhook_url or None,
            most_unfinished=self._settings.max_queued_jobs,
        )
        works.runner.notify()
        return job

    def get(self, job_id: str, *, owner: str | None) -> Job:
        """Give one of the owner's jobs. Raises `NotFoundError`, also for another's."""
        works = self._opened()
        job = works.store.get(job_id)
        if job is None or not hmac.compare_digest(job.owner or "", owner or ""):
            raise NotFoundError("There is no such job; finished ones are removed after a while.")
        return works.runner.latest(job)

    def newest(self, *, owner: str | None, limit: int, after: str | None = None) -> list[Job]:
        """List the owner's jobs, newest first; `after` is the last one of the page before."""
        works = self._opened()
        return [
            works.runner.latest(job) for job in works.store.newest(owner, limit=limit, after=after)
        ]

    def result(self, job: Job) -> Rendered | None:
        """Give what the job's request would have been answered, once it succeeded."""
        return self._opened().store.result(job)

    def delete(self, job: Job) -> Job | None:
        """Cancel an unfinished job and give it as it is now; forget a finished one altogether."""
        works = self._opened()
        if works.runner.cancel(job):
            return works.store.get(job.id)
        works.store.remove(job)
        return None

    def _opened(self) -> _Works:
        works = self._works
        if works is None:
            raise self.fault or JobsUnavailableError("The server is starting or stopping.")
        return works

    def _keep_up(self) -> None:
        while not self._closing.wait(_UPKEEP_S):
            try:
                self._tidy()
            # A thread's border: a disk that refuses now may not in a while.
            except Exception:
                logger.exception("old jobs could not be removed")

    def _tidy(self) -> None:
        works, hours = self._works, self._settings.job_retention_hours
        if works is None:
            self._try_to_open()
        elif hours:
            works.store.remove_finished_before(time.time() - hours * 3600)

    def _try_to_open(self) -> None:
        try:
            store = JobStore(self._settings.jobs_dir)
        except JobsUnavailableError as error:
            if self.fault is None or self.fault.message != error.message:
                logger.error("no jobs are taken for now: %s", error)
            self.fault = error
            return
        counts = store.counts
        logger.info("jobs in %s: %d unfinished", self._settings.jobs_dir, counts.queued)
        courier = Courier(
            store,
            hosts=self._hosts,
            body=lambda job: json.dumps(job_object(job, store.result(job))).encode(),
        )
        runner = JobRunner(
            store, transcribe=self._transcribe, on_end=courier.notify, workers=self._workers
        )
        self._works, self.fault = _Works(store, runner, courier), None
