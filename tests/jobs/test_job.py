from __future__ import annotations

from parakeet_api.formats.request_params import TranscriptionParams
from parakeet_api.jobs.job import params_from_json, params_to_json
from parakeet_api.keywords import Keyword
from parakeet_api.transcript import KnownSpeaker, SpeakerRequest


def test_parameters_survive_a_restart() -> None:
    params = TranscriptionParams(
        response_format="diarized_json",
        languages=frozenset({"de", "en"}),
        include=frozenset({"logprobs"}),
        keywords=(Keyword("Rosa", 2.0),),
        speakers=SpeakerRequest(
            channels="auto",
            diarize=True,
            max_speakers=3,
            known=(KnownSpeaker("Ann", b"\x00\x01\xff\x7f"), KnownSpeaker("Bob")),
        ),
    )

    assert params_from_json(params_to_json(params)) == params


def test_jobs_of_an_older_version_ask_for_no_speakers() -> None:
    assert params_from_json('{"model": "a", "unknown": 1}') == TranscriptionParams(model="a")
