"""Parse mp3 files: frames (ISO 11172-3, 2.4), the encoder's Xing header, ID3v2 tags."""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass

FRAME = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
"""The sync word of a frame of layer III, with its version."""
STRIDE = 16
"""`scan_frames` returns the offset of one frame in so many."""
_MAX_FRAMES = 5_000_000
"""30 hours."""
_KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
"""Bit rates of layer III: of MPEG-1 (`True`) and of MPEG-2; 0 = free or invalid."""
_MPEG_1, _MPEG_2, _MPEG_2_5 = 3, 2, 0
_RATES = {
    _MPEG_1: (44_100, 48_000, 32_000, 0),
    _MPEG_2: (22_050, 24_000, 16_000, 0),
    _MPEG_2_5: (11_025, 12_000, 8_000, 0),
}
_MONO = 3
"""The channel mode: the upper bits of a header's fourth byte."""
_TAG_HEADER_BYTES = 10
_HAS_FOOTER = 0x10
"""Flag of an ID3v2.4 tag that ends with a copy of its header."""
_MAX_TAGS = 100
_DECODER_DELAY = 529
"""Delay of an mp3 decoder in samples, in addition to the encoder's."""
_TRUSTED_ENCODERS = (b"LAME", b"Lavf", b"Lavc")
"""Encoders whose values for delay and padding ffmpeg uses."""


def side_info_end(head: bytes) -> int | None:
    """Return the length of a frame's header and side information, by its first four bytes.

    `None` if it is not layer III.
    """
    if not FRAME.match(head):
        return None
    is_mpeg1, is_mono = head[1] & 0x08, head[3] >> 6 == _MONO
    if is_mpeg1:
        return 21 if is_mono else 36
    return 13 if is_mono else 21


def id3_end(data: mmap.mmap, start: int) -> int:
    """Return the end of an ID3v2 tag (ID3v2.4, 3.1); `start` if there is none."""
    header = data[start : start + _TAG_HEADER_BYTES]
    if len(header) < _TAG_HEADER_BYTES or not header.startswith(b"ID3"):
        return start
    size = sum(byte << shift for byte, shift in zip(header[6:], (21, 14, 7, 0), strict=True))
    footer_bytes = _TAG_HEADER_BYTES if header[5] & _HAS_FOOTER else 0
    return start + _TAG_HEADER_BYTES + size + footer_bytes


def tags_end(data: mmap.mmap) -> int:
    """Return the end of the ID3v2 tags at the beginning of a file; 0 if there are none."""
    end = 0
    for _ in range(_MAX_TAGS):
        end = id3_end(data, end)
    return end


@dataclass(frozen=True, slots=True)
class Header:
    """Header fields that all frames of a plain mp3 file share."""

    version: int
    rate: int
    channels: int

    @property
    def samples(self) -> int:
        """Samples in a frame."""
        return 1152 if self.version == _MPEG_1 else 576


def parse_header(head: bytes) -> Header | None:
    """Parse the header of a layer III frame (ISO 11172-3, 2.4.1.3)."""
    if len(head) < 4 or side_info_end(head) is None:  # noqa: PLR2004
        return None
    version = head[1] >> 3 & 3
    rate = _RATES[version][head[2] >> 2 & 3]
    return Header(version, rate, 1 if head[3] >> 6 == _MONO else 2) if rate else None


class FrameBytes(dict[bytes, int]):
    """Map a frame's first four bytes to its length; 0 if it differs from `header`, or is free."""

    def __init__(self, header: Header) -> None:
        super().__init__()
        self._header = header

    def __missing__(self, head: bytes) -> int:
        self[head] = length = self._length(head) if parse_header(head) == self._header else 0
        return length

    def _length(self, head: bytes) -> int:
        is_mpeg_1 = self._header.version == _MPEG_1
        kbits = _KBITS[is_mpeg_1][head[2] >> 4]
        padding = head[2] >> 1 & 1
        return kbits and (144 if is_mpeg_1 else 72) * kbits * 1000 // self._header.rate + padding


def scan_frames(data: mmap.mmap, at: int, lengths: FrameBytes) -> tuple[tuple[int, ...], int, int]:
    """Scan frames up to the first that differs; return every `STRIDE`th offset, count and end."""
    offsets, frames = [], 0
    while frames < _MAX_FRAMES and (length := lengths[data[at : at + 4]]):
        if not frames % STRIDE:
            offsets.append(at)
        at += length
        frames += 1
    return tuple(offsets), frames, at


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """The encoder's Xing or Info header, which stands in a first frame without audio."""

    frames: int | None = None
    """Number of frames that follow; `None` if there is no such header."""
    delay: int = 0
    """Samples to drop at the start."""
    padding: int = 0
    """Samples to drop at the end."""


def read_encoder_info(frame: bytes) -> EncoderInfo | None:
    """Parse a Xing or Info header as ffmpeg does; `None` if it is incomplete or of another kind."""
    at = side_info_end(frame[:4])
    if at is None or frame[36:40] == b"VBRI":
        return None
    if frame[at : at + 4] not in (b"Xing", b"Info"):
        return EncoderInfo()
    flags = int.from_bytes(frame[at + 4 : at + 8])
    encoder = at + 8 + sum(length for bit, length in enumerate((4, 4, 100, 4)) if flags >> bit & 1)
    if not flags & 1 or len(frame) < encoder + 24:
        return None
    frames = int.from_bytes(frame[at + 8 : at + 12])
    if frame[encoder : encoder + 4] not in _TRUSTED_ENCODERS:
        return EncoderInfo(frames)
    delays = int.from_bytes(frame[encoder + 21 : encoder + 24])
    padding = max(0, (delays & 0xFFF) - _DECODER_DELAY)
    return EncoderInfo(frames, (delays >> 12) + _DECODER_DELAY, padding)
