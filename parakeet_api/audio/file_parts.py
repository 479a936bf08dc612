"""Inspect a file's structure before decoding: archives, concatenated files, truncated files.

Only what ffmpeg does not report: of several concatenated wav or Ogg files it reads the first, and
in containers without an index it takes the end of the file for the end of the recording.
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

from parakeet_api.audio import flash_video, ogg_pages
from parakeet_api.audio.transport_streams import changes_of_audio, stride_of
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

_MAX_PARTS = 1000
"""Each takes an ffmpeg process, 25 ms."""
_MAX_RANGES = 100_000
"""Wav headers among the samples: one every 0.4 s in a recording of 12 hours."""
_MAX_CHUNKS = 1000
"""RIFF chunks of a wav file: usual files have a dozen, a hostile one could have millions."""
_MIN_SURPLUS_S = 1.0
"""At least so much data beyond the size in a wav header counts as audio; less may be metadata."""
_UNKNOWN_SIZE = 0x7FFF0000
"""Recorders that write to a pipe declare this size or more, or 0, as they do not know it yet."""
_RIFF = frozenset({b"RIFF", b"RF64", b"BW64"})
_SIZE_IN_DS64 = 0xFFFFFFFF
"""RF64 (EBU Tech 3306): the real size is in the chunk `ds64`."""
_MIN_FMT = 16
_TAGS = (b"ID3", b"TAG", b"APETAGEX")
"""Magic numbers of tags that follow the audio without a RIFF chunk."""

_WINDOW = 1 << 23
"""Bytes searched at once, so that other threads get the GIL in between."""

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_FILE_HEADERS = {
    b"fLaC": re.compile(rb"fLaC[\x00\x80]\x00\x00\x22"),
    b"caff": re.compile(rb"caff\x00\x01\x00\x00desc"),
    b"TTA1": re.compile(rb"TTA1[\x01\x02]\x00[\x01-\x10]\x00"),
    b"#!AMR": re.compile(rb"#!AMR(?:-WB)?\n"),
    b"riff": re.compile(rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb"),
    b"FORM": re.compile(rb"FORM....AIF[FC](?:COMM|FVER)", re.DOTALL),
    b"NIST": re.compile(rb"NIST_1A\n *\d{4,5}\n"),
    _ASF_HEADER: re.compile(re.escape(_ASF_HEADER)),
    # An EBML header (RFC 8794, 11.2) with its document type.
    b"\x1aE\xdf\xa3": re.compile(
        rb"\x1aE\xdf\xa3.{1,80}?\x42\x82.{1,8}?(?:webm|matroska)", re.DOTALL
    ),
}
"""Magic number -> file header. Of such files, concatenated, ffmpeg reads only the first, or the
first two with the first one's description of the tracks."""
_MP3_FRAME = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
"""The first bytes of a frame of layer III."""
_MP3_MONO = 0xC0
_MAX_MP3_TAG = 1 << 24
_MAX_CANDIDATES = 10_000
"""Positions that look like a file's first frame; usual files have few."""

_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_FLV_TAG_HEAD = 11
_MAX_HEADER = 1 << 16
_UNKNOWN_LONG_SIZE = 1 << 48
_W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
_W64_CHUNK_HEAD = 24
_SPHERE_CODINGS = frozenset({b"pcm", b"ulaw", b"alaw", b"mu-law"})
_SOX = frozenset({b".SoX", b"XoS."})
_SOX_SAMPLE_BYTES = 4
_IRCAM = re.compile(rb"\x64\xa3[\x01-\x04]\x00|\x00[\x01-\x04]\xa3\x64")
_IRCAM_HEADER_BYTES = 1024
_IRCAM_SAMPLE_BYTES = 0xFF
"""The bits of an encoding's number that give the size of a sample."""
_WTV_HEADER = bytes.fromhex("b7d800203749da11a64e0007e95ead8d")
_WTV_ROOT = 0x38
"""Where the number of the root directory's first sector stands."""
_WTV_SECTOR = 4096
_GXF_END = bytes.fromhex("0000000001fb0000001000000000e1e2")
"""A packet that ends the stream (SMPTE 360M)."""
_MAX_FLAC_FRAME = 1 << 17
"""Upper bound in practice: 8 channels of 24 bits in blocks of 4608 samples take 110 KB."""
_FLAC_TRIES = 16
"""128 KB hold the sync code about eight times at frames, and four times by chance."""


