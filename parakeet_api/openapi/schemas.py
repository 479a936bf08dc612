"""The JSON bodies of this server's answers, as JSON Schemas with a name each.

They are open, so that a client generated from them survives a field that a later version adds.
The tests close them: there, an answer with a field that is not described is a failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from parakeet_api.errors import ApiError
from parakeet_api.formats.request_params import ResponseFormat, Task
from parakeet_api.formats.server_sent_events import PEAKS_PER_SECOND, WaitingState
from parakeet_api.jobs.job import JobStatus
from parakeet_api.model.checkpoints import StoreState
from parakeet_api.model.slot import LoadState
from parakeet_api.settings import Origin

Json = dict[str, Any]


def ref(name: str) -> Json:
    """Refer to one of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def text(description: str, **more: Any) -> Json:
    """Describe a string."""
    return {"type": "string", "description": description, **more}


def number(description: str, **more: Any) -> Json:
    """Describe a number."""
    return {"type": "number", "description": description, **more}


def whole(description: str, **more: Any) -> Json:
    """Describe a whole number that is not negative."""
    return {"type": "integer", "minimum": 0, "description": description, **more}


def flag(description: str, **more: Any) -> Json:
    """Describe a truth value."""
    return {"type": "boolean", "description": description, **more}


def array(items: Json, description: str, **more: Any) -> Json:
    """Describe a list."""
    return {"type": "array", "items": items, "description": description, **more}


def constant(value: str) -> Json:
    """Describe a string that is always the same."""
    return {"type": "string", "const": value}


def or_null(schema: Json) -> Json:
    """Let a value also be null."""
    if "type" not in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    enum = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return schema | {"type": [schema["type"], "null"]} | enum


def record(
    description: str, properties: Mapping[str, Json], *, optional: Iterable[str] = ()
) -> Json:
    """Describe an object, all of whose fields are always there but the `optional` ones."""
    required = [name for name in properties if name not in set(optional)]
    return {
        "type": "object",
        "description": description,
        "properties": dict(properties),
        "required": required,
    }


def error_details(classes: Sequence[type[ApiError]]) -> Json:
    """Describe what is told of errors, with the types and codes that these have."""
    types = sorted({error.type for error in classes})
    codes = sorted({error.code for error in classes if error.code})
    code = text("What went wrong, for programs.", enum=codes) if codes else {"type": "null"}
    if codes and any(error.code is None for error in classes):
        code = or_null(code)
    return record(
        "What went wrong. All four fields are always there.",
        {
            "message": text("For people."),
            "type": text("Whose fault it is.", enum=types),
            "param": or_null(text("The parameter that is wrong, where it is one.")),
            "code": code,
        },
    )


def error_body(details: Json) -> Json:
    """Describe the body of an error."""
    return record("An error, in OpenAI's shape.", {"error": details})


def _seconds(description: str) -> Json:
    return number(f"{description}, seconds.", minimum=0)


_LOGPROB = or_null(
    number("Natural logarithm of the model's probability; null where it gives none.", maximum=0)
)
_LANGUAGE_FIELDS: Json = {
    "languages": array(
        record("A language.", {"code": text("Its ISO 639-1 code.", examples=["en"])}),
        "The language spoken; left out where it is not known.",
    ),
}
_LOGPROBS_FIELD: Json = {
    "logprobs": array(
        ref("TokenLogprob"),
        "The text's tokens; with `include[]=logprobs`. Their texts add up to the text.",
    )
}
_WARNINGS_FIELD: Json = {
    "warnings": array(
        ref("Warning"),
        "What a reader should know of how it was heard; only where there is something.",
    ),
}
_TEXT_FIELD: Json = {"text": text("What was said; empty where nobody speaks.")}

_TRANSCRIPTION = record(
    "The answer of `response_format=json`.",
    _TEXT_FIELD | _LANGUAGE_FIELDS | _LOGPROBS_FIELD | {"usage": ref("DurationUsage")},
    optional=("languages", "logprobs"),
)

