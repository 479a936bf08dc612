"""The JSON of models, health, readiness and the start report."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from typing_extensions import TypedDict

from parakeet_api.formats.json_types import Count, Keywords, LanguageCode, Seconds, Share
from parakeet_api.model.checkpoints import StoreState
from parakeet_api.model.slot import LoadState
from parakeet_api.settings import Origin


class ModelJson(TypedDict):
    """A model."""

    id: str
    """Its name."""
    object: Literal["model"]
    created: Count
    """Time of its file, seconds since 1970; 0 while there is none."""
    owned_by: Literal["nvidia"]


class ModelList(TypedDict):
    """The models that requests can name."""

    object: Literal["list"]
    data: Annotated[list[ModelJson], Keywords(minItems=1)]
    """The first is meant where a request names none."""


class ModelStatus(TypedDict):
    """How a model is."""

    name: str
    """Its name, or that of the one being fetched."""
    demo: bool
    """It is the demo model, which understands a few hundred sentences."""
    state: Literal[StoreState, LoadState]
    """Where it stands."""
    progress: Share | None
    """Share of the download, or of a GPU's warm-up while loading, that is done."""
    error: str | None
    """Why there is none."""
    languages: list[LanguageCode]
    """What it speaks."""


class DeviceMemoryJson(TypedDict):
    """The card's memory, bytes; null on a CPU, and before a model was loaded."""

    used: Count
    """By all programs."""
    total: Count
    """All of it."""
    allocated: Count
    """By this server's models and batches."""
    reserved: Count
    """The same, and what is kept for the next batches."""


class QueueStatus(TypedDict):
    """Who waits for what."""

    active_requests: Count
    """Transcription requests being worked on."""
    waiting_requests: Count
    """Transcription requests that wait for their turn."""
    waiting_chunks: Count
    """Stretches of audio that wait for the model."""


class JobsStatus(TypedDict):
    """The unfinished jobs."""

    queued: Count
    """Those that wait."""
    running: Count
    """Those being worked on."""
    error: str | None
    """Why no jobs are taken."""


class Limits(TypedDict):
    """What the operator set."""

    max_upload_mb: float
    """Largest upload; megabytes of 1,048,576 bytes."""
    max_audio_hours: float
    """Longest recording."""
    longest_chunk_s: float
    """Longest stretch of audio in one forward pass, seconds."""
    batch_size: Count
    """Most such stretches in one forward pass."""
    extensions: list[Annotated[str, Keywords(description="Without a dot.")]]
    """Names' endings of the files that a page may offer."""


class SubtitleLimits(TypedDict):
    """How cues are made."""

    line_length: Count
    """Characters after which a line breaks."""
    lines: Count
    """Most lines in a cue."""
    max_duration_s: Seconds
    """Longest cue, seconds."""


class GpuJson(TypedDict):
    """The card that would be used."""

    name: str
    """Its name."""
    total_gb: float
    """Its memory, gigabytes."""
    free_gb: float | None
    """What of it was free at the start; null where that was not measured."""
    device: Annotated[str, Keywords(examples=["cuda:0"])]
    """Its name in PyTorch."""
    driver: str | None
    """The version of NVIDIA's driver, where the system tells it."""


class DeviceReport(TypedDict):
    """What there is to compute with."""

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
    """What is fetched where there is no file."""
    path: str | None
    """The file's name; null while it is fetched."""
    bytes: Count | None
    """The file's size."""
    demo: bool
    """It is the demo model."""
    languages: list[LanguageCode]
    """What it speaks."""


class PlanReport(TypedDict):
    """How much a model is given at once."""

    longest_chunk_s: Seconds
    """Longest stretch of audio, seconds."""
    batch_size: Count
    """Most stretches in a forward pass."""
    batch_s: Seconds
    """Most audio in a forward pass, seconds."""
    memory_mb: float | None
    """GPU memory that a pass may take, MB, from which this is derived."""
    memory_limit: str | None
    """What leaves it no more."""
    graphed_s: Seconds
    """Most audio in a pass of the encoder that is a CUDA graph, seconds."""
    permits: Count
    """Forward passes at a time."""


class SettingReport(TypedDict):
    """A setting."""

    name: str
    """The variable."""
    value: str
    """Its final value; of keys only how many, of paths the end."""
    origin: Origin
    """Where it came from."""


class StartReportJson(TypedDict):
    """What the server was started with; with `verbose`."""

    device: DeviceReport
    memory: HostMemoryJson | None
    precision: str
    """`PRECISION`."""
    decoding: Annotated[str, Keywords(examples=["greedy", "beam of 4"])]
    """How tokens are found."""
    models: list[ModelReport]
    """The models that requests can name."""
    plan: PlanReport
    settings: list[SettingReport]
    """All settings."""


class Health(TypedDict):
    """How the server is."""

    status: Literal["ok"]
    version: str
    """The server's version."""
    model: ModelStatus
    models: Annotated[list[ModelStatus], Keywords(minItems=1)]
    """All that requests can name; the first is `model`."""
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
    """It could."""
    reason: str | None
    """Why it could not."""


class ModelOutcome(TypedDict):
    """A model that was meant."""

    name: str
    """Its name."""
    state: LoadState
    """Where it stands now."""
    outcome: Literal["unloaded", "not_loaded", "loaded", "already_loaded"]
    """What was done with it."""


class AdminReport(TypedDict):
    """What was done."""

    models: Annotated[list[ModelOutcome], Keywords(minItems=1)]
    """All that were meant."""
