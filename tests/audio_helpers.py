"""What tests of odd recordings share: encodings, and checks that all audio is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import decode

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.transcript import SAMPLE_RATE

AAC = ("-c:a", "aac", "-ar", "44100", "-ac", "2")
AC3 = ("-c:a", "ac3", "-ar", "48000")
MP2 = ("-c:a", "mp2", "-ar", "48000")
VIDEO = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=10:d=12")


def codes_of(decoder: FfmpegDecoder, file: Path) -> list[str]:
    stream = decoder.stream(file)
    for _ in stream:
        pass
    return [caveat.code for caveat in stream.caveats]


def assert_all_is_heard(
    decoder: FfmpegDecoder, file: Path, parts: Sequence[Path], *, within: float = 0.1
) -> None:
    """Check that a file is as long as its parts, and that each part is at its place."""
    alone = [decode(decoder, part) for part in parts]
    joined = decode(decoder, file)
    assert len(joined) == pytest.approx(sum(map(len, alone)), abs=within * SAMPLE_RATE * len(parts))
    start = 0
    for samples in alone:
        part = joined[start : start + len(samples)].astype(float)
        size = len(part) + len(samples)
        spectra = np.fft.rfft(part, size) * np.conj(np.fft.rfft(samples.astype(float), size))
        likeness = np.abs(np.fft.irfft(spectra, size))
        lag = (int(likeness.argmax()) + size // 2) % size - size // 2
        norm = float(np.linalg.norm(part)) * float(np.linalg.norm(samples.astype(float)))
        assert float(likeness.max()) > 0.8 * norm
        assert abs(lag) < within * SAMPLE_RATE * len(parts)
        start += len(samples)