_VERBOSE_TRANSCRIPTION = record(
    "The answer of `response_format=verbose_json`.",
    {
        "task": text("What was asked for.", enum=list(get_args(Task))),
        "language": text(
            "English name of the language spoken, or `unknown`.", examples=["english"]
        ),
        "duration": _seconds("Length of the recording"),
        **_TEXT_FIELD,
        "words": array(ref("Word"), "With `timestamp_granularities[]=word`."),
        "segments": array(ref("Segment"), "With `timestamp_granularities[]=segment`."),
        "tracks": array(ref("SoundTrack"), "The file's sound tracks, where it has several."),
        **_WARNINGS_FIELD,
        "usage": ref("DurationUsage"),
        **_LOGPROBS_FIELD,
    },
    optional=("words", "segments", "tracks", "warnings", "logprobs"),
)

_WARNING = record(
    "What a reader should know of how the recording was heard.",
    {
        "code": text(
            "For programs.",
            examples=["truncated_audio", "track_silent", "speech_without_words", "undecodable"],
        ),
        "message": text("For people."),
        "start": or_null(_seconds("Where it begins; null where it is about the whole")),
        "end": or_null(_seconds("Where it ends")),
    },
)

_SOUND_TRACK = record(
    "One of a file's sound tracks.",
    {
        "number": whole("Its number for `audio_track`, from 1."),
        "codec": text("ffmpeg's name for it.", examples=["aac"]),
        "language": or_null(text("As the file says it.", examples=["eng"])),
        "title": or_null(text("As the file says it.")),
        "default": flag("Whether players play it if nobody chooses."),
        "used": flag("Whether it is in the transcript."),
    },
)

_WORD = record(
    "A word, its punctuation included.",
    {
        "word": text("The word."),
        "start": _seconds("Its start"),
        "end": _seconds("Its end"),
        "logprob": _LOGPROB
        | {"description": "The sum over its tokens; with `include[]=logprobs`."},
    },
    optional=("logprob",),
)

_SEGMENT = record(
    "A sentence, or the stretch between two long pauses, with Whisper's ten fields.",
    {
        "id": whole("Position among the segments, from 0."),
        "seek": whole("Its start in frames of 10 ms, as Whisper counts."),
        "start": _seconds("Its start"),
        "end": _seconds("Its end"),
        "text": text("Its words, after a space."),
        "tokens": array(whole("A token's id in the model's vocabulary."), "Its tokens."),
        "temperature": number("Always 0: nothing is sampled.", const=0.0),
        "avg_logprob": _LOGPROB
        | {"description": "Mean over its tokens; null where one is unknown."},
        "compression_ratio": number("How repetitive the text is, as Whisper computes it."),
        "no_speech_prob": number("Always 0: this kind of model has no such output.", const=0.0),
    },
)

_TOKEN_LOGPROB = record(
    "A piece of a word.",
    {
        "token": text("Its text; the first piece of a word begins with a space."),
        "logprob": _LOGPROB,
        "bytes": array(whole("A byte.", maximum=255), "The text in UTF-8."),
    },
)

_DURATION_USAGE = record(
    "What the request used.",
    {"type": constant("duration"), "seconds": _seconds("Length of the recording")},
)

_TOKEN_USAGE = record(
    "What the request used, in tokens: frames of 80 ms heard, pieces of words written.",
    {
        "type": constant("tokens"),
        "input_tokens": whole("Frames heard."),
        "input_token_details": record(
            "Of what kind they are.",
            {"text_tokens": whole("Always 0."), "audio_tokens": whole("Frames heard.")},
        ),
        "output_tokens": whole("Pieces of words written."),
        "total_tokens": whole("Their sum."),
    },
)

_TEXT_DELTA = record(
    "Words that are final; with the ones before they add up to the text exactly.",
    {
        "type": constant("transcript.text.delta"),
        "delta": text("The words; all but the first begin with a space."),
        **_LOGPROBS_FIELD,
    },
    optional=("logprobs",),
)

