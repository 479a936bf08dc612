"""Hooks that `schemathesis` loads: generators of intact and damaged recordings."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import schemathesis
from hypothesis import strategies as st

_SPEECH = Path(__file__).resolve().parent.parent / "samples" / "speech"


def _silence() -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(8000))
    return target.getvalue()


_RECORDINGS = [
    *[(_SPEECH / f"clip-{number:03}.flac").read_bytes() for number in (1, 10, 21)],
    _silence(),
]
_TRUNCATED = [recording[: len(recording) // 2] for recording in _RECORDINGS]
_FOREIGN = [b"", b"PK\x03\x04", b"#EXTM3U\n", b"ffconcat version 1.0\nfile /etc/passwd\n"]

# Three of four are recordings, so that most requests result in a transcript.
schemathesis.openapi.format(
    "binary",
    st.one_of(
        st.sampled_from(_RECORDINGS),
        st.sampled_from(_RECORDINGS),
        st.sampled_from(_RECORDINGS),
        st.sampled_from(_TRUNCATED) | st.sampled_from(_FOREIGN) | st.binary(max_size=200),
    ),
)
