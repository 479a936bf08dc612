"""Inspect a file's structure before decoding: archives, concatenated files, truncated files.

Only what ffmpeg does not report: of several concatenated wav or Ogg files it reads the first, and
in containers without an index it takes the end of the file for the end of the recording.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

from parakeet_api.audio.declared_sizes import (
    inspect_ircam,
    inspect_sox,
    inspect_wtv,
    is_ircam,
    is_sox,
    is_wtv,
)
from parakeet_api.audio.file_parts import ORDINARY, MediaFile
from parakeet_api.audio.flash_video import is_flash_video
from parakeet_api.audio.joined_files import (
    has_joinable_header,
    inspect_by_headers,
    inspect_flash_video,
    inspect_mov,
    inspect_transport_stream,
    is_mov,
)
from parakeet_api.audio.mapped_files import mapped
from parakeet_api.audio.mp3_files import inspect_mp3, is_mp3
from parakeet_api.audio.ogg_files import inspect_ogg, is_ogg
from parakeet_api.audio.transport_streams import is_transport_stream
from parakeet_api.audio.wav_files import (
    inspect_big_endian_wav,
    inspect_wav,
    is_big_endian_wav,
    is_wav,
)
from parakeet_api.errors import AudioDecodeError

_INSPECTORS: tuple[tuple[Callable[[mmap.mmap], bool], Callable[[mmap.mmap], MediaFile]], ...] = (
    (is_wav, inspect_wav),
    (is_big_endian_wav, inspect_big_endian_wav),
    (is_ogg, inspect_ogg),
    (is_mov, inspect_mov),
    (is_flash_video, inspect_flash_video),
    (is_sox, inspect_sox),
    (is_ircam, inspect_ircam),
    (is_wtv, inspect_wtv),
    (is_transport_stream, inspect_transport_stream),
    (has_joinable_header, inspect_by_headers),
    (is_mp3, inspect_mp3),
)
"""Checks of a format, each with its inspector; the first match is used."""

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
"""Magic numbers of formats that users send and that no allowed decoder reads; some files have a
byte before it."""


def inspect(path: Path) -> MediaFile:
    """Inspect a file's structure. Raises `AudioDecodeError` for an archive."""
    with mapped(path) as data:
        _refuse_archive(data)
        return next((inspector(data) for is_a, inspector in _INSPECTORS if is_a(data)), ORDINARY)


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
