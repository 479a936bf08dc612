"""What is done around a GPU's memory, on a played one."""

from __future__ import annotations

import threading

import pytest
import torch
from conftest import PATIENCE_S, Clock, wait_until
from fake_gpu import FakeGpu

from parakeet_api.model import cuda
from parakeet_api.model.cuda import (
    CacheTrimmer,
    context_is_lost,
    is_memory_shortage,
    release_cached_memory,
    turn_on,
)


def trimmer(clock: Clock, *, keep_mb: float | None = 1500) -> CacheTrimmer:
    return CacheTrimmer("cuda:0", keep_mb=keep_mb, full_above=0.8, clock=clock)


@pytest.mark.parametrize(
    ("keep_mb", "used", "unused_mb", "emptied"),
    [
        (1500, 0.5, 1600, 1),  # more unused than one pass needs: given back after it
        (1500, 0.5, 1400, 0),
        (None, 0.5, 9999, 0),  # AGGRESSIVE_MEMORY_CLEANUP=false keeps it for speed
        (None, 0.9, 100, 1),  # the GPU is nearly full: given back before the batch
        (None, 0.9, 0, 0),  # nearly full, and nothing there to give back
    ],
)
def test_memory_is_given_back(
    gpu: FakeGpu, keep_mb: float | None, used: float, unused_mb: int, emptied: int
) -> None:
    gpu.used = int(used * gpu.total)
    gpu.reserved = gpu.allocated + unused_mb * 10**6
    memory = trimmer(Clock(), keep_mb=keep_mb)

    memory.before_pass()
    memory.after_pass()
    memory.close()

    assert gpu.emptied == emptied


def test_passes_one_after_the_other_do_not_each_give_memory_back(gpu: FakeGpu) -> None:
    clock = Clock()
    memory = trimmer(clock)
    for _ in range(50):
        memory.before_pass()
        gpu.reserved = gpu.allocated + 2 * 10**9
        memory.after_pass()
        clock.now += 0.5
    memory.close()

    assert gpu.emptied == 3, "25 s of work, once in 10 s"


def test_what_the_last_pass_left_goes_back_without_another(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "_TRIM_EVERY_S", 0.02)
    memory = CacheTrimmer("cuda:0", keep_mb=1500, full_above=0.8)
    for _ in range(2):
        gpu.reserved = gpu.allocated + 2 * 10**9
        memory.after_pass()

    wait_until(lambda: gpu.emptied == 2)
    assert gpu.reserved == gpu.allocated


def test_nothing_is_given_back_once_the_model_is_unloaded(gpu: FakeGpu) -> None:
    clock = Clock()
    memory = trimmer(clock)
    for _ in range(2):
        gpu.reserved = gpu.allocated + 2 * 10**9
        memory.after_pass()
    memory.close()

    timers = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
    wait_until(lambda: not any(timer.is_alive() for timer in timers))
    assert gpu.emptied == 1


def test_one_thread_at_a_time_has_a_gpu(gpu: FakeGpu) -> None:
    together, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal together, most
        for _ in range(200):
            with turn_on("cuda:0"):
                with lock:
                    together += 1
                    most = max(most, together)
                with lock:
                    together -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most == 1


def test_cached_memory_is_released_when_no_other_thread_has_the_gpu(gpu: FakeGpu) -> None:
    """Another thread may be capturing. Only a fake has shown this."""
    gpu.workspaces.append("eager")
    other = threading.Thread(target=release_cached_memory, args=("cuda:0",))
    with turn_on("cuda:0"):
        other.start()
        other.join(0.1)
        assert gpu.emptied == 0
        assert gpu.workspaces
    other.join()

    assert gpu.emptied == 1
    assert not gpu.workspaces


def test_a_gpu_is_not_taken_for_lost_while_another_thread_captures(gpu: FakeGpu) -> None:
    judged = []
    other = threading.Thread(target=lambda: judged.append(context_is_lost("cuda:0")))
    with turn_on("cuda:0"):
        gpu.capturing = True
        other.start()
        other.join(0.1)
        gpu.capturing = False
    other.join()

    assert judged == [False]


def test_a_cpu_takes_several_at_a_time() -> None:
    both = threading.Barrier(2, timeout=PATIENCE_S)

    def work() -> None:
        with turn_on("cpu"):
            both.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not both.broken


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
        ValueError("out of memory"),
    ],
)
def test_other_errors_are_no_shortage(error: Exception) -> None:
    assert not is_memory_shortage(error)
