"""The sections, in the order of measurement and report: correctness first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product

from benchmarks.full_size import FULL, Shape
from benchmarks.gpu import Bench, Extent, correctness, over_http, speed
from benchmarks.gpu.report import Report
from benchmarks.gpu.speakers import SMALL_SORTFORMER, speakers
from benchmarks.sortformer_files import FULL_SORTFORMER, SortformerShape

SMALL = Shape(
    layers=2,
    width=64,
    heads=4,
    subsampling_channels=32,
    mel=64,
    predictor_width=32,
    predictor_layers=2,
    vocabulary=700,
)
"""The dry run's; still a model that the service loads."""
DRY_EXTENT = Extent(
    clips=6,
    shortage=(2, 2.0),
    cycles=2,
    jobs=2,
    reloads=1,
    precisions=("fp32", "bf16"),
    batches=((1, 2.0), (2, 2.0)),
    rounds=1,
    lengths=4,
    rows=(3,),
    longest_s=2.0,
    passes=3,
    clip_s=2.0,
    clients=(1, 2),
    load_s=1.0,
    file_minutes=1.0,
)


FROM_SOURCE = {"PYTHONPYCACHEPREFIX": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
"""Lets NeMo be compiled anew, which brings out what its kernels' compiler damages."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Section:
    """One process' work."""

    name: str
    title: str
    """Sections of one title follow each other, and their tables are one."""
    run: Callable[[Bench, Report], None]
    limit_s: float
    """A GPU's process that takes longer is ended."""
    beside: str = ""
    """Those of one name may run at the same time; the others run alone."""
    is_check: bool = False
    """Whether it is a failure if it does not come to its end in time."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """What its process is started with, beside what this one was."""


def sections(*, dry_run: bool) -> tuple[Section, ...]:
    """Return all sections; in a dry run speed is that of a small model."""
    return (
        *_token_sections(),
        *_checks(FROM_SOURCE if not dry_run else {}),
        _speakers(SMALL_SORTFORMER if dry_run else FULL_SORTFORMER),
        *_checkpoint_sections(SMALL if dry_run else FULL),
        *_MEASUREMENTS,
    )


def _token_sections() -> list[Section]:
    return [
        Section(
            name=f"tokens-{'plans' if benchmark else 'no-plans'}-{'emptied' if empty else 'kept'}",
            title="Tokens with CUDA graphs and without",
            run=partial(correctness.tokens, benchmark=benchmark, empty=empty),
            limit_s=100,
            beside="demo",
            is_check=True,
        )
        for benchmark, empty in product((False, True), repeat=2)
    ]


def _checks(from_source: Mapping[str, str]) -> list[Section]:
    return [
        Section(
            name="encoder",
            title="The encoder's CUDA graphs",
            run=correctness.encoder_graphs,
            limit_s=100,
            beside="demo",
            is_check=True,
        ),
        Section(
            name="reloads",
            title="Models loaded after a capture",
            run=correctness.reloads,
            limit_s=180,
            beside="demo",
            is_check=True,
            environ=from_source,
        ),
        Section(
            name="second-model",
            title="A second model beside one that serves",
            run=correctness.second_model,
            limit_s=100,
            beside="demo",
            is_check=True,
        ),
        Section(
            name="words",
            title="Words and precision, beside fp32 on the CPU",
            run=correctness.words,
            limit_s=100,
            beside="demo",
            is_check=True,
        ),
        Section(
            name="loads",
            title="Load, work, unload",
            run=correctness.loads,
            limit_s=180,
            beside="loads",
            is_check=True,
        ),
    ]


def _speakers(shape: SortformerShape) -> Section:
    return Section(
        name="speakers",
        title="The speaker model, beside the CPU",
        run=partial(speakers, shape=shape),
        limit_s=120,
        beside="loads",
        is_check=True,
    )


def _checkpoint_sections(shape: Shape) -> list[Section]:
    """Return what only needs a CPU, beside `loads`; then what fills the GPU, alone."""
    return [
        Section(
            name="checkpoint",
            title="The model whose speed is measured",
            run=partial(correctness.checkpoint, shape=shape),
            limit_s=120,
            beside="loads",
            is_check=True,
        ),
        Section(
            name="recovery",
            title="A shortage of memory",
            run=correctness.recovery,
            limit_s=100,
            is_check=True,
        ),
    ]


_MEASUREMENTS = (
    Section(name="nemo", title="NeMo's `transcribe()`", run=speed.nemo, limit_s=90),
    Section(name="speed", title="Batches, ms by step, and memory", run=speed.speed, limit_s=120),
    Section(name="shapes", title="New shapes", run=speed.shapes, limit_s=90),
    Section(name="http", title="Over HTTP, default settings", run=over_http.http, limit_s=150),
    Section(name="precisions", title="Precisions", run=speed.precisions, limit_s=110),
    Section(name="busy", title="Beside busy threads", run=speed.busy, limit_s=60),
)
