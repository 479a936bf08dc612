"""The running server as an OpenAPI 3.1 document.

Built from the tables that the server itself uses: formats, values of parameters, errors, settings.
`tests/openapi/test_openapi.py` compares it with the routes, `tests/http/test_contract.py` and
`tests/openapi/test_schemathesis.py` with the responses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from parakeet_api import errors
from parakeet_api.audio.ffmpeg import SUPPORTED_FORMATS
from parakeet_api.errors import ApiError
from parakeet_api.formats.asr_api import AsrParams, Output, render_asr
from parakeet_api.formats.request_params import (
    URL_FIELD,
    Granularity,
    Include,
    Task,
    TranscriptionParams,
)
from parakeet_api.formats.speaker_params import ResponseFormat
from parakeet_api.jobs.job import DEFAULT_LISTED, MAX_LISTED
from parakeet_api.keywords import MAX_KEYWORD_CHARS, MAX_KEYWORDS
from parakeet_api.openapi.examples import EXAMPLE, example_of, example_stream
from parakeet_api.openapi.json_schema import (
    Json,
    array,
    constant,
    flag,
    number,
    record,
    ref,
    text,
)
from parakeet_api.openapi.parts import HEADERS, MEANINGS, json_response, operation
from parakeet_api.openapi.schemas import body_schemas, error_details
from parakeet_api.openapi.speaker_fields import speaker_fields
from parakeet_api.settings import Settings, model_basename

_BAD_SESSION = (errors.InvalidRequestError, errors.UnsupportedLanguageError)
_BAD_REQUEST = (*_BAD_SESSION, errors.DiarizationOffError)
_BAD_AUDIO = (
    errors.AudioDecodeError,
    errors.NoAudioTrackError,
    errors.TruncatedAudioError,
    errors.AudioTooLongError,
    errors.RecordingUrlError,
)
_NO_MODEL = (
    errors.ServiceUnavailableError,
    errors.ModelNotReadyError,
    errors.ModelLoadError,
    errors.DeviceLostError,
    errors.ClusterUnavailableError,
)
_TRANSCRIPTION_ERRORS = (
    *_BAD_REQUEST,
    *_BAD_AUDIO,
    errors.UploadTooLargeError,
    errors.RateLimitError,
    *_NO_MODEL,
    errors.QueueFullError,
    errors.StoppingError,
)

_SUMMARY = """\
Speech to text with NVIDIA's Parakeet-TDT, on your own machine. Send any recording or video, get
its transcript as text, JSON with word times, or subtitles.

The paths under `/v1/audio` and `/v1/models` are OpenAI's, with the same parameters and responses,
so that OpenAI's clients work with a changed `base_url`. They also work without `/v1`. `/v1/jobs`
is this server's own. `/asr` and `/detect-language` are those of whisper-asr-webservice.

Every error has one shape, `{"error": {"message", "type", "param", "code"}}`. Fields that are not
listed are ignored. A path that does not exist is a 404, a method that it does not have a 405 with
`Allow`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the document says about the running server."""

    version: str
    model: str
    """The first model's name, or that of the one being downloaded."""
    languages: frozenset[str]
    """ISO 639-1 codes of the models' languages."""
    settings: Settings


def describe(facts: Facts) -> Json:
    """Build the OpenAPI document, ready to be written as JSON."""
    keys = bool(facts.settings.api_keys)
    security: Json = {"security": [{"bearer": []}]} if keys else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Parakeet API",
            "version": facts.version,
            "description": f"{_SUMMARY}\n\n{_this_server(facts)}",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        # Relative to the document, so it is right behind any path prefix of a proxy.
        "servers": [{"url": "./", "description": "This server"}],
        **security,
        "tags": [
            {"name": "OpenAI", "description": "Compatible with OpenAI's API."},
            {"name": "Jobs", "description": "Transcriptions in the background."},
            {"name": "whisper-asr-webservice", "description": "For Bazarr and others."},
            {"name": "Server", "description": "Pages, health, metrics and administration."},
        ],
        "paths": _openai_paths(facts)
        | _realtime_paths(facts)
        | _job_paths(facts)
        | _asr_paths(facts)
        | _server_paths(facts)
        | _admin_paths(facts),
        "components": _components(keys=keys),
    }


def _this_server(facts: Facts) -> str:
    settings = facts.settings
    access = "a bearer key is required" if settings.api_keys else "no key is required"
    return (
        f"This server: {_models(facts)} {_listed(facts.languages)};"
        f" uploads of at most {settings.max_upload_mb:g} MB and {settings.max_audio_hours:g} hours;"
        f" {settings.app_threads} transcriptions at a time, a queue of"
        f" {settings.max_queued_requests}; {access}."
    )


