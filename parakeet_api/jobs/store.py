"""Stored jobs: what all databases share. `sqlite_store` and `postgres_store` are the databases.

Every change is one transaction, so a crash leaves each job as it was before or after a change.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

from parakeet_api.errors import QueueFullError, ServerError
from parakeet_api.formats.rendering import Rendered
from parakeet_api.formats.request_params import TranscriptionParams
from parakeet_api.jobs.job import (
    Failure,
    Job,
    JobCounts,
    JobStatus,
    Webhook,
    caveats_from_json,
    caveats_to_json,
    params_from_json,
    params_to_json,
)
from parakeet_api.jobs.recordings import Recordings

_MAX_INTERRUPTIONS = 3
"""A job fails once the process has ended this often while it ran."""

Row = Mapping[str, Any]


class Database(Protocol):
    """A connection within a transaction."""

    def execute(self, statement: str, values: Sequence[object] = (), /) -> Any:
        """Run a statement with `?` for its values; give a cursor whose rows are mappings."""
        ...


class JobStore(abc.ABC):
    """Store jobs; safe to use from many threads.

    Every method raises `JobsUnavailableError` for errors of the database or the disk, and then
    changes nothing.
    """

    shared: ClassVar[bool]
    """Whether other servers use it as well: they add, take and cancel jobs at any time."""

    def __init__(self, recordings: Recordings, *, mine: str = "1 = 1") -> None:
        """Store recordings in `recordings`; `mine` holds for jobs that this server has started."""
        self._recordings = recordings
        self._mine = mine
        self.counts = JobCounts(queued=0, running=0)
        """Replaced after each change, so it can be read without locking."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the database."""

    @abc.abstractmethod
    def start(self, job: Job) -> Job | None:
        """Mark a queued job as running and give it; `None` where it is no longer queued."""

    @abc.abstractmethod
    def pending_webhooks(self, *, max_attempts: int) -> list[Job]:
        """List the finished jobs whose webhook this server must still call, oldest first."""

    @abc.abstractmethod
    def renew(self, running: Sequence[Job]) -> set[str]:
        """Store the progress of jobs that this server works on; give the ids of those still its.

        Where other servers use the store, this server's jobs are taken over by them if it does not
        renew them for a while, as it takes over theirs here.
        """

    @abc.abstractmethod
    def _transaction(self) -> AbstractContextManager[Database]:
        """Run the block as one transaction; raise `JobsUnavailableError`."""

    @abc.abstractmethod
    def _translated_errors(self) -> AbstractContextManager[None]:
        """Translate errors of the database and the disk into `JobsUnavailableError`."""

    def add(
        self,
        upload: Path,
        params: TranscriptionParams,
        *,
        owner: str | None,
        webhook_url: str | None,
        max_unfinished: int,
    ) -> Job:
        """Store a recording and queue a job for it; the caller still deletes `upload`.

        Raises `QueueFullError` where `max_unfinished` jobs are unfinished already.
        """
        job_id = uuid.uuid4().hex
        # Checked before as well: storing the recording may mean copying it.
        self.check_capacity(max_unfinished)
        with self._translated_errors():
            self._recordings.add(upload, job_id)
        try:
            with self._changing() as db:
                _check_capacity(db, max_unfinished)
                db.execute(
                    "INSERT INTO jobs (id, owner, status, params, created_at, webhook_url)"
                    " VALUES (?, ?, 'queued', ?, ?, ?)",
                    (job_id, owner, params_to_json(params), time.time(), webhook_url),
                )
        except BaseException:
            self._delete_recording(job_id)
            raise
        job = self.get(job_id)
        assert job is not None
        return job

    def check_capacity(self, max_unfinished: int) -> None:
        """Raise `QueueFullError` where `add` would."""
        with self._transaction() as db:
            _check_capacity(db, max_unfinished)

    def get(self, job_id: str) -> Job | None:
        """Return a job with its result, read together: only one that succeeded has a result."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT jobs.*, media_type, body, caveats"
                " FROM jobs LEFT JOIN results ON results.job = jobs.id WHERE id = ?",
                (job_id,),
            ).fetchone()
        if row is None:
            return None
        return dataclasses.replace(job_from(row), result=_result_from(row))

    def newest(self, owner: str | None, *, limit: int, after: str | None = None) -> list[Job]:
        """List an owner's jobs, newest first, without results.

        `after` is the id of the last job on the previous page.
        """
        return self._select(
            "WHERE (owner = ? OR (owner IS NULL AND CAST(? AS TEXT) IS NULL))"
            " AND (CAST(? AS TEXT) IS NULL OR number < (SELECT number FROM jobs WHERE id = ?))"
            " ORDER BY number DESC LIMIT ?",
            owner,
            owner,
            after,
            after,
            limit,
        )

    def queued(self) -> list[Job]:
        """List the queued jobs, oldest first."""
        return self._select("WHERE status = 'queued' ORDER BY number")

    @contextmanager
    def recording(self, job: Job) -> Iterator[Path]:
        """Give an unfinished job's recording as a file. Raises `FileNotFoundError`."""
        with self._recordings.local(job.id) as path:
            yield path

    def requeue(self, job: Job) -> None:
        """Queue a running job again, at its old position."""
        with self._changing() as db:
            db.execute(
                "UPDATE jobs SET status = 'queued', started_at = NULL"
                f" WHERE id = ? AND status = 'running' AND {self._mine}",
                (job.id,),
            )

    def succeed(self, job: Job, result: Rendered) -> None:
        """Store a running job's result, unless it was cancelled in the meantime."""
        with self._changing() as db:
            ended = self._end(db, job, "succeeded")
            if ended:
                db.execute(
                    "INSERT INTO results (job, media_type, body, caveats) VALUES (?, ?, ?, ?)",
                    (
                        job.id,
                        result.media_type,
                        self._stored_body(result.body),
                        caveats_to_json(result.caveats),
                    ),
                )
        if ended:
            self._delete_recording(job.id)

    def fail(self, job: Job, failure: Failure) -> None:
        """Store a running job's error, unless it was cancelled in the meantime."""
        with self._changing() as db:
            ended = self._end(db, job, "failed")
            if ended:
                db.execute(
                    "UPDATE jobs SET error_status = ?, error_body = ? WHERE id = ?",
                    (failure.status, failure.body, job.id),
                )
        if ended:
            self._delete_recording(job.id)

    def cancel(self, job: Job) -> bool:
        """Cancel an unfinished job; tell whether it was unfinished."""
        with self._changing() as db:
            cancelled = _store_end(db, job, "cancelled", "status IN ('queued', 'running')")
        if cancelled:
            self._delete_recording(job.id)
        return cancelled

    def remove(self, job: Job) -> None:
        """Delete a finished job and its result."""
        with self._changing() as db:
            db.execute("DELETE FROM jobs WHERE id = ? AND finished_at IS NOT NULL", (job.id,))

    def remove_finished_before(self, moment: float) -> int:
        """Delete the jobs that ended before a Unix time in seconds; give their number."""
        with self._changing() as db:
            removed: int = db.execute("DELETE FROM jobs WHERE finished_at < ?", (moment,)).rowcount
        return removed

    def record_attempt(self, job: Job, *, error: str | None) -> None:
        """Store the outcome of a webhook call; without an error it is delivered."""
        with self._changing() as db:
            db.execute(
                "UPDATE jobs SET webhook_attempts = webhook_attempts + 1, webhook_delivered = ?,"
                " webhook_error = ? WHERE id = ?",
                (int(error is None), error, job.id),
            )

    def _stored_body(self, body: str) -> object:
        """Return a result's text as the database keeps it."""
        return body

    def _end(self, db: Database, job: Job, status: JobStatus) -> bool:
        """Store a running job's final status and progress; tell whether it was running here."""
        return _store_end(db, job, status, f"status = 'running' AND {self._mine}")

    def _delete_recording(self, job_id: str) -> None:
        # A file that is left behind is deleted at a later start.
        with contextlib.suppress(OSError):
            self._recordings.delete(job_id)

    def _select(self, clause: str, *values: object) -> list[Job]:
        with self._transaction() as db:
            # Clauses are constants of this package, never input.
            rows = db.execute(f"SELECT * FROM jobs {clause}", values).fetchall()
        return [job_from(row) for row in rows]

    @contextmanager
    def _changing(self) -> Iterator[Database]:
        """Run the block as one transaction, then count the unfinished jobs."""
        with self._transaction() as db:
            yield db
        # The change is committed: callers must not take a failed count for a failed change.
        with contextlib.suppress(Exception):
            self.counts = self._count()

    def _count(self) -> JobCounts:
        with self._transaction() as db:
            rows = db.execute(
                "SELECT status, count(*) AS number FROM jobs WHERE finished_at IS NULL"
                " GROUP BY status"
            ).fetchall()
        counts = {row["status"]: row["number"] for row in rows}
        return JobCounts(queued=counts.get("queued", 0), running=counts.get("running", 0))


