"""A baseline with the common design of speech-to-text services around NeMo.

    .venv/bin/python -m benchmarks.baseline --port 5093
    .venv/bin/python -m benchmarks.baseline --port 5093 --no-clean-ups

The whole recording becomes a wav file; another pass of ffmpeg looks for silences; `-c copy` cuts
chunks with overlap at them; `model.transcribe` takes the chunks' files one by one; memory is
emptied before and after each. Words are joined by their times: those before the middle of an
overlap are the earlier chunk's. It answers `POST /v1/audio/transcriptions` with `{"text": ...}`.
"""

from __future__ import annotations

import argparse
import gc
import re
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from flask import Flask, request
from waitress import server as waitress

from benchmarks.fidelity import DEMO_MODEL
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.model.restore import import_libraries

CHUNK_S = 120.0
OVERLAP_S = 30.0
SILENCE = "silencedetect=noise=-38dB:d=0.35"
MOST_SHIFT_S = 2.0
COLLECTIONS = 3
"""Garbage collections in one clean-up."""


@dataclass(frozen=True)
class Word:
    """A word and its times in the recording, s."""

    text: str
    start: float
    end: float


class Baseline:
    """A model, used by one request at a time."""

    def __init__(self, *, clean_ups: bool) -> None:
        import_libraries()
        from nemo.collections.asr.models import ASRModel

        self._model: Any = ASRModel.restore_from(str(DEMO_MODEL), map_location="cpu")
        self._model.eval()
        self._clean_ups = clean_ups
        self._permit = threading.Semaphore(1)

    def transcribe(self, upload: Path, folder: Path) -> str:
        """Transcribe a file; intermediate files stay in `folder`."""
        whole = folder / "whole.wav"
        _ffmpeg("-i", str(upload), "-ac", "1", "-ar", "16000", "-c:a", "pcm_s16le", str(whole))
        length_s = (whole.stat().st_size - 44) / 32000
        cuts = _cuts(length_s, _silences(whole)) if length_s > CHUNK_S else [0.0, length_s]
        words: list[Word] = []
        for index, (start, end) in enumerate(pairwise(cuts)):
            chunk = folder / f"chunk-{index}.wav"
            first, last = max(0.0, start - OVERLAP_S / 2), min(length_s, end + OVERLAP_S / 2)
            _ffmpeg(
                "-ss", f"{first:.3f}", "-t", f"{last - first:.3f}", "-i", str(whole),
                "-c", "copy", str(chunk),
            )  # fmt: skip
            with self._permit:
                self._clean_up()
                chunk_words = self._words(chunk, first)
                self._clean_up()
            words.extend(word for word in chunk_words if start <= (word.start + word.end) / 2 < end)
        return " ".join(word.text for word in words)

    def _words(self, chunk: Path, offset_s: float) -> list[Word]:
        found = self._model.transcribe([str(chunk)], timestamps=True, verbose=False)[0]
        return [
            Word(word["word"], offset_s + word["start"], offset_s + word["end"])
            for word in found.timestamp["word"]
        ]

    def _clean_up(self) -> None:
        import torch

        if self._clean_ups:
            for _ in range(COLLECTIONS):
                gc.collect()
            torch.cuda.empty_cache()


def _silences(wav: Path) -> list[float]:
    """Find the middles of the silences, s."""
    log = _ffmpeg("-i", str(wav), "-af", SILENCE, "-f", "null", "-")
    starts = [float(s) for s in re.findall(r"silence_start: (-?[\d.]+)", log)]
    ends = [float(s) for s in re.findall(r"silence_end: ([\d.]+)", log)]
    return [(start + end) / 2 for start, end in zip(starts, ends, strict=False)]


def _cuts(length_s: float, silences: list[float]) -> list[float]:
    """Cut a recording; a cut moves to the nearest silence if one is near."""
    cuts = [0.0]
    while length_s - cuts[-1] > CHUNK_S:
        wanted = cuts[-1] + CHUNK_S - OVERLAP_S
        nearest = min(silences, key=lambda moment: abs(moment - wanted), default=wanted)
        cuts.append(nearest if abs(nearest - wanted) <= MOST_SHIFT_S else wanted)
    return [*cuts, length_s]


def _ffmpeg(*arguments: str) -> str:
    command = [find_ffmpeg(), "-hide_banner", "-nostats", "-y", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def create_app(baseline: Baseline) -> Flask:
    """Serve a baseline over HTTP."""
    app = Flask(__name__)

    @app.post("/v1/audio/transcriptions")
    def transcribe() -> dict[str, str]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            request.files["file"].save(folder / "upload")
            return {"text": baseline.transcribe(folder / "upload", folder)}

    return app


def main() -> None:
    """Serve until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=5093, help="0 = any free one")
    parser.add_argument("--no-clean-ups", action="store_true")
    options = parser.parse_args()
    app = create_app(Baseline(clean_ups=not options.no_clean_ups))
    server: Any = waitress.create_server(
        app, host="127.0.0.1", port=options.port, threads=16, max_request_body_size=2**31
    )
    print(f"listening on http://127.0.0.1:{server.effective_port}", file=sys.stderr, flush=True)
    server.run()


if __name__ == "__main__":
    main()
