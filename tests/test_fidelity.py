"""A sample of `make fidelity`: the effect of chunking on 12 minutes of speech."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import jiwer
import numpy as np
import pytest
import srt  # type: ignore[import-untyped]
import webvtt
from conftest import PATIENCE_S, Clip, Server, decode, encode, running_server, whole

from benchmarks.fidelity import (
    FORMATS,
    SPEECH,
    Pass,
    Policy,
    errors,
    normalize,
    reference_text,
    single_pass,
    start_shifts,
    transcribe,
)
from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.transcript import SAMPLE_RATE, Pcm, Word, join_words

pytestmark = pytest.mark.integration

MINUTES = 4
"""Of each recording: a single pass over all 12 takes a minute, attention being quadratic."""


@pytest.fixture(scope="module", params=["long-pauses", "long-dense"])
def recording(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def samples(recording: str, decoder: FfmpegDecoder) -> Pcm:
    return decode(decoder, SPEECH / f"{recording}.ogg")[: MINUTES * 60 * SAMPLE_RATE]


@pytest.fixture(scope="module")
def whole_pass(recognizer: NemoRecognizer, samples: Pcm) -> Pass:
    return single_pass(recognizer, samples)


def spoken_until_the_end(recording: str, words: list[Word]) -> str:
    """Return as much of the reference as a transcript of the first minutes reaches."""
    reference = normalize(reference_text(recording)).split()
    return " ".join(reference[: len([w for w in words if normalize(w.text)])])


@pytest.mark.parametrize("way", [Policy(0.5, 10, align=True), Policy(2, 30, align=True)])
def test_chunking_makes_no_more_errors_at_seams_than_a_single_pass(
    recording: str, samples: Pcm, whole_pass: Pass, recognizer: NemoRecognizer, way: Policy
) -> None:
    cut = transcribe(recognizer, way.chunks(samples))
    reference = spoken_until_the_end(recording, whole_pass.words)

    near = errors(reference, cut.words, near_s=cut.seams_s)
    there = errors(reference, whole_pass.words, near_s=cut.seams_s)

    assert len(cut.seams_s) >= 2
    # One more: the choice between two near-equal words depends on the chunk's loudness.
    assert near.total <= there.total + 1, (near, there)
    assert near.doubled <= there.doubled


def test_words_start_where_they_start_in_a_single_pass(
    samples: Pcm, whole_pass: Pass, recognizer: NemoRecognizer
) -> None:
    cut = transcribe(recognizer, Policy(0.5, 10, align=True).chunks(samples))

    shifts = start_shifts(whole_pass.words, cut.words)

    assert len(shifts) > 400
    # Two frames; times are sums of floats.
    assert np.percentile(shifts, 99) <= 0.16 + 1e-6


@pytest.mark.parametrize("extension", FORMATS)
def test_every_format_is_transcribed_as_well_as_its_own_samples_in_one_pass(
    extension: str, recognizer: NemoRecognizer, decoder: FfmpegDecoder, tmp_path: Path
) -> None:
    source = encode(SPEECH / "long-pauses.ogg", tmp_path / "start.wav", "-t", "90")
    file = encode(source, tmp_path / f"audio.{extension}", *FORMATS[extension])
    decoded = decode(decoder, file)
    reference = single_pass(recognizer, decoded)

    cut = transcribe(recognizer, Policy(0.5, 10, align=True).chunks(decoded))

    text = " ".join(word.text for word in reference.words)
    assert len(decoded) / SAMPLE_RATE == pytest.approx(90, abs=0.2)
    assert len(cut.seams_s) >= 3
    assert errors(text, cut.words, near_s=cut.seams_s).total <= 1


def read_back(body: str, response_format: str) -> str:
    """Read the words of an answer, with the readers that its users have."""
    match response_format:
        case "json" | "verbose_json":
            text = json.loads(body)["text"]
        case "srt":
            text = " ".join(cue.content for cue in srt.parse(body))
        case "vtt":
            text = " ".join(caption.text for caption in webvtt.from_string(body).captions)
        case _:
            text = body
    return " ".join(text.split())


@pytest.mark.parametrize("response_format", ["json", "text", "srt", "vtt", "verbose_json"])
def test_the_service_recognises_clips_as_well_as_a_direct_pass_in_every_format(
    response_format: str,
    server: Server,
    clips: list[Clip],
    recognizer: NemoRecognizer,
    decoder: FfmpegDecoder,
) -> None:
    served, direct = [], []
    for clip in clips:
        answer = httpx.post(
            f"{server.url}/v1/audio/transcriptions",
            files={"file": (clip.path.name, clip.path.read_bytes())},
            data={"response_format": response_format},
            timeout=PATIENCE_S,
        )
        served.append(read_back(answer.raise_for_status().text, response_format))
        chunk = whole(decode(decoder, clip.path))
        direct.append(join_words(recognizer.recognize([chunk])[0]))

    references = [clip.text for clip in clips]
    assert jiwer.wer(references, served) == pytest.approx(jiwer.wer(references, direct), abs=0.001)


def test_the_service_itself_makes_few_errors_over_twelve_minutes(tmp_path: Path) -> None:
    """Word error rates of a single pass: 0.5 % with pauses, 1.6 % without."""
    import openai

    with (
        running_server(tmp_path) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        for recording, limit in (("long-pauses", 0.012), ("long-dense", 0.03)):
            answer = client.audio.transcriptions.create(
                file=SPEECH / f"{recording}.ogg",
                model="whisper-1",
                response_format="verbose_json",
                timestamp_granularities=["word", "segment"],
            )
            assert answer.words is not None
            assert answer.segments is not None
            words = [Word(word.word, word.start, word.end) for word in answer.words]
            reference = reference_text(recording)
            size = len(normalize(reference).split())
            assert errors(reference, words, near_s=None).total / size < limit
            assert answer.text.split() == [word.text for word in words]
            assert "".join(segment.text for segment in answer.segments).strip() == answer.text
