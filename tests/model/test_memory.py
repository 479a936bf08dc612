from __future__ import annotations

from pathlib import Path

import pytest

from parakeet_api.model import memory
from parakeet_api.model.cuda import DeviceMemory
from parakeet_api.model.memory import HostMemory, has_room, host_memory
from parakeet_api.settings import Settings

MEMINFO = "MemTotal:       8000000 kB\nMemFree:  1 kB\nMemAvailable:   5000000 kB\nHuge: 0\n"
MACHINE = HostMemory(available=5_000_000 * 1024, total=8_000_000 * 1024)


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(MEMINFO, encoding="ascii")
    return path


def cgroup(folder: Path, *, limit: str, used: int = 0, files: int = 0) -> Path:
    (folder / "memory.max").write_text(limit, encoding="ascii")
    (folder / "memory.current").write_text(f"{used}\n", encoding="ascii")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\n", encoding="ascii")
    return folder


def test_without_a_limit_it_is_the_machines(tmp_path: Path, meminfo: Path) -> None:
    assert host_memory(meminfo=meminfo, cgroup=tmp_path) == MACHINE
    assert host_memory(meminfo=meminfo, cgroup=cgroup(tmp_path, limit="max\n")) == MACHINE


def test_a_containers_limit_counts_and_files_can_be_given_back(
    tmp_path: Path, meminfo: Path
) -> None:
    limited = cgroup(tmp_path, limit="2000000000\n", used=1_500_000_000, files=400_000_000)

    assert host_memory(meminfo=meminfo, cgroup=limited) == HostMemory(900_000_000, 2_000_000_000)


def test_a_limit_above_what_the_machine_has_changes_nothing(tmp_path: Path, meminfo: Path) -> None:
    assert host_memory(meminfo=meminfo, cgroup=cgroup(tmp_path, limit="9" * 15)) == MACHINE


def test_where_nothing_can_be_read_nothing_is_known(tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.write_text("MemAvailable:\nMemTotal: many kB\n", encoding="ascii")

    assert host_memory(meminfo=odd, cgroup=tmp_path) is None
    assert host_memory(meminfo=tmp_path / "none", cgroup=tmp_path) is None


def test_this_machine_has_memory() -> None:
    known = host_memory()

    assert known is not None
    assert 0 < known.available <= known.total


class TestRoom:
    SIZE = 2_400_000_000

    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        path = tmp_path / "large.nemo"
        with path.open("wb") as file:
            file.truncate(self.SIZE)
        return path

    @pytest.mark.parametrize(("available", "fits"), [(2_940_000_000, True), (2_939_999_999, False)])
    def test_on_a_cpu_a_load_takes_little_more_than_the_weights(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, available: int, fits: bool
    ) -> None:
        monkeypatch.setattr(memory, "host_memory", lambda: HostMemory(available, available))

        assert has_room(checkpoint, "cpu", settings=Settings()) == fits

    def test_what_cannot_be_looked_at_is_no_obstacle(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert has_room(checkpoint.with_name("gone.nemo"), "cpu", settings=Settings())
        monkeypatch.setattr(memory, "host_memory", lambda: None)
        assert has_room(checkpoint, "cpu", settings=Settings())

    @pytest.mark.parametrize(
        ("precision", "permits", "needed"),
        # Weights, 1500 MB for the one pass at a time, 300 MB.
        [("auto", 1, 3_000_000_000), ("fp32", 1, 4_200_000_000), ("fp16", 2, 3_000_000_000)],
    )
    def test_a_gpu_needs_room_for_weights_and_batches(
        self,
        checkpoint: Path,
        monkeypatch: pytest.MonkeyPatch,
        precision: str,
        permits: int,
        needed: int,
    ) -> None:
        settings = Settings.from_env(
            {"PRECISION": precision, "MAX_CONCURRENT_INFERENCES": str(permits)}
        )
        total = 100_000_000_000
        for short, fits in ((0, True), (1, False)):
            used = total - needed + short
            gpu = DeviceMemory(used=used, total=total, allocated=0, reserved=0)
            monkeypatch.setattr(memory, "device_memory", lambda _, gpu=gpu: gpu)
            assert has_room(checkpoint, "cuda:0", settings=settings) == fits

    def test_what_torch_keeps_for_later_is_free_but_not_beyond_our_share(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gb = 1_000_000_000
        gpu = DeviceMemory(used=10 * gb, total=10 * gb, allocated=2 * gb, reserved=6 * gb)
        monkeypatch.setattr(memory, "device_memory", lambda _: gpu)

        assert has_room(checkpoint, "cuda:0", settings=Settings(gpu_memory_fraction=0.95))
        assert not has_room(checkpoint, "cuda:0", settings=Settings(gpu_memory_fraction=0.4))
