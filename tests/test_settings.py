from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from settings_tables import ALL_NAMES, FIELDS, OF_THE_IMAGE, TABLES, table_rows

from parakeet_api.errors import SettingsError
from parakeet_api.settings import Settings, without_passwords

PROMISE: dict[str, object] = {
    "API_KEY": (),
    "HOST": "0.0.0.0",
    "PORT": 5092,
    "APP_THREADS": 16,
    "MODELS": (),
    "MODEL_ID": "nvidia/parakeet-tdt-0.6b-v2",
    "MODEL_PATH": None,
    "MODELS_DIR": Path("models"),
    "STOP_GRACE_SECONDS": 20.0,
    "MODEL_LANGUAGES": (),
    "DIARIZATION": True,
    "DIARIZER_ID": "nvidia/diar_streaming_sortformer_4spk-v2",
    "DIARIZER_PATH": None,
    "KEYWORDS_FILE": None,
    "DEMO_MODEL": "auto",
    "HF_ENDPOINT": "https://huggingface.co",
    "TEMP_UPLOADS_DIR": Path("temp_uploads"),
    "DATA_DIR": None,
    "MAX_QUEUED_JOBS": 100,
    "JOB_RETENTION_HOURS": 168,
    "ALLOW_URLS": (),
    "ALLOW_WEBHOOKS": (),
    "DATABASE_URL": None,
    "JOBS_STORAGE": None,
    "RAY_ADDRESS": None,
    "RAY_REPLICAS": "1",
    "RAY_REPLICA_CPUS": 1.0,
    "RAY_REPLICA_GPUS": None,
    "MAX_UPLOAD_MB": 2000,
    "MAX_AUDIO_HOURS": 12,
    "MAX_QUEUED_REQUESTS": 64,
    "CLIP_PROCESSES": 0,
    "MAX_REALTIME_SESSIONS": 64,
    "REALTIME_IDLE_SECONDS": 300,
    "REALTIME_MAX_MINUTES": 60,
    "RATE_LIMIT": None,
    "RATE_LIMIT_STORAGE": "memory://",
    "TRUSTED_PROXY": (),
    "CORS_ORIGINS": (),
    "ENABLE_LAZY_LOAD": True,
    "IDLE_TIMEOUT_MINUTES": 30,
    "PRESET": "balanced",
    "GPU_VRAM_GB": None,
    "CHUNK_MINITE": 10,
    "MAX_CONCURRENT_INFERENCES": 1,
    "TRANSCRIBE_BATCH_SIZE": 8,
    "TRANSCRIBE_NUM_WORKERS": 0,
    "GPU_MEMORY_FRACTION": 0.95,
    "DEVICE": "auto",
    "PRECISION": "auto",
    "DECODING_STRATEGY": "greedy",
    "RNNT_BEAM_SIZE": 4,
    "ENABLE_OVERLAP_CHUNKING": True,
    "CHUNK_OVERLAP_SECONDS": 30,
    "SENTENCE_BOUNDARY_THRESHOLD": 0.5,
    "ENABLE_SILENCE_ALIGNED_CHUNKING": True,
    "SILENCE_THRESHOLD_DB": -38,
    "MIN_SILENCE_DURATION": 0.35,
    "SILENCE_MAX_SHIFT_SECONDS": 2.0,
    "ENABLE_FFMPEG_DENOISE": False,
    "DENOISE_FILTER": "afftdn=nf=-25,highpass=f=50,lowpass=f=8000,dynaudnorm=m=7:s=5",
    "MERGE_SHORT_SUBTITLES": True,
    "MIN_SUBTITLE_DURATION_SECONDS": 1.5,
    "SHORT_SUBTITLE_MERGE_MAX_GAP_SECONDS": 0.3,
    "SHORT_SUBTITLE_MIN_CHARS": 6,
    "SUBTITLE_MIN_GAP_SECONDS": 0.06,
    "SPLIT_LONG_SUBTITLES": True,
    "MAX_SUBTITLE_DURATION_SECONDS": 6.0,
    "MAX_SUBTITLE_CHARS_PER_SEGMENT": 84,
    "PREFERRED_LINE_LENGTH": 42,
    "MAX_SUBTITLE_LINES": 2,
    "AGGRESSIVE_MEMORY_CLEANUP": True,
    "FORCE_CLEANUP_THRESHOLD": 0.8,
    "MAX_CHUNK_MEMORY_MB": 1500,
    "ENABLE_GRADIENT_CHECKPOINTING": True,
    "ENABLE_TENSOR_CORE": True,
    "ENABLE_CUDNN_BENCHMARK": False,
    "ENABLE_CUDA_GRAPHS": True,
    "TENSOR_CORE_PRECISION": "highest",
    "LOG_LEVEL": "info",
    "LOG_FORMAT": "text",
}
"""What people's compose files rely on: names, misspelt ones included, and defaults, on a GPU that
is not small."""


DEFAULTS = Settings.from_env({}, detected_vram_gb=12.6)
DERIVED = {name for name, _, origin in DEFAULTS.describe() if origin == "preset"}

NASTY = [
    "nan", "-NaN", "inf", "infinity", "1e999", "-1e999", "1e-400", "1e5", "-0", "1" * 400, "0x10",
    "\u0663", "\u0663.\u0663", "\u00bd", "\u3280", "1_0", "\x00", "~\x00", "~x", "~", "\udc80",
    "//", ",", "cuda:99", "true\n", "\u017f", "\u212a", "-38\u00a0dB", "http://\x00", "https://[",
]  # fmt: skip

