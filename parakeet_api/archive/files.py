"""The files of an archive: recordings to read, transcripts to write."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parakeet_api.errors import SettingsError


class Files:
    """A folder of this machine, or another `fsspec` address such as `s3://bucket/folder`.

    Files are named by their path below it, with `/`. Methods raise `OSError`.
    """

    def __init__(self, address: str) -> None:
        """Raise `SettingsError` for an address that cannot be used."""
        import fsspec

        self.address = address
        try:
            self._system: Any
            self._system, root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise SettingsError(f"{address}: {error}") from error
        self._root = root.rstrip("/")
        self.is_local = "file" in _protocols(self._system)

    def exists(self) -> bool:
        """Tell whether there is such a folder."""
        return bool(self._system.isdir(self._root))

    def names(self) -> list[str]:
        """List all files below the folder, sorted, without hidden ones."""
        found = (str(path)[len(self._root) + 1 :] for path in self._system.find(self._root))
        return sorted(name for name in found if not _is_hidden(name))

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """Give a file of this machine with the content; a copy is deleted when the block ends."""
        if self.is_local:
            yield Path(self._path(name))
            return
        with tempfile.TemporaryDirectory(prefix="archive-") as folder:
            copy = Path(folder) / Path(name).name
            self._system.get_file(self._path(name), str(copy))
            yield copy

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        content: bytes = self._system.cat_file(self._path(name))
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file that is seen complete or not at all."""
        path = self._path(name)
        if not self.is_local:
            # Object stores show an object once it is complete.
            self._system.pipe_file(path, content)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{uuid.uuid4().hex}.part")
        try:
            part.write_bytes(content)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _protocols(system: Any) -> tuple[str, ...]:
    protocol = system.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
