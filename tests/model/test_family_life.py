"""A checkpoint of each kind beside the others: served, streamed, unloaded and loaded again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Clip, decode
from family_models import floats, write_checkpoint
from http_helpers import events, request, streamed, transcribe
from in_process import Served, served

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.model.restore import import_libraries

pytestmark = pytest.mark.integration

KINDS = {
    "tdt": "parakeet-tdt-0.6b-v2",
    "hybrid": "parakeet-tdt_ctc-110m",
    "rnnt": "parakeet-rnnt-0.6b",
    "ctc": "parakeet-ctc-0.6b",
    "prompt": "nemotron-3.5-asr-streaming-0.6b",
}


@pytest.fixture(scope="module")
def here(
    tmp_path_factory: pytest.TempPathFactory, clips: list[Clip], decoder: FfmpegDecoder
) -> Iterator[Served]:
    import_libraries()
    folder = tmp_path_factory.mktemp("kinds")
    sound = floats(decode(decoder, clips[0].path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in KINDS.values():
            write_checkpoint(folder, name, sound)
    with served(folder, MODELS=",".join(KINDS.values()), MODELS_DIR=str(folder)) as started:
        yield started


def state(here: Served, name: str) -> str:
    states = {model["name"]: model["state"] for model in here.server.health()["models"]}
    return str(states[name])


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_streams_what_it_transcribes(here: Served, clips: list[Clip], kind: str) -> None:
    name = KINDS[kind]

    plain = transcribe(here.server, clips[0].path, {"model": name})
    with streamed(here.server, Path(clips[0].path), {"model": name}) as lines:
        received = list(events(lines))

    assert plain.status_code == 200, plain.text
    text = plain.json()["text"]
    assert text
    assert "<" not in text
    deltas = [event["delta"] for event in received if event["type"] == "transcript.text.delta"]
    assert "".join(deltas).strip() == text
    assert received[-1]["type"] == "transcript.text.done"
    assert received[-1]["text"] == text


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_leaves_the_memory_and_comes_back_the_same(
    here: Served, clips: list[Clip], kind: str
) -> None:
    name = KINDS[kind]
    before = transcribe(here.server, clips[0].path, {"model": name}).json()["text"]
    others = {each: state(here, each) for each in KINDS.values() if each != name}

    unloaded = request(here.server, "POST", f"/admin/unload?model={name}")

    assert unloaded.status_code == 200, unloaded.text
    assert state(here, name) == "unloaded"
    assert {each: state(here, each) for each in others} == others
    assert transcribe(here.server, clips[0].path, {"model": name}).json()["text"] == before
    assert state(here, name) == "ready"
