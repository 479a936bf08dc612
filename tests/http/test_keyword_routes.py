"""Keywords over HTTP: every way to send them, to the small English model and a person's voice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import PATIENCE_S, REAL_SPEECH, ROOT, Server, wait_until
from http_helpers import ENDPOINT, error_of, events, streamed
from in_process import served
from live_client import COMPLETED, live, sound_of

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:connect:DeprecationWarning"),
]

CLIP = REAL_SPEECH / "librispeech_dev_clean_mp3-0062.ogg"
"""Illustration, rusks."""
HEARD, MEANT = "illustration, rusts.", "illustration, rusks."
FOREIGN = "\u0394\u03b5\u03bb\u03c6\u03bf\u03af"


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("keywords"), DEMO_MODEL="always") as running:
        yield running.server


def send(server: Server, path: str = ENDPOINT, **fields: Any) -> httpx.Response:
    name = "audio_file" if path.startswith("/asr") else "file"
    return httpx.post(
        server.url + path, files={name: CLIP.read_bytes()}, data=fields, timeout=PATIENCE_S
    )


def text_of(response: httpx.Response) -> str:
    response.raise_for_status()
    return str(response.json()["text"]).strip().lower()


@pytest.mark.parametrize(
    "fields",
    [
        {"keywords[]": ["Rusks", "Ambrosch"]},
        {"keywords[0]": "Ambrosch", "keywords[1]": "Rusks"},
        {"keywords": ["Rusks", "Ambrosch"]},
        {"keywords": '["Rusks:1.0", "Ambrosch"]'},
        {"keywords": "Ambrosch, Rusks"},
    ],
    ids=["brackets", "numbered", "repeated", "json", "commas"],
)
def test_keywords_are_accepted_in_every_spelling_of_a_list(
    english: Server, fields: dict[str, Any]
) -> None:
    assert text_of(send(english, **fields)) == MEANT


def test_without_keywords_the_transcript_is_unchanged(english: Server) -> None:
    assert text_of(send(english)) == HEARD
    assert text_of(send(english, **{"keywords[]": "Ambrosch"})) == HEARD


def test_requests_at_once_with_lists_of_their_own_have_the_words_of_each_alone(
    english: Server,
) -> None:
    rows = json.loads((REAL_SPEECH / "recordings.json").read_text(encoding="utf-8"))[-8:]
    names = sorted({word for row in rows for word in row["text"].split() if len(word) > 6})

    def recognised(number: int) -> str:
        row = rows[number % len(rows)]
        chosen = (
            ["Rusks"] * (number // 8 % 2)
            + names[number % 16 :: 4]
            + [f"Z{'aeiou'[number % 5]}{'klmnprt'[number % 7]}"]
        )
        return str(
            httpx.post(
                english.url + ENDPOINT,
                files={"file": (REAL_SPEECH / row["file"]).read_bytes()},
                data={"keywords[]": chosen, "response_format": "text"},
                timeout=PATIENCE_S,
            )
            .raise_for_status()
            .text
        )

    alone = [recognised(number) for number in range(32)]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(recognised, range(32)))

    assert together == alone
    assert len(set(alone)) > len(rows)


def test_words_from_a_keyword_are_marked(english: Server) -> None:
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}

    words = send(english, keywords="Rusks", **fields).json()["words"]

    assert [word.get("from_keyword") for word in words] == [None, True]


def test_whisper_asr_webservice_calls_them_hotwords(english: Server) -> None:
    assert text_of(send(english, "/asr?output=json&hotwords=Rusks")) == MEANT
    assert text_of(send(english, "/asr?output=json")) == HEARD


def test_translations_streams_and_jobs_take_keywords(english: Server) -> None:
    assert text_of(send(english, "/v1/audio/translations", keywords="Rusks")) == MEANT
    with streamed(english, CLIP, {"keywords": "Rusks"}) as lines:
        done = list(events(lines))[-1]
    assert done["text"].lower() == MEANT

    job = send(english, "/v1/jobs", keywords="Rusks:1.5").json()["id"]

    def state() -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"{english.url}/v1/jobs/{job}").json()
        return answer

    wait_until(lambda: state()["status"] == "succeeded", what="the job")
    assert state()["result"]["text"].lower() == MEANT


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ([FOREIGN], FOREIGN),
        (["a<b"], "a<b"),
        (["x" * 81], "x" * 80),
        ([f"name {number}" for number in range(501)], "name 500"),
        (["Rusks:99"], "Rusks:99"),
    ],
    ids=["letters", "signs", "length", "number", "weight"],
)
@pytest.mark.parametrize("path", [ENDPOINT, "/v1/jobs"])
def test_an_invalid_keyword_is_named(
    english: Server, path: str, keywords: list[str], named: str
) -> None:
    error = error_of(send(english, path, keywords=json.dumps(keywords)), 400)

    assert error["param"] == "keywords[]"
    assert named in error["message"]


def test_hotwords_are_named_as_they_were_sent(english: Server) -> None:
    error = error_of(send(english, f"/asr?hotwords={FOREIGN}"), 400)

    assert error["param"] == "hotwords[]"


def test_a_live_session_takes_keywords(english: Server) -> None:
    with live(english) as session:
        session.configure(
            transcription={"keywords": ["Rusks:1.5", "Ambrosch"]}, turn_detection=None
        )
        given = session.events[-1].session.audio.input.transcription.model_dump()
        assert given["keywords"] == ["Rusks:1.5", "Ambrosch"]
        session.say(sound_of(CLIP))
        session.connection.input_audio_buffer.commit()
        assert session.until(COMPLETED).transcript.lower() == MEANT

        session.connection.session.update(
            session={
                "type": "transcription",
                "audio": {"input": {"transcription": {"keywords": [FOREIGN]}}},
            }
        )
        error = session.until("error").error
    assert error.param == "session.audio.input.transcription.keywords"
    assert FOREIGN in error.message


def test_a_keywords_file_applies_to_all_requests(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("# of this kitchen\nRusks\n", encoding="utf-8")

    with served(tmp_path, DEMO_MODEL="always", KEYWORDS_FILE=str(file)) as running:
        assert text_of(send(running.server)) == MEANT
        assert text_of(send(running.server, keywords="Ambrosch")) == MEANT


def test_the_command_line_takes_keywords(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("Ambrosch\n", encoding="utf-8")
    command = [sys.executable, "app.py", "transcribe", str(CLIP), "--output-dir", str(tmp_path)]
    environ = {"DEMO_MODEL": "always", "TEMP_UPLOADS_DIR": str(tmp_path / "up"), "PATH": ""}

    for options in (["--keyword", "Rusks", "--keywords-file", str(file)], ["--keyword", "a<b"]):
        outcome = subprocess.run(
            [*command, *options], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
        )
        if outcome.returncode:
            assert "--keyword='a<b'" in outcome.stderr

    assert (tmp_path / f"{CLIP.stem}.txt").read_text().strip().lower() == MEANT
    assert outcome.returncode == 2
