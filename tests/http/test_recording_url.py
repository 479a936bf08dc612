"""Recordings that the server fetches from a URL, from a real web server."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import PATIENCE_S, SPEECH, Clip, Server, wait_until
from http_helpers import ENDPOINT, error_of
from in_process import served

from parakeet_api.allowed_hosts import recording_hosts
from parakeet_api.errors import RecordingUrlError
from parakeet_api.http.recording_url import fetch_recording
from parakeet_api.model.batching import RequestCancelled

pytestmark = pytest.mark.integration


class Host:
    """A web server with a recording, redirects and faults."""

    def __init__(self, recording: bytes) -> None:
        self.paths: list[str] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.paths.append(self.path)
                name, _, rest = self.path[1:].partition("/")
                if name == "endless":
                    self._send(200)
                    while True:
                        self.wfile.write(bytes(64 * 1024))
                target = "/loop" if name == "loop" else rest or "/recording.flac"
                answers: dict[str, tuple[int, dict[str, Any], bytes]] = {
                    "to": (302, {"Location": target}, b""),
                    "loop": (302, {"Location": target}, b""),
                    "recording.flac": (200, {"Content-Length": len(recording)}, recording),
                    "short": (200, {"Content-Length": len(recording)}, recording[:1000]),
                }
                status, headers, body = answers.get(name, (404, {}, b"nothing"))
                self._send(status, **headers)
                self.wfile.write(body)

            def _send(self, status: int, **headers: object) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, str(value))
                self.end_headers()

            def handle(self) -> None:
                # An error: the server has hung up, as a test expects.
                with suppress(OSError):
                    super().handle()

            def log_message(self, *_: object) -> None:
                """Write no log."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.name = f"127.0.0.1:{self._server.server_address[1]}"

    def at(self, path: str) -> str:
        return f"http://{self.name}/{path}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    started = Host((SPEECH / "clip-010.flac").read_bytes())
    yield started
    started.close()


@pytest.fixture(scope="module")
def fetching(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fetching")
    options = {"DEMO_MODEL": "grammar", "ALLOW_URLS": host.name, "MAX_UPLOAD_MB": "8"}
    with served(folder, **options) as running:
        yield running.server


def send(server: Server, path: str = ENDPOINT, **fields: Any) -> httpx.Response:
    return httpx.post(server.url + path, files=as_form(fields), timeout=240)


def as_form(fields: dict[str, str]) -> dict[str, tuple[None, str]]:
    """Give text fields so that httpx sends multipart/form-data."""
    return {name: (None, value) for name, value in fields.items()}


def test_a_recording_is_fetched(fetching: Server, host: Host, clips: list[Clip]) -> None:
    expected = next(clip.text for clip in clips if clip.path.name == "clip-010.flac")

    answer = send(fetching, url=host.at("recording.flac"), response_format="text")

    assert answer.status_code == 200, answer.text
    assert answer.text.strip() == expected
    assert not [*fetching.uploads.glob("upload-*")]
    assert send(fetching, url=host.at("to/")).json()["text"] == expected
    asr = send(fetching, "/asr?output=txt", url=host.at("recording.flac"))
    assert asr.text.strip() == expected


def test_a_job_fetches_its_recording(fetching: Server, host: Host, clips: list[Clip]) -> None:
    job = send(fetching, "/v1/jobs", url=host.at("recording.flac")).json()

    def result() -> httpx.Response:
        return httpx.get(f"{fetching.url}/v1/jobs/{job['id']}/result", timeout=PATIENCE_S)

    wait_until(lambda: result().status_code == 200, what="the job's result")
    assert result().json()["text"] == next(c.text for c in clips if c.path.name == "clip-010.flac")


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        ("missing", "recording_url_failed", "it answered 404"),
        ("short", "recording_url_failed", "received 1000 bytes"),
        ("loop", "recording_url_failed", "more than 5 redirects"),
        ("to/http://127.0.0.2:1/x", None, "not among those of ALLOW_URLS"),
        ("to/file:///etc/passwd", None, "not a URL that begins with"),
    ],
)
def test_a_recording_that_cannot_be_fetched_is_a_400(
    fetching: Server, host: Host, path: str, code: str | None, reason: str
) -> None:
    error = error_of(send(fetching, url=host.at(path)), 400)

    assert error["param"] == "url"
    assert error["code"] == code
    assert re.search(reason, error["message"])
    assert not [*fetching.uploads.glob("upload-*")]


def test_a_recording_that_is_too_large_is_a_413(fetching: Server, host: Host) -> None:
    error_of(send(fetching, url=host.at("endless")), 413)

    assert not [*fetching.uploads.glob("upload-*")]


def test_a_file_and_a_url_are_not_accepted_together(fetching: Server, host: Host) -> None:
    fields = as_form({"url": host.at("recording.flac")})

    answer = httpx.post(
        fetching.url + ENDPOINT, files=fields | {"file": ("a.flac", b"fLaC")}, timeout=PATIENCE_S
    )

    assert error_of(answer, 400)["param"] == "url"


def test_without_hosts_nothing_is_fetched(server: Server, host: Host) -> None:
    before = len(host.paths)

    error = error_of(send(server, url=host.at("recording.flac")), 400)

    assert error["param"] == "url"
    assert "ALLOW_URLS is empty" in error["message"]
    assert len(host.paths) == before


def test_a_client_that_leaves_ends_the_download(host: Host, tmp_path: Path) -> None:
    asked = iter([False, True])

    with (tmp_path / "file").open("wb") as file, pytest.raises(RequestCancelled):
        fetch_recording(
            host.at("endless"),
            file,
            hosts=recording_hosts([host.name]),
            limit=None,
            cancelled=lambda: next(asked),
        )


def test_a_download_that_never_ends_is_cut_off(host: Host, tmp_path: Path) -> None:
    hosts = recording_hosts([host.name])

    with (
        (tmp_path / "file").open("wb") as file,
        pytest.raises(RecordingUrlError, match="too slowly"),
    ):
        fetch_recording(host.at("endless"), file, hosts=hosts, limit=None, total_s=0.0)


def test_the_description_lists_the_field_where_it_is_accepted(
    fetching: Server, server: Server, host: Host
) -> None:
    def form(of: Server) -> Any:
        document = httpx.get(f"{of.url}/openapi.json", timeout=PATIENCE_S).json()
        operation = document["paths"]["/v1/audio/transcriptions"]["post"]
        return operation["requestBody"]["content"]["multipart/form-data"]["schema"]

    assert host.name in form(fetching)["properties"]["url"]["description"]
    assert "url" not in form(server)["properties"]
