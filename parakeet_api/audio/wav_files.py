"""Find the audio in wav files (RIFF, RF64, RIFX): wrong sizes, several files or chunks of audio."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from parakeet_api.audio.declared_sizes import shortened
from parakeet_api.audio.file_parts import MAX_PARTS, ORDINARY, MediaFile, Part, too_many

_MAX_RANGES = 100_000
"""Most concatenated files: one every 0.4 s in a recording of 12 hours."""
_MAX_CHUNKS = 1000
"""RIFF chunks of a wav file: usual files have a dozen, a hostile one could have millions."""
_MIN_SURPLUS_S = 1.0
"""Data beyond the declared size counts as audio from this duration on; less may be metadata."""
_UNKNOWN_SIZE = 0x7FFF0000
"""Recorders that write to a pipe declare this size or more, or 0, as they do not know it yet."""
_RIFF = frozenset({b"RIFF", b"RF64", b"BW64"})
_AUDIO = _RIFF | {b"data"}
"""Where audio may begin."""
_SIZE_IN_DS64 = 0xFFFFFFFF
"""RF64 (EBU Tech 3306): the size is in the chunk `ds64`."""
_MIN_FMT, _MAX_FMT = 16, 1024
_BIG_ENDIAN = b"RIFX"
_AU_ENCODINGS = {(1, 16): 3, (1, 24): 4, (1, 32): 5, (3, 32): 6, (3, 64): 7}
"""Format and bits of a wav file -> encoding of an AU file with the same big-endian samples."""
_TAGS = (b"ID3", b"TAG", b"APETAGEX")
"""Magic numbers of tags that follow the audio without a RIFF chunk."""


@dataclass(frozen=True, slots=True)
class Wav:
    """The header of one wav file, perhaps one of several that were concatenated."""

    fmt: bytes
    """Content of the chunk `fmt `."""
    start: int
    """Offset of its samples."""
    declared: int
    """Bytes of samples that it declares."""

    @property
    def bytes_per_second(self) -> int:
        """The byte rate that it declares, at least 1."""
        return max(1, int(struct.unpack_from("<I", self.fmt, 8)[0]))

    def head(self) -> bytes:
        """Build a header for samples of unknown length."""
        body = b"WAVEfmt " + struct.pack("<I", len(self.fmt)) + self.fmt + b"data\xff\xff\xff\xff"
        return b"RIFF\xff\xff\xff\xff" + body


def is_wav(data: mmap.mmap) -> bool:
    """Tell whether a file begins with a wav header."""
    return data[:4] in _RIFF and data[8:12] == b"WAVE"


def is_big_endian_wav(data: mmap.mmap) -> bool:
    """Tell whether a file begins with the header of a wav file of big-endian numbers."""
    return data[:4] == _BIG_ENDIAN and data[8:12] == b"WAVE"


def inspect_big_endian_wav(data: mmap.mmap) -> MediaFile:
    """Find the samples of a RIFX file, which ffmpeg takes for little-endian ones."""
    fmt = b""
    for name, content in _chunks(data, 0, ">"):
        if name == b"data":
            file = _as_au(fmt, range(content.start, min(len(data), content.stop)))
            if len(content) >= _UNKNOWN_SIZE:
                return file
            return shortened(file, content.stop, len(data), tolerance=len(content) // 100)
        if name == b"fmt ":
            fmt = data[content.start : content.start + _MIN_FMT]
    return ORDINARY


def _as_au(fmt: bytes, samples: range) -> MediaFile:
    if len(fmt) < _MIN_FMT:
        return ORDINARY
    kind, channels, rate, _, _, bits = struct.unpack(">HHIIHH", fmt)
    encoding = _AU_ENCODINGS.get((kind, bits))
    if encoding is None:
        return ORDINARY
    head = struct.pack(">4sIIIII", b".snd", 24, 0xFFFFFFFF, encoding, rate, channels)
    return MediaFile(parts=(Part(head, (samples,)),))


def inspect_wav(data: mmap.mmap) -> MediaFile:
    """Find concatenated wav files, and audio beyond the size that a header declares."""
    first = read_wav(data, 0)
    if first is None:
        return ORDINARY
    if not first.declared and data[:4] != b"RIFF":
        # A recorder that was killed. ffmpeg takes a size of 0 literally only in the chunk `ds64`.
        return MediaFile(parts=(Part(first.head(), (range(first.start, len(data)),)),))
    if not 0 < first.declared < _UNKNOWN_SIZE:
        return ORDINARY
    end = first.start + first.declared
    if end > len(data):
        slack = max(first.bytes_per_second, first.declared // 100)
        return shortened(ORDINARY, end, len(data), tolerance=slack)
    parts = _parts(_wavs(data, first))
    return ORDINARY if _is_plain(parts, first) else MediaFile(parts=parts)


def _is_plain(parts: tuple[Part, ...], first: Wav) -> bool:
    samples = range(first.start, first.start + first.declared)
    return len(parts) == 1 and parts[0].ranges == (samples,)


def _wavs(data: mmap.mmap, first: Wav) -> Iterator[tuple[Wav, range]]:
    """Yield the header of each concatenated file, with the byte range of its samples."""
    wav: Wav | None = first
    while wav is not None:
        end = min(len(data), wav.start + wav.declared)
        after = _skip_chunks(data, end)
        following = read_wav(data, after) or _further_samples(data, after, wav)
        if following is None and _is_audio(data[after : after + 8], len(data) - after, wav):
            # Neither RIFF chunks nor tags: the audio continues, perhaps up to another file.
            riff = data.find(b"RIFF", end)
            following = read_wav(data, riff) if riff >= 0 else None
            end = riff if following is not None else len(data)
        yield wav, range(wav.start, end)
        wav = following


def _further_samples(data: mmap.mmap, at: int, wav: Wav) -> Wav | None:
    """Read another chunk `data` of the same file: ffmpeg decodes the last one alone."""
    if data[at : at + 4] != b"data" or at + 8 > len(data):
        return None
    (size,) = struct.unpack_from("<I", data, at + 4)
    return replace(wav, start=at + 8, declared=size)


def _is_audio(head: bytes, length: int, wav: Wav) -> bool:
    """Tell whether `length` bytes behind the declared end, beginning with `head`, are audio."""
    return length >= _MIN_SURPLUS_S * wav.bytes_per_second and not head.startswith(_TAGS)


def _skip_chunks(data: mmap.mmap, position: int) -> int:
    """Return the end of the RIFF chunks without audio that begin here, or after a padding byte."""
    for start in (position + position % 2, position):
        at = start
        for _ in range(_MAX_CHUNKS):
            if at + 8 > len(data) or data[at : at + 4] in _AUDIO:
                break
            name, size = struct.unpack_from("<4sI", data, at)
            if not name.isascii() or not name.decode().isprintable() or at + 8 + size > len(data):
                break
            at += 8 + size + size % 2
        if at > start or data[at : at + 4] in _AUDIO:
            return min(at, len(data))
    return position


def _parts(wavs: Iterator[tuple[Wav, range]]) -> tuple[Part, ...]:
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
    """Parse the header of the wav file at a position; `None` if there is none."""
    if data[position : position + 4] not in _RIFF:
        return None
    if data[position + 8 : position + 12] != b"WAVE":
        return None
    fmt, long_size = b"", None
    for name, content in _chunks(data, position, "<"):
        size = len(content)
        if name == b"data":
            declared = size if size != _SIZE_IN_DS64 or long_size is None else long_size
            return Wav(fmt, content.start, declared) if len(fmt) >= _MIN_FMT else None
        if name == b"fmt ":
            fmt = data[content.start : content.start + min(size, _MAX_FMT)]
        if name == b"ds64" and content.start + 16 <= len(data):
            (long_size,) = struct.unpack_from("<Q", data, content.start + 8)
    return None


def _chunks(
    data: mmap.mmap, position: int, byte_order: Literal["<", ">"]
) -> Iterator[tuple[bytes, range]]:
    """Yield the name and declared content of each chunk of the wav file at a position."""
    at = position + 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            return
        name, size = struct.unpack_from(f"{byte_order}4sI", data, at)
        yield name, range(at + 8, at + 8 + size)
        at += 8 + size + size % 2