def _models(facts: Facts) -> str:
    others = [model_basename(name) for name in facts.settings.models[1:]]
    if not others:
        return f"model `{facts.model}`, which transcribes"
    return f"models `{facts.model}`, {_listed(others)}, which together transcribe"


def _components(*, keys: bool) -> Json:
    schemes = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "One of the keys that the server was started with (`API_KEY`).",
        }
    }
    return {
        "schemas": body_schemas() | {"ErrorDetails": error_details(list(MEANINGS))},
        "headers": dict(HEADERS),
        **({"securitySchemes": schemes} if keys else {}),
    }


def _openai_paths(facts: Facts) -> Json:
    return {
        "/v1/audio/transcriptions": {"post": _transcription(facts)},
        "/v1/audio/translations": {"post": _translation(facts)},
        "/v1/models": {
            "get": operation(
                "listModels",
                tag="OpenAI",
                summary="List the models",
                description="One, or those of `MODELS`.",
                responses={200: json_response(ref("ModelList"))},
                refusals=_guarded(facts),
            )
        },
        "/v1/models/{name}": {
            "get": operation(
                "showModel",
                tag="OpenAI",
                summary="Describe a model",
                description="The first also has the names of OpenAI's models.",
                parameters=[
                    _in_path("name", "A model's name, which may hold slashes.", example=facts.model)
                ],
                responses={200: json_response(ref("Model"))},
                refusals=_guarded(facts, errors.NotFoundError, errors.ModelNotFoundError),
            )
        },
    }


def _realtime_paths(facts: Facts) -> Json:
    session = record("As `session.update` has it.", {"type": constant("transcription")})
    lifetime = {
        "type": "integer",
        "minimum": 10,
        "maximum": 7200,
        "default": 600,
        "description": "Seconds that the key is valid.",
    }
    return {
        "/v1/realtime": {
            "get": operation(
                "openRealtime",
                tag="OpenAI",
                summary="Transcribe live",
                description="A WebSocket with the events of OpenAI's realtime transcription; its"
                " packages speak it. A browser sends the key as the subprotocol"
                " `openai-insecure-api-key.KEY`, beside `realtime`.",
                parameters=[
                    _query("intent", text("What the session is for.", enum=["transcription"])),
                    _query("model", _model(facts)),
                ],
                responses={101: {}},
                refusals=_guarded(
                    facts,
                    errors.InvalidRequestError,
                    *(() if facts.settings.api_keys else (errors.ForbiddenError,)),
                    *_choice(facts),
                    errors.RateLimitError,
                    *_NO_MODEL,
                    errors.QueueFullError,
                    errors.StoppingError,
                ),
            )
        },
        "/v1/realtime/client_secrets": {
            "post": operation(
                "createClientSecret",
                tag="OpenAI",
                summary="Make a key for a page",
                description="It opens live sessions with this configuration, for some minutes.",
                body=record(
                    "Everything may be left out.",
                    {"session": session, "expires_after": record("", {"seconds": lifetime})},
                )
                | {"required": []},
                responses={200: json_response(ref("ClientSecret"))},
                refusals=_guarded(
                    facts,
                    *_BAD_SESSION,
                    *_choice(facts),
                    errors.UploadTooLargeError,
                    errors.RateLimitError,
                ),
            )
        },
    }


