"""Which checkpoint: a path, one in the models folder, a download, or a bundled model."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from parakeet_api.errors import CheckpointError, ModelLoadError, ModelNotReadyError
from parakeet_api.model.architecture import Architecture
from parakeet_api.model.card import ModelCard, card_path, read_card
from parakeet_api.model.family import UnsupportedModelError, describe, expect
from parakeet_api.settings import (
    DemoModel,
    Settings,
    hub_repository,
    model_basename,
    without_passwords,
)

logger = logging.getLogger(__name__)

StoreState = Literal["choosing", "downloading", "ready", "failed"]

ENGLISH_MODEL = "whisper-tdt-small-en.nemo"
GRAMMAR_MODEL = "parakeet-tdt-demo-en.nemo"
BUNDLED_NOTES = {
    ENGLISH_MODEL: "small English model, for trying things out;"
    " about 17 words in 100 are wrong on clear speech",
    GRAMMAR_MODEL: "model for tests;"
    " it understands a few hundred example sentences and nothing else",
}
"""The models that come with this program, and what a user must know of each."""
_FIRST_CHOICE = "parakeet-tdt-0.6b-v2.nemo"
_PROBE_TIMEOUT_S = 12.0
"""Without a network the choice falls on the bundled model within 15 s of the start."""
_RETRY_AFTER_S = 30.0
"""A failed download is tried again by the first request after so long."""
_LOG_STEP = 0.05
"""The download's progress is logged every 5 %."""
_MAX_CONFIG = 16_000_000
"""Bytes. v3's, with 8,192 pieces of vocabulary written out three times, has a thirtieth of it."""
_MAX_REASON = 400
"""Characters. The hub's own errors end in a paragraph of advice for programmers."""
_ADVICE = "Download it again, or name another file in MODEL_PATH."


class DamagedCheckpointError(CheckpointError):
    """A `.nemo` file is no whole archive: fetching it again may help."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A `.nemo` file that was looked at and found whole."""

    path: Path
    is_demo: bool
    """Whether it is a bundled model, which no one should take for a Parakeet."""
    architecture: Architecture | None = dataclasses.field(default=None, compare=False)
    """What its configuration says."""
    card: ModelCard = dataclasses.field(default_factory=ModelCard, compare=False)

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(".nemo").partition("@")[0]

    @property
    def languages(self) -> frozenset[str]:
        """ISO 639-1 codes that the network or its card states; empty = neither does."""
        own = self.architecture.languages if self.architecture else frozenset()
        return own or self.card.languages

    @property
    def license(self) -> str | None:
        return (self.architecture and self.architecture.license) or self.card.license

    @property
    def note(self) -> str | None:
        """Say in one sentence what a bundled model is; `None` = it is none."""
        return BUNDLED_NOTES.get(self.path.name) if self.is_demo else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledModels:
    """Where the models are that come with this program."""

    english: Path
    """Understands open English: the one to use where no other can be had."""
    grammar: Path
    """Understands its own sentences alone: for tests. An image does not carry it."""

    def forced(self, demo_model: DemoModel) -> Path | None:
        """Give the one that `DEMO_MODEL` puts in the place of all others; `None` = none."""
        return {"always": self.english, "grammar": self.grammar}.get(demo_model)

    def named(self, file: str) -> Path | None:
        """Give the one with this file name."""
        return {ENGLISH_MODEL: self.english, GRAMMAR_MODEL: self.grammar}.get(file)


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """Where the choice stands."""

    state: StoreState
    checkpoint: Checkpoint | None = None
    progress: float | None = None
    """Share of the download, 0 to 1, where its size is known."""
    error: str | None = None


