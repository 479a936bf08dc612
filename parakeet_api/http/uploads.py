"""Create, lock and delete the files of uploads."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
from functools import partial
from pathlib import Path
from typing import IO

from parakeet_api.errors import SettingsError

logger = logging.getLogger(__name__)

_PREFIX = "upload-"
_OWNERS_ALONE = partial(os.open, mode=0o600)


def prepare_uploads(folder: Path) -> None:
    """Make the folder. Raises `SettingsError` where it cannot be made or written to."""
    refusal = f"TEMP_UPLOADS_DIR={str(folder)!r} is not a folder that can be written to"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{refusal}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(refusal)


def create_upload(folder: Path) -> IO[bytes]:
    """Create a file with a unique name, locked by this process until it is closed."""
    # Not with tempfile, which wraps each method of a file: slow for clips.
    path = folder / f"{_PREFIX}{secrets.token_hex(8)}"
    upload = open(path, "x+b", opener=_OWNERS_ALONE)  # noqa: SIM115 - Path knows no opener
    fcntl.flock(upload, fcntl.LOCK_SH)
    return upload


def hold_upload(path: Path) -> IO[bytes]:
    """Open and lock an upload again, so that it stays locked when the first handle is closed."""
    upload = path.open("rb")
    fcntl.flock(upload, fcntl.LOCK_SH)
    return upload


def sweep_uploads(folder: Path) -> None:
    """Delete the uploads of processes that have ended; those of running ones are locked."""
    for path in folder.glob(f"{_PREFIX}*"):
        try:
            with path.open("rb") as upload:
                fcntl.flock(upload, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                logger.info("deleted %s: left by a process that was killed", path)
        except FileNotFoundError:
            # Another process has deleted it.
            continue
        except OSError as error:
            logger.debug("%s stays: %s", path, error)
