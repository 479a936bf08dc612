"""Where the audio stream of a transport stream changes, by its tables."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import pytest

from parakeet_api.audio.transport_streams import changes_of_audio

AAC, AC3, VIDEO = 0x0F, 0x81, 0x1B
MAP = 0x100


def packet(pid: int, section: bytes) -> bytes:
    """Return a packet in which a section begins."""
    head = bytes([0x47, 0x40 | pid >> 8, pid & 0xFF, 0x10, 0])
    return (head + section).ljust(188, b"\xff")


def table(number: int, body: bytes, *, is_current: bool = True) -> bytes:
    """Return a section with a checksum of zeros, which is not checked."""
    length = len(body) + 9
    head = bytes([number, 0xB0 | length >> 8, length & 0xFF, 0, 1, 0xC0 | is_current, 0, 0])
    return head + body + bytes(4)


def programs(*pids: int) -> bytes:
    """Return a packet with the program association table."""
    entries = (
        number.to_bytes(2) + (0xE000 | pid).to_bytes(2) for number, pid in enumerate(pids, 1)
    )
    return packet(0, table(0, b"".join(entries)))


def program(*streams: tuple[int, int], is_current: bool = True) -> bytes:
    """Return a packet with a program map of streams, each by type and PID."""
    entries = (bytes([kind]) + (0xE000 | pid).to_bytes(2) + b"\xf0\x00" for kind, pid in streams)
    body = b"\xe1\x00\xf0\x00" + b"".join(entries)
    return packet(MAP, table(2, body, is_current=is_current))


def changes(folder: Path, packets: Sequence[bytes]) -> list[int]:
    """Return the numbers of the packets at which the audio changes."""
    path = folder / "stream.ts"
    path.write_bytes(b"".join(packets))
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        return [offset // 188 for offset in changes_of_audio(data)]


SOUND = [packet(0x101, b"")] * 10


@pytest.mark.parametrize(
    ("streams", "is_change"),
    [
        ([(AC3, 0x101)], True),
        ([(AAC, 0x102)], True),
        ([(VIDEO, 0x103), (AAC, 0x101)], False),
        ([(AAC, 0x101), (AC3, 0x102)], False),
    ],
    ids=["codec", "pid", "video added", "audio added"],
)
def test_the_first_audio_stream_is_another_from_the_programs_before_its_map(
    tmp_path: Path, streams: list[tuple[int, int]], is_change: bool
) -> None:
    before = [programs(MAP), program((AAC, 0x101)), *SOUND]
    after = [programs(MAP), program(*streams), *SOUND]

    assert changes(tmp_path, [*before, *before, *after]) == [2 * len(before)] * is_change


def test_a_table_that_is_announced_changes_nothing_before_it_applies(tmp_path: Path) -> None:
    before = [programs(MAP), program((AAC, 0x101)), *SOUND]
    announced = [programs(MAP), program((AC3, 0x101), is_current=False), *SOUND]
    after = [programs(MAP), program((AC3, 0x101)), *SOUND]

    assert changes(tmp_path, [*before, *announced, *before, *after]) == [3 * len(before)]


def test_a_stream_that_lists_other_programs_in_each_packet_is_given_up(tmp_path: Path) -> None:
    before = [programs(MAP), program((AAC, 0x101))]
    garbage = [programs(MAP, 0x200 + number % 2) for number in range(3000)]
    after = [programs(MAP), program((AC3, 0x101))]

    assert changes(tmp_path, [*before, *garbage[:100], *after]) == [102]
    assert changes(tmp_path, [*before, *garbage, *after]) == []