class CheckpointStore:
    """Choose a checkpoint, downloading one in the background where none is at hand."""

    def __init__(
        self,
        settings: Settings,
        *,
        bundled: BundledModels,
        only: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve one of `MODELS`, which is `only` and never another in its place; or any."""
        self._settings = settings if only is None else _settings_for(settings, only)
        self._only = only
        self._bundled = bundled
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
        local = (
            find_checkpoint(self._settings, self._bundled)
            if self._only is None
            else find_named(self._settings, self._only, self._bundled)
        )
        if local is not None:
            self._settle(local)
        else:
            self._begin_download()

    @property
    def name(self) -> str:
        """Name the model, or while none is chosen the one that is being fetched."""
        known = self.status.checkpoint
        return known.name if known else model_basename(self._settings.model_id)

    @property
    def model_id(self) -> str:
        """The hub's name of what is fetched where it is not on disk."""
        repository, revision = hub_repository(self._settings.model_id)
        return f"{repository}@{revision}" if revision else repository

    @property
    def architecture(self) -> Architecture:
        """What the model's configuration says, or while there is none what its name does."""
        known = self.status.checkpoint
        return (known and known.architecture) or expect(self.model_id)

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
            f"The model {self.model_id} is being downloaded{done}. Try again later."
        )

    def wait_until_decided(self, timeout_s: float | None = None) -> bool:
        """Wait for a checkpoint or a failure; tell whether there is one or the other."""
        return self._decided.wait(timeout_s)

    def _settle(self, checkpoint: Checkpoint) -> None:
        self.status = StoreStatus("ready", checkpoint=checkpoint)
        if checkpoint.note is not None:
            logger.warning(
                "BUNDLED MODEL %s in use: %s. Put a Parakeet-TDT .nemo file into %s, or set"
                " MODEL_PATH, for real use.",
                checkpoint.name,
                checkpoint.note,
                self._settings.models_dir,
            )
        else:
            logger.info("model: %s", checkpoint.path)
        self._decided.set()

    def _begin_download(self) -> None:
        self.status = StoreStatus("choosing")
        self._decided.clear()
        threading.Thread(target=self._download, name="model-download", daemon=True).start()

    def _retry_download(self) -> None:
        with self._lock:
            if self.status.state == "failed" and self._clock() - self._failed_at >= _RETRY_AFTER_S:
                self._begin_download()

    def _download(self) -> None:
        settings = self._settings
        try:
            path = download_checkpoint(settings, report=self._report)
            architecture = _check_download(path)
        # The hub's client raises errors of many libraries; none may end the thread unseen.
        except Exception as error:
            self._give_up(f"{self.model_id} could not be downloaded: {_reason(error)}")
            return
        self._settle(
            Checkpoint(path, is_demo=False, architecture=architecture, card=read_card(path))
        )

    def _give_up(self, reason: str) -> None:
        if self._settings.demo_model == "auto" and self._bundled.english.is_file():
            logger.warning("%s", reason)
            self._settle(_checked(self._bundled.english))
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
                self.model_id,
                100 * progress,
                (total or 0) / 1e6,
            )


def find_checkpoint(settings: Settings, bundled: BundledModels) -> Checkpoint | None:
    """Look on the disk: `MODEL_PATH`, a bundled model if it is forced, then the models folder.

    In the folder the file named like `MODEL_ID` comes first, then parakeet-tdt-0.6b-v2, then the
    others by name; a bundled model is never taken from there, and where `MODEL_ID` has a revision,
    no other file. Raises `CheckpointError` if the
    chosen one is missing or not whole: another model in its place would be a silent surprise.
    """
    if settings.model_path is not None:
        return _checked(settings.model_path)
    forced = bundled.forced(settings.demo_model)
    if forced is not None:
        return _checked(forced)
    preferred = (_file_name(settings.model_id), _FIRST_CHOICE)
    pattern = preferred[0] if "@" in settings.model_id else "*.nemo"
    found = sorted(
        (path for path in settings.models_dir.glob(pattern) if path.name not in BUNDLED_NOTES),
        key=lambda path: (
            preferred.index(path.name) if path.name in preferred else len(preferred),
            path.name,
        ),
    )
    if not found:
        return None
    if found[0].name != preferred[0] and settings.origins.get("model_id") == "environment":
        logger.warning("MODEL_ID=%r is not on disk: using %s", settings.model_id, found[0])
    return _checked(found[0])


def find_named(settings: Settings, name: str, bundled: BundledModels) -> Checkpoint | None:
    """Look for one of `MODELS` in the models folder, then among those that come with this program.

    Raises `CheckpointError` if its file is not whole.
    """
    file = _file_name(name)
    path = settings.models_dir / file
    if not path.is_file():
        path = bundled.named(file) or path
    if not path.is_file():
        return None
    return _checked(path)


def _checked(path: Path) -> Checkpoint:
    architecture = check_checkpoint(path)
    return Checkpoint(
        path,
        is_demo=path.name in BUNDLED_NOTES,
        architecture=architecture,
        card=read_card(path),
    )


def _file_name(model_id: str) -> str:
    """Give the name of a model's file in the models folder; one of a revision has that in it."""
    _, revision = hub_repository(model_id)
    pinned = f"@{revision.replace('/', '-')}" if revision else ""
    return f"{model_basename(model_id)}{pinned}.nemo"


def _settings_for(settings: Settings, name: str) -> Settings:
    """Narrow the settings to one of `MODELS`."""
    return dataclasses.replace(settings, model_id=name, model_path=None, demo_model="never")


