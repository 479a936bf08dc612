"""Loading and unloading by hand: access, responses, and that no work is disturbed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import DEMO_MODEL, PATIENCE_S, SPEECH, running_server, wait_until
from http_helpers import error_of, request, transcribe
from in_process import Echoes, Served, served

from parakeet_api.http import admin_routes

pytestmark = pytest.mark.integration

CLIP = SPEECH / "clip-001.flac"


@pytest.fixture
def echoes(monkeypatch: pytest.MonkeyPatch) -> Echoes:
    return Echoes(monkeypatch)


@pytest.fixture
def here(tmp_path: Path, echoes: Echoes) -> Iterator[Served]:
    """A server whose model echoes; anyone may use it."""
    with served(tmp_path, DEMO_MODEL="grammar") as started:
        yield started


@pytest.fixture
def pair(tmp_path: Path, echoes: Echoes) -> Iterator[Served]:
    """The same with two models."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.nemo").symlink_to(DEMO_MODEL)
    with served(tmp_path, MODELS="one,two", MODELS_DIR=str(tmp_path)) as started:
        yield started


def post(here: Served, path: str, **options: Any) -> httpx.Response:
    return request(here.server, "POST", path, **options)


def outcomes(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 200, answer.text
    return {model["name"]: model["outcome"] for model in answer.json()["models"]}


class TestWho:
    @pytest.mark.parametrize("path", ["/admin/load", "/admin/unload"])
    def test_with_keys_it_takes_one(self, tmp_path: Path, echoes: Echoes, path: str) -> None:
        with served(tmp_path, DEMO_MODEL="grammar", API_KEY="right") as locked:
            assert error_of(post(locked, path), 401)["code"] == "invalid_api_key"
            assert post(locked, path, headers={"Authorization": "Bearer wrong"}).status_code == 401
            right = {"Authorization": "Bearer right", "X-Forwarded-For": "192.0.2.1"}
            assert post(locked, path, headers=right).status_code == 200

    @pytest.mark.parametrize("path", ["/admin/load", "/admin/unload"])
    def test_without_keys_it_takes_this_machine(self, here: Served, path: str) -> None:
        assert post(here, path).status_code == 200
        for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"):
            assert error_of(post(here, path, headers={name: "192.0.2.1"}), 403)["code"] == (
                "forbidden"
            )

    def test_a_trusted_proxy_states_the_client_address(
        self, tmp_path: Path, echoes: Echoes
    ) -> None:
        with served(tmp_path, DEMO_MODEL="grammar", TRUSTED_PROXY="127.0.0.1") as proxied:
            for client, status in (("127.0.0.1", 200), ("192.0.2.1", 403)):
                headers = {"X-Forwarded-For": client}
                assert post(proxied, "/admin/unload", headers=headers).status_code == status

    def test_another_sites_page_is_refused_and_ours_is_not(self, here: Served) -> None:
        for origin, status in (("https://evil.example", 403), (here.server.url, 200)):
            answer = post(here, "/admin/unload", headers={"Origin": origin})
            assert answer.status_code == status

    def test_it_is_not_counted_as_a_transcription(self, tmp_path: Path, echoes: Echoes) -> None:
        with served(tmp_path, DEMO_MODEL="grammar", RATE_LIMIT="1/hour") as limited:
            assert [post(limited, "/admin/unload").status_code for _ in range(3)] == [200] * 3

    def test_get_does_nothing(self, here: Served) -> None:
        error_of(request(here.server, "GET", "/admin/unload"), 405)


class TestUnload:
    def test_an_idle_model_is_unloaded_and_loaded_again(self, here: Served, echoes: Echoes) -> None:
        name = "parakeet-tdt-demo-en"
        assert outcomes(post(here, "/admin/unload")) == {name: "not_loaded"}

        for loads in (1, 2):
            assert transcribe(here.server, CLIP).status_code == 200
            assert echoes.counts[name].loads == loads
            assert outcomes(post(here, "/admin/unload")) == {name: "unloaded"}
            assert echoes.alive() == 0
            assert here.server.health()["model"]["state"] == "unloaded"

    def test_one_of_several_is_named_in_the_query_or_in_a_form(
        self, pair: Served, echoes: Echoes
    ) -> None:
        for name in ("one", "two"):
            assert transcribe(pair.server, CLIP, {"model": name}).status_code == 200

        assert outcomes(post(pair, "/admin/unload", params={"model": "two"})) == {"two": "unloaded"}
        assert echoes.counts["one"].alive == 1
        assert outcomes(post(pair, "/admin/unload", data={"model": "one"})) == {"one": "unloaded"}
        assert error_of(post(pair, "/admin/unload?model=six"), 404)["code"] == "model_not_found"

    def test_a_model_in_use_stays_and_the_others_are_unloaded(
        self, pair: Served, echoes: Echoes
    ) -> None:
        assert transcribe(pair.server, CLIP, {"model": "two"}).status_code == 200
        go_on = hold(echoes, "one")
        answers: list[httpx.Response] = []
        busy = threading.Thread(
            target=lambda: answers.append(transcribe(pair.server, CLIP, {"model": "one"}))
        )
        busy.start()
        wait_until(lambda: echoes.counts["one"].loads, what="one is being loaded")

        error = error_of(post(pair, "/admin/unload"), 409)

        assert error["code"] == "model_in_use"
        assert error["message"].startswith("one: in use")
        assert echoes.counts["two"].alive == 0
        go_on.set()
        busy.join()
        assert answers[0].json()["text"] == "one"

    def test_a_recording_between_two_batches_counts_as_work(
        self, here: Served, echoes: Echoes
    ) -> None:
        assert transcribe(here.server, CLIP).status_code == 200
        pipeline = here.services.models.first.pipeline
        stream = pipeline.stream(SPEECH / "long-pauses.ogg")
        next(stream)

        assert post(here, "/admin/unload").status_code == 409
        stream.close()
        assert post(here, "/admin/unload").status_code == 200


class TestLoad:
    def test_it_answers_when_the_model_is_loaded(self, pair: Served, echoes: Echoes) -> None:
        assert outcomes(post(pair, "/admin/load")) == {"one": "loaded"}
        assert outcomes(post(pair, "/admin/load")) == {"one": "already_loaded"}
        assert outcomes(post(pair, "/admin/load", params={"model": "two"})) == {"two": "loaded"}
        assert [count.loads for count in echoes.counts.values()] == [1, 1]

    def test_a_failed_load_gives_the_reason_and_can_be_retried(
        self, here: Served, echoes: Echoes
    ) -> None:
        def fail() -> None:
            raise MemoryError

        models = echoes.count_of("parakeet-tdt-demo-en")
        models.before = fail

        error = error_of(post(here, "/admin/load"), 503)

        assert error["code"] == "model_load_failed"
        assert error["message"] == "The model could not be loaded: MemoryError"
        status = here.server.health()["model"]
        assert (status["state"], status["error"]) == ("failed", error["message"])
        models.before = lambda: None
        assert post(here, "/admin/load").status_code == 200

    def test_the_wait_is_limited_in_time_and_number(
        self, here: Served, echoes: Echoes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(admin_routes, "_MAX_WAIT_S", 1.0)
        go_on = hold(echoes, "parakeet-tdt-demo-en")
        answers: list[httpx.Response] = []
        waiting = [
            threading.Thread(target=lambda: answers.append(post(here, "/admin/load")))
            for _ in range(5)
        ]
        for thread in waiting:
            thread.start()
        for thread in waiting:
            thread.join()

        errors = [error_of(answer, 503) for answer in answers]
        assert {error["code"] for error in errors} == {"model_not_ready"}
        # Two occupied a thread for that second; the others got a response at once.
        assert sum("still being loaded" in error["message"] for error in errors) >= 2
        go_on.set()
        wait_until(
            lambda: here.server.health()["model"]["state"] == "ready",
            what="the load went on",
        )
        assert echoes.counts["parakeet-tdt-demo-en"].loads == 1

    def test_without_a_file_it_gives_the_reason(self, tmp_path: Path) -> None:
        nowhere = {"DEMO_MODEL": "never", "HF_ENDPOINT": "http://127.0.0.1:9"}
        with running_server(tmp_path, MODELS_DIR=str(tmp_path / "none"), **nowhere) as bare:
            answer = request(bare, "POST", "/admin/load")

            assert error_of(answer, 503)["code"] in ("model_not_ready", "model_load_failed")


def hold(echoes: Echoes, name: str) -> threading.Event:
    """Let a model's loads wait for an event."""
    go_on = threading.Event()

    def wait() -> None:
        assert go_on.wait(PATIENCE_S)

    echoes.count_of(name).before = wait
    return go_on