@dataclass(frozen=True, slots=True)
class Part:
    """A section of an upload that is a recording of its own."""

    head: bytes
    """A header to send before the ranges."""
    ranges: tuple[range | bytes, ...]
    """Byte ranges of the upload; bytes replace some of it."""


@dataclass(frozen=True, slots=True)
class MediaFile:
    """The result of inspecting a file."""

    parts: tuple[Part, ...] = ()
    """To be decoded one after the other; empty = decode the file as it is."""
    missing_bytes: int = 0
    """Bytes that the structure declares beyond the end of the file."""
    expected_bytes: int = 0
    """Length of the file with the missing bytes."""
    ends_within_sample: bool = False
    """Whether the last sample of a format that declares no length is incomplete."""
    lacks_index: bool = False
    """Whether an index, without which nothing can be decoded, is beyond the end of the file."""


_ORDINARY = MediaFile()


def inspect(path: Path) -> MediaFile:
    """Inspect a file's structure. Raises `AudioDecodeError` for an archive."""
    size = path.stat().st_size
    with path.open("rb") as file, _mapped(file.fileno(), size) as data:
        _refuse_archive(data)
        return next(
            (inspector(data) for matches, inspector in _INSPECTORS if matches(data)), _ORDINARY
        )


def unreadable_kind(path: Path) -> str | None:
    """Name the format of a file if it is known and cannot be decoded."""
    with path.open("rb") as file:
        head = file.read(16).removeprefix(b"\2")
    return next((kind for magic, kind in _UNREADABLE.items() if head.startswith(magic)), None)


def flac_ends_with_a_frame(path: Path) -> bool:
    """Tell whether a flac file's last frame is complete: then it was trimmed, not truncated.

    Checks the frame's CRC (RFC 9639, 9.3). The header does not tell: a stream copy keeps the old
    length there.
    """
    size = path.stat().st_size
    with path.open("rb") as file, _mapped(file.fileno(), size) as data:
        tail = data[max(0, size - _MAX_FLAC_FRAME) :]
    starts = [match.start() for match in re.finditer(rb"\xff[\xf8\xf9]", tail)]
    # The CRC over a frame that includes its own CRC is 0.
    return any(_crc16(tail[start:]) == 0 for start in reversed(starts[-_FLAC_TRIES:]))


def flv_ends_with_a_tag(path: Path) -> bool:
    """Tell whether an FLV file's last tag is complete: its size follows each tag.

    ffmpeg reports no error for a file that ends inside a tag's header.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4))
        tag_bytes = int.from_bytes(file.read(4))
        if not _FLV_TAG_HEAD <= tag_bytes <= size - 4:
            return False
        file.seek(size - 4 - tag_bytes + 1)
        return int.from_bytes(file.read(3)) + _FLV_TAG_HEAD == tag_bytes


def gxf_ends_with_its_last_packet(path: Path) -> bool:
    """Tell whether a GXF file is complete: behind its last packet, ffmpeg reports an error."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_GXF_END)))
        return file.read() == _GXF_END


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    # An empty file cannot be mapped; a single zero byte matches no format either.
    return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else mmap.mmap(-1, 1)


def _refuse_archive(data: mmap.mmap) -> None:
    for kind, (offset, magic) in _ARCHIVES.items():
        if data[offset : offset + len(magic)] == magic:
            raise AudioDecodeError(
                f"The file is a {kind} archive. Unpack it and send each recording on its own."
            )


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


