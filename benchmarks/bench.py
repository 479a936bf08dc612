"""Time the whole service, as ratios of times measured in one run.

    make bench                                               the table, 20 minutes on two cores
    make bench MODEL=english                                 with the small English model
    .venv/bin/python -m benchmarks.bench clips memory        some of its parts

The service is a real server, reached over HTTP on this machine. Beside it stand

- the floor: what the model alone costs. Forward passes over the same samples, already decoded and
  in memory, without overlap. A ratio of 1.2 says that everything else costs a fifth.
- the baseline: the design that such services commonly have (`benchmarks/baseline.py`), with the
  clean-ups of memory that they do by default and without. With the tests' model alone.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from benchmarks.fidelity import DEMO_MODEL as GRAMMAR_MODEL
from benchmarks.fidelity import ENGLISH_MODEL, SPEECH
from benchmarks.service import Service, running_baseline, running_service
from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.model.devices import available_cores
from parakeet_api.model.loading import ModelOptions
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Pcm

ROUNDS = 3
WINDOWS_S = (20, 30)
"""Windows of the floor; shorter and longer ones were slower."""
CLIPS = 200
CLIENTS = 16
BASELINE_CLIPS = 32
"""The baseline's clips take seconds each."""
BESIDE_CLIPS = 50


@dataclass(frozen=True)
class Bench:
    """The inputs of the parts of the table."""

    service: Service
    recognizer: NemoRecognizer
    decoder: FfmpegDecoder
    folder: Path
    model: str
    """`grammar` or `english`."""
    started_s: float
    """From the start of the server's process to the words of a first clip."""
    started_cpu_s: float
    """The CPU time of that."""

    def samples(self, file: Path) -> Pcm:
        """Decode a whole recording, shape `(samples,)`."""
        return np.concatenate(list(self.decoder.stream(file)))

    def recording(self, minutes: int) -> Path:
        """Repeat the 12 minutes with pauses up to a length, as mp3."""
        target = self.folder / f"{minutes}-minutes.mp3"
        if not target.exists():
            looped = ("-stream_loop", str(minutes // 12), "-i", str(SPEECH / "long-pauses.ogg"))
            command = [find_ffmpeg(), "-hide_banner", "-loglevel", "error", *looped]
            subprocess.run(
                [*command, "-t", str(minutes * 60), "-b:a", "64k", str(target)], check=True
            )
        return target


def one_file(bench: Bench) -> None:
    """One hour, HTTP to text."""
    file = bench.recording(60)
    samples = bench.samples(file)
    ratios, services, floors = [], [], []
    for _ in range(ROUNDS):
        served_s = _timed(lambda: bench.service.transcribe(file))
        floor_s, how = _file_floor(bench.recognizer, samples)
        services.append(served_s)
        floors.append(floor_s)
        ratios.append(served_s / floor_s)
    served_s = statistics.median(services)
    _row(
        "60-minute mp3 / floor",
        f"{statistics.median(ratios):.2f}",
        f"{served_s:.1f} s ({3600 / served_s:.0f} times real time),"
        f" floor {statistics.median(floors):.1f} s ({how})",
    )
    for clean_ups in _baselines(bench):
        with running_baseline(clean_ups=clean_ups) as baseline:
            baseline.transcribe(_clips()[0])
            # Once: it takes minutes.
            baseline_s = _timed(partial(baseline.transcribe, file))
            served_s = _timed(lambda: bench.service.transcribe(file))
        _row(
            f"baseline {_with(clean_ups)} / 60-minute mp3",
            f"{baseline_s / served_s:.1f}",
            f"{baseline_s:.1f} s, service {served_s:.1f} s",
        )


def clips(bench: Bench) -> None:
    """Short clips from many clients."""
    files = list(islice(cycle(_clips()), CLIPS))
    samples = [bench.samples(file) for file in files]
    rates, ratios, p95s, batch_rates = [], [], [], []
    for _ in range(ROUNDS):
        times, elapsed_s = _ask(bench.service, files)
        one_by_one_s = _timed(lambda: _run_batches(bench.recognizer, samples, size=1))
        batches_s = _timed(lambda: _run_batches(bench.recognizer, samples, size=8))
        rates.append(CLIPS / elapsed_s)
        ratios.append(one_by_one_s / elapsed_s)
        batch_rates.append(CLIPS / batches_s)
        p95s.append(_p95(times))
    rate = statistics.median(rates)
    _row(
        f"clips a second, {CLIENTS} clients / floor one by one",
        f"{statistics.median(ratios):.2f}",
        f"{rate:.0f} a second, p95 {1000 * statistics.median(p95s):.0f} ms; floor"
        f" {rate / statistics.median(ratios):.0f} one by one,"
        f" {statistics.median(batch_rates):.0f} in sorted batches of 8",
    )
    for clean_ups in _baselines(bench):
        with running_baseline(clean_ups=clean_ups) as baseline:
            baseline.transcribe(files[0])
            times, elapsed_s = _ask(baseline, files[:BASELINE_CLIPS])
            baseline_rate = BASELINE_CLIPS / elapsed_s
            baseline_p95_s = _p95(times)
            _, elapsed_s = _ask(bench.service, files)
        _row(
            f"clips a second / baseline {_with(clean_ups)}",
            f"{CLIPS / elapsed_s / baseline_rate:.1f}",
            f"baseline {baseline_rate:.2f} a second, p95 {baseline_p95_s:.1f} s",
        )


def one_clip(bench: Bench) -> None:
    """One clip on an idle server."""
    clip = _clips()[1]
    samples = bench.samples(clip)
    served_s, bare_s, decoded_s = (
        statistics.median(_timed(run) for _ in range(20))
        for run in (
            lambda: bench.service.transcribe(clip),
            lambda: _run_batches(bench.recognizer, [samples], size=1),
            lambda: bench.samples(clip),
        )
    )
    _row(
        f"{len(samples) / SAMPLE_RATE:.1f} s clip / decoding and floor",
        f"{served_s / (bare_s + decoded_s):.2f}",
        f"{1000 * served_s:.0f} ms, decoding {1000 * decoded_s:.0f} ms,"
        f" floor {1000 * bare_s:.0f} ms",
    )


def beside(bench: Bench) -> None:
    """Clips while a long file is transcribed."""
    clip, long = _clips()[1], bench.recording(180)
    idle = _p95([_timed(lambda: bench.service.transcribe(clip)) for _ in range(BESIDE_CLIPS)])
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(bench.service.transcribe, long)
        time.sleep(1)
        times: list[float] = []
        while len(times) < BESIDE_CLIPS and not done.done():
            times.append(_timed(lambda: bench.service.transcribe(clip)))
        done.result()
    _row(
        "a clip beside a 3-hour file / idle, p95",
        f"{_p95(times) / idle:.1f}",
        f"p95 of {len(times)}: {1000 * _p95(times):.0f} ms, idle {1000 * idle:.0f} ms",
    )


def memory(bench: Bench) -> None:
    """Memory and time from ten minutes to ten hours; then 64 recordings at once."""
    short, long = bench.recording(10), bench.recording(600)
    bench.service.transcribe(short)
    runs = [_peak(bench.service, [short]) for _ in range(2 * ROUNDS)]
    # The highest of several: in ten hours, peaks of passes are more likely to coincide.
    short_mb = max(peak_mb for peak_mb, _ in runs)
    short_s = statistics.median(elapsed_s for _, elapsed_s in runs)
    long_mb, elapsed_s = _peak(bench.service, [long])
    _row("10 hours, memory beside 10 minutes", f"{long_mb - short_mb:+.0f} MB", f"{long_mb:.0f} MB")
    _row(
        "10 hours / 10 minutes, time for an hour",
        f"{elapsed_s / 60 / short_s:.2f}",
        f"{elapsed_s / 10:.1f} s, {short_s * 6:.1f} s",
    )
    many_mb, elapsed_s = _peak(bench.service, [short] * 64)
    _row(
        "64 recordings of 10 minutes, memory beside one",
        f"{many_mb - short_mb:+.0f} MB",
        f"{many_mb:.0f} MB, decoders included; {elapsed_s:.0f} s",
    )


def cold_start(bench: Bench) -> None:
    """The first minute: start, first words, ten minutes of a file."""
    file = bench.recording(10)
    with bench.service.peak() as idle:
        bench.service.transcribe(_clips()[0])
    before_s = bench.service.cpu_s()
    peak_mb, elapsed_s = _peak(bench.service, [file])
    cpu_s = bench.service.cpu_s() - before_s
    _row(
        "process start to the first clip's words",
        "",
        f"{bench.started_s:.1f} s, {bench.started_cpu_s:.1f} s of a core",
    )
    _row("memory, after a clip; during 10 minutes", "", f"{idle.server_mb:.0f}; {peak_mb:.0f} MB")
    _row(
        "10 minutes, times real time",
        "",
        f"{600 / elapsed_s:.0f}, {600 / cpu_s:.0f} times for each core used",
    )


PARTS = {part.__name__: part for part in (cold_start, one_file, clips, one_clip, beside, memory)}
MODELS = {
    "grammar": (GRAMMAR_MODEL, {"DEMO_MODEL": "grammar"}),
    "english": (ENGLISH_MODEL, {"DEMO_MODEL": "always"}),
}


def _baselines(bench: Bench) -> tuple[bool, ...]:
    """List the baselines: with and without memory clean-ups."""
    return (True, False) if bench.model == "grammar" else ()


def _file_floor(recognizer: NemoRecognizer, samples: Pcm) -> tuple[float, str]:
    """Time bare forward passes; give the best time, and how it was reached."""
    return min(
        (
            _timed(partial(_run_windows, recognizer, samples, window_s, workers)),
            f"{window_s} s windows, {workers} at a time",
        )
        for window_s in WINDOWS_S
        for workers in (1, min(2, available_cores()))
    )


def _run_windows(recognizer: NemoRecognizer, samples: Pcm, window_s: int, workers: int) -> None:
    size = window_s * SAMPLE_RATE
    windows = [samples[start : start + size] for start in range(0, len(samples), size)]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda window: recognizer.recognize([_chunk(window)]), windows))