_PROGRESS = record(
    "How far the work is; with `include[]=progress`. Sent at least every second.",
    {
        "type": constant("transcript.progress"),
        "state": text("What is being done.", enum=list(get_args(WaitingState))),
        "queue_position": or_null(
            whole("Requests still to be begun, this one included; null once it has begun.")
        ),
        "done_s": _seconds("How much of the recording is recognised"),
        "total_s": or_null(_seconds("Length of the recording by its header, often an estimate")),
    },
)

_PEAKS = record(
    "A picture of the stretch that was recognised; with `include[]=peaks`.",
    {
        "type": constant("transcript.peaks"),
        "start_s": _seconds("Where the stretch starts"),
        "per_second": whole("Peaks in a second.", const=PEAKS_PER_SECOND),
        "values": text("One byte a peak, 255 = full scale, in base64.", contentEncoding="base64"),
    },
)

_DONE = record(
    "The end of a stream that went well.",
    {
        "type": constant("transcript.text.done"),
        **_TEXT_FIELD,
        **_LANGUAGE_FIELDS,
        **_LOGPROBS_FIELD,
        "usage": ref("TokenUsage"),
        "verbose_json": ref("VerboseTranscription"),
        "srt": text("Subtitles; with `response_format=srt`."),
        "vtt": text("Subtitles; with `response_format=vtt`."),
        **_WARNINGS_FIELD,
    },
    optional=("languages", "logprobs", "verbose_json", "srt", "vtt", "warnings"),
)

_STREAMED_EVENT = {
    "description": "One event of a streamed transcription. Lines that begin with a colon are"
    " comments, which keep the connection alive.",
    "anyOf": [
        ref("TextDelta"),
        ref("TextDone"),
        ref("Progress"),
        ref("Peaks"),
        ref("Error"),
    ],
}

_ASR_TRANSCRIPTION = record(
    "The answer of `output=json`.",
    {
        **_TEXT_FIELD,
        "segments": array(ref("AsrSegment"), "The sentences."),
        "language": or_null(text("ISO 639-1 code of the language spoken, where it is known.")),
        **_WARNINGS_FIELD,
    },
    optional=("warnings",),
)

_ASR_WORD = record(
    "A word, its punctuation included.",
    {
        "word": text("The word, after a space."),
        "start": _seconds("Its start"),
        "end": _seconds("Its end"),
        "probability": or_null(
            number("The model's, over its tokens; null where unknown.", minimum=0, maximum=1)
        ),
    },
)

_ASR_SEGMENT = {
    **_SEGMENT,
    "properties": _SEGMENT["properties"]
    | {"words": array(ref("AsrWord"), "With `word_timestamps=true`.")},
}

_DETECTED_LANGUAGE = record(
    "Which of the model's languages was heard.",
    {
        "detected_language": text("Its English name, or `undetermined`.", examples=["english"]),
        "language_code": text("Its ISO 639-1 code, or `und`.", examples=["en"]),
        "confidence": number(
            "How sure; left out where the model speaks one language.", minimum=0, maximum=1
        ),
    },
    optional=("confidence",),
)

_MODEL = record(
    "A model.",
    {
        "id": text("Its name."),
        "object": constant("model"),
        "created": whole("Time of its file, seconds since 1970; 0 while there is none."),
        "owned_by": constant("nvidia"),
    },
)

_MODEL_LIST = record(
    "The models that requests can name.",
    {
        "object": constant("list"),
        "data": array(ref("Model"), "The first is meant where a request names none.", minItems=1),
    },
)

