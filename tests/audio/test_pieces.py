"""A recording that is decoded in pieces equals, sample by sample, the output of one ffmpeg."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from conftest import SPEECH, encode
from hypothesis import given
from hypothesis import strategies as st
from pipeline_helpers import ffmpegs

from parakeet_api.audio import mp3_frames, pieces
from parakeet_api.audio.decoder import AudioStream, FfmpegDecoder
from parakeet_api.audio.ffmpeg import FfmpegRun, Input
from parakeet_api.audio.pieces import Piece, plan_pieces
from parakeet_api.errors import ServiceUnavailableError
from parakeet_api.transcript import SAMPLE_RATE, Caveat, Pcm

FFMPEGS = {"bundled": imageio_ffmpeg.get_ffmpeg_exe(), "system": shutil.which("ffmpeg")}
SECONDS = 31
FALLS_BACK = "decoded by one ffmpeg"

STEREO = ("-af", "aformat=channel_layouts=stereo,adelay=0|13")
FORMATS = {
    "cbr 44.1 joint stereo": ("a.mp3", *STEREO, "-ar", "44100", "-b:a", "128k"),
    "cbr 44.1 stereo": ("a.mp3", *STEREO, "-ar", "44100", "-b:a", "128k", "-joint_stereo", "0"),
    "cbr 44.1 mono, 32 kbit/s": ("a.mp3", "-ar", "44100", "-b:a", "32k"),
    "cbr without a header": ("a.mp3", "-ar", "44100", "-write_xing", "0", "-id3v2_version", "0"),
    "cbr with both tags": ("a.mp3", "-ar", "48000", "-metadata", "title=a", "-write_id3v1", "1"),
    "abr 44.1": ("a.mp3", *STEREO, "-ar", "44100", "-abr", "1", "-b:a", "100k"),
    "vbr 44.1": ("a.mp3", *STEREO, "-ar", "44100", "-q:a", "4"),
    "vbr 48": ("a.mp3", *STEREO, "-ar", "48000", "-q:a", "2"),
    "vbr 32": ("a.mp3", *STEREO, "-ar", "32000", "-q:a", "5"),
    "vbr 24 mono": ("a.mp3", "-ar", "24000", "-q:a", "9"),
    "cbr 24 mono, 8 kbit/s": ("a.mp3", "-ar", "24000", "-b:a", "8k"),
    "vbr 22.05": ("a.mp3", *STEREO, "-ar", "22050", "-q:a", "4"),
    "vbr 16 mono": ("a.mp3", "-ar", "16000", "-q:a", "4"),
    "cbr 11.025": ("a.mp3", *STEREO, "-ar", "11025", "-b:a", "32k"),
    "cbr 8 mono": ("a.mp3", "-ar", "8000", "-b:a", "16k"),
    "wav 44.1 stereo": ("a.wav", *STEREO, "-ar", "44100"),
    "wav 44.1 stereo, 24 bits": ("a.wav", *STEREO, "-ar", "44100", "-c:a", "pcm_s24le"),
    "wav 48 stereo": ("a.wav", *STEREO, "-ar", "48000"),
    "wav 48 mono, 24 bits": ("a.wav", "-ar", "48000", "-c:a", "pcm_s24le"),
    "wav 16 stereo": ("a.wav", *STEREO, "-ar", "16000"),
    "wav 11.025": ("a.wav", "-ar", "11025"),
    "rf64 96": ("a.wav", *STEREO, "-ar", "96000", "-rf64", "always"),
    "out of phase": ("a.mp3", "-af", "aformat=channel_layouts=stereo,aeval=val(0)|-val(0)"),
    "very quiet": ("a.mp3", "-af", "volume=-60dB", "-ar", "44100"),
    "very quiet, 24 bits": ("a.wav", "-af", "volume=-70dB", "-ar", "44100", "-c:a", "pcm_s24le"),
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut half a minute as if it were an hour, and do not read it with libsndfile."""
    monkeypatch.setattr("parakeet_api.audio.recording_decoding.open_sound", lambda *_: None)
    monkeypatch.setattr(pieces, "_MIN_RECORDING_S", 20)
    monkeypatch.setattr(pieces, "_MAX_PIECE_S", 6)
    monkeypatch.setattr(pieces, "_MIN_PIECE_S", 2)


@pytest.fixture(params=FFMPEGS)
def either(request: pytest.FixtureRequest) -> FfmpegDecoder:
    """Decode with the ffmpeg of imageio-ffmpeg, and with the system's: 5.1 on Debian 12."""
    executable = FFMPEGS[request.param]
    if executable is None:
        pytest.skip("no ffmpeg on the PATH")
    return FfmpegDecoder(executable=executable, max_seconds=3600, workers=3)