PARTS = [
    *("/", "//", ":", "@", ",", ";", "*", ".", "..", "~", "%", "[", "]", "::1", "-", "+", "_", " "),
    *("\u00a0", "\x1c", "\udcff", "0", "9", "1.5", "1e", "e9", "dB", "a", "A", "http", "redis"),
    *("memory://", "https://", "10.0.0.0", "fe80::1%eth0", "minute", "en", "cuda", "auto"),
]

any_text = (
    st.text()
    | st.text(st.characters(categories=["Cc", "Cs", "Zs", "Nd"]))
    | st.floats().map(str)
    | st.integers().map(str)
    | st.sampled_from(NASTY)
    | st.builds("".join, st.lists(st.sampled_from(PARTS), max_size=6))
)
"""What an environment can hold, lone surrogates for its odd bytes included."""

TEXTS_FOR_SOME_VARIABLE = [
    *("yes", "off", "0", "1", "2", "5", "7.5", ".5", "1e1", "64", "300", "-20dB"),
    *("speed", "quality", "always", "never", "cuda:1", "bf16", "int8", "beam", "medium"),
    *("debug", "json", "/data", "data/x y", "en,de", "a.example", "10.0.0.0/8", "*", "6/minute"),
    *(
        "redis://host:1/0",
        "postgresql://host/jobs",
        "http://mirror:80",
        "https://a.example",
        "acme/model",
    ),
]

A_HOST_LIST = "a comma-separated list of hosts"
BOOLEANS = [name for name, default in PROMISE.items() if isinstance(default, bool)]


def value_of(settings: Settings, variable: str) -> Any:
    return getattr(settings, FIELDS[variable].name)


def read(variable: str, text: str) -> Any:
    return value_of(Settings.from_env({variable: text}), variable)


