"""Files that are joined, cut, or miscounted in ways that one ffmpeg does not notice by itself."""

from __future__ import annotations

import mmap
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import Clip, decode, encode

from parakeet_api.audio import ogg_pages
from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.errors import AudioDecodeError, TruncatedAudioError
from parakeet_api.transcript import SAMPLE_RATE, Pcm

AAC = ("-c:a", "aac", "-ar", "44100", "-ac", "2")
AC3 = ("-c:a", "ac3", "-ar", "48000")
MP2 = ("-c:a", "mp2", "-ar", "48000")
OTHER_PID = (*AC3, "-mpegts_start_pid", "0x300", "-mpegts_pmt_start_pid", "0x1100")


def codes_of(decoder: FfmpegDecoder, file: Path) -> list[str]:
    stream = decoder.stream(file)
    for _ in stream:
        pass
    return [caveat.code for caveat in stream.caveats]


def assert_all_is_heard(
    decoder: FfmpegDecoder, file: Path, parts: Sequence[Path], *, within: float = 0.1
) -> None:
    """Check that a file is as long as its parts, and that each part is at its place."""
    alone = [decode(decoder, part) for part in parts]
    joined = decode(decoder, file)
    assert len(joined) == pytest.approx(sum(map(len, alone)), abs=within * SAMPLE_RATE * len(parts))
    start = 0
    for samples in alone:
        part = joined[start : start + len(samples)].astype(float)
        size = len(part) + len(samples)
        spectra = np.fft.rfft(part, size) * np.conj(np.fft.rfft(samples.astype(float), size))
        likeness = np.abs(np.fft.irfft(spectra, size))
        lag = (int(likeness.argmax()) + size // 2) % size - size // 2
        norm = float(np.linalg.norm(part)) * float(np.linalg.norm(samples.astype(float)))
        assert float(likeness.max()) > 0.8 * norm
        assert abs(lag) < within * SAMPLE_RATE * len(parts)
        start += len(samples)


JOINED: dict[str, list[tuple[str, ...]]] = {
    "three of a browser.webm": [("-c:a", "libopus")] * 3,
    "three of unknown length.webm": [("-c:a", "libopus", "-live", "1")] * 3,
    "opus and vorbis.webm": [("-c:a", "libopus"), ("-c:a", "libvorbis")],
    "mono and stereo.mka": [
        ("-c:a", "pcm_s16le"),
        ("-c:a", "pcm_s16le", "-ac", "2", "-ar", "48000"),
    ],
    "ac3 and aac.mka": [AC3, AAC],
    "aac and ac3.ts": [AAC, AC3],
    "ac3 and aac.ts": [AC3, AAC],
    "three codecs.ts": [AAC, MP2, AC3],
    "other streams.ts": [AC3, OTHER_PID],
    "with time codes.m2ts": [(*AC3, "-mpegts_m2ts_mode", "1"), (*MP2, "-mpegts_m2ts_mode", "1")],
}


@pytest.mark.parametrize("name", JOINED)
def test_joined_files_of_any_codec_are_all_decoded(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str
) -> None:
    suffix = Path(name).suffix
    parts = [
        encode(clip.path, tmp_path / f"{number}{suffix}", *options)
        for number, (clip, options) in enumerate(zip(clips[6:], JOINED[name], strict=False))
    ]
    joined = tmp_path / f"joined{suffix}"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))

    assert_all_is_heard(decoder, joined, parts)


RECONNECTED: dict[str, list[tuple[str, ...]]] = {
    "aac, mp3": [("-c:a", "aac"), ("-c:a", "libmp3lame")],
    "mp3, aac": [("-c:a", "libmp3lame"), ("-c:a", "aac")],
    "aac, mp3, aac": [("-c:a", "aac"), ("-c:a", "libmp3lame"), ("-c:a", "aac")],
    "pcm, aac of another rate": [("-c:a", "pcm_s16le"), ("-c:a", "aac", "-ar", "22050")],
}
FLV_HEADER_BYTES = 13


@pytest.mark.parametrize("between", [b"", bytes(300)], ids=["", "damaged"])
@pytest.mark.parametrize("name", RECONNECTED)
def test_an_flv_whose_codec_changes_is_all_decoded(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str, between: bytes
) -> None:
    mono = ("-ar", "44100", "-ac", "1")
    parts = [
        encode(clip.path, tmp_path / f"{number}.flv", *mono, *options)
        for number, (clip, options) in enumerate(zip(clips[5:], RECONNECTED[name], strict=False))
    ]
    joined = tmp_path / "joined.flv"
    first, *others = (part.read_bytes() for part in parts)
    joined.write_bytes(between.join([first, *(content[FLV_HEADER_BYTES:] for content in others)]))

    assert_all_is_heard(decoder, joined, parts)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_part_without_sound_does_not_hide_the_others(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, order: tuple[int, int]
) -> None:
    command = [find_ffmpeg(), "-loglevel", "error", *VIDEO, "-t", "1", str(tmp_path / "0.mkv")]
    subprocess.run(command, check=True, timeout=60)
    encode(clips[6].path, tmp_path / "1.mkv")
    joined = tmp_path / "joined.mkv"
    joined.write_bytes(b"".join((tmp_path / f"{part}.mkv").read_bytes() for part in order))

    assert_all_is_heard(decoder, joined, [tmp_path / "1.mkv"])


