"""Generated requests against the description: no 5xx, and no answer that is not described.

`make fuzz-api` sends more of them. A failure prints the request as a curl command and a seed, with
which `SCHEMATHESIS_SEED=... make fuzz-api` repeats it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from api_description import closed
from conftest import ROOT, Server, running_server
from http_helpers import request

pytestmark = pytest.mark.integration

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)
ENVIRONMENT = {
    "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
    "PYTHONPATH": str(ROOT / "tests"),
    "NO_PROXY": "*",
}
EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "5"))
"""Generated requests per operation, in addition to those at the limits of parameters."""
MIN_REQUESTS = int(os.environ.get("SCHEMATHESIS_MIN", "100"))
SEED = os.environ.get("SCHEMATHESIS_SEED", "1")
"""Always the same requests, so that a pull request fails only because of its changes."""


def test_every_answer_to_generated_requests_is_described(tmp_path: Path) -> None:
    # A full queue's 503 would hide other errors: jobs are submitted faster than processed. So would
    # that of a speaker model that cannot be downloaded.
    settings = {"MAX_QUEUED_JOBS": "100000", "DIARIZATION": "off"}
    with running_server(tmp_path, **settings) as server:
        outcome, sent = _run(server, tmp_path, checks=CHECKS, examples=EXAMPLES)

    assert outcome.returncode == 0, outcome.stdout
    assert sent >= MIN_REQUESTS


def test_no_generated_request_passes_without_the_key(tmp_path: Path) -> None:
    with running_server(tmp_path, API_KEY="right-key") as guarded:
        outcome, sent = _run(
            guarded,
            tmp_path,
            "--header=Authorization: Bearer right-key",
            # A few requests that end before a model is loaded are enough.
            "--include-path-regex=^/v1/models",
            checks=(*CHECKS, "ignored_auth"),
            examples=2,
        )

    assert outcome.returncode == 0, outcome.stdout
    assert sent > 0


def _run(
    server: Server, folder: Path, *options: str, checks: tuple[str, ...], examples: int
) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run schemathesis over the server's description, its answers' schemas made strict."""
    document, report = folder / "openapi.json", folder / "report.json"
    described = request(server, "GET", "/openapi.json").json()
    # What clients send stays as lenient as it is.
    strict = {**described, **{key: closed(described[key]) for key in ("paths", "components")}}
    document.write_text(json.dumps(strict), encoding="utf-8")
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *("run", str(document), "--url", server.url, "--no-color"),
        *("--checks", ",".join(checks), "--max-examples", str(examples), "--seed", SEED),
        # A busy machine takes its time to load the model.
        *("--request-timeout", "120", "--report", "json", "--report-json-path", str(report)),
        *options,
    ]
    outcome = subprocess.run(
        command,
        # It keeps what it found in a folder of the current directory.
        cwd=folder,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    sent = json.loads(report.read_text(encoding="utf-8"))["test_cases"]["generated"]
    return outcome, sent
