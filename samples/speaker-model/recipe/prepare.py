"""Compute the mel spectrograms of separate recordings, with speech activity, in shards.

    python prepare.py MANIFEST.json AUDIO_FOLDER OUTPUT_FOLDER [--share 0/2]

Each shard holds some recordings in random order, so that training can begin with the first ones.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
import soundfile
import torch
from mel import log_mel

RATE = 16_000
HOP = 160
STEP = 3
"""Mel frames, 30 ms."""
PAUSE_FRAMES = 50
"""Pauses up to half a second count as speech, as in the usual reference transcripts."""
SHARD = 240


def read(path: Path) -> np.ndarray:
    """Return a recording, float32, 16 kHz, peak at -6 dB."""
    samples, rate = soundfile.read(path, dtype="float32")
    samples = samples.mean(axis=1) if samples.ndim > 1 else samples
    if rate != RATE:
        places = np.arange(0, len(samples) - 1, rate / RATE)
        samples = np.interp(places, np.arange(len(samples)), samples).astype(np.float32)
    return samples / max(1e-4, np.abs(samples).max()) / 2


def speech_spans(samples: np.ndarray) -> list[tuple[int, int]]:
    """Return the spans of speech in a clean recording, in mel frames, with short pauses closed.

    Speech is what is at most 30 dB below the loud parts.
    """
    size = STEP * HOP
    power = (samples[: len(samples) // size * size].reshape(-1, size) ** 2).mean(axis=1)
    active = power > np.percentile(power, 95) * 1e-3
    edges = np.flatnonzero(np.diff(np.concatenate([[0], active.astype(np.int8), [0]]))) * STEP
    spans: list[tuple[int, int]] = []
    for start, end in edges.reshape(-1, 2).tolist():
        if end - start < 3 * STEP:
            continue
        if spans and start - spans[-1][1] <= PAUSE_FRAMES:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def shard(recordings: list[dict], audio: Path) -> dict[str, np.ndarray]:
    offset, mels, rows, spans = 0, [], [], []
    for recording in recordings:
        samples = read(audio / recording["file"])
        found = speech_spans(samples)
        mel = log_mel(torch.from_numpy(samples)).numpy()
        rows.append((offset, len(mel), len(spans), len(spans) + len(found)))
        mels.append(mel.astype(np.float16))
        spans += found
        offset += len(mel)
    return {
        "mel": np.concatenate(mels),
        "rows": np.array(rows, np.int64),
        "spans": np.array(spans, np.int64),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("audio", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--share", default="0/1", help="part/parts: several processes at once")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    part, parts = map(int, arguments.share.split("/"))
    recordings = json.loads(arguments.manifest.read_text())
    random.Random(0).shuffle(recordings)
    arguments.output.mkdir(exist_ok=True)
    for number, start in enumerate(range(0, len(recordings), SHARD)):
        if number % parts == part:
            chosen = recordings[start : start + SHARD]
            kept = [row for row in chosen if (arguments.audio / row["file"]).is_file()]
            arrays = shard(kept, arguments.audio)
            path = arguments.output / f"{number:03d}.npz"
            np.savez(
                path.with_suffix(".tmp.npz"),
                speakers=np.array([row["speaker"] for row in kept]),
                sources=np.array([row["source"] for row in kept]),
                **arrays,
            )
            path.with_suffix(".tmp.npz").rename(path)
            print(path.name, len(arrays["mel"]) / 360_000, "hours", flush=True)


if __name__ == "__main__":
    main()