def requeue_interrupted(db: Database, interrupted: str) -> list[str]:
    """Queue jobs again whose process has ended, and fail those that ended it too often.

    `interrupted` is the condition that holds for them. Give the ids of those that failed.
    """
    failure = Failure.of(
        ServerError(
            f"The server ended {_MAX_INTERRUPTIONS} times while it worked on this recording,"
            " so it is not tried again."
        )
    )
    db.execute(
        "UPDATE jobs SET status = 'queued', started_at = NULL, interruptions = interruptions + 1"
        f" WHERE status = 'running' AND {interrupted}"
    )
    failed = db.execute(
        "UPDATE jobs SET status = 'failed', finished_at = ?, error_status = ?, error_body = ?"
        " WHERE status = 'queued' AND interruptions >= ? RETURNING id",
        (time.time(), failure.status, failure.body, _MAX_INTERRUPTIONS),
    ).fetchall()
    return [row["id"] for row in failed]


def job_from(row: Row) -> Job:
    """Build a job, without its result, from a row of the table `jobs`."""
    failed, has_webhook = row["error_body"] is not None, row["webhook_url"] is not None
    return Job(
        id=row["id"],
        owner=row["owner"],
        status=row["status"],
        params=params_from_json(row["params"]),
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        done_s=row["done_s"],
        total_s=row["total_s"],
        interruptions=row["interruptions"],
        failure=Failure(row["error_status"], row["error_body"]) if failed else None,
        webhook=Webhook(
            row["webhook_url"],
            attempts=row["webhook_attempts"],
            delivered=bool(row["webhook_delivered"]),
            last_error=row["webhook_error"],
        )
        if has_webhook
        else None,
    )


PENDING_WEBHOOKS = (
    "webhook_url IS NOT NULL AND finished_at IS NOT NULL AND webhook_delivered = 0"
    " AND webhook_attempts < ?"
)
"""The condition for jobs whose webhook must still be called, with the most attempts."""


def _check_capacity(db: Database, max_unfinished: int) -> None:
    row = db.execute("SELECT count(*) AS number FROM jobs WHERE finished_at IS NULL").fetchone()
    if row["number"] >= max_unfinished:
        raise QueueFullError(
            f"{row['number']} jobs are unfinished, the most this server keeps (MAX_QUEUED_JOBS)."
            " Try again when some are done."
        )


def _store_end(db: Database, job: Job, status: JobStatus, condition: str) -> bool:
    ended: int = db.execute(
        "UPDATE jobs SET status = ?, finished_at = ?, done_s = ?, total_s = ?"
        f" WHERE id = ? AND {condition}",
        (status, time.time(), job.done_s, job.total_s, job.id),
    ).rowcount
    return ended == 1


def _result_from(row: Row) -> Rendered | None:
    body = row["body"]
    if body is None:
        return None
    text = body if isinstance(body, str) else bytes(body).decode()
    return Rendered(text, row["media_type"], caveats_from_json(row["caveats"]))
