"""The program of `make gpu`: runs the sections, most in their own process, and reports."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path

import torch

import benchmarks.gpu
from benchmarks.fidelity import ROOT
from benchmarks.gpu import Bench, Extent
from benchmarks.gpu.children import Child, Outcomes, Schedule, findings
from benchmarks.gpu.report import Report
from benchmarks.gpu.sections import DRY_EXTENT, Section, sections
from parakeet_api.model.devices import advice, available_cores
from parakeet_api.model.gpu_check import GpuReport
from parakeet_api.model.restore import import_libraries

LIMIT_S = 460.0
"""Time limit of the whole program on a GPU; sections that do not fit are not measured."""
_MAX_WORKERS = 6
"""Processes at the same time, of those that may be."""
_WORKER_GB = 3.0
"""GPU memory that each of them may need."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; give the process' exit status.

    1 = something is wrong, 2 = there is no GPU that can be used.
    """
    options = _parse(arguments)
    options.device = "cpu" if options.dry_run else options.device
    if options.section:
        return run_sections(options)
    gpu = GpuReport() if options.dry_run else _look_at(options.device)
    if gpu.error is not None:
        print(f"{options.device} cannot be used: {advice(gpu)}", file=sys.stderr)
        return 2
    return run(options, gpu)


def run(options: argparse.Namespace, gpu: GpuReport) -> int:
    """Run all sections and tell the report as it grows; give the process' exit status."""
    order = sections(dry_run=options.dry_run)
    started = time.monotonic()
    paper = _Paper(options.output)
    paper.write(headline(gpu, dry_run=options.dry_run))
    with tempfile.TemporaryDirectory(prefix="gpu-benchmark-") as name:
        folder = Path(name)
        given = ["--checkpoint", str(options.checkpoint or folder / "random.nemo")]
        given += ["--dry-run"] if options.dry_run else ["--device", options.device]
        schedule = Schedule(
            _groups(order, dry_run=options.dry_run),
            lambda group: Child(group, options=given, folder=folder),
            workers=_workers(gpu),
            limit_s=None if options.dry_run else LIMIT_S,
        )
        outcomes = _told_in_order(schedule.run(), order, paper)
    paper.write(summary(outcomes, time.monotonic() - started))
    return 1 if any(report.failures for report in outcomes.values()) else 0


def run_sections(options: argparse.Namespace) -> int:
    """Run some sections in this process; give its exit status."""
    import_libraries()
    figures: dict[str, float] = {}
    if options.findings is not None:
        line = sys.stdin.readline()
        if not line:
            # The parent no longer waits for it.
            return 1
        figures = json.loads(line)
    failed = False
    by_name = {section.name: section for section in sections(dry_run=options.dry_run)}
    with tempfile.TemporaryDirectory(prefix="gpu-benchmark-") as name:
        checkpoint = options.checkpoint or Path(name) / "random.nemo"
        bench = Bench(options.device, checkpoint, DRY_EXTENT if options.dry_run else Extent())
        for section in [by_name[name] for name in options.section]:
            if not section.is_check and not checkpoint.exists():
                by_name["checkpoint"].run(bench, Report())
            file = options.findings and findings(options.findings, section)
            report = Report(figures=figures, file=file)
            _run(section, bench, report)
            print("\n".join(report_lines([section], {section: report})), end="\n\n", flush=True)
            figures = report.figures
            failed = failed or bool(report.failures)
    return 1 if failed else 0


def _run(section: Section, bench: Bench, report: Report) -> None:
    started = time.monotonic()
    try:
        section.run(bench, report)
    # Process boundary: an error of a section is reported, and stops no other section.
    except Exception as error:
        traceback.print_exc()
        reason = str(error).strip().partition("\n")[0] or str(error.__cause__)
        report.check(False, f"{type(error).__name__}: {reason}")
    report.end(time.monotonic() - started)


