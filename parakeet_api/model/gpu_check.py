"""Test a GPU: `python -m parakeet_api.model.gpu_check cuda:0` prints a report as JSON.

It runs in a separate process, so that the serving process does not use the GPU until it loads a
model.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SIZE = 256
"""Rows and columns of the test matrices: large enough for cuBLAS to use tensor cores."""
_TOLERANCE = 0.05
"""Relative error; fp16 measures 0.0003."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """The result of testing a GPU."""

    error: str | None = None
    """Why no kernel ran: the message of torch or the driver; `None` = a kernel ran."""
    name: str = ""
    total_bytes: int = 0
    free_bytes: int = 0
    """Not counting this check's CUDA context, which is as large as the service's will be."""
    capability: str = ""
    """The GPU's, as torch names it: `sm_89`."""
    architectures: tuple[str, ...] = ()
    """Those for which this torch has kernels; empty if it was built for CPUs."""
    cuda: str | None = None
    """The CUDA version that this torch was built with: `13.0`."""
    driver: str | None = None
    """`580.65.06`, if the system reports it."""

    @classmethod
    def from_json(cls, text: str) -> GpuReport:
        """Parse the output of `python -m parakeet_api.model.gpu_check`.

        Raises `ValueError` or `TypeError` if it is not a report.
        """
        fields = json.loads(text)
        return cls(**(fields | {"architectures": tuple(fields["architectures"])}))


def check_gpu(device: str) -> GpuReport:
    """Run kernels on a GPU; errors are part of the report."""
    import torch

    report = GpuReport(
        architectures=tuple(torch.cuda.get_arch_list()),
        cuda=torch.version.cuda,
        driver=_driver_version(),
    )
    try:
        properties = torch.cuda.get_device_properties(device)
        report = dataclasses.replace(
            report,
            name=properties.name,
            total_bytes=properties.total_memory,
            capability=f"sm_{properties.major}{properties.minor}",
        )
        free, total = torch.cuda.mem_get_info(device)
        report = dataclasses.replace(report, total_bytes=total, free_bytes=free)
        error = max(_product_error(device, dtype) for dtype in (torch.float16, torch.float32))
        torch.cuda.synchronize(device)
    # torch raises an AssertionError if it was built without CUDA; everything else is a
    # RuntimeError of torch or of a library that it calls.
    except (RuntimeError, AssertionError) as failure:
        reason = str(failure).strip() or type(failure).__name__
        return dataclasses.replace(report, error=reason.splitlines()[0])
    if not error < _TOLERANCE:
        return dataclasses.replace(report, error=f"a matrix product is wrong by {error:.2f}")
    return report


def _product_error(device: str, dtype: torch.dtype) -> float:
    """Multiply two matrices on the GPU; return the relative error against the CPU's product."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, _SIZE, _SIZE, generator=generator)
    product = left.to(device, dtype) @ right.to(device, dtype)
    expected = left @ right
    return float((product.float().cpu() - expected).norm() / expected.norm())


def _driver_version() -> str | None:
    """Read NVIDIA's version number of the driver, by which it is installed."""
    try:
        line = Path("/proc/driver/nvidia/version").read_text(encoding="ascii").splitlines()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        return None
    # The line has words about the system, the version, and the build date.
    return next((word for word in line.split() if word[0].isdigit() and "." in word), None)


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(check_gpu(sys.argv[1]))))
