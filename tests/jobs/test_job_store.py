from __future__ import annotations

import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from postgres import needs_postgres, new_database, postgres

from parakeet_api.errors import AudioDecodeError, JobsUnavailableError, QueueFullError
from parakeet_api.formats.rendering import Rendered
from parakeet_api.formats.request_params import TranscriptionParams
from parakeet_api.jobs.job import Failure, Job
from parakeet_api.jobs.postgres_store import PostgresJobStore
from parakeet_api.jobs.recordings import FolderRecordings
from parakeet_api.jobs.sqlite_store import SqliteJobStore
from parakeet_api.jobs.store import JobStore
from parakeet_api.transcript import Caveat

PARAMS = TranscriptionParams(
    response_format="verbose_json", granularities=frozenset({"word", "segment"})
)
RESULT = Rendered('{"text": "Ünïcode \u0000 \U0001f3a4"}', "application/json")
FAILURE = Failure.of(AudioDecodeError("The file holds no sound."))


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    file = tmp_path / "upload"
    file.write_bytes(b"sound")
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "nested" / "data"


@pytest.fixture(scope="module")
def database_server() -> Iterator[str]:
    with postgres() as address:
        yield address


class Place:
    """Where a server's jobs are, in SQLite."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened: list[JobStore] = []

    def open(self) -> JobStore:
        """Open the store as the next process does, after the end of the last one."""
        self.opened.append(SqliteJobStore(self.folder))
        return self.opened[-1]

    def close(self) -> None:
        for store in self.opened:
            store.close()


class SharedPlace(Place):
    """Where several servers' jobs are, in PostgreSQL."""

    def __init__(self, folder: Path, address: str) -> None:
        super().__init__(folder)
        self.address = address

    def open(self) -> JobStore:
        store = self.join()
        # The leases of the servers that have ended expire.
        with store._transaction() as db:
            db.execute("UPDATE jobs SET leased_until = 0")
        store.renew(())
        return store

    def join(self) -> PostgresJobStore:
        """Open the store as one more server."""
        recordings = FolderRecordings(self.folder / "recordings")
        store = PostgresJobStore(self.address, recordings)
        self.opened.append(store)
        return store


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=needs_postgres)])
def place(request: pytest.FixtureRequest, folder: Path) -> Iterator[Place]:
    made = (
        Place(folder)
        if request.param == "sqlite"
        else SharedPlace(folder, new_database(request.getfixturevalue("database_server")))
    )
    yield made
    made.close()


@pytest.fixture
def store(place: Place) -> JobStore:
    return place.open()


@pytest.fixture
def sqlite_store(folder: Path) -> Iterator[SqliteJobStore]:
    opened = SqliteJobStore(folder)
    yield opened
    opened.close()


def add(store: JobStore, upload: Path, *, owner: str | None = None, webhook: str = "") -> Job:
    return store.add(upload, PARAMS, owner=owner, webhook_url=webhook or None, max_unfinished=1000)


def start(store: JobStore, job: Job) -> Job:
    started = store.start(job)
    assert started is not None
    return started


def read(store: JobStore, job: Job) -> Job:
    found = store.get(job.id)
    assert found is not None
    return found


def sound(store: JobStore, job: Job) -> bytes:
    with store.recording(job) as path:
        return path.read_bytes()


def recordings(folder: Path) -> set[str]:
    return {file.name for file in (folder / "recordings").iterdir()}


def test_a_job_has_the_requested_parameters(store: JobStore, upload: Path) -> None:
    job = add(store, upload, owner="hash", webhook="https://example.org/x")

    assert read(store, job) == job
    assert (job.status, job.params, job.owner) == ("queued", PARAMS, "hash")
    assert job.webhook is not None
    assert job.webhook.url == "https://example.org/x"
    assert sound(store, job) == b"sound"


def test_the_caller_owns_the_upload_and_the_store_the_recording(
    store: JobStore, upload: Path
) -> None:
    job = add(store, upload)
    upload.unlink()

    assert sound(store, job) == b"sound"


