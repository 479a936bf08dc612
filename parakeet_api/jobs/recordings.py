"""Where the recordings of unfinished jobs are: a folder, or storage that `fsspec` can address."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol


class Recordings(Protocol):
    """Files by the ids of their jobs. Methods raise `OSError` where the storage fails."""

    def add(self, upload: Path, job_id: str) -> None:
        """Store a copy of an upload, or a link to it; on failure nothing is left."""
        ...

    @contextmanager
    def local(self, job_id: str) -> Iterator[Path]:
        """Give a recording as a file of this machine. Raises `FileNotFoundError`."""
        ...

    def delete(self, job_id: str) -> None:
        """Delete a recording, if it is there."""
        ...

    def delete_except(self, job_ids: Set[str]) -> None:
        """Delete all files that are not recordings of these jobs."""
        ...


class FolderRecordings:
    """Recordings in a folder, which several servers may share."""

    def __init__(self, folder: Path) -> None:
        """Create the folder where it is missing; recordings are private."""
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def add(self, upload: Path, job_id: str) -> None:
        """See `Recordings.add`; the file is flushed to disk."""
        _link_or_copy(upload, self._folder / job_id)

    @contextmanager
    def local(self, job_id: str) -> Iterator[Path]:
        """See `Recordings.local`."""
        path = self._folder / job_id
        if not path.is_file():
            raise FileNotFoundError(path)
        yield path

    def delete(self, job_id: str) -> None:
        """See `Recordings.delete`."""
        (self._folder / job_id).unlink(missing_ok=True)

    def delete_except(self, job_ids: Set[str]) -> None:
        """See `Recordings.delete_except`."""
        for file in self._folder.iterdir():
            if file.name not in job_ids:
                file.unlink()


class StoredRecordings:
    """Recordings at an `fsspec` address, such as `s3://bucket/folder`."""

    def __init__(self, address: str) -> None:
        """Raise `OSError` if the address cannot be used, or its package is not installed."""
        import fsspec

        try:
            self._files: Any
            self._files, self._root = fsspec.core.url_to_fs(address)
            self._files.makedirs(self._root, exist_ok=True)
        except (ImportError, ValueError) as error:
            raise OSError(f"{address}: {error}") from error

    def add(self, upload: Path, job_id: str) -> None:
        """See `Recordings.add`."""
        try:
            self._files.put_file(str(upload), self._path(job_id))
        except BaseException:
            with contextlib.suppress(OSError):
                self.delete(job_id)
            raise

    @contextmanager
    def local(self, job_id: str) -> Iterator[Path]:
        """See `Recordings.local`; the copy is deleted when the block ends."""
        with tempfile.TemporaryDirectory(prefix="recording-") as folder:
            copy = Path(folder) / job_id
            self._files.get_file(self._path(job_id), str(copy))
            yield copy

    def delete(self, job_id: str) -> None:
        """See `Recordings.delete`."""
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(job_id))

    def delete_except(self, job_ids: Set[str]) -> None:
        """See `Recordings.delete_except`."""
        for path in self._files.ls(self._root, detail=False):
            name = str(path).rpartition("/")[2]
            if name not in job_ids:
                self.delete(name)

    def _path(self, job_id: str) -> str:
        return f"{self._root}/{job_id}"


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
