"""The document at `/openapi.json` and the page at `/docs`: valid, complete, served locally."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args
from urllib.parse import urlsplit

import jsonschema_rs
import pytest
from api_description import operation_of, operations
from browser import chromium
from conftest import PATIENCE_S, ROOT, SPEECH, Server, running_server
from http_helpers import request
from playwright.sync_api import Page
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from parakeet_api import __version__
from parakeet_api.errors import ApiError
from parakeet_api.formats.asr_api import Output, parse_asr_params
from parakeet_api.formats.request_params import Granularity, Include, Task, parse_params
from parakeet_api.formats.speaker_params import ResponseFormat
from parakeet_api.http.routes import create_app
from parakeet_api.http.services import Services
from parakeet_api.openapi.document import Facts, describe
from parakeet_api.openapi.parts import MEANINGS
from parakeet_api.settings import Settings

pytestmark = pytest.mark.integration

VENDOR = ROOT / "static" / "vendor" / "swagger-ui"
OPEN_PATHS = {"/", "/docs", "/openapi.json", "/health/simple", "/ready"}
"""`/health` needs a key only for one parameter."""


def description(**settings: Any) -> dict[str, Any]:
    return describe(
        Facts(
            version="1.2.3",
            model="parakeet-tdt-0.6b-v3",
            languages=frozenset({"en", "de"}),
            settings=Settings(**settings),
        )
    )


class TestDocument:
    @pytest.mark.parametrize("settings", [{}, {"api_keys": ("key",)}], ids=["open", "guarded"])
    def test_it_is_valid(self, settings: dict[str, Any]) -> None:
        document = description(**settings)

        OPENAPI_31_VALIDATOR.validate(document)
        for schema in _schemas(document):
            jsonschema_rs.meta.validate(schema)

    def test_every_reference_resolves(self) -> None:
        document = description()

        references = set(_values(document, "$ref"))
        assert len(references) > 10
        for reference in references:
            place = document
            for step in str(reference).removeprefix("#/").split("/"):
                place = place[step]

    def test_every_definition_is_referenced(self) -> None:
        document = description()

        used = {str(reference).rpartition("/")[2] for reference in _values(document, "$ref")}
        definitions = {*document["components"]["schemas"], *document["components"]["headers"]}
        assert definitions == used

    def test_it_describes_the_running_server(self, server: Server, tmp_path: Path) -> None:
        limits = {"MAX_UPLOAD_MB": "7", "MAX_AUDIO_HOURS": "0.5", "API_KEY": "a-key"}
        usual = request(server, "GET", "/openapi.json").json()
        with running_server(tmp_path, MODEL_LANGUAGES="en,de", **limits) as other:
            changed = request(other, "GET", "/openapi.json").json()

        assert usual["info"]["version"] == __version__
        assert "parakeet-tdt-demo-en" in usual["info"]["description"]
        assert "2000 MB and 12 hours" in usual["info"]["description"]
        assert "7 MB and 0.5 hours" in changed["info"]["description"]
        assert "`de`, `en`" in changed["info"]["description"]
        assert "a-key" not in json.dumps(changed)

    def test_a_key_is_required_if_keys_are_set(self) -> None:
        opened, guarded = description(), description(api_keys=("key",))

        assert "security" not in opened
        assert "securitySchemes" not in opened["components"]
        assert guarded["security"] == [{"bearer": []}]
        assert guarded["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
        for operation in operations(guarded):
            needs_key = operation.body.get("security") != []
            assert needs_key == ("401" in operation.body["responses"])
            is_open = operation.path in OPEN_PATHS
            assert needs_key != is_open


class TestRoutes:
    def test_every_route_is_described_and_no_other(self) -> None:
        described = {(operation.method, operation.path) for operation in operations(description())}

        assert described == set(_routes())

    def test_the_aliases_without_v1_are_all_of_openais_paths(self) -> None:
        bare = {path for path in _rules() if path.startswith(("/audio", "/models"))}

        assert {f"/v1{path}" for path in bare} == {
            path for path in _rules() if path.startswith(("/v1/audio", "/v1/models"))
        }


class TestParameters:
    @pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
    def test_every_field_that_is_read_is_described_and_no_other(self, path: str) -> None:
        # The file is read elsewhere; the others are ignored, as all clients send them.
        read = _read_by(parse_params, response_format="diarized_json")
        assert read | {"file", "model", "prompt"} == set(_fields(path))

    def test_a_job_has_the_fields_of_a_transcription(self) -> None:
        fields = set(_fields("/v1/audio/transcriptions"))

        assert set(_fields("/v1/jobs")) == fields - {"stream"} | {"webhook_url"}

    def test_every_parameter_of_asr_that_is_read_is_described_and_no_other(self) -> None:
        described = set(_parameters("/asr"))

        assert _read_by(parse_asr_params, diarize="true") | {"model"} == described
        assert set(_parameters("/detect-language")) < described

    @pytest.mark.parametrize(
        ("name", "choices"),
        [
            ("response_format", ResponseFormat),
            ("timestamp_granularities[]", Granularity),
            ("include[]", Include),
        ],
    )
    def test_a_field_has_the_codes_own_values(self, name: str, choices: Any) -> None:
        schema = _fields("/v1/audio/transcriptions")[name]

        assert (schema.get("items") or schema)["enum"] == list(get_args(choices))

    @pytest.mark.parametrize(("name", "choices"), [("output", Output), ("task", Task)])
    def test_a_parameter_of_asr_has_the_codes_own_values(self, name: str, choices: Any) -> None:
        assert _parameters("/asr")[name]["enum"] == list(get_args(choices))

    def test_defaults_are_what_is_taken_when_nothing_is_sent(self) -> None:
        languages_of_model = frozenset({"en"})
        form = {
            name: schema["default"]
            for name, schema in _fields("/v1/audio/transcriptions").items()
            if "default" in schema
        }
        query = {name: schema.get("default") for name, schema in _parameters("/asr").items()}

        assert parse_params(_Form(form), languages=languages_of_model) == parse_params(
            _Form(), languages=languages_of_model
        )
        assert parse_asr_params(_Form(query), languages=languages_of_model) == parse_asr_params(
            _Form(), languages=languages_of_model
        )
        assert len(form) > 8
        assert len(query) > 5


class TestErrors:
    def test_every_error_has_a_meaning(self) -> None:
        assert set(MEANINGS) == set(_kinds(ApiError))

    def test_every_code_and_type_in_the_description_is_an_errors(self) -> None:
        kinds: list[type[ApiError]] = [*_kinds(ApiError), ApiError]
        described = description()["components"]["schemas"]["ErrorDetails"]

        assert set(described["properties"]["code"]["enum"]) == {kind.code for kind in kinds}
        assert set(described["properties"]["type"]["enum"]) == {kind.type for kind in kinds}

    def test_a_status_lists_only_errors_that_have_it(self) -> None:
        for operation in operations(description(api_keys=("key",))):
            for status, answer in operation.body["responses"].items():
                codes = set(re.findall(r"^- `(\w+)`", answer["description"], re.MULTILINE))
                known = {kind.code for kind in MEANINGS if str(kind.status) == status}
                assert codes <= known

    def test_retryable_errors_have_retry_after(self) -> None:
        for operation in operations(description()):
            for status, answer in operation.body["responses"].items():
                waits = any(
                    kind.retry_after_s
                    for kind in MEANINGS
                    if str(kind.status) == status and f"`{kind.code}`" in answer["description"]
                )
                assert ("Retry-After" in answer["headers"]) == waits


class TestDocsPage:
    def test_swagger_ui_is_the_published_version(self) -> None:
        lines = (VENDOR / "SHA256SUMS").read_text().splitlines()
        sums = {name: expected for expected, name in map(str.split, lines)}

        assert {path.name for path in VENDOR.iterdir()} == {*sums, "SHA256SUMS", "README.md"}
        for name, expected in sums.items():
            assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == expected

    def test_the_policy_allows_no_other_hosts(self, server: Server) -> None:
        policy = request(server, "GET", "/docs").headers["content-security-policy"]

        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert not re.search(r"https?:|\*", policy)

    def test_a_recording_is_transcribed_from_the_page(self, server: Server, page: _Visit) -> None:
        page.open(f"{server.url}/docs")

        answer = page.transcribe({"response_format": "srt"})

        assert "Rosa likes writing, but" in answer
        assert page.faults == []
        assert page.hosts == {urlsplit(server.url).netloc}

    def test_a_stream_is_shown(self, server: Server, page: _Visit) -> None:
        page.open(f"{server.url}/docs")

        answer = page.transcribe({"stream": "true"})

        assert "transcript.text.delta" in answer
        assert "transcript.text.done" in answer
        assert page.faults == []

    def test_a_key_can_be_given(self, tmp_path: Path, page: _Visit) -> None:
        with running_server(tmp_path, API_KEY="a-key") as guarded:
            page.open(f"{guarded.url}/docs")
            page.authorize("a-key")

            answer = page.execute("listModels")

        assert '"parakeet-tdt-demo-en"' in answer
        assert page.faults == []

    def test_it_works_behind_a_path_prefix(self, server: Server, page: _Visit) -> None:
        """A proxy that serves the server under `/speech/` is played by the browser's router."""
        page.behind_prefix(server.url, "/speech")
        page.open(f"{server.url}/speech/docs")

        answer = page.execute("health")

        assert '"status": "ok"' in answer
        assert page.faults == []
        assert all(path.startswith("/speech/") for path in page.paths)


