"""The form fields that ask who spoke."""

from __future__ import annotations

from typing import get_args

from parakeet_api.formats.speaker_params import MAX_KNOWN_SPEAKERS, MAX_NAME_CHARS
from parakeet_api.openapi.json_schema import Json, array, flag, text
from parakeet_api.transcript import ChannelChoice


def speaker_fields() -> Json:
    """Describe the fields by name."""
    return {
        "diarize": flag(
            "Tell voices apart: words and segments get a `speaker`, subtitles its name. The model"
            " `gpt-4o-transcribe-diarize` and `diarized_json` imply it.",
            default=False,
        ),
        "min_speakers": _count("Least number of speakers; nobody is invented to reach it."),
        "max_speakers": _count("Most speakers who get words: those who have spoken longest."),
        "channels": text(
            "`separate`: each channel is transcribed on its own, and is a speaker; words have its"
            " number. `auto`: so, if the channels hold different speech. `mix`: as one.",
            enum=list(get_args(ChannelChoice)),
            default="mix",
        ),
        "known_speaker_names[]": array(
            {"type": "string", "maxLength": MAX_NAME_CHARS},
            f"Names of at most {MAX_KNOWN_SPEAKERS} speakers, one for each reference. With"
            " `channels=separate`, without references: those of the channels.",
            default=[],
        ),
        "known_speaker_references[]": array(
            {"type": "string"},
            "Their voices: 2 to 10 seconds each, as a data URL.",
            default=[],
        ),
    }


def _count(description: str) -> Json:
    return {"type": "integer", "minimum": 1, "maximum": 100, "description": description}
