"""Find where an MPEG transport stream's audio stream changes: ffmpeg decodes the first one alone.

ISO 13818-1: packets of 188 bytes; the program association table (PAT) names the PIDs of the program
map tables (PMT), which list each program's streams. In concatenated recordings, and in broadcasts
whose audio codec changes, these tables change in the middle.
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Packets = NDArray[np.uint8]
"""Packets without the bytes before them, shape `(packets, 188)`."""

_SYNC = 0x47
_PACKET = 188
_STRIDES = ((_PACKET, 0), (192, 4), (204, 0))
"""Distance of packets, and bytes before each: plain, with time codes, and with error
correction at the end."""
_WINDOW_PACKETS = 1 << 15
_MAX_RESYNCS = 1000
_MAX_PROGRAM_LISTS = 1000
"""Changes of the PAT's list; after each, a window is searched again."""
_AUDIO_TYPES = frozenset({0x03, 0x04, 0x0F, 0x11, *range(0x80, 0x88), 0xA1, 0xA2})
"""Stream types of audio: MPEG, AAC, and those of ATSC and Blu-ray."""
_PRIVATE = 0x06
_REGISTRATION = 0x05
_AUDIO_DESCRIPTORS = frozenset({0x6A, 0x73, 0x7A, 0x7B, 0x7C})
"""DVB's descriptors of AC-3, E-AC-3, DTS and AAC in private streams (EN 300 468, 6.1)."""
_AUDIO_FORMATS = frozenset({b"AC-3", b"EAC3", b"Opus", b"BSSD", b"DTS1", b"DTS2", b"DTS3"})
"""Registered formats of audio in private streams."""

_SECTION_HEAD = 8
_IS_CURRENT = 1
"""Bit of a section's header: the table applies now."""
_CACHED_TABLES = 256
"""Tables are repeated several times a second."""

Stream = tuple[int, int, bytes]
"""PID, stream type, and the format of a private stream."""


def is_transport_stream(data: mmap.mmap) -> bool:
    """Tell whether a file begins with packets."""
    return _stride_of(data) is not None


def _stride_of(data: mmap.mmap) -> tuple[int, int] | None:
    """Return the distance of packets and the bytes before each; `None` if there are none."""
    for stride, prefix in _STRIDES:
        syncs = data[prefix : prefix + 4 * stride + 1 : stride]
        if len(syncs) == 5 and set(syncs) == {_SYNC}:  # noqa: PLR2004
            return stride, prefix
    return None