@pytest.fixture
def decoded_pieces(monkeypatch: pytest.MonkeyPatch) -> list[Piece]:
    """List the pieces that are decoded by their own ffmpeg."""
    decoded_by_now: list[Piece] = []
    decode = pieces.ParallelDecoding._decode

    def noted(self: pieces.ParallelDecoding, piece: Piece) -> bytearray:
        decoded_by_now.append(piece)
        return decode(self, piece)

    monkeypatch.setattr(pieces.ParallelDecoding, "_decode", noted)
    return decoded_by_now


@pytest.fixture
def together(decoder: FfmpegDecoder) -> FfmpegDecoder:
    return dataclasses.replace(decoder, workers=3)


def make(folder: Path, name: str) -> Path:
    file, *options = FORMATS[name]
    target = folder / file
    return encode(SPEECH / "long-dense.ogg", target, *options, before=["-t", str(SECONDS)])


@dataclasses.dataclass(frozen=True)
class Decoded:
    samples: Pcm
    caveats: tuple[Caveat, ...]
    expected_s: float | None


def decoded(decoder: FfmpegDecoder, file: Path) -> Decoded:
    stream = decoder.stream(file)
    samples = np.concatenate([*stream, np.zeros(0, np.int16)])
    return Decoded(samples, stream.caveats, stream.expected_s)


def assert_the_same(together: FfmpegDecoder, file: Path) -> None:
    alone = decoded(dataclasses.replace(together, workers=1), file)
    joined = decoded(together, file)

    np.testing.assert_array_equal(joined.samples, alone.samples)
    assert (joined.caveats, joined.expected_s) == (alone.caveats, alone.expected_s)


def decoder_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decoder")]


@pytest.mark.parametrize("name", FORMATS)
def test_pieces_equal_the_output_of_one_ffmpeg(
    name: str,
    either: FfmpegDecoder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    decoded_pieces: list[Piece],
) -> None:
    caplog.set_level("INFO")
    file = make(tmp_path, name)

    assert len(plan_pieces(file, workers=3)) == 6
    assert_the_same(either, file)
    assert FALLS_BACK not in caplog.text
    assert len(decoded_pieces) >= 5


def extent_of(piece: Piece) -> range:
    (extent,) = piece.source.ranges
    assert isinstance(extent, range)
    return extent


@given(
    rate=st.sampled_from([8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000, 44099]),
    samples=st.integers(20 * 96_000, 3600 * 48_000),
    workers=st.integers(2, 4),
)
def test_pieces_of_wav_files_tile_them(rate: int, samples: int, workers: int) -> None:
    wav = pieces._PlainWav(Path("a.wav"), rate, 2, samples, first_byte=44, bits=16)

    first, *others = pieces._cut(wav, workers)

    position = first.samples
    for piece in others:
        extent = extent_of(piece)
        start, rest = divmod(extent.start - 44, 4)
        assert (rest, position * rate) == (0, (start * SAMPLE_RATE + piece.skipped * rate))
        position += piece.samples
    assert position == samples * SAMPLE_RATE // rate
    assert [piece.is_last for piece in (first, *others)] == [False] * len(others) + [True]


@pytest.mark.parametrize("name", ["vbr 44.1", "cbr 24 mono, 8 kbit/s", "cbr without a header"])
def test_pieces_of_mp3_files_tile_them_and_begin_with_a_frame(name: str, tmp_path: Path) -> None:
    file = make(tmp_path, name)
    data = file.read_bytes()

    _, *others = plan_pieces(file, workers=4)

    extents = [extent_of(piece) for piece in others]
    assert all(
        data[extent.start] == 0xFF and data[extent.start + 1] >> 5 == 7 for extent in extents
    )
    assert all(one.stop > after.start for one, after in itertools.pairwise(extents))
    assert extents[-1].stop == len(data)


def frames_of(data: bytes) -> list[int]:
    """Return where each frame of a plain mp3 file begins."""
    header = mp3_frames.parse_header(data[:4])
    assert header is not None
    lengths, at, found = mp3_frames.FrameBytes(header), 0, []
    while length := lengths[data[at : at + 4]]:
        found.append(at)
        at += length
    return found


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.5001, 0.68, 0.99])
@pytest.mark.parametrize("frames", [1, 3, 40])
def test_damaged_frames_are_decoded_as_by_one_ffmpeg(
    share: float, frames: int, either: FfmpegDecoder, tmp_path: Path
) -> None:
    file = make(tmp_path, "cbr without a header")
    data = bytearray(file.read_bytes())
    starts = frames_of(bytes(data))
    noise = np.random.default_rng(frames)
    first = int(share * (len(starts) - frames - 1))
    for start, end in zip(starts[first:], starts[first + 1 : first + 1 + frames], strict=False):
        data[start + 4 : end] = noise.bytes(end - start - 4)
    file.write_bytes(data)

    assert len(plan_pieces(file, workers=3)) == 6
    assert_the_same(either, file)


