"""A session's configuration: validation, and conversion from and to both versions of the API.

`session.update` is OpenAI's current event; `transcription_session.update` is the older one, which
many clients still send.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from typing_extensions import TypedDict

from parakeet_api.errors import InvalidRequestError
from parakeet_api.formats.json_types import UnixTime
from parakeet_api.keywords import MAX_KEYWORDS, Keyword, parse_keywords
from parakeet_api.realtime.events import echoed

AudioType = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
TurnType = Literal["server_vad", "semantic_vad"]
Eagerness = Literal["low", "medium", "high", "auto"]
NoiseType = Literal["near_field", "far_field"]

TRANSCRIPTION = "session.audio.input.transcription"
"""The options' place in `session.update`, for error messages."""
LOGPROBS = "item.input_audio_transcription.logprobs"
_PCM_RATE = 24_000
"""OpenAI's default sample rate."""
_G711_RATE = 8_000
_MIN_RATE, _MAX_RATE = 8_000, 48_000
_MAX_TEXT = 16 * 1024
"""Characters of a prompt, or of a model's name."""
_MAX_LANGUAGES = 100
_MAX_PADDING_MS = 10_000
_MIN_SILENCE_MS, _MAX_SILENCE_MS = 100, 10_000
_SILENCE_OF: Mapping[Eagerness, int] = {"low": 1500, "medium": 800, "auto": 800, "high": 400}
"""Pause in milliseconds that ends a turn with `semantic_vad`. OpenAI's implementation predicts the
end of a turn from the words."""
_OLD_FORMATS: Mapping[str, tuple[AudioType, int]] = {
    "pcm16": ("audio/pcm", _PCM_RATE),
    "g711_ulaw": ("audio/pcmu", _G711_RATE),
    "g711_alaw": ("audio/pcma", _G711_RATE),
}


