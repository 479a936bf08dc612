"""An hour of speech as events: they arrive during the transcription, and none is lost."""

from __future__ import annotations

import base64
import http.client
import json
import re
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import jiwer
import pytest
from conftest import SPEECH, Clip, Server, running_server, wait_until
from http_helpers import events, post, streamed, transcribe

from parakeet_api.formats.server_sent_events import PEAKS_PER_SECOND

pytestmark = pytest.mark.integration


@dataclass
class Stream:
    """The events of one request, with their times."""

    started: float = field(default_factory=time.monotonic)
    times: list[float] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def add(self, event: dict[str, Any]) -> None:
        self.times.append(time.monotonic() - self.started)
        self.events.append(event)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == f"transcript.{kind}"]


@pytest.fixture(scope="module")
def clip(clips: list[Clip]) -> Clip:
    return clips[10]


@pytest.fixture(scope="module")
def stream(server: Server, hour: Path, clip: Clip) -> Stream:
    """The events of the hour, read as they arrive, from a loaded model."""
    transcribe(server, clip.path)
    stream = Stream()
    with streamed(server, hour, {"include[]": "logprobs,progress,peaks"}) as lines:
        for event in events(lines):
            stream.add(event)
    return stream


def test_the_first_words_come_long_before_the_last(stream: Stream) -> None:
    first = next(
        moment
        for moment, event in zip(stream.times, stream.events, strict=True)
        if event["type"] == "transcript.text.delta"
    )

    print(f"first words after {first:.2f} s of {stream.times[-1]:.2f} s")
    assert first < 0.15 * stream.times[-1]


def test_the_deltas_are_the_whole_text(stream: Stream) -> None:
    (done,) = stream.of("text.done")
    sentences = json.loads((SPEECH / "long-pauses.json").read_text())

    assert stream.events[-1] is done
    assert len(stream.of("text.delta")) > 50
    assert "".join(event["delta"] for event in stream.of("text.delta")) == done["text"]
    reference = " ".join(sentence["text"] for sentence in sentences)
    assert jiwer.wer(" ".join([reference] * 5), done["text"]) < 0.02


def test_progress_goes_forward_to_the_end(stream: Stream) -> None:
    done = [event["done_s"] for event in stream.of("progress")]

    assert all(before <= after for before, after in pairwise(done))
    assert done[0] == 0
    assert done[-1] == pytest.approx(3606.8, abs=1)
    assert stream.of("progress")[-1]["total_s"] == done[-1]


def test_peaks_tile_the_recording(stream: Stream) -> None:
    parts = stream.of("peaks")
    lengths = [len(base64.b64decode(part["values"])) for part in parts]

    assert len(parts) > 50
    for part, length, following in zip(parts, lengths, parts[1:], strict=False):
        end_s = part["start_s"] + length / PEAKS_PER_SECOND
        assert end_s == pytest.approx(following["start_s"], abs=1 / PEAKS_PER_SECOND)
    assert max(max(base64.b64decode(part["values"])) for part in parts) > 50


def test_a_slow_reader_loses_nothing_and_does_not_fill_the_memory(
    server: Server, hour: Path, stream: Stream
) -> None:
    # The fast reader's, with the model's own.
    before_mb = _memory_peak_mb(server)

    with post(
        server, hour.read_bytes(), stream="true", include="logprobs,progress,peaks"
    ) as connection:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        received = b""
        while server.health()["queue"]["active_requests"]:
            received += answer.read(1)
            time.sleep(0.05)
        received += answer.read()

    slow = Stream()
    for event in events(received.decode().splitlines()):
        slow.add(event)
    (done,) = slow.of("text.done")
    deltas = slow.of("text.delta")
    assert "".join(event["delta"] for event in deltas) == done["text"]
    assert [entry for event in deltas for entry in event["logprobs"]] == done["logprobs"]
    # Batches, and with them the last digits, depend on the moment.
    assert [len(slow.of(kind)) for kind in ("text.delta", "peaks")] == [
        len(stream.of(kind)) for kind in ("text.delta", "peaks")
    ]
    growth_mb = _memory_peak_mb(server) - before_mb
    print(f"memory's peak grew by {growth_mb:.0f} MB")
    # An hour of samples are 115 MB, and twice as much as the floats that the model takes.
    assert growth_mb < 115


def _memory_peak_mb(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert peak is not None
    return int(peak[1]) / 1000


def test_an_idle_stream_sends_keep_alive_comments(tmp_path: Path, hour: Path, clip: Clip) -> None:
    with running_server(tmp_path, APP_THREADS="1") as server:
        with streamed(server, clip.path, {"include[]": "progress"}) as lines:
            kinds = [event.get("state") or event["type"] for event in events(lines)]
        assert "loading" in kinds[: kinds.index("transcript.text.delta")]

        with post(server, hour.read_bytes()) as first:
            wait_until(
                lambda: server.health()["queue"]["active_requests"],
                what="the hour is worked on",
            )
            with streamed(server, clip.path, {}) as lines:
                assert next(lines) == ": keep-alive"
                first.close()
                assert [event["type"] for event in events(lines)] == [
                    "transcript.text.delta",
                    "transcript.text.done",
                ]
