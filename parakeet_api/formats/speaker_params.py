"""Parse the form fields that ask who spoke: OpenAI's, and those of whisper-asr-webservice."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Literal

from parakeet_api.errors import InvalidRequestError, echo
from parakeet_api.formats.form_fields import (
    Form,
    list_field,
    read_boolean,
    read_choice,
    read_field,
)
from parakeet_api.transcript import ChannelChoice, KnownSpeaker, SpeakerRequest

ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt", "diarized_json"]
EXTENSIONS: Mapping[ResponseFormat, str] = {
    "json": ".json",
    "verbose_json": ".json",
    "text": ".txt",
    "srt": ".srt",
    "vtt": ".vtt",
    "diarized_json": ".json",
}
"""File name extension of a transcript, by its format."""
DIARIZE_MODEL = "gpt-4o-transcribe-diarize"
"""The name of OpenAI's model that tells speakers apart; a request that names it wants them."""
MAX_KNOWN_SPEAKERS = 4
"""As OpenAI has it; their diarizer's limit, and the default one's here."""
MAX_NAME_CHARS = 64
_MAX_SPEAKERS = 100
_NAMES = "known_speaker_names[]"
_REFERENCES = "known_speaker_references[]"

DecodeReference = Callable[[bytes], bytes]
"""Decode a short recording to the samples of `KnownSpeaker`. Raises `InvalidRequestError`."""


def refuse_reference(_: bytes) -> bytes:
    """Decode nothing: for callers without a decoder."""
    raise InvalidRequestError("References of speakers are not accepted here.", param=_REFERENCES)


def default_format(form: Form) -> ResponseFormat:
    """Return the format of a request that names none."""
    return "diarized_json" if _names_diarizer(form) else "json"


def read_speakers(
    form: Form, response_format: ResponseFormat, *, decode: DecodeReference
) -> SpeakerRequest:
    """Read what a request wants to know about speakers.

    Raises `InvalidRequestError` naming the parameter.
    """
    channels: ChannelChoice = read_choice(form, "channels", ChannelChoice, default="mix")
    is_implied = response_format == "diarized_json" or (
        _names_diarizer(form) and response_format not in ("json", "text")
    )
    diarize = read_boolean(form, "diarize", default=is_implied and channels != "separate")
    if channels == "separate" and read_field(form, "audio_track").lower() == "all":
        raise InvalidRequestError(
            "channels=separate: the tracks of audio_track=all are mixed. Choose one of them.",
            param="channels",
        )
    if response_format == "diarized_json" and not diarize and channels == "mix":
        raise InvalidRequestError(
            "diarize=false: diarized_json lists speakers. Leave diarize out, or ask for"
            " verbose_json.",
            param="diarize",
        )
    if response_format == "json" and diarize:
        raise InvalidRequestError(
            "diarize=true: json has no speakers. Ask for response_format=diarized_json,"
            " verbose_json, srt, vtt or text.",
            param="diarize",
        )
    return speaker_request(form, channels, diarize=diarize, decode=decode)


def speaker_request(
    form: Form, channels: ChannelChoice, *, diarize: bool, decode: DecodeReference
) -> SpeakerRequest:
    """Read the details, where speakers are wanted. Raises `InvalidRequestError`."""
    if not diarize and channels == "mix":
        return SpeakerRequest()
    fewest = _read_count(form, "min_speakers")
    most = _read_count(form, "max_speakers")
    if fewest and most and fewest > most:
        raise InvalidRequestError(
            f"min_speakers={fewest} is more than max_speakers={most}.", param="min_speakers"
        )
    return SpeakerRequest(
        channels=channels,
        diarize=diarize,
        min_speakers=fewest,
        max_speakers=most,
        known=_read_known(form, channels, decode),
    )


def _names_diarizer(form: Form) -> bool:
    return read_field(form, "model").lower() == DIARIZE_MODEL


def _read_count(form: Form, name: str) -> int | None:
    text = read_field(form, name)
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= _MAX_SPEAKERS:
        raise InvalidRequestError(
            f"{name}={echo(text)} is not a whole number from 1 to {_MAX_SPEAKERS}.", param=name
        )
    return int(text)


def _read_known(
    form: Form, channels: ChannelChoice, decode: DecodeReference
) -> tuple[KnownSpeaker, ...]:
    """Read the known speakers: a name and a voice each; of channels, a name suffices."""
    names = list_field(form, _NAMES.removesuffix("[]"), comma=False)
    references = list_field(form, _REFERENCES.removesuffix("[]"), comma=False)
    for name in names:
        check_name(name, param=_NAMES)
    if len(set(names)) < len(names):
        raise InvalidRequestError(f"{_NAMES}: two speakers have one name.", param=_NAMES)
    if channels == "separate" and not references:
        return tuple(KnownSpeaker(name) for name in names)
    if len(names) != len(references):
        raise InvalidRequestError(
            f"{_REFERENCES}: {len(references)} references for {len(names)} names. Send one for"
            " each name, in the same order.",
            param=_REFERENCES,
        )
    if len(names) > MAX_KNOWN_SPEAKERS:
        raise InvalidRequestError(
            f"{_NAMES}: {len(names)} speakers, more than {MAX_KNOWN_SPEAKERS}.", param=_NAMES
        )
    return tuple(
        KnownSpeaker(name, decode(_data_of(url)))
        for name, url in zip(names, references, strict=True)
    )


def check_name(name: str, *, param: str) -> None:
    """Raise `InvalidRequestError` for a name that subtitles cannot hold."""
    if len(name) > MAX_NAME_CHARS or not name.isprintable() or set("<>") & set(name):
        raise InvalidRequestError(
            f"{param}: {echo(name)} is not a name of at most {MAX_NAME_CHARS} printable characters"
            " without < and >.",
            param=param,
        )


def _data_of(url: str) -> bytes:
    """Return the content of a data URL, `data:audio/wav;base64,...`."""
    head, comma, content = url.partition(",")
    if not comma or not re.fullmatch(r"data:[^,]*;base64", head, re.IGNORECASE):
        raise InvalidRequestError(
            f"{_REFERENCES}: {echo(url)} is not a data URL, data:audio/wav;base64,...",
            param=_REFERENCES,
        )
    try:
        return base64.b64decode(re.sub(r"\s", "", content), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(
            f"{_REFERENCES}: a data URL is damaged: {error}.", param=_REFERENCES
        ) from error
