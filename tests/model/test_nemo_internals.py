"""What is done to torch's and NeMo's insides, and that they are still as the service knows them."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from conftest import DEMO_MODEL, ROOT, demo_options

from parakeet_api.model import nemo_internals
from parakeet_api.model.loading import load_model
from parakeet_api.model.nemo_internals import (
    avoid_convolution_plans,
    mend_conditional_nodes,
    mend_kernel_compilation,
    share_fourier_plans,
)
from parakeet_api.model.restore import import_libraries

COMPILE = """
import sys
import torch
{prepare}
from nemo.core.utils import cuda_python_utils

# All that is played: loading the code into a driver, which needs a GPU.
class Driver:
    CUresult = cuda_python_utils.cuda.CUresult
    CUDA_SUCCESS = CUresult.CUDA_SUCCESS
    @staticmethod
    def cuModuleLoadData(address): return Driver.CUDA_SUCCESS, 1
    @staticmethod
    def cuModuleGetFunction(module, name): return Driver.CUDA_SUCCESS, name

cuda_python_utils.cuda = Driver
import cuda.bindings
cuda.bindings.driver = Driver
sys.modules["cuda.bindings.driver"] = Driver
import nemo.collections.asr.parts.submodules.transducer_decoding.tdt_label_looping as looping
computer = looping.GreedyBatchedTDTLabelLoopingComputer
kernel = computer._create_outer_while_loop_kernel()
assert kernel == b"outer_label_looping_conditional", kernel
print(bytes([32]), "a b".encode()[1:2], sep="|")
"""
MENDED = """
from parakeet_api.model.restore import import_libraries
import_libraries()
"""
LOAD = """
from pathlib import Path
from parakeet_api.model.loading import ModelOptions, load_model
options = ModelOptions(device="cpu", precision="fp32", strategy="greedy", beam_size=4, longest_s=30)
print(load_model(Path(sys.argv[1]), options).info.parameters)
"""


def compile_in_new_process(tmp_path: Path, program: str) -> str:
    """Run a program with NeMo compiled from source, as if no `.pyc` could be stored."""
    environ = os.environ | {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(DEMO_MODEL)],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="cuda-python is for Linux")
def test_compiling_a_kernel_leaves_spaces_intact_and_checkpoints_loadable(tmp_path: Path) -> None:
    output = compile_in_new_process(tmp_path, COMPILE.format(prepare=MENDED) + LOAD)

    assert output.splitlines() == ["b' '|b' '", "2867326"]


@pytest.mark.skipif(sys.platform != "linux", reason="cuda-python is for Linux")
def test_nemo_alone_would_make_every_space_a_zero_byte(tmp_path: Path) -> None:
    """The reason for the patch (NeMo issue 15423); once this fails, it may be removed."""
    output = compile_in_new_process(tmp_path, COMPILE.format(prepare="import nemo.collections.asr"))

    assert output.splitlines() == [r"b'\x00'|b'\x00'"]


@pytest.mark.parametrize("name", ["run_nvrtc", "with_conditional_node"])
def test_every_module_of_nemo_captures_as_patched(name: str) -> None:
    import_libraries()
    mend_kernel_compilation()
    mend_conditional_nodes()
    from nemo.core.utils import cuda_python_utils

    holders = [
        module
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("nemo.") and name in vars(module)
    ]
    assert cuda_python_utils in holders
    assert len(holders) >= 5
    for module in holders:
        assert vars(module)[name].__module__ == nemo_internals.__name__, module.__name__


def test_a_loop_that_fails_while_it_is_captured_leaves_no_capture_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NeMo's own code; CUDA and its streams are fakes, and no GPU has shown this."""
    import_libraries()
    mend_conditional_nodes()
    from nemo.core.utils import cuda_python_utils

    cuda = MagicMock()
    cuda.cuCtxGetCurrent.return_value = cuda.cuGraphAddNode.return_value = (0, "made")
    cuda.cudaError_t.cudaSuccess = 0
    active = cuda.cudaStreamCaptureStatus.cudaStreamCaptureStatusActive
    cuda.cudaStreamGetCaptureInfo.return_value = (0, active, 1, "graph", [])
    cuda.cudaStreamUpdateCaptureDependencies.return_value = (0,)
    cuda.cudaStreamBeginCaptureToGraph.return_value = (0,)
    monkeypatch.setattr(cuda_python_utils, "cuda", cuda)
    monkeypatch.setattr(cuda_python_utils, "cudart", cuda)
    monkeypatch.setattr("cuda.bindings.runtime.cudaStreamEndCapture", cuda.cudaStreamEndCapture)
    outer, body = MagicMock(), MagicMock()
    streams = [outer]
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: body)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)

    def capture() -> None:
        with cuda_python_utils.with_conditional_node("kernel", MagicMock(), "handle", device=0):
            assert streams[-1] is body
            raise torch.cuda.OutOfMemoryError

    with pytest.raises(torch.cuda.OutOfMemoryError):
        capture()

    assert streams[-1] is outer
    cuda.cudaStreamEndCapture.assert_called_once_with(body.cuda_stream)


