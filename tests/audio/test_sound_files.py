from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import Clip, decode, encode
from pipeline_helpers import ffmpegs

from parakeet_api.audio.channels import Channels
from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.sound_files import open_sound
from parakeet_api.errors import AudioTooLongError, TruncatedAudioError
from parakeet_api.transcript import SAMPLE_RATE, Pcm

PLAIN = {
    "16 kHz wav": ("a.wav",),
    "24 bits": ("a.wav", "-c:a", "pcm_s24le"),
    "8 bits": ("a.wav", "-c:a", "pcm_u8"),
    "floats": ("a.wav", "-c:a", "pcm_f32le"),
    "stereo": ("a.wav", "-ac", "2"),
    "48 kHz": ("a.wav", "-ar", "48000"),
    "44.1 kHz stereo": ("a.wav", "-ar", "44100", "-ac", "2"),
    "8 kHz": ("a.wav", "-ar", "8000"),
    "flac": ("a.flac",),
    "44.1 kHz flac": ("a.flac", "-ar", "44100", "-ac", "2"),
}
UNUSUAL = {
    "mp3": ("a.mp3",),
    "ogg": ("a.ogg",),
    "adpcm": ("a.wav", "-c:a", "adpcm_ms"),
    "mu-law": ("a.wav", "-c:a", "pcm_mulaw"),
    "mp3 in wav": ("a.wav", "-c:a", "libmp3lame"),
    "6 channels": ("a.wav", "-ac", "6"),
    "aiff": ("a.aiff",),
}


def read(file: Path) -> Pcm:
    sound = open_sound(file, Channels("mix"))
    assert sound is not None
    return np.concatenate(list(sound.blocks))


def by_ffmpeg(decoder: FfmpegDecoder, file: Path) -> Pcm:
    """Decode with ffmpeg: `anull` changes nothing, but files are filtered with ffmpeg only."""
    return np.concatenate(list(replace(decoder, audio_filter="anull").stream(file)))


