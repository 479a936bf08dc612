"""Hundreds of damaged recordings and requests (`make fuzz` sends 100,000), and past findings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.fuzz import Target, ask, fuzz_media, fuzz_requests, running_target

_PARTS = (
    b"--sep\r\nContent-Disposition: form-data\r\n\r\nx\r\n"
    b'--sep\r\nContent-Disposition: form-data; name="file"; filename="a.flac"\r\n\r\nsound\r\n'
    b"--sep--\r\n"
)
_FORM = (
    b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: here\r\n"
    b"Content-Type: multipart/form-data; boundary=sep\r\n"
)

FOUND = {
    "part without a name": _FORM + b"Content-Length: %d\r\n\r\n" % len(_PARTS) + _PARTS,
    "unknown transfer encoding": _FORM + b"Transfer-Encoding: gzip\r\n\r\n",
}
"""Requests that once caused a 5xx."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with running_target(tmp_path_factory.mktemp("target")) as started:
        yield started


@pytest.fixture
def findings() -> Iterator[list[str]]:
    """Collect findings; any fails the test."""
    found: list[str] = []
    yield found
    assert found == []


def test_damaged_media_neither_crash_nor_hang_the_decoder(findings: list[str]) -> None:
    outcomes = fuzz_media(range(200), lambda seed, what: findings.append(f"{seed}: {what}"))

    assert outcomes.total() == 200
    # Some damaged files still decode, and some do not.
    assert 20 < outcomes["decoded"] < 180


def test_damaged_requests_are_never_a_fault_of_the_server(findings: list[str]) -> None:
    statuses = fuzz_requests(range(400), lambda seed, what: findings.append(f"{seed}: {what}"))

    assert statuses.total() == 400
    assert statuses["400"] > 40
    assert statuses["200"] > 40


@pytest.mark.parametrize("name", FOUND)
def test_findings_stay_fixed(target: Target, findings: list[str], name: str) -> None:
    assert ask(target, FOUND[name], findings.append) in {"200", "400"}


def test_a_fault_would_be_found(target: Target) -> None:
    reports: list[str] = []
    (target.uploads / "upload-left").touch()

    ask(target, b"GET /health HTTP/1.0\r\n\r\n", reports.append)

    assert reports == ["left 1 files"]
    assert list(target.uploads.iterdir()) == []