def _job_paths(facts: Facts) -> Json:
    transcripts = _transcripts(facts.settings)
    at_job = [_in_path("job_id", "The job's id.")]
    unknown = (errors.NotFoundError, errors.JobsUnavailableError)
    return {
        "/v1/jobs": {
            "post": operation(
                "submitJob",
                tag="Jobs",
                summary="Submit a recording to be transcribed in the background",
                description="The form is that of a transcription, without `stream`.",
                form=_job_form(facts),
                responses={202: json_response(ref("Job"))},
                refusals=_guarded(
                    facts,
                    *_BAD_REQUEST,
                    *_choice(facts),
                    errors.UploadTooLargeError,
                    errors.RateLimitError,
                    errors.QueueFullError,
                    errors.StoppingError,
                    errors.JobsUnavailableError,
                ),
            ),
            "get": operation(
                "listJobs",
                tag="Jobs",
                summary="List your jobs",
                description="Newest first, without their results. Each key has jobs of its own.",
                parameters=[
                    _query(
                        "limit",
                        {
                            "type": "integer",
                            "minimum": 1,
                            "maximum": MAX_LISTED,
                            "default": DEFAULT_LISTED,
                            "description": "Most jobs to list.",
                        },
                    ),
                    _query("after", text("The id of the last job on the previous page.")),
                ],
                responses={200: json_response(ref("JobList"))},
                refusals=_guarded(facts, errors.InvalidRequestError, errors.JobsUnavailableError),
            ),
        },
        "/v1/jobs/{job_id}": {
            "get": operation(
                "showJob",
                tag="Jobs",
                summary="Describe a job",
                description="With its progress, and its result or error once it has one.",
                parameters=at_job,
                responses={200: json_response(ref("Job"))},
                refusals=_guarded(facts, *unknown),
            ),
            "delete": operation(
                "deleteJob",
                tag="Jobs",
                summary="Cancel or delete a job",
                description="An unfinished job is cancelled, a finished one deleted.",
                parameters=at_job,
                responses={200: json_response({"anyOf": [ref("Job"), ref("DeletedJob")]})},
                refusals=_guarded(facts, *unknown),
            ),
        },
        "/v1/jobs/{job_id}/events": {
            "get": operation(
                "showJobEvents",
                tag="Jobs",
                summary="The words of a job as they come",
                description="What became final since the client asked last, as the events of a"
                " stream. A job that is started again, after a crash, has another `run`: its events"
                " begin again.",
                parameters=[
                    *at_job,
                    _query("run", text("The `run` of the answer before.")),
                    _query(
                        "after",
                        {
                            "type": "integer",
                            "minimum": 0,
                            "maximum": 999_999_999,
                            "default": 0,
                            "description": "The `following` of the answer before.",
                        },
                    ),
                ],
                responses={200: json_response(ref("JobEvents"))},
                refusals=_guarded(facts, errors.InvalidRequestError, *unknown),
            ),
        },
        "/v1/jobs/{job_id}/result": {
            "get": operation(
                "showJobResult",
                tag="Jobs",
                summary="The result of a job",
                description="The response of a direct transcription, which may be an error.",
                parameters=at_job,
                responses={200: transcripts},
                has_warnings=True,
                refusals=_guarded(
                    facts,
                    *unknown,
                    *_BAD_AUDIO,
                    *_choice(facts),
                    *_NO_MODEL,
                    errors.JobNotFinishedError,
                    errors.JobCancelledError,
                ),
            )
        },
    }


def _job_form(facts: Facts) -> Json:
    form = _transcription_form(facts)
    fields = {name: schema for name, schema in form["properties"].items() if name != "stream"}
    hosts = ", ".join(facts.settings.allow_webhooks)
    calls = f"only on these hosts: {hosts}" if hosts else "which this server does not allow"
    webhook = text(f"Where to POST the finished job, {calls}.", default="")
    return form | {"properties": fields | {"webhook_url": webhook}}


def _in_path(name: str, description: str, **more: Any) -> Json:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", "minLength": 1},
        **more,
    }


def _asr_paths(facts: Facts) -> Json:
    recording = record("The recording.", {"audio_file": _recording(facts.settings)})
    encode = flag(
        "`false`: the upload is 16-bit samples, 16 kHz, mono, little-endian, without a header.",
        default=True,
    )
    expected = {
        "model": _model(facts),
        "language": _language(facts),
        "languages[]": _languages(),
        "encode": encode,
        "audio_track": _audio_track(),
        "allow_partial": _allow_partial(),
    }
    wanted = {
        "output": text("Format of the response.", enum=list(get_args(Output)), default="txt"),
        "task": text(
            "`translate` transcribes English and refuses other languages: the model does not"
            " translate.",
            enum=list(get_args(Task)),
            default="transcribe",
        ),
        "word_timestamps": flag("List the words in `json`.", default=False),
        **speaker_fields(),
        "hotwords[]": _keywords(),
    }
    return {
        "/asr": {
            "post": operation(
                "asr",
                tag="whisper-asr-webservice",
                summary="Transcribe a recording",
                description="The parameters may also be in the form.",
                parameters=[_query(name, schema) for name, schema in (wanted | expected).items()],
                form=recording,
                responses={200: _asr_transcripts(facts.settings)},
                has_warnings=True,
                refusals=_guarded(facts, *_TRANSCRIPTION_ERRORS, *_choice(facts)),
            )
        },
        "/detect-language": {
            "post": operation(
                "detectLanguage",
                tag="whisper-asr-webservice",
                summary="Detect the language of a recording",
                description="From its first words; decoding stops once they are enough.",
                parameters=[_query(name, schema) for name, schema in expected.items()],
                form=recording,
                responses={200: json_response(ref("DetectedLanguage"))},
                refusals=_guarded(facts, *_TRANSCRIPTION_ERRORS, *_choice(facts)),
            )
        },
    }


