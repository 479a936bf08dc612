from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from parakeet_api.jobs.recordings import FolderRecordings, Recordings, StoredRecordings


@pytest.fixture(params=["folder", "file", "memory"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Recordings]:
    """Return what opens the storage as another server does."""
    addresses = {
        "file": f"file://{tmp_path}/stored",
        # Stands for S3, which needs a server of its own: shown with this storage of fsspec's alone.
        "memory": f"memory://{tmp_path.name}",
    }
    if request.param == "folder":
        return lambda: FolderRecordings(tmp_path / "folder")
    return lambda: StoredRecordings(addresses[request.param])


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    file = tmp_path / "upload"
    file.write_bytes(b"sound")
    return file


def test_another_server_reads_what_one_has_stored(
    made: Callable[[], Recordings], upload: Path
) -> None:
    made().add(upload, "a")
    upload.unlink()

    with made().local("a") as path:
        assert path.read_bytes() == b"sound"


def test_a_deleted_recording_is_gone_and_may_be_deleted_again(
    made: Callable[[], Recordings], upload: Path
) -> None:
    recordings = made()
    recordings.add(upload, "a")

    recordings.delete("a")
    recordings.delete("a")

    with pytest.raises(FileNotFoundError), recordings.local("a"):
        pass


def test_only_the_recordings_of_unfinished_jobs_are_kept(
    made: Callable[[], Recordings], upload: Path
) -> None:
    recordings = made()
    for job_id in ("a", "b", "half-copied"):
        recordings.add(upload, job_id)

    recordings.delete_except({"b"})

    with recordings.local("b") as path:
        assert path.read_bytes() == b"sound"
    for job_id in ("a", "half-copied"):
        with pytest.raises(FileNotFoundError), recordings.local(job_id):
            pass


def test_a_missing_upload_leaves_nothing(made: Callable[[], Recordings], tmp_path: Path) -> None:
    recordings = made()

    with pytest.raises(FileNotFoundError):
        recordings.add(tmp_path / "nowhere", "a")

    with pytest.raises(FileNotFoundError), recordings.local("a"):
        pass


def test_a_copy_of_a_stored_recording_does_not_stay(tmp_path: Path, upload: Path) -> None:
    recordings = StoredRecordings(f"file://{tmp_path}/stored")
    recordings.add(upload, "a")

    with recordings.local("a") as path:
        copy = path

    assert not copy.exists()


def test_storage_of_an_unknown_kind_is_refused_by_its_address() -> None:
    with pytest.raises(OSError, match="nowhere://bucket"):
        StoredRecordings("nowhere://bucket")
