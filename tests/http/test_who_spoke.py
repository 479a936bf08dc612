"""Who spoke, over HTTP: with OpenAI's packages, plain and streamed, of jobs and channels.

The diarizer is a stand-in that follows a script; recognition, decoding and HTTP are real.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import webvtt
from conftest import ROOT, Clip, encode, wait_until
from conversations import make_call, make_talk, turns_of
from diarizers import Scripted
from http_helpers import error_of, request, transcribe
from in_process import Served, served
from openai.types.audio import (
    Transcription,
    TranscriptionDiarized,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionTextSegmentEvent,
)

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.model.diarizer import SpeakerModel

pytestmark = pytest.mark.integration

NODE = ROOT / "tests" / "node"


def _words(text: str) -> list[str]:
    return re.sub(r"[^\w\s']", "", text.lower()).split()


@pytest.fixture(scope="module")
def talk(
    clips: list[Clip], decoder: FfmpegDecoder, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Three clips one after the other; the first and the last are the same person's."""
    return make_talk(clips[:3], decoder, tmp_path_factory.mktemp("talk"))


@pytest.fixture(scope="module")
def turns(clips: list[Clip]) -> list[tuple[float, float, int]]:
    return turns_of(clips[:3], [2, 0, 2])


@pytest.fixture(scope="module")
def call(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A telephone call whose sides talk at the same time."""
    target = tmp_path_factory.mktemp("call") / "call.wav"
    telephone = ("-ar", "8000", "-c:a", "pcm_mulaw", "-t", "10")
    return make_call([clip.path for clip in clips[:2]], target, *telephone)


@pytest.fixture(scope="module")
def running(
    turns: list[tuple[float, float, int]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        diarizer = Scripted(turns)
        monkeypatch.setattr(SpeakerModel, "diarizer", lambda *_: diarizer)
        with served(tmp_path_factory.mktemp("served"), DEMO_MODEL="grammar") as started:
            yield started


@pytest.fixture
def client(running: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.server.url}/v1", api_key="unused") as started:
        yield started


def ask(running: Served, recording: Path, **fields: str) -> Any:
    answer = transcribe(running.server, recording, fields)
    assert answer.status_code == 200, answer.text
    is_json = answer.headers["content-type"] == "application/json"
    return answer.json() if is_json else answer.text


class TestOpenAi:
    def test_the_model_of_openai_that_tells_speakers_apart(
        self, client: openai.OpenAI, talk: Path, clips: list[Clip]
    ) -> None:
        with talk.open("rb") as file:
            answer = client.audio.transcriptions.create(
                model="gpt-4o-transcribe-diarize",
                file=file,
                response_format="diarized_json",
                chunking_strategy="auto",
            )

        assert isinstance(answer, TranscriptionDiarized)
        TranscriptionDiarized.model_validate(answer.model_dump(), strict=True)
        assert [segment.speaker for segment in answer.segments] == ["A", "B", "A"]
        assert [_words(segment.text) for segment in answer.segments] == [
            _words(clip.text) for clip in clips[:3]
        ]
        assert answer.text == " ".join(segment.text for segment in answer.segments)
        assert len({segment.id for segment in answer.segments}) == 3
        assert not answer.model_extra

    def test_its_name_implies_the_format(self, client: openai.OpenAI, talk: Path) -> None:
        with talk.open("rb") as file:
            answer = client.audio.transcriptions.create(
                model="gpt-4o-transcribe-diarize", file=file
            )

        assert isinstance(answer, Transcription)
        assert [part["speaker"] for part in (answer.model_extra or {})["segments"]] == [*"ABA"]

    def test_a_stream_has_segments_that_add_up_to_the_text(
        self, client: openai.OpenAI, talk: Path
    ) -> None:
        with talk.open("rb") as file:
            *events, done = client.audio.transcriptions.create(
                model="gpt-4o-transcribe-diarize",
                file=file,
                response_format="diarized_json",
                stream=True,
            )
        with talk.open("rb") as file:
            plain = client.audio.transcriptions.create(
                model="whisper-1", file=file, response_format="diarized_json"
            )

        assert isinstance(done, TranscriptionTextDoneEvent)
        deltas = [event for event in events if isinstance(event, TranscriptionTextDeltaEvent)]
        segments = [event for event in events if isinstance(event, TranscriptionTextSegmentEvent)]
        assert len(deltas) + len(segments) == len(events)
        for event in (*events, done):
            type(event).model_validate(event.model_dump(), strict=True)
        assert "".join(delta.delta for delta in deltas) == done.text
        assert [delta.segment_id for delta in deltas] == [segment.id for segment in segments]
        assert [part.model_dump() for part in segments] == [
            part.model_dump() for part in plain.segments
        ]

    @pytest.mark.skipif(
        shutil.which("node") is None or not (NODE / "node_modules" / "openai").is_dir(),
        reason="no node on the PATH, or OpenAI's package for it is not there",
    )
    def test_the_package_for_node_reads_both(self, running: Served, talk: Path) -> None:
        def run(case: str) -> Any:
            command = ["node", "client.mjs", case, f"{running.server.url}/v1", str(talk)]
            outcome = subprocess.run(
                command, cwd=NODE, capture_output=True, text=True, check=True, timeout=240
            )
            return json.loads(outcome.stdout)["answer"]

        plain = run("diarized_json")
        events = run("stream_diarized_json")

        assert [segment["speaker"] for segment in plain["segments"]] == ["A", "B", "A"]
        segments = [event for event in events if event["type"] == "transcript.text.segment"]
        assert segments == plain["segments"]
        assert events[-1]["text"] == plain["text"]


class TestFormats:
    def test_verbose_json_has_the_speaker_of_words_and_segments(
        self, running: Served, talk: Path
    ) -> None:
        body = ask(
            running,
            talk,
            response_format="verbose_json",
            diarize="true",
            timestamp_granularities="word,segment",
        )

        assert [segment["speaker"] for segment in body["segments"]] == ["A", "B", "A"]
        assert {word["speaker"] for word in body["words"]} == {"A", "B"}
        assert len(body["words"]) == sum(len(_words(part["text"])) for part in body["segments"])

    def test_nobody_who_does_not_ask_gets_speakers(self, running: Served, talk: Path) -> None:
        body = ask(running, talk, response_format="verbose_json")

        assert all("speaker" not in segment for segment in body["segments"])

    def test_subtitles_name_the_speaker(self, running: Served, talk: Path, tmp_path: Path) -> None:
        vtt = tmp_path / "talk.vtt"
        vtt.write_text(ask(running, talk, response_format="vtt", diarize="true"))
        captions = webvtt.read(str(vtt)).captions
        srt = ask(running, talk, response_format="srt", diarize="true")

        voices = [caption.voice for caption in captions]
        assert voices[0] == "A"
        assert voices[-1] == "A"
        assert "B" in voices
        assert [line[:3] for line in srt.splitlines() if line[1:3] == ": "] == ["A: ", "B: ", "A: "]

    def test_text_has_a_line_for_each_turn(
        self, running: Served, talk: Path, clips: list[Clip]
    ) -> None:
        lines = ask(running, talk, response_format="text", diarize="true").splitlines()

        assert [line[:3] for line in lines] == ["A: ", "B: ", "A: "]
        assert [_words(line[3:]) for line in lines] == [_words(clip.text) for clip in clips[:3]]

    def test_asr_has_speakers(self, running: Served, talk: Path) -> None:
        answer = request(
            running.server,
            "POST",
            "/asr?diarize=true&output=json&word_timestamps=true&max_speakers=1&min_speakers=1",
            files={"audio_file": talk.read_bytes()},
        )

        assert answer.status_code == 200, answer.text
        segments = answer.json()["segments"]
        assert {segment["speaker"] for segment in segments} == {"A"}
        assert {word["speaker"] for segment in segments for word in segment["words"]} == {"A"}

    def test_a_job_has_speakers(self, running: Served, talk: Path) -> None:
        def show() -> Any:
            return request(running.server, "GET", f"/v1/jobs/{submitted['id']}").json()

        submitted = request(
            running.server,
            "POST",
            "/v1/jobs",
            files={"file": talk.read_bytes()},
            data={"response_format": "diarized_json", "max_speakers": "2"},
        ).json()
        wait_until(lambda: show()["status"] == "succeeded", what="the job's end")

        assert [part["speaker"] for part in show()["result"]["segments"]] == ["A", "B", "A"]
        events = request(running.server, "GET", f"/v1/jobs/{submitted['id']}/events").json()
        kinds = {event["type"] for event in events["events"]}
        assert "transcript.text.segment" in kinds


class TestChannels:
    def test_both_sides_of_a_call_come_out_right(
        self, running: Served, call: Path, clips: list[Clip]
    ) -> None:
        body = ask(
            running,
            call,
            response_format="verbose_json",
            channels="separate",
            timestamp_granularities="word,segment",
        )

        for number, clip in enumerate(clips[:2], start=1):
            said = [word for word in body["words"] if word["channel"] == number]
            assert _words(" ".join(word["word"] for word in said)) == _words(clip.text)
            assert {word["speaker"] for word in said} == {"AB"[number - 1]}
        assert body["duration"] == pytest.approx(10.0, abs=0.05)

    def test_auto_finds_the_call_and_not_the_mono_recording(
        self, running: Served, call: Path, talk: Path
    ) -> None:
        apart = ask(running, call, response_format="verbose_json", channels="auto")
        mono = ask(running, talk, response_format="verbose_json", channels="auto")

        assert {segment["channel"] for segment in apart["segments"]} == {1, 2}
        assert all("channel" not in segment for segment in mono["segments"])

    def test_channels_are_the_speakers_of_diarized_json_and_have_names(
        self, running: Served, call: Path
    ) -> None:
        named = {
            "response_format": "diarized_json",
            "channels": "separate",
            "known_speaker_names": json.dumps(["Agent, first", "Customer"]),
        }
        body = ask(running, call, **named)

        assert {segment["speaker"] for segment in body["segments"]} == {"Agent, first", "Customer"}

    def test_a_stream_of_channels_adds_up(self, client: openai.OpenAI, call: Path) -> None:
        with call.open("rb") as file:
            *events, done = client.audio.transcriptions.create(
                model="whisper-1",
                file=file,
                response_format="diarized_json",
                stream=True,
                extra_body={"channels": "separate"},
            )

        deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
        assert isinstance(done, TranscriptionTextDoneEvent)
        assert "".join(deltas) == done.text
        assert done.text


def data_url(path: Path) -> str:
    return f"data:audio/wav;base64,{base64.b64encode(path.read_bytes()).decode()}"


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "param", "named"),
        [
            ({"channels": "left"}, "channels", "'left'"),
            ({"channels": "separate", "audio_track": "all"}, "channels", "all"),
            ({"diarize": "perhaps"}, "diarize", "'perhaps'"),
            ({"diarize": "true"}, "diarize", "json"),
            ({"diarize": "false", "response_format": "diarized_json"}, "diarize", "diarized_json"),
            (
                {"response_format": "diarized_json", "min_speakers": "3", "max_speakers": "2"},
                "min_speakers",
                "3",
            ),
            ({"response_format": "diarized_json", "max_speakers": "0"}, "max_speakers", "'0'"),
        ],
    )
    def test_a_wrong_field_is_named(
        self, running: Served, talk: Path, fields: dict[str, str], param: str, named: str
    ) -> None:
        error = error_of(transcribe(running.server, talk, fields), 400)

        assert error["param"] == param
        assert named in error["message"]

    @pytest.mark.parametrize(
        ("names", "url", "param", "named"),
        [
            (["Ann"], None, "known_speaker_references[]", "0 references for 1"),
            (["A<b>"], "data:,", "known_speaker_names[]", "A<b>"),
            (["Ann"], "https://example.org/a.wav", "known_speaker_references[]", "data URL"),
            (["Ann"], "data:audio/wav;base64,!", "known_speaker_references[]", "damaged"),
            (["Ann"], "data:audio/wav;base64,UklGRg==", "known_speaker_references[]", "decoded"),
            (["Ann", "Ann"], "data:,", "known_speaker_names[]", "one name"),
        ],
    )
    def test_a_wrong_reference_is_refused(  # noqa: PLR0917 - a row's columns
        self,
        running: Served,
        talk: Path,
        names: list[str],
        url: str | None,
        param: str,
        named: str,
    ) -> None:
        fields: dict[str, Any] = {
            "response_format": "diarized_json",
            "known_speaker_names[]": names,
            "known_speaker_references[]": [url] * len(names) if url else [],
        }
        error = error_of(transcribe(running.server, talk, fields), 400)

        assert error["param"] == param
        assert named in error["message"]

    @pytest.mark.parametrize("seconds", [1, 12])
    def test_a_reference_has_two_to_ten_seconds(
        self, running: Served, talk: Path, tmp_path: Path, seconds: int
    ) -> None:
        reference = encode(talk, tmp_path / "a.wav", "-af", "apad", "-t", str(seconds))
        fields = {
            "response_format": "diarized_json",
            "known_speaker_names[]": "Ann",
            "known_speaker_references[]": data_url(reference),
        }
        error = error_of(transcribe(running.server, talk, fields), 400)

        assert error["param"] == "known_speaker_references[]"
        assert "2 to 10 s" in error["message"]

    def test_without_a_diarizer_the_answer_says_what_to_do(
        self, talk: Path, tmp_path: Path
    ) -> None:
        with served(tmp_path, DEMO_MODEL="grammar", DIARIZATION="off") as without:
            answer = transcribe(without.server, talk, {"response_format": "diarized_json"})
            error = error_of(answer, 400)

        assert error["code"] == "diarization_off"
        assert "DIARIZATION=off" in error["message"]
        assert "channels=separate" in error["message"]
