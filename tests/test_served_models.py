"""Selection of a model by name, with one model and with several."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import BUNDLED_MODELS, ROOT

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.errors import ModelNotFoundError
from parakeet_api.metrics import Metrics
from parakeet_api.model import cuda
from parakeet_api.model.checkpoints import CheckpointStore
from parakeet_api.model.cuda import DeviceMemory
from parakeet_api.model.devices import plan_inference
from parakeet_api.model.pool import ModelPool
from parakeet_api.model.slot import ModelSlot
from parakeet_api.model.voice_activity import SileroDetector
from parakeet_api.served_models import ServedModel, ServedModels
from parakeet_api.settings import Settings


def models_of(folder: Path, *names: str, **environ: str) -> ServedModels:
    """Build models that are never loaded."""
    settings = Settings.from_env({"MODELS_DIR": str(folder), "MODELS": ",".join(names)} | environ)
    unused: Any = None
    members = tuple(
        ServedModel(
            slot=ModelSlot(
                CheckpointStore(settings, bundled=BUNDLED_MODELS, only=only),
                lambda *_: unused,
                idle_timeout_s=0,
            ),
            plan=plan_inference(settings, None),
            batcher=unused,
            pipeline=unused,
            live=unused,
            keywords=unused,
            configured_languages=settings.model_languages,
        )
        for only in settings.models or (None,)
    )
    pool = cast(ModelPool, unused)
    return ServedModels(
        members=members, pool=pool, selectable=bool(settings.models), detector=SileroDetector()
    )


def test_with_one_model_every_name_selects_it(tmp_path: Path) -> None:
    models = models_of(tmp_path)

    for name in ("", "whisper-1", "parakeet-tdt-0.6b-v3", "anything"):
        assert models.named(name) is models.first


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("", "parakeet-tdt-0.6b-v2"),
        ("whisper-1", "parakeet-tdt-0.6b-v2"),
        ("gpt-4o-transcribe", "parakeet-tdt-0.6b-v2"),
        ("gpt-4o-transcribe-diarize", "parakeet-tdt-0.6b-v2"),
        ("Systran/faster-whisper-large-v3", "parakeet-tdt-0.6b-v2"),
        ("openai/Whisper-Large", "parakeet-tdt-0.6b-v2"),
        ("parakeet-tdt-0.6b-v2", "parakeet-tdt-0.6b-v2"),
        ("nvidia/parakeet-tdt-0.6b-v2", "parakeet-tdt-0.6b-v2"),
        ("parakeet-tdt-0.6b-v3", "parakeet-tdt-0.6b-v3"),
        ("nvidia/parakeet-tdt-0.6b-v3", "parakeet-tdt-0.6b-v3"),
        ("my-german", "my-german"),
        ("me/my-german", "my-german"),
    ],
)
def test_with_several_models_foreign_names_select_the_first(
    tmp_path: Path, name: str, meant: str
) -> None:
    names = ("parakeet-tdt-0.6b-v2", "nvidia/parakeet-tdt-0.6b-v3", "me/my-german.nemo")

    assert models_of(tmp_path, *names).named(name).name == meant


@pytest.mark.parametrize(
    "name",
    ["parakeet-tdt-1.1b", "parakeet-tdt-0.6b", "nvidia/my-german", "large-v3", "my-chatgpt-model"],
)
def test_with_several_models_an_unknown_name_is_rejected_with_a_list(
    tmp_path: Path, name: str
) -> None:
    models = models_of(tmp_path, "parakeet-tdt-0.6b-v2", "me/my-german")

    with pytest.raises(ModelNotFoundError, match=r"'parakeet-tdt-0\.6b-v2', 'my-german'") as caught:
        models.named(name)

    assert (caught.value.status, caught.value.param) == (404, "model")


def test_metrics_are_there_after_the_gpu_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(device: str) -> DeviceMemory:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(cuda, "device_memory", fail)
    monkeypatch.setattr(ServedModels, "device", lambda self: "cuda:0")
    monkeypatch.setattr(ServedModels, "waiting_chunks", lambda self: 0)
    metrics = Metrics()
    models_of(tmp_path)._export(metrics, with_gpu=True)

    lines = metrics.exposition().decode().splitlines()

    assert 'parakeet_device_memory_bytes{kind="used"} NaN' in lines


def test_a_long_name_is_cut_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        models_of(tmp_path, "a", "b").named("x" * 10_000)

    assert len(str(caught.value)) < 200


def test_a_single_one_of_models_is_strict_as_well(tmp_path: Path) -> None:
    models = models_of(tmp_path, "parakeet-tdt-0.6b-v3")

    assert models.named("whisper-1").name == "parakeet-tdt-0.6b-v3"
    with pytest.raises(ModelNotFoundError):
        models.named("parakeet-tdt-0.6b-v2")


def test_each_model_has_its_own_languages(tmp_path: Path) -> None:
    v2, v3 = models_of(tmp_path, "parakeet-tdt-0.6b-v2", "parakeet-tdt-0.6b-v3")

    assert v2.languages == {"en"}
    assert len(v3.languages) == 25
    models = models_of(tmp_path, "a", "b", MODEL_LANGUAGES="de,fr")
    assert [model.languages for model in models] == [{"de", "fr"}] * 2


def test_a_model_is_described_under_its_names_and_the_first_under_openais(tmp_path: Path) -> None:
    models = models_of(tmp_path, "a", "me/b")

    assert models.described("whisper-1") is models.described("a") is models.first
    assert models.described("me/b") is models.described("b")
    # Requests may send such names, but they cannot be described.
    for name in ("whisper-large-v3", "", "c"):
        with pytest.raises(ModelNotFoundError):
            models.described(name)


@pytest.mark.parametrize("wanted", ["on", "off"])
def test_speakers_are_told_apart_unless_that_is_off(tmp_path: Path, wanted: str) -> None:
    settings = Settings.from_env(
        {"MODELS_DIR": str(tmp_path), "DEMO_MODEL": "grammar", "DIARIZATION": wanted}
    )
    models = ServedModels.from_settings(
        settings,
        gpu=None,
        decoder=cast(FfmpegDecoder, None),
        bundled=BUNDLED_MODELS,
        root=ROOT,
        metrics=Metrics(),
    )
    assert (models.diarizer is not None) == (wanted == "on")
    models.close(last_pass_s=1)
