"""The model's life as clients and operators live through it: cold starts, unloading, failures."""

from __future__ import annotations

import errno
import json
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import DEMO_MODEL, PATIENCE_S, ROOT, SPEECH, Clip, Server, running_server, wait_until
from http_helpers import ENDPOINT, error_of, request, transcribe, wav
from in_process import Echoes, served
from model_helpers import run_all

from parakeet_api.model import slot
from parakeet_api.transcript import SAMPLE_RATE

pytestmark = pytest.mark.integration

CLIP = SPEECH / "clip-001.flac"
NAME = "parakeet-tdt-demo-en"


@pytest.fixture
def echoes(monkeypatch: pytest.MonkeyPatch) -> Echoes:
    # With torch in the process, collecting takes a third of a second, hundreds of times.
    monkeypatch.setattr(slot, "gc", SimpleNamespace(collect=lambda: 0))
    return Echoes(monkeypatch)


def loads(server: Server) -> float:
    """Count the loads that succeeded."""
    for line in request(server, "GET", "/metrics").text.splitlines():
        if line.startswith("parakeet_model_load_seconds_count "):
            return float(line.split()[1])
    raise AssertionError("no such metric")


class TestColdStart:
    def test_fifty_requests_load_once_and_health_reports_it(
        self, tmp_path: Path, clips: list[Clip]
    ) -> None:
        clip, states, answers = clips[5], set(), []
        with running_server(tmp_path, APP_THREADS="50", MAX_QUEUED_REQUESTS="50") as cold:

            def ask() -> None:
                answers.append(transcribe(cold, clip.path))

            def watch() -> None:
                while len(answers) < 50:
                    states.add(cold.health()["model"]["state"])

            assert run_all(*[ask] * 50, watch, patience_s=300) == []

            assert {answer.status_code for answer in answers} == {200}
            assert {answer.json()["text"] for answer in answers} == {clip.text}
            assert loads(cold) == 1
        assert "loading" in states
        assert "failed" not in states

    def test_all_requests_that_wait_for_a_failed_load_get_the_reason(
        self, tmp_path: Path, echoes: Echoes
    ) -> None:
        failing, count = threading.Event(), echoes.count_of(NAME)

        def fail() -> None:
            assert failing.wait(PATIENCE_S)
            raise RuntimeError("the GPU fell out")

        count.before = fail
        answers: list[httpx.Response] = []
        settings = {"DEMO_MODEL": "grammar", "APP_THREADS": "50"}
        with served(tmp_path, **settings, MAX_CONCURRENT_INFERENCES="1") as here:

            def ask() -> None:
                answers.append(transcribe(here.server, CLIP))

            def release() -> None:
                wait_until(
                    # One is in the load, the others' chunks wait behind it.
                    lambda: here.server.health()["queue"]["active_requests"] == 8,
                    what="all wait",
                )
                assert here.server.health()["model"]["state"] == "loading"
                failing.set()

            assert run_all(*[ask] * 8, release, patience_s=120) == []
            messages = {error_of(answer, 503)["message"] for answer in answers}
            status = here.server.health()["model"]
            assert request(here.server, "GET", "/ready").status_code == 503

        assert messages == {"The model could not be loaded: the GPU fell out"}
        assert (status["state"], status["error"]) == ("failed", messages.pop())