def _query(name: str, schema: Json) -> Json:
    described = {key: value for key, value in schema.items() if key != "description"}
    return {"name": name, "in": "query", "description": schema["description"], "schema": described}


def _asr_transcripts(settings: Settings) -> Json:
    def example(output: Output, *, word_timestamps: bool = False) -> Any:
        params = AsrParams(
            output=output,
            task="transcribe",
            languages=frozenset(),
            word_timestamps=word_timestamps,
            raw_pcm=False,
            audio_track=None,
            allow_partial=False,
        )
        return render_asr(EXAMPLE, params, settings=settings).content

    return {
        "application/json": {
            "schema": ref("AsrTranscription"),
            "example": example("json", word_timestamps=True),
        },
        "text/plain": {"schema": text("One sentence per line."), "example": example("txt")},
        "text/tab-separated-values": {
            "schema": text("A header, then one sentence per line; times in milliseconds."),
            "example": example("tsv"),
        },
        "application/x-subrip": {"schema": text("SubRip subtitles."), "example": example("srt")},
        "text/vtt": {"schema": text("WebVTT subtitles."), "example": example("vtt")},
    }


def _server_paths(facts: Facts) -> Json:
    public: Json = {
        "/": _page("page", "The page to transcribe with"),
        "/docs": _page("docs", "The page to try the API with"),
        "/openapi.json": operation(
            "openapi",
            tag="Server",
            summary="This document",
            description="As OpenAPI 3.1.",
            responses={
                200: json_response({"type": "object", "required": ["openapi", "info", "paths"]})
            },
        ),
        "/health/simple": operation(
            "alive",
            tag="Server",
            summary="Whether the server answers",
            description="Says nothing about models.",
            responses={200: {"text/plain": {"schema": text("Always `ok`."), "example": "ok\n"}}},
        ),
        "/ready": operation(
            "ready",
            tag="Server",
            summary="Whether a transcription could be served now",
            description="For load balancers: a 503 of the same shape means no.",
            responses={status: json_response(ref("Readiness")) for status in (200, 503)},
        ),
    }
    # Stated for each, or the document's own requirement would apply.
    paths = {path: {"get": {**known, "security": []}} for path, known in public.items()}
    return {
        **paths,
        "/health": {"get": _health(facts)},
        "/metrics": {"get": _metrics(facts)},
    }


def _health(facts: Facts) -> Json:
    keyless: list[Json] = [{}, {"bearer": []}] if facts.settings.api_keys else []
    return operation(
        "health",
        tag="Server",
        summary="State of the models, the queue and the jobs",
        description="Never waits for a model.",
        parameters=[
            _query(
                "verbose",
                flag(
                    "Also report hardware, models and settings of the start. If keys are set, this"
                    " needs one.",
                    default=False,
                ),
            )
        ],
        responses={200: json_response(ref("Health"))},
        refusals=_guarded(facts, errors.InvalidRequestError),
    ) | {"security": keyless}


def _admin_paths(facts: Facts) -> Json:
    who = (
        "" if facts.settings.api_keys else " Without `API_KEY`, only from the server's own machine."
    )
    name = text("Name of the model.", default="")
    refusals = (
        *(() if facts.settings.api_keys else (errors.ForbiddenError,)),
        errors.InvalidRequestError,
    )
    return {
        "/admin/unload": {
            "post": operation(
                "unload",
                tag="Server",
                summary="Unload the models",
                description="Frees the memory of the named model, or of all models. Does not wait:"
                " a model that is in use stays loaded, which is a 409; the others are unloaded."
                f" The next request loads a model again.{who}",
                parameters=[_query("model", name)],
                responses={200: json_response(ref("AdminReport"))},
                refusals=_guarded(facts, *refusals, *_choice(facts), errors.ModelInUseError),
            )
        },
        "/admin/load": {
            "post": operation(
                "load",
                tag="Server",
                summary="Load a model",
                description="The named model, or the first. Responds when it is loaded, or after"
                f" two minutes with a 503, while loading continues.{who}",
                parameters=[_query("model", name)],
                responses={200: json_response(ref("AdminReport"))},
                refusals=_guarded(
                    facts, *refusals, *_choice(facts), *_NO_MODEL, errors.StoppingError
                ),
            )
        },
    }


