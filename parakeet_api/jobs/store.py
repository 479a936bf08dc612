"""Jobs on disk: state and results in SQLite, recordings as files beside the database.

Every change is one transaction, so a crash leaves each job as it was before or after a change. The
database is locked while it is open, so a second server cannot process the same jobs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parakeet_api.errors import JobsUnavailableError, QueueFullError, ServerError
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

_MAX_INTERRUPTIONS = 3
"""A job fails once the process has ended this often while it ran."""
_VERSION = 1
"""Version of the tables, in SQLite's `user_version`."""

_TABLES = f"""
BEGIN;
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT,
    status TEXT NOT NULL,
    params TEXT NOT NULL,
    created_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL,
    done_s REAL NOT NULL DEFAULT 0,
    total_s REAL,
    interruptions INTEGER NOT NULL DEFAULT 0,
    error_status INTEGER,
    error_body TEXT,
    webhook_url TEXT,
    webhook_attempts INTEGER NOT NULL DEFAULT 0,
    webhook_delivered INTEGER NOT NULL DEFAULT 0,
    webhook_error TEXT
);
CREATE INDEX jobs_by_status ON jobs (status);
CREATE INDEX jobs_by_end ON jobs (finished_at);
CREATE INDEX jobs_to_tell ON jobs (finished_at) WHERE webhook_url IS NOT NULL;
CREATE TABLE results (
    job TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    media_type TEXT NOT NULL,
    body TEXT NOT NULL,
    caveats TEXT NOT NULL DEFAULT '[]'
);
PRAGMA user_version = {_VERSION};
COMMIT;
"""

_ADD_CAVEATS = "ALTER TABLE results ADD COLUMN caveats TEXT NOT NULL DEFAULT '[]'"
"""Upgrades tables of earlier versions, which can still read and write the result."""

_PRAGMAS = (
    # Locks the database until it is closed, and WAL then needs no shared memory, which network
    # drives lack.
    "PRAGMA locking_mode = EXCLUSIVE",
    # Removed results free disk space.
    "PRAGMA auto_vacuum = FULL",
    "PRAGMA journal_mode = WAL",
    "PRAGMA journal_size_limit = 1000000",
    # An accepted job survives a power failure.
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
)


