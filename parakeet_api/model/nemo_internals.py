"""The private interfaces of torch and NeMo that the service uses, each with its reason.

They are all in this module, so that only it must be reviewed when either package is updated
(`tests/model/test_nemo_internals.py` checks that the names still exist). torch and NeMo are
imported inside functions.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from parakeet_api.model.deferred_imports import deferred

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor

_RANDOM_INITS = (
    *("uniform_", "normal_", "trunc_normal_", "orthogonal_", "sparse_"),
    *("xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"),
)
"""The functions of torch.nn.init whose values a checkpoint overwrites."""


@contextlib.contextmanager
def no_random_init() -> Iterator[None]:
    """Skip random weight initialisation: 10 s for 0.6 B parameters that are then overwritten."""
    from torch.nn import init

    originals = {name: getattr(init, name) for name in _RANDOM_INITS}
    try:
        for name in originals:
            setattr(init, name, lambda tensor, *_args, **_kwargs: tensor)
        yield
    finally:
        for name, original in originals.items():
            setattr(init, name, original)


_NAME_THE_COMPILER = (
    "lightning.fabric.wrappers",
    "lightning.pytorch.utilities.compile",
    "pytorch_lightning.utilities.compile",
)


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Import lightning and NeMo without torch's compiler, which takes 3 s and 120 MB.

    They name one of its classes, exempt two methods of training from it, and compile a function of
    an encoder that no Parakeet has; that one is compiled when it is called.
    """
    import torch

    # mypy knows `compile` as the function that it is.
    patched: Any = torch
    compile_now, disable = torch.compile, torch.compiler.disable
    try:
        patched.compiler.disable = lambda function, *_args, **_options: function
        with deferred("torch._dynamo"):
            for module in _NAME_THE_COMPILER:
                # Without one, of another version, this only saves less.
                with contextlib.suppress(ModuleNotFoundError):
                    importlib.import_module(module)
        # After lightning, which replaces it too.
        patched.compile = functools.partial(_compile_when_called, compile_now)
        yield
    finally:
        patched.compile, patched.compiler.disable = compile_now, disable


