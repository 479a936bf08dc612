"""Inspect a file's structure before decoding: archives, concatenated files, truncated files.

Only what ffmpeg does not report: of several concatenated wav or Ogg files it reads the first, and
in containers without an index it takes the end of the file for the end of the recording.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

from parakeet_api.audio import declared_sizes as sizes
from parakeet_api.audio import flash_video, mp3_frames
from parakeet_api.audio import joined_files as joined
from parakeet_api.audio.file_parts import ORDINARY, MediaFile
from parakeet_api.audio.mapped_files import mapped
from parakeet_api.audio.mp3_files import inspect_mp3
from parakeet_api.audio.ogg_files import inspect_ogg
from parakeet_api.audio.transport_streams import stride_of
from parakeet_api.audio.wav_files import RIFF, inspect_wav
from parakeet_api.errors import AudioDecodeError

_ARCHIVES = {
    "zip": (0, b"PK\x03\x04"),
    "gzip": (0, b"\x1f\x8b"),
    "7z": (0, b"7z\xbc\xaf"),
    "rar": (0, b"Rar!"),
    "tar": (257, b"ustar"),
}
"""Offset and magic number of archives. ffmpeg would decode one as an mp3 with junk in it, and
several recordings as one."""

_UNREADABLE = {
    b"dss": "a dictation in DSS",
    b"\3ds2": "a dictation in DS2",
    b"#!SILK_V3": "a voice message in SILK",
    b"MThd": "a MIDI file, notes without sound",
}
"""Magic numbers of recordings that users send and that no allowed decoder reads."""


def inspect(path: Path) -> MediaFile:
    """Inspect a file's structure. Raises `AudioDecodeError` for an archive."""
    with mapped(path) as data:
        _refuse_archive(data)
        return next(
            (inspector(data) for matches, inspector in _INSPECTORS if matches(data)), ORDINARY
        )


def unreadable_kind(path: Path) -> str | None:
    """Name the format of a file if it is known and cannot be decoded."""
    with path.open("rb") as file:
        head = file.read(16).removeprefix(b"\2")
    return next((kind for magic, kind in _UNREADABLE.items() if head.startswith(magic)), None)


def _refuse_archive(data: mmap.mmap) -> None:
    for kind, (offset, magic) in _ARCHIVES.items():
        if data[offset : offset + len(magic)] == magic:
            raise AudioDecodeError(
                f"The file is a {kind} archive. Unpack it and send each recording on its own."
            )


_INSPECTORS: tuple[tuple[Callable[[mmap.mmap], bool], Callable[[mmap.mmap], MediaFile]], ...] = (
    (lambda data: data[:4] in RIFF and data[8:12] == b"WAVE", inspect_wav),
    (lambda data: data[:4] == b"RIFF" and data[8:12] == b"AVI ", sizes.inspect_avi),
    (lambda data: data[:4] == b"OggS", inspect_ogg),
    (lambda data: data[:16] == joined.ASF_HEADER, joined.inspect_asf),
    (lambda data: data[4:8] == b"ftyp", joined.inspect_mov),
    (flash_video.is_flash_video, joined.inspect_flash_video),
    (lambda data: data[:4] in sizes.SOX and len(data) >= 28, sizes.inspect_sox),  # noqa: PLR2004
    (
        lambda data: sizes.IRCAM.match(data) is not None and len(data) > sizes.IRCAM_HEADER_BYTES,
        sizes.inspect_ircam,
    ),
    (
        lambda data: data[:16] == sizes.WTV_HEADER and len(data) >= sizes.WTV_SECTOR,
        sizes.inspect_wtv,
    ),
    (lambda data: stride_of(data) is not None, joined.inspect_transport_stream),
    (
        lambda data: any(data[: len(magic)] == magic for magic in joined.FILE_HEADERS),
        joined.inspect_concatenated,
    ),
    (lambda data: data[:3] == b"ID3" or mp3_frames.FRAME.match(data) is not None, inspect_mp3),
)
"""Pairs of a format check and an inspector; the first match is used."""
