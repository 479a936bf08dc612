"""Choose the speaker model: a path, a file in the models folder, a download, or the bundled one."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parakeet_api.errors import CheckpointError
from parakeet_api.model.card import read_card
from parakeet_api.model.checkpoints import (
    BUNDLED_NOTES,
    BundledModels,
    Checkpoint,
    CheckpointStore,
    checkpoint_file,
    read_config,
)
from parakeet_api.model.family import UnsupportedModelError
from parakeet_api.settings import Settings
from parakeet_api.transcript import SAMPLE_RATE

_SETTING = "DIARIZER_PATH"
_SERVED = "needed is a Sortformer that was trained for streaming"
_UNANSWERED_S = 15.0
"""How long the first request waits for a choice: without a network, the bundled model is chosen
within this time."""
_POLL_S = 0.05
_EXPECTED_MB = 500.0
"""The file of nvidia/diar_streaming_sortformer_4spk-v2, 123 M parameters in fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerOutput:
    """What a Sortformer writes, by its configuration."""

    frame_seconds: float
    speakers: int
    """How many it tells apart in one recording."""


EXPECTED_OUTPUT = SpeakerOutput(frame_seconds=0.08, speakers=4)
"""Assumed for a checkpoint that is not on disk yet."""


def read_output(config: Mapping[str, Any]) -> SpeakerOutput:
    """Read a configuration; raise `UnsupportedModelError` for other models."""
    kind = str(config.get("target") or "model of no known kind").rpartition(".")[2]
    if kind != "SortformerEncLabelModel":
        raise UnsupportedModelError(f"a {kind}; {_SERVED}")
    if config.get("streaming_mode") is not True:
        raise UnsupportedModelError(f"a {kind} for whole recordings only; {_SERVED}")
    features, modules = _section(config, "preprocessor"), _section(config, "sortformer_modules")
    rate, speakers = features.get("sample_rate"), modules.get("num_spks")
    if rate != SAMPLE_RATE:
        raise UnsupportedModelError(f"a {kind} for audio of {rate} Hz; {SAMPLE_RATE} are needed")
    if features.get("normalize") in ("per_feature", "all_features"):
        # The mean of the whole recording is not known before its end.
        raise UnsupportedModelError(f"a {kind} whose features are normalised; {_SERVED}")
    frames = modules.get("subsampling_factor", 8)
    if not isinstance(speakers, int) or not isinstance(frames, int) or min(speakers, frames) < 1:
        raise UnsupportedModelError(f"a {kind} that does not state its number of speakers")
    seconds = frames * float(features.get("window_stride", 0.01))
    return SpeakerOutput(frame_seconds=round(seconds, 6), speakers=speakers)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


class DiarizerStore(CheckpointStore):
    """Choose a Sortformer; a download begins with the first request that needs it."""

    _kind = "speaker model"
    _remedy = "Put a streaming Sortformer .nemo file into {folder}, or set DIARIZER_PATH."

    def __init__(self, settings: Settings, *, bundled: Path | None) -> None:
        """`DEMO_MODEL` decides about the bundled model, if there is one, as for recognizers."""
        is_there = bundled is not None and bundled.is_file()
        super().__init__(
            dataclasses.replace(
                settings,
                models=(),
                model_id=settings.diarizer_id,
                model_path=settings.diarizer_path,
                demo_model=settings.demo_model if is_there else "never",
            ),
            bundled=BundledModels(english=bundled or Path(), grammar=bundled or Path()),
        )
        self.output = EXPECTED_OUTPUT
        """Of the chosen checkpoint, once there is one."""
        self._wanted = threading.Lock()
        self._is_wanted = False

    def start(self) -> None:
        """Choose a file on disk; download nothing yet. Raises `CheckpointError`."""
        local = self._find()
        if local is not None:
            self._settle(local)

    def checkpoint(self) -> Checkpoint:
        """Return the chosen checkpoint; begin the download of a missing one.

        Raises as `CheckpointStore.checkpoint`.
        """
        with self._wanted:
            if self.status.state == "choosing" and not self._is_wanted:
                self._is_wanted = True
                self._begin_download()
        deadline = time.monotonic() + _UNANSWERED_S
        # Not for the download itself, which takes minutes.
        while self.status.state == "choosing" and time.monotonic() < deadline:
            self.wait_until_decided(_POLL_S)
        return super().checkpoint()

    @property
    def memory_mb(self) -> float:
        """The weights in memory; until there is a file, those of the default model."""
        known = self.status.checkpoint
        return known.path.stat().st_size / 1e6 if known else _EXPECTED_MB

    # Other files in the folder are recognizers, so `any_file` finds no more.
    def _find(self, *, any_file: bool = False) -> Checkpoint | None:  # noqa: ARG002
        settings = self._settings
        if settings.model_path is not None:
            return self._check(settings.model_path)
        forced = self._bundled.forced(settings.demo_model)
        if forced is not None:
            return self._check(forced)
        path = settings.models_dir / checkpoint_file(settings.model_id)
        return self._check(path) if path.is_file() else None

    def _check(self, path: Path) -> Checkpoint:
        config = read_config(path, setting=_SETTING)
        try:
            self.output = read_output(config)
        except UnsupportedModelError as error:
            raise CheckpointError(
                f"{path} holds {error}. Name another file in {_SETTING}, or another model in"
                " DIARIZER_ID."
            ) from error
        return Checkpoint(path, is_demo=path.name in BUNDLED_NOTES, card=read_card(path))
