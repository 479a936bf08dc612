"""The package's architecture: the order of its packages, as in CONTRIBUTING.md's table."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from conftest import PATIENCE_S, ROOT

import parakeet_api

ORDER = (
    *(
        "errors",
        "languages",
        "allowed_hosts",
        "settings",
        "logs",
        "metrics",
        "keywords",
        "transcript",
    ),
    *(
        "audio",
        "speech",
        "model",
        "scale",
        "pipeline",
        "served_models",
        "formats",
        "archive",
        "command_line",
    ),
    *("jobs", "realtime", "openapi", "http"),
)
"""Packages and modules of `parakeet_api`: each imports only from those before it."""

PURE = frozenset(
    {
        "errors",
        "languages",
        "settings",
        "keywords",
        "transcript",
        "audio.channels",
        "audio.declared_sizes",
        "audio.decode_report",
        "audio.downmix",
        "audio.ffmpeg_log",
        "audio.file_parts",
        "audio.flash_video",
        "audio.levels",
        "audio.media_info",
        "audio.timeline",
        "speech.activity",
        "speech.assembly",
        "speech.chunking",
        "speech.diarization",
        "speech.holes",
        "speech.keyword_choice",
        "speech.segmentation",
        "speech.speaker_hearing",
        "speech.speaker_segments",
        "speech.speakers",
        "speech.speech_gate",
        "speech.stitching",
        "model.batch_queue",
        "formats.asr_api",
        "formats.form_fields",
        "formats.json_types",
        "formats.rendering",
        "formats.request_params",
        "formats.speaker_params",
        "formats.status",
        "formats.subtitles",
        "jobs.job",
        "openapi.document",
        "openapi.examples",
        "openapi.json_schema",
        "openapi.parts",
        "openapi.schemas",
        "openapi.speaker_fields",
        "realtime.audio_input",
        "realtime.events",
        "realtime.session_config",
        "realtime.spoken_words",
        "realtime.turns",
        "http.api_keys",
        "http.url_spellings",
    }
)
"""They do no I/O, start no thread and read no clock."""

IMPURE = frozenset({"threading", "time", "os", "socket", "subprocess", "asyncio", "concurrent"})

OWNERS = {
    "torch": ("model",),
    "nemo": (
        "model.nemo_internals",
        "model.whisper_encoder",
        "model.weights",
        "model.restore",
        "model.loading",
        "model.fusion",
    ),
    "sentencepiece": ("model.keyword_trees",),
    "onnx": ("model.voice_activity",),
    "omegaconf": ("model.loading",),
    "cuda": ("model.devices", "model.nemo_internals"),
    "huggingface_hub": ("model.checkpoints",),
    "subprocess": ("audio.ffmpeg", "model.devices", "http.clip_desk"),
    "soundfile": ("audio.sound_files",),
    "soxr": ("audio.sound_files", "realtime.audio_input"),
    "py3langid": ("speech.language_detection",),
    "ray": ("scale", "archive.run"),
    "sqlite3": ("jobs.sqlite_store",),
    "psycopg": ("jobs.postgres_store",),
    "fsspec": ("jobs.recordings", "archive.files"),
    "pydantic": ("openapi.schemas",),
    "httpx": ("allowed_hosts", "jobs.webhooks", "http.recording_url"),
    "flask": ("http",),
    "flask_limiter": ("http.rate_limits",),
    "werkzeug": ("http",),
    "websockets": ("http.web_socket",),
    "waitress": ("http.server", "http.waitress_internals"),
}
"""Packages of others that only these packages or modules import."""

HEAVY = frozenset(
    {
        *("torch", "nemo", "omegaconf", "onnx", "cuda"),
        *("huggingface_hub", "yaml", "py3langid", "pydantic", "ray", "psycopg", "fsspec"),
    }
)
"""Imported inside functions: they take seconds, or may be absent."""

LAZY = frozenset({"model.weights", "model.int8_linear", "model.whisper_encoder"})
"""Modules whose classes derive from a heavy package's: imported inside functions themselves."""