@pytest.mark.parametrize(
    "case", [(name, piece) for name in ("vbr 44.1", "wav 44.1 stereo") for piece in (1, 3, 5)]
)
def test_a_piece_that_differs_from_one_ffmpeg_is_not_used(
    case: tuple[str, int],
    together: FfmpegDecoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    name, piece = case
    file = make(tmp_path, name)

    def wrong(path: Path, *, workers: int) -> tuple[Piece, ...]:
        planned = list(plan_pieces(path, workers=workers))
        start, end = planned[piece].trim
        planned[piece] = dataclasses.replace(planned[piece], trim=(start + 1, end))
        return tuple(planned)

    monkeypatch.setattr("parakeet_api.audio.decoder.plan_pieces", wrong)

    assert_the_same(together, file)
    assert FALLS_BACK in caplog.text


def test_a_piece_that_ends_too_early_is_not_used(
    together: FfmpegDecoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    file = make(tmp_path, "cbr 44.1 joint stereo")

    def short(path: Path, *, workers: int) -> tuple[Piece, ...]:
        *planned, last = plan_pieces(path, workers=workers)
        start, end = last.trim
        assert end is not None
        return (*planned, dataclasses.replace(last, trim=(start, end - 1000)))

    monkeypatch.setattr("parakeet_api.audio.decoder.plan_pieces", short)

    assert_the_same(together, file)
    assert FALLS_BACK in caplog.text


def _cut_short(data: bytes) -> bytes:
    return data[:-100]


def _with_garbage(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(1000) + data[len(data) // 2 :]


def _joined(data: bytes) -> bytes:
    return data + data


def _with_a_strange_end(data: bytes) -> bytes:
    return data + b"APETAGEX" + bytes(200)


@pytest.mark.parametrize("name", ["vbr 44.1", "cbr with both tags", "wav 44.1 stereo"])
@pytest.mark.parametrize("change", [_cut_short, _with_garbage, _joined, _with_a_strange_end])
def test_what_is_not_plain_is_left_to_one_ffmpeg(
    name: str, change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    file = make(tmp_path, name)
    file.write_bytes(change(file.read_bytes()))
    is_wav_with_more = file.suffix == ".wav" and change is not _cut_short

    # `wav_files` finds bytes within or after a wav file's samples.
    assert bool(plan_pieces(file, workers=3)) == is_wav_with_more


@pytest.mark.parametrize("name", ["vbr 44.1", "wav 44.1 stereo"])
def test_short_recordings_are_left_to_one_ffmpeg(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make(tmp_path, name)

    assert plan_pieces(file, workers=1) == ()
    monkeypatch.setattr(pieces, "_MIN_RECORDING_S", SECONDS + 1)
    assert plan_pieces(file, workers=3) == ()


def test_other_formats_and_empty_files_are_left_to_one_ffmpeg(tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp3"
    empty.touch()
    tag = tmp_path / "tag.mp3"
    tag.write_bytes(b"ID3")

    for file in (empty, tag, SPEECH / "long-dense.ogg", SPEECH / "clip-000.flac"):
        assert plan_pieces(file, workers=3) == ()


@contextlib.contextmanager
def started(decoder: FfmpegDecoder, file: Path) -> Iterator[AudioStream]:
    stream = decoder.stream(file)
    try:
        next(stream)
        yield stream
    finally:
        stream.close()


def test_closing_early_leaves_no_process_and_no_thread(
    together: FfmpegDecoder, tmp_path: Path
) -> None:
    file = make(tmp_path, "vbr 44.1")

    with started(together, file):
        assert ffmpegs()

    assert (ffmpegs(), decoder_threads()) == ([], [])
    with together.pieces(Input(file)) as planned:
        assert len(planned) == 6


def test_one_recording_at_a_time_is_decoded_in_pieces(
    together: FfmpegDecoder, tmp_path: Path
) -> None:
    file = make(tmp_path, "vbr 44.1")

    with started(together, file), together.pieces(Input(file)) as planned:
        assert planned == ()


def test_an_ffmpeg_that_is_killed_is_not_an_error_of_the_file(
    together: FfmpegDecoder, tmp_path: Path
) -> None:
    file = make(tmp_path, "vbr 44.1")

    @contextlib.contextmanager
    def killed(run: FfmpegRun) -> Iterator[None]:
        run.kill()
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces.ParallelDecoding, "_registered", lambda _, run: killed(run))
        with pytest.raises(ServiceUnavailableError, match="before its time"):
            list(together.stream(file))

    assert ffmpegs() == []
