"""Choose a checkpoint: a path, a file in the models folder, a download, or a bundled model."""

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
SPEAKER_MODEL = "sortformer-small-4spk.nemo"
BUNDLED_NOTES = {
    ENGLISH_MODEL: "small English model, for trying things out;"
    " about 17 words in 100 are wrong on clear speech",
    GRAMMAR_MODEL: "model for tests;"
    " it understands a few hundred example sentences and nothing else",
    SPEAKER_MODEL: "small speaker model, for trying things out; it confuses similar voices",
}
"""The bundled models, and what a user must know about each."""
_CONFIG = "model_config.yaml"
WEIGHTS = "model_weights.ckpt"
"""The two files that every `.nemo` archive holds."""
_FIRST_CHOICE = "parakeet-tdt-0.6b-v2.nemo"
_PROBE_TIMEOUT_S = 12.0
"""Without a network the bundled model is chosen within 15 s of the start."""
_RETRY_AFTER_S = 30.0
"""The first request after this time retries a failed download."""
_LOG_STEP = 0.05
"""The download's progress is logged every 5 %."""
_MAX_CONFIG = 16_000_000
"""Bytes. The one of v3, which contains its vocabulary of 8,192 pieces three times, is a thirtieth
of this."""
_MAX_REASON = 400
"""Characters. The hub client's errors end in a paragraph of advice for programmers."""
_ADVICE = "Download it again, or name another file in {setting}."


class DamagedCheckpointError(CheckpointError):
    """A `.nemo` file is not a complete archive: downloading it again may help."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A `.nemo` file that has been checked."""

    path: Path
    is_demo: bool
    """Whether it is a bundled model, which must not be mistaken for a Parakeet."""
    architecture: Architecture | None = dataclasses.field(default=None, compare=False)
    """As read from its configuration."""
    card: ModelCard = dataclasses.field(default_factory=ModelCard, compare=False)

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(".nemo").partition("@")[0]

    @property
    def languages(self) -> frozenset[str]:
        """ISO 639-1 codes from the configuration or else the card; empty = unknown."""
        own = self.architecture.languages if self.architecture else frozenset()
        return own or self.card.languages

    @property
    def license(self) -> str | None:
        return (self.architecture and self.architecture.license) or self.card.license

    @property
    def note(self) -> str | None:
        """Describe a bundled model in one sentence; `None` = not bundled."""
        return BUNDLED_NOTES.get(self.path.name) if self.is_demo else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledModels:
    """Paths of the bundled models."""

    english: Path
    """Recognises general English: the fallback where no other model is available."""
    grammar: Path
    """Recognises only its own sentences: for tests. The container image does not contain it."""
    speakers: Path | None = None
    """Tells speakers apart: the fallback where no other speaker model is available."""

    @classmethod
    def of_checkout(cls, root: Path) -> Self:
        """Return where they are in a checkout, and in the image but for the tests' own."""
        return cls(
            english=root / "samples" / "english-model" / ENGLISH_MODEL,
            grammar=root / "tests" / "grammar-model" / GRAMMAR_MODEL,
            speakers=root / "samples" / "speaker-model" / SPEAKER_MODEL,
        )

    def forced(self, demo_model: DemoModel) -> Path | None:
        """Return the model that `DEMO_MODEL` forces; `None` = none."""
        return {"always": self.english, "grammar": self.grammar}.get(demo_model)

    def named(self, file: str) -> Path | None:
        """Return the model with this file name."""
        return {ENGLISH_MODEL: self.english, GRAMMAR_MODEL: self.grammar}.get(file)


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """State of the choice."""

    state: StoreState
    checkpoint: Checkpoint | None = None
    progress: float | None = None
    """Share of the download, 0 to 1, if its size is known."""
    error: str | None = None


