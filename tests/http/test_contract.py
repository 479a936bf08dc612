"""What a client sees, recorded: a change of the contract is a change of a file in `contract/`.

Each file holds a request in readable form and the whole answer to it. A new one needs only its
request; this writes the answers that differ:

    python -m pytest tests/http/test_contract.py --record
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from api_description import Operation, operation_of, operations, validate
from conftest import ROOT, Server, running_server, wait_until
from http_helpers import request as send
from http_helpers import wav

from parakeet_api.openapi.document import Facts, describe
from parakeet_api.settings import Settings
from parakeet_api.transcript import SAMPLE_RATE

pytestmark = pytest.mark.integration

FOLDER = ROOT / "tests" / "contract"
RECORDINGS = sorted(FOLDER.glob("*.json"))
HEADERS = ("Content-Type", "X-Parakeet-Model", "Retry-After", "Allow", "Cache-Control")
"""The ones that clients act on and that are the same each time."""
TOLERANCE = 0.02
"""Probabilities differ in the third digit from one processor to another; times are multiples of
0.08 s or exact."""


class Servers:
    """A server for each group of settings, started on first use."""

    def __init__(self, usual: Server, stack: ExitStack, folders: pytest.TempPathFactory) -> None:
        self._running: dict[str, Server] = {"{}": usual}
        self._stack = stack
        self._folders = folders

    def with_settings(self, settings: Mapping[str, str]) -> Server:
        key = json.dumps(settings, sort_keys=True)
        if key not in self._running:
            folder = self._folders.mktemp("contract")
            filled = {name: value.format(folder=folder) for name, value in settings.items()}
            started = self._stack.enter_context(running_server(folder, **filled))
            wait_until(lambda: _decided(started), what="a model, or none")
            self._running[key] = started
        return self._running[key]


def _decided(server: Server) -> bool:
    return server.health()["model"]["state"] not in ("choosing", "downloading")


@pytest.fixture(scope="module")
def servers(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(server, stack, tmp_path_factory)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_an_answer_is_as_recorded_and_as_described(
    path: Path, servers: Servers, pytestconfig: pytest.Config
) -> None:
    recording = json.loads(path.read_text(encoding="utf-8"))
    server = servers.with_settings(recording.get("settings", {}))

    request = recording["request"]
    if "job" in recording:
        request = request | {
            "path": request["path"].format(job_id=_submit(server, recording["job"]))
        }
    answer = _ask(server, request)

    described = send(server, "GET", "/openapi.json").json()
    operation = operation_of(described, answer.request.method, answer.request.url.path)
    _check_description(described, operation, answer)
    recorded = recording.get("response")
    actual = _settled(_seen(answer, shapes=recording.get("shapes", [])), recorded)
    if pytestconfig.getoption("--record"):
        whole = recording | {"response": actual}
        path.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        assert actual == recorded, f"if that is meant: pytest {Path(__file__).name} --record"


def test_every_described_answer_is_recorded() -> None:
    described = [
        describe(
            Facts(
                version="0",
                model="parakeet-tdt-demo-en",
                languages=frozenset({"en"}),
                settings=settings,
            )
        )
        for settings in (Settings(api_keys=("key",)), Settings(models=("one", "another")))
    ]
    recorded = set()
    for path in RECORDINGS:
        recording = json.loads(path.read_text(encoding="utf-8"))
        request, response = recording["request"], recording["response"]
        operation = operation_of(described[0], request["method"], request["path"])
        media_type = response["headers"]["Content-Type"].partition(";")[0]
        recorded.add((operation.name, response["status"], media_type))

    # A fault of the server's can't be had at will.
    assert recorded == {
        (operation.name, status, media_type)
        for document in described
        for operation in operations(document)
        for status, media_type in operation.answers()
        if status != 500
    }


def test_the_examples_are_the_demo_models_answers() -> None:
    described = json.loads((FOLDER / "openapi.json").read_text(encoding="utf-8"))
    content = described["response"]["body"]["paths"]["/v1/audio/transcriptions"]["post"][
        "responses"
    ]["200"]["content"]
    verbose = content["application/json"]["examples"]["verbose_json"]["value"]

    assert _settled(verbose, _body_of("transcribe-words")) == _body_of("transcribe-words")
    assert content["application/json"]["examples"]["json"]["value"] == _body_of("transcribe")
    for name, media_type in {
        "text": "text/plain",
        "srt": "application/x-subrip",
        "vtt": "text/vtt",
    }.items():
        assert content[media_type]["example"].split("\n") == _body_of(f"transcribe-{name}")
    assert _events(content["text/event-stream"]["example"]) == _body_of("transcribe-stream")


def _body_of(name: str) -> Any:
    recording = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return recording["response"]["body"]


def _ask(server: Server, request: Mapping[str, Any]) -> httpx.Response:
    files = {name: ("recording", _content(file)) for name, file in request.get("files", {}).items()}
    return send(
        server,
        request["method"],
        request["path"],
        params=request.get("query"),
        data=request.get("form"),
        json=request.get("json"),
        files=files or None,
        headers=request.get("headers"),
    )


def _submit(server: Server, job: Mapping[str, Any]) -> str:
    """Submit a job for a request to ask about.

    It is over by then, unless it is to be `unfinished`, or `under_way`.
    """
    job_id = str(_ask(server, {"method": "POST", "path": "/v1/jobs", **job}).json()["id"])

    def now() -> Any:
        return send(server, "GET", f"/v1/jobs/{job_id}").json()

    if job.get("under_way"):
        wait_until(lambda: now()["progress"]["done_s"], what="the job is under way")
    elif not job.get("unfinished"):
        wait_until(lambda: now()["finished_at"], what="the job is finished")
    return job_id


def _content(file: Mapping[str, Any]) -> bytes:
    match file:
        case {"silence_s": float() | int() as silence_s}:
            return wav(np.zeros(int(silence_s * SAMPLE_RATE)))
        case {"text": str() as text}:
            return text.encode() * int(file.get("times", 1))
    content: bytes = (ROOT / file["path"]).read_bytes()
    return content[: file.get("bytes")]


def _check_description(
    described: Mapping[str, Any], operation: Operation, answer: httpx.Response
) -> None:
    answers = operation.body["responses"]
    assert str(answer.status_code) in answers, answer.text
    content = answers[str(answer.status_code)]["content"]
    media_type = answer.headers["Content-Type"].partition(";")[0]
    if media_type == "application/json":
        validate(described, content[media_type]["schema"], answer.json())
    elif media_type == "text/event-stream":
        event = content[media_type]["schema"]["properties"]["data"]["contentSchema"]
        for body in _events(answer.text):
            validate(described, event, body)
    else:
        validate(described, content[media_type]["schema"], answer.text)


def _seen(answer: httpx.Response, *, shapes: list[str]) -> dict[str, Any]:
    headers = {name: answer.headers[name] for name in HEADERS if name in answer.headers}
    body = _body(answer)
    if shapes == ["*"]:
        body = _shape(body)
    return {
        "status": answer.status_code,
        "headers": headers,
        "body": _with_shapes(body, frozenset(shapes)),
    }


def _body(answer: httpx.Response) -> Any:
    match answer.headers["Content-Type"].partition(";")[0]:
        case "application/json":
            return answer.json()
        case "text/event-stream":
            return _events(answer.text)
        case "text/html":
            return "(a page)"
    return answer.text.split("\n")


def _events(stream: str) -> list[Any]:
    """Read a stream's events; comments keep the connection alive and tell nothing."""
    lines = [line for line in stream.split("\n") if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def _shape(value: Any) -> Any:
    """Return the types alone, of a list each kind of entry once."""
    match value:
        case dict():
            # What kind of object it is belongs to its shape.
            return {
                key: inner if key in ("type", "object") else _shape(inner)
                for key, inner in value.items()
            }
        case list():
            shapes = [_shape(inner) for inner in value]
            return [shape for place, shape in enumerate(shapes) if shape not in shapes[:place]]
        case None:
            return "<null>"
    return f"<{type(value).__name__}>"


def _with_shapes(value: Any, names: frozenset[str]) -> Any:
    """Replace the fields of these names, whose values vary from run to run.

    The description says what they may be, and that is checked.
    """
    if isinstance(value, list):
        return [_with_shapes(inner, names) for inner in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _varying(inner) if key in names else _with_shapes(inner, names)
        for key, inner in value.items()
    }


def _varying(value: Any) -> Any:
    return _shape(value) if isinstance(value, dict | list) else "<varies>"


def _settled(actual: Any, recorded: Any) -> Any:
    """Return the response, with recorded numbers where they are nearly equal."""
    match actual, recorded:
        case dict(), dict():
            return {key: _settled(inner, recorded.get(key)) for key, inner in actual.items()}
        case list(), list() if len(actual) == len(recorded):
            return [_settled(inner, old) for inner, old in zip(actual, recorded, strict=True)]
        case float(), float() | int() if math.isclose(actual, recorded, abs_tol=TOLERANCE):
            return recorded
        case float(), _:
            return round(actual, 4)
    return actual
