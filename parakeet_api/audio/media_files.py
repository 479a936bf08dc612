"""Look at a file's own structure before it is decoded: archives, files in parts, files cut short.

Only what a decoder does not tell: ffmpeg reads the first of several wav or Ogg files in one, and
takes the end of the bytes for the end of the recording in containers without an index.
"""

from __future__ import annotations

import itertools
import mmap
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from parakeet_api.errors import AudioDecodeError

_ARCHIVES = {
    "zip": (0, b"PK\x03\x04"),
    "gzip": (0, b"\x1f\x8b"),
    "7z": (0, b"7z\xbc\xaf"),
    "rar": (0, b"Rar!"),
    "tar": (257, b"ustar"),
}
"""Where and how archives tell what they are. ffmpeg would take one for an mp3 with junk around it,
and several recordings for one."""

_UNREADABLE = {
    b"dss": "a dictation in DSS",
    b"\3ds2": "a dictation in DS2",
    b"#!SILK_V3": "a voice message in SILK",
    b"MThd": "a MIDI file, notes without sound",
}
"""Magic numbers of recordings that people send, and that no allowed decoder reads."""

_MAX_PARTS = 1000
"""Each needs an ffmpeg of its own, 25 ms."""
_MAX_RANGES = 100_000
"""Wav headers among the samples: one each 0.4 s in a recording of 12 hours."""
_MAX_CHUNKS = 1000
"""Of a wav file: honest ones have a dozen, and a hostile file could have millions."""
_MIN_SURPLUS_S = 1.0
"""So much beyond the size in a wav's header is sound; less may be anyone's remark."""
_UNKNOWN_SIZE = 0x7FFF0000
"""Recorders that write to a pipe put this or more, or 0, for a size that they do not know yet."""
_RIFF = frozenset({b"RIFF", b"RF64", b"BW64"})
_SIZE_IN_DS64 = 0xFFFFFFFF
"""RF64 (EBU Tech 3306): the size stands in the chunk `ds64`."""
_MIN_FMT = 16
_TAGS = (b"ID3", b"TAG", b"APETAGEX")
"""What players' tags begin with that stand behind the sound without a chunk of their own."""