@pytest.mark.parametrize("how", PLAIN)
def test_a_plain_file_is_decoded_as_by_ffmpeg(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, how: str
) -> None:
    name, *options = PLAIN[how]
    file = encode(clips[3].path, tmp_path / name, *options)

    ours, theirs = read(file), by_ffmpeg(decoder, file)

    assert abs(len(ours) - len(theirs)) <= 2
    common = min(len(ours), len(theirs))
    difference = (ours[:common].astype(float) - theirs[:common])[SAMPLE_RATE // 10 :]
    # Two resamplers differ in the octave below the cutoff, by 1 % of the signal.
    assert np.sqrt(np.mean(difference**2)) < 0.02 * np.sqrt(np.mean(theirs.astype(float) ** 2))


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_what_needs_no_conversion_is_read_exactly(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str
) -> None:
    for clip in clips[:10]:
        file = encode(clip.path, tmp_path / name)

        assert np.array_equal(read(file), by_ffmpeg(decoder, file))


@pytest.mark.parametrize("how", UNUSUAL)
def test_unusual_files_are_left_to_ffmpeg(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, how: str
) -> None:
    name, *options = UNUSUAL[how]
    file = encode(clips[3].path, tmp_path / name, *options)

    assert open_sound(file, Channels("mix")) is None
    assert sum(map(len, decoder.stream(file))) > SAMPLE_RATE


def test_a_plain_clip_starts_no_process(decoder: FfmpegDecoder, clips: list[Clip]) -> None:
    stream = decoder.stream(clips[3].path)

    assert stream.expected_s == pytest.approx(clips[3].duration_s, abs=0.01)
    next(stream)

    assert not ffmpegs()


def test_a_long_wav_is_read_as_a_stream(decoder: FfmpegDecoder, tmp_path: Path) -> None:
    samples = np.random.default_rng(2).integers(-32768, 32767, 7_000_003, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE)

    blocks = list(decoder.stream(tmp_path / "a.wav"))

    assert max(map(len, blocks)) < 1_000_000
    assert np.array_equal(np.concatenate(blocks), samples)
    with pytest.raises(AudioTooLongError):
        list(replace(decoder, max_seconds=60).stream(tmp_path / "a.wav"))


def test_a_long_flac_is_left_to_ffmpeg(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", np.zeros(61 * 48_000, np.int16), 48_000)

    assert open_sound(tmp_path / "a.flac", Channels("mix")) is None


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _no_size(data: bytes) -> bytes:
    """Set the sizes to 0, as a recorder does that cannot seek back."""
    at = data.index(b"data")
    return data[:4] + bytes(4) + data[8 : at + 4] + bytes(4) + data[at + 8 :]


def _huge_size(data: bytes) -> bytes:
    at = data.index(b"data")
    return data[: at + 4] + struct.pack("<I", 0xFFFFFFFF) + data[at + 8 :]


def _small_size(data: bytes) -> bytes:
    """Declare fewer samples than the file has bytes."""
    at = data.index(b"data")
    return data[: at + 4] + struct.pack("<I", 32_000) + data[at + 8 :]


@pytest.mark.parametrize("damage", [_cut, _no_size, _huge_size, _small_size])
def test_a_wav_with_a_wrong_size_is_decoded_as_by_ffmpeg(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    file = encode(clips[3].path, tmp_path / "a.wav")
    file.write_bytes(damage(file.read_bytes()))

    decoded = np.concatenate(list(decoder.stream(file)))

    assert np.array_equal(decoded, by_ffmpeg(decoder, file))


def test_a_truncated_flac_is_rejected(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    data = max(clips, key=lambda clip: clip.duration_s).path.read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) // 2])

    with pytest.raises(TruncatedAudioError):
        list(decoder.stream(tmp_path / "a.flac"))


@pytest.mark.parametrize("wild", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_floats_that_are_no_sound_are_silence(tmp_path: Path, wild: float) -> None:
    sound = np.full(6000, 0.25, np.float32)
    sound[3000] = wild
    soundfile.write(tmp_path / "a.wav", sound, SAMPLE_RATE, subtype="FLOAT")

    samples = read(tmp_path / "a.wav")

    assert samples[3000] == 0
    assert np.count_nonzero(samples == 0.25 * 32768) > 5950


def test_a_flac_file_that_declares_too_few_samples_is_decoded_to_its_end(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    whole = encode(clips[3].path, tmp_path / "whole.flac")
    content = bytearray(whole.read_bytes())
    # STREAMINFO: the number of samples has 36 bits.
    content[21] &= 0xF0
    content[22:26] = (1000).to_bytes(4, "big")
    file = tmp_path / "a.flac"
    file.write_bytes(content)

    assert len(decode(decoder, file)) == len(decode(decoder, whole))


def riff(*chunks: tuple[bytes, bytes], magic: bytes = b"RIFF", byte_order: str = "<") -> bytes:
    """Build a wav file."""
    body = b"WAVE" + b"".join(
        name + struct.pack(f"{byte_order}I", len(content)) + content + b"\0" * (len(content) % 2)
        for name, content in chunks
    )
    return magic + struct.pack(f"{byte_order}I", len(body)) + body


def fmt(byte_order: str = "<", *, kind: int = 1, bits: int = 16) -> tuple[bytes, bytes]:
    size = bits // 8
    numbers = (kind, 1, SAMPLE_RATE, SAMPLE_RATE * size, size, bits)
    return b"fmt ", struct.pack(f"{byte_order}HHIIHH", *numbers)


@pytest.mark.parametrize(
    "between", [[], [(b"LIST", b"INFOISFT\x01\0\0\0x\0")], [(b"odd ", b"abc")]]
)
def test_all_chunks_of_samples_in_a_wav_file_are_decoded(
    decoder: FfmpegDecoder,
    clips: list[Clip],
    tmp_path: Path,
    between: list[tuple[bytes, bytes]],
) -> None:
    first, second = (decode(decoder, clip.path) for clip in clips[:2])
    file = tmp_path / "a.wav"
    chunks = [fmt(), (b"data", first.tobytes()), *between, (b"data", second.tobytes()), *between]
    file.write_bytes(riff(*chunks))

    np.testing.assert_array_equal(decode(decoder, file), np.concatenate([first, second]))


@pytest.mark.parametrize(("kind", "dtype"), [(1, ">i2"), (1, ">i4"), (3, ">f4")])
def test_a_wav_file_of_big_endian_numbers_is_decoded(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, kind: int, dtype: str
) -> None:
    """ffmpeg takes its samples for little-endian ones, which are noise."""
    expected = decode(decoder, clips[0].path)
    scale = {">i2": 1, ">i4": 1 << 16, ">f4": 1 / 32768}[dtype]
    samples = (expected.astype(np.float64) * scale).astype(dtype)
    file = tmp_path / "a.wav"
    form = fmt(">", kind=kind, bits=8 * samples.itemsize)
    odd = (b"odd ", b"abc")
    content = riff(form, odd, (b"data", samples.tobytes()), odd, magic=b"RIFX", byte_order=">")
    file.write_bytes(content)

    np.testing.assert_allclose(decode(decoder, file), expected, atol=1)

    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(TruncatedAudioError):
        decode(decoder, file)


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
def test_a_long_wav_file_whose_recorder_was_killed_is_decoded(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, magic: bytes
) -> None:
    expected = decode(decoder, clips[0].path)
    file = tmp_path / "a.wav"
    sizes = (b"ds64", bytes(28))
    content = bytearray(riff(sizes, fmt(), (b"data", expected.tobytes()), magic=magic))
    at = content.index(b"data") + 4
    content[4:8] = content[at : at + 4] = b"\xff" * 4
    file.write_bytes(content)

    np.testing.assert_array_equal(decode(decoder, file), expected)