def test_a_recording_is_copied_from_another_file_system(store: JobStore, upload: Path) -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as elsewhere:
        elsewhere.write(b"from memory")
        elsewhere.flush()
        job = add(store, Path(elsewhere.name))

    assert sound(store, job) == b"from memory"


def test_a_missing_upload_leaves_nothing(store: JobStore, folder: Path) -> None:
    with pytest.raises(JobsUnavailableError, match="cannot be used for jobs"):
        add(store, folder / "nowhere")

    assert recordings(folder) == set()
    assert store.newest(None, limit=10) == []


def test_a_job_that_is_committed_is_accepted_although_it_cannot_be_counted(
    store: JobStore, upload: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: JobStore) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(JobStore, "_count", fail)

    job = add(store, upload)

    assert recordings(folder) == {job.id}
    assert read(store, job).status == "queued"


def test_a_job_beyond_the_limit_is_refused_and_leaves_nothing(
    store: JobStore, folder: Path, upload: Path
) -> None:
    first = add(store, upload)

    with pytest.raises(QueueFullError, match="MAX_QUEUED_JOBS"):
        store.add(upload, PARAMS, owner=None, webhook_url=None, max_unfinished=1)

    assert recordings(folder) == {first.id}
    store.cancel(first)
    store.add(upload, PARAMS, owner=None, webhook_url=None, max_unfinished=1)


