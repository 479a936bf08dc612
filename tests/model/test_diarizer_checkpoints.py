"""The speaker model's file: named, found, downloaded when first needed, or the bundled one."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import BUNDLED_MODELS, PATIENCE_S
from hub import FILE, MODEL_ID, Hub, hub_with

from parakeet_api.errors import CheckpointError, ModelLoadError, ModelNotReadyError
from parakeet_api.model.checkpoints import find_checkpoint
from parakeet_api.model.diarizer_checkpoints import DiarizerStore, SpeakerOutput
from parakeet_api.settings import Settings

CONFIG = """
target: nemo.collections.asr.models.sortformer_diar_models.SortformerEncLabelModel
streaming_mode: {streaming}
preprocessor: {{sample_rate: {rate}, window_stride: 0.01, normalize: {normalize}}}
sortformer_modules: {{num_spks: {speakers}, subsampling_factor: 8}}
"""


def nemo(
    *, speakers: str = "4", streaming: str = "true", rate: int = 16_000, normalize: str = "NA"
) -> bytes:
    """Return a `.nemo` file without weights."""
    config = CONFIG.format(
        speakers=speakers, streaming=streaming, rate=rate, normalize=normalize
    ).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in (("model_config.yaml", config), ("model_weights.ckpt", b"none")):
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def bundled(tmp_path: Path) -> Path:
    path = tmp_path / "sortformer-small-4spk.nemo"
    path.write_bytes(nemo())
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    content = nemo(speakers="8")
    with hub_with(content, home=tmp_path / "hf-home", monkeypatch=monkeypatch) as started:
        yield started


def settings_for(models: Path, hub: Hub | None = None, **environ: str) -> Settings:
    address = hub.url if hub else "http://127.0.0.1:9"
    return Settings.from_env(
        {"DIARIZER_ID": MODEL_ID, "MODELS_DIR": str(models), "HF_ENDPOINT": address} | environ
    )


def started(settings: Settings, bundled: Path | None = None) -> DiarizerStore:
    store = DiarizerStore(settings, bundled=bundled)
    store.start()
    return store


def test_diarizer_path_is_used_and_nothing_else(models: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.nemo"
    mine.write_bytes(nemo(speakers="8"))
    (models / FILE).write_bytes(nemo())
    store = started(settings_for(models, DIARIZER_PATH=str(mine)))
    assert store.checkpoint().path == mine
    assert store.output == SpeakerOutput(frame_seconds=0.08, speakers=8)


def test_the_file_named_like_diarizer_id_is_used(models: Path) -> None:
    (models / FILE).write_bytes(nemo())
    (models / "another.nemo").write_bytes(nemo())
    assert started(settings_for(models)).checkpoint().path == models / FILE


def test_a_speaker_model_in_the_folder_is_not_taken_for_a_recognizer(
    models: Path, tmp_path: Path
) -> None:
    named = models / "who.nemo"
    for path in (models / FILE, named, models / "diar_sortformer_4spk-v1.nemo"):
        path.write_bytes(nemo())
    settings = settings_for(models, DIARIZER_PATH=str(named))
    assert find_checkpoint(settings, BUNDLED_MODELS) is None


def test_a_download_begins_with_the_first_request(models: Path, hub: Hub) -> None:
    release = threading.Event()

    def wait(_: int) -> None:
        release.wait(PATIENCE_S)

    hub.before_block = wait
    store = started(settings_for(models, hub, DEMO_MODEL="never"))
    assert not hub.requests
    with pytest.raises(ModelNotReadyError, match=MODEL_ID):
        store.checkpoint()
    release.set()
    assert store.wait_until_decided(20)
    assert store.checkpoint().path == models / FILE
    assert store.output.speakers == 8


@pytest.mark.parametrize("policy", ["auto", "always", "grammar"])
def test_the_bundled_model_stands_in(models: Path, bundled: Path, policy: str) -> None:
    checkpoint = started(settings_for(models, DEMO_MODEL=policy), bundled).checkpoint()
    assert checkpoint.path == bundled
    assert checkpoint.is_demo
    assert checkpoint.note


def test_the_bundled_model_never_stands_in_where_that_is_not_wanted(
    models: Path, bundled: Path
) -> None:
    store = started(settings_for(models, DEMO_MODEL="never"), bundled)
    with pytest.raises(ModelLoadError, match="could not be downloaded"):
        store.checkpoint()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (nemo(streaming="false"), "for whole recordings only"),
        (nemo(rate=8_000), "for audio of 8000 Hz"),
        (nemo(normalize="per_feature"), "whose features are normalised"),
        (nemo(speakers="many"), "does not state its number of speakers"),
        (nemo()[:600], "not a readable .nemo file"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(
    models: Path, content: bytes, reason: str
) -> None:
    path = models / "x.nemo"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.nemo.*{reason}.*DIARIZER_PATH"):
        started(settings_for(models, DIARIZER_PATH=str(path)))
