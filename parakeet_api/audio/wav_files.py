"""Read wav files: RIFF chunks, wrong sizes, several files joined."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from parakeet_api.audio.file_parts import MAX_PARTS, ORDINARY, MediaFile, Part, too_many

_MAX_RANGES = 100_000
"""Wav headers among the samples: one every 0.4 s in a recording of 12 hours."""
_MAX_CHUNKS = 1000
"""RIFF chunks of a wav file: usual files have a dozen, a hostile one could have millions."""
_MIN_SURPLUS_S = 1.0
"""At least so much data beyond the size in a wav header counts as audio; less may be metadata."""
_UNKNOWN_SIZE = 0x7FFF0000
"""Recorders that write to a pipe declare this size or more, or 0, as they do not know it yet."""
RIFF = frozenset({b"RIFF", b"RF64", b"BW64"})
_SIZE_IN_DS64 = 0xFFFFFFFF
"""RF64 (EBU Tech 3306): the real size is in the chunk `ds64`."""
_MIN_FMT = 16
_TAGS = (b"ID3", b"TAG", b"APETAGEX")
"""Magic numbers of tags that follow the audio without a RIFF chunk."""


@dataclass(frozen=True, slots=True)
class Wav:
    """One RIFF or RF64 wav file, perhaps one of several in the same upload."""

    fmt: bytes
    """Content of the chunk `fmt `."""
    start: int
    """Offset of its samples."""
    declared: int
    """Bytes of samples, by the header."""

    @property
    def bytes_per_second(self) -> int:
        return max(1, int(struct.unpack_from("<I", self.fmt, 8)[0]))

    def head(self) -> bytes:
        """Build a header for samples of unknown length."""
        body = b"WAVEfmt " + struct.pack("<I", len(self.fmt)) + self.fmt + b"data\xff\xff\xff\xff"
        return b"RIFF\xff\xff\xff\xff" + body


def inspect_wav(data: mmap.mmap) -> MediaFile:
    first = read_wav(data, 0)
    if first is None or not 0 < first.declared < _UNKNOWN_SIZE:
        return ORDINARY
    end = first.start + first.declared
    if end > len(data):
        slack = max(first.bytes_per_second, first.declared // 100)
        missing = end - len(data)
        return MediaFile(missing_bytes=missing, expected_bytes=end) if missing > slack else ORDINARY
    parts = _group(_wavs(data, first))
    return ORDINARY if _is_plain(parts, first) else MediaFile(parts=parts)


def _is_plain(parts: tuple[Part, ...], first: Wav) -> bool:
    samples = range(first.start, first.start + first.declared)
    return len(parts) == 1 and parts[0].ranges == (samples,)


def _wavs(data: mmap.mmap, first: Wav) -> Iterator[tuple[Wav, range]]:
    """Yield the concatenated wav files, each with the byte range of its samples."""
    wav: Wav | None = first
    while wav is not None:
        end = min(len(data), wav.start + wav.declared)
        after = _skip_chunks(data, end)
        following = read_wav(data, after)
        if following is None and _is_audio(data[after : after + 8], len(data) - after, wav):
            # These bytes are not RIFF chunks: the audio continues.
            again = data.find(b"RIFF", end)
            following = read_wav(data, again) if again >= 0 else None
            end = again if following is not None else len(data)
        yield wav, range(wav.start, end)
        wav = following


def _is_audio(head: bytes, length: int, wav: Wav) -> bool:
    return length >= _MIN_SURPLUS_S * wav.bytes_per_second and not head.startswith(_TAGS)


def _skip_chunks(data: mmap.mmap, position: int) -> int:
    """Return the end of the RIFF chunks that begin here, or after one padding byte."""
    for start in (position + position % 2, position):
        at = start
        for _ in range(_MAX_CHUNKS):
            if at + 8 > len(data) or data[at : at + 4] in (b"RIFF", b"RF64"):
                break
            name, size = struct.unpack_from("<4sI", data, at)
            if not name.isascii() or not name.decode().isprintable() or at + 8 + size > len(data):
                break
            at += 8 + size + size % 2
        if at > start or data[at : at + 4] in (b"RIFF", b"RF64"):
            return min(at, len(data))
    return position


def _group(wavs: Iterator[tuple[Wav, range]]) -> tuple[Part, ...]:
    """Group consecutive files of the same format into one part."""
    heads: list[bytes] = []
    ranges: list[list[range]] = []
    format_before: bytes | None = None
    for number, (wav, samples) in enumerate(wavs):
        if number == _MAX_RANGES:
            raise too_many(number)
        if wav.fmt == format_before:
            ranges[-1].append(samples)
        else:
            heads.append(wav.head())
            ranges.append([samples])
            if len(heads) > MAX_PARTS:
                raise too_many(len(heads))
        format_before = wav.fmt
    return tuple(Part(head, tuple(parts)) for head, parts in zip(heads, ranges, strict=True))


def read_wav(data: mmap.mmap, position: int) -> Wav | None:
    """Parse one file's chunks up to its samples; `None` if there is no wav file here."""
    if data[position : position + 4] not in RIFF:
        return None
    if data[position + 8 : position + 12] != b"WAVE":
        return None
    at, fmt, long_size = position + 12, b"", None
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            break
        name, size = struct.unpack_from("<4sI", data, at)
        if name == b"data":
            declared = size if size != _SIZE_IN_DS64 or long_size is None else long_size
            return Wav(fmt, at + 8, declared) if len(fmt) >= _MIN_FMT else None
        if name == b"fmt ":
            fmt = data[at + 8 : at + 8 + min(size, 1024)]
        if name == b"ds64" and at + 24 <= len(data):
            (long_size,) = struct.unpack_from("<Q", data, at + 16)
        at += 8 + size + size % 2
    return None
