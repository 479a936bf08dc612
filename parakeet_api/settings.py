"""All settings, parsed once from environment variables.

Each field of `Settings` declares its variable, default and parser; `Settings.from_env` is the only
reader of the environment. An invalid value stops the start with `NAME='value' is not ...`.
"""
# ruff: noqa: RUF009 - `_setting` makes a `dataclasses.field`

from __future__ import annotations

import dataclasses
import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from parakeet_api.errors import SettingsError
from parakeet_api.languages import language_code

Preset = Literal["speed", "balanced", "quality"]
DemoModel = Literal["auto", "always", "grammar", "never"]
Precision = Literal["auto", "fp16", "bf16", "int8", "fp32"]
DecodingStrategy = Literal["greedy", "beam"]
MatmulPrecision = Literal["highest", "high", "medium"]
LogFormat = Literal["text", "json"]
Origin = Literal["default", "preset", "environment"]

_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})
_DECIMAL = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?"
"""Unambiguous: a long value that is not a number causes no backtracking."""
_HOST = r"([a-z0-9]([a-z0-9_.-]*[a-z0-9])?|\[(?P<v6>[0-9a-f:.]+)\])(:(?P<port>[0-9]{1,5}))?"
"""Without scheme, path or user name; an IPv6 address is in brackets."""
_MIN_DB = -120.0
"""Below the noise of any 16-bit recording (-96 dB)."""
_LANGUAGES = "a comma-separated list of languages, such as en,de,fr"
_RATE = r"[1-9][0-9]{0,8} ?/ ?(second|minute|hour|day)"
_UNBOUNDED = 1_000_000.0
"""Upper limit of settings without a natural one; products with it stay finite."""


def parse_boolean(text: str) -> bool:
    """Parse true/1/yes/on or false/0/no/off in any case.

    Raises `ValueError` that names the expected values, as all parsers here.
    """
    lowered = text.lower()
    if lowered not in _TRUE | _FALSE:
        raise ValueError("true or false")
    return lowered in _TRUE


def _number(unit: str, *, low: float, high: float = _UNBOUNDED) -> Callable[[str], float]:
    expected = f"a number{f' of {unit}' if unit else ''}, {_range(low, high)}"

    def parse(text: str) -> float:
        # float() alone would also take '1_000', 'nan' and digits of other scripts.
        value = float(text) if re.fullmatch(_DECIMAL, text) else math.nan
        if not low <= value <= high:
            raise ValueError(expected)
        return value

    return parse


def _integer(*, low: int, high: int) -> Callable[[str], int]:
    expected = f"a whole number, {_range(low, high)}"

    def parse(text: str) -> int:
        # int() alone would also take '1_000' and digits of other scripts.
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise ValueError(expected)
        return int(text)

    return parse


def _range(low: float, high: float) -> str:
    return f"{low:.15g} to {high:.15g}"


def _choice(*choices: str, aliases: Mapping[str, str] | None = None) -> Callable[[str], str]:
    def parse(text: str) -> str:
        value = (aliases or {}).get(text.lower(), text.lower())
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return value

    return parse


def _text(text: str) -> str:
    return text


def _listening_address(text: str) -> str:
    if not re.fullmatch(r"[\w.:%-]+", text, re.ASCII):
        raise ValueError("an address or name to listen on, such as 0.0.0.0 or ::")
    return text


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("a path: that user has no home folder here") from None


def _address(text: str) -> str:
    if not re.fullmatch(r"https?://\S+", text) or not _has_host(text):
        raise ValueError("an address that begins with http:// or https://")
    return text


def _has_host(address: str) -> bool:
    """Tell whether a URL has a host, and a valid port if any."""
    try:
        parts = urlsplit(address)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _model_id(text: str) -> str:
    revision = r"(@[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*)?"
    if not re.fullmatch(rf"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*{revision}", text, re.ASCII):
        raise ValueError("a model's name on the hub, such as nvidia/parakeet-tdt-0.6b-v2")
    return text


def _models(text: str) -> tuple[str, ...]:
    names = [_model_id(name.strip().removesuffix(".nemo")) for name in text.split(",")]
    if len({model_basename(name) for name in names}) < len(names):
        raise ValueError("a list of models whose names differ")
    return tuple(names)


def model_basename(model_id: str) -> str:
    """Return a hub id's last part, the name that requests use: `nvidia/x@main` -> `x`."""
    return model_id.partition("@")[0].rpartition("/")[2]


