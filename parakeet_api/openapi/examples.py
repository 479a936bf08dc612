"""One real transcript in all formats, for the description of the API.

It is rendered by the same code as responses, with the running server's settings.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from parakeet_api.formats.rendering import render
from parakeet_api.formats.request_params import TranscriptionParams
from parakeet_api.formats.server_sent_events import EventWriter
from parakeet_api.pipeline import Progress
from parakeet_api.settings import Settings
from parakeet_api.transcript import Segment, Token, Transcript, Word

EXAMPLE_FILE = "samples/speech/clip-001.flac"

_WORDS = (
    Word("Rosa", 0.24, 0.56, (Token(359, " Rosa", -0.0002),)),
    Word("likes", 0.56, 0.8, (Token(117, " likes", -0.0004),)),
    Word(
        "writing,",
        0.8,
        1.28,
        (
            Token(6, " w", -0.1892),
            Token(551, "r", -0.0002),
            Token(93, "it", -0.0004),
            Token(38, "ing", -0.0003),
            Token(569, ",", -0.0004),
        ),
    ),
    Word("but", 1.6, 1.84, (Token(155, " but", -0.0),)),
    Word("Olivia", 1.84, 2.16, (Token(333, " Olivia", -0.004),)),
    Word("likes", 2.16, 2.4, (Token(117, " likes", -0.0003),)),
    Word(
        "working.",
        2.56,
        2.96,
        (
            Token(6, " w", -0.0035),
            Token(347, "ork", -0.0041),
            Token(38, "ing", -0.0),
            Token(559, ".", -0.0),
        ),
    ),
)

EXAMPLE = Transcript(segments=(Segment(_WORDS),), duration=3.192, language="en")
"""What the demo model recognises in `EXAMPLE_FILE`."""


def example_of(params: TranscriptionParams, settings: Settings) -> Any:
    """Render the example: an object, or text."""
    return render(EXAMPLE, params, settings=settings).content


def example_stream(settings: Settings) -> str:
    """Render the example as a stream of events."""
    writer = EventWriter(TranscriptionParams(stream=True), settings=settings)
    progress = Progress(
        words=_WORDS,
        samples=np.zeros(0, np.int16),
        done_s=EXAMPLE.duration,
        total_s=EXAMPLE.duration,
    )
    return writer.progress(progress) + writer.done(EXAMPLE)
