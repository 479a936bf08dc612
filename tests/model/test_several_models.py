"""Several models over HTTP: which one answers, in which languages, and who makes room for whom.

The files are copies of the demo model. What answers is the demo model itself, or an echo, which
hears nothing but its own name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from browser import Proxy, choose, chromium, transcript_of, visit
from conftest import DEMO_MODEL, PATIENCE_S, ROOT, SPEECH, Clip, Server, running_server, wait_until
from http_helpers import error_of, request, transcribe
from in_process import Echoes, Served, served
from model_helpers import run_all
from playwright.sync_api import expect

from parakeet_api import served_models
from parakeet_api.errors import StoppingError
from parakeet_api.model import slot

pytestmark = pytest.mark.integration

CLIP = SPEECH / "clip-001.flac"

Start = Callable[..., AbstractContextManager[Served]]


def copies(folder: Path, *names: str) -> str:
    """Make models of these names; give the folder."""
    folder.mkdir(exist_ok=True)
    for name in names:
        shutil.copyfile(DEMO_MODEL, folder / f"{name}.nemo")
    return str(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two copies of the demo model; by its name the second one speaks 25 languages."""
    folder = tmp_path_factory.mktemp("pair")
    models = copies(folder / "models", "one", "two-v3")
    with running_server(
        folder, MODELS="one,two-v3", MODELS_DIR=models, DEMO_MODEL="never"
    ) as started:
        yield started


@pytest.fixture
def echoes(monkeypatch: pytest.MonkeyPatch) -> Echoes:
    return Echoes(monkeypatch)


@pytest.fixture
def echoing(tmp_path: Path, echoes: Echoes) -> Start:
    """Start a server whose models `one` and `two` echo."""
    models = copies(tmp_path / "models", "one", "two")
    return partial(served, tmp_path, MODELS="one,two", MODELS_DIR=models)


def transcribed_text(server: Server, path: str = "/v1/audio/transcriptions", **fields: str) -> str:
    """Return the text of an answer to a clip."""
    file = "audio_file" if path == "/asr" else "file"
    query = fields if path == "/asr" else None
    answer = request(
        server,
        "POST",
        path,
        params=query,
        data=None if query else fields,
        files={file: CLIP.read_bytes()},
    )
    assert answer.status_code == 200, answer.text
    return answer.text.strip() if path == "/asr" else str(answer.json()["text"])