def hub_repository(model_id: str) -> tuple[str, str | None]:
    """Return a hub id's repository and revision; without an owner it is NVIDIA's."""
    name, _, revision = model_id.partition("@")
    return name if "/" in name else f"nvidia/{name}", revision or None


def _keys(text: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for key in text.split(",") if key.strip())
    # A lone comma would leave the service open; HTTP headers are reliable for ASCII only.
    if not keys or not all(re.fullmatch(r"[ -~]+", key) for key in keys):
        raise ValueError("a comma-separated list of keys of printable ASCII characters")
    return keys


def _languages(text: str) -> tuple[str, ...]:
    codes = [_language(name.strip()) for name in text.split(",") if name.strip()]
    if not codes:
        raise ValueError(_LANGUAGES)
    return tuple(dict.fromkeys(codes))


def _language(name: str) -> str:
    code = language_code(name)
    if code is None:
        raise ValueError(f"{_LANGUAGES}: {name[:40]!r} is not one")
    return code


def _hosts(text: str) -> tuple[str, ...]:
    hosts = tuple(host.strip().lower() for host in text.split(",") if host.strip())
    if not hosts or not all(map(_is_host, hosts)):
        raise ValueError("a comma-separated list of hosts, such as example.org,10.0.0.5:8080")
    return hosts


def _is_host(text: str) -> bool:
    match = re.fullmatch(_HOST, text)
    try:
        return (
            match is not None
            and int(match["port"] or 80) in range(1, 65536)
            and (match["v6"] is None or ipaddress.ip_address(match["v6"]).version == 6)  # noqa: PLR2004
        )
    except ValueError:
        return False


def _rates(text: str) -> str:
    if not all(re.fullmatch(_RATE, rate.strip(), re.IGNORECASE) for rate in text.split(";")):
        raise ValueError("a list of rates, such as 60/minute;1000/day")
    return ";".join(rate.strip().lower() for rate in text.split(";"))


def _rate_storage(text: str) -> str:
    is_redis = re.fullmatch(r"rediss?://\S+", text) and _has_host(text)
    if text != "memory://" and not is_redis:
        raise ValueError("memory:// or the address of a Redis server, redis://host:6379/0")
    return text


def _ray_address(text: str) -> str:
    if text != "auto" and not (_is_host(text) and re.search(r":[0-9]+$", text)):
        raise ValueError("auto or the address of a Ray cluster's head, host:6379")
    return text


def _database(text: str) -> str:
    if not re.fullmatch(r"postgres(ql)?://\S+", text):
        raise ValueError("the address of a PostgreSQL database, postgresql://user@host/name")
    return text


def _storage(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+://\S+", text):
        raise ValueError("an address of shared storage, such as s3://bucket/folder")
    return text.rstrip("/")


def _replicas(text: str) -> str:
    match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", text)
    if match is None or not int(match[1]) <= int(match[2] or match[1]) >= 1:
        raise ValueError("a number of replicas, such as 2, or a range, such as 1-8")
    return text


def _proxies(text: str) -> tuple[str, ...]:
    try:
        return tuple(
            name if name == "*" else str(ip_network(name))
            for name in map(str.strip, text.split(","))
        )
    except ValueError:
        raise ValueError("a list of addresses and networks, such as 10.0.0.2,fd00::/8, or *") from (
            None
        )


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(origin.strip().lower() for origin in text.split(","))
    if not all(origin == "*" or _is_origin(origin) for origin in origins):
        raise ValueError(
            "a list of origins, such as https://example.org,http://localhost:3000, or *"
        )
    return origins


def _is_origin(text: str) -> bool:
    return bool(re.fullmatch(r"https?://[^\s/,*?#@]+", text)) and _has_host(text)


def _decibels(text: str) -> float:
    match = re.fullmatch(r"([+-]?[0-9]+(?:\.[0-9]+)?)\s*(?:db)?", text, re.IGNORECASE)
    if match is None or not _MIN_DB <= float(match[1]) <= 0:
        raise ValueError(f"a level in dB, {_MIN_DB:g} to 0")
    return float(match[1])


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,2})?", text.lower()):
        raise ValueError("auto, cpu, cuda or a GPU such as cuda:1")
    return text.lower()


_SECRETS = frozenset({"API_KEY"})
"""Variables whose values appear in no log and no message."""
_WITH_PASSWORD = frozenset({"DATABASE_URL"})
"""Variables whose passwords appear in none."""


