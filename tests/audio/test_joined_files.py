"""Concatenated files, and files whose audio changes in the middle."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from audio_helpers import AAC, AC3, MP2, VIDEO, assert_all_is_heard
from conftest import PATIENCE_S, Clip, decode, encode

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.errors import TruncatedAudioError

OTHER_PID = (*AC3, "-mpegts_start_pid", "0x300", "-mpegts_pmt_start_pid", "0x1100")


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
    "two rates.avi": [("-c:a", "pcm_s16le"), ("-c:a", "pcm_s16le", "-ac", "2", "-ar", "44100")],
    "two rates.au": [(), ("-ac", "2", "-ar", "44100")],
    "two rates.voc": [("-c:a", "pcm_s16le"), ("-c:a", "pcm_s16le", "-ac", "2", "-ar", "44100")],
    "stereo and mono.wv": [("-ac", "2"), ("-ac", "1")],
    "vorbis and pcm.nut": [("-c:a", "libvorbis"), ("-c:a", "pcm_s16le")],
    "three of a stream.rm": [AC3] * 3,
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
    subprocess.run(command, check=True, timeout=PATIENCE_S)
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


@pytest.mark.parametrize("name", ["a.flac", "a.flv", "a.tta"])
def test_a_part_that_was_cut_before_it_was_joined_is_reported(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str
) -> None:
    options = ("-c:a", "libmp3lame", "-ar", "44100") if name == "a.flv" else ()
    whole = encode(clips[6].path, tmp_path / name, *options).read_bytes()
    joined = tmp_path / f"joined{Path(name).suffix}"
    joined.write_bytes(whole[: len(whole) // 2] + whole)

    with pytest.raises(TruncatedAudioError):
        decode(decoder, joined)
