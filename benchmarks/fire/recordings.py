"""The recordings to send, and the expected transcripts."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import httpx
import soundfile

from benchmarks.fidelity import FORMATS, SPEECH
from benchmarks.fire.live import transcribe_live
from benchmarks.fuzz import make_media
from parakeet_api.audio.ffmpeg import find_ffmpeg

MOST_CLIPS = 12
"""Recordings of 2 to 4 s: each fits into the smallest memory limit of the faults."""
CLIP_ANSWERS = ("json", "text", "srt", "vtt", "verbose_json")
LONG = (("long-pauses.ogg", "text"), ("long-dense.ogg", "json"))
ENDPOINT = "/v1/audio/transcriptions"


@dataclass(frozen=True, slots=True)
class Question:
    """A recording, and the format to request."""

    name: str
    content: bytes
    response_format: str
    is_long: bool


@dataclass(frozen=True, slots=True)
class Recordings:
    """All that is sent."""

    questions: list[Question]
    media: list[bytes]
    """Media files to damage."""
    live: list[Question]
    """Samples for live sessions, the answer's format `text`."""

    @property
    def clips(self) -> list[Question]:
        return [question for question in self.questions if not question.is_long]

    @property
    def long(self) -> list[Question]:
        return [question for question in self.questions if question.is_long]


def make_recordings(folder: Path, *, clips: int = MOST_CLIPS, long: bool = True) -> Recordings:
    """Make clips in many containers, and take the two recordings of 12 minutes."""
    questions, live = [], []
    for number in range(clips):
        source = SPEECH / f"clip-{number:03d}.flac"
        samples, _ = soundfile.read(source, dtype="int16")
        live.append(Question(source.stem, samples.tobytes(), "text", False))
        suffix = sorted(FORMATS)[number % len(FORMATS)]
        clip = folder / f"{source.stem}.{suffix}"
        command = [find_ffmpeg(), "-loglevel", "error", "-y", "-i", str(source)]
        subprocess.run([*command, *FORMATS[suffix], str(clip)], check=True, timeout=60)
        questions += [Question(clip.name, clip.read_bytes(), f, False) for f in CLIP_ANSWERS]
    if long:
        questions += [Question(name, (SPEECH / name).read_bytes(), f, True) for name, f in LONG]
    return Recordings(questions, make_media(folder), live)


def ask_all(url: str, recordings: Recordings) -> dict[Question, str]:
    """Get the expected transcripts from an idle server."""
    with httpx.Client(base_url=url, timeout=600, trust_env=False, verify=False) as client:
        files = {
            question: transcript_in(_ask(client, question), question)
            for question in recordings.questions
        }
    return files | {question: _say(url, question) for question in recordings.live}


def _ask(client: httpx.Client, question: Question) -> str:
    fields = {"response_format": question.response_format}
    answer = client.post(ENDPOINT, files={"file": question.content}, data=fields)
    return answer.raise_for_status().text


def _say(url: str, question: Question) -> str:
    outcome = transcribe_live(url, question.content, speed=1.0)
    assert outcome.text, outcome.code
    return transcript_in(outcome.text, question)


def transcript_in(body: str, question: Question) -> str:
    """Extract what a fault must not change: every word and its times."""
    if question.response_format == "json":
        return str(json.loads(body)["text"])
    if question.response_format == "verbose_json":
        segments = json.loads(body)["segments"]
        return "\n".join(f"{s['start']} {s['end']} {s['text']}" for s in segments)
    return body.strip()
