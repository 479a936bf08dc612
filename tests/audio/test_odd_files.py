"""Times, levels and tracks that ffmpeg computes wrongly or does not report."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_helpers import AAC, assert_all_is_heard, codes_of
from conftest import PATIENCE_S, Clip, decode, encode

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import FfmpegRun, find_ffmpeg
from parakeet_api.errors import TruncatedAudioError
from parakeet_api.transcript import SAMPLE_RATE


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
        timeout=PATIENCE_S,
    )
    file.write_bytes(file.read_bytes().replace(b"A_AAC", b"A_ZZZ", 1))

    assert codes_of(decoder, file) == ["track_undecodable", "tracks_not_used"]


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


FLOATS = {"a.wav": "pcm_f32le", "a.aiff": "pcm_f32be", "a.caf": "pcm_f32le", "a.mov": "pcm_f64le"}


def damage(file: Path, start: int, end: int) -> None:
    """Overwrite a section of a file with arbitrary bytes."""
    content = bytearray(file.read_bytes())
    content[start:end] = np.random.default_rng(5).bytes(end - start)
    file.write_bytes(content)


@pytest.mark.parametrize(("name", "codec"), FLOATS.items())
def test_damage_in_a_float_recording_does_not_silence_the_rest(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str, codec: str
) -> None:
    file = encode(clips[6].path, tmp_path / name, "-c:a", codec)
    middle = file.stat().st_size // 2
    damage(file, middle, middle + 20_000)

    heard, speech = decode(decoder, file), decode(decoder, clips[6].path)

    second = slice(SAMPLE_RATE // 2, SAMPLE_RATE * 3 // 2)
    assert np.corrcoef(heard[second], speech[second])[0, 1] > 0.99
    assert np.abs(heard[second]).max() == pytest.approx(np.abs(speech[second]).max(), rel=0.02)


DAMAGED = {
    "a.wav": ("-c:a", "libmp3lame"),
    "a.mka": ("-c:a", "aac"),
    "a.webm": ("-c:a", "libopus", "-cluster_time_limit", "100"),
    "a.wma": (),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_up_to_the_end_is_reported(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str
) -> None:
    file = encode(clips[6].path, tmp_path / name, *DAMAGED[name])
    size = file.stat().st_size
    damage(file, size * 6 // 10, size - 200)

    assert codes_of(decoder, file) == ["undecodable"]


@pytest.mark.parametrize(
    ("name", "option"), [("a.webm", "-cluster_time_limit"), ("a.ogg", "-page_duration")]
)
def test_damage_that_a_demuxer_skips_is_reported(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str, option: str
) -> None:
    file = encode(clips[6].path, tmp_path / name, "-c:a", "libopus", option, "100")
    middle = file.stat().st_size // 2
    damage(file, middle, middle + 4000)

    assert codes_of(decoder, file) == ["undecodable"]


def test_all_losses_are_reported_if_messages_come_long_before_the_sound(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy machine. The first gap is the encoder's delay, 7 ms."""
    options = ("-c:a", "libopus", "-cluster_time_limit", "100")
    file = encode(clips[6].path, tmp_path / "a.webm", *options)
    third = file.stat().st_size // 3
    for start in (third, 2 * third):
        damage(file, start, start + 4000)
    blocks = FfmpegRun.blocks
    at_once = lambda run: iter([b"".join(blocks(run))])  # noqa: E731
    monkeypatch.setattr(FfmpegRun, "blocks", at_once)

    assert codes_of(decoder, file) == ["undecodable", "undecodable"]


FRAGMENT_HEAD = b"moof\0\0\0\x10mfhd"


def fragments(clip: Path, target: Path) -> tuple[bytes, int]:
    """Return a file of fragments, and the offset of one in its middle."""
    options = ("-c:a", "aac", "-movflags", "frag_keyframe+empty_moov", "-frag_duration", "400000")
    content = encode(clip, target, *options).read_bytes()
    return content, content.index(FRAGMENT_HEAD, len(content) // 2) - 4


def test_a_file_that_ends_within_the_head_of_a_fragment_is_cut_short(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    file = tmp_path / "a.mp4"
    content, fragment = fragments(clips[6].path, file)
    file.write_bytes(content[: fragment + 50])

    with pytest.raises(TruncatedAudioError):
        decode(decoder, file)


def test_fragments_behind_a_damaged_one_are_reported(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    file = tmp_path / "a.mp4"
    content, fragment = fragments(clips[6].path, file)
    file.write_bytes(content[:fragment] + b"\x7f" * 40 + content[fragment + 40 :])

    with pytest.raises(TruncatedAudioError, match="damaged"):
        decode(decoder, file)


def test_bytes_behind_the_last_fragment_are_no_damage(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    file = tmp_path / "a.mp4"
    content, _ = fragments(clips[6].path, file)
    file.write_bytes(content + b"TAG" + b"\x7f" * 125)

    assert codes_of(decoder, file) == []


def test_a_tag_behind_the_last_sample_is_no_damage(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    file = encode(clips[6].path, tmp_path / "a.wv")
    file.write_bytes(file.read_bytes() + b"TAG" + bytes(125))

    assert np.array_equal(decode(decoder, file), decode(decoder, clips[6].path))


def test_a_real_media_file_that_ends_between_packets_is_cut_short(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    file = encode(clips[6].path, tmp_path / "a.rm", "-c:a", "real_144", "-ar", "8000")
    content = file.read_bytes()

    for end in range(len(content) // 2, len(content) // 2 + 200, 20):
        file.write_bytes(content[:end])
        with pytest.raises(TruncatedAudioError):
            decode(decoder, file)