def _run_batches(recognizer: NemoRecognizer, samples: Sequence[Pcm], *, size: int) -> None:
    by_length = sorted(samples, key=len)
    for first in range(0, len(samples), size):
        recognizer.recognize([_chunk(clip) for clip in by_length[first : first + size]])


def _chunk(samples: Pcm) -> Chunk:
    return Chunk(0, 0, samples, 0, len(samples))


def _ask(service: Service, files: Sequence[Path]) -> tuple[list[float], float]:
    """Send files from `CLIENTS` clients; give each answer's time, s, and that of all."""
    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        times = list(pool.map(lambda file: _timed(lambda: service.transcribe(file)), files))
    return times, time.perf_counter() - started


def _peak(service: Service, files: Sequence[Path]) -> tuple[float, float]:
    """Send files all at once; give the most memory meanwhile, MB, and the time, s."""
    with service.peak() as peak, ThreadPoolExecutor(len(files)) as pool:
        elapsed_s = _timed(lambda: list(pool.map(service.transcribe, files)))
    return peak.total_mb, elapsed_s


def _clips() -> list[Path]:
    return sorted(SPEECH.glob("clip-*.flac"))


def _with(clean_ups: bool) -> str:
    return "with clean-ups" if clean_ups else "without"


def _p95(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _row(what: str, ratio: str, figures: str) -> None:
    print(f"| {what} | {ratio} | {figures} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART")
    parser.add_argument("--model", choices=MODELS, default="grammar")
    arguments = parser.parse_args()
    parts = arguments.parts or list(PARTS)
    checkpoint, environment = MODELS[arguments.model]
    options = ModelOptions(
        device="cpu", precision="auto", strategy="greedy", beam_size=4, longest_s=60,
        cpu_threads=available_cores(),
    )  # fmt: skip
    recognizer = NemoRecognizer.load(checkpoint, options)
    decoder = FfmpegDecoder(executable=find_ffmpeg(), max_seconds=24 * 3600)
    print(f"{available_cores()} cores, {arguments.model} model; medians of {ROUNDS} rounds\n")
    print("| what | ratio | in this run |\n|---|---|---|")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, running_service(**environment) as service:
        first_s = _timed(lambda: service.transcribe(_clips()[0]))
        started_s = time.perf_counter() - started
        bench = Bench(
            service=service,
            recognizer=recognizer,
            decoder=decoder,
            folder=Path(folder),
            model=arguments.model,
            started_s=started_s,
            started_cpu_s=service.cpu_s(),
        )
        _row("first request, which loads the model", "", f"{first_s:.1f} s")
        for name in parts:
            PARTS[name](bench)


if __name__ == "__main__":
    main()