def refusal(environ: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(environ)
    return str(caught.value)


# Names and defaults


def test_the_documented_variables_exist_and_no_others() -> None:
    assert list(FIELDS) != []
    assert set(FIELDS) == set(PROMISE)


@pytest.mark.parametrize("variable", PROMISE)
def test_defaults_are_the_documented_ones(variable: str) -> None:
    assert value_of(DEFAULTS, variable) == PROMISE[variable]
    assert isinstance(value_of(DEFAULTS, variable), bool) == isinstance(PROMISE[variable], bool)


def test_settings_without_an_environment_are_the_defaults_except_those_of_presets() -> None:
    read_from_nothing = Settings.from_env({})
    differing = {
        name for name in FIELDS if value_of(Settings(), name) != value_of(read_from_nothing, name)
    }

    assert differing <= DERIVED
    assert {
        "CHUNK_MINITE",
        "MAX_CONCURRENT_INFERENCES",
        "TRANSCRIBE_BATCH_SIZE",
        "GPU_MEMORY_FRACTION",
        "MAX_CHUNK_MEMORY_MB",
        "DECODING_STRATEGY",
        "APP_THREADS",
        "MAX_QUEUED_REQUESTS",
        "CLIP_PROCESSES",
    } == DERIVED


@pytest.mark.parametrize("variable", [name for name in PROMISE if PROMISE[name] not in (None, ())])
def test_an_explicit_default_equals_the_default(variable: str) -> None:
    default = PROMISE[variable]

    assert read(variable, str(default)) == default


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_an_empty_variable_is_not_set(text: str) -> None:
    empty = Settings.from_env(dict.fromkeys(ALL_NAMES, text), detected_vram_gb=12.6)

    assert empty == DEFAULTS
    assert empty.origins == DEFAULTS.origins


def test_unknown_variables_are_ignored() -> None:
    assert Settings.from_env({"PATH": "/bin", "CHUNK": "x"}) == Settings.from_env({})


@pytest.mark.parametrize("page", TABLES)
def test_every_variable_is_a_row_and_every_row_is_a_variable(page: str) -> None:
    assert set(table_rows(page)) == set(FIELDS) | OF_THE_IMAGE


@pytest.mark.parametrize("page", TABLES)
def test_the_tables_give_the_right_defaults(page: str) -> None:
    rows = table_rows(page).items()
    defaults = {name: text.replace("`", "") for name, text in rows if name in FIELDS}

    assert {name: text for name, text in defaults.items() if not is_default(name, text)} == {}


def is_default(variable: str, cell: str) -> bool:
    """Tell whether a cell of the table means a variable's default."""
    default = value_of(DEFAULTS, variable)
    if default in (None, ()):
        return cell in ("empty", "detected", "空", "自动检测")
    if cell.startswith(("by preset", "随预设")):
        # Alone, or with what it is where there is no GPU: `by preset, 10`.
        shown = str(default).removesuffix(".0")
        return variable in DERIVED and (cell in ("by preset", "随预设") or shown in cell)
    try:
        # Behind it may stand what a preset makes of it: `greedy` (`quality`: `beam`).
        return bool(read(variable, cell.partition(" (")[0]) == default)
    except SettingsError:
        return False


# Values


@pytest.mark.parametrize("variable", BOOLEANS)
@pytest.mark.parametrize(
    ("texts", "value"),
    [
        (["true", "1", "yes", "on", "TRUE", "Yes", " oN ", "True"], True),
        (["false", "0", "no", "off", "FALSE", "No", " oFF ", "False"], False),
    ],
)
def test_booleans_have_several_spellings(variable: str, texts: list[str], value: bool) -> None:
    assert [read(variable, text) for text in texts] == [value] * len(texts)


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("CHUNK_MINITE", "0.5", 0.5),
        ("CHUNK_MINITE", " 5 ", 5.0),
        ("CHUNK_MINITE", "1e1", 10.0),
        ("CHUNK_MINITE", ".5", 0.5),
        ("PORT", "+8000", 8000),
        ("SILENCE_THRESHOLD_DB", "-38dB", -38.0),
        ("SILENCE_THRESHOLD_DB", "-40", -40.0),
        ("SILENCE_THRESHOLD_DB", "-42.5 DB", -42.5),
        ("PRESET", "simple", "balanced"),
        ("PRESET", "SIMPLE", "balanced"),
        ("PRESET", "Quality", "quality"),
        ("PRECISION", "FP16", "fp16"),
        ("LOG_LEVEL", "WARNING", "warning"),
        ("DEVICE", "CUDA:1", "cuda:1"),
        ("DEVICE", "cuda", "cuda"),
        ("API_KEY", "one, two words ,,three", ("one", "two words", "three")),
        ("MODELS", "a", ("a",)),
        ("MODELS", " me/a.nemo , b-v3", ("me/a", "b-v3")),
        ("MODEL_LANGUAGES", "en", ("en",)),
        ("MODEL_LANGUAGES", " German, fr ,,deu,pt-BR, JA", ("de", "fr", "pt", "ja")),
        ("MODEL_PATH", "/models/my model.nemo", Path("/models/my model.nemo")),
        ("MODEL_ID", "tiny", "tiny"),
        ("MODEL_ID", "acme/tiny@v1.0", "acme/tiny@v1.0"),
        ("MODEL_ID", "tiny@refs/pr/1", "tiny@refs/pr/1"),
        ("HF_ENDPOINT", "http://mirror:8080/hf/", "http://mirror:8080/hf/"),
        ("IDLE_TIMEOUT_MINUTES", "0", 0),
        ("RATE_LIMIT", "60/minute; 1000 / DAY", "60/minute;1000 / day"),
        ("RATE_LIMIT_STORAGE", "rediss://:key@redis:6379/1", "rediss://:key@redis:6379/1"),
        ("TRUSTED_PROXY", "10.0.0.2, fd00::/8", ("10.0.0.2/32", "fd00::/8")),
        ("TRUSTED_PROXY", "*", ("*",)),
        (
            "CORS_ORIGINS",
            "https://Example.org,http://[::1]:80",
            ("https://example.org", "http://[::1]:80"),
        ),
        ("CORS_ORIGINS", "*", ("*",)),
        ("DATA_DIR", "/data", Path("/data")),
        ("DATABASE_URL", "postgresql://me:secret@db:5432/x", "postgresql://me:secret@db:5432/x"),
        ("JOBS_STORAGE", "s3://bucket/folder/", "s3://bucket/folder"),
        ("RAY_ADDRESS", "auto", "auto"),
        ("RAY_ADDRESS", "head.example:6379", "head.example:6379"),
        ("RAY_REPLICAS", "0-8", "0-8"),
        ("RAY_REPLICA_GPUS", "0.5", 0.5),
        (
            "ALLOW_WEBHOOKS",
            "A.example, 10.0.0.5:80 ,,[::1]:9",
            ("a.example", "10.0.0.5:80", "[::1]:9"),
        ),
        ("ALLOW_URLS", "Media.example:8080", ("media.example:8080",)),
        ("ALLOW_WEBHOOKS", "localhost,my_host", ("localhost", "my_host")),
    ],
)
def test_values_are_read(variable: str, text: str, value: object) -> None:
    assert read(variable, text) == value


def test_a_home_folder_is_found() -> None:
    assert read("MODELS_DIR", "~/models") == Path.home() / "models"


