from __future__ import annotations

from pathlib import Path

import pytest

from parakeet_api.archive.files import Files
from parakeet_api.archive.manifest import Entry, ManifestWriter, read_manifest
from parakeet_api.archive.run import _is_left, _recordings
from parakeet_api.archive.worker import output_name
from parakeet_api.errors import SettingsError


@pytest.fixture(params=["folder", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    # fsspec's memory stands for object stores, which need a server of their own.
    return Files(str(tmp_path) if request.param == "folder" else f"memory://{tmp_path}")


def done(name: str, **fields: object) -> Entry:
    return Entry(file=name, status="done", **fields)  # type: ignore[arg-type]


def test_files_are_listed_with_their_folders_and_without_hidden_ones(files: Files) -> None:
    for name in ("b.mp3", "a/c.wav", ".hidden/d.wav", "a/.e.wav"):
        files.write(name, b"x")

    assert files.names() == ["a/c.wav", "b.mp3"]


def test_a_file_is_read_as_a_file_of_this_machine(files: Files) -> None:
    files.write("a/c.wav", b"sound")

    with files.local("a/c.wav") as path:
        assert (path.name, path.read_bytes()) == ("c.wav", b"sound")


def test_a_file_that_is_written_again_is_replaced_and_leaves_no_part(files: Files) -> None:
    files.write("a.srt", b"one")
    files.write("a.srt", b"two")

    assert files.read("a.srt") == b"two"
    assert files.names() == ["a.srt"]


def test_an_address_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(SettingsError, match="nowhere://x"):
        Files("nowhere://x")


def test_the_manifest_has_what_was_added_by_several_runs(files: Files) -> None:
    for entry in (done("a", words=3, warnings=("truncated_audio",)), done("b")):
        writer = ManifestWriter(files)
        writer.add(entry)
        writer.flush()

    assert read_manifest(files) == {
        "a": done("a", words=3, warnings=("truncated_audio",)),
        "b": done("b"),
    }


def test_the_last_entry_of_a_file_counts(files: Files) -> None:
    writer = ManifestWriter(files)
    writer.add(Entry(file="a", status="failed", error="no sound"))
    writer.add(done("a"))
    writer.flush()

    assert read_manifest(files) == {"a": done("a")}


def test_a_line_that_was_cut_off_counts_as_not_written(files: Files) -> None:
    line = done("a").line()
    files.write("manifest/000001.jsonl", line + done("b").line()[:-9])

    assert set(read_manifest(files)) == {"a"}


def test_entries_reach_a_folder_at_once(tmp_path: Path) -> None:
    files = Files(str(tmp_path))
    ManifestWriter(files, clock=lambda: 0.0).add(done("a"))

    assert set(read_manifest(files)) == {"a"}


def test_a_part_of_the_manifest_has_a_limited_length(tmp_path: Path) -> None:
    files = Files(str(tmp_path))
    writer = ManifestWriter(files)
    for number in range(1001):
        writer.add(done(str(number)))

    assert files.names() == ["manifest/000001.jsonl", "manifest/000002.jsonl"]
    assert len(read_manifest(files)) == 1001


def test_two_recordings_of_one_name_have_two_transcripts() -> None:
    assert output_name("a/talk.mp3", "srt") == "a/talk.mp3.srt"
    assert output_name("a/talk.wav", "srt") == "a/talk.wav.srt"


@pytest.mark.parametrize("output", ["", "/transcripts"])
def test_transcripts_beside_the_recordings_are_no_recordings(tmp_path: Path, output: str) -> None:
    source, target = Files(str(tmp_path)), Files(f"{tmp_path}{output}")
    source.write("a.mp3", b"x")
    source.write("notes.txt", b"x")
    target.write("a.mp3.srt", b"x")
    ManifestWriter(target).add(done("a.mp3"))

    assert _recordings(source, target) == ["a.mp3", "notes.txt"]


def test_a_failed_file_is_tried_again_only_when_that_is_wanted() -> None:
    failed = Entry(file="a", status="failed")

    assert _is_left(None, False)
    assert not _is_left(done("a"), True)
    assert [_is_left(failed, retry) for retry in (False, True)] == [False, True]
