"""Measure live sessions: the delay from the end of a spoken word to its delta, and the accuracy.

    .venv/bin/python -m benchmarks.realtime [--model english] [--seconds 60] [--sessions 1 4 16]

Recordings are sent in real time to a server in a separate process. The reference is the same
server's transcript of the same audio as a file: its words, and the end of each.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import difflib
import io
import itertools
import json
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import jiwer
import numpy as np
import soundfile
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.fidelity import ROOT, SPEECH, normalize
from benchmarks.service import Service, running_service

RATE = 16_000
APPEND_S = 0.1
STAGGER_S = 0.37
"""Delay between the starts of two sessions, since people do not speak in step."""
LAST_S = 60.0
"""Maximum wait for the last transcript."""
ENGLISH_MODEL = ROOT / "samples" / "english-model" / "whisper-tdt-small-en.nemo"
PAUSE_S = 0.8
LISTS = {"grammar": SPEECH / "clips.json", "english": ROOT / "samples" / "people.json"}
"""Recordings, each with its reference text."""


@dataclass(frozen=True)
class Piece:
    """The audio of one session."""

    sound: NDArray[np.int16]
    said: str


@dataclass
class Heard:
    """The events of one session."""

    began: float = 0.0
    """When the first audio was sent."""
    words: list[tuple[str, float]] = field(default_factory=list)
    """The words of deltas, each with its time of arrival."""
    turns: list[str] = field(default_factory=list)
    """The transcripts of its turns."""


@dataclass(frozen=True)
class Truth:
    """The transcript of the same audio as a file."""

    words: list[tuple[str, float]]
    """Each with its end, seconds."""

    @property
    def text(self) -> str:
        return " ".join(word for word, _ in self.words)


def main() -> None:
    """Print a line for each number of sessions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=LISTS, default="grammar")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 4, 16])
    options = parser.parse_args()
    said = pieces(options.model, options.seconds, max(options.sessions))
    settings = {"ENABLE_LAZY_LOAD": "false"}
    if options.model == "english":
        settings |= {"MODEL_PATH": str(ENGLISH_MODEL)}
    with running_service(**settings) as service:
        truths = [truth_of(service, piece.sound) for piece in said]
        for count in options.sessions:
            heard = asyncio.run(speak(service, [piece.sound for piece in said[:count]]))
            report(said[:count], heard, truths[:count])


def pieces(model: str, seconds: int, count: int) -> list[Piece]:
    """Join recordings with pauses, in a different order for each session."""
    listed = json.loads(LISTS[model].read_text(encoding="utf-8"))
    order = random.Random(0)
    made = []
    for _ in range(count):
        order.shuffle(listed)
        sounds: list[NDArray[np.int16]] = []
        texts = []
        for entry in itertools.cycle(listed):
            sounds += [
                _read(LISTS[model], entry["file"]),
                np.zeros(round(PAUSE_S * RATE), np.int16),
            ]
            texts.append(entry["text"])
            if sum(map(len, sounds)) >= seconds * RATE:
                break
        made.append(Piece(np.concatenate(sounds), " ".join(texts)))
    return made


def _read(listed: Path, name: str) -> NDArray[np.int16]:
    folder = listed.parent if listed.parent == SPEECH else listed.with_suffix("")
    samples, rate = soundfile.read(folder / name, dtype="int16")
    assert rate == RATE
    sound: NDArray[np.int16] = samples
    return sound


def truth_of(service: Service, sound: NDArray[np.int16]) -> Truth:
    """Transcribe a piece as a file."""
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format="WAV")
    answer = httpx.post(
        f"{service.url}/v1/audio/transcriptions",
        files={"file": ("piece.wav", file.getvalue())},
        data={"response_format": "verbose_json", "timestamp_granularities[]": "word"},
        timeout=600,
    )
    words = answer.raise_for_status().json().get("words", [])
    return Truth([(word["word"], word["end"]) for word in words])


async def speak(service: Service, sounds: list[NDArray[np.int16]]) -> list[Heard]:
    """Run all sessions at the same time."""
    address = str(service.url).replace("http", "ws", 1).rstrip("/")
    sessions = [
        _session(f"{address}/v1/realtime", sound, delay_s=number * STAGGER_S)
        for number, sound in enumerate(sounds)
    ]
    return list(await asyncio.gather(*sessions))


async def _session(address: str, sound: NDArray[np.int16], *, delay_s: float) -> Heard:
    await asyncio.sleep(delay_s)
    heard = Heard()
    async with connect(address, proxy=None) as connection:
        audio_format = {"type": "audio/pcm", "rate": RATE}
        session = {"type": "transcription", "audio": {"input": {"format": audio_format}}}
        await connection.send(json.dumps({"type": "session.update", "session": session}))
        listener = asyncio.create_task(_listen(connection, heard))
        # Two seconds of silence end the last turn.
        await _send(connection, np.concatenate([sound, np.zeros(2 * RATE, np.int16)]), heard)
        await asyncio.wait_for(listener, LAST_S)
    return heard


async def _send(connection: ClientConnection, sound: NDArray[np.int16], heard: Heard) -> None:
    heard.began = time.monotonic()
    step = round(RATE * APPEND_S)
    for start in range(0, len(sound), step):
        # What is sent was spoken before.
        due = heard.began + (start + step) / RATE
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        audio = base64.b64encode(sound[start : start + step].tobytes()).decode()
        await connection.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
    await connection.send('{"type": "input_audio_buffer.clear"}')


async def _listen(connection: ClientConnection, heard: Heard) -> None:
    committed = 0
    cleared = False
    async for message in connection:
        event = json.loads(message)
        kind = event["type"]
        committed += kind == "input_audio_buffer.committed"
        cleared = cleared or kind == "input_audio_buffer.cleared"
        if kind.endswith(".delta"):
            heard.words += [(word, time.monotonic()) for word in event["delta"].split()]
        elif kind.endswith((".completed", ".failed")):
            heard.turns.append(event.get("transcript", ""))
        if cleared and len(heard.turns) == committed:
            return


def report(said: list[Piece], sessions: list[Heard], truths: list[Truth]) -> None:
    """Print the figures for a number of sessions."""
    delays = sorted(
        delay
        for heard, truth in zip(sessions, truths, strict=True)
        for delay in delays_of(heard, truth)
    )
    reference = [normalize(piece.said) for piece in said]
    live = [normalize(" ".join(heard.turns)) for heard in sessions]
    told = [normalize(" ".join(word for word, _ in heard.words)) for heard in sessions]
    offline = [normalize(truth.text) for truth in truths]
    print(
        f"{len(said):3} sessions, {len(delays)} words: delay p50 {statistics.median(delays):.2f} s,"
        f" p95 {delays[len(delays) * 95 // 100]:.2f} s, max {delays[-1]:.2f} s;"
        f" wrong words live {100 * jiwer.wer(reference, live):.2f} %,"
        f" as a file {100 * jiwer.wer(reference, offline):.2f} %,"
        f" in deltas {100 * jiwer.wer(reference, told):.2f} %",
        flush=True,
    )


def delays_of(heard: Heard, truth: Truth) -> list[float]:
    """Return the time from each word's end to its delta, for words in both transcripts."""
    told = [normalize(word) for word, _ in heard.words]
    said = [normalize(word) for word, _ in truth.words]
    blocks = difflib.SequenceMatcher(None, told, said, autojunk=False).get_matching_blocks()
    return [
        heard.words[block.a + offset][1] - heard.began - truth.words[block.b + offset][1]
        for block in blocks
        for offset in range(block.size)
    ]


if __name__ == "__main__":
    main()
