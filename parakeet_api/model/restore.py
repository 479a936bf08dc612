"""Restore a NeMo checkpoint: unpack a `.nemo` file and build its network, on the CPU.

NeMo and torch are imported inside functions: that takes seconds and half a gigabyte.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import logging.handlers
import os
import shutil
import tarfile
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parakeet_api.errors import DISK_FULL, CheckpointError
from parakeet_api.model.architecture import Architecture
from parakeet_api.model.checkpoints import WEIGHTS, is_gzip
from parakeet_api.model.deferred_imports import deferred
from parakeet_api.model.family import UnsupportedModelError, describe
from parakeet_api.model.nemo_internals import (
    mend_conditional_nodes,
    mend_kernel_compilation,
    no_random_init,
    without_compiler,
)

_UNPACKED = "parakeet-api-checkpoint-"
"""Prefix of the folders of unpacked checkpoints in TMPDIR."""

_UNUSED_BY_RECOGNITION = ("datasets", "pandas", "sklearn", "transformers")
"""Packages that NeMo and its dependencies import for training and evaluation."""

_importing = threading.Lock()


def restore(path: Path) -> tuple[Any, Architecture]:
    """Return NeMo's model in fp32 on the CPU, and its architecture.

    Raises `CheckpointError`, naming the file, if it is not a complete Parakeet checkpoint;
    `OSError` or `MemoryError` if the disk or the memory is full.
    """
    model = restore_network(path, setting="MODEL_PATH")
    try:
        return model, describe(model.cfg)
    except UnsupportedModelError as error:
        raise CheckpointError(f"{path} holds {error}.") from error


def restore_network(path: Path, *, setting: str) -> Any:
    """Return the model of any class of NeMo, in fp32 on the CPU.

    Raises `CheckpointError`, naming the file and the setting that names another one, if it is not a
    complete checkpoint; `OSError` or `MemoryError` if the disk or the memory is full.
    """
    import_libraries()
    from nemo.collections.asr.models import ASRModel

    from parakeet_api.model.whisper_encoder import connector_for

    try:
        with (
            _folder_to_unpack() as folder,
            no_random_init(),
            warnings.catch_warnings(),
        ):
            weights = _unpack(path, folder)
            # They concern training options of the checkpoint.
            warnings.simplefilter("ignore")
            return ASRModel.restore_from(
                str(path.absolute()),
                map_location="cpu",
                strict=True,
                save_restore_connector=connector_for(folder, path, weights),
            )
    # A damaged archive can fail anywhere in tar, yaml, pickle or NeMo.
    except Exception as error:
        if _is_machine_shortage(error):
            raise
        raise CheckpointError(
            f"{path} cannot be loaded as a NeMo checkpoint"
            f" ({type(error).__name__}: {str(error).strip().splitlines()[0][:200] or 'no reason'})."
            f" Download it again, or name another file in {setting}."
        ) from error


@contextlib.contextmanager
def _folder_to_unpack() -> Iterator[Path]:
    """Create a folder for the block; first remove the folders of processes that were killed.

    Folders of running processes are locked. Of a compressed checkpoint a folder holds the weights.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_UNPACKED}*"):
        with contextlib.suppress(OSError), _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(left)
    with (
        tempfile.TemporaryDirectory(prefix=_UNPACKED) as name,
        _locked(Path(name), fcntl.LOCK_SH),
    ):
        yield Path(name)


@contextlib.contextmanager
def _locked(folder: Path, lock: int) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, lock)
        yield
    finally:
        os.close(descriptor)


def _is_machine_shortage(error: Exception) -> bool:
    """Tell whether an error is a lack of disk or memory rather than a damaged file."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in DISK_FULL | {errno.ENOMEM}
    )


def _unpack(archive: Path, folder: Path) -> tarfile.TarInfo | None:
    """Unpack a `.nemo` file, but for its weights; write nothing outside the folder.

    Return the archive's entry of the weights, to be read in place. A compressed archive has no
    place where they can be read: they are unpacked too, and `None` is returned.
    NeMo's own method needs Python 3.11.4 or newer; Debian 12 has 3.11.2.
    """
    weights = None
    compressed = is_gzip(archive)
    with tarfile.open(archive, "r:gz" if compressed else "r:") as tar:
        for member in tar:
            target = (folder / member.name).resolve()
            if target == folder.resolve() / WEIGHTS and _is_in_one_piece(member) and not compressed:
                weights = member
                continue
            content = tar.extractfile(member) if member.isfile() else None
            if content is None or not target.is_relative_to(folder.resolve()):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file, 1024 * 1024)
    return weights


def _is_in_one_piece(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


def read_ahead(path: Path) -> None:
    """Let the system read a file into its cache in the background, while libraries are imported."""

    def advise() -> None:
        # AttributeError: a system without this call.
        with contextlib.suppress(OSError, AttributeError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    threading.Thread(target=advise, name="read-ahead", daemon=True).start()


def import_libraries() -> None:
    """Import torch and NeMo, which takes some seconds the first time.

    One thread at a time: concurrent imports can see a partly initialised package.
    """
    with _importing:
        _import_nemo_quietly()


def _import_nemo_quietly() -> None:
    """Import NeMo, then undo what it does to this process' logging and warnings."""
    # A telemetry package among its dependencies logs at length that it is disabled.
    logging.getLogger("nv_one_logger").setLevel(logging.ERROR)
    with warnings.catch_warnings(), deferred(*_UNUSED_BY_RECOGNITION), without_compiler():
        warnings.simplefilter("ignore")
        import nemo.collections.asr.models  # noqa: F401
        from nemo.utils import logging as nemo_logging

    mend_kernel_compilation()
    mend_conditional_nodes()
    nemo_logging.captureWarnings(False)
    nemo_logger = logging.getLogger("nemo_logger")
    # It prints the checkpoint's whole configuration as warnings.
    nemo_logger.setLevel(logging.ERROR)
    for handler in list(nemo_logger.handlers):
        # Handlers without a target keep every record for ever.
        if isinstance(handler, logging.handlers.MemoryHandler):
            nemo_logger.removeHandler(handler)
