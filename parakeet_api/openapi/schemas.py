"""The JSON bodies of this server's responses: the renderers' types as JSON Schemas.

They allow additional fields, so that generated clients accept those of later versions. The tests
forbid them, so that a field that is not described fails.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from parakeet_api.errors import ApiError, ErrorBody, ErrorDetails
from parakeet_api.formats import asr_api, rendering, server_sent_events, status
from parakeet_api.jobs import job, live
from parakeet_api.openapi.json_schema import Json, or_null, ref
from parakeet_api.realtime import session_config

BODIES: Mapping[str, type] = {
    "Transcription": rendering.TranscriptionJson,
    "VerboseTranscription": rendering.VerboseTranscriptionJson,
    "DiarizedTranscription": rendering.DiarizedTranscriptionJson,
    "DiarizedSegment": rendering.DiarizedSegmentJson,
    "Word": rendering.WordJson,
    "Segment": rendering.SegmentJson,
    "TokenLogprob": rendering.TokenLogprobJson,
    "Warning": rendering.WarningJson,
    "SoundTrack": rendering.SoundTrackJson,
    "DurationUsage": rendering.DurationUsage,
    "TokenUsage": server_sent_events.TokenUsage,
    "TextDelta": server_sent_events.TextDelta,
    "TextSegment": server_sent_events.TextSegment,
    "TextDone": server_sent_events.TextDone,
    "Progress": server_sent_events.ProgressEvent,
    "Peaks": server_sent_events.PeaksEvent,
    "AsrTranscription": asr_api.AsrTranscriptionJson,
    "AsrSegment": asr_api.AsrSegmentJson,
    "AsrWord": asr_api.AsrWordJson,
    "DetectedLanguage": asr_api.DetectedLanguage,
    "Model": status.ModelJson,
    "ModelList": status.ModelList,
    "Health": status.Health,
    "ModelStatus": status.ModelStatus,
    "DiarizerStatus": status.DiarizerStatus,
    "StartReport": status.StartReportJson,
    "AdminReport": status.AdminReport,
    "Readiness": status.Readiness,
    "Job": job.JobJson,
    "JobList": job.JobList,
    "JobEvents": live.JobEvents,
    "DeletedJob": job.DeletedJob,
    "Webhook": job.WebhookJson,
    "ClientSecret": session_config.ClientSecretJson,
    "ErrorDetails": ErrorDetails,
    "Error": ErrorBody,
}
"""The types that have a schema of their own; others are inlined."""

_STREAMED_EVENT: Json = {
    "description": "One event of a streamed transcription. Lines that begin with a colon are"
    " comments, which keep the connection alive.",
    "anyOf": [
        ref(name) for name in ("TextDelta", "TextSegment", "TextDone", "Progress", "Peaks", "Error")
    ],
}

_READ_FIRST = ("type", "items", "description", "properties", "required")
"""Order of keywords for readers of the document; pydantic sorts them by name."""


@functools.cache
def body_schemas() -> Json:
    """Return the schemas of all bodies by name; built once, in 0.2 s."""
    # Heavy, and needed only for this document.
    from pydantic import ConfigDict, TypeAdapter

    types = list(dict.fromkeys(base for body in BODIES.values() for base in _with_bases(body)))
    all_types: Any = tuple.__class_getitem__(tuple(types))
    adapter = TypeAdapter(all_types, config=ConfigDict(use_attribute_docstrings=True))
    generated = adapter.json_schema(mode="serialization")
    keys = dict(zip(types, map(_key_of, generated["prefixItems"]), strict=True))
    definitions: Json = generated["$defs"]
    for body, key in keys.items():
        for base in _bases(body):
            _inherit(definitions[key], definitions[keys[base]])
    named = {keys[body]: name for name, body in BODIES.items()}
    published = {
        name: _published(definitions[key], definitions, named) for key, name in named.items()
    }
    return published | {"StreamedEvent": _STREAMED_EVENT}


def error_details(classes: Sequence[type[ApiError]]) -> Json:
    """Describe the details of errors, with only the types and codes of these classes."""
    schema: Json = body_schemas()["ErrorDetails"]
    described = schema["properties"]
    codes = sorted({error.code for error in classes if error.code})
    code = described["code"] | {"type": "string", "enum": codes} if codes else {"type": "null"}
    if codes and any(error.code is None for error in classes):
        code = or_null(code)
    types = sorted({error.type for error in classes})
    narrowed = {"type": described["type"] | {"enum": types}, "code": code}
    return {**schema, "properties": described | narrowed}


def error_body(details: Json) -> Json:
    """Describe the body of an error."""
    return {**body_schemas()["Error"], "properties": {"error": details}}


def _bases(body: type) -> list[type]:
    """Return the TypedDicts that a type inherits from."""
    bases = getattr(body, "__orig_bases__", ())
    return [base for base in bases if hasattr(base, "__required_keys__")]


def _with_bases(body: type) -> list[type]:
    """List a type and all types that it inherits from, bases first."""
    return [*(ancestor for base in _bases(body) for ancestor in _with_bases(base)), body]


def _inherit(schema: Json, base: Json) -> None:
    """Copy the descriptions of inherited fields: pydantic reads only a class's own docstrings."""
    for name, described in base["properties"].items():
        schema["properties"][name] = described | schema["properties"][name]


def _key_of(reference: Json) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _published(schema: Json, definitions: Json, named: Mapping[str, str]) -> Json:
    """Rewrite pydantic's schema: drop titles, inline unnamed types, shorten nullable types."""

    def publish(inner: Json) -> Json:
        return _published(inner, definitions, named)

    match schema:
        case {"$ref": _, **more}:
            key = _key_of(schema)
            return (ref(named[key]) if key in named else publish(definitions[key])) | more
        case {"anyOf": [inner, {"type": "null"}], **more}:
            return or_null(publish(inner)) | publish(more)
    first = {key: schema[key] for key in _READ_FIRST if key in schema}
    rewritten = first | {key: value for key, value in schema.items() if key != "title"}
    if "description" in rewritten:
        rewritten["description"] = " ".join(rewritten["description"].split())
    if "properties" in rewritten:
        rewritten["properties"] = {
            name: publish(inner) for name, inner in rewritten["properties"].items()
        }
    if "items" in rewritten:
        rewritten["items"] = publish(rewritten["items"])
    if "anyOf" in rewritten:
        rewritten["anyOf"] = [publish(inner) for inner in rewritten["anyOf"]]
    return rewritten
