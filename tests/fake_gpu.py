"""A simulated GPU on the CPU.

Tensors for `cuda:0` live in main memory. Captured work is recorded operation by operation and run
again into the same tensors, as a CUDA graph does, and what CUDA refuses during a capture is refused
here. Faults are those that were measured on an H200: memory that a decoder's graph writes outside a
pool of its own is unmapped by `empty_cache`, the replay after it ends in an illegal memory access,
and from then on every call reports that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from parakeet_api.model.restore import import_libraries

ILLEGAL_ACCESS = "CUDA error: an illegal memory access was encountered"
REFUSED_WHILE_CAPTURING = frozenset(
    {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::lift_fresh"}
)
"""They wait for the GPU, or, as `torch.tensor` of numbers does, copy from memory that may move."""

ONLY_SHAPES = frozenset({"aten::unsqueeze_", "aten::squeeze_", "aten::transpose_", "aten::t_"})
"""They change no memory."""


class FakeGpu:
    """A stand-in for torch.cuda: one GPU of 10 GB, of which half is free."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.total, self.used, self.reserved, self.allocated = 10**10, 5 * 10**9, 10**9, 10**9
        self.lost = False
        self.emptied = 0
        """How often unused memory was given back."""
        self.workspaces: list[str] = []
        """Workspaces of cuBLAS that torch keeps, by the work that allocated them."""
        self.capturing = False
        self.allocates_in_graph = False
        """Whether torch's allocator counts a capture as active."""
        self.aborted = False
        """Whether torch would have aborted the process."""
        self.pools = 0
        """Pools that are in use by the code that runs now."""
        self.decoder_graphs: dict[int, str] = {}
        """By NeMo's computer, whose memory its graphs write: `own`, `foreign` or `unmapped`."""
        self.captures: list[tuple[int, ...]] = []
        """(rows, frames) of each capture of a decoder, (rows, samples) of each of an encoder."""
        self.fail_captures: Exception | None = None
        self.launch: Callable[[], None] = lambda: None
        """Called before each replay."""
        self._patch(monkeypatch)

    def check(self) -> None:
        """Raise what a lost GPU answers to everything."""
        if self.lost:
            raise torch.AcceleratorError(ILLEGAL_ACCESS)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Create this thread's GPU tensors in main memory."""
        with _InMainMemory():
            yield

    def empty_cache(self) -> None:
        """Return unused memory back: what foreign graphs write is among it."""
        self.check()
        self.emptied += 1
        self.reserved = self.allocated
        for computer, owner in self.decoder_graphs.items():
            if owner == "foreign":
                self.decoder_graphs[computer] = "unmapped"

    def _patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fakes: dict[str, Any] = {
            "is_available": lambda: True,
            "current_device": lambda: 0,
            "is_bf16_supported": lambda **_: True,
            "is_current_stream_capturing": lambda: self.capturing,
            "mem_get_info": lambda _=None: self._answer((self.total - self.used, self.total)),
            "memory_reserved": lambda _=None: self._answer(self.reserved),
            "memory_allocated": lambda _=None: self._answer(self.allocated),
            "set_per_process_memory_fraction": lambda *_: self.check(),
            "synchronize": lambda _=None: self._synchronize(),
            "empty_cache": self.empty_cache,
            "device": lambda _: contextlib.nullcontext(),
            "Stream": lambda _=None: object(),
            "stream": lambda _: contextlib.nullcontext(),
            "graph_pool_handle": object,
            "CUDAGraph": lambda: _Graph(self),
            "graph": self._capture,
            "MemPool": lambda: _MemPool(self),
            "use_mem_pool": self._use_mem_pool,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        # Absent from a torch without CUDA.
        monkeypatch.setattr(
            torch._C, "_cuda_clearCublasWorkspaces", self.workspaces.clear, raising=False
        )
        monkeypatch.setattr(
            torch._C, "_cuda_endAllocateToPool", self._end_allocation, raising=False
        )
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *_: None, raising=False)
        self._patch_token_decoder(monkeypatch)

    def _patch_token_decoder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make NeMo's TDT decoder take the code path of CUDA graphs, on its graphs' buffers."""
        import_libraries()
        from nemo.collections.asr.parts.submodules.transducer_decoding import tdt_label_looping

        computer: Any = tdt_label_looping.GreedyBatchedTDTLabelLoopingComputer
        reinitialize = computer._graph_reinitialize

        def enable(it: Any) -> bool:
            it.force_cuda_graphs_mode("no_graphs")
            return True

        def call(it: Any, x: Any, out_len: Any, **_: Any) -> Any:
            self.check()
            run = it.torch_impl if it.cuda_graphs_mode is None else it.cuda_graphs_impl
            return run(encoder_output=x, encoder_output_length=out_len)

        def capture(it: Any, encoded: Any) -> None:
            if self.fail_captures is not None:
                raise self.fail_captures
            reinitialize(it, encoded)
            self.workspaces.append("decoder")
            self.captures.append((it.state.batch_size, it.state.max_time))
            self.decoder_graphs[id(it)] = "own" if self.pools else "foreign"

        def begin(it: Any, *args: Any, **kwargs: Any) -> None:
            self.launch()
            if self.decoder_graphs.get(id(it)) == "unmapped":
                self.lost = True
            self.check()
            begin_decoding(it, *args, **kwargs)

        begin_decoding = computer._init_decoding_state
        monkeypatch.setattr(computer, "maybe_enable_cuda_graphs", enable)
        monkeypatch.setattr(computer, "__call__", call)
        monkeypatch.setattr(computer, "_graph_reinitialize", capture)
        monkeypatch.setattr(computer, "_init_decoding_state", begin)

    def _end_allocation(self, *_: object) -> None:
        if not self.allocates_in_graph:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.allocates_in_graph = False

    def _synchronize(self) -> None:
        self.check()
        if self.capturing:
            raise torch.AcceleratorError("CUDA error: operation not permitted during capture")

    def _answer(self, value: Any) -> Any:
        self.check()
        return value

    @contextlib.contextmanager
    def _use_mem_pool(self, _pool: object, _device: object = None) -> Iterator[None]:
        self.pools += 1
        try:
            yield
        finally:
            self.pools -= 1

    @contextlib.contextmanager
    def _capture(self, graph: _Graph, **_: object) -> Iterator[None]:
        if self.fail_captures is not None:
            raise self.fail_captures
        # As torch.cuda.graph does.
        self.empty_cache()
        self.capturing = self.allocates_in_graph = True
        try:
            with graph.recorder:
                yield
        finally:
            self.capturing = False
        # torch does not come to this if CUDA has invalidated the capture.
        self._end_allocation()
        self.captures.append(graph.recorder.shape())
        self.workspaces.append("encoder")


class _MemPool:
    """A pool of graphs, whose memory is freed with it."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu

    def __del__(self) -> None:
        # torch's destructor throws what the GPU answers, and C++ ends the process.
        self._gpu.aborted = self._gpu.aborted or self._gpu.lost