_HEALTH = record(
    "How the server is.",
    {
        "status": constant("ok"),
        "version": text("The server's version."),
        "model": ref("ModelStatus"),
        "models": array(
            ref("ModelStatus"), "All that requests can name; the first is `model`.", minItems=1
        ),
        "device": text("Where models run.", examples=["cpu", "cuda:0"]),
        "device_memory": or_null(
            record(
                "The card's memory, bytes; null on a CPU, and before a model was loaded.",
                {
                    "used": whole("By all programs."),
                    "total": whole("All of it."),
                    "allocated": whole("By this server's models and batches."),
                    "reserved": whole("The same, and what is kept for the next batches."),
                },
            )
        ),
        "precision": or_null(text("The first model's encoder's; null before it was loaded.")),
        "queue": record(
            "Who waits for what.",
            {
                "active_requests": whole("Transcription requests being worked on."),
                "waiting_requests": whole("Transcription requests that wait for their turn."),
                "waiting_chunks": whole("Stretches of audio that wait for the model."),
            },
        ),
        "jobs": record(
            "The unfinished jobs.",
            {
                "queued": whole("Those that wait."),
                "running": whole("Those being worked on."),
                "error": or_null(text("Why no jobs are taken.")),
            },
        ),
        "limits": record(
            "What the operator set.",
            {
                "max_upload_mb": number("Largest upload; megabytes of 1,048,576 bytes."),
                "max_audio_hours": number("Longest recording."),
                "longest_chunk_s": number("Longest stretch of audio in one forward pass, seconds."),
                "batch_size": whole("Most such stretches in one forward pass."),
                "extensions": array(
                    text("Without a dot."), "Names' endings of the files that a page may offer."
                ),
            },
        ),
        "subtitles": record(
            "How cues are made.",
            {
                "line_length": whole("Characters after which a line breaks."),
                "lines": whole("Most lines in a cue."),
                "max_duration_s": _seconds("Longest cue"),
            },
        ),
        "report": ref("StartReport"),
    },
    optional=("report",),
)

_MODEL_STATUS = record(
    "How a model is.",
    {
        "name": text("Its name, or that of the one being fetched."),
        "demo": flag("It is one that comes with the server, for trying things out."),
        "note": or_null(text("What such a model is, in one sentence.")),
        "state": text(
            "Where it stands.",
            enum=sorted({*get_args(StoreState), *get_args(LoadState)}),
        ),
        "progress": or_null(
            number(
                "Share of the download, or of a GPU's warm-up while loading, that is done.",
                minimum=0,
                maximum=1,
            )
        ),
        "error": or_null(text("Why there is none.")),
        "languages": array(text("An ISO 639-1 code."), "What it speaks."),
    },
)

_START_REPORT = record(
    "What the server was started with; with `verbose`.",
    {
        "device": record(
            "What there is to compute with.",
            {
                "wanted": text("`DEVICE`."),
                "card": or_null(
                    record(
                        "The card that would be used.",
                        {"name": text("Its name."), "total_gb": number("Its memory.")},
                    )
                ),
                "cores": whole("Processor cores that the server may use."),
            },
        ),
        "memory": or_null(
            record(
                "The machine's memory now, or the container's share, bytes.",
                {"available": whole("Free."), "total": whole("All of it.")},
            )
        ),
        "precision": text("`PRECISION`."),
        "decoding": text("How tokens are found.", examples=["greedy", "beam of 4"]),
        "models": array(
            record(
                "A model and its file.",
                {
                    "name": text("Its name."),
                    "model_id": text("What is fetched where there is no file."),
                    "path": or_null(text("The file's name; null while it is fetched.")),
                    "bytes": or_null(whole("The file's size.")),
                    "demo": flag("It is one that comes with the server, for trying things out."),
                    "note": or_null(text("What such a model is, in one sentence.")),
                    "languages": array(text("An ISO 639-1 code."), "What it speaks."),
                },
            ),
            "The models that requests can name.",
        ),
        "plan": record(
            "How much a model is given at once.",
            {
                "longest_chunk_s": _seconds("Longest stretch of audio"),
                "batch_size": whole("Most stretches in a forward pass."),
                "batch_s": _seconds("Most audio in a forward pass"),
                "memory_mb": or_null(
                    number("GPU memory that a pass may take, MB, from which this is derived.")
                ),
                "memory_limit": or_null(text("What leaves it no more.")),
                "graphed_s": _seconds("Most audio in a pass of the encoder that is a CUDA graph"),
                "permits": whole("Forward passes at a time."),
            },
        ),
        "settings": array(
            record(
                "A setting.",
                {
                    "name": text("The variable."),
                    "value": text("Its final value; of keys only how many, of paths the end."),
                    "origin": text("Where it came from.", enum=list(get_args(Origin))),
                },
            ),
            "All settings.",
        ),
    },
)

