"""The interface of a diarizer: who speaks when, as a stream of probabilities."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


class DiarizationStream(Protocol):
    """Diarize one recording, fed in order."""

    def add(self, samples: FloatArray) -> FloatArray:
        """Take the next samples, float32 mono at 16 kHz, shape `(samples,)`.

        Return the probabilities that became final, shape `(frames, speakers)`.
        """
        ...

    def finish(self) -> FloatArray:
        """Return the probabilities of the remaining frames, shape `(frames, speakers)`."""
        ...

    def close(self) -> None:
        """Free the stream's memory."""
        ...


class Diarizer(Protocol):
    """A model that tells speakers apart."""

    frame_seconds: float
    """Duration of one frame, such as 0.08."""
    max_speakers: int
    """Number of speakers that it tells apart in one recording."""

    def start(self) -> DiarizationStream:
        """Start a recording."""
        ...
