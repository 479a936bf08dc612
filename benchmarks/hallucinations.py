"""Count the words that models hallucinate without speech, before and after the speech gate.

    .venv/bin/python -m benchmarks.hallucinations [--minutes 10]

Each sound is generated from a fixed seed and cut into chunks of 30 s. `alone` are the model's own
words without those in digital silence, `served` the words after the speech gate, plus those that
were recovered in holes. Babble is speech of eight people at once: its words are guesses, and a
voice activity detector cannot reject them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import ENGLISH_MODEL, REAL_SPEECH, load, read_recordings
from benchmarks.fidelity import DEMO_MODEL, DETECTOR, Policy, transcribe
from parakeet_api.model.recognizer import NemoRecognizer
from parakeet_api.speech.activity import SpeechDetector
from parakeet_api.transcript import SAMPLE_RATE, Pcm

Waveform = NDArray[np.float64]
_CHUNKS = Policy(0.5, 5, align=True)
_VOICES = 8


def silence(length: int) -> Waveform:
    """Return digital zeros."""
    return np.zeros(length)


def noise(length: int, *, db: float) -> Waveform:
    """Return white noise of a level below full scale."""
    return np.random.default_rng(1).normal(0, 10 ** (db / 20), length)


def pink_noise(length: int) -> Waveform:
    """Return noise whose power falls by 3 dB an octave, at -30 dB."""
    spectrum = np.fft.rfft(np.random.default_rng(2).normal(0, 1, length))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    return _at(np.fft.irfft(spectrum, length), -30)


def hum(length: int) -> Waveform:
    """Return 50 Hz and its harmonics, at -20 dB."""
    time = np.arange(length) / SAMPLE_RATE
    return _at(sum(np.sin(2 * np.pi * 50 * n * time) / n for n in range(1, 9)), -20)


def music(length: int) -> Waveform:
    """Return plucked chords of four tones with harmonics, two a second, at -20 dB."""
    random = np.random.default_rng(3)
    step = SAMPLE_RATE // 2
    time = np.arange(step) / SAMPLE_RATE
    scale = 220 * 2 ** (np.array([0, 2, 4, 5, 7, 9, 11, 12, 14, 16]) / 12)
    chords = [
        sum(
            np.sin(2 * np.pi * tone * n * time) * np.exp(-(3 + n) * time) / n
            for tone in random.choice(scale, 4, replace=False)
            for n in range(1, 6)
        )
        for _ in range(-(-length // step))
    ]
    return _at(np.concatenate(chords)[:length], -20)


def applause(length: int) -> Waveform:
    """Return a thousand claps a second, each of 4 ms of noise, at -20 dB."""
    random = np.random.default_rng(4)
    claps = random.random(length) < 1000 / SAMPLE_RATE
    strength = np.where(claps, random.exponential(1, length), 0)
    decay = np.exp(-np.arange(320) / 64)
    return _at(np.convolve(strength, decay)[:length] * random.normal(0, 1, length), -20)


def babble(length: int) -> Waveform:
    """Return several speakers at once, at -20 dB: the recordings of `samples/real-speech`."""
    recordings = [r.samples for r in read_recordings(REAL_SPEECH) if r.source != "noise"]
    mixed = np.zeros(length)
    for voice in range(_VOICES):
        order = np.random.default_rng(voice).permutation(len(recordings))
        speech = np.concatenate([recordings[number] for number in order])
        mixed += np.resize(_at(speech.astype(np.float64), -20), length)
    return _at(mixed, -20)


SOUNDS: dict[str, Callable[[int], Waveform]] = {
    "digital silence": silence,
    "dither": partial(noise, db=-90),
    "hiss, -50 dB": partial(noise, db=-50),
    "hiss, -20 dB": partial(noise, db=-20),
    "pink noise": pink_noise,
    "hum": hum,
    "music": music,
    "applause": applause,
    "babble": babble,
}


def words(recognizer: NemoRecognizer, samples: Pcm, detector: SpeechDetector | None) -> int:
    """Count the words of a recording."""
    return len(transcribe(recognizer, _CHUNKS.chunks(samples), detector=detector).words)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    length = round(parser.parse_args().minutes * 60 * SAMPLE_RATE)
    for path in (DEMO_MODEL, ENGLISH_MODEL):
        recognizer = load(path, longest_s=60)
        print(f"{Path(path).stem:28} {'alone':>8} {'served':>8}")
        for name, sound in SOUNDS.items():
            samples = _pcm(sound(length))
            alone, served = (words(recognizer, samples, d) for d in (None, DETECTOR))
            print(f"{name:28} {alone:8} {served:8}", flush=True)


def _at(sound: Waveform | int, db: float) -> Waveform:
    """Set the level, root mean square below full scale."""
    waveform = np.asarray(sound, np.float64)
    scaled: Waveform = waveform / np.sqrt(np.mean(waveform**2)) * 10 ** (db / 20)
    return scaled


def _pcm(sound: Waveform) -> Pcm:
    return np.clip(np.round(sound * 32768), -32768, 32767).astype(np.int16)


if __name__ == "__main__":
    main()