class CheckpointStore:
    """Choose a checkpoint; download one in the background if none is on disk."""

    _kind = "model"
    """What error messages call it."""
    _remedy = "Put a Parakeet-TDT .nemo file into {folder}, or set MODEL_PATH, for real use."
    """What to do about a bundled model."""

    def __init__(
        self,
        settings: Settings,
        *,
        bundled: BundledModels,
        only: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Choose any checkpoint or, with `only`, exactly that one of `MODELS`."""
        self._settings = settings if only is None else _settings_for(settings, only)
        self._only = only
        self._bundled = bundled
        self._clock = clock
        self._lock = threading.Lock()
        self._failed_at = 0.0
        self._decided = threading.Event()
        self.status = StoreStatus("choosing")
        """Immutable and replaced as a whole, so any thread may read it at any time."""

    def start(self) -> None:
        """Choose a file on disk, or begin a download.

        Raises `CheckpointError` if the chosen file is missing or not a complete checkpoint.
        """
        local = self._find()
        if local is not None:
            self._settle(local)
        else:
            self._begin_download()

    @property
    def name(self) -> str:
        """Return the name of the model, or of the one being downloaded."""
        known = self.status.checkpoint
        return known.name if known else model_basename(self._settings.model_id)

    @property
    def model_id(self) -> str:
        """The hub's name of the model to download if it is not on disk."""
        repository, revision = hub_repository(self._settings.model_id)
        return f"{repository}@{revision}" if revision else repository

    @property
    def architecture(self) -> Architecture:
        """The model's architecture; until there is a file, an estimate from its name."""
        known = self.status.checkpoint
        return (known and known.architecture) or expect(self.model_id)

    def checkpoint(self) -> Checkpoint:
        """Return the chosen checkpoint.

        Raises `ModelNotReadyError` during the download, and `ModelLoadError` if it failed; after
        some time such a call also restarts the download.
        """
        status = self.status
        if status.checkpoint is not None:
            return status.checkpoint
        if status.state == "failed":
            self._retry_download()
            raise ModelLoadError(f"There is no {self._kind}: {status.error}")
        done = f": {status.progress:.0%} done" if status.progress is not None else ""
        raise ModelNotReadyError(
            f"The model {self.model_id} is being downloaded{done}. Try again later."
        )

    def wait_until_decided(self, timeout_s: float | None = None) -> bool:
        """Wait for a checkpoint or a failure; return whether either came in time."""
        return self._decided.wait(timeout_s)

    def _find(self, *, any_file: bool = False) -> Checkpoint | None:
        """Find a checkpoint on disk; `any_file` = also another one than `MODEL_ID`.

        Raises `CheckpointError` if it is incomplete.
        """
        if self._only is None:
            return find_checkpoint(self._settings, self._bundled, any_file=any_file)
        return find_named(self._settings, self._only, self._bundled)

    def _substitute(self) -> Checkpoint | None:
        """Find a checkpoint for one that cannot be downloaded: on disk, then the bundled one."""
        try:
            other = self._find(any_file=True)
        except CheckpointError as error:
            logger.warning("%s", error)
            other = None
        english = self._bundled.english
        if other is None and self._settings.demo_model == "auto" and english.is_file():
            return self._check(english)
        return other

    def _check(self, path: Path) -> Checkpoint:
        """Check a file. Raises `CheckpointError`."""
        return _checked(path)

    def _settle(self, checkpoint: Checkpoint) -> None:
        self.status = StoreStatus("ready", checkpoint=checkpoint)
        if checkpoint.note is not None:
            logger.warning(
                "BUNDLED MODEL %s in use: %s. %s",
                checkpoint.name,
                checkpoint.note,
                self._remedy.format(folder=self._settings.models_dir),
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
            checkpoint = self._check_download(path)
        # The hub's client raises errors of many libraries; each must be reported.
        except Exception as error:
            self._give_up(f"{self.model_id} could not be downloaded: {_reason(error)}")
            return
        self._settle(checkpoint)

    def _check_download(self, path: Path) -> Checkpoint:
        """Check a downloaded file; delete a damaged one, which later tries would find again."""
        try:
            return self._check(path)
        except DamagedCheckpointError:
            # In the hub's cache the path is a link to the file.
            for file in (path.resolve(), path):
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
            raise

    def _give_up(self, reason: str) -> None:
        substitute = self._substitute()
        if substitute is not None:
            logger.warning("%s", reason)
            self._settle(substitute)
            return
        logger.error("%s", reason)
        self._failed_at = self._clock()
        self.status = StoreStatus("failed", error=reason)
        self._decided.set()

    def _report(self, done: int, total: int | None) -> None:
        """Record the download's progress, in bytes."""
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


def find_checkpoint(
    settings: Settings, bundled: BundledModels, *, any_file: bool = False
) -> Checkpoint | None:
    """Find a checkpoint on disk: `MODEL_PATH`, a forced bundled model, then the models folder.

    In the folder, the file named like `MODEL_ID` comes first, then parakeet-tdt-0.6b-v2, then the
    others by name; those only if `MODEL_ID` was not set, or with `any_file`. Bundled models are not
    taken from the folder, and if `MODEL_ID` has a revision, only its own file is. Raises
    `CheckpointError` if the chosen file is missing or incomplete: silently using another model
    would surprise the user.
    """
    if settings.model_path is not None:
        return _checked(settings.model_path)
    forced = bundled.forced(settings.demo_model)
    if forced is not None:
        return _checked(forced)
    preferred = (checkpoint_file(settings.model_id), _FIRST_CHOICE)
    pattern = preferred[0] if "@" in settings.model_id else "*.nemo"
    found = sorted(
        (path for path in settings.models_dir.glob(pattern) if not _is_other(path, settings)),
        key=lambda path: (
            preferred.index(path.name) if path.name in preferred else len(preferred),
            path.name,
        ),
    )
    if not found:
        return None
    is_requested = settings.origins.get("model_id") == "environment"
    if found[0].name != preferred[0] and is_requested and not any_file:
        return None
    return _checked(found[0])


def _is_other(path: Path, settings: Settings) -> bool:
    """Tell whether a file in the models folder is a bundled model or the diarizer's."""
    is_diarizer = path == settings.diarizer_path or "sortformer" in path.name
    return (
        is_diarizer
        or path.name == checkpoint_file(settings.diarizer_id)
        or path.name in BUNDLED_NOTES
    )


def find_named(settings: Settings, name: str, bundled: BundledModels) -> Checkpoint | None:
    """Find one of `MODELS` in the models folder, then among the bundled models.

    Raises `CheckpointError` if its file is incomplete.
    """
    file = checkpoint_file(name)
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


def checkpoint_file(model_id: str) -> str:
    """Return the name of a model's file in the models folder, with its revision if it has one."""
    _, revision = hub_repository(model_id)
    suffix = f"@{revision.replace('/', '-')}" if revision else ""
    return f"{model_basename(model_id)}{suffix}.nemo"


def _settings_for(settings: Settings, name: str) -> Settings:
    """Narrow the settings to one of `MODELS`."""
    return dataclasses.replace(settings, model_id=name, model_path=None, demo_model="never")


def check_checkpoint(path: Path) -> Architecture:
    """Check that a file is a complete archive of a Parakeet model, without unpacking it.

    Return its architecture. Raises `CheckpointError`, naming the file and what to do.
    """
    config = read_config(path, setting="MODEL_PATH")
    try:
        return describe(config)
    except UnsupportedModelError as error:
        raise CheckpointError(
            f"{path} holds {error}. Name another file in MODEL_PATH, or another model in MODEL_ID."
        ) from error


def read_config(path: Path, *, setting: str) -> dict[str, Any]:
    """Read a checkpoint's configuration; check that the archive is complete.

    Raises `CheckpointError`, naming the file and the setting that names another one.
    """
    advice = _ADVICE.format(setting=setting)
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist or is no file. {advice}")
        with tarfile.open(path, "r:gz" if is_gzip(path) else "r:") as archive:
            members = {member.name.removeprefix("./"): member for member in archive.getmembers()}
            if not {_CONFIG, WEIGHTS} <= members.keys():
                raise CheckpointError(f"{path} is an archive, but not of a NeMo model. {advice}")
            config = archive.extractfile(members[_CONFIG])
            text = config.read(_MAX_CONFIG) if config is not None else b""
    # KeyError: a dangling link in the archive.
    except (tarfile.TarError, OSError, EOFError, KeyError) as error:
        raise DamagedCheckpointError(
            f"{path} is not a readable .nemo file ({error}). {advice}"
        ) from error
    return _parse_config(path, text, advice)


def is_gzip(path: Path) -> bool:
    """Tell whether an archive is compressed, as before NeMo 1.7; NeMo reads only gzip."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _parse_config(path: Path, text: bytes, advice: str) -> dict[str, Any]:
    # A dependency of huggingface_hub. The 25,000 lines of v3's file take half a second.
    import yaml  # type: ignore[import-untyped]

    try:
        config = yaml.safe_load(text)
    # ValueError: a date such as 2026-99-99. RecursionError: deeply nested brackets.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DamagedCheckpointError(
            f"{path} holds a model_config.yaml that cannot be read. {advice}"
        ) from error
    return config if isinstance(config, dict) else {}


def download_checkpoint(settings: Settings, *, report: Callable[[int, int | None], None]) -> Path:
    """Download the `.nemo` file of `MODEL_ID` to the models folder, or find it in the hub's cache.

    If the folder is read-only, as in many compose files, download to the hub's cache.
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
    _with_timeout(_PROBE_TIMEOUT_S, lambda: get_hf_file_metadata(url, endpoint=endpoint))
    logger.info("downloading %s from %s", settings.model_id, without_passwords(endpoint))
    report(0, None)
    target = settings.models_dir / checkpoint_file(settings.model_id)
    # A revision is downloaded to its own folder: a file of another revision may exist already.
    folder = target.with_suffix(".partial") if revision else settings.models_dir
    to_models_dir = _is_writable(settings.models_dir)
    fetched = Path(
        hf_hub_download(
            repository,
            name,
            revision=revision,
            local_dir=folder if to_models_dir else None,
            endpoint=endpoint,
            tqdm_class=_progress_bar(report),
        )
    )
    if to_models_dir and revision:
        fetched = fetched.replace(target)
        shutil.rmtree(folder, ignore_errors=True)
    _fetch_card(settings, fetched)
    return fetched


def _fetch_card(settings: Settings, checkpoint: Path) -> None:
    """Download a checkpoint's card; without it the languages are guessed from the name."""
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
            _with_timeout(_PROBE_TIMEOUT_S, fetch)
        # An error of the hub's client, the network or the disk: the card is optional.
        except Exception as error:
            logger.info("%s has no card: %s", settings.model_id, _reason(error))


def _with_timeout(timeout_s: float, call: Callable[[], Any]) -> Any:
    """Call in a thread and wait at most `timeout_s`: the hub's client may far exceed its own."""
    answer: Future[Any] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        # Raised again in the waiting thread.
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="hub-probe", daemon=True).start()
    try:
        return answer.result(timeout_s)
    except TimeoutError as error:
        raise TimeoutError(f"no answer from the model hub within {timeout_s:g} s") from error


def _progress_bar(report: Callable[[int, int | None], None]) -> Any:
    """Create a class that reports progress through the part of tqdm's interface the client uses.

    Xet reports bytes received and bytes written separately; the transfer methods do nothing, so
    only bytes written count.
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
    """Return an error's text on one line, truncated."""
    words = without_passwords(" ".join(str(error).split()))
    return words[:_MAX_REASON] or type(error).__name__
