"""Time the whole service beside the bare model, as ratios measured side by side in one run.

    make bench                                          the table
    .venv/bin/python -m benchmarks.bench --minutes 12   a shorter recording

The service is a real server, reached over HTTP on this machine. The floor is what the model alone
costs: forward passes over the same samples, already decoded and in memory, without overlap, at
whichever window is fastest. A ratio of 1.2 says that everything else costs a fifth.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil

from benchmarks.fidelity import DEMO_MODEL, ROOT, SPEECH
from parakeet_api.audio import FfmpegDecoder, find_ffmpeg
from parakeet_api.devices import available_cores
from parakeet_api.nemo_model import ModelOptions
from parakeet_api.recognizer import NemoRecognizer
from parakeet_api.transcript import SAMPLE_RATE, Chunk, Pcm

WINDOWS_S = (20, 30)
"""Windows of the floor; shorter and longer ones were slower."""
ROUNDS = 3


class Service:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.url = httpx.URL(url)
        self._process = psutil.Process(process.pid)
        self._client = httpx.Client(base_url=url, timeout=3600)

    def transcribe(self, file: Path, response_format: str = "text") -> str:
        """Send a file; give the transcript."""
        with file.open("rb") as upload:
            answer = self._client.post(
                "/v1/audio/transcriptions",
                files={"file": (file.name, upload)},
                data={"response_format": response_format},
            )
        return answer.raise_for_status().text

    def resident_mb(self) -> float:
        """Give the server's resident memory."""
        return float(self._process.memory_info().rss) / 1e6


@contextmanager
def running_service() -> Iterator[Service]:
    """Serve with the demo model on a free port."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=ROOT,
            env=os.environ
            | {
                "HOST": "127.0.0.1",
                "PORT": "0",
                "DEMO_MODEL": "always",
                "TEMP_UPLOADS_DIR": folder,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        url = next(
            match[1]
            for line in process.stderr
            if (match := re.search(r"listening on (http://\S+)", line))
        )
        drain = ThreadPoolExecutor(1)
        drain.submit(process.stderr.read)
        try:
            yield Service(process, url)
        finally:
            process.terminate()
            process.wait()
            drain.shutdown()


def floor_s(recognizer: NemoRecognizer, samples: Pcm) -> tuple[float, int, int]:
    """Time bare forward passes; give the best time, and its window in seconds and workers."""
    return min(
        (_timed(partial(_passes, recognizer, samples, window, workers)), window, workers)
        for window in WINDOWS_S
        for workers in (1, min(2, available_cores()))
    )


def _passes(recognizer: NemoRecognizer, samples: Pcm, window_s: int, workers: int) -> None:
    size = window_s * SAMPLE_RATE
    windows = [samples[start : start + size] for start in range(0, len(samples), size)]
    chunks = [Chunk(0, 0, window, 0, len(window)) for window in windows]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda chunk: recognizer.recognize([chunk]), chunks))


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def make_recording(folder: Path, minutes: int) -> Path:
    """Repeat the 12 minutes with pauses up to a length, as mp3."""
    repeat = ("-stream_loop", str(minutes // 12), "-i", str(SPEECH / "long-pauses.ogg"))
    target = folder / f"{minutes}-minutes.mp3"
    command = [find_ffmpeg(), "-hide_banner", "-loglevel", "error", *repeat]
    subprocess.run([*command, "-t", str(minutes * 60), "-b:a", "64k", str(target)], check=True)
    return target


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=60, help="length of the recording")
    minutes = parser.parse_args().minutes
    cores = available_cores()
    options = ModelOptions(
        device="cpu", precision="auto", strategy="greedy", beam_size=4, longest_s=60,
        cpu_threads=cores,
    )  # fmt: skip
    recognizer = NemoRecognizer.load(DEMO_MODEL, options)
    decoder = FfmpegDecoder(executable=find_ffmpeg(), max_seconds=24 * 3600)
    print(f"{cores} cores, demo model, medians of {ROUNDS} rounds in one run\n")
    with tempfile.TemporaryDirectory() as name, running_service() as service:
        folder = Path(name)
        clip = SPEECH / "clip-001.flac"
        first_s = _timed(lambda: service.transcribe(clip))
        _one_file(service, recognizer, decoder, make_recording(folder, minutes))
        _one_clip(service, recognizer, decoder, clip)
        _memory(service, make_recording(folder, 12), make_recording(folder, 360))
        print(f"first request, which loads the model: {first_s:.1f} s")


def _one_file(
    service: Service, recognizer: NemoRecognizer, decoder: FfmpegDecoder, file: Path
) -> None:
    samples = np.concatenate(list(decoder.stream(file)))
    ratios, services, floors = [], [], []
    for _ in range(ROUNDS):
        served_s = _timed(lambda: service.transcribe(file))
        best_s, window_s, workers = floor_s(recognizer, samples)
        services.append(served_s)
        floors.append(best_s)
        ratios.append(served_s / best_s)
    decoded_s = _timed(lambda: list(decoder.stream(file)))
    audio_s = len(samples) / SAMPLE_RATE
    print(f"{file.name}, HTTP to text: {statistics.median(ratios):.2f} times the bare model")
    print(
        f"    service {statistics.median(services):.1f} s"
        f" ({audio_s / statistics.median(services):.0f} times real time),"
        f" bare model {statistics.median(floors):.1f} s ({window_s} s windows, {workers} workers),"
        f" ffmpeg alone {decoded_s:.1f} s"
    )


def _one_clip(
    service: Service, recognizer: NemoRecognizer, decoder: FfmpegDecoder, clip: Path
) -> None:
    samples = np.concatenate(list(decoder.stream(clip)))
    chunk = Chunk(0, 0, samples, 0, len(samples))
    served = [_timed(lambda: service.transcribe(clip)) for _ in range(20)]
    bare = [_timed(lambda: recognizer.recognize([chunk])) for _ in range(20)]
    decoded = [_timed(lambda: list(decoder.stream(clip))) for _ in range(20)]
    served_ms, bare_ms, decoded_ms = (
        1000 * statistics.median(times) for times in (served, bare, decoded)
    )
    print(
        f"{len(samples) / SAMPLE_RATE:.1f} s clip, HTTP to text:"
        f" {served_ms / (bare_ms + decoded_ms):.2f} times decoding and the bare model"
    )
    print(f"    service {served_ms:.0f} ms, ffmpeg {decoded_ms:.0f} ms, model {bare_ms:.0f} ms")


def _memory(service: Service, short: Path, long: Path) -> None:
    peaks = []
    for file in (short, long):
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(service.transcribe, file)
            peak = 0.0
            while not done.done():
                peak = max(peak, service.resident_mb())
                time.sleep(0.1)
            done.result()
        peaks.append(peak)
    print(
        f"memory: a 6-hour file peaks {peaks[1] - peaks[0]:+.0f} MB beside a 12-minute one"
        f" ({peaks[1]:.0f} MB resident)"
    )


if __name__ == "__main__":
    main()