class TestUnloading:
    def test_a_thousand_requests_raced_by_unloading_all_succeed(
        self, tmp_path: Path, echoes: Echoes
    ) -> None:
        sound = wav(np.random.default_rng(1).normal(0, 0.1, SAMPLE_RATE // 4))
        done, unloads = threading.Event(), []
        count = echoes.count_of(NAME)
        with served(tmp_path, DEMO_MODEL="grammar", LOG_LEVEL="warning") as here:
            url = f"{here.server.url}{ENDPOINT}"

            def ask() -> None:
                with httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
                    for _ in range(125):
                        answer = client.post(url, files={"file": ("s.wav", sound)})
                        assert answer.status_code == 200, answer.text
                        assert answer.json()["text"] == NAME

            def ask_all() -> None:
                try:
                    assert run_all(*[ask] * 8, patience_s=500) == []
                finally:
                    done.set()

            def unload() -> None:
                pause = random.Random(1)
                while not done.wait(pause.random() * 0.02):
                    model = here.services.models.first
                    # Below the route, which would nearly always say that it is in use.
                    if here.services.models.pool.unload(model.slot) == "unloaded":
                        unloads.append(model)

            assert run_all(ask_all, unload, patience_s=500) == []

        assert count.most_alive == 1
        assert len(unloads) > 20, "the race did not take place"
        assert count.loads >= len(unloads)

    def test_an_idle_model_is_unloaded_by_timeout_and_loaded_again(
        self, tmp_path: Path, clips: list[Clip]
    ) -> None:
        # 1.2 s.
        with running_server(tmp_path, IDLE_TIMEOUT_MINUTES="0.02") as server:
            for expected in (1, 2):
                assert transcribe(server, clips[7].path).json()["text"] == clips[7].text
                wait_until(
                    lambda: server.health()["model"]["state"] == "unloaded",
                    what="the idle model is unloaded",
                )
                assert loads(server) == expected

    def test_its_memory_is_given_back(self) -> None:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(DEMO_MODEL), str(CLIP)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

        assert done.returncode == 0, done.stderr
        measured = json.loads(done.stdout.splitlines()[-1])
        assert measured["loaded"] > measured["before"]
        assert measured["after"] <= 1.1 * measured["before"], measured


MEMORY = """
import json, sys
from pathlib import Path

import numpy, psutil

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.model.checkpoints import BundledModels, CheckpointStore
from parakeet_api.model.slot import ModelSlot
from parakeet_api.model.loading import ModelOptions
from parakeet_api.model.restore import import_libraries
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.settings import Settings
from parakeet_api.transcript import Chunk

checkpoint, clip = map(Path, sys.argv[1:])
options = ModelOptions(
    device="cpu", precision="auto", strategy="greedy", beam_size=4, longest_s=60.0
)
blocks = FfmpegDecoder(executable=find_ffmpeg(), max_seconds=60).stream(clip)
samples = numpy.concatenate(list(blocks))
bundled = BundledModels(english=checkpoint, grammar=checkpoint)
store = CheckpointStore(Settings.from_env({"MODEL_PATH": str(checkpoint)}), bundled=bundled)
store.start()
manager = ModelSlot(store, lambda path, _: NemoRecognizer.load(path, options), idle_timeout_s=0)


def megabytes():
    return psutil.Process().memory_info().rss / 1e6


import_libraries()
before = megabytes()
with manager.lease() as recognizer:
    for _ in range(5):
        assert recognizer.recognize([Chunk(0, 0, samples, 0, len(samples))])[0]
    loaded = megabytes()
del recognizer
assert manager.unload_unused() == "unloaded"
print(json.dumps({"before": before, "loaded": loaded, "after": megabytes()}))
"""
"""Megabytes of a process before a model is loaded, while it is there, and once it is gone."""


class TestRecovery:
    def test_a_damaged_file_is_reported_and_replaced(
        self, tmp_path: Path, clips: list[Clip]
    ) -> None:
        checkpoint = tmp_path / "mine.nemo"
        shutil.copyfile(DEMO_MODEL, checkpoint)
        environment = {"MODEL_PATH": str(checkpoint), "DEMO_MODEL": "auto"}
        with running_server(tmp_path, **environment) as server:
            # After the start, which would have refused it.
            checkpoint.write_bytes(DEMO_MODEL.read_bytes()[:100_000])

            error = error_of(transcribe(server, clips[2].path), 503)

            assert error["code"] == "model_load_failed"
            assert "mine.nemo cannot be loaded as a NeMo checkpoint" in error["message"]
            status = server.health()["model"]
            assert (status["state"], status["error"]) == ("failed", error["message"])
            assert request(server, "GET", "/ready").status_code == 503
            shutil.copyfile(DEMO_MODEL, checkpoint)
            assert transcribe(server, clips[2].path).json()["text"] == clips[2].text
            assert server.health()["model"]["state"] == "ready"
            assert request(server, "GET", "/ready").status_code == 200

    @pytest.fixture(
        params=[
            (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
            (MemoryError(), "MemoryError"),
        ],
        ids=["disk", "memory"],
    )
    def shortage(self, request: pytest.FixtureRequest) -> tuple[Exception, str]:
        error, message = request.param
        return error, message

    def test_a_shortage_during_unpacking_is_reported_and_temporary(
        self,
        tmp_path: Path,
        clips: list[Clip],
        monkeypatch: pytest.MonkeyPatch,
        shortage: tuple[Exception, str],
    ) -> None:
        error, message = shortage

        def refuse(*_: Any) -> None:
            raise error

        with served(tmp_path, DEMO_MODEL="grammar") as here:
            with monkeypatch.context() as patch:
                patch.setattr(shutil, "copyfileobj", refuse)
                failure = error_of(transcribe(here.server, clips[4].path), 503)
                status = here.server.health()["model"]
            assert failure["code"] == "model_load_failed"
            assert message in failure["message"]
            # The file is all right.
            assert "Download" not in failure["message"]
            assert (status["state"], status["error"]) == ("failed", failure["message"])

            assert transcribe(here.server, clips[4].path).json()["text"] == clips[4].text
