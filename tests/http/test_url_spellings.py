from __future__ import annotations

import pytest

from parakeet_api.http.url_spellings import usual_spelling

TRANSCRIPTIONS = "/v1/audio/transcriptions"


@pytest.mark.parametrize(
    ("given", "usual"),
    [
        (TRANSCRIPTIONS, TRANSCRIPTIONS),
        # A base URL that ends with /v1, for a client that adds it itself.
        ("/v1/v1/audio/transcriptions", TRANSCRIPTIONS),
        ("/v1/audio/transcriptions/", TRANSCRIPTIONS),
        ("//v1//audio///transcriptions//", TRANSCRIPTIONS),
        # An endpoint's whole address as a base URL.
        ("/v1/audio/transcriptions/v1/audio/transcriptions", TRANSCRIPTIONS),
        ("/v1/audio/transcriptions/audio/transcriptions", TRANSCRIPTIONS),
        ("/audio/translations/", "/audio/translations"),
        ("/health/", "/health"),
        ("/", "/"),
        ("//", "/"),
        ("", "/"),
        # Names of models are whatever they are.
        ("/v1/models/nvidia/parakeet-tdt-0.6b-v2", "/v1/models/nvidia/parakeet-tdt-0.6b-v2"),
        ("/v1/v1/models/a//b", "/v1/models/a//b"),
        ("/v1/models/", "/v1/models"),
    ],
)
def test_a_path_is_spelt_as_it_is_documented(given: str, usual: str) -> None:
    assert usual_spelling(given) == usual


@pytest.mark.parametrize("path", [TRANSCRIPTIONS, "/asr", "/v1/jobs/abc", "/static/app.js"])
def test_usual_spellings_stay(path: str) -> None:
    assert usual_spelling(usual_spelling(path)) == path