@dataclass
class _Form:
    """A form that records which keys are read."""

    sent: Mapping[str, Any] = field(default_factory=dict)
    read_keys: set[str] = field(default_factory=set)

    def getlist(self, key: str) -> Sequence[str]:
        self.read_keys.add(key)
        value = self.sent.get(key, [])
        return [str(one) for one in value] if isinstance(value, list) else [str(value)]

    def keys(self) -> Iterable[str]:
        return self.sent.keys()


def _read_by(parse: Any, **fields: str) -> set[str]:
    """Return the names that a parser asks for, those of lists in their spelling with brackets."""
    form = _Form(fields)
    parse(form, languages=frozenset({"en"}))
    return {name for name in form.read_keys if f"{name}[]" not in form.read_keys}


def _fields(path: str) -> dict[str, Any]:
    operation = operation_of(description(), "POST", path)
    content = operation.body["requestBody"]["content"]["multipart/form-data"]
    return cast("dict[str, Any]", content["schema"]["properties"])


def _parameters(path: str) -> dict[str, Any]:
    operation = operation_of(description(), "POST", path)
    return {parameter["name"]: parameter["schema"] for parameter in operation.body["parameters"]}


def _rules() -> dict[str, set[str]]:
    """Return the application's paths as OpenAPI writes them, with their methods."""
    services = cast("Services", _OnlySettings(Settings()))
    rules: dict[str, set[str]] = {}
    for rule in create_app(services, root=ROOT).url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        rules.setdefault(path, set()).update(rule.methods or set())
    return rules