@pytest.mark.parametrize(
    ("variable", "text", "wanted"),
    [
        ("ENABLE_LAZY_LOAD", "maybe", "true or false"),
        ("ENABLE_LAZY_LOAD", "2", "true or false"),
        ("PORT", "http", "a whole number, 0 to 65535"),
        ("PORT", "65536", "a whole number, 0 to 65535"),
        ("PORT", "-1", "a whole number, 0 to 65535"),
        ("PORT", "80.0", "a whole number, 0 to 65535"),
        ("PORT", "8_000", "a whole number, 0 to 65535"),
        ("PORT", "\uff18\uff10", "a whole number, 0 to 65535"),
        ("PORT", "9" * 5000, "a whole number, 0 to 65535"),
        ("APP_THREADS", "0", "a whole number, 1 to 512"),
        ("CLIP_PROCESSES", "33", "a whole number, 0 to 32"),
        ("TRANSCRIBE_BATCH_SIZE", "0", "a whole number, 1 to 256"),
        ("CHUNK_MINITE", "abc", "a number of minutes, 0.05 to 1440"),
        ("CHUNK_MINITE", "0", "a number of minutes, 0.05 to 1440"),
        ("CHUNK_MINITE", "-3", "a number of minutes, 0.05 to 1440"),
        ("CHUNK_MINITE", "nan", "a number of minutes, 0.05 to 1440"),
        ("CHUNK_MINITE", "inf", "a number of minutes, 0.05 to 1440"),
        ("CHUNK_MINITE", "1e999", "a number of minutes, 0.05 to 1440"),
        ("CHUNK_MINITE", "0,5", "a number of minutes, 0.05 to 1440"),
        ("CHUNK_MINITE", "1_0", "a number of minutes, 0.05 to 1440"),
        ("CHUNK_MINITE", "\u0663", "a number of minutes, 0.05 to 1440"),
        ("CHUNK_MINITE", "3\x00", "a number of minutes, 0.05 to 1440"),
        ("IDLE_TIMEOUT_MINUTES", "1e300", "a number of minutes, 0 to 1000000"),
        ("MAX_UPLOAD_MB", "infinity", "a number of megabytes, 0.001 to 1000000"),
        ("GPU_MEMORY_FRACTION", "95%", "a number, 0.05 to 1"),
        ("GPU_MEMORY_FRACTION", "1.01", "a number, 0.05 to 1"),
        ("SILENCE_THRESHOLD_DB", "38dB", "a level in dB, -120 to 0"),
        ("SILENCE_THRESHOLD_DB", "-38 decibels", "a level in dB, -120 to 0"),
        ("SILENCE_THRESHOLD_DB", "\u221238dB", "a level in dB, -120 to 0"),
        ("PRESET", "fast", "one of speed, balanced, quality"),
        *(
            ("RAY_REPLICAS", text, "a number of replicas, such as 2, or a range, such as 1-8")
            for text in ("0", "8-1", "0-0", "1-", "many", "1-2-3")
        ),
        *(
            (
                "RAY_ADDRESS",
                text,
                "auto or the address of a Ray cluster's head, host:6379",
            )
            for text in ("local", "head", "ray://head:10001", "head:99999")
        ),
        ("JOBS_STORAGE", "/folder", "an address of shared storage, such as s3://bucket/folder"),
        ("DEMO_MODEL", "yes", "one of auto, always, grammar, never"),
        ("PRECISION", "fp8", "one of auto, fp16, bf16, int8, fp32"),
        ("DECODING_STRATEGY", "greedy_batch", "one of greedy, beam"),
        ("TENSOR_CORE_PRECISION", "low", "one of highest, high, medium"),
        ("LOG_LEVEL", "loud", "one of debug, info, warning, error"),
        ("LOG_FORMAT", "xml", "one of text, json"),
        ("DEVICE", "gpu", "auto, cpu, cuda or a GPU such as cuda:1"),
        ("DEVICE", "cuda:", "auto, cpu, cuda or a GPU such as cuda:1"),
        ("DEVICE", "cuda:\u0661", "auto, cpu, cuda or a GPU such as cuda:1"),
        ("MODELS_DIR", "~nobody-of-this-name/m", "a path: that user has no home folder here"),
        ("MODEL_ID", "../etc", "a model's name on the hub, such as nvidia/parakeet-tdt-0.6b-v2"),
        ("MODEL_ID", "a@", "a model's name on the hub, such as nvidia/parakeet-tdt-0.6b-v2"),
        ("MODEL_ID", "a@../b", "a model's name on the hub, such as nvidia/parakeet-tdt-0.6b-v2"),
        ("MODEL_ID", "a/b/c", "a model's name on the hub, such as nvidia/parakeet-tdt-0.6b-v2"),
        *(
            ("MODELS", text, "a model's name on the hub, such as nvidia/parakeet-tdt-0.6b-v2")
            for text in (",", "a,", "../a", "a b", ".nemo")
        ),
        ("MODELS", "a,b,me/a", "a list of models whose names differ"),
        ("MODELS", "a,a.nemo", "a list of models whose names differ"),
        ("MODEL_LANGUAGES", ",", "a comma-separated list of languages, such as en,de,fr"),
        (
            "MODEL_LANGUAGES",
            "en,klingon,xx",
            "a comma-separated list of languages, such as en,de,fr: 'klingon' is not one",
        ),
        ("MAX_QUEUED_JOBS", "-1", "a whole number, 0 to 100000"),
        ("JOB_RETENTION_HOURS", "a week", "a number of hours, 0 to 1000000"),
        *(
            ("ALLOW_WEBHOOKS", text, f"{A_HOST_LIST}, such as example.org,10.0.0.5:8080")
            for text in (
                ",",
                "*",
                "*.example.org",
                "http://a.example",
                "a.example/x",
                "me@a.example",
                "a b",
                "-a",
                "a.",
                "a:0",
                "a:65536",
                "a:",
                "::1",
                "[::1",
                "[]",
                "[1.2.3.4]",
                "[:::]",
                "[::1]:x",
                "\u00e4.example",
                "a,b c",
            )
        ),
        ("HF_ENDPOINT", "hf-mirror.com", "an address that begins with http:// or https://"),
        ("HF_ENDPOINT", "https://", "an address that begins with http:// or https://"),
        ("HF_ENDPOINT", "https://[", "an address that begins with http:// or https://"),
        ("HF_ENDPOINT", "https://hub:0", "an address that begins with http:// or https://"),
        ("HF_ENDPOINT", "https://hub:x", "an address that begins with http:// or https://"),
        *(
            ("HOST", text, "an address or name to listen on, such as 0.0.0.0 or ::")
            for text in ("http://0.0.0.0", "0.0.0.0/0", "[::]", "a b", "\udcff", "\u0661")
        ),
        ("RATE_LIMIT", "60", "a list of rates, such as 60/minute;1000/day"),
        ("RATE_LIMIT", "0/minute", "a list of rates, such as 60/minute;1000/day"),
        ("RATE_LIMIT", "6/minute;", "a list of rates, such as 60/minute;1000/day"),
        (
            "RATE_LIMIT_STORAGE",
            "memcached://here",
            "memory:// or the address of a Redis server, redis://host:6379/0",
        ),
        (
            "RATE_LIMIT_STORAGE",
            "redis://here:65536",
            "memory:// or the address of a Redis server, redis://host:6379/0",
        ),
        (
            "TRUSTED_PROXY",
            "nginx",
            "a list of addresses and networks, such as 10.0.0.2,fd00::/8, or *",
        ),
        (
            "TRUSTED_PROXY",
            "10.0.0.2/8",
            "a list of addresses and networks, such as 10.0.0.2,fd00::/8, or *",
        ),
        (
            "CORS_ORIGINS",
            "https://example.org/",
            "a list of origins, such as https://example.org,http://localhost:3000, or *",
        ),
    ],
)
def test_a_bad_value_is_refused_with_its_name(variable: str, text: str, wanted: str) -> None:
    assert refusal({variable: text}) == f"{variable}={text!r} is not {wanted}"


