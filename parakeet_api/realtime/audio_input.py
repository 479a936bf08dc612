"""Decode a client's audio, base64 of PCM or G.711, to 16 kHz mono."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from parakeet_api.errors import InvalidRequestError
from parakeet_api.realtime.session_config import AudioFormat, AudioType
from parakeet_api.transcript import SAMPLE_RATE, Pcm

_MU_BIAS = 132
_ENTRIES = 256


class AudioInput:
    """Decodes appended audio; keeps partial samples and the filter's state between calls."""

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format
        self._odd = b""
        self._resampler = (
            soxr.ResampleStream(audio_format.rate, SAMPLE_RATE, 1, dtype="int16")
            if audio_format.rate != SAMPLE_RATE
            else None
        )

    def decode(self, audio: Any) -> Pcm:
        """Decode an event's `audio`. Raises `InvalidRequestError`."""
        if not isinstance(audio, str):
            raise InvalidRequestError("audio is not a text in base64.", param="audio")
        try:
            data = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequestError("audio is not valid base64.", param="audio") from None
        samples = self._samples(data)
        if self._resampler is None or not len(samples):
            return samples
        resampled: Pcm = self._resampler.resample_chunk(samples)
        return resampled

    def rest(self) -> Pcm:
        """Flush the filter, about 10 ms; nothing can be decoded afterwards."""
        if self._resampler is None:
            return np.zeros(0, np.int16)
        resampled: Pcm = self._resampler.resample_chunk(np.zeros(0, np.int16), last=True)
        return resampled

    def _samples(self, data: bytes) -> Pcm:
        if self._format.type != "audio/pcm":
            return _G711[self._format.type][np.frombuffer(data, np.uint8)]
        data = self._odd + data
        whole = len(data) // 2 * 2
        self._odd = data[whole:]
        return np.frombuffer(data[:whole], "<i2").astype(np.int16)


def _mu_law() -> NDArray[np.int16]:
    """Return the sample of each byte of G.711's mu-law (ITU-T G.711, table 2)."""
    code = ~np.arange(_ENTRIES, dtype=np.uint8)
    exponent, mantissa = (code >> 4 & 7).astype(np.int32), (code & 15).astype(np.int32)
    magnitude = ((mantissa << 3) + _MU_BIAS << exponent) - _MU_BIAS
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)


def _a_law() -> NDArray[np.int16]:
    """Return the sample of each byte of G.711's A-law (ITU-T G.711, table 1)."""
    code = np.arange(_ENTRIES, dtype=np.uint8) ^ np.uint8(0x55)
    exponent, mantissa = (code >> 4 & 7).astype(np.int32), (code & 15).astype(np.int32)
    magnitude = np.where(
        exponent == 0,
        (mantissa << 4) + 8,
        (mantissa << 4) + 264 << np.maximum(exponent - 1, 0),
    )
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


_G711: dict[AudioType, NDArray[np.int16]] = {"audio/pcmu": _mu_law(), "audio/pcma": _a_law()}
