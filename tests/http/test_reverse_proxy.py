"""The server behind nginx as deploy/ configures it; skipped where nginx is not installed."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import PATIENCE_S, ROOT, SPEECH, Clip, Server, wait_until
from http_helpers import ENDPOINT, error_of, request, transcribe, wav
from live_client import dial, sound_of

from parakeet_api.transcript import SAMPLE_RATE

SITE = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed"),
]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    # fmt: off
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
            "-subj", "/CN=localhost", "-keyout", key, "-out", certificate,
        ],
        check=True, capture_output=True, timeout=PATIENCE_S,
    )
    # fmt: on
    return certificate, key


def _configure(folder: Path, *, upstream: str, port: int) -> Path:
    """Write a whole configuration around the site's, with the addresses and folders of a test."""
    certificate, key = _certificate(folder)
    site = (
        SITE.replace("listen 443", f"listen 127.0.0.1:{port}")
        .replace("listen [::]:443", f"listen [::1]:{port}")
        .replace("127.0.0.1:5092", upstream)
        .replace("/etc/letsencrypt/live/example.org/fullchain.pem", str(certificate))
        .replace("/etc/letsencrypt/live/example.org/privkey.pem", str(key))
    )
    (folder / "site.conf").write_text(site)
    places = "\n".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    main.write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{places}\ninclude {folder}/site.conf;\n}}\n"
    )
    return main


@contextmanager
def _nginx(server: Server, folder: Path, *, upstream: str) -> Iterator[Server]:
    """Run nginx in front of an address; give the server as its clients see it."""
    port = _free_port()
    main = _configure(folder, upstream=upstream, port=port)
    command = ["nginx", "-c", str(main), "-e", str(folder / "error.log")]
    subprocess.run([*command, "-t"], check=True, capture_output=True, timeout=PATIENCE_S)
    process = subprocess.Popen(command)
    proxied = dataclasses.replace(server, url=f"https://127.0.0.1:{port}/parakeet")
    try:
        wait_until(lambda: _answers(proxied), what="nginx answers")
        yield proxied
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_S)


def _answers(server: Server) -> bool:
    try:
        request(server, "GET", "/metrics")
    except httpx.ConnectError:
        return False
    return True


@pytest.fixture(scope="module")
def proxied(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server, as it is seen through nginx."""
    folder = tmp_path_factory.mktemp("nginx")
    with _nginx(server, folder, upstream=server.url.removeprefix("http://")) as proxied:
        yield proxied


def test_the_page_and_what_it_loads_are_under_the_prefix(proxied: Server) -> None:
    bare = request(proxied, "GET", "")
    page = request(proxied, "GET", "/")

    assert bare.status_code == 301
    assert bare.headers["location"].endswith("/parakeet/")
    assert "static/app.css" in page.text
    assert request(proxied, "GET", "/static/app.css").status_code == 200
    assert request(proxied, "GET", "/health").json()["status"] == "ok"


def test_a_recording_is_transcribed_through_the_proxy(proxied: Server, clips: list[Clip]) -> None:
    answer = transcribe(proxied, clips[1].path)

    assert answer.json()["text"] == clips[1].text
    assert answer.headers["x-request-id"]


def test_an_upload_may_be_larger_than_nginx_allows_by_itself(proxied: Server) -> None:
    recording = wav(np.zeros(60 * SAMPLE_RATE))

    assert len(recording) > 1024**2
    assert transcribe(proxied, recording).status_code == 200


def test_events_of_a_stream_are_not_held_back(proxied: Server) -> None:
    with (
        (SPEECH / "long-dense.ogg").open("rb") as recording,
        httpx.Client(trust_env=False, verify=False, timeout=PATIENCE_S) as client,
        client.stream(
            "POST",
            f"{proxied.url}{ENDPOINT}",
            files={"file": ("long-dense.ogg", recording)},
            data={"stream": "true"},
        ) as answer,
    ):
        next(answer.iter_raw())
        queue = request(proxied, "GET", "/health").json()["queue"]

    assert queue["active_requests"] == 1, "the answer began when the work had ended"


def test_a_stopped_server_is_reported_in_the_usual_format(server: Server, tmp_path: Path) -> None:
    with _nginx(server, tmp_path, upstream=f"127.0.0.1:{_free_port()}") as proxied:
        answer = transcribe(proxied, b"anything")

    assert error_of(answer, 503)["code"] == "service_unavailable"
    assert answer.headers["retry-after"] == "5"


def test_metrics_are_not_shown_to_the_world(proxied: Server) -> None:
    assert request(proxied, "GET", "/metrics").status_code == 404


def test_a_live_session_passes(proxied: Server, clips: list[Clip]) -> None:
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    audio = base64.b64encode(sound_of(clips[0].path).tobytes()).decode()
    # On port 443 the page's origin has no port, as here.
    with dial(proxied, ssl=unverified, origin="https://127.0.0.1") as connection:
        kinds = [json.loads(connection.recv())["type"]]
        connection.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        while kinds[-1] != "input_audio_buffer.speech_started":
            kinds.append(json.loads(connection.recv())["type"])

    assert kinds[0] == "session.created"
