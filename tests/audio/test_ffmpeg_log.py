"""What ffmpeg logs: descriptions, which hold a file's own texts, and errors."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE_S, Clip, decode, encode

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.errors import AudioDecodeError


def with_chapters(source: Path, target: Path, chapters: int) -> Path:
    """Copy a recording, with as many chapters."""
    lines = [";FFMETADATA1"]
    for number in range(chapters):
        span = ["[CHAPTER]", "TIMEBASE=1/1000", f"START={number}", f"END={number + 1}"]
        lines += [*span, f"title=Chapter {number} of a long book that has many more of them"]
    texts = target.with_suffix(".txt")
    texts.write_text("\n".join(lines))
    command = [find_ffmpeg(), "-loglevel", "error", "-i", str(source), "-i", str(texts)]
    command += ["-map_metadata", "1", "-map_chapters", "1", "-c", "copy", str(target)]
    subprocess.run(command, check=True, timeout=PATIENCE_S)
    return target


@pytest.mark.parametrize("chapters", [300, 900])
def test_chapters_do_not_hide_how_many_channels_there_are(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, chapters: int
) -> None:
    stereo = ("-ac", "2", "-c:a", "aac", "-ar", "44100")
    plain = encode(clips[6].path, tmp_path / "plain.m4a", *stereo)
    book = with_chapters(plain, tmp_path / "book.m4a", chapters)

    assert np.array_equal(decode(decoder, book), decode(decoder, plain))


def test_more_text_than_is_read_is_refused(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = encode(clips[6].path, tmp_path / "plain.m4a", "-ac", "2", "-c:a", "aac")
    book = with_chapters(plain, tmp_path / "book.m4a", 100)
    monkeypatch.setattr("parakeet_api.audio.ffmpeg_log._HEAD_BYTES", 4096)

    with pytest.raises(AudioDecodeError, match="tags or chapters"):
        decode(decoder, book)


TITLES = (
    "Cannot allocate memory",
    "a song: partial file",
    "moov atom not found",
    "on \u2028 two lines",
    "Input #0, mp3, from x",
)


@pytest.mark.parametrize("title", TITLES)
def test_a_title_is_no_message_of_ffmpeg(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path, title: str
) -> None:
    tags = ("-metadata:s:a:0", f"title={title}", "-metadata", f"comment=one\n{title}")
    stream = decoder.stream(encode(clips[6].path, tmp_path / "a.mka", *tags, "-c:a", "libopus"))

    assert sum(map(len, stream)) > 0
    assert stream.caveats == ()
    assert [track.title for track in stream.tracks] == [title]
