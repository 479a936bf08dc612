"""Files that were cut where ffmpeg does not notice it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from audio_helpers import VIDEO, codes_of
from conftest import Clip, decode, encode

from parakeet_api.audio.declared_sizes import ASF_MAGIC
from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.errors import AudioDecodeError, TruncatedAudioError
from parakeet_api.transcript import SAMPLE_RATE, Pcm

X264 = ("-c:v", "libx264", "-preset", "ultrafast")
CUT: dict[str, tuple[float, tuple[str, ...]]] = {
    "a.nut": (0.5, ()),
    "a.sox": (0.5, ()),
    "a.wtv": (0.8, ("-c:a", "ac3", "-ar", "48000")),
    "video.flv": (0.5, ("-c:v", "flv1", "-ar", "44100")),
    "video.nut": (0.5, ("-c:v", "mpeg4")),
    "within its index.mp4": (0.99, X264),
    "within its index.mov": (0.99, X264),
}


@pytest.mark.parametrize("name", CUT)
def test_a_file_that_was_cut_is_refused_and_a_whole_one_accepted(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str
) -> None:
    share, options = CUT[name]
    long = encode(clips[6].path, tmp_path / "long.wav", before=["-stream_loop", "2"])
    video = VIDEO if "-c:v" in options else ()
    maps = ("-map", "0:v", "-map", "1:a") if video else ()
    file = encode(long, tmp_path / name, *maps, *options, before=video)
    assert len(decode(decoder, file)) == pytest.approx(
        3 * clips[6].duration_s * SAMPLE_RATE, abs=0.2 * SAMPLE_RATE
    )

    content = file.read_bytes()
    file.write_bytes(content[: round(len(content) * share)])
    with pytest.raises(TruncatedAudioError):
        decode(decoder, file)


def sphere(samples: Pcm) -> bytes:
    """Write a NIST SPHERE file."""
    fields = f"sample_count -i {len(samples)}\nchannel_count -i 1\nsample_n_bytes -i 2\n"
    coding = "sample_rate -i 16000\nsample_byte_format -s2 01\nsample_coding -s3 pcm\nend_head\n"
    return f"NIST_1A\n   1024\n{fields}{coding}".encode().ljust(1024) + samples.tobytes()


@pytest.mark.parametrize("name", ["a.w64", "a.caf", "a.sph"])
def test_a_file_that_was_cut_between_two_packets_is_refused(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    samples = decode(decoder, clips[6].path)
    if name == "a.sph":
        file.write_bytes(sphere(samples))
    else:
        encode(clips[6].path, file, "-c:a", "pcm_s16le")
    assert len(decode(decoder, file)) == pytest.approx(len(samples), abs=8)

    content = file.read_bytes()
    samples_start = content.index(samples[:4096].tobytes())
    file.write_bytes(content[: samples_start + 10 * 4096])

    with pytest.raises(TruncatedAudioError):
        decode(decoder, file)


HEADS = {
    "sphere": b"NIST",
    "sphere's first line": b"NIST_1A\n",
    "w64": b"riff",
    "caf": b"caff",
    "flv": b"FLV\1",
    "ogg": b"OggS",
    "asf": ASF_MAGIC,
    "asf of 2^63 bytes": ASF_MAGIC + (1 << 63).to_bytes(8, "little") + bytes(100),
    "sox of a negative rate": b".SoX" + struct.pack("<IQdI", 24, 0, -1.0, 1) + bytes(2),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_the_beginning_of_a_header_is_refused(
    decoder: FfmpegDecoder, tmp_path: Path, head: bytes
) -> None:
    file = tmp_path / "a"
    file.write_bytes(head)

    with pytest.raises(AudioDecodeError):
        decode(decoder, file)


def test_an_ircam_file_that_ends_within_a_sample_is_refused(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    file = encode(clips[6].path, tmp_path / "a.ircam", "-ac", "2")
    assert codes_of(decoder, file) == []

    file.write_bytes(file.read_bytes()[:40_001])

    with pytest.raises(TruncatedAudioError, match="ends within a sample, after 0\\.6 s"):
        decode(decoder, file)


def test_a_whole_gxf_is_accepted(decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path) -> None:
    file = encode(clips[6].path, tmp_path / "a.gxf", "-ar", "48000", before=["-stream_loop", "2"])

    assert len(decode(decoder, file)) >= 3 * clips[6].duration_s * SAMPLE_RATE