@pytest.mark.parametrize("text", [",", " , ", "s3cret,schlüssel", "a\x07b", "\udcff"])
def test_keys_that_no_header_can_carry_are_rejected_without_being_shown(text: str) -> None:
    message = refusal({"API_KEY": text})

    assert message.startswith("API_KEY='***' is not a comma-separated list of keys")


@given(st.sampled_from(ALL_NAMES), any_text)
def test_any_text_is_accepted_or_refused_by_name(variable: str, text: str) -> None:
    try:
        settings = Settings.from_env({variable: text})
    except SettingsError as error:
        assert str(error).startswith(f"{variable}={quoted(variable, text)} is not ")  # noqa: PT017
    else:
        assert_tells_itself(settings)


@given(st.dictionaries(st.sampled_from(ALL_NAMES), any_text, max_size=8))
def test_any_environment_is_accepted_or_refused_by_name(environ: dict[str, str]) -> None:
    try:
        settings = Settings.from_env(environ)
    except SettingsError as error:
        beginnings = tuple(f"{name}={quoted(name, text)} " for name, text in environ.items())
        assert str(error).startswith(beginnings)  # noqa: PT017
    else:
        assert_tells_itself(settings)


def quoted(variable: str, text: str) -> str:
    """Return a refused value as a message quotes it."""
    return "'***'" if variable == "API_KEY" else repr(without_passwords(text.strip()))


def assert_tells_itself(settings: Settings) -> None:
    """Check that the output of `describe` is parsed to the same settings."""
    shown = {name: text for name, text, _ in settings.describe()}

    assert shown.pop("API_KEY") == (
        f"{len(settings.api_keys)} set" if settings.api_keys else "none"
    )
    for name, text in list(shown.items()):
        value = value_of(settings, name)
        # Passwords are left out; `./~` and `a /` are paths that do not begin or end as they look.
        if "//***@" in text or isinstance(value, Path):
            assert shown.pop(name) == without_passwords(str(value))
    read_again = Settings.from_env(shown)
    for name in shown:
        value = value_of(settings, name)
        assert value_of(read_again, name) == value
        assert not isinstance(value, float) or math.isfinite(value)
    assert settings.max_upload_bytes > 0


def accepted(variable: str) -> dict[str, Any]:
    """Return those of many texts that a variable takes, with what it makes of them."""
    values = {}
    for text in TEXTS_FOR_SOME_VARIABLE:
        with contextlib.suppress(SettingsError):
            values[text] = read(variable, text)
    return values


ACCEPTED = {variable: accepted(variable) for variable in FIELDS}

CONTRADICTIONS = (
    {"MODELS", "MODEL_PATH"},
    {"MODELS", "DEMO_MODEL"},
    {"RATE_LIMIT", "CLIP_PROCESSES"},
)
"""Variables that exclude each other, at least with some values."""


@pytest.mark.parametrize("variable", FIELDS)
def test_every_variable_accepts_another_value_than_its_default(variable: str) -> None:
    assert {value_of(DEFAULTS, variable)} < {
        *ACCEPTED[variable].values(),
        value_of(DEFAULTS, variable),
    }


@given(
    st.fixed_dictionaries(
        {}, optional={name: st.sampled_from([*values]) for name, values in ACCEPTED.items()}
    ).filter(lambda environ: not any(both <= environ.keys() for both in CONTRADICTIONS))
)
def test_variables_do_not_change_each_others_values(environ: dict[str, str]) -> None:
    settings = Settings.from_env(environ, detected_vram_gb=5)

    for name, text in environ.items():
        assert value_of(settings, name) == ACCEPTED[name][text]
        assert settings.origins[FIELDS[name].name] == "environment"
    for name in FIELDS.keys() - environ.keys() - DERIVED - {"RNNT_BEAM_SIZE"}:
        assert value_of(settings, name) == value_of(DEFAULTS, name)
        assert settings.origins[FIELDS[name].name] == "default"
    assert_tells_itself(settings)


