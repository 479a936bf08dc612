"""The interface of a diarizer: who speaks when, as a stream of probabilities."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


class DiarizationStream(Protocol):
    """The speakers of one recording, heard from its start to its end."""

    def add(self, samples: FloatArray) -> FloatArray:
        """Take the next samples (float32 [n], mono, 16 kHz); return the probabilities that became final, float32 [frames, speakers]."""  # noqa: E501
        ...

    def finish(self) -> FloatArray:
        """Return the remaining frames, float32 [frames, speakers]."""
        ...

    def close(self) -> None:
        """Free what the stream holds."""
        ...


class Diarizer(Protocol):
    """A model that tells speakers apart."""

    frame_seconds: float
    """Length of one frame, such as 0.08."""
    max_speakers: int
    """How many speakers it tells apart in one recording."""

    def start(self) -> DiarizationStream:
        """Begin a recording."""
        ...
