"""The benchmarks of a card and of precisions, on a CPU and with a tiny model: that they run."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from benchmarks import cpu, gpu
from benchmarks.full_size import Shape, write_checkpoint
from parakeet_api.card_check import CardReport
from parakeet_api.nemo_model import load_model

TINY = Shape(
    layers=2,
    width=64,
    heads=4,
    subsampling_channels=32,
    mel=64,
    predictor_width=32,
    predictor_layers=2,
    vocabulary=700,
)
EXTENT = gpu.Extent(
    precisions=("bf16",), batches=(1, 2), chunks_s=(2,), rounds=1, loads=2, jobs=2, clips=2
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.nemo"
    write_checkpoint(path, TINY)
    return path


def test_a_checkpoint_of_any_shape_is_one_that_the_service_loads(checkpoint: Path) -> None:
    network = load_model(checkpoint, cpu.options("fp32", 1)).network

    assert len(network.encoder.layers) == 2
    assert network.cfg.preprocessor.features == 64
    assert network.decoder.blank_idx == 700
    assert network.joint.joint_net[-1].out_features == 706


def test_the_same_weights_are_written_each_time(checkpoint: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "again.nemo", TINY)
    first, second = (
        load_model(path, cpu.options("fp32", 1)).network.state_dict()
        for path in (checkpoint, tmp_path / "again.nemo")
    )

    for name, tensor in first.items():
        # Up to rounding: how many threads computed the joint network's share of it may differ.
        torch.testing.assert_close(second[name], tensor, msg=name)


def test_the_cards_report_comes_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    status = gpu.run("cpu", CardReport(), shape=TINY, extent=EXTENT)

    report = capsys.readouterr().out
    assert status == 0
    for part in ("| bf16 | 0.0", "| 2 | 2 s |", "| on |", "| off |", "| 2 | ", "times real time"):
        assert part in report


def test_memory_that_grows_is_a_failure(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = gpu.Bench("cpu", checkpoint, EXTENT)
    looks = itertools.count()
    # Three looks a turn: 99 MB more after the second.
    monkeypatch.setattr(bench, "held_mb", lambda: 33.0 * next(looks))

    rows, grows = bench.loads()

    assert grows
    assert rows[-1] == "| 2 | 99 | 132 | 165 |"


def test_without_a_card_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA card is present")

    assert gpu.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_precisions_are_compared_with_full_precision(checkpoint: Path) -> None:
    rows = cpu.measure(
        checkpoint,
        cpu.recording(),
        precisions=cpu.PRECISIONS,
        chunks_s=(2,),
        rounds=1,
        threads=1,
    )

    errors = {row.precision: row.error for row in rows}
    assert errors["fp32"] == 0
    assert 0 < errors["bf16"] < 0.05
    assert 0 < errors["int8"] < 0.05
    assert cpu.table(rows).count("\n") == 4


def test_permits_are_timed_with_one_and_with_all_cores(checkpoint: Path) -> None:
    assert set(cpu.permits(checkpoint, cpu.recording(), precision="fp32", cores=2, rounds=1)) == {
        1,
        2,
    }
