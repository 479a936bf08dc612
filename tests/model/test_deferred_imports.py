"""Stand-ins for packages that are imported once they are used."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from conftest import DEMO_MODEL, ROOT, SPEECH, output_of

from parakeet_api.model.deferred_imports import deferred

HEAVY = """
import pathlib
pathlib.Path(__file__).with_name("imported").touch()
limit = 3
class Base:
    kind = "real"
    def __class_getitem__(cls, parameters):
        return cls
def double(number):
    return 2 * number
"""
USER = """
import heavy
import heavy.inner
from heavy import Base, double
from heavy.inner import depth
def twice(number: Base[int] | None) -> Base | None:
    return double(number)
def is_base(thing):
    return isinstance(thing, Base)
"""

RECOGNITION = """
import sys
from pathlib import Path
from conftest import decode, demo_options, whole
from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.model.recognizer import NemoRecognizer
recognizer = NemoRecognizer.load(Path(sys.argv[1]), demo_options())
samples = decode(FfmpegDecoder(executable=find_ffmpeg(), max_seconds=60), Path(sys.argv[2]))
[words] = recognizer.recognize([whole(samples)])
print(len(words))
unused = ("datasets", "pandas", "sklearn", "transformers", "torch._dynamo")
print([name for name in unused if name in sys.modules])
import torch
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""


@pytest.fixture
def heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package whose import leaves a file, and a module that uses it."""
    package = tmp_path / "heavy"
    package.mkdir()
    (package / "__init__.py").write_text(HEAVY)
    (package / "inner.py").write_text("depth = 2")
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "broken.py").write_text("import heavy\nimport no_such_module")
    (tmp_path / "derived.py").write_text("from heavy import Base\nclass Derived(Base): pass")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = {*sys.modules}
    yield package / "imported"
    for name in {*sys.modules} - before:
        del sys.modules[name]


def imported(name: str) -> ModuleType:
    return importlib.import_module(name)


class TestDeferred:
    def test_nothing_is_imported_until_it_is_used(self, heavy: Path) -> None:
        with deferred("heavy"):
            user = imported("user")
        assert not user.is_base(3)
        assert not heavy.exists()

        assert user.twice(21) == 42
        assert heavy.exists()
        assert user.heavy.limit.__class__ is not int  # The name was taken before the import.

    def test_it_is_the_same_class_afterwards(self, heavy: Path) -> None:
        with deferred("heavy"):
            user = imported("user")

        assert user.is_base(imported("heavy").Base())
        assert user.Base.kind == "real"
        assert not user.is_base(object())
        assert issubclass(imported("heavy").Base, user.Base)
        assert not issubclass(int, user.Base)

    def test_a_base_class_is_imported_at_once(self, heavy: Path) -> None:
        with deferred("heavy"):
            derived = imported("derived")
            assert heavy.exists()

        assert derived.Derived.__mro__[1] is imported("heavy").Base

    def test_the_packages_can_be_imported_by_name_afterwards(self, heavy: Path) -> None:
        with deferred("heavy"):
            imported("user")

        assert imported("heavy.inner").depth == 2
        assert imported("heavy").inner is imported("heavy.inner")

    def test_a_name_that_does_not_exist_is_missed_when_it_is_used(self, heavy: Path) -> None:
        with deferred("heavy"):
            missing = imported("heavy").nothing

        with pytest.raises(ImportError, match="cannot import 'nothing' from 'heavy'"):
            missing()

    def test_a_package_that_is_imported_stays_what_it_is(self, heavy: Path) -> None:
        real = imported("heavy")

        with deferred("heavy"):
            assert imported("user").Base is real.Base
            assert imported("heavy.inner").depth == 2

        assert imported("heavy") is real

    def test_other_threads_import_the_real_module(self, heavy: Path) -> None:
        found: list[ModuleType] = []
        with deferred("heavy"):
            thread = threading.Thread(target=lambda: found.append(imported("heavy")))
            thread.start()
            thread.join()

        assert found[0].limit == 3

    def test_an_error_leaves_no_stand_in(self, heavy: Path) -> None:
        with pytest.raises(ModuleNotFoundError), deferred("heavy"):
            imported("broken")

        assert imported("heavy").limit == 3


def test_recognition_needs_neither_the_compiler_nor_what_evaluates() -> None:
    command = [sys.executable, "-c", RECOGNITION, str(DEMO_MODEL), str(SPEECH / "clip-003.flac")]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}

    words, modules, compiled = output_of(command, folder=ROOT, environ=environ).splitlines()[-3:]

    assert int(words) > 0
    assert modules == "[]"
    assert compiled == "2.0"