class ClientSecretJson(TypedDict):
    """A key that opens live sessions for some minutes."""

    value: str
    """The key."""
    expires_at: UnixTime
    session: dict[str, Any]
    """The configuration that its sessions begin with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioFormat:
    """Format of the client's audio: mono, signed 16-bit little-endian, or G.711."""

    type: AudioType = "audio/pcm"
    rate: int = _PCM_RATE
    """Samples per second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnDetection:
    """How the server detects the start and end of turns."""

    type: TurnType = "server_vad"
    threshold: float = 0.5
    """Minimum probability of speech that starts a turn."""
    prefix_padding_ms: int = 300
    """Audio before the detected start that belongs to the turn."""
    silence_duration_ms: int = 500
    """Silence that ends a turn."""
    eagerness: Eagerness = "auto"
    """Of `semantic_vad`."""

    def as_json(self) -> dict[str, Any]:
        """Return OpenAI's object."""
        if self.type == "semantic_vad":
            return {"type": self.type, "eagerness": self.eagerness}
        return {
            "type": self.type,
            "threshold": self.threshold,
            "prefix_padding_ms": self.prefix_padding_ms,
            "silence_duration_ms": self.silence_duration_ms,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcription:
    """Options of the transcript."""

    model: str = ""
    """Name of the model; empty = the first."""
    language: str = ""
    languages: tuple[str, ...] = ()
    keywords: tuple[Keyword, ...] = ()
    """Phrases that may be spoken."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """`prompt` and `delay`: accepted, and without effect."""

    def as_json(self) -> dict[str, Any]:
        """Return OpenAI's object."""
        return {
            "model": self.model or None,
            "language": self.language or None,
            **({"languages": list(self.languages)} if self.languages else {}),
            **({"keywords": [each.as_text() for each in self.keywords]} if self.keywords else {}),
            **self.others,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """The configuration of a session."""

    audio_format: AudioFormat = AudioFormat()
    transcription: Transcription = Transcription()
    turn_detection: TurnDetection | None = TurnDetection()
    """`None` = the client commits turns."""
    noise_reduction: NoiseType | None = None
    """Accepted, and without effect: the models are trained on noisy speech."""
    logprobs: bool = False

    def updated(self, session: Any) -> SessionConfig:
        """Apply `session.update`. Raises `InvalidRequestError` naming the field."""
        fields = _object(session, "session")
        kind = fields.get("type", "transcription")
        if kind != "transcription":
            raise InvalidRequestError(
                f"session.type={echoed(kind)}: this server has transcription sessions alone.",
                param="session.type",
            )
        config = self._with_include(fields)
        audio = _object(fields.get("audio", {}), "session.audio")
        sound = _object(audio.get("input", {}), "session.audio.input")
        if (given := sound.get("format")) is not None:
            config = replace(config, audio_format=_audio_format(given))
        return _with_common(
            config,
            sound,
            path="session.audio.input",
        )

    def updated_by_old(self, session: Any) -> SessionConfig:
        """Apply `transcription_session.update`. Raises `InvalidRequestError`."""
        fields = _object(session, "session")
        config = self._with_include(fields)
        if (given := fields.get("input_audio_format")) is not None:
            if given not in _OLD_FORMATS:
                raise _not_one_of("session.input_audio_format", given, tuple(_OLD_FORMATS))
            kind, rate = _OLD_FORMATS[given]
            config = replace(config, audio_format=AudioFormat(type=kind, rate=rate))
        return _with_common(
            config,
            fields,
            path="session",
            prefix="input_audio_",
        )

    def as_json(self) -> dict[str, Any]:
        """Return OpenAI's session object, without the fields set by the server."""
        rate = {"rate": self.audio_format.rate} if self.audio_format.type == "audio/pcm" else {}
        return {
            "object": "realtime.transcription_session",
            "type": "transcription",
            "audio": {
                "input": {
                    "format": {"type": self.audio_format.type, **rate},
                    "transcription": self.transcription.as_json(),
                    "noise_reduction": self._noise(),
                    "turn_detection": self._turns(),
                }
            },
            "include": [LOGPROBS] if self.logprobs else None,
        }

    def as_old_json(self) -> dict[str, Any]:
        """Return the older API's session object."""
        named = {kind: name for name, (kind, _) in _OLD_FORMATS.items()}
        return {
            "object": "realtime.transcription_session",
            "input_audio_format": named[self.audio_format.type],
            "input_audio_transcription": self.transcription.as_json(),
            "input_audio_noise_reduction": self._noise(),
            "turn_detection": self._turns(),
            "include": [LOGPROBS] if self.logprobs else None,
        }

    def _noise(self) -> dict[str, str] | None:
        return {"type": self.noise_reduction} if self.noise_reduction else None

    def _turns(self) -> dict[str, Any] | None:
        return self.turn_detection.as_json() if self.turn_detection else None

    def _with_include(self, fields: Mapping[str, Any]) -> SessionConfig:
        if "include" not in fields:
            return self
        include = fields["include"] or []
        if not isinstance(include, list) or any(name != LOGPROBS for name in include):
            raise _not_one_of("session.include", include, (LOGPROBS,))
        return replace(self, logprobs=bool(include))


def _with_common(
    config: SessionConfig, fields: Mapping[str, Any], *, path: str, prefix: str = ""
) -> SessionConfig:
    """Apply the fields that both versions have; the older one names two of them with a prefix."""
    transcription, turns, noise = (
        f"{prefix}transcription",
        "turn_detection",
        f"{prefix}noise_reduction",
    )
    if transcription in fields:
        given = _transcription(config, fields[transcription], f"{path}.{transcription}")
        config = replace(config, transcription=given)
    if turns in fields:
        detection = _turn_detection(config, fields[turns], f"{path}.{turns}")
        config = replace(config, turn_detection=detection)
    if noise in fields:
        config = replace(config, noise_reduction=_noise_reduction(fields[noise], f"{path}.{noise}"))
    return config


def _audio_format(given: Any) -> AudioFormat:
    param = "session.audio.input.format"
    fields = _object(given, param)
    kind = fields.get("type", "audio/pcm")
    if kind not in get_args(AudioType):
        raise _not_one_of(f"{param}.type", kind, get_args(AudioType))
    if kind != "audio/pcm":
        return AudioFormat(type=kind, rate=_G711_RATE)
    rate = fields.get("rate", _PCM_RATE)
    return AudioFormat(
        rate=int(_number(rate, f"{param}.rate", low=_MIN_RATE, high=_MAX_RATE, whole=True))
    )


def _transcription(config: SessionConfig, given: Any, param: str) -> Transcription:
    """Merge; `null` gives the defaults."""
    if given is None:
        return Transcription()
    fields = _object(given, param)
    before = config.transcription
    for name in ("model", "language", "prompt", "delay"):
        if fields.get(name) is not None:
            _text(fields[name], f"{param}.{name}")
    languages = _texts(fields, "languages", before.languages, param, most=_MAX_LANGUAGES)
    keywords = before.keywords
    if fields.get("keywords") is not None:
        phrases = _texts(fields, "keywords", (), param, most=MAX_KEYWORDS)
        keywords = parse_keywords(phrases, param=f"{param}.keywords")
    others = {name: fields[name] for name in ("prompt", "delay") if name in fields}
    return Transcription(
        model=_given(fields, "model", before.model),
        language=_given(fields, "language", before.language),
        languages=languages,
        keywords=keywords,
        others={**before.others, **others},
    )


def _turn_detection(config: SessionConfig, given: Any, param: str) -> TurnDetection | None:
    """Merge with the previous settings if they are of the same type; `null` disables it."""
    if given is None:
        return None
    fields = _object(given, param)
    kind = fields.get("type", "server_vad")
    if kind not in get_args(TurnType):
        raise _not_one_of(f"{param}.type", kind, get_args(TurnType))
    before = config.turn_detection
    if before is None or before.type != kind:
        before = TurnDetection(type=kind)
    if kind == "semantic_vad":
        eagerness = _given(fields, "eagerness", before.eagerness)
        if eagerness not in get_args(Eagerness):
            raise _not_one_of(f"{param}.eagerness", eagerness, get_args(Eagerness))
        silence_ms = _SILENCE_OF[eagerness]
        return replace(before, eagerness=eagerness, silence_duration_ms=silence_ms)

    def number(name: str, low: float, high: float, *, whole: bool = True) -> float:
        value = _given(fields, name, getattr(before, name))
        return _number(value, f"{param}.{name}", low=low, high=high, whole=whole)

    return replace(
        before,
        threshold=number("threshold", 0.0, 1.0, whole=False),
        prefix_padding_ms=int(number("prefix_padding_ms", 0, _MAX_PADDING_MS)),
        silence_duration_ms=int(number("silence_duration_ms", _MIN_SILENCE_MS, _MAX_SILENCE_MS)),
    )


def _noise_reduction(given: Any, param: str) -> NoiseType | None:
    if given is None:
        return None
    kind = _object(given, param).get("type", "near_field")
    if kind not in get_args(NoiseType):
        raise _not_one_of(f"{param}.type", kind, get_args(NoiseType))
    noise: NoiseType = kind
    return noise


def _given(fields: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    value = fields.get(name)
    return otherwise if value is None else value


def _object(value: Any, param: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{param}={echoed(value)} is not an object.", param=param)
    return value


def _text(value: Any, param: str) -> None:
    # JSON may contain unpaired surrogates, which cannot be sent back.
    if (
        not isinstance(value, str)
        or len(value) > _MAX_TEXT
        or any("\ud800" <= character <= "\udfff" for character in value)
    ):
        raise InvalidRequestError(
            f"{param}={echoed(value)} is not a text of at most {_MAX_TEXT} characters.",
            param=param,
        )


def _texts(
    fields: Mapping[str, Any], name: str, otherwise: tuple[str, ...], path: str, *, most: int
) -> tuple[str, ...]:
    value, param = _given(fields, name, list(otherwise)), f"{path}.{name}"
    if not isinstance(value, list) or len(value) > most:
        raise InvalidRequestError(
            f"{param}={echoed(value)} is not a list of at most {most} texts.", param=param
        )
    for text in value:
        _text(text, param)
    return tuple(value)


def _number(value: Any, param: str, *, low: float, high: float, whole: bool) -> float:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise InvalidRequestError(
            f"{param}={echoed(value)} is not {kind}, {low:g} to {high:g}.", param=param
        )
    return float(value)


def _not_one_of(param: str, value: Any, choices: tuple[str, ...]) -> InvalidRequestError:
    return InvalidRequestError(
        f"{param}={echoed(value)} is not one of: {', '.join(choices)}.", param=param
    )
