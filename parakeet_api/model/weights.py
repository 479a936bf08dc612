"""Read a checkpoint's weights straight into the network, without unpacking or copying them.

A `.nemo` file is an archive of a configuration, a tokenizer and the weights, which are nearly all
of it. NeMo unpacks the archive, builds a network, reads the weights, and copies them into it: with
the 0.6B model 2.5 GB on the disk and twice that in memory. Here the network takes the tensors that
were read from inside the archive.

Imports torch and NeMo at module level for base classes: import this module inside functions.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from tarfile import TarInfo
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class FilePart(io.RawIOBase):
    """A range of bytes of an open file, read as a file of its own."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._offset = offset
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """Return true."""
        return True

    def seekable(self) -> bool:
        """Return true."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position, in bytes; return it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read at most a buffer's size into it, without a copy; return the number of bytes."""
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
        count = os.preadv(self._descriptor, [view], self._offset + self._position)
        self._position += count
        return count


class InPlaceConnector(SaveRestoreConnector):  # type: ignore[misc]
    """Restore a checkpoint from a folder without its weights, and those from its archive."""

    def __init__(self, folder: Path, archive: Path, weights: TarInfo | None) -> None:
        """Take the archive's entry of the weights; `None` = they are in the folder too."""
        super().__init__()
        self.model_extracted_dir = str(folder)
        self._archive = archive
        self._weights = weights

    def _load_state_dict_from_disk(self, model_weights: str, map_location: Any = "cpu") -> Any:
        if self._weights is None:
            return torch.load(model_weights, map_location=map_location)
        with self._archive.open("rb", buffering=0) as file:
            part = FilePart(file.fileno(), self._weights.offset_data, self._weights.size)
            return torch.load(cast("IO[bytes]", part), map_location=map_location)

    def load_instance_with_state_dict(self, instance: Any, state_dict: Any, strict: bool) -> None:
        """Make the tensors that were read the network's own, in fp32."""
        for name, value in state_dict.items():
            if value.is_floating_point():
                state_dict[name] = value.float()
        instance.load_state_dict(state_dict, strict=strict, assign=True)
        # NeMo keeps it in a reference cycle, and with it every tensor that is replaced by a cast.
        state_dict.clear()
        super().load_instance_with_state_dict(instance, state_dict, strict=False)
