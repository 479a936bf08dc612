"""The service without a checkpoint and without a network, on recordings of people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browser import chromium, transcript_of, visit
from conftest import PATIENCE_S, PEOPLE, ROOT, Server, encode, running_server, wait_until
from http_helpers import ENDPOINT
from playwright.sync_api import expect

from benchmarks.english import by_source, load_recordings, word_errors
from parakeet_api.transcript import SAMPLE_RATE

pytestmark = pytest.mark.integration

NOTE = "small English model, for trying things out; about 17 words in 100 are wrong on clear speech"


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a server without a checkpoint or a hub.

    It loads before it serves: on a busy machine that takes longer than a page is waited for.
    """
    folder = tmp_path_factory.mktemp("offline")
    settings = {
        "DEMO_MODEL": "auto",
        "ENABLE_LAZY_LOAD": "false",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(folder / "cache"),
        "MODELS_DIR": str(folder / "models"),
    }
    with running_server(folder, **settings) as started:
        wait_until(
            lambda: started.health()["model"]["state"] not in ("choosing", "downloading"),
            what="the choice of a model",
        )
        yield started


def transcribe(server: Server, path: Path, **fields: str) -> httpx.Response:
    answer = httpx.post(
        server.url + ENDPOINT, files={"file": path.read_bytes()}, data=fields, timeout=240
    )
    return answer.raise_for_status()


def test_the_bundled_model_is_named_with_its_error_rate(offline: Server) -> None:
    model = offline.health()["model"]
    headers = httpx.get(offline.url + "/health/simple", timeout=PATIENCE_S).headers

    assert (model["name"], model["demo"], model["note"]) == ("whisper-tdt-small-en", True, NOTE)
    assert headers["X-Parakeet-Model"] == "whisper-tdt-small-en"
    assert headers["X-Parakeet-Model-Note"] == NOTE
    assert f"BUNDLED MODEL whisper-tdt-small-en in use: {NOTE}." in offline.log.read_text()
    for readme in ("README.md", "samples/english-model/README.md"):
        assert NOTE in " ".join((ROOT / readme).read_text(encoding="utf-8").split())


def test_fewer_than_one_word_in_six_is_wrong(offline: Server) -> None:
    recordings = load_recordings(PEOPLE)

    texts = [transcribe(offline, recording.path).json()["text"] for recording in recordings]

    errors = by_source(recordings, texts)
    assert errors["LibriSpeech"].percent < 17
    assert errors["VCTK"].percent < 25


def test_a_long_recording_of_people_is_cut_and_joined(offline: Server, tmp_path: Path) -> None:
    """Stitched chunks of 30 s have the error rate of the single recordings."""
    recordings = load_recordings(PEOPLE)
    playlist = tmp_path / "list.txt"
    playlist.write_text("".join(f"file '{r.path}'\n" for r in recordings) * 3, encoding="utf-8")
    joined = encode(playlist, tmp_path / "all.flac", before=("-f", "concat", "-safe", "0"))
    reference = " ".join(recording.text for recording in recordings * 3)

    body = transcribe(offline, joined, response_format="verbose_json").json()

    assert body["duration"] > 200
    assert word_errors([reference], [body["text"]]).percent < 20


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readmes_first_example_is_what_the_server_answers(offline: Server, readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    example = re.search(
        r"^\$ curl \S+ -F file=@(samples/people/\S+)\n(\{.*\})$", text, re.MULTILINE
    )
    assert example is not None

    assert transcribe(offline, ROOT / example[1]).json() == json.loads(example[2])


def test_a_sentence_is_recorded_and_transcribed(offline: Server, tmp_path: Path) -> None:
    """The browser's microphone plays the sentence over and over, with a pause in between."""
    pause = f"apad=pad_len={2 * SAMPLE_RATE}"
    microphone = encode(
        PEOPLE / "england.flac", tmp_path / "microphone.wav", "-af", pause, "-ar", "48000"
    )
    strings = json.loads((ROOT / "static/strings.en.json").read_text(encoding="utf-8"))
    with (
        chromium(f"--use-file-for-fake-audio-capture={microphone}") as browser,
        visit(browser, offline.url) as page,
    ):
        expect(page.locator("#demo-banner")).to_contain_text(strings["demo.english.title"])
        expect(page.locator("#demo-banner")).to_contain_text("17 words in 100")
        page.locator("#record").click()
        # Twice its length: one whole sentence is in it, wherever the browser began.
        # A busy page may skip a second.
        expect(page.locator("#record-time")).to_have_text(re.compile(r"0:(1[5-9]|[2-5]\d)"))
        page.get_by_role("button", name="Stop and transcribe").click()

        # Its beginning and its end may be cut off where the microphone starts and stops, and its
        # first words are within a letter of another spelling: they vary with where it starts.
        assert "in England being principally confined to the" in transcript_of(page)
