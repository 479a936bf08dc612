"""The benchmarks of a GPU and of precisions, on a CPU and with small models: that they run.

What only a GPU does is played (`fake_gpu`), or the dry run's.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from fake_gpu import FakeGpu

from benchmarks import cpu
from benchmarks.fidelity import DEMO_MODEL
from benchmarks.full_size import write_checkpoint
from benchmarks.gpu import Bench, Extent, correctness, speed
from benchmarks.gpu import __main__ as program
from benchmarks.gpu.children import Child, Outcomes, Schedule
from benchmarks.gpu.report import Report
from benchmarks.gpu.sections import DRY_EXTENT, SMALL, Section, sections
from benchmarks.http_load import Load, ask, ask_on, request_of
from parakeet_api.model import encoder, token_decoder
from parakeet_api.model.gpu_check import GpuReport
from parakeet_api.model.loading import load_model

GPU_PROGRAM = (sys.executable, "-m", "benchmarks.gpu")
EXTENT = dataclasses.replace(DRY_EXTENT, clips=2, batches=((1, 2.0), (2, 2.0)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.nemo"
    write_checkpoint(path, SMALL)
    return path


def test_a_checkpoint_of_any_shape_is_one_that_the_service_loads(checkpoint: Path) -> None:
    network = load_model(checkpoint, cpu.options("fp32", 1)).network

    assert len(network.encoder.layers) == 2
    assert network.cfg.preprocessor.features == 64
    assert network.decoder.blank_idx == 700
    assert network.joint.joint_net[-1].out_features == 706


def test_the_same_weights_are_written_each_time(checkpoint: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "again.nemo", SMALL)
    first, second = (
        load_model(path, cpu.options("fp32", 1)).network.state_dict()
        for path in (checkpoint, tmp_path / "again.nemo")
    )

    for name, tensor in first.items():
        # Up to rounding: how many threads computed the joint network's share of it may differ.
        torch.testing.assert_close(second[name], tensor, msg=name)


@pytest.mark.timeout(900)
def test_the_dry_run_walks_through_the_whole_program(tmp_path: Path) -> None:
    """In processes of their own, over HTTP too: a minute on two idle cores."""
    done = subprocess.run(
        [*GPU_PROGRAM, "--dry-run", "--output", str(tmp_path / "report.md")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    report = done.stdout
    assert done.returncode == 0, done.stderr[-2000:] + report
    assert (tmp_path / "report.md").read_text().rstrip() == report.rstrip()
    assert "FAILED" not in report
    for section in sections(dry_run=True):
        assert report.count(f"### {section.title}\n") == 1
        assert f"\n| {section.name} | " in report
    for part in (
        *("| bf16 | on (CPU: none) | 0.0", "| bf16 | off (CPU: none) | 0.0", "| 2 | 2 s |"),
        *(
            "| on | after each batch | 0 of 6 |",
            "| wav, again |",
            "| mp3, again |",
        ),
        *("times real time", "the figures mean nothing"),
    ):
        assert part in report


def test_make_gpu_can_be_a_dry_run() -> None:
    for variables, options in (
        ((), ""),
        (("DRY_RUN=1", "OUTPUT=a.md"), '--dry-run --output "a.md"'),
    ):
        shown = subprocess.run(
            ["make", "--no-print-directory", "--dry-run", "gpu", *variables],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert shown.stdout.splitlines()[-1].split(maxsplit=1)[1].split() == [
            *("-m", "benchmarks.gpu", *options.split())
        ]


def test_memory_that_grows_is_a_failure(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, report = Bench("cpu", checkpoint, EXTENT), Report()
    looks = itertools.count()
    # Three looks a cycle: 99 MB more after the second.
    monkeypatch.setattr(bench, "held_mb", lambda: 33.0 * next(looks))

    correctness.loads(bench, report)

    assert report.failures == ["memory grows by 99 MB"]
    assert report.lines[-1] == "| 2 | 99 | 132 | 165 |"


def test_what_grows_once_is_no_leak_of_the_whole_gpu() -> None:
    leak = [100.0 + 5 * cycle for cycle in range(20)]
    other_program = [100.0] * 6 + [600.0] * 14

    assert correctness.keeps_growing(leak)
    assert not correctness.keeps_growing(other_program)
    assert not correctness.keeps_growing([50.0, *[100.0] * 19])


def test_without_a_gpu_one_line_states_that(capfd: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is present")

    assert program.main([]) == 2
    assert capfd.readouterr().err.count("\n") == 1


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


class TestOnAGpu:
    """With the simulated GPU: captures, replays and their faults."""

    @pytest.fixture
    def bench(self, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Bench:
        # Half precision is slow on a CPU, and what is compared does not depend on it.
        monkeypatch.setattr(correctness, "_half", lambda _: "fp32")
        monkeypatch.setattr("benchmarks.gpu.GRAPHED_S", 6.0)
        return Bench("cuda:0", DEMO_MODEL, EXTENT)

    @pytest.mark.parametrize("empty", [False, True])
    def test_tokens_with_graphs_are_those_without(self, bench: Bench, empty: bool) -> None:
        report = Report()

        correctness.tokens(bench, report, benchmark=False, empty=empty)

        assert report.failures == []
        assert "| 0 of 2 | 0 of 132 | in use | intact |" in report.lines[-1]

    def test_graphs_that_are_given_up_are_a_failure(self, bench: Bench, gpu: FakeGpu) -> None:
        gpu.fail_captures = RuntimeError("no such driver")
        report = Report()

        correctness.tokens(bench, report, benchmark=False, empty=False)

        assert report.failures == [
            "graphs are not in use: the token decoder's and the encoder's",
        ]

    def test_tensors_that_graphs_overwrite_are_a_failure(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(correctness, "_bystanders", lambda _: [torch.full((4,), 8)])
        report = Report()

        correctness.tokens(bench, report, benchmark=False, empty=False)

        assert report.failures == ["1 tensors were overwritten by graphs"]

    def test_the_encoders_graphs_are_compared_with_plain_passes(self, bench: Bench) -> None:
        report = Report()

        correctness.encoder_graphs(bench, report)

        assert report.failures == []
        # Of 6 s: rows of 2.56 and 5.12 s, and two rows of 2.56 s.
        assert report.lines[-1].startswith("| 3 | 3 | ")

    def test_an_encoder_graph_that_is_wrong_is_a_failure(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = encoder._Graph.run

        def wrong(graph: encoder._Graph, staged: encoder.Staged) -> tuple[torch.Tensor, ...]:
            encoded, frames = run(graph, staged)
            return encoded + 1, frames

        monkeypatch.setattr(encoder._Graph, "run", wrong)
        report = Report()

        correctness.encoder_graphs(bench, report)

        assert report.failures == ["6 encoder graphs differ from the pass without"]

    def test_a_load_that_fails_after_a_capture_is_reported(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recognizer = Bench.recognizer

        @contextmanager
        def damaged(it: Bench, *args: object, **options: object) -> Iterator[object]:
            if it.device == "cpu":
                raise RuntimeError("record size (128 bytes) does not match")
            with recognizer(it, *args, **options) as loaded:  # type: ignore[arg-type]
                yield loaded

        monkeypatch.setattr(Bench, "recognizer", damaged)
        report = Report()

        correctness.reloads(bench, report)

        assert report.lines[-2:] == ["| cpu | 1 of 1 | intact |", "| cuda:0 | 0 of 1 | intact |"]
        assert "record size (128 bytes) does not match" in report.failures[0]

    def test_after_a_shortage_words_are_right_and_graphs_come_back(
        self, bench: Bench, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        report = self._recovered(bench, gpu, monkeypatch, retry_s=0.0)

        assert report.failures == []
        assert report.lines[2:4] == [
            "| batch of 2 x 2 s beside a full GPU | refused |",
            "| clip beside a full GPU, graphs given back | right |",
        ]

    def test_graphs_that_do_not_come_back_are_a_failure(
        self, bench: Bench, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(correctness, "_RECOVERY_S", 0.1)

        report = self._recovered(bench, gpu, monkeypatch, retry_s=3600.0)

        assert report.failures == ["graphs did not come back after a shortage"]

    def _recovered(
        self, bench: Bench, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, *, retry_s: float
    ) -> Report:
        """Run the section with a GPU on which nothing can be captured or replayed while full."""
        full = torch.cuda.OutOfMemoryError("CUDA out of memory")

        def refuse() -> None:
            raise full

        @contextmanager
        def filled(_: Bench) -> Iterator[None]:
            gpu.fail_captures, gpu.launch = full, refuse
            yield
            gpu.fail_captures, gpu.launch = None, lambda: None

        monkeypatch.setattr(correctness, "_filled", filled)
        for module in (encoder, token_decoder):
            monkeypatch.setattr(module, "_RETRY_S", retry_s)
        report = Report()
        correctness.recovery(bench, report)
        return report

    def test_cycles_tell_what_is_taken_of_the_whole_gpu(self, bench: Bench) -> None:
        report = Report()

        correctness.loads(bench, report)

        assert report.failures == []
        assert report.lines[-1] == "The whole GPU, after the unloadings: 5000 to 5000 MB."

    def test_new_shapes_are_timed_as_the_service_plans_for_the_gpu(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "played")
        plan = bench.plan()
        report = Report()

        speed.shapes(bench, report)

        assert (plan.batch_size, plan.longest_chunk_s, plan.graphed_s) == (8, 60.0, 31.0)
        assert report.lines[2].startswith("| 4 of 1 to 2 s | ")
        assert report.lines[-1].startswith("| 3 | ")

    def test_precisions_are_compared_with_graphs_and_without(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 0)
        report = Report()

        speed.precisions(bench, report)

        rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in report.lines[2:]]
        assert [row[:2] for row in rows] == [["fp32", "on"], ["bf16", "on"], ["bf16", "off"]]
        assert float(rows[0][2]) == 0
        assert 0 < float(rows[1][2]) == float(rows[2][2]) < 0.05

    def test_steps_and_memory_of_batches_are_reported(
        self, bench: Bench, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
        monkeypatch.setattr(
            torch.cuda, "max_memory_allocated", lambda _: gpu.allocated + 13_200_000
        )
        report = Report(figures={"NeMo, 2 x 2 s": 1e-3})

        speed.speed(bench, report)

        batch = next(line for line in report.lines if line.startswith("| 2 x 2 s |"))
        cells = [cell.strip() for cell in batch.strip("|").split("|")]
        assert len(cells) == 10
        assert float(cells[3]) == pytest.approx(float(cells[1]) / 1e-3, rel=0.5)
        assert float(cells[4]) > 0
        assert report.lines[-1] == "| 2 | 2 s | 13 | 13 | 1.00 |"
        assert report.figures["library, 2 x 2 s"] > 0


def section(name: str, *, beside: str = "", is_check: bool = False, title: str = "") -> Section:
    return Section(
        name=name,
        title=title or name,
        run=lambda *_: None,
        limit_s=100,
        beside=beside,
        is_check=is_check,
    )


class PlayedProcess:
    """A process that has ended at the second check."""

    def __init__(self, sections: Sequence[Section], log: list[str]) -> None:
        self.sections = sections
        self._log = log
        self._asked = 0
        self._tell("started")

    def begin(self, figures: Mapping[str, float], *, limit_s: float) -> None:
        self._tell(f"begins with {dict(figures)}" if figures else "begins")

    def has_ended(self) -> bool:
        self._asked += 1
        return self._asked > 1

    def outcomes(self) -> Outcomes:
        self._tell("ended")
        report = Report()
        report.figure(self.sections[0].name, 1.0)
        return {self.sections[0]: report}

    def kill(self) -> None:
        self._tell("killed")

    def _tell(self, event: str) -> None:
        self._log.append(f"{self.sections[0].name} {event}")


class TestSchedule:
    def _log(
        self, *members: Section, workers: int = 2, limit_s: float | None = None
    ) -> tuple[list[str], dict[Section, Report]]:
        log: list[str] = []
        schedule = Schedule(
            [[member] for member in members],
            lambda group: PlayedProcess(group, log),
            workers=workers,
            limit_s=limit_s,
        )
        found: dict[Section, Report] = {}
        for outcomes in schedule.run():
            found |= outcomes
        return log, found

    def test_the_next_process_starts_while_one_works_and_begins_with_its_figures(self) -> None:
        log, _ = self._log(section("a"), section("b"))

        assert log == [
            *("a started", "a begins", "b started", "a ended"),
            *("b begins with {'a': 1.0}", "b ended"),
        ]

    def test_sections_of_one_kind_run_beside_each_other_and_others_alone(self) -> None:
        members = [*(section(name, beside="demo") for name in "abc"), section("d")]

        log, _ = self._log(*members)

        starts_and_ends = [
            entry.split()[0:2] for entry in log if "begins" in entry or "ended" in entry
        ]
        assert [" ".join(entry) for entry in starts_and_ends] == [
            *("a begins", "b begins", "a ended", "b ended", "c begins", "c ended"),
            *("d begins", "d ended"),
        ]

    def test_what_there_is_no_time_for_is_not_begun_and_a_failure_if_it_is_a_check(self) -> None:
        check, measurement = section("a", is_check=True), section("b")

        log, found = self._log(check, measurement, limit_s=1.0)

        assert log == ["a started", "a killed", "b started", "b killed"]
        assert found[check].failures == ["was not begun: no time was left"]
        assert found[measurement].failures == []
        assert found[measurement].lines == ["Not measured: no time was left."]

    def test_an_interruption_ends_all_processes(self) -> None:
        log: list[str] = []
        schedule = Schedule(
            [[section("a")], [section("b")]],
            lambda group: PlayedProcess(group, log),
            workers=1,
            limit_s=None,
        )

        outcomes = schedule.run()
        next(outcomes)
        outcomes.close()  # type: ignore[attr-defined]

        assert log[-1] == "b killed"


class TestChild:
    def _outcome(
        self, tmp_path: Path, *options: str, limit_s: float, is_check: bool = True
    ) -> Report:
        of_a_cpu = section("recovery", is_check=is_check)
        child = Child([of_a_cpu], options=("--device", "cpu", *options), folder=tmp_path)
        child.begin({}, limit_s=limit_s)
        while not child.has_ended():
            pass
        return child.outcomes()[of_a_cpu]

    def test_a_crashed_process_is_a_failure_with_its_last_output(self, tmp_path: Path) -> None:
        report = self._outcome(tmp_path, "--no-such-option", limit_s=120)

        assert "status 2" in report.failures[0]
        assert "unrecognized arguments: --no-such-option" in report.failures[0]

    @pytest.mark.parametrize("is_check", [False, True])
    def test_results_before_a_timeout_are_kept(self, tmp_path: Path, is_check: bool) -> None:
        Report(file=tmp_path / "recovery.jsonl").line("| found | already |")

        report = self._outcome(tmp_path, limit_s=0, is_check=is_check)

        assert report.lines[0] == "| found | already |"
        assert report.failures == ["did not come to its end in time"] * is_check


def test_an_error_ends_its_section_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()

    def lose_the_gpu(*_: object) -> None:
        raise RuntimeError("illegal memory access\nmore of it")

    lost = dataclasses.replace(section("a"), run=lose_the_gpu)
    program._run(lost, Bench("cpu", DEMO_MODEL, Extent()), report)

    assert report.failures == ["RuntimeError: illegal memory access"]
    assert report.seconds is not None
    assert "Traceback" in capsys.readouterr().err


def test_tables_of_one_head_become_one() -> None:
    members = [section("a", title="Both"), section("b", title="Both")]
    reports = [Report(), Report()]
    for number, report in enumerate(reports):
        report.header("number")
        report.row(str(number))
    reports[1].check(False, "is wrong")

    lines = program.report_lines(members, dict(zip(members, reports, strict=True)))

    assert lines == [
        *("### Both", "", "| number |", "|---|", "| 0 |", "| 1 |"),
        *("", "**FAILED**: is wrong"),
    ]


def test_a_report_that_was_cut_off_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "findings.jsonl"
    report = Report(file=file)
    report.row("one", "two")
    report.figure("library, 1 x 2 s", 7.5)
    with file.open("a") as cut_off:
        cut_off.write('{"line": "half')

    read = Report.read(file)

    assert (read.lines, read.figures) == (["| one | two |"], {"library, 1 x 2 s": 7.5})
    assert read.seconds is None


def test_gpus_are_named_with_driver_and_packages() -> None:
    gpu = GpuReport(name="H200", capability="sm_90", driver="580.65", total_bytes=141 * 10**9)

    (line,) = program.headline(gpu, dry_run=False)

    assert line.startswith("H200 (sm_90, 141 GB), driver 580.65, ")
    assert f"torch {torch.__version__}" in line


@pytest.fixture
def answering() -> Iterator[tuple[str, int]]:
    """Return the address of a server that has too much to do at every second request."""
    statuses = itertools.cycle([200, 503])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(next(statuses))
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield "127.0.0.1", server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_clients_count_what_they_met_within_the_time(answering: tuple[str, int]) -> None:
    requests = [request_of(b"RIFF")] * 3
    counted, too_early = Load(), Load()

    ask_on(answering, requests, counted, begin=0, end=math.inf)
    ask_on(answering, requests, too_early, begin=math.inf, end=math.inf)

    assert len(counted.times_s) == 2
    assert counted.others == {"503": 1}
    assert too_early == Load()


def test_a_stopped_server_is_counted_separately() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))

        assert ask(unused.getsockname(), request_of(b"RIFF")) == "ConnectionRefusedError"
