"""The package's reading order: the table of design.md, held."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from conftest import ROOT

import parakeet_api

ORDER = (
    "errors",
    "api_keys",
    "languages",
    "settings",
    "logs",
    "metrics",
    "transcript",
    "clip_link",
    "language_detection",
    "card_check",
    "devices",
    "media_info",
    "timeline",
    "downmix",
    "levels",
    "media_files",
    "sound_files",
    "ffmpeg",
    "pieces",
    "audio",
    "chunking",
    "cuda",
    "nemo_internals",
    "encoder",
    "token_decoder",
    "whisper_encoder",
    "nemo_model",
    "heap",
    "recognizer",
    "memory",
    "speech_gate",
    "model_store",
    "model_manager",
    "model_pool",
    "stitching",
    "batch_queue",
    "batching",
    "admission",
    "background",
    "segmentation",
    "subtitles",
    "pipeline",
    "models",
    "start_report",
    "request_params",
    "rendering",
    "server_sent_events",
    "asr_api",
    "command_line",
    "job",
    "job_store",
    "job_runner",
    "webhooks",
    "jobs",
    "uploads",
    "upload_form",
    "openapi_schemas",
    "openapi_examples",
    "openapi_parts",
    "openapi",
    "proxies",
    "clip_front",
    "url_spellings",
    "web",
    "rate_limits",
    "cross_origin",
    "openai_routes",
    "asr_routes",
    "job_routes",
    "admin_routes",
    "pages",
    "docs_routes",
    "routes",
    "http_server",
    "clip_desk",
)
"""A module imports only from those before it."""

PURE = frozenset(
    {
        "batch_queue",
        "errors",
        "api_keys",
        "settings",
        "transcript",
        "languages",
        "media_info",
        "timeline",
        "downmix",
        "levels",
        "url_spellings",
        "chunking",
        "speech_gate",
        "stitching",
        "segmentation",
        "subtitles",
        "request_params",
        "rendering",
        "asr_api",
        "job",
        "openapi",
        "openapi_examples",
        "openapi_parts",
        "openapi_schemas",
    }
)
"""They do no I/O, start no thread and read no clock."""

IMPURE = frozenset({"threading", "time", "os", "socket", "subprocess", "asyncio", "concurrent"})

OWNERS = {
    "torch": (
        "card_check",
        "cuda",
        "nemo_internals",
        "encoder",
        "token_decoder",
        "whisper_encoder",
        "nemo_model",
        "recognizer",
    ),
    "nemo": ("nemo_internals", "whisper_encoder", "nemo_model"),
    "omegaconf": ("nemo_model",),
    "subprocess": ("devices", "ffmpeg", "clip_desk"),
    "soundfile": ("sound_files",),
    "soxr": ("sound_files",),
    "flask": (
        "web",
        "rate_limits",
        "cross_origin",
        "openai_routes",
        "asr_routes",
        "job_routes",
        "admin_routes",
        "pages",
        "docs_routes",
        "routes",
    ),
    "flask_limiter": ("rate_limits",),
    "werkzeug": ("upload_form", "proxies", "web", "asr_routes"),
    "waitress": ("http_server",),
    "cuda": ("devices", "nemo_internals"),
    "huggingface_hub": ("model_store",),
    "py3langid": ("language_detection",),
    "sqlite3": ("job_store",),
    "httpx": ("webhooks",),
}
"""Packages that only these modules may know."""

HEAVY = frozenset({"torch", "nemo", "omegaconf", "huggingface_hub", "cuda", "yaml", "py3langid"})
"""Imported inside functions: they take seconds, or may be absent."""

LAZY = frozenset({"whisper_encoder"})
"""Modules whose classes derive from a heavy package's: imported inside functions themselves."""

PACKAGE = ROOT / "parakeet_api"


@dataclass(frozen=True)
class Import:
    """An import statement of one module."""

    name: str
    """Dotted: `numpy.typing`, `parakeet_api.errors`."""
    when: str
    """`start`, `call` (inside a function), or `never` (for type checkers alone)."""

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]


def imports_of(module: str) -> list[Import]:
    return list(_walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8")), "start"))


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
    if node.level or source == "parakeet_api":
        # What is imported may be a module itself.
        yield from (Import(f"parakeet_api.{alias.name}", when) for alias in node.names)
    else:
        yield Import(source, when)


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted(ORDER) == sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem != "__init__")
    assert set(ORDER) >= PURE


def test_the_package_is_flat() -> None:
    assert [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE] == []


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_rows_above_it(module: str) -> None:
    own = {i.name.split(".")[1] for i in imports_of(module) if i.top == "parakeet_api"}
    about_the_package = {name for name in own if name in vars(parakeet_api) and name not in ORDER}

    assert own - about_the_package <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("module", ORDER)
def test_a_package_is_known_to_its_owner_alone(module: str) -> None:
    known = {i.top for i in imports_of(module)} & OWNERS.keys()

    assert known <= {package for package, owners in OWNERS.items() if module in owners}


@pytest.mark.parametrize("module", ORDER)
def test_heavy_packages_are_imported_inside_functions(module: str) -> None:
    at_start = {i for i in imports_of(module) if i.when == "start"}

    if module not in LAZY:
        assert {i.top for i in at_start} & HEAVY == set()
    assert {i.name for i in at_start} & {f"parakeet_api.{name}" for name in LAZY} == set()


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_import_no_thread_no_clock_and_no_system(module: str) -> None:
    assert {i.top for i in imports_of(module)} & IMPURE == set()


@pytest.mark.parametrize("module", ORDER)
def test_no_module_reads_the_environment_itself(module: str) -> None:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    taken = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "os"]

    assert used & {"os.environ", "os.environb", "os.getenv", "os.putenv"} == set()
    assert taken == [], "write os.name, so that this test sees it"


def test_the_walk_sees_every_kind_of_import() -> None:
    recognizer = set(imports_of("recognizer"))

    assert Import("itertools", "start") in recognizer
    assert Import("parakeet_api.transcript", "start") in recognizer
    assert {Import("torch", "never"), Import("torch", "call")} <= recognizer
    assert Import("parakeet_api.__version__", "start") in imports_of("pages")


def test_importing_everything_needs_no_torch_no_ffmpeg_and_no_environment() -> None:
    program = (
        "import importlib, sys\n"
        f"for name in {[name for name in ORDER if name not in LAZY]!r}:"
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
        timeout=60,
    )

    loaded = set(done.stdout.split())
    assert {"numpy", "flask", "parakeet_api"} <= loaded
    assert loaded & (HEAVY | {"lightning", "imageio_ffmpeg"}) == set()