def check_checkpoint(path: Path) -> Architecture:
    """See that a file is a whole archive of a Parakeet model, without unpacking it.

    Gives what its configuration says. Raises `CheckpointError`, naming the file and what to do.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist or is no file. {_ADVICE}")
        with tarfile.open(path, "r:gz" if _is_gzip(path) else "r:") as archive:
            members = {member.name.removeprefix("./"): member for member in archive.getmembers()}
            if not {"model_config.yaml", "model_weights.ckpt"} <= members.keys():
                raise CheckpointError(f"{path} is an archive, but not of a NeMo model. {_ADVICE}")
            config = archive.extractfile(members["model_config.yaml"])
            text = config.read(_MAX_CONFIG) if config is not None else b""
    # KeyError: a link in the archive that leads nowhere.
    except (tarfile.TarError, OSError, EOFError, KeyError) as error:
        raise DamagedCheckpointError(
            f"{path} is not a readable .nemo file ({error}). {_ADVICE}"
        ) from error
    return _check_config(path, text)


def _is_gzip(path: Path) -> bool:
    """Tell how NeMo before 1.7 packed; it still takes those, and no other compression."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _check_config(path: Path, text: bytes) -> Architecture:
    """See that a model's configuration is of a kind that the recogniser drives."""
    # Comes with huggingface_hub. v3's 25,000 lines take it half a second.
    import yaml  # type: ignore[import-untyped]

    try:
        config = yaml.safe_load(text)
    # ValueError: a date such as 2026-99-99. RecursionError: brackets without end.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DamagedCheckpointError(
            f"{path} holds a model_config.yaml that cannot be read. {_ADVICE}"
        ) from error
    try:
        return describe(config if isinstance(config, dict) else {})
    except UnsupportedModelError as error:
        raise CheckpointError(
            f"{path} holds {error}. Name another file in MODEL_PATH, or another model in MODEL_ID."
        ) from error


def _check_download(path: Path) -> Architecture:
    """Check a fetched file; a damaged one is deleted, or it would be found on every later try."""
    try:
        return check_checkpoint(path)
    except DamagedCheckpointError:
        # In the hub's cache it is a link to the file itself.
        for file in (path.resolve(), path):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
        raise


def download_checkpoint(settings: Settings, *, report: Callable[[int, int | None], None]) -> Path:
    """Fetch `MODEL_ID`'s `.nemo` file into the models folder, or from the hub's cache.

    Where the folder is read-only, as in many compose files, it goes to the hub's own cache.
    Raises what the hub's client raises, or `TimeoutError` if the hub does not answer.
    """
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )

    name = f"{model_basename(settings.model_id)}.nemo"
    repository, revision = hub_repository(settings.model_id)
    endpoint = settings.hf_endpoint.rstrip("/")
    cached = try_to_load_from_cache(repository, name, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    url = hf_hub_url(repository, name, revision=revision, endpoint=endpoint)
    # The download sends the same request, but retries for minutes if the hub does not answer.
    _within(_PROBE_TIMEOUT_S, lambda: get_hf_file_metadata(url, endpoint=endpoint))
    logger.info("downloading %s from %s", settings.model_id, without_passwords(endpoint))
    report(0, None)
    target = settings.models_dir / _file_name(settings.model_id)
    # A revision has a folder of its own while it comes: another one's file may be there already.
    folder = target.with_suffix(".partial") if revision else settings.models_dir
    is_kept = _is_writable(settings.models_dir)
    fetched = Path(
        hf_hub_download(
            repository,
            name,
            revision=revision,
            local_dir=folder if is_kept else None,
            endpoint=endpoint,
            tqdm_class=_progress_bar(report),
        )
    )
    if is_kept and revision:
        fetched = fetched.replace(target)
        shutil.rmtree(folder, ignore_errors=True)
    _fetch_card(settings, fetched)
    return fetched


def _fetch_card(settings: Settings, checkpoint: Path) -> None:
    """Fetch a checkpoint's card beside it; without one its name tells the languages."""
    from huggingface_hub import hf_hub_download

    repository, revision = hub_repository(settings.model_id)
    card = card_path(checkpoint)
    with tempfile.TemporaryDirectory() as folder:

        def fetch() -> None:
            fetched = hf_hub_download(
                repository,
                "README.md",
                revision=revision,
                local_dir=None if card.name == "README.md" else folder,
                endpoint=settings.hf_endpoint.rstrip("/"),
            )
            if card.name != "README.md":
                shutil.copyfile(fetched, card)

        try:
            _within(_PROBE_TIMEOUT_S, fetch)
        # Of the hub's client, of the network, of the disk: a card is no more than welcome.
        except Exception as error:
            logger.info("%s has no card: %s", settings.model_id, _reason(error))


def _within(timeout_s: float, ask: Callable[[], Any]) -> Any:
    """Run in a thread: the hub's client retries and may exceed its timeout by far."""
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
    """Make a class that reports where the hub's client expects a tqdm bar to draw.

    It has all that the client uses of one. With the transfer methods, which do nothing, Xet's
    two bars, of bytes that came and bytes that were written, are one: of bytes written.
    """

    class ReportingBar:
        def __init__(self, *, total: int | None = None, initial: int = 0, **_: Any) -> None:
            self.total = total
            self.n = initial

        def update(self, n: int) -> None:
            self.n += n
            report(self.n, self.total)

        def update_transfer(self, _: int) -> None: ...

        def set_postfix_str(self, *_: Any, **__: Any) -> None: ...

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None: ...

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

    return ReportingBar


def _is_writable(folder: Path) -> bool:
    probe = folder / ".write-test"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


def _reason(error: Exception) -> str:
    """Give an error's text on one line, of bearable length."""
    words = without_passwords(" ".join(str(error).split()))
    return words[:_MAX_REASON] or type(error).__name__