def test_only_one_of_many_threads_starts_a_job(store: JobStore, upload: Path) -> None:
    job = add(store, upload)
    started: list[Job | None] = []
    threads = [threading.Thread(target=lambda: started.append(store.start(job))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len([job for job in started if job]) == 1


def test_a_result_is_stored_exactly_and_the_recording_deleted(
    store: JobStore, folder: Path, upload: Path
) -> None:
    job = start(store, add(store, upload))

    store.succeed(job, RESULT)

    assert read(store, job).status == "succeeded"
    assert read(store, job).result == RESULT
    assert recordings(folder) == set()


def test_a_job_that_was_cancelled_while_it_ran_gets_no_result(
    store: JobStore, upload: Path
) -> None:
    job = start(store, add(store, upload))
    assert store.cancel(job)

    store.succeed(job, RESULT)
    store.fail(job, FAILURE)
    store.requeue(job)

    assert read(store, job).status == "cancelled"
    assert read(store, job).failure is None
    assert read(store, job).result is None


def test_pages_of_a_list_have_each_job_once_newest_first(store: JobStore, upload: Path) -> None:
    jobs = [add(store, upload, owner="mine") for _ in range(5)]
    add(store, upload, owner="another's")
    add(store, upload)

    first = store.newest("mine", limit=3)
    second = store.newest("mine", limit=3, after=first[-1].id)

    assert [job.id for job in first + second] == [job.id for job in reversed(jobs)]
    assert store.newest("mine", limit=3, after="no such job") == []


def test_removing_keeps_unfinished_jobs(store: JobStore, place: Place, upload: Path) -> None:
    waiting, done = add(store, upload), start(store, add(store, upload))
    store.succeed(done, RESULT)
    ended = read(store, done).finished_at
    assert ended is not None

    assert store.remove_finished_before(ended) == 0
    assert store.remove_finished_before(ended + 1) == 1
    store.remove(waiting)
    store.close()

    assert [job.id for job in place.open().newest(None, limit=9)] == [waiting.id]


def test_removing_frees_the_space(sqlite_store: SqliteJobStore, folder: Path, upload: Path) -> None:
    done = start(sqlite_store, add(sqlite_store, upload))
    sqlite_store.succeed(done, Rendered("x" * 3_000_000, "text/plain"))

    sqlite_store.remove(done)
    sqlite_store.close()

    assert (folder / "jobs.sqlite3").stat().st_size < 200_000


def test_a_job_that_ran_when_the_process_crashed_is_queued_again_at_its_position(
    store: JobStore, place: Place, upload: Path
) -> None:
    first, second = add(store, upload), add(store, upload)
    start(store, first)
    store.close()

    queued = place.open().queued()

    assert [job.id for job in queued] == [first.id, second.id]
    assert [job.interruptions for job in queued] == [1, 0]


def test_a_job_that_ends_the_process_three_times_fails(
    store: JobStore, place: Place, upload: Path
) -> None:
    job = add(store, upload)
    for _ in range(3):
        assert start(store, job).status == "running"
        store.close()
        store = place.open()

    failed = read(store, job)
    assert failed.status == "failed"
    assert failed.failure is not None
    assert failed.failure.status == 500
    assert "ended 3 times" in failed.failure.body
    assert recordings(place.folder) == set()


def test_a_requeued_job_does_not_count_as_interrupted(
    store: JobStore, place: Place, upload: Path
) -> None:
    job = start(store, add(store, upload))
    store.requeue(job)
    store.close()

    assert place.open().queued()[0].interruptions == 0


def test_files_that_belong_to_no_unfinished_job_are_swept(
    sqlite_store: SqliteJobStore, folder: Path, upload: Path
) -> None:
    unfinished = add(sqlite_store, upload)
    (folder / "recordings" / "half-copied").write_bytes(b"x")
    sqlite_store.close()

    SqliteJobStore(folder)

    assert recordings(folder) == {unfinished.id}


def test_a_folder_in_use_is_refused_until_it_is_free(
    sqlite_store: SqliteJobStore, folder: Path
) -> None:
    with pytest.raises(JobsUnavailableError, match="another server uses it"):
        SqliteJobStore(folder)
    sqlite_store.close()

    SqliteJobStore(folder).close()


@pytest.mark.parametrize("content", [b"not a database, but a text of some length " * 100])
def test_a_file_that_is_no_database_is_refused_by_name(folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "jobs.sqlite3").write_bytes(content)

    with pytest.raises(JobsUnavailableError, match=r"DATA_DIR=.*not a database"):
        SqliteJobStore(folder)

    assert (folder / "jobs.sqlite3").read_bytes() == content


def test_a_database_of_a_later_version_is_left_alone(
    sqlite_store: SqliteJobStore, folder: Path
) -> None:
    sqlite_store.close()
    with sqlite3.connect(folder / "jobs.sqlite3") as database:
        database.execute("PRAGMA user_version = 2")
    database.close()

    with pytest.raises(JobsUnavailableError, match="another version"):
        SqliteJobStore(folder)


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(JobsUnavailableError, match="DATA_DIR="):
        SqliteJobStore(tmp_path / "file" / "data")


def test_a_full_disk_changes_nothing_and_the_same_change_works_later(
    sqlite_store: SqliteJobStore, upload: Path
) -> None:
    job = start(sqlite_store, add(sqlite_store, upload))
    large = Rendered("x" * 5_000_000, "text/plain")
    (pages,) = sqlite_store._db.execute("PRAGMA page_count").fetchone()
    sqlite_store._db.execute(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(JobsUnavailableError, match="full"):
        sqlite_store.succeed(job, large)
    assert read(sqlite_store, job).status == "running"
    assert sound(sqlite_store, job) == b"sound"

    sqlite_store._db.execute("PRAGMA max_page_count = 100000")
    sqlite_store.succeed(job, large)
    assert read(sqlite_store, job).result == large


def test_parameters_of_an_older_version_have_their_defaults(store: JobStore, upload: Path) -> None:
    job = add(store, upload)
    with store._transaction() as database:
        database.execute("UPDATE jobs SET params = ?", ('{"response_format": "srt"}',))

    assert read(store, job).params == TranscriptionParams(response_format="srt")


class Life(RuleBasedStateMachine):
    """After any changes and restarts, the store has every confirmed change and no stray file."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name) / "data"
        self.upload = Path(self.temporary.name) / "upload"
        self.upload.write_bytes(b"sound")
        self.place = self.made_place()
        self.store = self.place.open()
        self.status: dict[str, str] = {}
        self.interruptions: dict[str, int] = {}

    def made_place(self) -> Place:
        return Place(self.folder)

    def teardown(self) -> None:
        self.place.close()
        self.temporary.cleanup()

    @rule(target=jobs)
    def add(self) -> Job:
        job = add(self.store, self.upload)
        self.status[job.id], self.interruptions[job.id] = "queued", 0
        return job

    @rule(job=jobs)
    def start(self, job: Job) -> None:
        started = self.store.start(job)
        assert (started is not None) == (self.status.get(job.id) == "queued")
        if started is not None:
            self.status[job.id] = "running"

    @rule(job=jobs, outcome=st.sampled_from(["succeeded", "failed", "queued"]))
    def end(self, job: Job, outcome: str) -> None:
        if outcome == "succeeded":
            self.store.succeed(job, RESULT)
        elif outcome == "failed":
            self.store.fail(job, FAILURE)
        else:
            self.store.requeue(job)
        if self.status.get(job.id) == "running":
            self.status[job.id] = outcome

    @rule(job=jobs)
    def cancel(self, job: Job) -> None:
        unfinished = self.status.get(job.id) in ("queued", "running")
        assert self.store.cancel(job) == unfinished
        if unfinished:
            self.status[job.id] = "cancelled"

    @rule(job=consumes(jobs))
    @precondition(lambda self: self.status)
    def remove(self, job: Job) -> None:
        self.store.remove(job)
        if self.status.get(job.id) not in ("queued", "running"):
            self.status.pop(job.id, None)

    @rule()
    def die_and_start_again(self) -> None:
        self.store.close()
        self.store = self.place.open()
        for job_id, status in self.status.items():
            if status == "running":
                self.interruptions[job_id] += 1
                given_up = self.interruptions[job_id] == 3
                self.status[job_id] = "failed" if given_up else "queued"

    @invariant()
    def what_was_told_is_found(self) -> None:
        found = {job.id: job for job in self.store.newest(None, limit=1000)}
        unfinished = {key for key, value in self.status.items() if value in ("queued", "running")}
        assert {job.id: job.status for job in found.values()} == self.status
        assert {job.id for job in found.values() if not job.finished} == unfinished
        assert recordings(self.folder) == unfinished
        assert self.store.counts.queued + self.store.counts.running == len(unfinished)
        for job in found.values():
            assert job.result is None
            result = RESULT if job.status == "succeeded" else None
            assert self.store.get(job.id) == replace(job, result=result)
            assert (job.failure is not None) == (job.status == "failed")
            assert (job.finished_at is not None) == job.finished


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@needs_postgres
def test_jobs_of_several_servers_live_as_those_of_one(database_server: str) -> None:
    class SharedLife(Life):
        def made_place(self) -> Place:
            return SharedPlace(self.folder, new_database(database_server))

    run_state_machine_as_test(
        SharedLife,
        settings=settings(
            max_examples=8,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_a_results_warnings_are_kept(store: JobStore, upload: Path) -> None:
    caveats = (Caveat("truncated_audio", "The file is cut short.", 3.5), Caveat("other", "Else."))
    job = start(store, add(store, upload))

    store.succeed(job, replace(RESULT, caveats=caveats))

    assert read(store, job).result == replace(RESULT, caveats=caveats)


def test_tables_without_warnings_are_read_and_written(folder: Path, upload: Path) -> None:
    before = SqliteJobStore(folder)
    done = start(before, add(before, upload))
    before.succeed(done, RESULT)
    before.close()
    file = folder / "jobs.sqlite3"
    with sqlite3.connect(file) as db:
        db.execute("ALTER TABLE results DROP COLUMN caveats")
    db.close()

    store = SqliteJobStore(folder)
    upload.write_bytes(b"sound")
    job = start(store, add(store, upload))
    store.succeed(job, RESULT)

    assert read(store, done).result == read(store, job).result == RESULT
    store.close()


@pytest.fixture
def shared(database_server: str, folder: Path) -> Iterator[SharedPlace]:
    made = SharedPlace(folder, new_database(database_server))
    yield made
    made.close()


@needs_postgres
class TestSeveralServers:
    """What holds for servers that use one database."""

    def test_a_job_is_seen_and_cancelled_by_another_server(
        self, shared: SharedPlace, upload: Path
    ) -> None:
        here, there = shared.join(), shared.join()
        job = start(here, add(here, upload))

        assert read(there, job).status == "running"
        assert there.cancel(read(there, job))

        assert here.renew([job]) == set()
        here.succeed(job, RESULT)
        assert read(there, job).status == "cancelled"

    def test_progress_is_seen_by_another_server(self, shared: SharedPlace, upload: Path) -> None:
        here, there = shared.join(), shared.join()
        job = start(here, add(here, upload))

        assert here.renew([replace(job, done_s=12.5, total_s=60.0)]) == {job.id}

        assert (read(there, job).done_s, read(there, job).total_s) == (12.5, 60.0)

    def test_each_job_is_started_by_one_of_many_servers(
        self, shared: SharedPlace, upload: Path
    ) -> None:
        stores = [shared.join() for _ in range(4)]
        jobs = [add(stores[0], upload) for _ in range(12)]
        started: list[str] = []

        def work(store: JobStore) -> None:
            started.extend(job.id for job in jobs if store.start(job) is not None)

        threads = [threading.Thread(target=work, args=(store,)) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(started) == sorted(job.id for job in jobs)

    def test_a_job_whose_server_ended_is_taken_over_and_no_longer_its_own(
        self, shared: SharedPlace, upload: Path
    ) -> None:
        dead = shared.join()
        job = start(dead, add(dead, upload))

        other = shared.open()
        taken = start(other, job)
        dead.succeed(job, RESULT)
        dead.fail(job, FAILURE)
        dead.requeue(job)

        assert taken.interruptions == 1
        assert read(other, job).status == "running"
        assert dead.renew([job]) == set()
        other.succeed(taken, RESULT)
        assert read(other, job).result == RESULT

    def test_a_job_of_a_living_server_is_not_taken_over(
        self, shared: SharedPlace, upload: Path
    ) -> None:
        here, there = shared.join(), shared.join()
        job = start(here, add(here, upload))

        there.renew(())

        assert there.start(job) is None
        assert here.renew([job]) == {job.id}

    def test_a_webhook_is_called_by_one_server_and_by_another_after_its_end(
        self, shared: SharedPlace, upload: Path
    ) -> None:
        here, there = shared.join(), shared.join()
        job = start(here, add(here, upload, webhook="http://example.org/"))
        here.succeed(job, RESULT)

        assert [each.id for each in here.pending_webhooks(max_attempts=6)] == [job.id]
        assert there.pending_webhooks(max_attempts=6) == []
        with there._transaction() as db:
            db.execute("UPDATE jobs SET webhook_leased_until = 0")
        assert [each.id for each in there.pending_webhooks(max_attempts=6)] == [job.id]

    def test_a_lost_connection_is_reported_and_made_again(
        self, shared: SharedPlace, upload: Path
    ) -> None:
        store = shared.join()
        job = add(store, upload)
        store._connection.close()
        assert read(store, job) == job
        with shared.join()._transaction() as db:
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

        with pytest.raises(JobsUnavailableError, match="DATABASE_URL"):
            store.get(job.id)

        assert read(store, job) == job

    def test_a_database_that_is_away_is_reported_without_its_password(self, folder: Path) -> None:
        address = "postgresql://someone:secret@127.0.0.1:9/jobs"

        with pytest.raises(JobsUnavailableError, match="DATABASE_URL") as caught:
            PostgresJobStore(address, FolderRecordings(folder / "recordings"))

        assert "secret" not in str(caught.value)