@pytest.mark.parametrize("variable", ALL_NAMES)
@pytest.mark.parametrize(
    "digits", ["9" * 100_000, "0." + "9" * 100_000, "a" * 100_000, "," * 100_000]
)
def test_a_very_long_value_is_parsed_at_once(variable: str, digits: str) -> None:
    """Linux lets one variable have 131,072 bytes. Some expressions take minutes over these."""
    with contextlib.suppress(SettingsError):
        Settings.from_env({variable: f"{digits}\N{SNOWMAN}"})


@pytest.mark.parametrize(
    ("variable", "text", "other_setting"),
    [
        ("MODEL_PATH", "/m/x.nemo", "MODEL_PATH"),
        ("DEMO_MODEL", "always", "DEMO_MODEL=always"),
        ("DEMO_MODEL", "grammar", "DEMO_MODEL=grammar"),
    ],
)
def test_several_models_together_with_a_setting_for_one_are_rejected(
    variable: str, text: str, other_setting: str
) -> None:
    assert refusal({"MODELS": "a,b", variable: text}) == (
        f"MODELS='a,b' and {other_setting} contradict each other: keep one"
    )
    assert Settings.from_env({"MODELS": "a,b", "DEMO_MODEL": "never"}).models == ("a", "b")


def test_one_model_can_be_selected_despite_the_environment() -> None:
    settings = Settings.from_env({"MODEL_PATH": "/m/x.nemo", "DEMO_MODEL": "always"})

    chosen = settings.for_model("nvidia/parakeet-tdt-0.6b-v3")

    assert chosen.models == ("nvidia/parakeet-tdt-0.6b-v3",)
    assert (chosen.model_path, chosen.demo_model) == (None, "never")
    with pytest.raises(SettingsError, match="--model='a b' is not a model's name"):
        settings.for_model("a b")


# Spellings


@pytest.mark.parametrize("name", ["CHUNK_MINITE", "CHUNK_MINUTE", "CHUNK_MINUTES"])
def test_chunk_minutes_have_three_spellings(name: str) -> None:
    settings = Settings.from_env({name: "2.5"})

    assert settings.chunk_minutes == 2.5
    assert settings.origins["chunk_minutes"] == "environment"
    assert refusal({name: "x"}).startswith(f"{name}='x' is not a number of minutes")


def test_spellings_that_agree_are_accepted() -> None:
    environ = {"CHUNK_MINITE": "3", "CHUNK_MINUTE": "3.0", "CHUNK_MINUTES": " 3 "}

    assert Settings.from_env(environ).chunk_minutes == 3


def test_an_empty_spelling_is_ignored() -> None:
    assert Settings.from_env({"CHUNK_MINITE": "", "CHUNK_MINUTES": "4"}).chunk_minutes == 4


def test_spellings_that_differ_are_refused_with_both_names() -> None:
    message = refusal({"CHUNK_MINITE": "3", "CHUNK_MINUTES": "4"})

    assert "CHUNK_MINITE='3'" in message
    assert "CHUNK_MINUTES='4'" in message


# Folders


def test_jobs_are_stored_in_the_uploads_folder_by_default() -> None:
    assert Settings.from_env({"TEMP_UPLOADS_DIR": "/up"}).jobs_dir == Path("/up/data")
    assert Settings.from_env({"DATA_DIR": "/data"}).jobs_dir == Path("/data")


# Presets


@pytest.mark.parametrize(
    ("preset", "vram_gb", "derived"),
    [
        ("speed", None, (10, 16, 0.95, "greedy", 4)),
        ("speed", 4.2, (3, 8, 0.90, "greedy", 4)),
        ("speed", 6.44, (3, 8, 0.90, "greedy", 4)),  # sold as 6 GB
        ("speed", 15.8, (10, 64, 0.95, "greedy", 4)),  # sold as 16 GB
        ("speed", 25.4, (10, 128, 0.95, "greedy", 4)),
        ("speed", 151.0, (10, 256, 0.95, "greedy", 4)),
        ("balanced", None, (10, 8, 0.95, "greedy", 4)),
        ("balanced", 6.0, (3, 4, 0.90, "greedy", 4)),
        ("balanced", 8.36, (10, 8, 0.95, "greedy", 4)),  # sold as 8 GB
        ("balanced", 12.6, (10, 8, 0.95, "greedy", 4)),
        ("quality", None, (10, 4, 0.95, "beam", 2)),
        ("quality", 6.2, (3, 2, 0.90, "beam", 2)),
        ("quality", 7.5, (10, 4, 0.95, "beam", 2)),
        ("quality", 8.36, (10, 4, 0.95, "beam", 2)),
        ("quality", 25.4, (10, 32, 0.95, "beam", 2)),
        ("balanced", 16.9, (10, 32, 0.95, "greedy", 4)),
        ("balanced", 22.5, (10, 64, 0.95, "greedy", 4)),
        ("balanced", 42.4, (10, 128, 0.95, "greedy", 4)),
        ("balanced", 85.0, (10, 256, 0.95, "greedy", 4)),
    ],
)
def test_presets_derive_from_the_gpu(
    preset: str, vram_gb: float | None, derived: tuple[float, int, float, str, int]
) -> None:
    settings = Settings.from_env({"PRESET": preset}, detected_vram_gb=vram_gb)

    assert derived == (
        settings.chunk_minutes,
        settings.transcribe_batch_size,
        settings.gpu_memory_fraction,
        settings.decoding_strategy,
        settings.beam_size,
    )
    permits = 1 if (vram_gb or 0) < 15 else 2
    assert settings.max_concurrent_inferences == (3 if vram_gb is None else permits)


