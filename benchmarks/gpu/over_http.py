"""Throughput over HTTP relative to the GPU's: a real server, in its own process."""

from __future__ import annotations

import re
import statistics
import subprocess
import tempfile
import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.fidelity import SPEECH
from benchmarks.gpu import Bench
from benchmarks.gpu.report import Report, batch_name, library_figure
from benchmarks.gpu.speed import quantile
from benchmarks.http_load import Load, put_load
from benchmarks.service import Service, running_service
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.transcript import SAMPLE_RATE, Chunk

_CLIPS = 16
"""Different clips, sent in turns."""
_FILE_ROUNDS = 2
"""The first one has new shapes."""
_FORMATS: dict[str, tuple[str, ...]] = {
    "wav": ("-c:a", "pcm_s16le"),
    "mp3": ("-c:a", "libmp3lame", "-b:a", "64k"),
}
_TOLD = 3
"""Warnings of the server that are repeated, at most."""


def http(bench: Bench, report: Report) -> None:
    """Serve with default settings; time clips from several clients, then a long file."""
    with tempfile.TemporaryDirectory() as name, _serving(bench, Path(name)) as service:
        clips = [
            _write_wav(Path(name) / f"clip-{number}.wav", chunk)
            for number, chunk in enumerate(bench.chunks(_CLIPS, bench.extent.clip_s))
        ]
        first_s = _seconds(service, clips[0])
        report.line(f"First request, which loads the model: {first_s:.1f} s.")
        report.line("")
        _clips(bench, report, service, clips)
        report.line("")
        _files(bench, report, service, Path(name))
        _tell_warnings(report, service)


@contextmanager
def _serving(bench: Bench, folder: Path) -> Iterator[Service]:
    with running_service(
        MODEL_PATH=str(bench.checkpoint),
        DEVICE=bench.device,
        DATA_DIR=str(folder / "data"),
    ) as service:
        yield service


def _clips(bench: Bench, report: Report, service: Service, clips: list[Path]) -> None:
    report.header(
        *("clients", "times real time", "of the library's", "median ms", "p95 ms"),
        *("answers", "not 200", "clients busy"),
    )
    for clients in bench.extent.clients:
        load = put_load(
            service.url.host,
            service.url.port or 80,
            clips,
            clients=clients,
            seconds=bench.extent.load_s,
            warm_up_s=bench.extent.load_s / 3,
        )
        rate = len(load.times_s) * bench.extent.clip_s / load.seconds
        report.row(
            *(str(clients), f"{rate:.0f}", _beside_library(bench, report, clients, rate)),
            *_times(load),
            *(str(len(load.times_s)), _others(load), f"{load.busy:.0%}"),
        )
        report.check(
            not load.others, f"{clients} clients had other answers than 200: {_others(load)}"
        )


def _beside_library(bench: Bench, report: Report, clients: int, rate: float) -> str:
    """Return the share of what the library does in its largest batch of no more clips than that."""
    clip_s = bench.extent.clip_s
    batches = [count for count, s in bench.extent.batches if s == clip_s and count <= clients]
    library = report.figures.get(library_figure(max(batches), clip_s)) if batches else None
    if library is None:
        return "not measured"
    return f"{rate / library:.2f} of {library:.0f} ({batch_name(max(batches), clip_s)})"


def _times(load: Load) -> tuple[str, str]:
    if not load.times_s:
        return "", ""
    median_s, p95_s = statistics.median(load.times_s), quantile(load.times_s, 0.95)
    return f"{1000 * median_s:.0f}", f"{1000 * p95_s:.0f}"


def _others(load: Load) -> str:
    counts = ", ".join(f"{count} x {name}" for name, count in load.others.most_common())
    return counts or "0"


def _files(bench: Bench, report: Report, service: Service, folder: Path) -> None:
    minutes = bench.extent.file_minutes
    report.header(f"{minutes:g} minutes in one file", "seconds", "times real time")
    for suffix in _FORMATS:
        file = _write_recording(folder / f"long.{suffix}", minutes)
        for again in range(_FILE_ROUNDS):
            elapsed_s = _seconds(service, file)
            name = f"{suffix}, again" if again else suffix
            report.row(name, f"{elapsed_s:.2f}", f"{60 * minutes / elapsed_s:.0f}")


def _seconds(service: Service, file: Path) -> float:
    started = time.perf_counter()
    service.transcribe(file)
    return time.perf_counter() - started


def _tell_warnings(report: Report, service: Service) -> None:
    messages = [line.strip() for line in service.log if re.search(r" (WARNING|ERROR) ", line)]
    if messages:
        report.line("")
        report.line(f"The server warned {len(messages)} times: {' / '.join(messages[:_TOLD])}")


def _write_wav(target: Path, chunk: Chunk) -> Path:
    with wave.open(str(target), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(chunk.samples.tobytes())
    return target


def _write_recording(target: Path, minutes: float) -> Path:
    """Encode the 12 minutes of dense speech, and repeat them up to a length."""
    part = target.with_name(f"part{target.suffix}")
    mono = ("-ar", str(SAMPLE_RATE), "-ac", "1", *_FORMATS[target.suffix.removeprefix(".")])
    _ffmpeg("-i", str(SPEECH / "long-dense.ogg"), *mono, str(part))
    copies = ("-stream_loop", str(int(minutes // 12)), "-i", str(part), "-c", "copy")
    _ffmpeg(*copies, "-t", str(60 * minutes), str(target))
    return target


def _ffmpeg(*arguments: str) -> None:
    command = [find_ffmpeg(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y"]
    subprocess.run([*command, *arguments], check=True)