def _setting(name: str, default: Any, parse: Callable[[str], Any], *aliases: str) -> Any:
    metadata = {"names": (name, *aliases), "parse": parse}
    return field(default=default, metadata=metadata, repr=name not in _SECRETS | _WITH_PASSWORD)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The operator's settings."""

    api_keys: tuple[str, ...] = _setting("API_KEY", (), _keys)
    """Accepted bearer keys, comma-separated; empty = open to everyone."""
    host: str = _setting("HOST", "0.0.0.0", _listening_address)
    """Listening address."""
    port: int = _setting("PORT", 5092, _integer(low=0, high=65535))
    """Listening port; 0 = any free one."""
    app_threads: int = _setting("APP_THREADS", 16, _integer(low=1, high=512))
    """Transcription requests processed at the same time; further ones wait. With a GPU enough for
    two full batches."""
    max_queued_requests: int = _setting("MAX_QUEUED_REQUESTS", 64, _integer(low=0, high=4096))
    """Transcription requests that may wait; further ones get a 503 with Retry-After. With a GPU at
    least enough for two full batches."""

    clip_processes: int = _setting("CLIP_PROCESSES", 0, _integer(low=0, high=32))
    """Processes that receive clips, decode them and render their transcripts, so that a fast GPU is
    kept busy; 0 = the process with the model does all of it."""

    max_realtime_sessions: int = _setting("MAX_REALTIME_SESSIONS", 64, _integer(low=0, high=4096))
    """Live sessions that may be open at a time; one more is answered 503, unless it can have the
    place of an idle one. 0 = none are taken."""
    realtime_idle_s: float = _setting(
        "REALTIME_IDLE_SECONDS", 300.0, _number("seconds", low=1, high=86_400)
    )
    """A live session ends if no sound has come for so long."""
    realtime_max_minutes: float = _setting(
        "REALTIME_MAX_MINUTES", 60.0, _number("minutes", low=0.01, high=1440)
    )
    """A live session ends after so long, whatever is said."""

    rate_limit: str | None = _setting("RATE_LIMIT", None, _rates)
    """How often a key, or without keys an address, may ask for a transcription, such as
    `60/minute;1000/day`; empty = no limit."""
    rate_limit_storage: str = _setting("RATE_LIMIT_STORAGE", "memory://", _rate_storage)
    """Where requests are counted: in this process, or in Redis for several servers together."""
    trusted_proxy: tuple[str, ...] = _setting("TRUSTED_PROXY", (), _proxies)
    """Proxies whose `X-Forwarded-*` headers are trusted: addresses, networks, or `*`."""
    cors_origins: tuple[str, ...] = _setting("CORS_ORIGINS", (), _origins)
    """Origins whose pages may call the API from a browser, or `*`; empty = none."""
    stop_grace_s: float = _setting("STOP_GRACE_SECONDS", 20.0, _number("seconds", low=0, high=3600))
    """After SIGTERM, how long the requests under way may go on."""

    models: tuple[str, ...] = _setting("MODELS", (), _models)
    """Models that a request's `model` selects from, the first being the default: hub ids, or files
    in MODELS_DIR. Empty = one model, chosen by the settings below."""
    model_id: str = _setting("MODEL_ID", "nvidia/parakeet-tdt-0.6b-v2", _model_id)
    """Checkpoint to download when none is on disk; one of a revision, `name@revision`, whatever
    else is on disk."""
    model_path: Path | None = _setting("MODEL_PATH", None, _path)
    """A `.nemo` file to use, and no other."""
    models_dir: Path = _setting("MODELS_DIR", Path("models"), _path)
    """Where checkpoints are looked for and downloaded to."""
    model_languages: tuple[str, ...] = _setting("MODEL_LANGUAGES", (), _languages)
    """Languages that the model supports, ISO 639-1 codes; empty = what the checkpoint states."""
    diarization: bool = _setting("DIARIZATION", True, parse_boolean)
    """Whether requests may ask who spoke; `off` = no speaker model is downloaded or loaded."""
    diarizer_id: str = _setting(
        "DIARIZER_ID", "nvidia/diar_streaming_sortformer_4spk-v2", _model_id
    )
    """Speaker model to download at the first request that needs it, unless it is in MODELS_DIR."""
    diarizer_path: Path | None = _setting("DIARIZER_PATH", None, _path)
    """A `.nemo` file of a speaker model to use, and no other."""
    keywords_file: Path | None = _setting("KEYWORDS_FILE", None, _path)
    """Names and terms that recordings may contain, one per line; for all requests."""
    demo_model: DemoModel = _setting("DEMO_MODEL", "auto", _choice(*get_args(DemoModel)))
    """`auto` = the small English model, with warnings, if no other is available; `always`;
    `never`; `grammar` = always the tests' model, whose output is exactly known."""
    hf_endpoint: str = _setting("HF_ENDPOINT", "https://huggingface.co", _address)
    """Hugging Face or a mirror of it."""
    enable_lazy_load: bool = _setting("ENABLE_LAZY_LOAD", True, parse_boolean)
    """Load the model at the first request; false = before serving."""
    idle_timeout_minutes: float = _setting("IDLE_TIMEOUT_MINUTES", 30.0, _number("minutes", low=0))
    """Unload a model that was not used for so long; 0 = never."""

    temp_uploads_dir: Path = _setting("TEMP_UPLOADS_DIR", Path("temp_uploads"), _path)
    """Uploads while they are processed."""
    max_upload_mb: float = _setting("MAX_UPLOAD_MB", 2000.0, _number("megabytes", low=0.001))
    """Larger uploads get a 413; megabytes of 1,048,576 bytes."""
    max_audio_hours: float = _setting("MAX_AUDIO_HOURS", 12.0, _number("hours", low=0.0001))
    """Longer recordings get a 400; the decoded length counts, not the header's."""

    data_dir: Path | None = _setting("DATA_DIR", None, _path)
    """Jobs, their recordings and results; not set = the folder `data` in TEMP_UPLOADS_DIR."""
    max_queued_jobs: int = _setting("MAX_QUEUED_JOBS", 100, _integer(low=0, high=100_000))
    """Unfinished jobs at a time; further ones get a 503. 0 = no jobs are accepted."""
    job_retention_hours: float = _setting("JOB_RETENTION_HOURS", 168.0, _number("hours", low=0))
    """Finished jobs are removed after so long; 0 = never."""
    database_url: str | None = _setting("DATABASE_URL", None, _database)
    """A PostgreSQL database that holds the jobs of several servers; not set = this server's own
    jobs, in SQLite."""
    jobs_storage: str | None = _setting("JOBS_STORAGE", None, _storage)
    """Where the recordings of jobs are kept, as an fsspec address such as `s3://bucket/folder`; not
    set = in `DATA_DIR`."""
    allow_webhooks: tuple[str, ...] = _setting("ALLOW_WEBHOOKS", (), _hosts)
    """Hosts that webhooks may call when a job has ended, `host` or `host:port`; empty = none."""

    allow_urls: tuple[str, ...] = _setting("ALLOW_URLS", (), _hosts)
    """Hosts from which recordings are fetched if a request has a `url` instead of a file, `host` or
    `host:port`; empty = none."""

    ray_address: str | None = _setting("RAY_ADDRESS", None, _ray_address)
    """A Ray cluster whose replicas recognise: `auto` = the one that this machine belongs to, or
    `host:6379`; not set = this process recognises."""
    ray_replicas: str = _setting("RAY_REPLICAS", "1", _replicas)
    """Replicas of each model: a number, or a range such as `1-8` that is scaled by what waits."""
    ray_replica_cpus: float = _setting("RAY_REPLICA_CPUS", 1.0, _number("cores", low=0, high=1024))
    """Cores that a replica reserves."""
    ray_replica_gpus: float | None = _setting(
        "RAY_REPLICA_GPUS", None, _number("GPUs", low=0, high=16)
    )
    """GPUs that a replica reserves; not set = one where the cluster has any."""

    preset: Preset = _setting(
        "PRESET", "balanced", _choice(*get_args(Preset), aliases={"simple": "balanced"})
    )
    """`speed`, `balanced` (also called `simple`) or `quality`."""
    gpu_vram_gb: float | None = _setting("GPU_VRAM_GB", None, _number("gigabytes", low=0.5))
    """The GPU's memory, from which presets derive settings; detected if not set."""
    device: str = _setting("DEVICE", "auto", _device)
    """`auto`, `cpu`, `cuda` or `cuda:1`; an explicit GPU that cannot be used is an error."""
    precision: Precision = _setting("PRECISION", "auto", _choice(*get_args(Precision)))
    """The encoder's number format: `auto`, `fp16`, `bf16`, `int8` or `fp32`."""
    gpu_memory_fraction: float = _setting(
        "GPU_MEMORY_FRACTION", 0.90, _number("", low=0.05, high=1.0)
    )
    """Share of the GPU's memory that this process may take."""
    chunk_minutes: float = _setting(
        "CHUNK_MINITE",
        10.0,
        _number("minutes", low=0.05, high=1440),
        "CHUNK_MINUTE",
        "CHUNK_MINUTES",
    )
    """Longest stretch of audio that the model sees at once, minutes."""
    max_concurrent_inferences: int = _setting(
        "MAX_CONCURRENT_INFERENCES", 1, _integer(low=1, high=16)
    )
    """Permits of the semaphore around the model; of three or more, one is reserved for clips."""
    transcribe_batch_size: int = _setting("TRANSCRIBE_BATCH_SIZE", 8, _integer(low=1, high=256))
    """Most chunks in one forward pass, of one request or of several."""
    transcribe_num_workers: int = _setting("TRANSCRIBE_NUM_WORKERS", 0, _integer(low=0, high=64))
    """Threads that decode audio ahead of the model; 0 = the request's own thread."""
    max_chunk_memory_mb: float = _setting(
        "MAX_CHUNK_MEMORY_MB", 1500.0, _number("megabytes", low=64)
    )
    """Activation memory that a forward pass on a GPU may need; it limits chunks and batches."""
    aggressive_memory_cleanup: bool = _setting("AGGRESSIVE_MEMORY_CLEANUP", True, parse_boolean)
    """Release cached memory that is not in use: the GPU's, or the heap's."""
    force_cleanup_threshold: float = _setting(
        "FORCE_CLEANUP_THRESHOLD", 0.8, _number("", low=0.1, high=1.0)
    )
    """Share of the GPU's memory in use above which cached memory is released before a batch."""
    enable_gradient_checkpointing: bool = _setting(
        "ENABLE_GRADIENT_CHECKPOINTING", True, parse_boolean
    )
    """Accepted for old compose files; inference keeps no gradients, so it has no effect."""
    enable_tensor_core: bool = _setting("ENABLE_TENSOR_CORE", True, parse_boolean)
    """Allow TF32 on CUDA GPUs."""
    enable_cudnn_benchmark: bool = _setting("ENABLE_CUDNN_BENCHMARK", False, parse_boolean)
    """Use cuDNN for convolutions and benchmark its algorithms for each new shape, 0.9 to 1.2 s."""
    enable_cuda_graphs: bool = _setting("ENABLE_CUDA_GRAPHS", True, parse_boolean)
    """On a GPU, run the token decoder, and the encoder on few chunks, as CUDA graphs."""
    tensor_core_precision: MatmulPrecision = _setting(
        "TENSOR_CORE_PRECISION", "highest", _choice(*get_args(MatmulPrecision))
    )
    """torch's float32 matrix product precision: `highest`, `high` or `medium`."""

    decoding_strategy: DecodingStrategy = _setting(
        "DECODING_STRATEGY", "greedy", _choice(*get_args(DecodingStrategy))
    )
    """`greedy`, or `beam` (slower, sometimes better)."""
    beam_size: int = _setting("RNNT_BEAM_SIZE", 4, _integer(low=1, high=32))
    """Hypotheses that the beam keeps; 2 to 6 are sensible."""

    enable_overlap_chunking: bool = _setting("ENABLE_OVERLAP_CHUNKING", True, parse_boolean)
    """Let neighbouring chunks share audio."""
    chunk_overlap_s: float = _setting(
        "CHUNK_OVERLAP_SECONDS", 30.0, _number("seconds", low=0, high=600)
    )
    """Most audio that neighbouring chunks share, seconds; at most a sixth of a chunk."""
    sentence_boundary_threshold_s: float = _setting(
        "SENTENCE_BOUNDARY_THRESHOLD", 0.5, _number("seconds", low=0, high=10)
    )
    """Distance from a seam within which a sentence end is preferred as the hand-over, seconds."""
    enable_silence_aligned_chunking: bool = _setting(
        "ENABLE_SILENCE_ALIGNED_CHUNKING", True, parse_boolean
    )
    """Move a cut to the nearest silence."""
    silence_threshold_db: float = _setting("SILENCE_THRESHOLD_DB", -38.0, _decibels)
    """Audio below this level is silence, dBFS."""
    min_silence_duration_s: float = _setting(
        "MIN_SILENCE_DURATION", 0.35, _number("seconds", low=0.01, high=10)
    )
    """Shortest silence that counts, seconds."""
    silence_max_shift_s: float = _setting(
        "SILENCE_MAX_SHIFT_SECONDS", 2.0, _number("seconds", low=0, high=60)
    )
    """How far a cut may move, seconds."""
    enable_ffmpeg_denoise: bool = _setting("ENABLE_FFMPEG_DENOISE", False, parse_boolean)
    """Filter the audio before recognition."""
    denoise_filter: str = _setting(
        "DENOISE_FILTER",
        "afftdn=nf=-25,highpass=f=50,lowpass=f=8000,dynaudnorm=m=7:s=5",
        _text,
    )
    """That filter, in ffmpeg's syntax; tested once at the start."""

    merge_short_subtitles: bool = _setting("MERGE_SHORT_SUBTITLES", True, parse_boolean)
    """Merge or lengthen cues that are too short to read."""
    min_subtitle_duration_s: float = _setting(
        "MIN_SUBTITLE_DURATION_SECONDS", 1.5, _number("seconds", low=0, high=60)
    )
    """A cue shorter than this is merged or lengthened, seconds."""
    short_subtitle_merge_max_gap_s: float = _setting(
        "SHORT_SUBTITLE_MERGE_MAX_GAP_SECONDS", 0.3, _number("seconds", low=0, high=60)
    )
    """Widest pause over which cues are merged, seconds."""
    short_subtitle_min_chars: int = _setting(
        "SHORT_SUBTITLE_MIN_CHARS", 6, _integer(low=0, high=1000)
    )
    """Cues with fewer characters prefer to merge."""
    subtitle_min_gap_s: float = _setting(
        "SUBTITLE_MIN_GAP_SECONDS", 0.06, _number("seconds", low=0, high=10)
    )
    """Shortest gap between cues, seconds."""
    split_long_subtitles: bool = _setting("SPLIT_LONG_SUBTITLES", True, parse_boolean)
    """Split long cues at word times."""
    max_subtitle_duration_s: float = _setting(
        "MAX_SUBTITLE_DURATION_SECONDS", 6.0, _number("seconds", low=0.1, high=600)
    )
    """Longest cue, seconds."""
    max_subtitle_chars: int = _setting(
        "MAX_SUBTITLE_CHARS_PER_SEGMENT", 84, _integer(low=1, high=10_000)
    )
    """Most characters in a cue."""
    preferred_line_length: int = _setting("PREFERRED_LINE_LENGTH", 42, _integer(low=1, high=10_000))
    """Characters after which a cue's line breaks; no word is ever dropped to fit."""
    max_subtitle_lines: int = _setting("MAX_SUBTITLE_LINES", 2, _integer(low=1, high=20))
    """Most lines in a cue."""

    log_level: str = _setting("LOG_LEVEL", "info", _choice("debug", "info", "warning", "error"))
    """`debug`, `info`, `warning` or `error`."""
    log_format: LogFormat = _setting("LOG_FORMAT", "text", _choice(*get_args(LogFormat)))
    """`text`, or `json` = one object a line."""

    origins: Mapping[str, Origin] = field(default_factory=dict, compare=False, repr=False)
    """The origin of each field's value, by field name; empty unless built by `from_env`."""

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str],
        *,
        detected_vram_gb: float | None = None,
        cores: int = 1,
    ) -> Settings:
        """Read all variables; a variable takes precedence over the value that a preset derives.

        `cores` is the number of CPU cores that this process may use.

        Raises `SettingsError` that names the variable and its value.
        """
        explicit = {
            setting.name: value
            for setting in _fields()
            if (value := _read(setting, environ)) is not _ABSENT
        }
        _refuse_contradictions(explicit)
        return cls._derived_from(explicit, detected_vram_gb=detected_vram_gb, cores=cores)

    def for_device(self, *, detected_vram_gb: float | None, cores: int) -> Settings:
        """Return a copy for another machine: presets derive from its GPU and cores instead."""
        explicit = {
            name: getattr(self, name)
            for name, origin in self.origins.items()
            if origin == "environment" or isinstance(getattr(self, name), Path)
        }
        return self._derived_from(explicit, detected_vram_gb=detected_vram_gb, cores=cores)

    @classmethod
    def _derived_from(
        cls, explicit: Mapping[str, Any], *, detected_vram_gb: float | None, cores: int
    ) -> Settings:
        preset = explicit.get("preset", cls.preset)
        vram_gb = explicit.get("gpu_vram_gb", detected_vram_gb)
        derived = _derive(preset, vram_gb)
        if vram_gb is not None:
            derived |= _derive_http({**derived, **explicit}, vram_gb=vram_gb, cores=cores)
        origins: dict[str, Origin] = {
            setting.name: "environment"
            if setting.name in explicit
            else "preset"
            if setting.name in derived
            else "default"
            for setting in _fields()
        }
        return cls(**{**derived, **explicit}, origins=origins)

    def for_model(self, name: str) -> Settings:
        """Return a copy for this model only. Raises `SettingsError`."""
        models = _parse("--model", name, _models)
        origins: dict[str, Origin] = {
            **self.origins,
            "models": "environment",
            "demo_model": "environment",
        }
        return dataclasses.replace(
            self, models=models, model_path=None, demo_model="never", origins=origins
        )

    def with_absolute_paths(self) -> Settings:
        """Return a copy with absolute paths.

        NeMo changes the process' working directory while it restores a checkpoint.
        """
        paths: dict[str, Any] = {
            setting.name: path.absolute()
            for setting in _fields()
            if isinstance(path := getattr(self, setting.name), Path)
        }
        return dataclasses.replace(self, **paths)

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_mb * 1024 * 1024)

    @property
    def replica_range(self) -> tuple[int, int]:
        """Return the fewest and the most replicas of a model."""
        low, _, high = self.ray_replicas.partition("-")
        return int(low), int(high or low)

    @property
    def jobs_dir(self) -> Path:
        return self.data_dir or self.temp_uploads_dir / "data"

    def describe(self, *, whole_paths: bool = True) -> list[tuple[str, str, Origin]]:
        """List all variables with value and origin; API keys are masked.

        Without `whole_paths`, only the last part of a path is shown, as clients may see it.
        """
        return [
            (
                variable_name(setting),
                _shown(
                    variable_name(setting),
                    value.name if isinstance(value, Path) and not whole_paths else value,
                ),
                self.origins.get(setting.name, "default"),
            )
            for setting in _fields()
            for value in [getattr(self, setting.name)]
        ]