def _inspect_wav(data: mmap.mmap) -> MediaFile:
    first = read_wav(data, 0)
    if first is None or not 0 < first.declared < _UNKNOWN_SIZE:
        return _ORDINARY
    end = first.start + first.declared
    if end > len(data):
        slack = max(first.bytes_per_second, first.declared // 100)
        missing = end - len(data)
        return (
            MediaFile(missing_bytes=missing, expected_bytes=end) if missing > slack else _ORDINARY
        )
    parts = _group(_wavs(data, first))
    return _ORDINARY if _is_plain(parts, first) else MediaFile(parts=parts)


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
    """Parse one file's chunks up to its samples; `None` if there is no wav file here."""
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
    # A recorder that was killed did not write the size; some writers declare a few bytes too many.
    if size in (0, 0xFFFFFFFF) or missing <= 8 + size // 100:
        return _ORDINARY
    return MediaFile(missing_bytes=missing, expected_bytes=8 + size)


def _inspect_ogg(data: mmap.mmap) -> MediaFile:
    missing = _missing_of_last_page(data)
    starts = list(_ogg_links(data)) or [0]
    links = _split_at(starts, len(data))
    extents = [range(*ends) for ends in zip(starts, [*starts[1:], len(data)], strict=True)]
    patches = [ogg_pages.mended_positions(data, extent) for extent in extents]
    if any(patches):
        parts = map(_patched, extents, patches)
        links = MediaFile(parts=tuple(parts))
    return replace(links, missing_bytes=missing, expected_bytes=len(data) + missing)


def _patched(extent: range, patches: list[ogg_pages.Patch]) -> Part:
    """Replace bytes of a range."""
    ranges: list[range | bytes] = []
    at = extent.start
    for start, content in patches:
        ranges += [range(at, start), content]
        at = start + len(content)
    return Part(b"", (*ranges, range(at, extent.stop)))


def _ogg_links(data: mmap.mmap) -> Iterator[int]:
    """Yield the offsets of a chained stream's links: first pages after later ones (RFC 3533, 4)."""
    end_of_firsts = links = 0
    first_pages = (
        at
        for at in _find_all(data, ogg_pages.MAGIC)
        if data[at + 5 : at + 6] in ogg_pages.BOS_FLAGS
    )
    for number, start in enumerate(first_pages):
        if number > 2 * _MAX_PARTS:
            raise _too_many(links)
        end = ogg_pages.page_end(data, start)
        if not ogg_pages.is_first_page(data, start, end):
            continue
        # First pages of multiplexed streams follow each other.
        if start != end_of_firsts or not links:
            links += 1
            yield start if links > 1 else 0
        end_of_firsts = end


def _find_all(data: mmap.mmap, *patterns: bytes) -> Iterator[int]:
    """Yield the positions of byte strings of one length, window by window."""
    for start in range(0, len(data), _WINDOW):
        end = start + _WINDOW + len(patterns[0]) - 1
        positions = (at for pattern in patterns for at in _positions(data, pattern, start, end))
        yield from sorted(itertools.islice(positions, _MAX_CANDIDATES))


def _positions(data: mmap.mmap, pattern: bytes, start: int, end: int) -> Iterator[int]:
    while (start := data.find(pattern, start, end)) >= 0:
        yield start
        start += 1


def _missing_of_last_page(data: mmap.mmap) -> int:
    """Count the bytes missing from the last page."""
    at = max(0, len(data) - 2 * ogg_pages.MAX_PAGE)
    first = ogg_pages.PAGE.search(data, at)
    at = first.start() if first else len(data)
    while at < len(data):
        if not ogg_pages.PAGE.match(data, at):
            # Not a page, or a damaged one: go to the next.
            following = ogg_pages.PAGE.search(data, at)
            if following is None:
                return 0
            at = following.start()
        at = ogg_pages.page_end(data, at)
    return at - len(data)


def _inspect_concatenated(data: mmap.mmap) -> MediaFile:
    """Find concatenated files of one format by their headers."""
    magic, head = next(
        (magic, head) for magic, head in _FILE_HEADERS.items() if data[: len(magic)] == magic
    )
    starts = (at for at in _find_all(data, magic) if head.match(data, at))
    files = _split_at(_file_offsets(starts), len(data))
    end = _ENDS[magic](data) if magic in _ENDS else None
    # Some writers declare a few bytes too many.
    missing = 0 if end is None else end - len(data)
    if end is None or missing <= end // 100:
        return files
    return replace(files, missing_bytes=missing, expected_bytes=end)


def _w64_end(data: mmap.mmap) -> int | None:
    """Return the declared end of a Sony Wave64 file's samples; `None` if it is unknown."""
    chunk = data.find(_W64_DATA, 0, _MAX_HEADER)
    size = int.from_bytes(data[chunk + 16 : chunk + 24], "little") if chunk >= 0 else 0
    return chunk + size if _W64_CHUNK_HEAD < size < _UNKNOWN_LONG_SIZE else None


def _caf_end(data: mmap.mmap) -> int | None:
    """Return the declared end of a Core Audio file's samples; `None` if it is unknown."""
    at = 8
    for _ in range(_MAX_CHUNKS):
        if at + 12 > len(data):
            break
        kind, size = struct.unpack_from(">4sq", data, at)
        if kind == b"data" and size < _UNKNOWN_LONG_SIZE:
            return at + 12 + int(size) if size >= 0 else None
        if size < 0:
            break
        at += 12 + size
    return None


def _sphere_end(data: mmap.mmap) -> int | None:
    """Return the declared end of a NIST SPHERE file's samples; `None` if it is unknown."""
    lines = data[:_MAX_HEADER].split(b"end_head")[0].split(b"\n")
    fields = {words[0]: words[2] for line in lines[2:] if len(words := line.split()) == 3}  # noqa: PLR2004
    names = (b"sample_count", b"channel_count", b"sample_n_bytes")
    header = lines[1:2]
    numbers = [*(line.strip() for line in header), *(fields.get(name, b"") for name in names)]
    if (
        not header
        or fields.get(b"sample_coding", b"pcm") not in _SPHERE_CODINGS
        or not all(
            len(number) < 12 and number.isdigit()  # noqa: PLR2004
            for number in numbers
        )
    ):
        return None
    start, count, channels, sample_bytes = map(int, numbers)
    return start + count * channels * sample_bytes


_ENDS = {b"riff": _w64_end, b"caff": _caf_end, b"NIST": _sphere_end}
"""Magic number -> declared end: where such a file is cut between two packets, ffmpeg reports
nothing."""


def _inspect_mov(data: mmap.mmap) -> MediaFile:
    """Find concatenated MP4 or QuickTime files: ffmpeg reads only the first index."""
    boxes = list(_boxes(data))
    files = _split_at(_file_offsets(at for at, _, kind in boxes if kind == b"ftyp"), len(data))
    _, end, kind = boxes[-1] if boxes else (0, 0, b"")
    return replace(files, lacks_index=kind == b"moov" and end > len(data))


def _boxes(data: mmap.mmap) -> Iterator[tuple[int, int, bytes]]:
    """Yield offset, end and type of the top-level boxes (ISO 14496-12, 4.2)."""
    at = 0
    for _ in range(_MAX_RANGES):
        if at + 16 > len(data):
            return
        size, kind, long_size = struct.unpack_from(">I4sQ", data, at)
        length = long_size if size == 1 else size
        yield at, at + length, kind
        if length < 8:  # noqa: PLR2004 - 0 is "to the end", less is broken
            return
        at += length


def _file_offsets(starts: Iterable[int]) -> list[int]:
    """List the offsets of files, the first at 0. Raises `AudioDecodeError` for too many."""
    offsets = list(itertools.islice(starts, _MAX_PARTS + 1))
    if len(offsets) > _MAX_PARTS:
        raise _too_many(len(offsets))
    return [0, *offsets[1:]]


def _split_at(starts: list[int], size: int) -> MediaFile:
    ends = [*starts[1:], size]
    parts = tuple(Part(b"", (range(*ends_at),)) for ends_at in zip(starts, ends, strict=True))
    return MediaFile(parts=parts) if len(parts) > 1 else _ORDINARY


def _inspect_mp3(data: mmap.mmap) -> MediaFile:
    """Find concatenated mp3 files, each with the encoder delay in its first frame.

    ffmpeg would lose a frame at each joint, and decode the encoder's padding as silence.
    """
    starts = [0]
    for info in itertools.islice(_find_all(data, b"Xing", b"Info"), _MAX_CANDIDATES):
        start = _mp3_file_start(data, info)
        if start is not None and start > starts[-1]:
            starts.append(start)
            if len(starts) > _MAX_PARTS:
                raise _too_many(len(starts))
    return _split_at(starts, len(data))


def _mp3_file_start(data: mmap.mmap, info: int) -> int | None:
    """Return the start of the mp3 file whose first frame has its Xing or Info header at `info`."""
    for header_bytes in (36, 21, 13):
        frame = info - header_bytes
        if frame >= 0 and mp3_side_info_end(data[frame : frame + 4]) == header_bytes:
            tag = data.rfind(b"ID3", max(0, frame - _MAX_MP3_TAG), frame)
            return tag if tag >= 0 and id3_end(data, tag) == frame else frame
    return None


def mp3_side_info_end(header: bytes) -> int | None:
    """Return the length of a frame's header and side info; `None` if it is not layer III."""
    if not _MP3_FRAME.match(header):
        return None
    is_mpeg1, is_mono = header[1] & 0x08, header[3] & 0xC0 == _MP3_MONO
    if is_mpeg1:
        return 21 if is_mono else 36
    return 13 if is_mono else 21


def id3_end(data: mmap.mmap, start: int) -> int:
    """Return the end of an ID3v2 tag."""
    size = data[start + 6 : start + 10]
    return start + 10 + sum(byte << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=True))


