"""A checkpoint's weights are read from inside its archive, once."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from conftest import DEMO_MODEL, demo_options

from parakeet_api.errors import CheckpointError
from parakeet_api.model.checkpoints import WEIGHTS
from parakeet_api.model.loading import load_model
from parakeet_api.model.restore import import_libraries, restore

import_libraries()

from parakeet_api.model.weights import FilePart, InPlaceConnector  # noqa: E402


@pytest.fixture
def part(tmp_path: Path) -> Iterator[FilePart]:
    """`cdefgh` of a file with `abcdefghij`."""
    (tmp_path / "file").write_bytes(b"abcdefghij")
    with (tmp_path / "file").open("rb") as file:
        yield FilePart(file.fileno(), 2, 6)


def test_a_part_of_a_file_ends_where_it_should(part: FilePart) -> None:
    assert part.read() == b"cdefgh"
    assert part.read(1) == b""


def test_a_part_of_a_file_is_read_from_any_position(part: FilePart) -> None:
    assert part.seek(-2, os.SEEK_END) == 4
    assert part.read(5) == b"gh"
    assert part.seek(1) == 1
    assert part.read(2) == b"de"
    assert part.seek(1, os.SEEK_CUR) == 4
    assert part.tell() == 4
    assert part.seek(9) == 9
    assert part.read(1) == b""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The folder of the demo model's files."""
    with tarfile.open(DEMO_MODEL) as archive:
        archive.extractall(tmp_path / "files", filter="data")
    return tmp_path / "files"


def packed(files: Path, mode: Literal["w", "w:gz"] = "w") -> Path:
    path = files.parent / "packed.nemo"
    with tarfile.open(path, mode) as archive:
        archive.add(files, arcname=".")
    return path


class Watched:
    """What NeMo was given, and what lay in the folder of the unpacked checkpoint meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: set[str] = set()
        self.state: dict[str, torch.Tensor] = {}
        real = InPlaceConnector._load_state_dict_from_disk

        def load(connector: InPlaceConnector, weights: str, map_location: Any = "cpu") -> Any:
            self.files = {file.name for file in Path(weights).parent.iterdir()}
            self.state = real(connector, weights, map_location)
            self.tensors = {name: tensor.data_ptr() for name, tensor in self.state.items()}
            return self.state

        monkeypatch.setattr(InPlaceConnector, "_load_state_dict_from_disk", load)


def test_the_weights_are_neither_unpacked_nor_copied(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_fp32 = {name: t.float() for name, t in torch.load(files / WEIGHTS).items()}
    torch.save(in_fp32, files / WEIGHTS)
    watched = Watched(monkeypatch)

    model, _ = restore(packed(files))

    assert "model_config.yaml" in watched.files
    assert WEIGHTS not in watched.files
    now = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    assert now == watched.tensors


def test_a_cast_leaves_no_weights_in_fp32_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)

    network = load_model(DEMO_MODEL, demo_options(precision="bf16")).network

    assert watched.tensors
    assert watched.state == {}
    assert {p.dtype for p in network.encoder.parameters()} == {torch.bfloat16}


def test_weights_in_half_precision_are_restored_in_fp32(files: Path) -> None:
    state = torch.load(files / WEIGHTS)
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    torch.save(half, files / WEIGHTS)

    model, _ = restore(packed(files))

    assert {p.dtype for p in model.parameters()} == {torch.float32}
    name, parameter = next(iter(model.named_parameters()))
    assert torch.equal(parameter, state[name].half().float())


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_the_number_of_parameters_is_that_of_the_checkpoint(precision: str) -> None:
    exact = load_model(DEMO_MODEL, demo_options()).info.parameters

    assert load_model(DEMO_MODEL, demo_options(precision=precision)).info.parameters == exact


def test_a_compressed_checkpoint_is_restored_too(files: Path) -> None:
    """NeMo compressed its archives before 1.7."""
    model, _ = restore(packed(files, "w:gz"))

    plain, _ = restore(DEMO_MODEL)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_weights_of_another_shape_are_refused(files: Path) -> None:
    state = torch.load(files / WEIGHTS)
    state["encoder.layers.0.norm_out.weight"] = torch.ones(3)
    torch.save(state, files / WEIGHTS)

    with pytest.raises(CheckpointError, match=r"packed\.nemo cannot be loaded"):
        restore(packed(files))