def test_batches_of_all_shapes_share_few_fourier_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    preprocessor = load_model(DEMO_MODEL, demo_options()).network.preprocessor
    generator = torch.Generator().manual_seed(0)
    batches = [
        torch.randn(rows, samples, generator=generator)
        for rows in (1, 2, 5, 8)
        for samples in range(320, 40_000, 1_111)
    ]
    lengths = [torch.tensor([len(batch[0])] * len(batch)) for batch in batches]
    expected = [
        preprocessor(input_signal=batch, length=length)[0]
        for batch, length in zip(batches, lengths, strict=True)
    ]
    planned = set()
    transform = torch.fft.rfft

    def noted(windows: torch.Tensor) -> Any:
        planned.add(windows.shape)
        return transform(windows)

    monkeypatch.setattr(torch.fft, "rfft", noted)
    share_fourier_plans(preprocessor)

    for batch, length, features in zip(batches, lengths, expected, strict=True):
        torch.testing.assert_close(
            preprocessor(input_signal=batch, length=length)[0], features, rtol=0, atol=1e-5
        )
    assert len(planned) < len(batches) / 2


def test_an_encoder_without_convolution_plans_gives_the_same_output() -> None:
    network = load_model(DEMO_MODEL, demo_options()).network
    mels = network.cfg.preprocessor.features
    features = torch.randn(3, mels, 200, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([200, 150, 30])
    with torch.inference_mode():
        expected, _ = network.encoder(audio_signal=features, length=lengths)
        avoid_convolution_plans(network.encoder)
        given, _ = network.encoder(audio_signal=features, length=lengths)

    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["points", "points 2d", "depthwise", "strided"])
def test_no_convolution_asks_cudnn(kind: str, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    convolution, waves = {
        "points": (torch.nn.Conv1d(6, 8, 1, bias=bias), torch.randn(2, 6, 11)),
        "points 2d": (torch.nn.Conv2d(6, 8, 1, bias=bias), torch.randn(2, 6, 5, 7)),
        "depthwise": (torch.nn.Conv1d(6, 6, 9, groups=6, bias=bias), torch.randn(2, 6, 20)),
        "strided": (torch.nn.Conv2d(1, 8, 3, 2, 1, bias=bias), torch.randn(2, 1, 9, 8)),
    }[kind]
    expected = convolution(waves)

    avoid_convolution_plans(convolution)
    # What would choose cuDNN on a GPU.
    monkeypatch.setattr(torch.nn.functional, "conv1d", None)
    monkeypatch.setattr(torch.nn.functional, "conv2d", None)

    torch.testing.assert_close(convolution(waves), expected)


def test_torch_convolves_with_the_arguments_that_are_passed() -> None:
    """The order of `torch._convolution`: the last but one is whether cuDNN may."""
    schema = torch.ops.aten._convolution.default._schema

    assert [argument.name for argument in schema.arguments][-4:] == [
        "benchmark",
        "deterministic",
        "cudnn_enabled",
        "allow_tf32",
    ]


def test_nemo_still_has_what_the_service_relies_on() -> None:
    network = load_model(DEMO_MODEL, demo_options()).network
    computer = load_model(DEMO_MODEL, demo_options()).decoder.nemo.decoding.decoding_computer

    for name in nemo_internals._RANDOM_INITS:
        assert callable(getattr(torch.nn.init, name))
    for layer in network.encoder.layers:
        assert layer.self_attn.use_pytorch_sdpa is True
    assert {"length", "device", "dtype"} <= set(
        inspect.signature(network.encoder.pos_enc.extend_pe).parameters
    )
    assert callable(network.joint.joint_after_projection)
    assert computer.INITIAL_MAX_TIME == 375
    assert hasattr(computer, "cuda_graphs_mode")
    assert {"x", "out_len"} <= set(inspect.signature(computer.__call__).parameters)
    assert callable(torch.cuda.MemPool)
    assert callable(torch.cuda.use_mem_pool)