class JobStore:
    """Store jobs in a folder; safe to use from many threads.

    Every method raises `JobsUnavailableError` for disk errors, and then changes nothing.
    """

    def __init__(self, folder: Path) -> None:
        """Open or create the store; queue jobs again that ran when the last process ended.

        Raises `JobsUnavailableError` where the folder is unusable or in use by another process.
        """
        self._folder = folder
        self._lock = threading.Lock()
        self._recordings = folder / "recordings"
        self.counts = JobCounts(queued=0, running=0)
        """Replaced after each change, so it can be read without locking."""
        with self._disk_errors():
            # Recordings and hashes of API keys are private.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._recordings.mkdir(mode=0o700, exist_ok=True)
            self._db = _connect(folder / "jobs.sqlite3")
            try:
                self._recover()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the database, so that another process can use the folder."""
        with self._lock:
            self._db.close()

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
        recording = self._recordings / job_id
        # Checked before as well: storing the recording may mean copying it.
        self.check_capacity(max_unfinished)
        with self._disk_errors():
            _link_or_copy(upload, recording)
        try:
            with self._changing() as db:
                _check_capacity(db, max_unfinished)
                db.execute(
                    "INSERT INTO jobs (id, owner, status, params, created_at, webhook_url)"
                    " VALUES (?, ?, 'queued', ?, ?, ?)",
                    (job_id, owner, params_to_json(params), time.time(), webhook_url),
                )
        except BaseException:
            recording.unlink(missing_ok=True)
            raise
        job = self.get(job_id)
        assert job is not None
        return job

    def check_capacity(self, max_unfinished: int) -> None:
        """Raise `QueueFullError` where `add` would."""
        with self._reading() as db:
            _check_capacity(db, max_unfinished)

    def get(self, job_id: str) -> Job | None:
        """Return a job with its result, read together: only one that succeeded has a result."""
        with self._reading() as db:
            row = db.execute(
                "SELECT jobs.*, media_type, body, caveats"
                " FROM jobs LEFT JOIN results ON results.job = jobs.id WHERE id = ?",
                (job_id,),
            ).fetchone()
        if row is None:
            return None
        return dataclasses.replace(_job_from(row), result=_result_from(row))

    def newest(self, owner: str | None, *, limit: int, after: str | None = None) -> list[Job]:
        """List an owner's jobs, newest first, without results.

        `after` is the id of the last job on the previous page.
        """
        return self._select(
            "WHERE owner IS ? AND (? IS NULL OR number < (SELECT number FROM jobs WHERE id = ?))"
            " ORDER BY number DESC LIMIT ?",
            owner,
            after,
            after,
            limit,
        )

    def queued(self) -> list[Job]:
        """List the queued jobs, oldest first."""
        return self._select("WHERE status = 'queued' ORDER BY number")

    def recording(self, job: Job) -> Path:
        """Return the path of an unfinished job's recording."""
        return self._recordings / job.id

    def start(self, job: Job) -> Job | None:
        """Mark a queued job as running and give it; `None` where it is no longer queued."""
        with self._changing() as db:
            started = db.execute(
                "UPDATE jobs SET status = 'running', started_at = ?"
                " WHERE id = ? AND status = 'queued'",
                (time.time(), job.id),
            )
            row = db.execute("SELECT * FROM jobs WHERE id = ?", (job.id,)).fetchone()
        return _job_from(row) if started.rowcount else None

    def requeue(self, job: Job) -> None:
        """Queue a running job again, at its old position."""
        with self._changing() as db:
            db.execute(
                "UPDATE jobs SET status = 'queued', started_at = NULL"
                " WHERE id = ? AND status = 'running'",
                (job.id,),
            )

    def succeed(self, job: Job, result: Rendered) -> None:
        """Store a running job's result, unless it was cancelled in the meantime."""
        with self._changing() as db:
            ended = _end(db, job, "succeeded")
            if ended:
                db.execute(
                    "INSERT INTO results (job, media_type, body, caveats) VALUES (?, ?, ?, ?)",
                    (job.id, result.media_type, result.body, caveats_to_json(result.caveats)),
                )
        if ended:
            self._delete_recording(job.id)

    def fail(self, job: Job, failure: Failure) -> None:
        """Store a running job's error, unless it was cancelled in the meantime."""
        with self._changing() as db:
            ended = _end(db, job, "failed")
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
            cancelled = _end(db, job, "cancelled", also_from="queued")
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
            removed = db.execute("DELETE FROM jobs WHERE finished_at < ?", (moment,))
        return removed.rowcount

    def pending_webhooks(self, *, max_attempts: int) -> list[Job]:
        """List the finished jobs whose webhook must still be called, oldest first."""
        return self._select(
            "WHERE webhook_url IS NOT NULL AND finished_at IS NOT NULL"
            " AND NOT webhook_delivered AND webhook_attempts < ? ORDER BY finished_at",
            max_attempts,
        )

    def record_attempt(self, job: Job, *, error: str | None) -> None:
        """Store the outcome of a webhook call; without an error it is delivered."""
        with self._changing() as db:
            db.execute(
                "UPDATE jobs SET webhook_attempts = webhook_attempts + 1, webhook_delivered = ?,"
                " webhook_error = ? WHERE id = ?",
                (error is None, error, job.id),
            )

    def _recover(self) -> None:
        """Repair the state that a crash of the last process left behind."""
        failure = Failure.of(
            ServerError(
                f"The server ended {_MAX_INTERRUPTIONS} times while it worked on this recording,"
                " so it is not tried again."
            )
        )
        with self._changing() as db:
            db.execute(
                "UPDATE jobs SET status = 'queued', started_at = NULL,"
                " interruptions = interruptions + 1 WHERE status = 'running'"
            )
            db.execute(
                "UPDATE jobs SET status = 'failed', finished_at = ?, error_status = ?,"
                " error_body = ? WHERE status = 'queued' AND interruptions >= ?",
                (time.time(), failure.status, failure.body, _MAX_INTERRUPTIONS),
            )
        queued = {job.id for job in self.queued()}
        for file in self._recordings.iterdir():
            if file.name not in queued:
                file.unlink()

    def _delete_recording(self, job_id: str) -> None:
        # If this fails, `_recover` deletes the file at the next start.
        with contextlib.suppress(OSError):
            (self._recordings / job_id).unlink(missing_ok=True)

    def _select(self, clause: str, *values: object) -> list[Job]:
        with self._reading() as db:
            # Clauses are constants of this module, never input.
            rows = db.execute(f"SELECT * FROM jobs {clause}", values).fetchall()  # noqa: S608
        return [_job_from(row) for row in rows]

    def _count(self) -> JobCounts:
        counts = dict(self._db.execute("SELECT status, count(*) FROM jobs GROUP BY status"))
        return JobCounts(queued=counts.get("queued", 0), running=counts.get("running", 0))

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._disk_errors(), self._lock:
            yield self._db

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction."""
        with self._disk_errors(), self._lock:
            with self._db:
                yield self._db
            # The change is committed: callers must not take a failed count for a failed change.
            with contextlib.suppress(sqlite3.Error):
                self.counts = self._count()

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Translate disk errors into `JobsUnavailableError`."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            busy = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
            reason = "another server uses it" if busy else str(error)
            raise JobsUnavailableError(
                f"DATA_DIR={str(self._folder)!r} cannot be used for jobs: {reason}."
            ) from error


def _connect(path: Path) -> sqlite3.Connection:
    """Open and lock the database; create or upgrade its tables."""
    # The store's lock serializes threads. `timeout=0`: another process holds the database for as
    # long as it runs, so waiting for it is useless.
    db = sqlite3.connect(path, timeout=0, check_same_thread=False)
    try:
        db.row_factory = sqlite3.Row
        for pragma in _PRAGMAS:
            db.execute(pragma)
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            db.executescript(_TABLES)
        elif version != _VERSION:
            raise sqlite3.DatabaseError(f"{path.name} was written by another version")
        if "caveats" not in {row["name"] for row in db.execute("PRAGMA table_info(results)")}:
            db.execute(_ADD_CAVEATS)
    except BaseException:
        db.close()
        raise
    return db


def _link_or_copy(upload: Path, target: Path) -> None:
    """Make a hard link to the upload, or copy it; flush it to disk."""
    try:
        target.hardlink_to(upload)
    except OSError:
        # Another file system, or one without hard links.
        try:
            shutil.copyfile(upload, target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    for path in (target, target.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _check_capacity(db: sqlite3.Connection, max_unfinished: int) -> None:
    (unfinished,) = db.execute("SELECT count(*) FROM jobs WHERE finished_at IS NULL").fetchone()
    if unfinished >= max_unfinished:
        raise QueueFullError(
            f"{unfinished} jobs are unfinished, the most this server keeps (MAX_QUEUED_JOBS)."
            " Try again when some are done."
        )


def _end(
    db: sqlite3.Connection, job: Job, status: JobStatus, *, also_from: JobStatus = "running"
) -> bool:
    """Store a running job's final status and progress; tell whether it was running."""
    ended = db.execute(
        "UPDATE jobs SET status = ?, finished_at = ?, done_s = ?, total_s = ?"
        " WHERE id = ? AND status IN ('running', ?)",
        (status, time.time(), job.done_s, job.total_s, job.id, also_from),
    )
    return ended.rowcount == 1


def _job_from(row: sqlite3.Row) -> Job:
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


def _result_from(row: sqlite3.Row) -> Rendered | None:
    if row["body"] is None:
        return None
    return Rendered(row["body"], row["media_type"], caveats_from_json(row["caveats"]))