_ADMIN_REPORT = record(
    "What was done.",
    {
        "models": array(
            record(
                "A model that was meant.",
                {
                    "name": text("Its name."),
                    "state": text("Where it stands now.", enum=list(get_args(LoadState))),
                    "outcome": text(
                        "What was done with it.",
                        enum=["unloaded", "not_loaded", "loaded", "already_loaded"],
                    ),
                },
            ),
            "All that were meant.",
            minItems=1,
        )
    },
)

_READINESS = record(
    "Whether a transcription could be served now.",
    {"ready": flag("It could."), "reason": or_null(text("Why it could not."))},
)

_TIME = whole("Seconds since 1970.")

_JOB = record(
    "A transcription that is done when its turn comes.",
    {
        "id": text("Its name, not to be guessed."),
        "object": constant("transcription.job"),
        "status": text("How far it is.", enum=list(get_args(JobStatus))),
        "created_at": _TIME,
        "started_at": or_null(_TIME),
        "finished_at": or_null(_TIME),
        "progress": record(
            "How much of the recording is recognised.",
            {
                "done_s": _seconds("So much"),
                "total_s": or_null(_seconds("Of so much, where that is known")),
                "fraction": or_null(number("Their ratio.", minimum=0, maximum=1)),
            },
        ),
        "model": or_null(text("The model that does it; null in jobs of older versions.")),
        "response_format": text("What the result looks like.", enum=list(get_args(ResponseFormat))),
        "result": {
            "description": "The transcript, once there is one: an object of the formats that are"
            " JSON, else text. Lists leave it out.",
            "anyOf": [
                ref("Transcription"),
                ref("VerboseTranscription"),
                {"type": "string"},
                {"type": "null"},
            ],
        },
        **_WARNINGS_FIELD,
        "error": or_null(ref("ErrorDetails")),
        "webhook": or_null(ref("Webhook")),
    },
    optional=("warnings",),
)

_WEBHOOK = record(
    "Who is told of a job's end.",
    {
        "url": text("Where the finished job is sent to."),
        "attempts": whole("How often that was tried."),
        "delivered": flag("It was answered 2xx."),
        "last_error": or_null(text("Why the last attempt failed.")),
    },
)

_JOB_LIST = record(
    "A page of jobs.",
    {
        "object": constant("list"),
        "data": array(ref("Job"), "Newest first."),
        "has_more": flag("There are older ones: ask again with `after` = the last one's id."),
    },
)

_DELETED_JOB = record(
    "A job that is forgotten.",
    {
        "id": text("Its name."),
        "object": constant("transcription.job"),
        "deleted": {"type": "boolean", "const": True},
    },
)

SCHEMAS: Json = {
    "Transcription": _TRANSCRIPTION,
    "VerboseTranscription": _VERBOSE_TRANSCRIPTION,
    "Word": _WORD,
    "Segment": _SEGMENT,
    "TokenLogprob": _TOKEN_LOGPROB,
    "Warning": _WARNING,
    "SoundTrack": _SOUND_TRACK,
    "DurationUsage": _DURATION_USAGE,
    "TokenUsage": _TOKEN_USAGE,
    "StreamedEvent": _STREAMED_EVENT,
    "TextDelta": _TEXT_DELTA,
    "TextDone": _DONE,
    "Progress": _PROGRESS,
    "Peaks": _PEAKS,
    "AsrTranscription": _ASR_TRANSCRIPTION,
    "AsrSegment": _ASR_SEGMENT,
    "AsrWord": _ASR_WORD,
    "DetectedLanguage": _DETECTED_LANGUAGE,
    "Model": _MODEL,
    "ModelList": _MODEL_LIST,
    "Health": _HEALTH,
    "ModelStatus": _MODEL_STATUS,
    "StartReport": _START_REPORT,
    "AdminReport": _ADMIN_REPORT,
    "Readiness": _READINESS,
    "Job": _JOB,
    "JobList": _JOB_LIST,
    "DeletedJob": _DELETED_JOB,
    "Webhook": _WEBHOOK,
}
"""All bodies but those of errors, by name."""