class _Graph:
    """Operations of a capture, which are run again into the memory that they had written."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu
        self.recorder = _Recorder()

    def replay(self) -> None:
        self._gpu.launch()
        self._gpu.check()
        with torch.inference_mode():
            self.recorder.run_again()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in REFUSED_WHILE_CAPTURING:
            raise torch.AcceleratorError("CUDA error: operation not permitted during capture")
        result = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, result))
        return result

    def shape(self) -> tuple[int, ...]:
        """Return the shape of the first tensor that was read."""
        return tuple(self._calls[0][1][0].shape)

    def run_again(self) -> None:
        for func, args, kwargs, output in self._calls:
            if func._schema.name in ONLY_SHAPES:
                continue
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(output), _tensors(again), strict=True):
                # Else it is a view, or was written in place.
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new.view(old.shape))


def _tensors(results: Any) -> list[torch.Tensor]:
    several = results if isinstance(results, (tuple, list)) else [results]
    return [result for result in several if isinstance(result, torch.Tensor)]


class _InMainMemory(TorchFunctionMode):
    """Create a GPU tensor in main memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cpu_kwargs = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        if cpu_kwargs.get("pin_memory"):
            cpu_kwargs["pin_memory"] = False
        return func(*map(_on_cpu, args), **cpu_kwargs)


def _on_cpu(value: Any) -> Any:
    is_gpu = isinstance(value, (str, torch.device)) and str(value).startswith("cuda")
    return torch.device("cpu") if is_gpu else value


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """Return a GPU for one test, whose tensors are those of the test's own thread."""
    played = FakeGpu(monkeypatch)
    with played.active():
        yield played
