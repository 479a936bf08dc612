"""Jobs on disk: their state and results in SQLite, their recordings as files beside it.

A change is one transaction, so whatever ends the process, each job is as it was before the change
or as it is after it. The database is locked for as long as it is open: no second server can run the
same jobs.
"""

from __future__ import annotations

import contextlib
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

_MOST_INTERRUPTIONS = 3
"""A recording that ends the process as often is not tried again."""
_VERSION = 1
"""Of the tables; in SQLite's `user_version`."""

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
"""For tables of before; a server of before can read and write those with it."""

_PRAGMAS = (
    # Held until it is closed. Also lets WAL do without shared memory, which network drives lack.
    "PRAGMA locking_mode = EXCLUSIVE",
    # The space of removed results is given back to the disk.
    "PRAGMA auto_vacuum = FULL",
    "PRAGMA journal_mode = WAL",
    "PRAGMA journal_size_limit = 1000000",
    # A job that was accepted outlives a power cut as well.
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
)


class JobStore:
    """Keep jobs in a folder; safe to use from many threads.

    Every method raises `JobsUnavailableError` where the disk refuses; nothing is changed then.
    """

    def __init__(self, folder: Path) -> None:
        """Open or create; jobs that ran when the last process died are queued again.

        Raises `JobsUnavailableError` where the folder cannot be used, or another process uses it.
        """
        self._folder = folder
        self._lock = threading.Lock()
        self._recordings = folder / "recordings"
        self.counts = JobCounts(queued=0, running=0)
        """Replaced after each change, so it may be read at any time without waiting."""
        with self._disk():
            # Recordings are private, and their owners' keys are hashed in there.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._recordings.mkdir(mode=0o700, exist_ok=True)
            self._db = _connect(folder / "jobs.sqlite3")
            try:
                self._recover()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Let another process have the folder."""
        with self._lock:
            self._db.close()

    def add(
        self,
        upload: Path,
        params: TranscriptionParams,
        *,
        owner: str | None,
        webhook_url: str | None,
        most_unfinished: int,
    ) -> Job:
        """Take a recording over and queue a job for it; `upload` itself stays the caller's.

        Raises `QueueFullError` where `most_unfinished` jobs are unfinished already.
        """
        job_id = uuid.uuid4().hex
        recording = self._recordings / job_id
        # Looked at first as well: to take a recording over may mean to copy it.
        self.refuse_beyond(most_unfinished)
        with self._disk():
            _take_over(upload, recording)
        try:
            with self._changing() as db:
                _refuse_beyond(most_unfinished, db)
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

    def refuse_beyond(self, most_unfinished: int) -> None:
        """Raise `QueueFullError` where `add` would."""
        with self._reading() as db:
            _refuse_beyond(most_unfinished, db)

    def get(self, job_id: str) -> Job | None:
        """Give a job, if there is one."""
        found = self._select("WHERE id = ?", job_id)
        return found[0] if found else None

    def newest(self, owner: str | None, *, limit: int, after: str | None = None) -> list[Job]:
        """List an owner's jobs, newest first; `after` is the last one of the page before."""
        return self._select(
            "WHERE owner IS ? AND (? IS NULL OR number < (SELECT number FROM jobs WHERE id = ?))"
            " ORDER BY number DESC LIMIT ?",
            owner,
            after,
            after,
            limit,
        )

    def queued(self) -> list[Job]:
        """List the jobs that wait, oldest first."""
        return self._select("WHERE status = 'queued' ORDER BY number")

    def recording(self, job: Job) -> Path:
        """Give where a job's recording is while the job is not finished."""
        return self._recordings / job.id

    def result(self, job: Job) -> Rendered | None:
        """Give what a job that succeeded is answered with."""
        with self._reading() as db:
            row = db.execute(
                "SELECT body, media_type, caveats FROM results WHERE job = ?", (job.id,)
            ).fetchone()
        if row is None:
            return None
        return Rendered(row["body"], row["media_type"], caveats_from_json(row["caveats"]))

    def start(self, job: Job) -> Job | None:
        """Note that a queued job runs; give it as it is now, unless it is not queued any more."""
        with self._changing() as db:
            started = db.execute(
                "UPDATE jobs SET status = 'running', started_at = ?"
                " WHERE id = ? AND status = 'queued'",
                (time.time(), job.id),
            )
            row = db.execute("SELECT * FROM jobs WHERE id = ?", (job.id,)).fetchone()
        return _job_from(row) if started.rowcount else None

    def put_back(self, job: Job) -> None:
        """Queue a running job again, in its old place."""
        with self._changing() as db:
            db.execute(
                "UPDATE jobs SET status = 'queued', started_at = NULL"
                " WHERE id = ? AND status = 'running'",
                (job.id,),
            )

    def succeed(self, job: Job, result: Rendered) -> None:
        """Keep a running job's result, unless it was cancelled meanwhile."""
        with self._changing() as db:
            ended = _end(db, job, "succeeded")
            if ended:
                db.execute(
                    "INSERT INTO results (job, media_type, body, caveats) VALUES (?, ?, ?, ?)",
                    (job.id, result.media_type, result.body, caveats_to_json(result.caveats)),
                )
        if ended:
            self._drop_recording(job.id)

    def fail(self, job: Job, failure: Failure) -> None:
        """Note why a running job has no result."""
        with self._changing() as db:
            ended = _end(db, job, "failed")
            if ended:
                db.execute(
                    "UPDATE jobs SET error_status = ?, error_body = ? WHERE id = ?",
                    (failure.status, failure.body, job.id),
                )
        if ended:
            self._drop_recording(job.id)

    def cancel(self, job: Job) -> bool:
        """End a job without a result; tell whether it was unfinished until now."""
        with self._changing() as db:
            cancelled = _end(db, job, "cancelled", also_from="queued")
        if cancelled:
            self._drop_recording(job.id)
        return cancelled

    def remove(self, job: Job) -> None:
        """Forget a finished job and its result."""
        with self._changing() as db:
            db.execute("DELETE FROM jobs WHERE id = ? AND finished_at IS NOT NULL", (job.id,))

    def remove_finished_before(self, moment: float) -> int:
        """Forget the jobs that had ended by then (Unix time, seconds); count them."""
        with self._changing() as db:
            removed = db.execute("DELETE FROM jobs WHERE finished_at < ?", (moment,))
        return removed.rowcount

    def untold(self, *, most_attempts: int) -> list[Job]:
        """List the finished jobs whose webhook is still to be called, oldest first."""
        return self._select(
            "WHERE webhook_url IS NOT NULL AND finished_at IS NOT NULL"
            " AND NOT webhook_delivered AND webhook_attempts < ? ORDER BY finished_at",
            most_attempts,
        )

    def note_call(self, job: Job, *, error: str | None) -> None:
        """Count a call of a job's webhook; without an error it is the last one."""
        with self._changing() as db:
            db.execute(
                "UPDATE jobs SET webhook_attempts = webhook_attempts + 1, webhook_delivered = ?,"
                " webhook_error = ? WHERE id = ?",
                (error is None, error, job.id),
            )

    def _recover(self) -> None:
        """Bring the folder in order after whatever ended the last process."""
        given_up = Failure.of(
            ServerError(
                f"The server ended {_MOST_INTERRUPTIONS} times while it worked on this recording,"
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
                (time.time(), given_up.status, given_up.body, _MOST_INTERRUPTIONS),
            )
        wanted = {job.id for job in self.queued()}
        for file in self._recordings.iterdir():
            if file.name not in wanted:
                file.unlink()

    def _drop_recording(self, job_id: str) -> None:
        # Where it cannot be deleted now, the next start does it.
        with contextlib.suppress(OSError):
            (self._recordings / job_id).unlink(missing_ok=True)

    def _select(self, clause: str, *values: object) -> list[Job]:
        with self._reading() as db:
            # The clauses are constants of this module.
            rows = db.execute(f"SELECT * FROM jobs {clause}", values).fetchall()  # noqa: S608
        return [_job_from(row) for row in rows]

    def _counted(self) -> JobCounts:
        counted = dict(self._db.execute("SELECT status, count(*) FROM jobs GROUP BY status"))
        return JobCounts(queued=counted.get("queued", 0), running=counted.get("running", 0))

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._disk(), self._lock:
            yield self._db

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """Make what the block does one transaction."""
        with self._disk(), self._lock:
            with self._db:
                yield self._db
            self.counts = self._counted()

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Say of every fault of the disk where it was."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            busy = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
            reason = "another server uses it" if busy else str(error)
            raise JobsUnavailableError(
                f"DATA_DIR={str(self._folder)!r} cannot be used for jobs: {reason}."
            ) from error


def _connect(path: Path) -> sqlite3.Connection:
    """Open the database, with the tables of this version; it is locked at once."""
    # Threads take turns by the store's lock. Another process keeps it as long as it runs.
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


def _take_over(upload: Path, target: Path) -> None:
    """Make the upload's content a file of ours, and make sure that it is on the disk."""
    try:
        target.hardlink_to(upload)
    except OSError:
        # Another file system, or one without links.
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


def _refuse_beyond(most_unfinished: int, db: sqlite3.Connection) -> None:
    (unfinished,) = db.execute("SELECT count(*) FROM jobs WHERE finished_at IS NULL").fetchone()
    if unfinished >= most_unfinished:
        raise QueueFullError(
            f"{unfinished} jobs are unfinished, the most this server keeps (MAX_QUEUED_JOBS)."
            " Try again when some are done."
        )


def _end(
    db: sqlite3.Connection, job: Job, status: JobStatus, *, also_from: JobStatus = "running"
) -> bool:
    """Give a running job its last status and progress; tell whether it was running."""
    ended = db.execute(
        "UPDATE jobs SET status = ?, finished_at = ?, done_s = ?, total_s = ?"
        " WHERE id = ? AND status IN ('running', ?)",
        (status, time.time(), job.done_s, job.total_s, job.id, also_from),
    )
    return ended.rowcount == 1


def _job_from(row: sqlite3.Row) -> Job:
    failed, calls = row["error_body"] is not None, row["webhook_url"] is not None
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
        if calls
        else None,
    )
