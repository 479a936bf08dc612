"""Who spoke, through the whole pipeline around stand-ins for both models."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE_S, ROOT
from diarizers import FRAME_S, Scripted, Tones, tone
from pipeline_helpers import Counting, pipeline_of

from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.errors import DiarizationOffError
from parakeet_api.pipeline import Pipeline, Progress
from parakeet_api.speech.diarization import Diarizer
from parakeet_api.transcript import SAMPLE_RATE, Chunk, KnownSpeaker, SpeakerRequest, Word

DIARIZE = SpeakerRequest(diarize=True)


class Telling(Counting):
    """A stand-in for the model whose words tell the loudness of their channel."""

    def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        return [
            [self._told(chunk, word) for word in words]
            for chunk, words in zip(chunks, super().recognize(chunks), strict=True)
        ]

    def _told(self, chunk: Chunk, word: Word) -> Word:
        begin = int(word.start * SAMPLE_RATE) - chunk.start
        loudest = np.abs(chunk.samples[begin : begin + SAMPLE_RATE // 4].astype(int)).max()
        return Word(f"{round(loudest, -3)}.", word.start, word.end)


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    with pipeline_of(Telling(), CHUNK_MINITE="0.5") as made:
        yield made


def given(pipeline: Pipeline, diarizer: Diarizer) -> Pipeline:
    pipeline._diarizer = diarizer
    return pipeline


def recording(path: Path, source: str, *options: str) -> Path:
    command = [find_ffmpeg(), "-v", "error", "-f", "lavfi", "-i", source, *options, str(path)]
    subprocess.run(command, check=True, timeout=PATIENCE_S)
    return path


def test_each_channel_has_its_own_words_over_many_chunks(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    source = "aevalsrc=0.5*sin(880*t)|0.25*sin(880*t):s=16000:d=200"
    transcript = pipeline.transcribe(
        recording(tmp_path / "a.wav", source), speakers=SpeakerRequest(channels="separate")
    )

    for channel, level in ((1, "16000."), (2, "8000.")):
        words = [word for word in transcript.words if word.channel == channel]
        assert {word.text for word in words} == {level}
        assert [round(word.start - 0.1) for word in words] == list(range(200))
    starts = [segment.start for segment in transcript.segments]
    assert starts == sorted(starts)
    assert transcript.duration == pytest.approx(200)


def test_progress_has_the_mix_and_every_second_once(pipeline: Pipeline, tmp_path: Path) -> None:
    source = "aevalsrc=0.5*sin(880*t)|0.25*sin(880*t):s=16000:d=100"
    file = recording(tmp_path / "a.wav", source)
    progress = list(pipeline.stream(file, speakers=SpeakerRequest(channels="separate")))

    samples = np.concatenate([part.samples for part in progress])
    assert samples.shape == (100 * SAMPLE_RATE,)
    assert np.abs(samples.astype(int)).max() == pytest.approx(0.375 * 32768, rel=0.01)


def test_the_diarizer_hears_what_the_recogniser_does_once(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    diarizer = Scripted([(0, 70, 1), (70, 71.2, 3), (71.2, 150, 1)])
    file = recording(tmp_path / "a.flac", "sine=300:r=16000:d=150")
    transcript = given(pipeline, diarizer).transcribe(file, speakers=DIARIZE)

    (stream,) = diarizer.streams
    assert stream.is_closed
    assert stream._judged == int(150 / FRAME_S)
    assert [word.speaker for word in transcript.words] == [
        "B" if n == 70 else "A" for n in range(150)
    ]


def test_a_stream_gives_the_segments_of_the_whole_as_they_come(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    turns = [(start, start + 7, start // 7 % 3) for start in range(0, 200, 7)]
    file = recording(tmp_path / "a.flac", "sine=300:r=16000:d=200")
    given(pipeline, Scripted(turns))
    parts: list[Progress] = list(pipeline.stream(file, speakers=DIARIZE))
    whole = pipeline.transcribe(file, speakers=DIARIZE)

    assert tuple(segment for part in parts for segment in part.segments) == whole.segments
    assert sum(bool(part.segments) for part in parts) > 3
    assert [part.words for part in parts] == [
        tuple(word for segment in part.segments for word in segment.words) for part in parts
    ]
    assert {segment.speaker for segment in whole.segments} == {"A", "B", "C"}


def test_a_known_voice_has_its_name(pipeline: Pipeline, tmp_path: Path) -> None:
    known = KnownSpeaker("Ann", tone(300, 3.0).tobytes())
    file = recording(tmp_path / "a.flac", "sine=400:r=16000:d=20,aeval=val(0)*8")
    later = recording(tmp_path / "b.flac", "sine=300:r=16000:d=20,aeval=val(0)*8")
    given(pipeline, Tones())

    def speakers_of(path: Path) -> set[str | None]:
        wanted = SpeakerRequest(diarize=True, known=(known,))
        return {word.speaker for word in pipeline.transcribe(path, speakers=wanted).words}

    assert speakers_of(file) == {"A"}
    assert speakers_of(later) == {"Ann"}


def test_a_diarizer_that_has_used_all_its_speakers_is_a_warning(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    file = recording(tmp_path / "a.flac", "sine=300:r=16000:d=40")
    turns = [(start, start + 10, start // 10) for start in range(0, 40, 10)]

    def codes(
        diarizer: Diarizer, *, min_speakers: int = 1, max_speakers: int | None = None
    ) -> list[str]:
        asked = SpeakerRequest(diarize=True, min_speakers=min_speakers, max_speakers=max_speakers)
        transcript = given(pipeline, diarizer).transcribe(file, speakers=asked)
        return [caveat.code for caveat in transcript.caveats]

    assert codes(Scripted(turns)) == ["speakers_at_limit"]
    assert codes(Scripted(turns[:3])) == []
    assert codes(Scripted(turns), max_speakers=4) == []
    assert codes(Scripted(turns[:3]), min_speakers=6) == ["speakers_at_limit"]


def test_without_a_diarizer_voices_are_refused_before_decoding(pipeline: Pipeline) -> None:
    with pytest.raises(DiarizationOffError):
        pipeline.transcribe(Path("/nonexistent"), speakers=DIARIZE)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("wanted", ["diarize=True", "channels='separate'"])
def test_memory_does_not_grow_with_the_recording(tmp_path: Path, wanted: str) -> None:
    peaks = {}
    for minutes in (5, 60):
        options = ("-ac", "2", "-compression_level", "0")
        source = f"sine=300:r=16000:d={minutes * 60}"
        file = recording(tmp_path / f"{minutes}.flac", source, *options)
        measured = subprocess.run(
            [sys.executable, "-c", MEASURE.format(wanted=wanted), str(file)],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT / "tests",
            env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin"},
        )
        segments, peak_kb = measured.stdout.split()
        assert int(segments) >= minutes * 60
        peaks[minutes] = int(peak_kb) / 1000

    assert peaks[60] - peaks[5] < 40


MEASURE = textwrap.dedent(
    """
    import resource, sys
    from pathlib import Path
    from diarizers import Scripted
    from parakeet_api.transcript import SpeakerRequest
    from pipeline_helpers import Counting, pipeline_of
    wanted = SpeakerRequest({wanted})
    with pipeline_of(Counting(), CHUNK_MINITE="1") as pipeline:
        pipeline._diarizer = Scripted([(0, 40000, 1)])
        parts = pipeline.stream(Path(sys.argv[1]), speakers=wanted)
        segments = sum(len(part.segments) for part in parts)
    print(segments, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
)
