"""The JSON of models, health, readiness and the start report."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from typing_extensions import TypedDict

from parakeet_api.formats.json_types import Count, Keywords, LanguageCode, Seconds, Share
from parakeet_api.model.checkpoints import StoreState
from parakeet_api.model.slot import LoadState
from parakeet_api.settings import Origin


class StreamingJson(TypedDict):
    """What a model hears of a stream that it was trained for."""

    left_s: Seconds | None
    """Seconds before a chunk that it hears; null = all of them."""
    chunks_s: list[Seconds]
    """Lengths of chunks, seconds, that it was trained with; the first is its default."""


class ModelJson(TypedDict):
    """A model."""

    id: str
    """Its name."""
    object: Literal["model"]
    created: Count
    """Time of its file, seconds since 1970; 0 if there is none."""
    owned_by: Literal["nvidia"]
    languages: list[LanguageCode]
    """Its languages."""
    parameters: Count | None
    """How many weights it has; null while its file is missing."""
    durations: bool | None
    """Whether it tells how long each token lasts; if not, a word ends where the next begins, and
    240 ms after its last token begins at the latest. Null while its file is missing."""
    streaming: StreamingJson | None
    """What it hears of a stream; null if it was not trained for streams."""
    license: str | None
    """The licence, where the model's file or card states it."""


class ModelList(TypedDict):
    """The models that requests can name."""

    object: Literal["list"]
    data: Annotated[list[ModelJson], Keywords(minItems=1)]
    """The first is the default."""


class ModelStatus(TypedDict):
    """State of a model."""

    name: str
    """Its name, or that of the one being downloaded."""
    demo: bool
    """Whether it is one that comes with the server, for trying things out."""
    note: str | None
    """What such a model is, in one sentence."""
    state: Literal[StoreState, LoadState]
    """Its state."""
    progress: Share | None
    """Share of the download, or of a GPU's warm-up while loading, that is done."""
    error: str | None
    """Why the model is unavailable."""
    languages: list[LanguageCode]
    """Its languages."""


class DiarizerStatus(TypedDict):
    """State of the model that tells speakers apart."""

    name: str
    """Its name, or that of the one to download."""
    demo: bool
    """Whether it is the one that comes with the server, for trying things out."""
    note: str | None
    """What such a model is, in one sentence."""
    state: Literal[StoreState, LoadState]
    """Its state; a missing file is `choosing` until the first request that needs it."""
    progress: Share | None
    """Share of the download that is done."""
    error: str | None
    """Why the model is unavailable."""
    max_speakers: Count
    """How many speakers it tells apart in one recording."""


class DeviceMemoryJson(TypedDict):
    """GPU memory, bytes; null on a CPU, and before a model was loaded."""

    used: Count
    """By all programs."""
    total: Count
    """All of it."""
    allocated: Count
    """By this server's models and batches."""
    reserved: Count
    """The same, with what is cached for the next batches."""


class QueueStatus(TypedDict):
    """Requests and chunks of audio in progress."""

    active_requests: Count
    """Transcription requests being processed."""
    waiting_requests: Count
    """Transcription requests in the queue."""
    waiting_chunks: Count
    """Chunks of audio that wait for the model."""


class JobsStatus(TypedDict):
    """The unfinished jobs."""

    queued: Count
    """Jobs in the queue."""
    running: Count
    """Jobs being processed."""
    error: str | None
    """Why no jobs are accepted."""


class Limits(TypedDict):
    """Limits of the settings."""

    max_upload_mb: float
    """Largest upload; megabytes of 1,048,576 bytes."""
    max_audio_hours: float
    """Longest recording."""
    longest_chunk_s: float
    """Longest chunk of audio in one forward pass, seconds."""
    batch_size: Count
    """Most chunks in one forward pass."""
    recording_urls: bool
    """Whether some hosts are listed in `ALLOW_URLS`."""
    extensions: list[Annotated[str, Keywords(description="Without a dot.")]]
    """File extensions that a page may offer."""