def _inspect_transport_stream(data: mmap.mmap) -> MediaFile:
    return _split_at(_file_offsets(itertools.chain([0], changes_of_audio(data))), len(data))


def _inspect_flash_video(data: mmap.mmap) -> MediaFile:
    starts = _file_offsets(itertools.chain([0], flash_video.changes_of_audio(data)))
    files = _split_at(starts, len(data))
    heads = (flash_video.header_for(data, start) for start in starts)
    return MediaFile(
        parts=tuple(
            replace(part, head=head) for part, head in zip(files.parts, heads, strict=False)
        )
    )


def _inspect_sox(data: mmap.mmap) -> MediaFile:
    """Compare the data with the number of samples that the header declares."""
    order = "<" if data[:4] == b".SoX" else ">"
    header, samples, rate, channels = struct.unpack_from(f"{order}IQdI", data, 4)
    expected = 4 + header + samples * _SOX_SAMPLE_BYTES
    is_short = expected - len(data) > _SOX_SAMPLE_BYTES * channels * rate
    missing = expected - len(data) if is_short else 0
    return MediaFile(missing_bytes=missing, expected_bytes=expected)


def _inspect_ircam(data: mmap.mmap) -> MediaFile:
    """Find out whether a file that declares no length ends within a sample of all channels."""
    order = "<" if data[3] == 0 else ">"
    channels, encoding = struct.unpack_from(f"{order}II", data, 8)
    frame_bytes = channels * (encoding & _IRCAM_SAMPLE_BYTES)
    rest = (len(data) - _IRCAM_HEADER_BYTES) % frame_bytes if frame_bytes else 0
    return MediaFile(ends_within_sample=rest > 0)


