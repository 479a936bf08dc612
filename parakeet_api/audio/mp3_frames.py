"""Parse the frames of mp3 files (ISO 11172-3, 2.4) and the tags around them."""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass

FRAME = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
"""The first bytes of a frame of layer III."""
STRIDE = 16
"""The offset of one mp3 frame in so many is stored."""
_MAX_FRAMES = 5_000_000
"""30 hours."""
_KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
"""Bit rates of layer III: of MPEG-1 (`True`) and of MPEG-2; 0 = free or invalid."""
_MPEG_1, _MPEG_2, _MPEG_2_5 = 3, 2, 0
_MP3_RATES = {
    _MPEG_1: (44_100, 48_000, 32_000, 0),
    _MPEG_2: (22_050, 24_000, 16_000, 0),
    _MPEG_2_5: (11_025, 12_000, 8_000, 0),
}
_MP3_MONO = 3
_DECODER_DELAY = 529
"""Delay of an mp3 decoder in samples, in addition to the encoder's."""
_TRUSTED_ENCODERS = (b"LAME", b"Lavf", b"Lavc")
"""Encoders whose values for delay and padding ffmpeg uses."""


def side_info_end(header: bytes) -> int | None:
    """Return the length of a frame's header and side info; `None` if it is not layer III."""
    if not FRAME.match(header):
        return None
    is_mpeg1, is_mono = header[1] & 0x08, header[3] >> 6 == _MP3_MONO
    if is_mpeg1:
        return 21 if is_mono else 36
    return 13 if is_mono else 21


def id3_end(data: mmap.mmap, start: int) -> int:
    """Return the end of an ID3v2 tag."""
    size = data[start + 6 : start + 10]
    return start + 10 + sum(byte << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=True))


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
    rate = _MP3_RATES[version][head[2] >> 2 & 3]
    return Header(version, rate, 1 if head[3] >> 6 == _MP3_MONO else 2) if rate else None


class FrameBytes(dict[bytes, int]):
    """Map a frame's first four bytes to its length; 0 if it differs from the file's first frame."""

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
    """Scan the frames; return the offset of every `STRIDE`th, their number and their end."""
    offsets, frames = [], 0
    while frames < _MAX_FRAMES and (length := lengths[data[at : at + 4]]):
        if not frames % STRIDE:
            offsets.append(at)
        at += length
        frames += 1
    return tuple(offsets), frames, at


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """The encoder's Xing or Info header, stored in a first frame without audio."""

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