class SubtitleLimits(TypedDict):
    """Limits of subtitle cues."""

    line_length: Count
    """Characters after which a line breaks."""
    lines: Count
    """Most lines in a cue."""
    max_duration_s: Seconds
    """Longest cue, seconds."""


class GpuJson(TypedDict):
    """The GPU that would be used."""

    name: str
    """Its name."""
    total_gb: float
    """Its memory, gigabytes."""
    free_gb: float | None
    """Its free memory at the start, gigabytes; null if not measured."""
    device: Annotated[str, Keywords(examples=["cuda:0"])]
    """Its name in PyTorch."""
    driver: str | None
    """Version of NVIDIA's driver, where known."""


class DeviceReport(TypedDict):
    """The hardware."""

    wanted: str
    """`DEVICE`."""
    card: GpuJson | None
    cores: Count
    """Processor cores that the server may use."""


class HostMemoryJson(TypedDict):
    """The machine's memory now, or the container's share, bytes."""

    available: Count
    """Free."""
    total: Count
    """All of it."""


class ModelReport(TypedDict):
    """A model and its file."""

    name: str
    """Its name."""
    model_id: str
    """The model that is downloaded if there is no file."""
    path: str | None
    """The file's name; null while it is downloaded."""
    bytes: Count | None
    """The file's size."""
    demo: bool
    """Whether it is one that comes with the server, for trying things out."""
    note: str | None
    """What such a model is, in one sentence."""
    languages: list[LanguageCode]
    """Its languages."""


class PlanReport(TypedDict):
    """Limits of a forward pass."""

    longest_chunk_s: Seconds
    """Longest chunk of audio, seconds."""
    batch_size: Count
    """Most chunks in a forward pass."""
    batch_s: Seconds
    """Most audio in a forward pass, seconds."""
    memory_mb: float | None
    """GPU memory that a pass may take, MB, from which this is derived."""
    memory_limit: str | None
    """What limits that memory."""
    graphed_s: Seconds
    """Most audio in a pass of the encoder that is a CUDA graph, seconds."""
    permits: Count
    """Forward passes at a time."""


class SettingReport(TypedDict):
    """A setting."""

    name: str
    """The variable."""
    value: str
    """Its final value; only the number of keys, only the last part of paths."""
    origin: Origin
    """Where it came from."""


class StartReportJson(TypedDict):
    """What the server was started with; with `verbose`."""

    device: DeviceReport
    memory: HostMemoryJson | None
    precision: str
    """`PRECISION`."""
    decoding: Annotated[str, Keywords(examples=["greedy", "beam of 4"])]
    """The decoding strategy."""
    models: list[ModelReport]
    """The models that requests can name."""
    plan: PlanReport
    settings: list[SettingReport]
    """All settings."""


class Health(TypedDict):
    """State of the server."""

    status: Literal["ok"]
    version: str
    """The server's version."""
    model: ModelStatus
    models: Annotated[list[ModelStatus], Keywords(minItems=1)]
    """All that requests can name; the first is `model`."""
    diarizer: DiarizerStatus | None
    """Null with `DIARIZATION=off`."""
    device: Annotated[str, Keywords(examples=["cpu", "cuda:0"])]
    """Where models run."""
    device_memory: DeviceMemoryJson | None
    precision: str | None
    """The first model's encoder's; null before it was loaded."""
    queue: QueueStatus
    jobs: JobsStatus
    limits: Limits
    subtitles: SubtitleLimits
    report: NotRequired[StartReportJson]


class Readiness(TypedDict):
    """Whether a transcription could be served now."""

    ready: bool
    """Whether it could."""
    reason: str | None
    """Why not; null if ready."""


class ModelOutcome(TypedDict):
    """A model of the request."""

    name: str
    """Its name."""
    state: LoadState
    """Its state now."""
    outcome: Literal["unloaded", "not_loaded", "loaded", "already_loaded"]
    """What was done."""


class AdminReport(TypedDict):
    """Outcome of the request."""

    models: Annotated[list[ModelOutcome], Keywords(minItems=1)]
    """All models of the request."""
