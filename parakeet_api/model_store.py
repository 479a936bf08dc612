"""Which checkpoint: a path, one in the models folder, a download, or the bundled demo model."""

from __future__ import annotations

import logging
import tarfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from parakeet_api.errors import CheckpointError, ModelLoadError, ModelNotReadyError
from parakeet_api.settings import Settings

logger = logging.getLogger(__name__)

StoreState = Literal["choosing", "downloading", "ready", "failed"]

DEMO_MODEL = "parakeet-tdt-demo-en.nemo"
_FIRST_CHOICE = "parakeet-tdt-0.6b-v2.nemo"
_PROBE_TIMEOUT_S = 12.0
"""Without a network the choice falls on the demo model within 15 s of the start."""
_RETRY_AFTER_S = 30.0
"""A failed download is tried again by the first request after so long."""
_LOG_STEP = 0.05
"""The download's progress is logged every 5 %."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A `.nemo` file that was looked at and found whole."""

    path: Path
    is_demo: bool

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(".nemo")


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """Where the choice stands."""

    state: StoreState
    checkpoint: Checkpoint | None = None
    progress: float | None = None
    """Share of the download, 0 to 1, where its size is known."""
    error: str | None = None


class ModelStore:
    """Choose a checkpoint, downloading one in the background where none is at hand."""

    def __init__(
        self,
        settings: Settings,
        *,
        demo_path: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._demo_path = demo_path
        self._clock = clock
        self._lock = threading.Lock()
        self._failed_at = 0.0
        self._decided = threading.Event()
        self.status = StoreStatus("choosing")
        """Replaced as a whole, so it may be read at any time."""

    def start(self) -> None:
        """Choose from what is on disk, or begin a download.

        Raises `CheckpointError` if the file that was chosen is missing or no whole checkpoint.
        """
        local = find_checkpoint(self._settings, self._demo_path)
        if local is not None:
            self._settle(local)
        else:
            self._begin_download()

    def checkpoint(self) -> Checkpoint:
        """Give the chosen checkpoint.

        Raises `ModelNotReadyError` during the download, `ModelLoadError` if it failed; after a
        while that begins it anew.
        """
        status = self.status
        if status.checkpoint is not None:
            return status.checkpoint
        if status.state == "failed":
            self._retry_download()
            raise ModelLoadError(f"There is no model: {status.error}")
        done = f": {status.progress:.0%} done" if status.progress is not None else ""
        raise ModelNotReadyError(
            f"The model {self._settings.model_id} is being downloaded{done}. Try again later."
        )

    def wait_until_decided(self, timeout_s: float | None = None) -> bool:
        """Wait for a checkpoint or a failure; tell whether there is one or the other."""
        return self._decided.wait(timeout_s)

    def _settle(self, checkpoint: Checkpoint) -> None:
        self.status = StoreStatus("ready", checkpoint=checkpoint)
        self._decided.set()
        if checkpoint.is_demo:
            logger.warning(
                "DEMO MODEL in use: it understands a few hundred example sentences and nothing"
                " else. Put a Parakeet-TDT .nemo file into %s, or set MODEL_PATH, for real use.",
                self._settings.models_dir,
            )
        else:
            logger.info("model: %s", checkpoint.path)

    def _begin_download(self) -> None:
        self.status = StoreStatus("choosing")
        self._decided.clear()
        threading.Thread(target=self._download, name="model-download", daemon=True).start()

    def _retry_download(self) -> None:
        with self._lock:
            if self.status.state == "failed" and self._clock() - self._failed_at > _RETRY_AFTER_S:
                self._begin_download()

    def _download(self) -> None:
        settings = self._settings
        try:
            path = download_checkpoint(settings, report=self._report)
            check_checkpoint(path)
        # The hub's client raises errors of many libraries; none may end the thread unseen.
        except Exception as error:
            self._give_up(f"{settings.model_id} could not be downloaded: {_first_line(error)}")
            return
        self._settle(Checkpoint(path, is_demo=False))

    def _give_up(self, reason: str) -> None:
        if self._settings.demo_model == "auto":
            logger.warning("%s", reason)
            self._settle(Checkpoint(self._demo_path, is_demo=True))
            return
        logger.error("%s", reason)
        self._failed_at = self._clock()
        self.status = StoreStatus("failed", error=reason)
        self._decided.set()

    def _report(self, done: int, total: int | None) -> None:
        """Note the download's progress, in bytes."""
        before = self.status.progress or 0.0
        progress = done / total if total else None
        self.status = StoreStatus("downloading", progress=progress)
        if progress is not None and int(progress / _LOG_STEP) > int(before / _LOG_STEP):
            logger.info(
                "downloading %s: %.0f %% of %.0f MB",
                self._settings.model_id,
                100 * progress,
                (total or 0) / 1e6,
            )


def find_checkpoint(settings: Settings, demo_path: Path) -> Checkpoint | None:
    """Look on the disk: `MODEL_PATH`, the demo model if it is forced, then the models folder.

    In the folder the file named like `MODEL_ID` comes first, then parakeet-tdt-0.6b-v2, then the
    others by name; the demo model is never taken from there. Raises `CheckpointError` if the
    chosen one is missing or not whole: another model in its place would be a silent surprise.
    """
    if settings.model_path is not None:
        check_checkpoint(settings.model_path)
        return Checkpoint(settings.model_path, is_demo=settings.model_path.name == DEMO_MODEL)
    if settings.demo_model == "always":
        return Checkpoint(demo_path, is_demo=True)
    preferred = (f"{_basename(settings.model_id)}.nemo", _FIRST_CHOICE)
    found = sorted(
        (path for path in settings.models_dir.glob("*.nemo") if path.name != DEMO_MODEL),
        key=lambda path: (
            preferred.index(path.name) if path.name in preferred else len(preferred),
            path.name,
        ),
    )
    if not found:
        return None
    if found[0].name != preferred[0] and settings.origins.get("model_id") == "environment":
        logger.warning("MODEL_ID=%r is not on disk: using %s", settings.model_id, found[0])
    check_checkpoint(found[0])
    return Checkpoint(found[0], is_demo=False)


def check_checkpoint(path: Path) -> None:
    """See that a file is a whole NeMo archive, without unpacking it.

    Raises `CheckpointError`, naming the file and what to do.
    """
    advice = "Download it again, or name another file in MODEL_PATH."
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is no file. {advice}")
    try:
        with tarfile.open(path) as archive:
            members = {PurePosixPath(member.name).name: member for member in archive.getmembers()}
            last = max((member.offset_data + member.size for member in members.values()), default=0)
        cut_short = tarfile.is_tarfile(path) and _is_plain_tar(path) and path.stat().st_size < last
    except (tarfile.TarError, OSError, EOFError) as error:
        raise CheckpointError(f"{path} is not a readable .nemo file ({error}). {advice}") from error
    if cut_short:
        raise CheckpointError(f"{path} is cut short. {advice}")
    if "model_config.yaml" not in members or "model_weights.ckpt" not in members:
        raise CheckpointError(f"{path} is an archive, but not of a NeMo model. {advice}")


def download_checkpoint(settings: Settings, *, report: Callable[[int, int | None], None]) -> Path:
    """Fetch `MODEL_ID`'s `.nemo` file into the models folder, or from the hub's cache.

    Where the folder is read-only, as in many compose files, it goes to the hub's own cache.
    Raises what the hub's client raises, or `TimeoutError` if the hub does not answer.
    """
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    name = f"{_basename(settings.model_id)}.nemo"
    cached = try_to_load_from_cache(settings.model_id, name)
    if isinstance(cached, str):
        return Path(cached)
    api = HfApi(endpoint=settings.hf_endpoint.rstrip("/"))
    revision = _within(_PROBE_TIMEOUT_S, lambda: api.model_info(settings.model_id, timeout=10).sha)
    logger.info("downloading %s from %s", settings.model_id, settings.hf_endpoint)
    report(0, None)
    return Path(
        hf_hub_download(
            settings.model_id,
            name,
            revision=revision,
            local_dir=settings.models_dir if _is_writable(settings.models_dir) else None,
            endpoint=settings.hf_endpoint.rstrip("/"),
            tqdm_class=_progress_bar(report),
        )
    )


def _within(timeout_s: float, ask: Callable[[], Any]) -> Any:
    """Ask in a thread of its own: the hub's client retries and may wait far longer than told."""
    answer: Future[Any] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        # Whatever it is, it is raised again where the answer is awaited.
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="hub-probe", daemon=True).start()
    try:
        return answer.result(timeout_s)
    except TimeoutError as error:
        raise TimeoutError(f"no answer from the model hub within {timeout_s:g} s") from error


def _progress_bar(report: Callable[[int, int | None], None]) -> Any:
    """Make the hub's progress bar report instead of drawing."""
    from huggingface_hub.utils import tqdm

    class ReportingBar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **(kwargs | {"disable": True}))
            self.total = kwargs.get("total")
            self.n = kwargs.get("initial", 0)

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            report(int(self.n), int(self.total) if self.total else None)
            return None

    return ReportingBar


def _is_plain_tar(path: Path) -> bool:
    """Tell a tar from a compressed one, whose size says nothing."""
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.TarError:
        return False


def _is_writable(folder: Path) -> bool:
    probe = folder / ".write-test"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


def _basename(model_id: str) -> str:
    return model_id.rstrip("/").rpartition("/")[2]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
