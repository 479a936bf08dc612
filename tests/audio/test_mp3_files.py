"""Where mp3 files begin that were concatenated, behind tags of any kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from audio_helpers import assert_all_is_heard
from conftest import Clip, decode, encode

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.media_files import inspect
from parakeet_api.transcript import SAMPLE_RATE


def tag(content: bytes, *, flags: int = 0) -> bytes:
    """Make an ID3v2.4 tag of one frame, a comment."""
    frame = b"COMM" + len(content).to_bytes(4) + b"\0\0" + content
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    header = b"\4\0" + bytes([flags]) + size
    footer = b"3DI" + header if flags & 0x10 else b""
    return b"ID3" + header + frame + footer


TAGS = {
    "none": b"",
    "one": tag(b"eng"),
    "two": tag(b"eng") + tag(b"deu"),
    "with a footer": tag(b"eng", flags=0x10),
    "that names itself": tag(b"eng: an ID3 tag"),
    "with padding behind": tag(b"eng") + bytes(500),
    "that names a header": tag(b"eng: Xing and Info"),
}


@pytest.mark.parametrize("name", TAGS)
def test_tags_are_no_file_of_their_own(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str
) -> None:
    plain = encode(clips[6].path, tmp_path / "a.mp3", "-id3v2_version", "0")
    file = tmp_path / "tagged.mp3"
    file.write_bytes(TAGS[name] + plain.read_bytes())

    assert inspect(file).parts == ()
    # Behind padding, ffmpeg does not read the encoder's delay.
    length = pytest.approx(len(decode(decoder, plain)), abs=0.12 * SAMPLE_RATE)
    assert len(decode(decoder, file)) == length


@pytest.mark.parametrize("name", TAGS)
@pytest.mark.parametrize("xing", ["0", "1"])
def test_joined_files_are_all_decoded_behind_any_tags(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, name: str, xing: str
) -> None:
    plain = ("-id3v2_version", "0")
    first = encode(clips[6].path, tmp_path / "1.mp3", *plain, "-write_xing", xing)
    second = encode(clips[7].path, tmp_path / "2.mp3", *plain)
    joined = tmp_path / "joined.mp3"
    joined.write_bytes(b"".join([TAGS[name] + part.read_bytes() for part in (first, second)]))

    assert len(inspect(joined).parts) == 2
    assert_all_is_heard(decoder, joined, [first, second])