def _inspect_wtv(data: mmap.mmap) -> MediaFile:
    """Find out whether the root directory, which recorders write at the end, is missing."""
    (sector,) = struct.unpack_from("<I", data, _WTV_ROOT)
    return MediaFile(lacks_index=sector * _WTV_SECTOR >= len(data))


def _inspect_asf(data: mmap.mmap) -> MediaFile:
    """Compare the data with the size that its object declares (ASF specification, 3.2 and 5.1)."""
    (header_size,) = struct.unpack_from("<Q", data, 16)
    properties = data.find(_ASF_FILE, 0, header_size)
    if properties < 0 or data[header_size : header_size + 16] != _ASF_DATA:
        return _ORDINARY
    flags = int.from_bytes(data[properties + 88 : properties + 92], "little")
    size = int.from_bytes(data[header_size + 16 : header_size + 24], "little")
    missing = header_size + size - len(data)
    is_broadcast = flags & 1
    if is_broadcast or missing <= size // 100:
        return _inspect_concatenated(data)
    return MediaFile(missing_bytes=missing, expected_bytes=header_size + size)


_INSPECTORS: tuple[tuple[Callable[[mmap.mmap], bool], Callable[[mmap.mmap], MediaFile]], ...] = (
    (lambda data: data[:4] in _RIFF and data[8:12] == b"WAVE", _inspect_wav),
    (lambda data: data[:4] == b"RIFF" and data[8:12] == b"AVI ", _inspect_avi),
    (lambda data: data[:4] == b"OggS", _inspect_ogg),
    (lambda data: data[:16] == _ASF_HEADER, _inspect_asf),
    (lambda data: data[4:8] == b"ftyp", _inspect_mov),
    (flash_video.is_flash_video, _inspect_flash_video),
    (lambda data: data[:4] in _SOX and len(data) >= 28, _inspect_sox),  # noqa: PLR2004
    (
        lambda data: _IRCAM.match(data) is not None and len(data) > _IRCAM_HEADER_BYTES,
        _inspect_ircam,
    ),
    (lambda data: data[:16] == _WTV_HEADER and len(data) >= _WTV_SECTOR, _inspect_wtv),
    (lambda data: stride_of(data) is not None, _inspect_transport_stream),
    (
        lambda data: any(data[: len(magic)] == magic for magic in _FILE_HEADERS),
        _inspect_concatenated,
    ),
    (lambda data: data[:3] == b"ID3" or _MP3_FRAME.match(data) is not None, _inspect_mp3),
)
"""Pairs of a format check and an inspector; the first match is used."""


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 8
        for _ in range(8):
            value = value << 1 ^ (0x8005 if value >> 15 else 0)
            value &= 0xFFFF
        table.append(value)
    return table


_CRC16 = _table()


def _crc16(data: bytes) -> int:
    """Return the CRC-16 of a flac frame."""
    value = 0
    for byte in data:
        value = value << 8 & 0xFFFF ^ _CRC16[value >> 8 ^ byte]
    return value
