"""Who spoke: error rates on simulated conversations, speed, and the full-size model's memory.

    make diarization                               the small model, voices of samples/real-speech
    .venv/bin/python -m benchmarks.diarization --model FILE.nemo --recordings FOLDER
    .venv/bin/python -m benchmarks.diarization --full-size

`pyannote.metrics` counts the error: missed speech, false alarms and speech given to another
speaker, as shares of all speech; overlaps count, 0.25 s on each side of a boundary do not.
`--full-size` loads random weights of the shape of nvidia/diar_streaming_sortformer_4spk-v2, whose
answers mean nothing, and times a recording of `--minutes`.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from benchmarks.conversations import Conversation, read_takes, simulate
from benchmarks.sortformer_files import FULL_SORTFORMER, write_sortformer
from parakeet_api.model.checkpoints import SPEAKER_MODEL
from parakeet_api.model.diarizer import SortformerStream
from parakeet_api.model.diarizer_checkpoints import DiarizerStore
from parakeet_api.model.heap import trim_heap
from parakeet_api.model.sortformer import Sortformer, load_sortformer
from parakeet_api.settings import Settings
from parakeet_api.speech.diarization import FloatArray
from parakeet_api.transcript import SAMPLE_RATE

ROOT = Path(__file__).resolve().parent.parent
SMALL = ROOT / "samples" / "speaker-model" / SPEAKER_MODEL
REAL_SPEECH = ROOT / "samples" / "real-speech"
_BLOCK = SAMPLE_RATE
_THRESHOLD = 0.5
_MAX_GAP_FRAMES = 4
"""Gaps of up to 0.32 s within a turn are closed."""
_BOTH_SIDES_S = 0.5
"""pyannote's collar is the sum of both sides."""


def diarize(sortformer: Sortformer, samples: FloatArray, *, speakers: int) -> FloatArray:
    """Run a recording through a stream in blocks of a second."""

    @contextlib.contextmanager
    def lease() -> Iterator[Sortformer]:
        yield sortformer

    stream = SortformerStream(lease, speakers=speakers)
    blocks = range(0, len(samples), _BLOCK)
    found = [stream.add(samples[start : start + _BLOCK]) for start in blocks]
    return np.concatenate([*found, stream.finish()])


def spans(active: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[tuple[int, int]]:
    """Return the stretches of frames that are true, with short gaps closed."""
    edges = np.flatnonzero(np.diff(np.pad(active.astype(np.int8), 1)))
    found: list[tuple[int, int]] = []
    for start, end in edges.reshape(-1, 2).tolist():
        if found and start - found[-1][1] <= _MAX_GAP_FRAMES:
            found[-1] = found[-1][0], end
        else:
            found.append((start, end))
    return found


def errors(
    conversation: Conversation, probabilities: FloatArray, frame_seconds: float
) -> dict[str, float]:
    """Return seconds of speech, missed speech, false alarms and confusion."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pyannote.core import Annotation, Segment
        from pyannote.metrics.diarization import DiarizationErrorRate

        reference, hypothesis = Annotation(), Annotation()
        for number, turn in enumerate(conversation.turns):
            reference[Segment(turn.start, turn.end), number] = turn.speaker
        for speaker, track in enumerate(probabilities.T):
            for start, end in spans(track > _THRESHOLD):
                segment = Segment(start * frame_seconds, end * frame_seconds)
                hypothesis[segment, speaker] = speaker
        metric = DiarizationErrorRate(collar=_BOTH_SIDES_S, skip_overlap=False)
        parts = metric(reference, hypothesis, detailed=True)
    return {name: float(parts[key]) for name, key in _PARTS.items()}


_PARTS = {
    "speech": "total",
    "missed": "missed detection",
    "false": "false alarm",
    "confused": "confusion",
}


def error_rates(model: Path, folder: Path, *, minutes: float, each: int, seed: int) -> None:
    """Print a line for two, three and four speakers."""
    store = DiarizerStore(Settings(diarizer_path=model), bundled=None)
    store.start()
    output = store.output
    sortformer = load_sortformer(model, lambda _: None, settings=Settings(), gpu=None)
    takes, rng = read_takes(folder), np.random.default_rng(seed)
    print(f"{len(takes)} voices; {each} conversations of {minutes:g} minutes each")
    print("speakers   DER %   missed   false   confused   times real time")
    for people in (2, 3, 4):
        sums, elapsed_s = dict.fromkeys(_PARTS, 0.0), 0.0
        for _ in range(each):
            conversation = simulate(rng, takes, people=people, seconds=60 * minutes)
            started = time.process_time()
            found = diarize(sortformer, conversation.samples, speakers=output.speakers)
            elapsed_s += time.process_time() - started
            for name, value in errors(conversation, found, output.frame_seconds).items():
                sums[name] += value
        shares = [100 * sums[name] / sums["speech"] for name in ("missed", "false", "confused")]
        faster = 60 * minutes * each / elapsed_s
        columns = " ".join(f"{share:8.1f}" for share in shares)
        print(f"{people:8}  {sum(shares):6.1f} {columns}   {faster:10.0f}")


def full_size(minutes: float) -> None:
    """Print what the full-size model takes."""
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "full.nemo"
        write_sortformer(path, FULL_SORTFORMER)
        gc.collect()
        trim_heap()
        before = process.memory_info().rss
        started = time.perf_counter()
        sortformer = load_sortformer(path, lambda _: None, settings=Settings(), gpu=None)
        loaded_s = time.perf_counter() - started
        trim_heap()
        loaded = process.memory_info().rss
        count = round(60 * minutes * SAMPLE_RATE)
        noise = np.random.default_rng(0).normal(0, 0.05, count).astype(np.float32)
        cpu_s = time.process_time()
        diarize(sortformer, noise, speakers=4)
        cpu_s = time.process_time() - cpu_s
        ran = process.memory_info().rss
        parameters = sortformer.info.parameters
        sortformer.close()
        del sortformer
        trim_heap()
        print(f"parameters {parameters / 1e6:.0f} M, file {path.stat().st_size / 1e6:.0f} MB")
        print(f"load {loaded_s:.1f} s, memory +{(loaded - before) / 1e6:.0f} MB")
        faster = 60 * minutes / cpu_s
        print(f"{minutes:g} minutes: {faster:.1f} times real time on one core")
        print(f"memory beside the weights: +{(ran - loaded) / 1e6:.0f} MB")
        print(f"unloaded: +{(process.memory_info().rss - before) / 1e6:.0f} MB")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=SMALL)
    parser.add_argument("--recordings", type=Path, default=REAL_SPEECH)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--each", type=int, default=20, help="conversations per row")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--full-size", action="store_true")
    arguments = parser.parse_args()
    if arguments.full_size:
        full_size(arguments.minutes)
    elif not arguments.model.is_file():
        parser.error(f"there is no {arguments.model}: samples/speaker-model/README.md says why")
    else:
        error_rates(
            arguments.model,
            arguments.recordings,
            minutes=arguments.minutes,
            each=arguments.each,
            seed=arguments.seed,
        )


if __name__ == "__main__":
    main()
