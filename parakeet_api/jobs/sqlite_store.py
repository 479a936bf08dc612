"""Jobs of one server, in SQLite.

The database is locked while it is open, so a second server cannot process the same jobs.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from parakeet_api.errors import JobsUnavailableError
from parakeet_api.jobs.job import Job
from parakeet_api.jobs.recordings import FolderRecordings, Recordings
from parakeet_api.jobs.store import (
    PENDING_WEBHOOKS,
    JobStore,
    job_from,
    requeue_interrupted,
)

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


class SqliteJobStore(JobStore):
    """Store one server's jobs in a folder."""

    shared = False

    def __init__(self, folder: Path, recordings: Recordings | None = None) -> None:
        """Open or create the store; queue jobs again that ran when the last process ended.

        Recordings are in the folder too, unless told otherwise. Raises `JobsUnavailableError` where
        the folder is unusable or in use by another process.
        """
        self._folder = folder
        self._lock = threading.Lock()
        with self._translated_errors():
            # Recordings and hashes of API keys are private.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            super().__init__(recordings or FolderRecordings(folder / "recordings"))
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

    def start(self, job: Job) -> Job | None:
        """See `JobStore.start`."""
        with self._changing() as db:
            started = db.execute(
                "UPDATE jobs SET status = 'running', started_at = ?"
                " WHERE id = ? AND status = 'queued'",
                (time.time(), job.id),
            )
            row = db.execute("SELECT * FROM jobs WHERE id = ?", (job.id,)).fetchone()
        return job_from(row) if started.rowcount else None

    def pending_webhooks(self, *, max_attempts: int) -> list[Job]:
        """See `JobStore.pending_webhooks`."""
        return self._select(f"WHERE {PENDING_WEBHOOKS} ORDER BY finished_at", max_attempts)

    def renew(self, running: Sequence[Job]) -> set[str]:
        """Give the ids of all of them: progress is in memory, and no other server is there."""
        return {job.id for job in running}

    def _recover(self) -> None:
        """Repair the state that a crash of the last process left behind."""
        with self._changing() as db:
            requeue_interrupted(db, "1 = 1")
        self._recordings.delete_except({job.id for job in self.queued()})

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._translated_errors(), self._lock, self._db:
            yield self._db

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
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
