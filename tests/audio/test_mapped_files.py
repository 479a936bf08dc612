from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parakeet_api.audio import mapped_files
from parakeet_api.audio.mapped_files import find_all, mapped, search

CONTENT = st.text(alphabet="ab", min_size=1, max_size=60).map(str.encode)
PATTERN = re.compile(rb"ab?a")


@pytest.fixture(autouse=True, scope="module")
def small_windows() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapped_files, "_WINDOW", 7)
        yield


@contextmanager
def in_memory(content: bytes) -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, len(content)) as data:
        data.write(content)
        yield data


@given(CONTENT, st.integers(0, 60), st.integers(0, 60))
def test_a_search_finds_what_one_without_windows_finds(
    content: bytes, start: int, stop: int
) -> None:
    stop = min(stop, len(content))
    with in_memory(content) as data:
        matches = search(data, PATTERN, start, stop, longest=3)
        found = [(match.start(), match[0]) for match in matches]

    expected = (PATTERN.match(content, at, stop) for at in range(start, stop))
    assert found == [(match.start(), match[0]) for match in expected if match]


@given(CONTENT)
def test_all_positions_of_byte_strings_are_found(content: bytes) -> None:
    with in_memory(content) as data:
        found = list(find_all(data, b"aba", b"bab"))

    expected = [at for at in range(len(content)) if content[at : at + 3] in (b"aba", b"bab")]
    assert found == expected


def test_an_empty_file_is_mapped_as_a_zero_byte(tmp_path: Path) -> None:
    file = tmp_path / "empty"
    file.touch()

    with mapped(file) as data:
        assert data[:] == b"\0"