class TestChoice:
    def test_both_transcribe(self, pair: Server, clips: list[Clip]) -> None:
        for model in ("one", "two-v3"):
            answer = transcribe(pair, clips[3].path, {"model": model})

            assert answer.json()["text"] == clips[3].text
            assert answer.headers["X-Parakeet-Model"] == model
        metrics = request(pair, "GET", "/metrics").text
        for model in ("one", "two-v3"):
            assert (
                f'parakeet_model_state{{model="{model}",parakeet_model_state="ready"}} 1.0'
                in metrics
            )

    def test_they_are_listed_the_first_first(self, pair: Server) -> None:
        listed = request(pair, "GET", "/v1/models").json()["data"]

        assert [model["id"] for model in listed] == ["one", "two-v3"]
        assert request(pair, "GET", "/v1/models/two-v3").json()["id"] == "two-v3"
        assert request(pair, "GET", "/models/whisper-1").json()["id"] == "whisper-1"
        assert error_of(request(pair, "GET", "/v1/models/six"), 404)["code"] == "model_not_found"

    @pytest.mark.parametrize(
        ("path", "file"),
        [
            ("/v1/audio/transcriptions", "file"),
            ("/v1/audio/translations", "file"),
            ("/v1/jobs", "file"),
            ("/asr", "audio_file"),
            ("/detect-language", "audio_file"),
        ],
    )
    def test_a_name_of_none_is_refused_everywhere(self, pair: Server, path: str, file: str) -> None:
        answer = request(
            pair, "POST", path, data={"model": "three"}, files={file: CLIP.read_bytes()}
        )

        error = error_of(answer, 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "'one', 'two-v3'" in error["message"]

    def test_each_model_has_its_own_languages(self, pair: Server) -> None:
        def ask(path: str, file: str, model: str) -> int:
            fields = {"model": model, "language": "de"}
            body = {file: CLIP.read_bytes()}
            return request(pair, "POST", path, data=fields, files=body).status_code

        for path, file in (("/v1/audio/transcriptions", "file"), ("/asr", "audio_file")):
            assert [ask(path, file, model) for model in ("one", "two-v3")] == [400, 200]
        known = {model["name"]: model["languages"] for model in pair.health()["models"]}
        assert known["one"] == ["en"]
        assert len(known["two-v3"]) == 25

    def test_the_description_names_them(self, pair: Server) -> None:
        described = request(pair, "GET", "/openapi.json").json()

        assert "models `one`, `two-v3`" in described["info"]["description"]
        operation = described["paths"]["/v1/audio/transcriptions"]["post"]
        form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert form["properties"]["model"]["examples"] == ["one", "two-v3"]
        assert "`model_not_found`" in operation["responses"]["404"]["description"]

    @pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/asr"])
    def test_what_is_named_is_what_answers(self, echoing: Start, path: str) -> None:
        with echoing() as here:
            texts = [
                transcribed_text(here.server, path, model=name)
                for name in ("two", "one", "whisper-1")
            ]

        assert texts == ["two", "one", "one"]

    def test_a_stream_comes_from_the_model_that_is_named(self, echoing: Start) -> None:
        with echoing() as here:
            answer = transcribe(here.server, CLIP, {"model": "two", "stream": "true"})

        assert '"delta": "two"' in answer.text
        assert answer.headers["X-Parakeet-Model"] == "two"

    def test_batches_are_never_of_two_models(self, echoing: Start, echoes: Echoes) -> None:
        texts: list[tuple[str, str]] = []

        def ask(server: Server, name: str) -> None:
            texts.extend((name, transcribed_text(server, model=name)) for _ in range(5))

        with echoing(MAX_CONCURRENT_INFERENCES="2") as here:
            names = ["one", "two"] * 6
            assert run_all(*[partial(ask, here.server, name) for name in names]) == []

        assert len(texts) == 60
        assert all(name == text for name, text in texts)


class TestJobs:
    @pytest.mark.parametrize(
        ("afterwards", "outcome"),
        # The default is the other one then; or the job's model is not among them any more.
        [("one,two", ("succeeded", "two\n", None)), ("one", ("failed", None, "model_not_found"))],
    )
    def test_a_job_is_done_by_its_model_or_by_none_also_after_a_restart(
        self,
        echoing: Start,
        echoes: Echoes,
        monkeypatch: pytest.MonkeyPatch,
        afterwards: str,
        outcome: tuple[str, str | None, str | None],
    ) -> None:
        stopping = threading.Event()

        def stuck() -> None:
            assert stopping.wait(PATIENCE_S)
            raise StoppingError

        with monkeypatch.context() as patch, echoing(MODELS="two,one") as here:
            patch.setattr(echoes.count_of("two"), "before", stuck)
            job = submit(here.server, model="two", response_format="text")
            wait_until(lambda: here.services.jobs.counts.running == 1, what="the job runs")
            stopping.set()
        with echoing(MODELS=afterwards) as here:
            done = finished(here.server, job["id"])

        assert job["model"] == done["model"] == "two"
        code = done["error"] and done["error"]["code"]
        assert (done["status"], done["result"], code) == outcome


def submit(server: Server, **fields: str) -> dict[str, Any]:
    answer = request(server, "POST", "/v1/jobs", data=fields, files={"file": CLIP.read_bytes()})
    assert answer.status_code == 202, answer.text
    accepted: dict[str, Any] = answer.json()
    return accepted


def finished(server: Server, job_id: str) -> dict[str, Any]:
    """Wait for a job's end."""

    def look() -> dict[str, Any]:
        job: dict[str, Any] = request(server, "GET", f"/v1/jobs/{job_id}").json()
        return job

    wait_until(lambda: look()["finished_at"], what="the job is done")
    return look()


class TestRoom:
    @pytest.fixture(autouse=True)
    def narrow(self, monkeypatch: pytest.MonkeyPatch, echoes: Echoes) -> None:
        """Leave room for one model; and let no collection take a third of a second."""

        def has_room(_: Path, __: str, **___: object) -> bool:
            return echoes.alive() == 0

        monkeypatch.setattr(served_models, "has_room", has_room)
        monkeypatch.setattr(slot, "gc", SimpleNamespace(collect=lambda: 0))

    def test_one_makes_room_for_the_other(self, echoing: Start, echoes: Echoes) -> None:
        with echoing() as here:
            for name in ("one", "two", "one"):
                assert transcribed_text(here.server, model=name) == name
                states = {m["name"]: m["state"] for m in here.server.health()["models"]}
                other = "two" if name == "one" else "one"
                assert states == {name: "ready", other: "unloaded"}

        assert [echoes.counts[name].loads for name in ("one", "two")] == [2, 1]

    def test_requests_for_both_are_all_answered_by_the_right_one(
        self, echoing: Start, echoes: Echoes
    ) -> None:
        most = [0]
        texts: list[tuple[str, str]] = []

        def ask(server: Server, name: str) -> None:
            for _ in range(10):
                texts.append((name, transcribed_text(server, model=name)))
                most[0] = max(most[0], echoes.alive())

        with echoing(MAX_CONCURRENT_INFERENCES="2") as here:
            assert run_all(*[partial(ask, here.server, name) for name in ["one", "two"] * 4]) == []

        assert len(texts) == 80
        assert all(name == text for name, text in texts)
        assert most == [1]
        assert all(count.most_alive == 1 for count in echoes.counts.values())


class TestPage:
    def test_a_choice_appears_and_is_sent(self, pair: Server) -> None:
        with (
            chromium() as browser,
            Proxy(pair.url) as proxy,
            visit(browser, proxy.url) as page,
        ):
            model = page.get_by_label("Model", exact=True)
            expect(model.locator("option")).to_have_text(["one", "two-v3"])
            expect(page.locator("#spoken option")).to_have_count(2)
            model.select_option("two-v3")
            expect(page.locator("#spoken option")).to_have_count(26)
            expect(page.locator("#model-status")).to_contain_text("two-v3")
            choose(page, CLIP)
            transcript_of(page)
            assert b'name="model"\r\n\r\ntwo-v3\r\n' in proxy.upload
            page.reload()
            expect(model).to_have_value("two-v3")

    def test_with_one_model_there_is_no_choice(self, server: Server) -> None:
        with chromium() as browser, visit(browser, server.url) as page:
            expect(page.locator("#spoken option")).to_have_count(2)
            expect(page.locator("#model-choice")).to_be_hidden()


class TestCommandLine:
    def run(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "app.py", "transcribe", str(CLIP), *arguments],
            cwd=ROOT,
            env=os.environ
            | {
                "MODELS_DIR": copies(folder / "models", "one"),
                "TEMP_UPLOADS_DIR": str(folder / "uploads"),
                "HF_ENDPOINT": "http://127.0.0.1:9",
            },
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def test_a_model_is_named(self, tmp_path: Path) -> None:
        done = self.run(tmp_path, "--model", "one", "--output-dir", str(tmp_path / "out"))

        assert done.returncode == 0, done.stderr
        text = (tmp_path / "out" / "clip-001.txt").read_text(encoding="utf-8")
        assert text == "Rosa likes writing, but Olivia likes working.\n"

    def test_a_model_that_cannot_be_had_is_no_other(self, tmp_path: Path) -> None:
        done = self.run(tmp_path, "--model", "two", "--output-dir", str(tmp_path / "out"))

        assert done.returncode == 2
        assert "nvidia/two could not be downloaded" in done.stderr


def test_a_damaged_one_of_several_stops_the_start_by_name(tmp_path: Path) -> None:
    folder = Path(copies(tmp_path / "models", "one"))
    (folder / "two.nemo").write_bytes(b"no archive")

    with (
        pytest.raises(RuntimeError, match=r"two\.nemo is not a readable"),
        running_server(tmp_path, MODELS="one,two", MODELS_DIR=str(folder), DEMO_MODEL="never"),
    ):
        pass
