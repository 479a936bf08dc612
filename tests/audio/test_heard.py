"""All audio of a file is decoded, at its correct time, or a warning says what is missing."""

from __future__ import annotations

import shutil
import struct
import subprocess
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
from conftest import PATIENCE_S, ROOT, Clip, decode, encode

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.audio.media_info import TrackChoice
from parakeet_api.errors import (
    ApiError,
    AudioDecodeError,
    InvalidRequestError,
    ServiceUnavailableError,
    TruncatedAudioError,
)
from parakeet_api.transcript import SAMPLE_RATE, Caveat, Pcm

MEDIA = ROOT / "tests" / "media"
FFMPEGS = {"bundled": imageio_ffmpeg.get_ffmpeg_exe(), "system": shutil.which("ffmpeg")}


@pytest.fixture(params=FFMPEGS)
def either(request: pytest.FixtureRequest) -> FfmpegDecoder:
    """Decode with the ffmpeg of imageio-ffmpeg, and with the system's: 5.1 on Debian 12."""
    executable = FFMPEGS[request.param]
    if executable is None:
        pytest.skip("no ffmpeg on the PATH")
    return FfmpegDecoder(executable=executable, max_seconds=12 * 3600)


@dataclass(frozen=True)
class Decoded:
    samples: Pcm
    caveats: tuple[Caveat, ...]

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    @property
    def codes(self) -> list[str]:
        return [caveat.code for caveat in self.caveats]

    @property
    def starts_at(self) -> float:
        """Return the time of the first sample that is not quiet, in seconds."""
        return int(np.flatnonzero(np.abs(self.samples.astype(int)) > 300)[0]) / SAMPLE_RATE

    def level(self, start_s: float, end_s: float) -> float:
        """Return the root mean square of a section."""
        part = self.samples[round(start_s * SAMPLE_RATE) : round(end_s * SAMPLE_RATE)]
        return float(np.sqrt(np.mean(part.astype(float) ** 2)))


def decode_file(
    decoder: FfmpegDecoder,
    file: Path,
    *,
    track: TrackChoice = None,
    allow_partial: bool = False,
) -> Decoded:
    stream = decoder.stream(file, track=track, allow_partial=allow_partial)
    samples = np.concatenate([*stream, np.zeros(0, np.int16)])
    return Decoded(samples, stream.caveats)