_OGG_PAGE = re.compile(rb"OggS\x00[\x00-\x07]")
_OGG_MAGIC = b"OggS\0"
_OGG_FIRST = frozenset({b"\2", b"\3", b"\6", b"\7"})
"""Flags of a stream's first page."""
_OGG_HEADER_BYTES = 27
_OGG_LARGEST_PAGE = _OGG_HEADER_BYTES + 255 + 255 * 255
_OGG_LARGEST_FIRST_PAGE = 4096
"""It holds a codec's first header alone, some 100 bytes; what is longer is no such page."""
_WINDOW = 1 << 23
"""Bytes that are searched at once: other threads have their turn in between."""

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_HEADS = {
    b"FLV\1": re.compile(rb"FLV\x01.\x00\x00\x00\x09\x00\x00\x00\x00", re.DOTALL),
    b"fLaC": re.compile(rb"fLaC[\x00\x80]\x00\x00\x22"),
    b"caff": re.compile(rb"caff\x00\x01\x00\x00desc"),
    b"TTA1": re.compile(rb"TTA1[\x01\x02]\x00[\x01-\x10]\x00"),
    b"#!AMR": re.compile(rb"#!AMR(?:-WB)?\n"),
    b"riff": re.compile(rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb"),
    b"FORM": re.compile(rb"FORM....AIF[FC](?:COMM|FVER)", re.DOTALL),
    _ASF_HEADER: re.compile(re.escape(_ASF_HEADER)),
}
"""How files begin of which ffmpeg reads the first of several."""
_MP3_FRAME = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
"""The first bytes of a frame of layer III."""
_MP3_MONO = 0xC0
_MP3_LARGEST_TAG = 1 << 24
_MAX_CANDIDATES = 10_000
"""Places that look like a file's first frame; honest files have few."""

_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_FLV_TAG_HEAD = 11
_FLAC_LARGEST_FRAME = 1 << 17
"""What encoders write: 8 channels of 24 bits in blocks of 4608 samples take 110 KB."""
_FLAC_TRIES = 16
"""A frame's mark stands in 128 KB some eight times at frames, and four times by chance."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of an upload that is a recording of its own: bytes put before it, and ranges."""

    head: bytes
    ranges: tuple[range, ...]


@dataclass(frozen=True, slots=True)
class MediaFile:
    """What a recording's structure tells."""

    parts: tuple[Part, ...] = ()
    """To be decoded one after the other; none = the file as it is."""
    missing_bytes: int = 0
    """What its structure says there should be beyond its end."""
    expected_bytes: int = 0
    """Its length with them."""


_WHOLE = MediaFile()


def inspect(path: Path) -> MediaFile:
    """Look at a file's structure. Raises `AudioDecodeError` for an archive."""
    size = path.stat().st_size
    with path.open("rb") as file, _mapped(file.fileno(), size) as data:
        _refuse_archive(data)
        return next((look(data) for is_it, look in _KINDS if is_it(data)), _WHOLE)


def unreadable_kind(path: Path) -> str | None:
    """Name what a file is, if it is a recording of a kind that is known and cannot be read."""
    with path.open("rb") as file:
        head = file.read(16).removeprefix(b"\2")
    return next((kind for magic, kind in _UNREADABLE.items() if head.startswith(magic)), None)


def flac_ends_with_a_frame(path: Path) -> bool:
    """Tell whether a flac file's last frame is whole: then it was trimmed, and not cut off.

    By the frame's checksum (RFC 9639, 9.3): a stream copy leaves the old length in the header.
    """
    size = path.stat().st_size
    with path.open("rb") as file, _mapped(file.fileno(), size) as data:
        tail = data[max(0, size - _FLAC_LARGEST_FRAME) :]
    starts = [match.start() for match in re.finditer(rb"\xff[\xf8\xf9]", tail)]
    # A frame's checksum, taken over the frame and its own checksum, is 0.
    return any(_crc16(tail[start:]) == 0 for start in reversed(starts[-_FLAC_TRIES:]))


def flv_ends_with_a_tag(path: Path) -> bool:
    """Tell whether an FLV file's last tag is whole: each is followed by its own size.

    ffmpeg says nothing of a file that ends inside the head of a tag.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4))
        tag_bytes = int.from_bytes(file.read(4))
        if not _FLV_TAG_HEAD <= tag_bytes <= size - 4:
            return False
        file.seek(size - 4 - tag_bytes + 1)
        return int.from_bytes(file.read(3)) + _FLV_TAG_HEAD == tag_bytes


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    # An empty file cannot be mapped; one byte of nothing is no format either.
    return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else mmap.mmap(-1, 1)


def _refuse_archive(data: mmap.mmap) -> None:
    for kind, (offset, magic) in _ARCHIVES.items():
        if data[offset : offset + len(magic)] == magic:
            raise AudioDecodeError(
                f"The file is a {kind} archive. Unpack it and send each recording on its own."
            )


@dataclass(frozen=True, slots=True)
class Wav:
    """One RIFF or RF64 file of WAVE form, perhaps among others in the same bytes."""

    fmt: bytes
    start: int
    """Of its samples."""
    declared: int
    """Bytes of samples by the header."""

    @property
    def bytes_per_second(self) -> int:
        return max(1, int(struct.unpack_from("<I", self.fmt, 8)[0]))

    def head(self) -> bytes:
        """Write a header for samples of unknown length."""
        body = b"WAVEfmt " + struct.pack("<I", len(self.fmt)) + self.fmt + b"data\xff\xff\xff\xff"
        return b"RIFF\xff\xff\xff\xff" + body


def _inspect_wav(data: mmap.mmap) -> MediaFile:
    first = read_wav(data, 0)
    if first is None or not 0 < first.declared < _UNKNOWN_SIZE:
        return _WHOLE
    end = first.start + first.declared
    if end > len(data):
        slack = max(first.bytes_per_second, first.declared // 100)
        missing = end - len(data)
        return MediaFile(missing_bytes=missing, expected_bytes=end) if missing > slack else _WHOLE
    parts = _group(_wavs(data, first))
    return _WHOLE if _is_plain(parts, first) else MediaFile(parts=parts)


def _is_plain(parts: tuple[Part, ...], first: Wav) -> bool:
    samples = range(first.start, first.start + first.declared)
    return len(parts) == 1 and parts[0].ranges == (samples,)


def _wavs(data: mmap.mmap, first: Wav) -> Iterator[tuple[Wav, range]]:
    """List the wav files that stand one behind the other, each with where its samples are."""
    wav: Wav | None = first
    while wav is not None:
        end = min(len(data), wav.start + wav.declared)
        after = _skip_chunks(data, end)
        following = read_wav(data, after)
        if following is None and _is_sound(data[after : after + 8], len(data) - after, wav):
            # What stands here are no chunks: the sound goes on.
            again = data.find(b"RIFF", end)
            following = read_wav(data, again) if again >= 0 else None
            end = again if following is not None else len(data)
        yield wav, range(wav.start, end)
        wav = following


def _is_sound(head: bytes, length: int, wav: Wav) -> bool:
    return length >= _MIN_SURPLUS_S * wav.bytes_per_second and not head.startswith(_TAGS)


def _skip_chunks(data: mmap.mmap, position: int) -> int:
    """Give where chunks end that begin here, or one byte of padding later."""
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
    """Make neighbours of one format one part."""
    heads: list[bytes] = []
    ranges: list[list[range]] = []
    format_before: bytes | None = None
    for number, (wav, samples) in enumerate(wavs):
        if number == _MAX_RANGES:
            raise _too_many(number)
        if wav.fmt == format_before:
            ranges[-1].append(samples)
        else:
            heads.append(wav.head())
            ranges.append([samples])
            if len(heads) > _MAX_PARTS:
                raise _too_many(len(heads))
        format_before = wav.fmt
    return tuple(Part(head, tuple(parts)) for head, parts in zip(heads, ranges, strict=True))


def _too_many(number: int) -> AudioDecodeError:
    return AudioDecodeError(
        f"The file is {number} recordings or more, one behind the other. Convert it first, for"
        " example to flac."
    )


def read_wav(data: mmap.mmap, position: int) -> Wav | None:
    """Read one file's chunks up to its samples; `None` if there is no wav file here."""
    if data[position : position + 4] not in _RIFF:
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


def _inspect_avi(data: mmap.mmap) -> MediaFile:
    (size,) = struct.unpack_from("<I", data, 4)
    missing = 8 + size - len(data)
    # A recorder that was ended did not come to write it; some count a few bytes too many.
    if size in (0, 0xFFFFFFFF) or missing <= 8 + size // 100:
        return _WHOLE
    return MediaFile(missing_bytes=missing, expected_bytes=8 + size)


def _inspect_ogg(data: mmap.mmap) -> MediaFile:
    missing = _missing_of_last_page(data)
    links = _in_parts(list(_ogg_links(data)) or [0], len(data))
    return replace(links, missing_bytes=missing, expected_bytes=len(data) + missing)


def _ogg_links(data: mmap.mmap) -> Iterator[int]:
    """Find where the links of a chain begin: first pages behind later ones (RFC 3533, 4)."""
    end_of_firsts = links = 0
    first_pages = (at for at in _find_all(data, _OGG_MAGIC) if data[at + 5 : at + 6] in _OGG_FIRST)
    for number, start in enumerate(first_pages):
        if number > 2 * _MAX_PARTS:
            raise _too_many(links)
        end = _ogg_page_end(data, start)
        if not _is_first_page(data, start, end):
            continue
        # First pages of streams that sound together follow each other.
        if start != end_of_firsts or not links:
            links += 1
            yield start if links > 1 else 0
        end_of_firsts = end


def _find_all(data: mmap.mmap, *texts: bytes) -> Iterator[int]:
    """Search for texts of one length, window by window."""
    for start in range(0, len(data), _WINDOW):
        end = start + _WINDOW + len(texts[0]) - 1
        found = (at for text in texts for at in _positions(data, text, start, end))
        yield from sorted(itertools.islice(found, _MAX_CANDIDATES))


def _positions(data: mmap.mmap, text: bytes, start: int, end: int) -> Iterator[int]:
    while (start := data.find(text, start, end)) >= 0:
        yield start
        start += 1


def _ogg_page_end(data: mmap.mmap, start: int) -> int:
    """Give where a page ends by its header; one byte beyond the file if that is not whole."""
    header = data[start : start + _OGG_HEADER_BYTES]
    segments = header[-1]
    table = data[start + _OGG_HEADER_BYTES : start + _OGG_HEADER_BYTES + segments]
    if len(header) < _OGG_HEADER_BYTES or len(table) < segments:
        return len(data) + 1
    return start + _OGG_HEADER_BYTES + segments + sum(table)


def _is_first_page(data: mmap.mmap, start: int, end: int) -> bool:
    if not _OGG_HEADER_BYTES < end - start <= _OGG_LARGEST_FIRST_PAGE or end > len(data):
        return False
    page = data[start:end]
    (checksum,) = struct.unpack_from("<I", page, 22)
    return _crc32(page[:22] + bytes(4) + page[26:]) == int(checksum)


def _missing_of_last_page(data: mmap.mmap) -> int:
    """Count the bytes that the last page lacks."""
    at = max(0, len(data) - 2 * _OGG_LARGEST_PAGE)
    first = _OGG_PAGE.search(data, at)
    at = first.start() if first else len(data)
    while at < len(data):
        if not _OGG_PAGE.match(data, at):
            # Not a page, or one that is damaged: the next one.
            following = _OGG_PAGE.search(data, at)
            if following is None:
                return 0
            at = following.start()
        at = _ogg_page_end(data, at)
    return at - len(data)


def _inspect_joined(data: mmap.mmap) -> MediaFile:
    """Find whole files of one kind one behind the other, by how each begins."""
    magic, head = next(
        (magic, head) for magic, head in _HEADS.items() if data[: len(magic)] == magic
    )
    starts = (at for at in _find_all(data, magic) if head.match(data, at))
    return _in_parts(_few(starts), len(data))


def _inspect_mov(data: mmap.mmap) -> MediaFile:
    """Find MP4 or QuickTime files one behind the other: ffmpeg reads the first index alone."""
    return _in_parts(_few(at for at, kind in _boxes(data) if kind == b"ftyp"), len(data))


def _boxes(data: mmap.mmap) -> Iterator[tuple[int, bytes]]:
    """List the boxes of the highest level (ISO 14496-12, 4.2): where each is, and its kind."""
    at = 0
    for _ in range(_MAX_RANGES):
        if at + 16 > len(data):
            return
        size, kind, long_size = struct.unpack_from(">I4sQ", data, at)
        yield at, kind
        length = long_size if size == 1 else size
        if length < 8:  # noqa: PLR2004 - 0 is "to the end", less is broken
            return
        at += length


def _few(starts: Iterable[int]) -> list[int]:
    """Gather where files begin, the first at 0."""
    found = list(itertools.islice(starts, _MAX_PARTS + 1))
    if len(found) > _MAX_PARTS:
        raise _too_many(len(found))
    return [0, *found[1:]]


def _in_parts(starts: list[int], size: int) -> MediaFile:
    ends = [*starts[1:], size]
    parts = tuple(Part(b"", (range(*ends_at),)) for ends_at in zip(starts, ends, strict=True))
    return MediaFile(parts=parts) if len(parts) > 1 else _WHOLE


def _inspect_mp3(data: mmap.mmap) -> MediaFile:
    """Find whole mp3 files one behind the other, each with the encoder's delay in its first frame.

    ffmpeg would lose a frame where each begins, and play the silence that encoders put there.
    """
    starts = [0]
    for info in itertools.islice(_find_all(data, b"Xing", b"Info"), _MAX_CANDIDATES):
        start = _mp3_file_start(data, info)
        if start is not None and start > starts[-1]:
            starts.append(start)
            if len(starts) > _MAX_PARTS:
                raise _too_many(len(starts))
    return _in_parts(starts, len(data))


def _mp3_file_start(data: mmap.mmap, info: int) -> int | None:
    """Give where the mp3 file begins whose first frame has its Xing or Info header here."""
    for header_bytes in (36, 21, 13):
        frame = info - header_bytes
        if frame >= 0 and mp3_side_info_end(data[frame : frame + 4]) == header_bytes:
            tag = data.rfind(b"ID3", max(0, frame - _MP3_LARGEST_TAG), frame)
            return tag if tag >= 0 and id3_end(data, tag) == frame else frame
    return None


def mp3_side_info_end(header: bytes) -> int | None:
    """Give where a frame's samples would begin; `None` if this is no frame of layer III."""
    if not _MP3_FRAME.match(header):
        return None
    is_mpeg1, is_mono = header[1] & 0x08, header[3] & 0xC0 == _MP3_MONO
    if is_mpeg1:
        return 21 if is_mono else 36
    return 13 if is_mono else 21


def id3_end(data: mmap.mmap, start: int) -> int:
    """Give where an ID3v2 tag ends."""
    size = data[start + 6 : start + 10]
    return start + 10 + sum(byte << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=True))


