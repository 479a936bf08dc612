from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from werkzeug.exceptions import RequestEntityTooLarge

from parakeet_api.http.upload_form import UploadForm

TYPE = "multipart/form-data; boundary=sep"
SOUND = bytes(range(256)) * 1500 + b"\r\n--se\r\n"


def part(name: str, data: bytes, *, file: str = "", head: str = "") -> bytes:
    filename = f'; filename="{file}"' if file else ""
    disposition = f'Content-Disposition: form-data; name="{name}"{filename}\r\n{head}'
    return f"--sep\r\n{disposition}\r\n".encode() + data + b"\r\n"


BODY = part("model", b"whisper-1") + part("file", SOUND, file="a.wav") + b"--sep--\r\n"


@pytest.fixture
def form(tmp_path: Path) -> Iterator[UploadForm]:
    made = UploadForm.for_body(tmp_path, TYPE)
    assert made is not None
    yield made
    made.close()
    assert list(tmp_path.iterdir()) == []


def upload_in(folder: Path) -> Path:
    (upload,) = folder.iterdir()
    return upload


@pytest.mark.parametrize("step", [1000, 7, 65_536, len(BODY)])
def test_a_form_may_come_in_pieces_of_any_size(form: UploadForm, tmp_path: Path, step: int) -> None:
    for start in range(0, len(BODY), step):
        form.append(BODY[start : start + step])

    parsed = form.result()

    assert parsed.fields.to_dict() == {"model": "whisper-1"}
    assert parsed.files == {"file": upload_in(tmp_path)}
    assert upload_in(tmp_path).read_bytes() == SOUND


def test_texts_before_a_file_may_fill_a_large_piece(form: UploadForm, tmp_path: Path) -> None:
    texts = b"".join(part("keywords[]", b"Nabucodonosor" * 6) for _ in range(500))
    sound = SOUND * 2
    body = texts + part("file", sound, file="a.wav") + b"--sep--\r\n"
    assert len(body) > 512 * 1024

    form.append(body)

    assert form.result().fields.getlist("keywords[]") == ["Nabucodonosor" * 6] * 500
    assert upload_in(tmp_path).read_bytes() == sound


PIECES = [
    b"--sep",
    b"--sep--",
    b"\r\n",
    b"\r",
    b"\n",
    b"-",
    b"--se",
    b"--sepp",
    b"x" * 40,
    b"y" * 9000,
]


@given(
    content=st.lists(st.sampled_from(PIECES), max_size=12), splits=st.sets(st.integers(0, 30_000))
)
def test_a_file_is_the_same_wherever_its_body_is_parted(
    content: list[bytes], splits: set[int]
) -> None:
    # With an "x" before it: a boundary right behind the head ends the part, or not.
    file = b"x" + b"".join(content)
    assume(not re.search(rb"[\r\n]--sep", file))
    body = part("file", file, file="a.wav") + b"--sep--\r\n"
    with tempfile.TemporaryDirectory() as folder:
        form = UploadForm.for_body(Path(folder), TYPE)
        assert form is not None
        for start, end in pairwise([0, *sorted(splits), len(body)]):
            form.append(body[start:end])
        form.result()
        (stored,) = Path(folder).iterdir()
        assert stored.read_bytes() == file
        form.close()


def test_a_file_is_on_disk_while_it_comes(form: UploadForm, tmp_path: Path) -> None:
    form.append(part("file", SOUND, file="a.wav")[:-100])

    (upload,) = tmp_path.iterdir()
    assert upload.stat().st_size > len(SOUND) / 2


@pytest.mark.parametrize("length", [0, 1, 60, 100, len(BODY) - 12])
def test_a_body_that_is_cut_short_is_an_error(form: UploadForm, length: int) -> None:
    form.append(BODY[:length])

    with pytest.raises(ValueError, match="Invalid form-data"):
        form.result()


@pytest.mark.parametrize(
    "body",
    [
        b"".join(part(f"field-{n}", b"x") for n in range(601)),
        part("prompt", bytes(600_000)),
        b"".join(part(f"field-{n}", bytes(60_000)) for n in range(10)),
    ],
    ids=["parts", "one long text", "long texts"],
)
def test_texts_are_bounded(form: UploadForm, body: bytes) -> None:
    def append_all() -> None:
        for start in range(0, len(body), 10_000):
            form.append(body[start : start + 10_000])

    with pytest.raises(RequestEntityTooLarge):
        append_all()


def test_files_are_few(form: UploadForm, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than 4 files"):
        form.append(part("file", b"x", file="a.wav") * 5 + b"--sep--\r\n")

    assert len(list(tmp_path.iterdir())) == 4


def test_a_file_that_is_taken_over_stays(form: UploadForm, tmp_path: Path) -> None:
    form.append(BODY)
    form.result()
    (upload,) = tmp_path.iterdir()

    held = form.take_over(upload)
    form.close()

    assert upload.read_bytes() == SOUND
    held.close()
    upload.unlink()


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    form = UploadForm.for_body(tmp_path / "gone", TYPE)
    assert form is not None

    with pytest.raises(FileNotFoundError):
        form.append(BODY)


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "multipart/mixed; boundary=sep", "multipart/form-data",
     'multipart/form-data; boundary=""', "multipart/form-data; boundary=\u00e4"],
)  # fmt: skip
def test_other_bodies_are_no_forms(tmp_path: Path, content_type: str) -> None:
    assert UploadForm.for_body(tmp_path, content_type) is None


def test_the_charset_of_a_text_is_read(form: UploadForm) -> None:
    latin = "Content-Type: text/plain; charset=iso-8859-1\r\n"
    unknown = "Content-Type: text/plain; charset=utf-7\r\n"
    form.append(part("a", b"\xe4", head=latin) + part("b", "ä".encode(), head=unknown))
    form.append(b"--sep--\r\n")

    assert form.result().fields.to_dict() == {"a": "ä", "b": "ä"}