def _metrics(facts: Facts) -> Json:
    return operation(
        "metrics",
        tag="Server",
        summary="Metrics for Prometheus",
        description="Counters, gauges and histograms, in Prometheus' text format.",
        responses={200: {"text/plain": {"schema": text("The metrics.")}}},
        refusals=_guarded(facts),
    )


def _page(name: str, summary: str) -> Json:
    return operation(
        name,
        tag="Server",
        summary=summary,
        description="For a browser. Loads nothing from other hosts.",
        responses={200: {"text/html": {"schema": {"type": "string"}}}},
    )


def _transcription(facts: Facts) -> Json:
    return operation(
        "transcribe",
        tag="OpenAI",
        summary="Transcribe a recording",
        description="Responds when the whole recording is transcribed, or with `stream=true`"
        " continuously. Silence gives an empty text. If the client disconnects, the work stops.",
        form=_transcription_form(facts),
        responses={200: _transcripts(facts.settings) | _stream(facts.settings)},
        has_warnings=True,
        refusals=_guarded(facts, *_TRANSCRIPTION_ERRORS, *_choice(facts)),
    )


def _translation(facts: Facts) -> Json:
    return operation(
        "translate",
        tag="OpenAI",
        summary="Transcribe an English recording",
        description="The model does not translate: English speech is transcribed, another language"
        " is a 400 with the code `unsupported_language`.",
        form=_transcription_form(facts),
        responses={200: _transcripts(facts.settings) | _stream(facts.settings)},
        has_warnings=True,
        refusals=_guarded(facts, *_TRANSCRIPTION_ERRORS, *_choice(facts)),
    )


def _transcription_form(facts: Facts) -> Json:
    form = record(
        "The recording and the parameters. An empty field counts as not sent.",
        {
            "file": _recording(facts.settings),
            "model": _model(facts),
            "response_format": text(
                "Format of the response.", enum=list(get_args(ResponseFormat)), default="json"
            ),
            "language": _language(facts),
            "languages[]": _languages(),
            "timestamp_granularities[]": array(
                {"type": "string", "enum": list(get_args(Granularity))},
                "Lists in `verbose_json`; no effect on other formats.",
                default=["segment"],
            ),
            "include[]": array(
                {"type": "string", "enum": list(get_args(Include))},
                "Additional parts of the response: `logprobs`, the log-probabilities of tokens, in"
                " `json`, `verbose_json` and streams. `progress` and `peaks`, this server's own,"
                " are events of a stream and have no effect elsewhere.",
                default=[],
            ),
            "stream": flag(
                "Respond with server-sent events: words as they become final, then the whole.",
                default=False,
            ),
            "audio_track": _audio_track(),
            "allow_partial": _allow_partial(),
            "temperature": number(
                "Checked, but has no effect: decoding does not sample.",
                minimum=0,
                maximum=1,
                default=0,
            ),
            "prompt": text(
                "Accepted, but has no effect: this kind of model takes no prompt.", default=""
            ),
            "keywords[]": _keywords(),
            **speaker_fields(),
            "chunking_strategy": text(
                "Checked, but has no effect: recordings are always cut at silences. `auto`, or an"
                " object with the `type` `auto` or `server_vad` as JSON; also as"
                " `chunking_strategy[type]=server_vad`.",
                default="auto",
                examples=["auto", '{"type": "server_vad"}'],
            ),
        },
    )
    if not facts.settings.allow_urls:
        return form | {"required": ["file"]}
    form["properties"][URL_FIELD] = text(
        "Address of the recording instead of `file`: http or https, on one of these hosts: "
        + ", ".join(facts.settings.allow_urls)
        + ".",
        format="uri",
    )
    return form | {"anyOf": [{"required": ["file"]}, {"required": [URL_FIELD]}]}


def _model(facts: Facts) -> Json:
    names = facts.settings.models
    if not names:
        return text(
            f"Any name is accepted; the loaded model is `{facts.model}`.", default=facts.model
        )
    return text(
        f"One of {_listed(map(model_basename, names))}. The first, `{facts.model}`, is"
        " the default, and is also used for the names of OpenAI's models and of Whisper's. Any"
        " other name is a 404.",
        default=facts.model,
        examples=list(map(model_basename, names)),
    )


