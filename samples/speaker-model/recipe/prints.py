"""Compute the voice print of each of the training's people, at each speed.

    python prints.py MANIFEST.json AUDIO_FOLDER PRINTS.npy

The prints are those of Resemblyzer's encoder (`pip install --no-deps resemblyzer==0.1.4`,
Apache-2.0, weights in the package), trained on thousands of people. They are what the training
classifies by: with them few people are enough to learn how voices differ.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections import Counter
from pathlib import Path

import librosa
import numpy as np
import torch
from prepare import HOP, RATE, read, speech_spans
from simulate import SPEEDS
from torch import nn

BANDS, PARTIAL, STEP = 40, 160, 80
"""Mel bands of Resemblyzer, and frames of 10 ms in a partial utterance and between two."""
HIDDEN = 256
LEVEL = 10 ** (-30 / 20)
MAX_RECORDINGS = 3
"""Of each person; more change a print little."""


class Encoder(nn.Module):
    """Resemblyzer's network; its package imports what this does not need."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, HIDDEN, 3, batch_first=True)
        self.linear = nn.Linear(HIDDEN, HIDDEN)
        package = importlib.util.find_spec("resemblyzer")
        weights = Path(package.origin).with_name("pretrained.pt")
        stored = torch.load(weights, map_location="cpu", weights_only=True)["model_state"]
        self.load_state_dict(stored, strict=False)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        """Return the unit prints of partial utterances (n, PARTIAL, BANDS), shape (n, HIDDEN)."""
        hidden = self.lstm(mels)[1][0][-1]
        return nn.functional.normalize(self.linear(hidden).relu(), dim=1)


def partials(speech: np.ndarray, speed: float) -> np.ndarray:
    """Return the mel spectrograms of speech without pauses, shape (n, PARTIAL, BANDS)."""
    speech = np.interp(np.arange(0, len(speech) - 1, speed), np.arange(len(speech)), speech)
    speech *= LEVEL / np.sqrt((speech**2).mean())
    speech = np.pad(speech, (0, max(0, HOP * PARTIAL - len(speech))))
    mel = librosa.feature.melspectrogram(
        y=speech.astype(np.float32), sr=RATE, n_fft=400, hop_length=HOP, n_mels=BANDS
    ).T
    starts = range(0, max(1, len(mel) - PARTIAL), STEP)
    return np.stack([mel[start : start + PARTIAL] for start in starts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("audio", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encoder = Encoder()
    recordings = json.loads(arguments.manifest.read_text())
    speakers = sorted({row["speaker"] for row in recordings})
    sums = np.zeros((len(speakers), len(SPEEDS), HIDDEN))
    counts: Counter[str] = Counter()
    for row in recordings:
        if counts[row["speaker"]] == MAX_RECORDINGS:
            continue
        samples = read(arguments.audio / row["file"])
        spans = speech_spans(samples)
        if not spans:
            continue
        speech = np.concatenate([samples[HOP * start : HOP * end] for start, end in spans])
        counts[row["speaker"]] += 1
        for variant, speed in enumerate(SPEEDS):
            with torch.inference_mode():
                prints = encoder(torch.from_numpy(partials(speech, speed)))
            sums[speakers.index(row["speaker"]), variant] += prints.sum(0).numpy()
    prints = sums / np.linalg.norm(sums, axis=2, keepdims=True)
    np.save(arguments.output, prints.reshape(-1, HIDDEN).astype(np.float32))


if __name__ == "__main__":
    main()
