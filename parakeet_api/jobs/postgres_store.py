"""Jobs of several servers, in PostgreSQL.

A job that a server has started is leased to it. The server renews its leases while it works; once a
lease has expired, another server queues the job again. The clock is the database's.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from parakeet_api.errors import JobsUnavailableError
from parakeet_api.jobs.job import Job
from parakeet_api.jobs.recordings import Recordings
from parakeet_api.jobs.store import (
    PENDING_WEBHOOKS,
    Database,
    JobStore,
    job_from,
    requeue_interrupted,
)
from parakeet_api.settings import without_passwords

_LEASE_S = 20.0
"""A server that has not renewed its leases for so long is taken for dead."""
_CONNECT_S = 5
_STATEMENT_MS = 15_000
_SCHEMA = "parakeet_api"
"""Keeps the tables apart from others of the database."""
_VERSION = 1
"""Version of the tables."""
_NOW = "extract(epoch FROM clock_timestamp())::float8"

_TABLES = f"""
CREATE SCHEMA IF NOT EXISTS {_SCHEMA};
CREATE TABLE IF NOT EXISTS jobs (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT,
    status TEXT NOT NULL,
    params TEXT NOT NULL,
    created_at FLOAT8 NOT NULL,
    started_at FLOAT8,
    finished_at FLOAT8,
    done_s FLOAT8 NOT NULL DEFAULT 0,
    total_s FLOAT8,
    interruptions INTEGER NOT NULL DEFAULT 0,
    error_status INTEGER,
    error_body TEXT,
    webhook_url TEXT,
    webhook_attempts INTEGER NOT NULL DEFAULT 0,
    webhook_delivered INTEGER NOT NULL DEFAULT 0,
    webhook_error TEXT,
    server TEXT,
    leased_until FLOAT8,
    webhook_server TEXT,
    webhook_leased_until FLOAT8
);
CREATE INDEX IF NOT EXISTS jobs_unfinished ON jobs (status) WHERE finished_at IS NULL;
CREATE INDEX IF NOT EXISTS jobs_by_end ON jobs (finished_at);
CREATE INDEX IF NOT EXISTS jobs_to_tell ON jobs (finished_at)
    WHERE webhook_url IS NOT NULL AND webhook_delivered = 0;
CREATE TABLE IF NOT EXISTS results (
    job TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    media_type TEXT NOT NULL,
    body BYTEA NOT NULL,
    caveats TEXT NOT NULL DEFAULT '[]'
);
CREATE TABLE IF NOT EXISTS tables_version (version INTEGER NOT NULL);
INSERT INTO tables_version SELECT {_VERSION} WHERE NOT EXISTS (SELECT 1 FROM tables_version);
"""
"""A result's text is stored as bytes: it may hold the character 0, which TEXT refuses."""


class PostgresJobStore(JobStore):
    """Store the jobs of all servers that use the database."""

    shared = True

    def __init__(self, address: str, recordings: Recordings) -> None:
        """Connect, and create the tables where they are missing.

        `recordings` must be the same for all servers. Raises `JobsUnavailableError` if the database
        cannot be used.
        """
        self._server = uuid.uuid4().hex
        super().__init__(recordings, mine=f"server = '{self._server}'")
        self._address = address
        self._lock = threading.Lock()
        self._connection: Any = None
        with self._transaction() as db:
            self._create_tables(db)
        self.renew(())

    def close(self) -> None:
        """Close the connection; jobs that are still leased are taken over by other servers."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()

    def start(self, job: Job) -> Job | None:
        """See `JobStore.start`; skips a job that another server is starting."""
        with self._changing() as db:
            row = db.execute(
                f"UPDATE jobs SET status = 'running', started_at = {_NOW}, server = ?,"
                f" leased_until = {_NOW} + {_LEASE_S} WHERE id = (SELECT id FROM jobs"
                " WHERE id = ? AND status = 'queued' FOR UPDATE SKIP LOCKED) RETURNING *",
                (self._server, job.id),
            ).fetchone()
        return job_from(row) if row is not None else None

    def pending_webhooks(self, *, max_attempts: int) -> list[Job]:
        """See `JobStore.pending_webhooks`; leases them, so that each is called by one server."""
        with self._transaction() as db:
            rows = db.execute(
                f"UPDATE jobs SET webhook_server = ?, webhook_leased_until = {_NOW} + {_LEASE_S}"
                f" WHERE id IN (SELECT id FROM jobs WHERE {PENDING_WEBHOOKS}"
                " AND (webhook_server = ? OR webhook_server IS NULL"
                f" OR webhook_leased_until < {_NOW}) FOR UPDATE SKIP LOCKED) RETURNING *",
                (self._server, max_attempts, self._server),
            ).fetchall()
        return [job_from(row) for row in sorted(rows, key=lambda row: row["finished_at"])]

    def renew(self, running: Sequence[Job]) -> set[str]:
        """See `JobStore.renew`; also renews webhooks, and frees the jobs of dead servers."""
        with self._changing() as db:
            mine = {job.id for job in running if self._renewed(db, job)}
            db.execute(
                f"UPDATE jobs SET webhook_leased_until = {_NOW} + {_LEASE_S}"
                " WHERE webhook_server = ? AND webhook_delivered = 0",
                (self._server,),
            )
            failed = requeue_interrupted(db, f"leased_until < {_NOW}")
        for job_id in failed:
            self._delete_recording(job_id)
        return mine

    def _renewed(self, db: Database, job: Job) -> bool:
        renewed: int = db.execute(
            f"UPDATE jobs SET leased_until = {_NOW} + {_LEASE_S}, done_s = ?, total_s = ?"
            f" WHERE id = ? AND status = 'running' AND {self._mine}",
            (job.done_s, job.total_s, job.id),
        ).rowcount
        return renewed == 1

    def _stored_body(self, body: str) -> object:
        return body.encode()

    def _create_tables(self, db: Database) -> None:
        # Servers that start together wait for each other.
        db.execute("SELECT pg_advisory_xact_lock(hashtext(?))", (_SCHEMA,))
        for statement in _TABLES.split(";"):
            if statement.strip():
                db.execute(statement)
        version = db.execute("SELECT version FROM tables_version").fetchone()["version"]
        if version != _VERSION:
            raise JobsUnavailableError("DATABASE_URL: its tables were made by another version.")

    @contextmanager
    def _transaction(self) -> Iterator[Database]:
        with self._translated_errors(), self._lock:
            connection = self._connected()
            with connection.transaction():
                yield _Translated(connection)

    def _connected(self) -> Any:
        """Return the connection, a new one where the last was lost; called with the lock held."""
        import psycopg
        from psycopg.rows import dict_row

        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(
                self._address,
                autocommit=True,
                row_factory=dict_row,
                connect_timeout=_CONNECT_S,
                options=f"-c search_path={_SCHEMA} -c statement_timeout={_STATEMENT_MS}",
            )
        return self._connection

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            import psycopg
        except ImportError as error:
            raise JobsUnavailableError(
                "DATABASE_URL needs psycopg: pip install -r requirements-ray.txt"
            ) from error
        try:
            yield
        except (psycopg.Error, OSError) as error:
            reason = without_passwords(str(error).strip().partition("\n")[0])
            raise JobsUnavailableError(
                f"DATABASE_URL cannot be used for jobs: {reason}."
            ) from error


class _Translated:
    """A connection that takes `?` for values, as SQLite does."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def execute(self, statement: str, values: Sequence[object] = (), /) -> Any:
        """See `Database.execute`."""
        return self._connection.execute(statement.replace("?", "%s"), values)