PACKAGE = ROOT / "parakeet_api"
ROOMS = frozenset(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
MODULES = tuple(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.stem != "__init__"
)


@dataclass(frozen=True)
class Import:
    """An import statement of one module."""

    name: str
    """Dotted: `numpy.typing`, `parakeet_api.errors`, `parakeet_api.model.cuda`."""
    when: str
    """`start`, `call` (inside a function), or `never` (for type checkers alone)."""

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    @property
    def own(self) -> str | None:
        """The module of ours, as in `MODULES`; `None` for others and for the version."""
        name = self.name.removeprefix("parakeet_api.")
        return name if name in MODULES else None


def tree_of(module: str) -> ast.Module:
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(module: str) -> list[Import]:
    return list(_walk(tree_of(module), "start"))


def own_imports_of(module: str) -> set[str]:
    return {i.own for i in imports_of(module) if i.own is not None}


def _walk(node: ast.AST, when: str) -> Iterator[Import]:
    match node:
        case ast.Import():
            yield from (Import(alias.name, when) for alias in node.names)
        case ast.ImportFrom():
            yield from _names(node, when)
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
            when = "call"
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            when = "never"
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, when)


def _names(node: ast.ImportFrom, when: str) -> Iterator[Import]:
    source = node.module or ""
    assert not node.level, "imports are absolute"
    if source == "parakeet_api" or source.removeprefix("parakeet_api.") in ROOMS:
        # What is imported may be a module itself.
        yield from (Import(f"{source}.{alias.name}", when) for alias in node.names)
    else:
        yield Import(source, when)


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_package_is_in_the_order() -> None:
    assert {room_of(module) for module in MODULES} == set(ORDER)
    assert set(MODULES) >= PURE


def test_a_package_imports_only_from_those_before_it() -> None:
    upwards = [
        f"{module} imports {own}"
        for module in MODULES
        for own in own_imports_of(module)
        if ORDER.index(room_of(own)) > ORDER.index(room_of(module))
    ]

    assert upwards == []


def test_no_modules_import_each_other() -> None:
    order = list(graphlib.TopologicalSorter({m: own_imports_of(m) for m in MODULES}).static_order())

    assert set(order) == set(MODULES)


def test_a_third_party_package_is_imported_only_by_its_owner() -> None:
    strangers = [
        f"{module} imports {package}"
        for module in MODULES
        for package in {i.top for i in imports_of(module)} & OWNERS.keys()
        if not {module, room_of(module)} & set(OWNERS[package])
    ]

    assert strangers == []


def test_heavy_packages_are_imported_inside_functions() -> None:
    at_start = [
        f"{module} imports {i.name}"
        for module in MODULES
        for i in imports_of(module)
        if i.when == "start" and module not in LAZY and (i.own in LAZY or i.top in HEAVY)
    ]

    assert at_start == []


def test_pure_modules_import_no_thread_no_clock_and_no_system() -> None:
    impure = [
        f"{module} imports {i.name}"
        for module in sorted(PURE)
        for i in imports_of(module)
        if i.top in IMPURE
    ]

    assert impure == []


def test_no_module_reads_the_environment_itself() -> None:
    for module in MODULES:
        tree = tree_of(module)
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        taken = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "os"]

        assert used & {"os.environ", "os.environb", "os.getenv", "os.putenv"} == set(), module
        assert taken == [], f"{module}: write os.name, so that this test sees it"


def test_each_package_has_a_docstring() -> None:
    for room in ROOMS:
        tree = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
        doc = ast.get_docstring(tree) or ""

        assert len(tree.body) == 1, f"{room}/__init__.py holds a docstring alone"
        assert "imports" in doc.lower(), f"{room}/__init__.py says what it may import"


def test_the_walk_sees_every_kind_of_import() -> None:
    recognizer = set(imports_of("model.recognizer"))

    assert Import("itertools", "start") in recognizer
    assert Import("parakeet_api.transcript", "start") in recognizer
    assert {Import("torch", "never"), Import("torch", "call")} <= recognizer
    assert Import("parakeet_api.__version__", "start") in imports_of("http.pages")
    assert "model.cuda" in own_imports_of("model.memory")
    assert parakeet_api.__version__


def test_importing_everything_needs_no_torch_no_ffmpeg_and_no_environment() -> None:
    program = (
        "import importlib, sys\n"
        f"for name in {[name for name in MODULES if name not in LAZY]!r}:"
        " importlib.import_module('parakeet_api.' + name)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )

    loaded = set(done.stdout.split())
    assert {"numpy", "flask", "parakeet_api"} <= loaded
    assert loaded & (HEAVY | {"lightning", "imageio_ffmpeg"}) == set()
