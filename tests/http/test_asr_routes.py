"""whisper-asr-webservice's endpoints, with Bazarr's requests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import srt  # type: ignore[import-untyped]
from conftest import Clip, Server, decode, running_server
from http_helpers import error_of, request, transcribe, uploads

from parakeet_api.audio.decoder import FfmpegDecoder

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def clip(clips: list[Clip]) -> Clip:
    return clips[4]


@pytest.fixture(scope="module")
def bilingual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model, configured to support German as well; it still outputs English."""
    folder = tmp_path_factory.mktemp("bilingual")
    with running_server(folder, MODEL_LANGUAGES="en,de") as started:
        yield started


def ask(server: Server, path: str, content: bytes, **query: str) -> httpx.Response:
    files = {"audio_file": ("audio.bin", content)}
    return request(server, "POST", path, params=query, files=files)


@pytest.mark.parametrize("output", ["txt", "srt", "vtt", "tsv", "json"])
def test_every_output_has_the_words(server: Server, clip: Clip, output: str) -> None:
    answer = ask(server, "/asr", clip.path.read_bytes(), output=output)

    assert answer.status_code == 200
    reference_words = re.findall(r"[\w']+", clip.text)
    assert set(reference_words) <= set(re.findall(r"[\w']+", answer.text))


def test_raw_samples_as_bazarr_sends_them_are_understood(
    server: Server, clip: Clip, decoder: FfmpegDecoder
) -> None:
    answer = ask(
        server,
        "/asr",
        decode(decoder, clip.path).tobytes(),
        task="transcribe",
        language="en",
        output="srt",
        encode="false",
    )

    assert " ".join(cue.content for cue in srt.parse(answer.text)).split() == clip.text.split()
    assert uploads(server) == []


def test_the_form_may_hold_the_parameters_too(server: Server, clip: Clip) -> None:
    answer = request(
        server,
        "POST",
        "/asr",
        files={"audio_file": clip.path.read_bytes()},
        data={"output": "json", "word_timestamps": "true"},
    ).json()

    words = [word["word"] for segment in answer["segments"] for word in segment["words"]]
    assert "".join(words) == f" {clip.text}"


def test_mistakes_are_named(server: Server, clip: Clip) -> None:
    content = clip.path.read_bytes()

    assert error_of(ask(server, "/asr", content, output="pdf"), 400)["param"] == "output"
    assert error_of(ask(server, "/asr", content, language="ja"), 400)["param"] == "language"
    assert error_of(ask(server, "/asr", b"no sound"), 400)["param"] == "audio_file"
    missing = request(server, "POST", "/asr", files={"file": content})
    assert error_of(missing, 400)["param"] == "audio_file"


def test_the_language_is_returned(server: Server, bilingual: Server, clip: Clip) -> None:
    content = clip.path.read_bytes()

    assert ask(server, "/detect-language", content).json() == {
        "detected_language": "english",
        "language_code": "en",
    }
    detection = ask(bilingual, "/detect-language", content).json()
    assert (detection["detected_language"], detection["language_code"]) == ("english", "en")
    assert detection["confidence"] > 0.7


def test_a_long_recording_is_recognised_until_its_language_is_clear(
    server: Server, decoder: FfmpegDecoder, speech: Path
) -> None:
    before = server.log.read_text().count("transcribed")

    answer = ask(server, "/detect-language", (speech / "long-dense.ogg").read_bytes())

    assert answer.json()["language_code"] == "en"
    assert server.log.read_text().count("transcribed") == before
    assert uploads(server) == []


def test_a_transcript_has_the_detected_language(bilingual: Server, clip: Clip) -> None:
    plain = transcribe(bilingual, clip.path).json()
    verbose = transcribe(bilingual, clip.path, {"response_format": "verbose_json"}).json()

    assert plain["languages"] == [{"code": "en"}]
    assert verbose["language"] == "english"


def test_silence_is_in_no_language(bilingual: Server) -> None:
    silence = bytes(2 * 16_000)

    assert ask(bilingual, "/asr", silence, encode="false").text == ""
    detection = ask(bilingual, "/detect-language", silence, encode="false").json()
    assert detection["language_code"] == "und"


def test_only_english_is_translated(bilingual: Server, clip: Clip) -> None:
    content = clip.path.read_bytes()

    english = ask(bilingual, "/asr", content, task="translate")
    german = ask(bilingual, "/asr", content, task="translate", language="de")

    assert english.text.split() == clip.text.split()
    assert error_of(german, 400)["code"] == "unsupported_language"