def _language(facts: Facts) -> Json:
    return text(
        "The language spoken: a code, a locale or a name (`de`, `deu`, `de-AT`, `German`,"
        " `Deutsch`). `auto`, or none: detected from the text. A language that the model"
        f" does not support is a 400; it supports {_listed(facts.languages)}.",
        default="auto",
    )


def _languages() -> Json:
    return array(
        {"type": "string"},
        "Languages that may be spoken, as hints: those that the model does not support are"
        " ignored, but if it supports none of them, that is a 400.",
        default=[],
    )


def _keywords() -> Json:
    return array(
        {"type": "string", "pattern": r"^[^<>\r\n]*$"},
        f"Names and terms that may be said, each at most {MAX_KEYWORD_CHARS} characters and at most"
        f" {MAX_KEYWORDS} together: where what is heard is nearly one, it is taken, and its words"
        " have `from_keyword` in `verbose_json`. `Name:2` gives one twice the weight. One that"
        " cannot be written with the model's letters is a 400.",
        default=[],
        examples=[["Nabucodonosor", "forcemeat:1.5"]],
    )


def _audio_track() -> Json:
    return {
        "description": "The sound track of the file: its number, from 1, or `all` = all mixed."
        " By default the one that a player would choose; if that is silent or cannot be decoded,"
        " the next one, with a warning.",
        "anyOf": [{"type": "integer", "minimum": 1}, constant("all")],
    }


def _allow_partial() -> Json:
    return flag(
        "`true`: a truncated file is transcribed as far as it goes, with a warning, instead of a"
        " 400 with the code `truncated_audio`.",
        default=False,
    )


def _recording(settings: Settings) -> Json:
    return {
        "type": "string",
        # OpenAPI 3.1 leaves this keyword to tools, which offer a file for it.
        "format": "binary",
        "description": "The recording: audio or video, anything that ffmpeg can decode"
        f" ({', '.join(SUPPORTED_FORMATS)} and more), at most {settings.max_upload_mb:g} MB and"
        f" {settings.max_audio_hours:g} hours.",
    }


def _transcripts(settings: Settings) -> Json:
    """Describe the media types of a transcription."""
    verbose = TranscriptionParams(
        response_format="verbose_json", granularities=frozenset(get_args(Granularity))
    )
    diarized = TranscriptionParams(response_format="diarized_json")
    kinds = ("Transcription", "VerboseTranscription", "DiarizedTranscription")
    return {
        "application/json": {
            "schema": {"anyOf": [ref(kind) for kind in kinds]},
            "examples": {
                "json": {"value": example_of(TranscriptionParams(), settings)},
                "verbose_json": {"value": example_of(verbose, settings)},
                "diarized_json": {"value": example_of(diarized, settings)},
            },
        },
        "text/plain": _text("text", "The text and a line feed.", settings),
        "application/x-subrip": _text("srt", "SubRip subtitles.", settings),
        "text/vtt": _text("vtt", "WebVTT subtitles.", settings),
    }


def _stream(settings: Settings) -> Json:
    """Describe the media type of a stream."""
    return {
        "text/event-stream": {
            # Like OpenAPI 3.2, which describes each event of a stream.
            "schema": record(
                "An event; an error ends the stream.",
                {
                    "data": text(
                        "JSON on one line.",
                        contentMediaType="application/json",
                        contentSchema=ref("StreamedEvent"),
                    ),
                    # No line has it: it is the default of the standard.
                    "event": constant("message"),
                },
                optional=("event",),
            ),
            "example": example_stream(settings),
        },
    }


def _text(response_format: ResponseFormat, description: str, settings: Settings) -> Json:
    params = TranscriptionParams(response_format=response_format)
    return {"schema": text(description), "example": example_of(params, settings)}


def _guarded(facts: Facts, *refusals: type[ApiError]) -> tuple[type[ApiError], ...]:
    """Add the error of a missing key, if keys are set; drop those that settings rule out."""
    settings = facts.settings
    possible = {
        errors.RateLimitError: settings.rate_limit is not None,
        errors.RecordingUrlError: bool(settings.allow_urls),
        errors.ClusterUnavailableError: settings.ray_address is not None,
    }
    refusals = tuple(kind for kind in refusals if possible.get(kind, True))
    return (errors.AuthenticationError, *refusals) if settings.api_keys else refusals


def _choice(facts: Facts) -> tuple[type[ApiError], ...]:
    """Return the error of an unknown model, if requests choose one."""
    return (errors.ModelNotFoundError,) if facts.settings.models else ()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))
