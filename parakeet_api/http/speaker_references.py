"""Decode the voices of known speakers, which a request sends as data URLs."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.errors import AudioDecodeError, InvalidRequestError
from parakeet_api.http.services import services
from parakeet_api.http.uploads import create_upload
from parakeet_api.transcript import SAMPLE_RATE

PARAM = "known_speaker_references[]"
MIN_REFERENCE_S = 2.0
MAX_REFERENCE_S = 10.0
_TOLERANCE_S = 0.1
"""Encoders pad: ten seconds as mp3 are a little longer."""


def decode_reference(content: bytes) -> bytes:
    """Decode a reference to the samples of `KnownSpeaker`.

    Raises `InvalidRequestError` for one that cannot be decoded or is too short or too long, and
    `OSError` if it cannot be written to the folder of uploads.
    """
    wired = services()
    return _decoded(content, decoder=wired.decoder, folder=wired.settings.temp_uploads_dir)


def _decoded(content: bytes, *, decoder: FfmpegDecoder, folder: Path) -> bytes:
    with create_upload(folder) as upload:
        path = Path(upload.name)
        try:
            upload.write(content)
            upload.flush()
            samples = _first_samples(decoder, path)
        except AudioDecodeError as error:
            raise InvalidRequestError(f"{PARAM}: {error.message}", param=PARAM) from error
        finally:
            path.unlink(missing_ok=True)
    length_s = len(samples) // 2 / SAMPLE_RATE
    if not MIN_REFERENCE_S - _TOLERANCE_S <= length_s <= MAX_REFERENCE_S + _TOLERANCE_S:
        length = "longer" if length_s > MAX_REFERENCE_S else f"{length_s:.1f} s"
        raise InvalidRequestError(
            f"{PARAM}: a reference is {length}; it takes {MIN_REFERENCE_S:g} to"
            f" {MAX_REFERENCE_S:g} s of one voice.",
            param=PARAM,
        )
    return samples


def _first_samples(decoder: FfmpegDecoder, path: Path) -> bytes:
    """Decode a file as far as its length is in doubt; return little-endian 16-bit samples."""
    most = round((MAX_REFERENCE_S + 2 * _TOLERANCE_S) * SAMPLE_RATE)
    samples = bytearray()
    with closing(decoder.stream(path)) as blocks:
        for block in blocks:
            samples += np.asarray(block, "<i2").tobytes()
            if len(samples) > 2 * most:
                break
    return bytes(samples[: 2 * most])