class _Paper:
    """The report, printed and kept in a file as it grows."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._text = ""

    def write(self, lines: Iterable[str]) -> None:
        text = "\n".join(lines) + "\n\n"
        print(text, end="", flush=True)
        self._text += text
        if self._file is not None:
            self._file.write_text(self._text.rstrip() + "\n", encoding="utf-8")


def _groups(order: Sequence[Section], *, dry_run: bool) -> list[list[Section]]:
    """Return the sections of each process: one, or where nothing can be lost, all of a kind."""
    if not dry_run:
        return [[section] for section in order]
    return [list(members) for _, members in groupby(order, key=lambda section: section.is_check)]


def _told_in_order(ended: Iterable[Outcomes], order: Sequence[Section], paper: _Paper) -> Outcomes:
    """Report each title once its sections and all before have ended; return all outcomes."""
    titles = [list(members) for _, members in groupby(order, key=lambda section: section.title)]
    outcomes: dict[Section, Report] = {}
    for some in ended:
        outcomes |= some
        while titles and all(section in outcomes for section in titles[0]):
            paper.write(report_lines(titles.pop(0), outcomes))
    return {section: outcomes[section] for section in order}


def report_lines(members: Sequence[Section], outcomes: Mapping[Section, Report]) -> list[str]:
    """Write the sections of one title; tables with the same head become one."""
    reports = [outcomes[section] for section in members]
    lines: list[str] = []
    for report in reports:
        repeated = bool(lines) and report.lines[:2] == lines[:2]
        lines += report.lines[2:] if repeated else report.lines
    failures = [f"**FAILED**: {failure}" for report in reports for failure in report.failures]
    return [f"### {members[0].title}", "", *lines, *([""] if failures else []), *failures]


def headline(gpu: GpuReport, *, dry_run: bool) -> list[str]:
    """Describe the environment of the figures."""
    name = f"{gpu.name} ({gpu.capability}, {gpu.total_bytes / 1e9:.0f} GB), driver {gpu.driver}"
    if dry_run:
        name = "Dry run: a small model on a CPU, which has no CUDA graphs; the figures mean nothing"
    packages = ", ".join(
        f"{package} {_version(package)}" for package in ("torch", "nemo_toolkit", "cuda-bindings")
    )
    machine = f"{available_cores()} cores, Python {platform.python_version()}"
    return [f"{name}, {machine}, {packages}, CUDA {torch.version.cuda}."]


def summary(outcomes: Outcomes, seconds: float) -> list[str]:
    """List the sections, their seconds and whether they found something wrong."""
    lines = ["### Seconds", "", "| section | seconds | wrong |", "|---|---|---|"]
    for section, report in outcomes.items():
        took = "not ended" if report.seconds is None else f"{report.seconds:.0f}"
        lines.append(f"| {section.name} | {took} | {len(report.failures) or 'nothing'} |")
    return [*lines, f"| all, with what they wait for | {seconds:.0f} | |"]


def _look_at(device: str) -> GpuReport:
    """Run a kernel in a process of its own: this one would keep memory of the GPU."""
    command = [sys.executable, "-m", "parakeet_api.model.gpu_check", device]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return GpuReport.from_json(done.stdout)


def _workers(gpu: GpuReport) -> int:
    by_memory = _MAX_WORKERS if not gpu.free_bytes else int(gpu.free_bytes / 1e9 / _WORKER_GB)
    return max(1, min(_MAX_WORKERS, by_memory, available_cores() // 2))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=benchmarks.gpu.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [section.name for section in sections(dry_run=True)]
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dry-run", action="store_true", help="a small model on the CPU")
    parser.add_argument("--output", type=Path, help="a file for the report as well")
    parser.add_argument("--checkpoint", type=Path, help="of that size; written if it is missing")
    parser.add_argument(
        "--section",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"this one alone, in this process; several are possible: {', '.join(names)}",
    )
    parser.add_argument("--findings", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
