"""Find where the audio codec of an FLV file changes: ffmpeg decodes one codec of a file alone.

When a live stream reconnects, perhaps from another encoder, a recorder continues its file (Adobe
Flash Video File Format 10.1, annex E; Enhanced RTMP v2).
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator

from parakeet_api.audio.mapped_files import search

_HEADER = re.compile(rb"FLV\x01.\x00\x00\x00\x09\x00\x00\x00\x00", re.DOTALL)
"""A file's header, and the zero that precedes its first tag."""
_HEADER_BYTES = 13
_TAG_HEAD = 11
_AFTER_TAG = 4
"""Bytes that follow each tag: its length."""
_AUDIO = 8
_TYPE_BITS = 0x1F
_TAG_OR_HEADER = re.compile(rb"[\x08\x09\x12].{7}\x00{3}|" + _HEADER.pattern, re.DOTALL)
_MAX_RESYNCS = 1000
_PCM = frozenset({0, 3})
"""Audio formats whose sample size is in the tag."""
_ENHANCED = 9
"""The audio format by which a FourCC follows."""
_CODED_PACKETS = frozenset({0, 1})
"""Packet types of that format in files of one track: the codec's configuration, and frames."""


def is_flash_video(data: mmap.mmap) -> bool:
    """Tell whether a file begins with an FLV header."""
    return _HEADER.match(data) is not None


def header_for(data: mmap.mmap, start: int) -> bytes:
    """Return the header to send before the tags at an offset; empty if the file has one there."""
    return b"" if _HEADER.match(data, start) else data[:_HEADER_BYTES]


def changes_of_audio(data: mmap.mmap) -> Iterator[int]:
    """Yield the offsets of tags of another codec, and of the headers of further files."""
    at: int | None = _HEADER_BYTES
    codec, resyncs = b"", 0
    while at is not None and at < len(data) and resyncs < _MAX_RESYNCS:
        head = data[at : at + _TAG_HEAD + 5]
        end = _tag_end(data, at, head)
        if end is not None:
            if head[0] & _TYPE_BITS == _AUDIO:
                before, codec = codec, _codec(head[_TAG_HEAD:]) or codec
                if codec != before and before:
                    yield at
            at = end
        elif _HEADER.match(data, at):
            yield at
            at, codec = at + _HEADER_BYTES, b""
        else:
            resyncs += 1
            at = _next_tag_or_header(data, at + 1)


def _tag_end(data: mmap.mmap, at: int, head: bytes) -> int | None:
    """Return the end of the tag at an offset; `None` if there is no complete one."""
    if head[8:_TAG_HEAD] != b"\0\0\0":
        return None
    length = _TAG_HEAD + int.from_bytes(head[1:4])
    end = at + length + _AFTER_TAG
    return end if int.from_bytes(data[end - _AFTER_TAG : end]) == length else None


def _next_tag_or_header(data: mmap.mmap, start: int) -> int | None:
    """Find the next tag behind damage, or behind a tag that was cut."""
    for match in search(data, _TAG_OR_HEADER, start, len(data), longest=_HEADER_BYTES):
        at = match.start()
        if _HEADER.match(match[0]) or _tag_end(data, at, match[0]) is not None:
            return at
    return None


def _codec(body: bytes) -> bytes:
    """Return an identifier of a tag's codec; empty if the tag does not tell."""
    if not body:
        return b""
    audio_format = body[0] >> 4
    if audio_format == _ENHANCED:
        return body[1:5] if body[0] & 0x0F in _CODED_PACKETS else b""
    return body[:1] if audio_format in _PCM else bytes([audio_format])