def changes_of_audio(data: mmap.mmap) -> Iterator[int]:
    """Yield the offsets at which another audio stream becomes the first."""
    found = _stride_of(data)
    if found is None:
        return
    stride, prefix = found
    tables = _Tables()
    at, resyncs = 0, 0
    while (
        at + stride <= len(data)
        and resyncs < _MAX_RESYNCS
        and tables.program_lists < _MAX_PROGRAM_LISTS
    ):
        packets = min(_WINDOW_PACKETS, (len(data) - at) // stride)
        window = np.frombuffer(data[at : at + packets * stride], np.uint8).reshape(-1, stride)
        bad = np.flatnonzero(window[:, prefix] != _SYNC)
        whole = int(bad[0]) if len(bad) else packets
        for row in tables.changes(window[:whole, prefix : prefix + _PACKET]):
            yield at + row * stride
        at += whole * stride
        if whole < packets:
            resyncs += 1
            at = _next_packet(data, at, stride, prefix)


def _next_packet(data: mmap.mmap, at: int, stride: int, prefix: int) -> int:
    """Find the next packet behind one that was cut."""
    area = np.frombuffer(data[at : at + 6 * stride], np.uint8)
    for offset in range(1, 2 * stride):
        syncs = area[offset + prefix :: stride][:4]
        if len(syncs) and bool((syncs == _SYNC).all()):
            return at + offset
    return at + 2 * stride


@dataclass(slots=True)
class _Tables:
    """The tables seen so far."""

    pids: tuple[int, ...] = ()
    """PIDs of the PMTs, by the latest PAT."""
    program_lists: int = 0
    """Number of times that they have changed."""
    pat_at: int = 0
    """Row of the latest PAT in the current window; negative = in an earlier one."""
    streams: dict[int, tuple[Stream, ...]] = field(default_factory=dict)
    """Audio streams by the PID of their program's PMT."""
    audio: tuple[Stream, ...] = ()
    """Audio streams by the latest tables."""

    def changes(self, packets: Packets) -> Iterator[int]:
        """Yield the rows of the PATs at which another audio stream becomes the first."""
        pids = (packets[:, 1].astype(np.int32) & 0x1F) << 8 | packets[:, 2]
        starts = packets[:, 1] & 0x40 > 0
        at = 0
        while at < len(packets) and self.program_lists < _MAX_PROGRAM_LISTS:
            wanted = np.isin(pids[at:], (0, *self.pids)) & starts[at:]
            for row in (np.flatnonzero(wanted) + at).tolist():
                section = _section(packets[row].tobytes())
                if pids[row] == 0:
                    self.pat_at = row
                    if (maps := _program_maps(section)) and maps != self.pids:
                        self.pids = maps
                        self.program_lists += 1
                        at = row + 1
                        break
                elif self._is_change(int(pids[row]), section):
                    yield max(0, self.pat_at)
            else:
                break
        self.pat_at -= len(packets)

    def _is_change(self, pid: int, section: bytes) -> bool:
        """Take a PMT; tell whether by it the first audio stream so far has ended."""
        streams = _audio_streams(section)
        if streams is None or self.streams.get(pid) == streams:
            return False
        self.streams[pid] = streams
        present = tuple(stream for known in self.pids for stream in self.streams.get(known, ()))
        if not present:
            return False
        before, self.audio = self.audio, present
        return bool(before) and before[0] not in present


def _section(packet: bytes) -> bytes:
    """Return the table section that begins in a packet; empty if there is none."""
    has_field, has_payload = packet[3] & 0x20, packet[3] & 0x10
    start = 5 + packet[4] if has_field else 4
    if not has_payload or start >= len(packet):
        return b""
    return packet[start + 1 + packet[start] :]


def _body(section: bytes, table: int) -> bytes:
    """Return a table's content without header and checksum; empty for another table.

    Also for one that is announced and does not apply yet.
    """
    if len(section) < _SECTION_HEAD or section[0] != table or not section[5] & _IS_CURRENT:
        return b""
    length = int.from_bytes(section[1:3]) & 0xFFF
    return section[_SECTION_HEAD : max(_SECTION_HEAD, 3 + length - 4)]


@functools.lru_cache(_CACHED_TABLES)
def _program_maps(section: bytes) -> tuple[int, ...]:
    body = _body(section, 0)
    programs = (body[at : at + 4] for at in range(0, len(body) - 3, 4))
    return tuple(int.from_bytes(program[2:]) & 0x1FFF for program in programs if any(program[:2]))


@functools.lru_cache(_CACHED_TABLES)
def _audio_streams(section: bytes) -> tuple[Stream, ...] | None:
    body = _body(section, 2)
    if not body:
        return None
    at = 4 + (int.from_bytes(body[2:4]) & 0xFFF)
    streams: list[Stream] = []
    while at + 5 <= len(body):
        kind, pid = body[at], int.from_bytes(body[at + 1 : at + 3]) & 0x1FFF
        end = at + 5 + (int.from_bytes(body[at + 3 : at + 5]) & 0xFFF)
        private = _private_format(body[at + 5 : end]) if kind == _PRIVATE else b""
        if kind in _AUDIO_TYPES or private:
            streams.append((pid, kind, private))
        at = end
    return tuple(streams)


def _private_format(descriptors: bytes) -> bytes:
    """Return the format of a private stream of audio; empty for any other."""
    if not descriptors:
        # Some writers declare no format for MPEG audio in m2ts files.
        return b"?"
    at = 0
    while at + 2 <= len(descriptors):
        tag, length = descriptors[at], descriptors[at + 1]
        content = descriptors[at + 2 : at + 2 + length]
        if tag in _AUDIO_DESCRIPTORS:
            return bytes([tag])
        if tag == _REGISTRATION and content[:4] in _AUDIO_FORMATS:
            return content[:4]
        at += 2 + length
    return b""