def _inspect_asf(data: mmap.mmap) -> MediaFile:
    """Compare the length of the data with what its object says (ASF specification, 3.2 and 5.1)."""
    (header_size,) = struct.unpack_from("<Q", data, 16)
    properties = data.find(_ASF_FILE, 0, header_size)
    if properties < 0 or data[header_size : header_size + 16] != _ASF_DATA:
        return _WHOLE
    flags = int.from_bytes(data[properties + 88 : properties + 92], "little")
    size = int.from_bytes(data[header_size + 16 : header_size + 24], "little")
    missing = header_size + size - len(data)
    is_broadcast = flags & 1
    if is_broadcast or missing <= size // 100:
        return _inspect_joined(data)
    return MediaFile(missing_bytes=missing, expected_bytes=header_size + size)


_KINDS: tuple[tuple[Callable[[mmap.mmap], bool], Callable[[mmap.mmap], MediaFile]], ...] = (
    (lambda data: data[:4] in _RIFF and data[8:12] == b"WAVE", _inspect_wav),
    (lambda data: data[:4] == b"RIFF" and data[8:12] == b"AVI ", _inspect_avi),
    (lambda data: data[:4] == b"OggS", _inspect_ogg),
    (lambda data: data[:16] == _ASF_HEADER, _inspect_asf),
    (lambda data: data[4:8] == b"ftyp", _inspect_mov),
    (lambda data: any(data[: len(magic)] == magic for magic in _HEADS), _inspect_joined),
    (lambda data: data[:3] == b"ID3" or _MP3_FRAME.match(data) is not None, _inspect_mp3),
)
"""How kinds of files are known, and how each is looked at; the first that fits."""


def _table(width: int, polynomial: int) -> list[int]:
    table = []
    for byte in range(256):
        value = byte << (width - 8)
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> (width - 1) else 0)
            value &= (1 << width) - 1
        table.append(value)
    return table


_CRC16 = _table(16, 0x8005)
_CRC32 = _table(32, 0x04C11DB7)


def _crc16(data: bytes) -> int:
    """Give flac's checksum of a frame."""
    value = 0
    for byte in data:
        value = value << 8 & 0xFFFF ^ _CRC16[value >> 8 ^ byte]
    return value


def _crc32(data: bytes) -> int:
    """Give Ogg's checksum of a page."""
    value = 0
    for byte in data:
        value = value << 8 & 0xFFFFFFFF ^ _CRC32[value >> 24 ^ byte]
    return value