@pytest.mark.parametrize(
    ("vram_gb", "pass_mb"),
    [(None, 1500), (4, 1500), (12, 1500), (16, 4000), (24, 6000), (48, 10_000), (141, 16_000)],
)
def test_a_large_gpu_is_given_more_memory_for_a_pass(vram_gb: float | None, pass_mb: float) -> None:
    assert Settings.from_env({}, detected_vram_gb=vram_gb).max_chunk_memory_mb == pass_mb


@pytest.mark.parametrize(
    ("vram_gb", "batch_size", "cores", "derived"),
    [
        (None, "128", 16, (16, 64, 0)),
        (8.36, "8", 16, (16, 64, 0)),
        (25.4, "64", 16, (128, 128, 4)),
        (80, "128", 8, (256, 256, 2)),
        (141, "256", 3, (512, 512, 0)),
        (141, "200", 64, (400, 400, 4)),
    ],
)
def test_request_limits_fill_two_batches_of_a_gpu(
    vram_gb: float | None, batch_size: str, cores: int, derived: tuple[int, int, int]
) -> None:
    environ = {"TRANSCRIBE_BATCH_SIZE": batch_size}
    settings = Settings.from_env(environ, detected_vram_gb=vram_gb, cores=cores)

    assert derived == (
        settings.app_threads,
        settings.max_queued_requests,
        settings.clip_processes,
    )


def test_explicit_request_limits_hold_with_a_gpu_too() -> None:
    environ = {"APP_THREADS": "7", "MAX_QUEUED_REQUESTS": "0", "CLIP_PROCESSES": "1"}
    settings = Settings.from_env(environ, detected_vram_gb=141, cores=16)

    assert (settings.app_threads, settings.max_queued_requests) == (7, 0)
    assert settings.clip_processes == 1


def test_with_a_rate_limit_one_process_receives_requests() -> None:
    limited = {"RATE_LIMIT": "60/minute"}

    assert Settings.from_env(limited, detected_vram_gb=141, cores=16).clip_processes == 0
    assert refusal(limited | {"CLIP_PROCESSES": "2"}) == (
        "RATE_LIMIT='60/minute' and CLIP_PROCESSES contradict each other: keep one"
    )
    assert Settings.from_env(limited | {"CLIP_PROCESSES": "0"}).clip_processes == 0


def test_configured_gpu_memory_takes_precedence_over_the_detected() -> None:
    given_small = Settings.from_env({"GPU_VRAM_GB": "4"}, detected_vram_gb=24)
    given_large = Settings.from_env({"GPU_VRAM_GB": "24"}, detected_vram_gb=4)

    assert given_small.chunk_minutes == 3
    assert given_large.chunk_minutes == 10


def test_explicit_values_take_precedence_over_the_preset() -> None:
    explicit = {
        "CHUNK_MINITE": "7",
        "TRANSCRIBE_BATCH_SIZE": "3",
        "GPU_MEMORY_FRACTION": "0.5",
        "MAX_CONCURRENT_INFERENCES": "2",
        "DECODING_STRATEGY": "greedy",
        "RNNT_BEAM_SIZE": "6",
    }

    settings = Settings.from_env(explicit | {"PRESET": "quality"}, detected_vram_gb=4)

    for variable, text in explicit.items():
        assert value_of(settings, variable) == read(variable, text)
        assert settings.origins[FIELDS[variable].name] == "environment"


ON_EVERY_GPU = {
    "speed": ("greedy", 16),
    "balanced": ("greedy", 8),
    "simple": ("greedy", 8),
    "quality": ("beam", 4),
}
"""Decoding, and chunks in a forward pass of a GPU of 8 GB."""
TIMES_AS_MANY: dict[float, float] = {
    2: 0.5,
    4: 0.5,
    6: 0.5,
    6.44: 0.5,
    16: 4,
    24: 8,
    48: 16,
    80: 32,
}
"""Chunks in a forward pass, by GB; 256 at most."""
PASS_MB: dict[float, float] = {16: 4000, 24: 6000, 48: 10_000, 80: 16_000}
EXPLICIT = {
    "CHUNK_MINITE": ["2", "10"],
    "TRANSCRIBE_BATCH_SIZE": ["1", "8"],
    "GPU_MEMORY_FRACTION": ["0.5", "0.95"],
    "MAX_CHUNK_MEMORY_MB": ["900", "1500"],
    "MAX_CONCURRENT_INFERENCES": ["1", "2"],
    "DECODING_STRATEGY": ["greedy", "beam"],
    "RNNT_BEAM_SIZE": ["2", "6"],
}
"""What a preset decides, given as another value than its own, and as what may be its own."""