def _compile_when_called(
    compile_now: Callable[..., Callable[..., Any]], function: Callable[..., Any], **options: Any
) -> Callable[..., Any]:
    @functools.cache
    def compiled() -> Callable[..., Any]:
        return compile_now(function, **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return call


def mend_kernel_compilation() -> None:
    """Replace NeMo's `run_nvrtc`, which corrupts this process' memory.

    NeMo's function lets the compiler write its log, a single zero byte, into `b" " * 1`. If that
    module was compiled in this process instead of being read from a `.pyc`, the constant is
    CPython's shared object for that byte: from then on every `b" "` in the process is a zero byte,
    and `torch.load` fails for every later checkpoint (NeMo issue 15423).
    """
    from nemo.core.utils import cuda_python_utils

    _replace_everywhere(cuda_python_utils.run_nvrtc, compile_kernel)


def mend_conditional_nodes() -> None:
    """Replace NeMo's `with_conditional_node`, which leaves its capture open if the body fails.

    The body's stream then remains the current one. torch refuses to end the outer capture on it,
    counts that capture as active for ever, and aborts the process when the graphs' pool is
    released. So a lack of memory in a loop's body would look like a lost GPU.
    """
    from nemo.core.utils import cuda_python_utils

    faulty = cuda_python_utils.with_conditional_node
    if faulty.__module__ == __name__:
        return

    @contextlib.contextmanager
    def conditional_node(kernel: Any, args: Any, handle: Any, device: Any) -> Iterator[Any]:
        import torch
        from cuda.bindings import runtime

        outer_stream = torch.cuda.current_stream(device)
        with faulty(kernel, args, handle, device) as (stream, graph):
            try:
                yield stream, graph
            except BaseException:
                # Its error is of no interest: the first one is raised.
                runtime.cudaStreamEndCapture(stream.cuda_stream)
                torch.cuda.set_stream(outer_stream)
                raise

    _replace_everywhere(faulty, conditional_node)


def _replace_everywhere(faulty: Callable[..., Any], mended: Callable[..., Any]) -> None:
    """Replace a function of NeMo, also in modules that imported it by name."""
    if faulty is mended:
        return
    name = faulty.__name__
    for module in list(sys.modules.values()):
        if isinstance(module, types.ModuleType) and vars(module).get(name) is faulty:
            setattr(module, name, mended)


def compile_kernel(kernel_string: str, kernel_name: bytes, program_name: bytes) -> Any:
    """Compile a CUDA kernel like NeMo's `run_nvrtc`, but write into a private buffer.

    Raises NeMo's `NeMoCUDAPythonException`, on which it falls back to graphs without loops.
    """
    from cuda.bindings import driver, nvrtc
    from nemo.core.utils.cuda_python_utils import assert_drv

    error, program = nvrtc.nvrtcCreateProgram(kernel_string.encode(), program_name, 0, [], [])
    assert_drv(error)
    (error,) = nvrtc.nvrtcCompileProgram(program, 0, [])
    assert_drv(error)
    error, size = nvrtc.nvrtcGetPTXSize(program)
    assert_drv(error)
    # One extra byte: `bytes` of length 0 and 1 are shared by the whole process.
    code = bytes(size + 1)
    (error,) = nvrtc.nvrtcGetPTX(program, code)
    assert_drv(error)
    error, module = driver.cuModuleLoadData(np.frombuffer(code, np.uint8).ctypes.data)
    assert_drv(error)
    error, kernel = driver.cuModuleGetFunction(module, kernel_name)
    assert_drv(error)
    return kernel


@contextlib.contextmanager
def own_workspaces() -> Iterator[None]:
    """Let what is captured in the block allocate workspaces of cuBLAS in the graphs' own pool.

    torch keeps a workspace for each thread and stream, 32 MB on newer GPUs. It releases those of a
    graph's stream with the graph, also where another graph uses them, since streams are reused; but
    never those of NeMo's loops, whose streams it does not know: they would keep the memory of each
    pool. For a thread that has the GPU.
    """
    release_workspaces()
    try:
        yield
    finally:
        release_workspaces()


@contextlib.contextmanager
def ending_allocation_in(pool: Any) -> Iterator[None]:
    """End allocation in a graphs' pool if the capture in the block fails.

    torch does so only if CUDA has not invalidated the capture. Else it counts the capture as active
    for ever, and from then on releases no cached memory, not even in a shortage.
    """
    import torch

    try:
        yield
    except BaseException:
        # Raised by the allocator if torch has done so.
        with contextlib.suppress(RuntimeError):
            device = torch.cuda.current_device()
            torch._C._cuda_endAllocateToPool(device, pool)  # noqa: SLF001
            torch._C._cuda_releasePool(device, pool)  # noqa: SLF001
        raise


def release_workspaces() -> None:
    """Release cuBLAS' workspaces; for a thread that has the GPU, as others may be using them."""
    import torch

    torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001


def use_fused_attention(encoder: Any) -> None:
    """Compute attention in one kernel if torch has one; the error is 7e-8 in fp32."""
    for layer in encoder.layers:
        # Not for local attention: its class inherits the flag but ignores it.
        if layer.self_attention_model == "rel_pos" and hasattr(layer.self_attn, "use_pytorch_sdpa"):
            layer.self_attn.use_pytorch_sdpa = True


def extend_positions(encoder: Any, frames: int, dtype: torch.dtype) -> None:
    """Resize the encoder's table of positions; NeMo does so while encoding, where threads race."""
    parameter = next(encoder.pre_encode.parameters())
    encoder.pos_enc.extend_pe(frames, parameter.device, dtype)
    # NeMo would size it by mel frames, eight times too many: 1.1 GB for 24 minutes.
    encoder.max_audio_length = 2**40


def sortformer_step(
    model: Any, state: Any, features: Tensor, context: tuple[int, int]
) -> tuple[Any, Tensor]:
    """Run one step of NeMo's streaming Sortformer, as its `forward_streaming` does.

    `features` (1, mel, T) are a chunk between `context` mel frames on its left and right. Returns
    the state after it and the chunk's probabilities (1, frames, speakers). NeMo changes the state
    it is given, so it gets a copy.
    """
    import torch

    left, right = context
    speakers = model.sortformer_modules.n_spk
    return model.forward_streaming_step(  # type: ignore[no-any-return]
        processed_signal=features.transpose(1, 2),
        processed_signal_length=torch.tensor([features.shape[2]], device=features.device),
        streaming_state=copy.copy(state),
        total_preds=features.new_zeros(1, 0, speakers),
        left_offset=left,
        right_offset=right,
    )


def float_dtype(module: Any) -> torch.dtype:
    """Return the type of a module's weights; int8 modules compute in fp32."""
    import torch

    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter.dtype  # type: ignore[no-any-return]
    return torch.float32


def share_fourier_plans(preprocessor: Any) -> None:
    """Let batches of many shapes share the plans of their Fourier transforms on a GPU.

    cuFFT needs a plan for each number of windows, which takes GPU memory outside of torch's. torch
    keeps 4,096 and then destroys the one whose last call is longest ago, first those of CUDA
    graphs, whose replays are no calls; a large GPU has 7,000 shapes of batches.
    """
    from nemo.collections.asr.parts.preprocessing.features import FilterbankFeatures

    featurizer = getattr(preprocessor, "featurizer", None)
    if isinstance(featurizer, FilterbankFeatures):
        featurizer.stft = types.MethodType(_spectra, featurizer)


def _spectra(featurizer: Any, waves: Tensor) -> Tensor:
    """Transform waves (B, samples) as NeMo's featurizer does, to complex (B, bins, windows)."""
    import torch
    from torch.nn import functional

    size, missing = featurizer.n_fft, featurizer.n_fft - featurizer.win_length
    if not featurizer.exact_pad:
        waves = functional.pad(waves, (size // 2, size // 2))
    taper = functional.pad(featurizer.window.float(), (missing // 2, missing - missing // 2))
    windows = waves.unfold(1, size, featurizer.hop_length)
    rows, each, _ = windows.shape
    count = rows * each
    # Eight numbers of windows for each power of two; what is in the others does not matter.
    step = 1 << max(0, count.bit_length() - 4)
    tapered = waves.new_empty(-(-count // step) * step, size)
    torch.mul(windows, taper, out=tapered[:count].view(rows, each, size))
    spectra: Tensor = torch.fft.rfft(tapered)[:count]
    return spectra.view(rows, each, -1).transpose(1, 2)


def avoid_convolution_plans(encoder: Any) -> None:
    """Make an encoder on a GPU convolve without cuDNN, which builds a plan for every new shape.

    A pass of a new length took 430 to 910 ms with cuDNN and 120 ms without; later passes of the
    same length are as fast. Without cuDNN torch loops over the rows of a batch for all but
    depthwise convolutions, so pointwise convolutions are computed as matrix products.
    """
    import torch

    for module in encoder.modules():
        if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d)):
            convolve = _convolve_points if _is_pointwise(module) else _convolve_without_cudnn
            module._conv_forward = types.MethodType(  # type: ignore[method-assign]  # noqa: SLF001
                convolve, module
            )


def _is_pointwise(convolution: Any) -> bool:
    return (
        set(convolution.kernel_size) == {1}
        and set(convolution.stride) == {1}
        and set(convolution.padding) == {0}
        and convolution.groups == 1
    )


def _convolve_points(_: Any, waves: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve (B, C, ...) with a kernel of one point: for each row, (O, C) times (C, points)."""
    import torch

    rows, _channels, *points = waves.shape
    matrices = weight.flatten(1).expand(rows, -1, -1)
    products = torch.bmm(matrices, waves.flatten(2))
    if bias is not None:
        products += bias[:, None]
    return products.view(rows, -1, *points)


def _convolve_without_cudnn(
    convolution: Any, waves: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Convolve with torch's own kernels; the flag in `torch.backends` would affect all threads."""
    import torch

    convolved: Tensor = torch._convolution(  # noqa: SLF001
        waves,
        weight,
        bias,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        False,
        [0] * len(convolution.stride),
        convolution.groups,
        False,
        False,
        False,
        True,
    )
    return convolved
