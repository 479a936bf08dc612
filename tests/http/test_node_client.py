"""OpenAI's Node package, driven by `node/client.mjs`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import srt  # type: ignore[import-untyped]
import webvtt
from conftest import ROOT, SPEECH, Clip, Server, encode, output_of, running_server, wait_until
from http_helpers import is_idle
from live_client import DELTA, sound_of

NODE = ROOT / "tests" / "node"

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="no node on the PATH"),
    pytest.mark.skipif(
        not (NODE / "node_modules" / "openai").is_dir(),
        reason="OpenAI's package for Node is not there: `npm ci` in tests/node",
    ),
]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a key that works two chunks ahead, so that words come before the end."""
    with running_server(
        tmp_path_factory.mktemp("narrow"),
        API_KEY="the-key",
        MAX_CONCURRENT_INFERENCES="1",
        TRANSCRIBE_BATCH_SIZE="1",
    ) as started:
        yield started


@pytest.fixture(scope="module")
def clip(clips: list[Clip]) -> Clip:
    return clips[10]


@pytest.fixture(scope="module")
def two_minutes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("two-minutes") / "two-minutes.mp3"
    return encode(SPEECH / "long-dense.ogg", target, "-t", "120")


def _run(case: str, server: Server, recording: Path) -> dict[str, Any]:
    """Run a case of the script to its end."""
    command = ["node", "client.mjs", case, f"{server.url}/v1", str(recording)]
    answer: dict[str, Any] = json.loads(output_of(command, folder=NODE))
    return answer


def _answer(case: str, server: Server, recording: Path) -> Any:
    output = _run(case, server, recording)
    assert "error" not in output, output
    return output["answer"]


def _error(case: str, server: Server, recording: Path) -> dict[str, Any]:
    output = _run(case, server, recording)
    assert "answer" not in output, output
    error: dict[str, Any] = output["error"]
    return error


def test_json_is_understood(narrow: Server, clip: Clip) -> None:
    answer = _answer("json", narrow, clip.path)

    assert answer["text"] == clip.text
    assert answer["usage"]["seconds"] == pytest.approx(clip.duration_s, abs=0.05)
    assert "".join(entry["token"] for entry in answer["logprobs"]) == clip.text


def test_verbose_json_is_understood(narrow: Server, clip: Clip) -> None:
    answer = _answer("verbose_json", narrow, clip.path)

    assert (answer["text"], answer["language"]) == (clip.text, "english")
    assert [word["word"] for word in answer["words"]] == clip.text.split()
    assert "".join(segment["text"] for segment in answer["segments"]) == f" {clip.text}"


def test_srt_comes_as_text(narrow: Server, clip: Clip) -> None:
    cues = srt.parse(_answer("srt", narrow, clip.path))

    assert " ".join(cue.content for cue in cues).split() == clip.text.split()


def test_openais_parameters_are_understood(narrow: Server, clip: Clip) -> None:
    assert _answer("parameters", narrow, clip.path)["text"] == clip.text


def test_a_stream_is_iterated(narrow: Server, two_minutes: Path) -> None:
    *deltas, done = _answer("stream", narrow, two_minutes)

    assert len(deltas) > 1
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert done["type"] == "transcript.text.done"
    assert "".join(event["delta"] for event in deltas) == done["text"]
    assert len(done["text"].split()) > 150
    assert [entry for event in deltas for entry in event["logprobs"]] == done["logprobs"]
    assert done["usage"]["type"] == "tokens"


def test_the_end_of_a_stream_carries_the_rendering(narrow: Server, clip: Clip) -> None:
    *_, done = _answer("stream_vtt", narrow, clip.path)

    captions = webvtt.from_string(done["vtt"]).captions
    assert " ".join(cue.text for cue in captions).split() == done["text"].split()


def test_a_translation_is_understood(narrow: Server, clip: Clip) -> None:
    assert _answer("translation", narrow, clip.path)["text"] == clip.text


def test_models_are_listed_and_described(narrow: Server, clip: Clip) -> None:
    (listed,) = _answer("models", narrow, clip.path)

    assert (listed["id"], listed["object"]) == ("parakeet-tdt-demo-en", "model")
    assert _answer("model", narrow, clip.path) == listed | {"id": "whisper-1"}


@pytest.mark.parametrize("case", ["abort", "leave_the_loop", "abort_before_the_answer"])
def test_one_that_aborts_leaves_nothing(narrow: Server, hour: Path, case: str) -> None:
    output = _run(case, narrow, hour)

    if case == "abort_before_the_answer":
        assert output["error"]["class"] == "APIUserAbortError"
    else:
        assert [event["type"] for event in output["answer"]] == ["transcript.text.delta"]
    wait_until(lambda: is_idle(narrow), what="its work has ended")


class TestErrors:
    @pytest.mark.parametrize("case", ["json", "stream"])
    def test_a_file_that_is_no_recording_is_a_bad_request(
        self, narrow: Server, tmp_path: Path, case: str
    ) -> None:
        target = tmp_path / "a.mp3"
        target.write_bytes(b"no sound")

        error = _error(case, narrow, target)

        assert (error["class"], error["status"]) == ("BadRequestError", 400)
        assert (error["param"], error["code"]) == ("file", "invalid_audio")
        assert error["type"] == "invalid_request_error"

    def test_a_file_cut_short_is_an_error_in_the_middle_of_the_stream(
        self, narrow: Server, two_minutes: Path, tmp_path: Path
    ) -> None:
        target = tmp_path / "half.mp3"
        content = two_minutes.read_bytes()
        target.write_bytes(content[: len(content) * 3 // 4])

        error = _error("stream", narrow, target)

        assert (error["class"], error.get("status")) == ("APIError", None)
        assert (error["param"], error["code"]) == ("file", "truncated_audio")

    def test_a_wrong_key_and_an_unknown_model_have_classes_of_their_own(
        self, narrow: Server, clip: Clip
    ) -> None:
        keys = ("class", "status", "code")

        wrong_key = _error("wrong_key", narrow, clip.path)
        unknown_model = _error("unknown_model", narrow, clip.path)

        assert [wrong_key[key] for key in keys] == ["AuthenticationError", 401, "invalid_api_key"]
        assert [unknown_model[key] for key in keys] == ["NotFoundError", 404, "model_not_found"]


def test_a_live_session_is_held(narrow: Server, clip: Clip, tmp_path: Path) -> None:
    pcm = tmp_path / "clip.pcm"
    pcm.write_bytes(sound_of(clip.path).tobytes())

    events = _answer("live", narrow, pcm)

    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["session.created", "session.updated"]
    assert {"input_audio_buffer.committed", "conversation.item.added"} <= set(kinds)
    assert "".join(event["delta"] for event in events if event["type"] == DELTA) == clip.text
    assert events[-1]["transcript"] == clip.text


def test_a_live_session_needs_a_key(narrow: Server, clip: Clip) -> None:
    assert "401" in _answer("live_wrong_key", narrow, clip.path)
