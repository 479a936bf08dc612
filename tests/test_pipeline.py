from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from conftest import ROOT, Clip, decode, encode, whole
from pipeline_helpers import Counting, ffmpegs, pipeline_of

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.errors import AudioDecodeError, AudioTooLongError
from parakeet_api.model.batching import RequestCancelled
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Word, join_words

SPEECH = ROOT / "samples" / "speech"


@pytest.fixture(scope="module")
def tone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return ten minutes of noise."""
    target = tmp_path_factory.mktemp("tone") / "tone.flac"
    source = "aevalsrc=0.3*sin(2*PI*220*t)*(1+sin(2*PI*3*t)):s=16000:d=600"
    subprocess.run(
        [find_ffmpeg(), "-loglevel", "error", "-f", "lavfi", "-i", source, str(target)], check=True
    )
    return target


def test_clips_give_the_words_of_a_direct_pass(
    recognizer: NemoRecognizer, clips: list[Clip], decoder: FfmpegDecoder
) -> None:
    with pipeline_of(recognizer) as pipeline:
        for clip in clips[:10]:
            transcript = pipeline.transcribe(clip.path)
            direct = recognizer.recognize([whole(decode(decoder, clip.path))])[0]
            assert transcript.text == join_words(direct)
            assert transcript.duration == pytest.approx(clip.duration_s, abs=0.001)


def test_every_second_of_a_long_recording_is_recognised_once(tone: Path) -> None:
    with pipeline_of(Counting()) as pipeline:
        transcript = pipeline.transcribe(tone)

    assert [word.text for word in transcript.words] == [f"w{n}." for n in range(600)]
    assert transcript.duration == 600


def test_preparing_audio_in_other_threads_changes_no_word(tone: Path) -> None:
    with pipeline_of(Counting(), TRANSCRIBE_NUM_WORKERS="2") as pipeline:
        texts = [word.text for word in pipeline.transcribe(tone).words]

    assert texts == [f"w{n}." for n in range(600)]


def test_audio_is_prepared_in_the_configured_number_of_threads(tone: Path) -> None:
    def preparing() -> set[str]:
        return {t.name for t in threading.enumerate() if t.name.startswith("prepare_")}

    with (
        pipeline_of(Counting(), TRANSCRIBE_NUM_WORKERS="1") as pipeline,
        closing(pipeline.stream(tone)) as one,
        closing(pipeline.stream(tone)) as other,
    ):
        next(one)
        next(other)
        assert preparing() == {"prepare_0"}
    assert preparing() == set()


class AtOdds(Counting):
    """Ends a sentence just before a seam; with context after it, returns other words."""

    def recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        return [self._around_seams(chunk) for chunk in chunks]

    def _around_seams(self, chunk: Chunk) -> list[Word]:
        words: list[Word] = []
        if chunk.index:
            words += self._words(chunk.owned_start, "right", "so")
        if chunk.end > chunk.owned_end:
            words += self._words(chunk.owned_end, "right.", "So")
        return words

    def _words(self, seam: int, right: str, so: str) -> list[Word]:
        at = seam / SAMPLE_RATE
        return [
            Word(right, at - 0.5, at - 0.4),
            Word(so, at - 0.15, at - 0.05),
            Word("now", at + 0.45, at + 0.55),
        ]


@pytest.mark.parametrize(
    ("threshold_s", "text"), [("0.5", "right. so now"), ("0", "right. So now")]
)
def test_a_sentence_end_is_preferred_as_the_hand_over_within_the_configured_distance(
    tone: Path, threshold_s: str, text: str
) -> None:
    with pipeline_of(AtOdds(), SENTENCE_BOUNDARY_THRESHOLD=threshold_s) as pipeline:
        assert pipeline.transcribe(tone).text.startswith(text)


def test_words_come_while_later_audio_is_still_being_decoded(tone: Path) -> None:
    counting = Counting()
    with pipeline_of(counting) as pipeline:
        stream = pipeline.stream(tone)
        first = next(stream)

        assert len(first.words) > 10
        assert counting.chunks < 20
        assert len(ffmpegs()) == 1
        stream.close()
        assert ffmpegs() == []


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_disconnected_client_stops_the_work(tone: Path, workers: str) -> None:
    counting, looked = Counting(), []

    def cancelled() -> bool:
        looked.append(True)
        return len(looked) > 3

    with pipeline_of(counting, TRANSCRIBE_NUM_WORKERS=workers) as pipeline:
        with pytest.raises(RequestCancelled):
            pipeline.transcribe(tone, cancelled=cancelled)

        assert ffmpegs() == []
        assert pipeline._batcher.waiting() == 0  # type: ignore[attr-defined]
    assert counting.chunks < 25


def test_a_file_that_is_no_recording_never_reaches_the_model(tmp_path: Path) -> None:
    file = tmp_path / "note.mp3"
    file.write_text("this is not music " * 100)
    leases: list[None] = []

    with (
        pipeline_of(Counting(), leased=lambda: leases.append(None)) as pipeline,
        pytest.raises(AudioDecodeError, match="no sound that can be decoded"),
    ):
        pipeline.transcribe(file)

    assert leases == []


def test_a_recording_beyond_the_limit_is_rejected_despite_its_header(tone: Path) -> None:
    with (
        pipeline_of(Counting(), max_seconds=60) as pipeline,
        pytest.raises(AudioTooLongError, match="MAX_AUDIO_HOURS"),
    ):
        pipeline.transcribe(tone)

    assert ffmpegs() == []


def test_audio_that_starts_late_in_a_video_keeps_its_time(
    recognizer: NemoRecognizer, clips: list[Clip], tmp_path: Path
) -> None:
    """Otherwise subtitles would run ahead of the video."""
    picture = ("-f", "lavfi", "-i", "color=size=64x64:rate=5:duration=9")
    late = tmp_path / "late.mkv"
    command = [find_ffmpeg(), "-loglevel", "error", *picture, "-itsoffset", "4", "-i"]
    subprocess.run([*command, str(clips[1].path), "-map", "0:v", "-map", "1:a", late], check=True)

    with pipeline_of(recognizer) as pipeline:
        plain, shifted = pipeline.transcribe(clips[1].path), pipeline.transcribe(late)

    assert shifted.text == plain.text
    assert [w.start for w in shifted.words] == pytest.approx(
        [w.start + 4 for w in plain.words], abs=0.17
    )


def test_stereo_at_another_rate_is_mixed_and_resampled(
    recognizer: NemoRecognizer, clips: list[Clip], tmp_path: Path
) -> None:
    one_side = ("-af", "pan=stereo|c0=c0|c1=0*c0", "-ar", "44100")
    file = encode(clips[1].path, tmp_path / "left.wav", *one_side)

    with pipeline_of(recognizer) as pipeline:
        assert pipeline.transcribe(file).text == clips[1].text


@pytest.mark.timeout(240)
def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    """Decoding, cutting and stitching of 6 h against 6 min; the model sees 30 s at a time."""
    peaks = {}
    for minutes in (6, 360):
        file = tmp_path / f"{minutes}.flac"
        source = f"sine=frequency=300:sample_rate=16000:duration={minutes * 60}"
        command = [find_ffmpeg(), "-loglevel", "error", "-f", "lavfi", "-i", source]
        subprocess.run([*command, "-compression_level", "0", str(file)], check=True)
        measured = subprocess.run(
            [sys.executable, "-c", MEASURE, str(file)],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT / "tests",
            env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin"},
        )
        words, peak_kb = measured.stdout.split()
        assert int(words) == minutes * 60
        peaks[minutes] = int(peak_kb) / 1000

    assert peaks[360] - peaks[6] < 150


MEASURE = textwrap.dedent(
    """
    import resource, sys
    from pathlib import Path
    from pipeline_helpers import Counting, pipeline_of
    with pipeline_of(Counting()) as pipeline:
        transcript = pipeline.transcribe(Path(sys.argv[1]))
    print(len(transcript.words), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
)