WHOLE = {
    # name: seconds, start of the audio, codes of the caveats
    "mono-stereo.mp3": (7.30, 0.20, []),
    "three.mp3": (10.64, 0.20, []),
    "joined.webm": (7.31, 0.20, []),
    "joined.flv": (7.38, 0.22, []),
    "chained.ogg": (10.64, 0.20, []),
    "slow-positions.ogg": (8.95, 0.24, []),
    "late5.ts": (8.18, 5.20, []),
    "late5.mp4": (8.20, 5.20, []),
    "el5.m4a": (16.46, 5.20, []),
    "inverted.wav": (3.19, 0.20, ["channels_out_of_phase"]),
    "two-tracks.m4a": (3.19, 0.20, ["tracks_not_used"]),
    "trimmed.flac": (2.17, 0.00, []),
    "nut.nut": (3.19, 0.20, []),
    "commentary-first.mkv": (3.22, 0.22, ["tracks_not_used"]),
    "silence.qcp": (3.00, 0.41, []),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_recording_is_decoded_to_its_end(either: FfmpegDecoder, name: str) -> None:
    seconds, start, codes = WHOLE[name]

    whole = decode_file(either, MEDIA / name)

    assert whole.seconds == pytest.approx(seconds, abs=0.03)
    assert whole.starts_at == pytest.approx(start, abs=0.06)
    assert whole.codes == codes
    assert whole.level(whole.seconds - 1, whole.seconds) > 0


CUT = ["half.webm", "half-faststart-video.mp4", "half-moov-at-end.m4a", "damaged.wv"]


@pytest.mark.parametrize("name", CUT)
def test_a_truncated_file_is_rejected(either: FfmpegDecoder, name: str) -> None:
    with pytest.raises(TruncatedAudioError, match="is cut short"):
        decode_file(either, MEDIA / name)


@pytest.mark.parametrize("name", ["half.webm", "half-faststart-video.mp4", "damaged.wv"])
def test_a_truncated_file_is_decoded_as_far_as_it_goes_if_allowed(
    either: FfmpegDecoder, name: str
) -> None:
    part = decode_file(either, MEDIA / name, allow_partial=True)

    assert part.seconds > 1.9
    assert part.codes == ["truncated_audio"]
    assert part.caveats[0].start == pytest.approx(part.seconds, abs=0.01)


CONTAINERS = {
    "a.wav": (),
    "a.w64": (),
    "a.caf": ("-c:a", "pcm_s16le"),
    "alac.caf": ("-c:a", "alac"),
    "a.aiff": (),
    "a.au": (),
    "a.tta": (),
    "a.wv": (),
    "a.flac": (),
    "a.mp3": (),
    "opus.ogg": ("-c:a", "libopus"),
    "vorbis.ogg": ("-c:a", "libvorbis"),
    "index-first.m4a": ("-movflags", "+faststart"),
    "fragments.mp4": ("-c:a", "aac", "-movflags", "frag_keyframe+empty_moov"),
    "a.mka": ("-c:a", "flac"),
    "a.webm": ("-c:a", "libopus"),
    "a.flv": ("-c:a", "aac", "-ar", "44100"),
    "a.wma": ("-f", "asf"),
    "a.avi": ("-c:a", "mp3"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_truncated_container_is_detected_and_a_complete_one_accepted(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str
) -> None:
    # Three times, so that the end is not in the first block of any codec.
    long = encode(clips[0].path, tmp_path / "long.wav", before=["-stream_loop", "2"])
    file = encode(long, tmp_path / name, *CONTAINERS[name])

    assert decode_file(either, file).seconds == pytest.approx(3 * clips[0].duration_s, abs=0.2)

    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 55 // 100])
    with pytest.raises(TruncatedAudioError):
        decode_file(either, file)


@pytest.mark.parametrize("name", [*CONTAINERS, "a.aac", "a.ts", "a.m4a"])
def test_concatenated_files_are_all_decoded(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str
) -> None:
    options = CONTAINERS.get(name, ())
    one, two = (
        encode(clip.path, tmp_path / f"{number}{name}", *options)
        for number, clip in enumerate(clips[3:5])
    )
    joined = tmp_path / name
    joined.write_bytes(one.read_bytes() + two.read_bytes())

    both = decode_file(either, joined)

    lengths = [decode_file(either, file).seconds for file in (one, two)]
    assert both.seconds == pytest.approx(sum(lengths), abs=0.1)
    assert both.level(lengths[0] + 0.3, sum(lengths) - 0.3) > 100


CHANGES = {
    "mono, then stereo": (("-ac", "1"), ("-ac", "2")),
    "stereo, then mono": (("-ac", "2"), ("-ac", "1")),
    "another rate": (("-ar", "44100"), ("-ar", "22050")),
    "a higher rate": (("-ar", "22050"), ("-ar", "44100")),
}


@pytest.mark.parametrize("kind", ["mp3", "aac"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_track_that_changes_its_format_loses_nothing(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path, change: str, kind: str
) -> None:
    raw = ("-write_xing", "0", "-id3v2_version", "0") if kind == "mp3" else ()
    files = [
        encode(clip.path, tmp_path / f"{number}.{kind}", *options, *raw)
        for number, (clip, options) in enumerate(zip(clips[3:5], CHANGES[change], strict=True))
    ]
    joined = tmp_path / f"a.{kind}"
    joined.write_bytes(b"".join(file.read_bytes() for file in files))
    lengths = [decode_file(either, file).seconds for file in files]

    both = decode_file(either, joined)

    assert both.seconds == pytest.approx(sum(lengths), abs=0.12)
    loud = decode_file(either, files[1]).starts_at
    assert both.level(lengths[0] + loud, lengths[0] + loud + 0.5) > 300


def test_surround_sound_that_becomes_stereo_loses_nothing(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    files = [
        encode(clip.path, tmp_path / f"{channels}.ac3", "-ac", str(channels), "-ar", "48000")
        for clip, channels in zip(clips[3:5], (6, 2), strict=True)
    ]
    joined = tmp_path / "a.ac3"
    joined.write_bytes(b"".join(file.read_bytes() for file in files))
    broadcast = encode(joined, tmp_path / "a.ts", "-c", "copy", before=["-f", "ac3"])

    lengths = [decode_file(either, file).seconds for file in files]

    for file in (joined, broadcast):
        both = decode_file(either, file)
        assert both.seconds == pytest.approx(sum(lengths), abs=0.1)
        assert both.level(lengths[0] + 0.3, sum(lengths) - 0.3) > 100


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("kind", [("-c:a", "libopus"), ("-c:a", "pcm_f32le"), ("-c:a", "flac")])
def test_parts_of_different_formats_keep_their_levels(
    either: FfmpegDecoder,
    clips: list[Clip],
    tmp_path: Path,
    kind: tuple[str, ...],
    order: tuple[int, int],
) -> None:
    container = "wav" if "pcm_f32le" in kind else "ogg"
    plain = ("-c:a", "pcm_s16le") if container == "wav" else kind
    files = [
        encode(clips[3].path, tmp_path / f"0.{container}", "-ac", "2", *kind),
        encode(clips[4].path, tmp_path / f"1.{container}", "-ac", "1", *plain),
    ]
    alone = [decode_file(either, files[number]) for number in order]
    joined = tmp_path / f"a.{container}"
    joined.write_bytes(b"".join(files[number].read_bytes() for number in order))

    both = decode_file(either, joined)

    border = alone[0].seconds
    assert both.seconds == pytest.approx(border + alone[1].seconds, abs=0.1)
    for one, start in zip(alone, (0.0, border), strict=True):
        level = both.level(start + 0.2, start + 1.5)
        assert level == pytest.approx(one.level(0.2, 1.5), rel=0.2)


def many_channels(path: Path, speech: Pcm, channels: int, *, on: Sequence[int]) -> Path:
    """Write a wav without a layout, with speech on some channels."""
    frames = np.zeros((len(speech), channels), np.int16)
    frames[:, list(on)] = speech[:, None]
    with wave.open(str(path), "wb") as out:
        out.setparams((channels, 2, SAMPLE_RATE, 0, "NONE", ""))
        out.writeframes(frames.tobytes())
    return path


@pytest.mark.parametrize("channels", [3, 4, 6, 8, 9, 16, 60])
def test_every_channel_without_a_layout_is_in_the_mix(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path, channels: int
) -> None:
    speech = decode(either, clips[3].path)
    for channel in range(channels) if channels < 9 else (0, channels - 1):
        file = many_channels(tmp_path / "a.wav", speech, channels, on=[channel])

        mixed = decode_file(either, file).samples.astype(float)

        # Quiet mixes are amplified; the speech is the same.
        assert np.corrcoef(mixed, speech)[0, 1] > 0.98, channel


def test_surround_sound_is_mixed_by_the_standard_coefficients(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    file = encode(clips[3].path, tmp_path / "a.flac", "-ac", "6", "-ar", "48000")
    plain = encode(file, tmp_path / "plain.wav", "-ac", "1", "-ar", "16000")

    ours, theirs = (
        decode_file(either, file).samples.astype(int),
        soundfile.read(plain, dtype="int16")[0],
    )

    assert np.abs(ours[: len(theirs)] - theirs[: len(ours)]).max() <= 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("samples", [1, 3, 8])
def test_a_stereo_recording_of_a_few_samples_is_decoded(
    either: FfmpegDecoder, tmp_path: Path, samples: int
) -> None:
    file = tmp_path / "a.aiff"
    soundfile.write(file, np.full((samples, 2), 0.5), SAMPLE_RATE)

    assert decode_file(either, file).samples.tolist() == [16384] * samples


ANTIPHASE = {
    "5.1": ("FL", "FR"),
    "5.1(side)": ("SL", "SR"),
    "quad": ("BL", "BR"),
    "7.1": ("SL", "SR"),
    "3.0": ("FL", "FR"),
}


@pytest.mark.parametrize("name", ["a.flac", "a.mka"])
@pytest.mark.parametrize("layout", ANTIPHASE)
def test_a_pair_of_a_surround_layout_in_antiphase_is_heard(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path, layout: str, name: str
) -> None:
    left, right = ANTIPHASE[layout]
    pan = f"pan={layout}|{left}=c0|{right}=-1*c0"
    file = encode(clips[3].path, tmp_path / name, "-af", pan, "-c:a", "flac")
    same = encode(clips[3].path, tmp_path / f"same-{name}", "-af", pan.replace("-1*", ""),
                  "-c:a", "flac")  # fmt: skip

    turned, in_phase = decode_file(either, file), decode_file(either, same)

    assert turned.codes == ["channels_out_of_phase"]
    assert in_phase.codes == []
    assert turned.level(0.2, 1.5) == pytest.approx(in_phase.level(0.2, 1.5), rel=0.1)


def test_ambisonic_audio_is_decoded(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    pan = "pan=ambisonic 1|c0=c0|c1=0.3*c0"
    file = encode(clips[3].path, tmp_path / "a.ogg", "-af", pan, "-c:a", "libopus",
                  "-mapping_family", "2")  # fmt: skip

    assert decode_file(either, file).level(0.2, 1.5) > 100


@pytest.mark.parametrize("name", ["a.wav", "a.m4a", "a.mp3", "a.ogg"])
@pytest.mark.parametrize(
    "turned",
    {"c1=-1*c0": 0, "c1=-0.9*c0": 1, "c1=-0.5*c0": 6}.items(),
    ids=["exactly", "1 dB less", "6 dB less"],
)
def test_channels_that_cancel_each_other_are_not_lost(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str, turned: tuple[str, int]
) -> None:
    file = encode(clips[3].path, tmp_path / name, "-af", f"pan=stereo|c0=c0|{turned[0]}")
    speech = decode(either, clips[3].path)

    one = decode_file(either, file)

    assert one.codes == ["channels_out_of_phase"]
    assert one.level(0.2, 1.5) == pytest.approx(Decoded(speech, ()).level(0.2, 1.5), rel=0.1)


@pytest.mark.parametrize("second", ["c1=c0", "c1=0.89*c0", "c1=0*c0"])
def test_channels_that_do_not_cancel_are_mixed(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path, second: str
) -> None:
    file = encode(clips[3].path, tmp_path / "a.mka", "-af", f"pan=stereo|c0=c0|{second}",
                  "-c:a", "flac")  # fmt: skip
    plain = encode(file, tmp_path / "plain.wav", "-ac", "1", "-ar", "16000")

    ours = decode_file(either, file)

    theirs = soundfile.read(plain, dtype="int16")[0]
    assert ours.codes == []
    assert np.abs(ours.samples.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("gain_db", [-80, -70, -60, 90.3])
@pytest.mark.parametrize("name", ["a.wav", "a.mka"])
def test_the_gain_of_a_float_recording_does_not_matter(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path, gain_db: float, name: str
) -> None:
    file = encode(clips[3].path, tmp_path / name, "-af", f"volume={gain_db}dB", "-c:a",
                  "pcm_f32le")  # fmt: skip
    speech = decode(either, clips[3].path)

    scaled = decode_file(either, file).samples

    assert np.abs(scaled.astype(int)).max() > 5000
    assert np.corrcoef(scaled, speech)[0, 1] > 0.999


def test_a_quiet_24_bit_recording_is_amplified(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    file = encode(clips[3].path, tmp_path / "a.m4a", "-af", "volume=-70dB", "-sample_fmt", "s32p",
                  "-c:a", "alac")  # fmt: skip
    speech = decode(either, clips[3].path)

    assert np.corrcoef(decode_file(either, file).samples, speech)[0, 1] > 0.99


def test_a_quiet_lossy_recording_is_amplified(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    file = encode(clips[3].path, tmp_path / "a.webm", "-af", "volume=-60dB", "-c:a", "libopus",
                  before=["-f", "flac"])  # fmt: skip

    assert np.abs(decode_file(either, file).samples.astype(int)).max() > 3000


def tracks(target: Path, *inputs: Sequence[str], options: Sequence[str] = ()) -> Path:
    """Make a file with several sound tracks."""
    command = [find_ffmpeg(), "-loglevel", "error", "-y"]
    for arguments in inputs:
        command += arguments
    for number in range(len(inputs)):
        command += ["-map", f"{number}:a"]
    subprocess.run([*command, "-c:a", "aac", *options, str(target)], check=True, timeout=PATIENCE_S)
    return target


def undecodable_first(target: Path, *inputs: Sequence[str]) -> Path:
    """Make a file whose first track is of Apple's APAC, which ffmpeg cannot decode.

    iPhones record it next to AAC.
    """
    file = tracks(target, *inputs, options=["-c:a:0", "pcm_s16le"])
    file.write_bytes(file.read_bytes().replace(b"sowt", b"apac"))
    return file


SILENT = ("-f", "lavfi", "-i", "anullsrc=r=48000:cl=stereo:d=4")


def test_a_silent_track_is_skipped(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    file = tracks(tmp_path / "a.mkv", SILENT, ("-i", str(clips[3].path)))

    second = decode_file(either, file)

    assert second.level(0.2, 1.5) > 100
    assert second.codes == ["track_silent", "tracks_not_used"]
    assert second.caveats[0].message == "Track 1 was silent, track 2 was used."
    assert not decode_file(either, file, track=1).samples.any()


def test_a_file_of_silent_tracks_is_silence(either: FfmpegDecoder, tmp_path: Path) -> None:
    assert decode_file(either, tracks(tmp_path / "a.mkv", SILENT, SILENT)).seconds == pytest.approx(
        4, abs=0.1
    )


def test_a_track_that_cannot_be_decoded_is_reported_beside_a_silent_one(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    file = undecodable_first(tmp_path / "a.mov", ("-i", str(clips[3].path)), SILENT)

    silent = decode_file(either, file)

    assert not silent.samples.any()
    assert silent.codes == ["track_undecodable", "tracks_not_used"]
    assert silent.caveats[0].message == "Track 1 could not be decoded, track 2 was used."


def test_a_track_that_cannot_be_decoded_is_skipped(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    clip = ("-i", str(clips[3].path))
    file = undecodable_first(tmp_path / "a.mov", clip, clip)

    assert decode_file(either, file).level(0.2, 1.5) > 100
    with pytest.raises(AudioDecodeError, match=r"cannot be decoded: (apple_apac|none)"):
        decode_file(either, file, track=1)


def test_the_default_track_is_taken_and_others_can_be_chosen(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    longer, shorter = clips[0], clips[3]
    dispositions = ("-disposition:a:0", "0", "-disposition:a:1", "default")
    file = tracks(tmp_path / "a.mkv", ("-i", str(longer.path)), ("-i", str(shorter.path)),
                  options=dispositions)  # fmt: skip

    lengths = [decode_file(either, file, track=track).seconds for track in (None, 1, 2, "all")]

    assert lengths == pytest.approx(
        [shorter.duration_s, longer.duration_s, shorter.duration_s, longer.duration_s], abs=0.15
    )
    both = decode_file(either, file, track="all")
    assert both.codes == []
    parts = [decode_file(either, file, track=number).samples for number in (1, 2)]
    parts[1] = np.pad(parts[1], (0, len(parts[0]) - len(parts[1])))
    assert np.corrcoef(both.samples, sum(part.astype(float) for part in parts))[0, 1] > 0.99


@pytest.mark.parametrize("name", ["a.mkv", "a.wav", "a.flac", "a.mp3"])
def test_a_missing_track_is_an_invalid_request(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str
) -> None:
    file = encode(clips[3].path, tmp_path / name)

    with pytest.raises(InvalidRequestError, match="audio_track=2: the file has one sound track"):
        decode_file(either, file, track=2)


def pcm_head(size: int) -> bytes:
    return (
        b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16) + b"data" + struct.pack("<I", size)
    )  # fmt: skip


def test_a_wav_is_read_to_its_end_despite_a_wrong_header(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    speech = decode(either, clips[0].path)
    sound = speech.astype("<i2").tobytes()
    pieces = [sound[k : k + 32_000] for k in range(0, len(sound), 32_000)]
    contents = {
        "the first second's header": pcm_head(32_000) + sound,
        "a header each second": b"".join(pcm_head(len(piece)) + piece for piece in pieces),
        "remarks behind": pcm_head(len(sound)) + sound + b"LIST\x04\0\0\0abcd",
        "a tag behind": pcm_head(len(sound)) + sound + b"ID3" + bytes(50_000),
    }
    for name, content in contents.items():
        (tmp_path / "a.wav").write_bytes(content)

        assert np.array_equal(decode_file(either, tmp_path / "a.wav").samples, speech), name


@pytest.mark.parametrize("container", ["mka", "webm", "m4a", "nut"])
def test_audio_that_starts_late_keeps_its_time_without_video(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path, container: str
) -> None:
    codec = {"webm": "libopus", "m4a": "aac"}.get(container, "flac")
    if container == "nut":
        codec = "libvorbis"
    file = encode(clips[3].path, tmp_path / f"a.{container}", "-c:a", codec,
                  before=["-itsoffset", "5"])  # fmt: skip

    assert decode_file(either, file).starts_at == pytest.approx(
        5 + Decoded(decode(either, clips[3].path), ()).starts_at, abs=0.06
    )


def test_a_missing_ffmpeg_is_replaced(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = encode(clips[3].path, tmp_path / "a.mp3")
    removable = tmp_path / "ffmpeg"
    removable.symlink_to(find_ffmpeg())
    decoder = FfmpegDecoder(executable=str(removable), max_seconds=60)
    assert decode_file(decoder, file).seconds > 1

    removable.unlink()
    assert decode_file(decoder, file).seconds > 1
    removable.write_text("#!/bin/sh\necho libavcodec.so: cannot open shared object >&2\nexit 127\n")
    removable.chmod(0o755)
    assert decode_file(decoder, file).seconds > 1
    removable.write_bytes(b"\x7fELF of nothing")
    assert decode_file(decoder, file).seconds > 1
    assert decoder.is_usable

    monkeypatch.setattr("parakeet_api.audio.ffmpeg.shutil.which", lambda _: None)
    monkeypatch.setattr("parakeet_api.audio.ffmpeg._bundled_ffmpeg", lambda: None)
    removable.unlink()
    assert not decoder.is_usable
    with pytest.raises(ServiceUnavailableError, match="no decoder at the moment"):
        decode_file(decoder, file)


def test_lost_packets_are_reported(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    longest = max(clips, key=lambda clip: clip.duration_s)
    file = encode(longest.path, tmp_path / "a.m4a", "-movflags", "+faststart")
    content = bytearray(file.read_bytes())
    middle = (content.index(b"mdat") + len(content)) // 2
    content[middle : middle + 6000] = b"\xff" * 6000
    file.write_bytes(content)

    damaged = decode_file(either, file)

    # The times after the gap are unchanged.
    assert damaged.seconds == pytest.approx(longest.duration_s, abs=0.1)


@pytest.mark.parametrize("content", [b"\2dss" + bytes(2000), b"MThd" + bytes(2000)])
def test_a_known_unsupported_format_is_named(
    either: FfmpegDecoder, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a").write_bytes(content)

    with pytest.raises(ApiError, match=r"is a (dictation in DSS|MIDI file)"):
        decode_file(either, tmp_path / "a")


@pytest.mark.parametrize("into_the_tag", [1, 5, 11, 12, 40])
def test_an_flv_file_cut_anywhere_in_a_tag_is_detected(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path, into_the_tag: int
) -> None:
    file = encode(clips[0].path, tmp_path / "a.flv", "-c:a", "aac", "-ar", "44100")
    content = file.read_bytes()
    position = 13
    while position < len(content) // 2:
        position += 15 + int.from_bytes(content[position + 1 : position + 4])
    file.write_bytes(content[: position + into_the_tag])

    with pytest.raises(TruncatedAudioError):
        decode_file(either, file)


def test_an_flv_file_with_a_wrong_declared_length_is_complete(
    either: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    file = encode(clips[0].path, tmp_path / "a.flv", "-c:a", "aac", "-ar", "44100")
    content = file.read_bytes()
    noted = content.index(b"duration") + len(b"duration") + 1
    file.write_bytes(content[:noted] + struct.pack(">d", 3600.0) + content[noted + 8 :])

    assert decode_file(either, file).seconds == pytest.approx(clips[0].duration_s, abs=0.2)
