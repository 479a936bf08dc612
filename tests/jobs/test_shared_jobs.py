"""Two servers with one database: what one accepts is the other's as well."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Clip, Server, running_server, wait_until
from http_helpers import is_idle, request
from in_process import Served, served
from postgres import needs_postgres, new_database, postgres

pytestmark = [pytest.mark.integration, needs_postgres]

JOBS = "/v1/jobs"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return the settings that both servers have."""
    folder = tmp_path_factory.mktemp("shared")
    with postgres() as address:
        yield {
            "DATABASE_URL": new_database(address),
            "JOBS_STORAGE": f"file://{folder}/recordings",
            "DATA_DIR": str(folder / "data"),
            "DEMO_MODEL": "grammar",
        }


@pytest.fixture(scope="module")
def first(shared: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own process, which takes the jobs as long as it is alone."""
    with running_server(tmp_path_factory.mktemp("first"), **shared) as started:
        yield started


@pytest.fixture
def second(shared: dict[str, str], tmp_path: Path, first: Server) -> Iterator[Served]:
    with served(tmp_path, **shared) as started:
        yield started


def submit(server: Server, recording: Path) -> str:
    with recording.open("rb") as file:
        answer = request(server, "POST", JOBS, files={"file": file})
    assert answer.status_code == 202, answer.text
    return str(answer.headers["location"])


def job(server: Server, path: str) -> dict[str, Any]:
    found: dict[str, Any] = request(server, "GET", path).json()
    return found


def is_under_way(server: Server, path: str) -> bool:
    return bool(job(server, path)["progress"]["done_s"])


@pytest.fixture
def under_way(first: Server, hour: Path) -> str:
    """Submit a job to the first server, and wait until it works on it, alone."""
    path = submit(first, hour)
    wait_until(lambda: is_under_way(first, path), what="the first server works on the job")
    return path


def test_recordings_are_in_the_shared_storage(
    shared: dict[str, str], first: Server, under_way: str
) -> None:
    folder = Path(shared["JOBS_STORAGE"].removeprefix("file://"))

    assert [file.name for file in folder.iterdir()] == [under_way.rpartition("/")[2]]
    request(first, "DELETE", under_way)
    assert list(folder.iterdir()) == []


def test_a_job_is_seen_and_cancelled_by_the_other_server(
    first: Server, under_way: str, second: Served
) -> None:
    wait_until(lambda: is_under_way(second.server, under_way), what="its progress is seen")
    assert job(second.server, JOBS)["data"][0]["id"] in under_way

    assert request(second.server, "DELETE", under_way).json()["status"] == "cancelled"

    assert job(first, under_way)["status"] == "cancelled"
    wait_until(lambda: is_idle(first), what="the first server stops the job")


def test_the_other_server_finishes_the_job_of_one_that_is_killed(
    first: Server, clips: list[Clip], under_way: str, second: Served
) -> None:
    waiting = submit(second.server, clips[0].path)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()

    wait_until(lambda: job(second.server, waiting)["status"] == "succeeded", what="another job")
    wait_until(lambda: job(second.server, under_way)["status"] == "succeeded", what="its job")
    assert job(second.server, waiting)["result"]["text"] == clips[0].text
    assert job(second.server, under_way)["progress"]["done_s"] > 3500