def _refuse_contradictions(explicit: Mapping[str, Any]) -> None:
    """Raise `SettingsError` for settings that exclude each other."""
    names = f"MODELS={','.join(explicit.get('models', ()))!r}"
    contradictions = {
        # A setting for one model, together with one for several.
        f"{names} and MODEL_PATH": {"models", "model_path"} <= explicit.keys(),
        f"{names} and DEMO_MODEL={explicit.get('demo_model')}": (
            "models" in explicit and explicit.get("demo_model") in ("always", "grammar")
        ),
        # Each process would count separately.
        f"RATE_LIMIT={explicit.get('rate_limit')!r} and CLIP_PROCESSES": (
            "rate_limit" in explicit and explicit.get("clip_processes", 0) > 0
        ),
    }
    for both, contradict in contradictions.items():
        if contradict:
            raise SettingsError(f"{both} contradict each other: keep one")


_ABSENT = object()
_PASSWORD = re.compile(r"//[^/\s]+@|(?<=[?&]password=)[^&\s]+")
"""The part before the host in `https://user:secret@mirror`, and PostgreSQL's parameter."""


def without_passwords(text: str) -> str:
    """Remove user names and passwords from URLs, for logs and messages."""
    return _PASSWORD.sub(lambda found: "//***@" if found[0].startswith("//") else "***", text)