def test_a_transport_stream_that_was_cut_within_a_packet_goes_on(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    parts = [
        encode(clip.path, tmp_path / f"{number}.ts", *options)
        for number, (clip, options) in enumerate(zip(clips[6:], (AAC, AC3), strict=False))
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(parts[0].read_bytes() + bytes(77) + parts[1].read_bytes())

    assert_all_is_heard(decoder, joined, parts)


def test_times_that_ffmpeg_computes_by_the_previous_rate_leave_no_gaps(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    slow = encode(clips[1].path, tmp_path / "1.ts", "-c:a", "aac", "-ar", "22050", "-ac", "1")
    fast = encode(clips[6].path, tmp_path / "2.ts", *AAC)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(slow.read_bytes() + fast.read_bytes())

    assert_all_is_heard(decoder, joined, [slow, fast])


def test_the_chunks_of_an_avi_are_no_clock(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    # ffmpeg takes a long AAC frame for two, and frames of another rate for as long as the first.
    aac = encode(clips[6].path, tmp_path / "aac.avi", "-c:a", "aac")
    raw = ("-write_xing", "0", "-id3v2_version", "0", "-ac", "1")
    rates = [
        encode(clips[6].path, tmp_path / f"{rate}.mp3", "-ar", rate, *raw)
        for rate in ("44100", "48000")
    ]
    joined = tmp_path / "joined.mp3"
    joined.write_bytes(b"".join(part.read_bytes() for part in rates))
    avi = encode(joined, tmp_path / "rates.avi", "-c", "copy", before=["-f", "mp3"])

    assert len(decode(decoder, aac)) == pytest.approx(
        clips[6].duration_s * SAMPLE_RATE, abs=0.15 * SAMPLE_RATE
    )
    assert_all_is_heard(decoder, avi, rates)


def test_a_quiet_24_bit_tta_is_amplified(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    quiet = ("-af", "volume=-60dB", "-sample_fmt", "s32")
    file = encode(clips[6].path, tmp_path / "a.tta", *quiet)

    assert np.corrcoef(decode(decoder, file), decode(decoder, clips[6].path))[0, 1] > 0.99


def test_a_default_track_of_an_unknown_codec_is_reported(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    file, clip = tmp_path / "a.mkv", ("-i", str(clips[6].path))
    tracks = ("-map", "0:a", "-map", "1:a", "-c:a", "aac")
    subprocess.run(
        [find_ffmpeg(), "-loglevel", "error", *clip, *clip, *tracks, str(file)],
        check=True,
        timeout=60,
    )
    file.write_bytes(file.read_bytes().replace(b"A_AAC", b"A_ZZZ", 1))

    assert codes_of(decoder, file) == ["track_undecodable", "tracks_not_used"]


VIDEO = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=10:d=12")
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


def without_positions(content: bytes, *, pages: range) -> bytes:
    """Set the granule position of some pages of an Ogg file to -1, as if no packet ended there."""
    out, starts = bytearray(content), [match.start() for match in ogg_pages.PAGE.finditer(content)]
    for start in [*starts[2:]][pages.start : pages.stop]:
        with mmap.mmap(-1, len(content)) as data:
            data.write(content)
            end = ogg_pages.page_end(data, start)
        out[start + 6 : start + 14] = b"\xff" * 8
        out[start + 22 : start + 26] = bytes(4)
        out[start + 22 : start + 26] = ogg_checksum(bytes(out[start:end])).to_bytes(4, "little")
    return bytes(out)


def ogg_checksum(page: bytes) -> int:
    """Return a page's CRC-32, bit by bit (RFC 3533, 6)."""
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
    return value


MISSING = {
    "all": range(1000),
    "the first": range(3),
    "some": range(5, 9),
    "the last": range(-1, 1000),
}


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("codec", ["libopus", "libvorbis"])
def test_ogg_pages_without_a_position_are_decoded(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, codec: str, name: str
) -> None:
    options = ("-c:a", codec, "-b:a", "16k", "-page_duration", "200000")
    whole = encode(clips[6].path, tmp_path / "whole.ogg", *options)
    file = tmp_path / "a.ogg"
    file.write_bytes(without_positions(whole.read_bytes(), pages=MISSING[name]))

    assert_all_is_heard(decoder, file, [whole], within=0.06)
    assert codes_of(decoder, file) == []


def test_a_link_of_chained_ogg_without_positions_is_decoded(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    opus = ("-c:a", "libopus", "-b:a", "16k", "-page_duration", "200000")
    parts = [encode(clip.path, tmp_path / f"{clip.path.stem}.ogg", *opus) for clip in clips[6:8]]
    joined = tmp_path / "joined.ogg"
    broken = without_positions(parts[1].read_bytes(), pages=range(1000))
    joined.write_bytes(parts[0].read_bytes() + broken + parts[0].read_bytes())

    assert_all_is_heard(decoder, joined, [*parts, parts[0]])


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


@pytest.mark.parametrize("head", [b"NIST", b"NIST_1A\n", b"riff", b"caff", b"FLV\1", b"OggS"])
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


@pytest.mark.parametrize("name", ["a.wav", "a.mp3"])
def test_channels_out_of_phase_in_a_part_of_each_second_are_not_lost(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str
) -> None:
    speech = decode(decoder, clips[6].path)
    half_seconds = np.arange(len(speech)) // (SAMPLE_RATE // 2)
    turned = np.where(half_seconds % 2, -speech, speech)
    wav = tmp_path / "a.wav"
    soundfile.write(wav, np.stack([speech, turned], axis=1), SAMPLE_RATE)
    file = wav if name == "a.wav" else encode(wav, tmp_path / name, "-joint_stereo", "0")

    heard = decode(decoder, file)

    assert codes_of(decoder, file) == ["channels_out_of_phase"]
    for start in range(0, len(speech), SAMPLE_RATE // 2):
        part = slice(start, start + SAMPLE_RATE // 2)
        loudness = [float(np.abs(sound[part].astype(float)).mean()) for sound in (heard, speech)]
        assert loudness[0] >= 0.7 * loudness[1]