@dataclass(frozen=True)
class _OnlySettings:
    """The part of `Services` that is needed to build the application."""

    settings: Settings


def _routes() -> Iterator[tuple[str, str]]:
    """Return every method and path but static files, aliases and what Flask adds itself."""
    rules = _rules()
    for path, methods in rules.items():
        if not path.startswith("/static/") and f"/v1{path}" not in rules:
            yield from ((method, path) for method in methods - {"HEAD", "OPTIONS"})


def _kinds(error: type[ApiError]) -> Iterator[type[ApiError]]:
    """Yield the errors of this program; Ray makes subclasses of those that a replica raises."""
    for kind in error.__subclasses__():
        if kind.__module__.startswith("parakeet_api."):
            yield kind
            yield from _kinds(kind)


def _schemas(document: Mapping[str, Any]) -> Iterator[Any]:
    yield from document["components"]["schemas"].values()
    yield from _values(document["paths"], "schema")


def _values(tree: Any, key: str) -> Iterator[Any]:
    """Find all values of a key."""
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    if isinstance(tree, dict) and key in tree:
        yield tree[key]
    for branch in inner:
        yield from _values(branch, key)


class _Visit:
    """A browser at the page: user actions, and the browser's errors."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.faults: list[str] = []
        self.hosts: set[str] = set()
        self.paths: set[str] = set()
        page.set_default_timeout(PATIENCE_S * 1000)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("request", lambda sent: self._note(sent.url))

    def _hear(self, kind: str, text: str) -> None:
        if kind == "error":
            self.faults.append(text)

    def _note(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"blob", "data"}:
            self.hosts.add(parts.netloc)
            self.paths.add(parts.path)

    def behind_prefix(self, url: str, prefix: str) -> None:
        self._page.route(
            f"{url}{prefix}/**",
            lambda route: route.fulfill(
                response=route.fetch(url=route.request.url.replace(prefix, "", 1))
            ),
        )

    def open(self, url: str) -> None:
        self._page.goto(url)
        self._page.locator(".opblock").first.wait_for()

    def authorize(self, key: str) -> None:
        self._page.locator(".btn.authorize").click()
        self._page.locator(".auth-container input").fill(key)
        self._page.locator(".auth-btn-wrapper .authorize").click()
        self._page.locator(".auth-btn-wrapper .btn-done").click()

    def transcribe(self, choices: Mapping[str, str]) -> str:
        block = self._unfold("transcribe")
        block.locator("input[type=file]").set_input_files(SPEECH / "clip-001.flac")
        for name, value in choices.items():
            block.locator(f"tr[data-property-name={name}] select").select_option(value)
        return self._send("transcribe")

    def execute(self, name: str) -> str:
        self._unfold(name)
        return self._send(name)

    def _unfold(self, name: str) -> Any:
        block = self._page.locator(f"[id$=-{name}].opblock")
        block.locator(".opblock-summary-control").click()
        block.locator(".execute").wait_for()
        return block

    def _send(self, name: str) -> str:
        block = self._page.locator(f"[id$=-{name}].opblock")
        block.locator(".execute").click()
        answer = block.locator(".live-responses-table .highlight-code").first
        return answer.inner_text()


@pytest.fixture
def page() -> Iterator[_Visit]:
    with chromium() as browser:
        yield _Visit(browser.new_page())