def variable_name(setting: dataclasses.Field[Any]) -> str:
    """Return the environment variable of a field of `Settings`."""
    return str(setting.metadata["names"][0])


def _fields() -> list[dataclasses.Field[Any]]:
    return [setting for setting in dataclasses.fields(Settings) if setting.metadata]


def _read(setting: dataclasses.Field[Any], environ: Mapping[str, str]) -> Any:
    given = {
        name: environ[name].strip()
        for name in setting.metadata["names"]
        if environ.get(name, "").strip()
    }
    if not given:
        # Compose files pass `NAME=` for a variable that is not set.
        return _ABSENT
    values = {name: _parse(name, text, setting.metadata["parse"]) for name, text in given.items()}
    if len(set(values.values())) > 1:
        spellings = " and ".join(f"{name}={text!r}" for name, text in given.items())
        raise SettingsError(f"{spellings} are spellings of one setting and differ: keep one")
    return next(iter(values.values()))


def _parse(name: str, text: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        shown = "***" if name in _SECRETS else without_passwords(text)
        raise SettingsError(f"{name}={shown!r} is not {error}") from None


def _shown(name: str, value: Any) -> str:
    if name in _SECRETS:
        return f"{len(value)} set" if value else "none"
    if isinstance(value, tuple):
        return ",".join(value)
    return "" if value is None else without_passwords(str(value))


_SMALL_GPU_GB = 6.5
"""Smaller GPUs hold the 0.6B model in half precision (1.3 GB) and little more. A GPU sold as 6 GB
reports up to 6.44."""
_MEDIUM_GPU_GB = 8.0
"""A GPU sold as 8 GB reports 8.2 to 8.59."""


@dataclass(frozen=True, slots=True)
class _GpuTier:
    """Defaults for GPUs of more than `from_gb`."""

    from_gb: float
    batch_size: int
    """For the preset `balanced`."""
    pass_mb: float
    """Memory of one forward pass."""
    permits: int
    """One for the batch on the GPU; others prepare the next batch and build words."""


_GPU_TIERS = (
    _GpuTier(75.0, batch_size=256, pass_mb=16_000, permits=2),
    _GpuTier(39.0, batch_size=128, pass_mb=10_000, permits=2),
    _GpuTier(22.0, batch_size=64, pass_mb=6_000, permits=2),
    _GpuTier(15.0, batch_size=32, pass_mb=4_000, permits=2),
    _GpuTier(_SMALL_GPU_GB, batch_size=8, pass_mb=1_500, permits=1),
    _GpuTier(0.0, batch_size=4, pass_mb=1_500, permits=1),
)
"""Largest first. On an H200, batches of 8 chunks of 30 s ran at 2,743 times real time, of 32 at
5,824, and 256 chunks of 10 s at 6,997; 128 of 30 s took 11.6 GB in addition to the weights. Sizes
are as reported by GPUs: one sold as 16 GB has 15.6 to 17.2 GB, one sold as 24 GB 22.5 to 25.8."""
_MAX_BATCH = 256


_CPU_PERMITS = 3
"""Without a GPU. Two for any chunk: while one runs the encoder, the other decodes tokens in Python
(12 minutes took 2.1 s with two and 3.2 s with one). The third is for clips that arrive while both
process long chunks: `devices.main_permits`."""


def _derive(preset: Preset, vram_gb: float | None) -> dict[str, Any]:
    """Derive the settings of a preset, for a GPU of `vram_gb` GB; `None` = no GPU."""
    small = vram_gb is not None and vram_gb <= _SMALL_GPU_GB
    tier = _tier(vram_gb)
    by_preset: dict[Preset, dict[str, Any]] = {
        "speed": {"transcribe_batch_size": min(2 * tier.batch_size, _MAX_BATCH)},
        "balanced": {"transcribe_batch_size": tier.batch_size},
        "quality": {
            "transcribe_batch_size": tier.batch_size // 2,
            "decoding_strategy": "beam",
            # 4 recognises no more words than 2: benchmarks/README.md, "Beam search".
            "beam_size": 2,
        },
    }
    return {
        "chunk_minutes": 3.0 if small else 10.0,
        "gpu_memory_fraction": 0.90 if small else 0.95,
        "max_concurrent_inferences": _CPU_PERMITS if vram_gb is None else tier.permits,
        "max_chunk_memory_mb": tier.pass_mb,
        "decoding_strategy": "greedy",
        **by_preset[preset],
    }


def _tier(vram_gb: float | None) -> _GpuTier:
    """Return the tier of a GPU; a CPU gets the batch size of a medium GPU."""
    size_gb = _MEDIUM_GPU_GB if vram_gb is None else vram_gb
    return next(tier for tier in _GPU_TIERS if size_gb > tier.from_gb)


_FAST_GPU_GB = 15.0
"""GPUs from here on recognise more clips than one process can receive."""
_CORES_PER_PROCESS = 4
"""A process that receives clips takes 2.5 ms for each; the model and ffmpeg need other cores."""
_MAX_CLIP_PROCESSES = 4
"""They receive about 1,500 clips a second: twice as many as an H200 recognises."""
_MIN_ACTIVE, _MAX_ACTIVE = 16, 512
_MIN_WAITING = 64


def _derive_http(values: Mapping[str, Any], *, vram_gb: float, cores: int) -> dict[str, Any]:
    """Derive how many requests run and wait, so that a GPU's batches are full.

    While one batch is on the GPU, requests of the next one are received, and those of the previous
    one answered.
    """
    two_batches = 2 * values["transcribe_batch_size"]
    is_fast = vram_gb >= _FAST_GPU_GB
    # Rates are counted in a single process.
    is_counted = values.get("rate_limit") is not None
    return {
        "app_threads": min(max(two_batches, _MIN_ACTIVE), _MAX_ACTIVE),
        "max_queued_requests": max(two_batches, _MIN_WAITING),
        "clip_processes": (
            min(cores // _CORES_PER_PROCESS, _MAX_CLIP_PROCESSES)
            if is_fast and not is_counted
            else 0
        ),
    }