GIVEN: list[dict[str, str]] = [
    {},
    *({name: text} for name, texts in EXPLICIT.items() for text in texts),
    *({name: texts[n] for name, texts in EXPLICIT.items()} for n in range(2)),
]


@pytest.mark.parametrize("preset", ON_EVERY_GPU)
@pytest.mark.parametrize("vram_gb", [2, 4, 6, 6.44, 7.9, 8, 8.59, 12, 16, 24, 48, 80])
def test_a_preset_sets_what_is_not_configured(preset: str, vram_gb: float) -> None:
    small = vram_gb < 7
    decoding, batch_size = ON_EVERY_GPU[preset]
    decided = {
        "CHUNK_MINITE": 3 if small else 10,
        "TRANSCRIBE_BATCH_SIZE": min(256, int(batch_size * TIMES_AS_MANY.get(vram_gb, 1))),
        "GPU_MEMORY_FRACTION": 0.9 if small else 0.95,
        "MAX_CHUNK_MEMORY_MB": PASS_MB.get(vram_gb, 1500),
        "MAX_CONCURRENT_INFERENCES": 2 if vram_gb > 15 else 1,
        "DECODING_STRATEGY": decoding,
    }
    if preset == "quality":
        decided["RNNT_BEAM_SIZE"] = 2
    environ = {"PRESET": preset, "GPU_VRAM_GB": str(vram_gb)}

    for given_too in GIVEN:
        detected = Settings.from_env({"PRESET": preset} | given_too, detected_vram_gb=vram_gb)
        other = Settings.from_env(environ | given_too, detected_vram_gb=24 - vram_gb / 4)
        for settings, name in itertools.product((detected, other), EXPLICIT):
            assert (value_of(settings, name), settings.origins[FIELDS[name].name]) == (
                (read(name, given_too[name]), "environment")
                if name in given_too
                else (decided[name], "preset")
                if name in decided
                else (PROMISE[name], "default")
            )


def test_the_recommended_settings_are_valid() -> None:
    small = Settings.from_env({"PRESET": "speed", "CHUNK_MINITE": "3"}, detected_vram_gb=4.2)
    medium = Settings.from_env(
        {"PRESET": "balanced", "CHUNK_MINITE": "5", "DECODING_STRATEGY": "greedy"},
        detected_vram_gb=8.36,
    )

    assert (small.chunk_minutes, small.decoding_strategy) == (3, "greedy")
    assert (medium.chunk_minutes, medium.decoding_strategy) == (5, "greedy")


# What is shown


def test_every_value_has_its_origin() -> None:
    settings = Settings.from_env({"PORT": "80", "PRESET": "quality"})
    described = {name: (value, origin) for name, value, origin in settings.describe()}

    assert set(described) == set(FIELDS)
    assert described["PORT"] == ("80", "environment")
    assert described["HOST"] == ("0.0.0.0", "default")
    assert described["RNNT_BEAM_SIZE"] == ("2", "preset")
    assert described["MODEL_PATH"] == ("", "default")
    assert set(settings.origins) == {field.name for field in FIELDS.values()}


def test_settings_that_were_not_read_can_be_described() -> None:
    assert {origin for _, _, origin in Settings().describe()} == {"default"}


def test_secrets_are_not_shown() -> None:
    settings = Settings.from_env(
        {"API_KEY": "s3cret,other-s3cret", "HF_ENDPOINT": "https://me:s3cret@mirror/x"}
    )
    described = {name: value for name, value, _ in settings.describe()}

    assert "s3cret" not in str(settings.describe())
    assert described["API_KEY"] == "2 set"
    assert described["HF_ENDPOINT"] == "https://***@mirror/x"
    assert "other-s3cret" not in repr(settings)
    assert settings.hf_endpoint == "https://me:s3cret@mirror/x"


@pytest.mark.parametrize("variable", ["HF_ENDPOINT", "RATE_LIMIT_STORAGE"])
def test_a_password_in_an_invalid_url_is_not_shown(variable: str) -> None:
    message = refusal({variable: "ftp://me:p@ssw0rd@mirror/x"})

    assert message.startswith(f"{variable}='ftp://***@mirror/x' is not ")


def test_paths_can_be_shortened_to_their_last_part() -> None:
    settings = Settings.from_env({"MODELS_DIR": "/home/someone/models", "DATA_DIR": "/data"})
    described = {name: value for name, value, _ in settings.describe(whole_paths=False)}

    assert (described["MODELS_DIR"], described["DATA_DIR"], described["MODEL_PATH"]) == (
        "models",
        "data",
        "",
    )
    assert "someone" not in str(described)
    assert ("MODELS_DIR", "/home/someone/models", "environment") in settings.describe()


def test_no_key_is_shown_as_none() -> None:
    assert ("API_KEY", "none", "default") in Settings.from_env({}).describe()


def test_languages_are_shown_as_a_list() -> None:
    settings = Settings.from_env({"MODEL_LANGUAGES": "de, french"})

    assert ("MODEL_LANGUAGES", "de,fr", "environment") in settings.describe()
    assert ("MODEL_LANGUAGES", "", "default") in Settings.from_env({}).describe()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULTS.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1_048_576), ("0.001", 1048), ("2000", 2000 << 20)]
)
def test_megabytes_are_binary(text: str, size: int) -> None:
    assert Settings.from_env({"MAX_UPLOAD_MB": text}).max_upload_bytes == size
