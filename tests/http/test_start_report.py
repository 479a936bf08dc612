"""The start report: in the log, and in `/health?verbose=1`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from api_description import validate
from conftest import Server, running_server
from http_helpers import error_of, request

from app import build_services
from parakeet_api.http import pages
from parakeet_api.http.start_report import ModelFile, StartReport, report_start
from parakeet_api.model import cuda
from parakeet_api.model.cuda import DeviceMemory
from parakeet_api.model.devices import Gpu, InferencePlan, missing_gpu
from parakeet_api.model.memory import HostMemory
from parakeet_api.openapi.json_schema import ref
from parakeet_api.openapi.schemas import body_schemas
from parakeet_api.settings import Settings

pytestmark = pytest.mark.integration

CPU_PLAN = InferencePlan(longest_chunk_s=30, batch_size=8, batch_s=60)
CARD_PLAN = InferencePlan(60, 8, 454.5, memory_mb=1500, memory_limit="MAX_CHUNK_MEMORY_MB")

PLAN_LINE = (
    "  plan       chunks of at most 60 s, batches of at most 8 chunks and 454 s, as a pass may take"
    " 1500 MB of the GPU: MAX_CHUNK_MEMORY_MB; 3 at a time, one of them for clips"
)


def report(gpu: Gpu | None = None, **environ: str) -> StartReport:
    model = ModelFile(
        name="mine",
        model_id="me/mine",
        path=Path("/home/someone/models/mine.nemo"),
        bytes=2_400_000_000,
        demo=False,
        note=None,
        languages=("de", "en"),
    )
    return StartReport(
        gpu=gpu,
        cores=4,
        memory=HostMemory(available=3 * 1024**3, total=8 * 1024**3),
        models=(model,),
        plan=CARD_PLAN if gpu else CPU_PLAN,
        settings=Settings.from_env(environ),
    )


def test_processes_that_receive_clips_are_reported() -> None:
    assert (
        "  requests   16 at a time, 64 more may wait; 2 processes receive clips"
        in report(CLIP_PROCESSES="2").text().splitlines()
    )


def test_it_is_one_block_that_begins_with_what_matters() -> None:
    lines = report(Gpu("NVIDIA L4", 23.6), API_KEY="s3cret", PRECISION="fp16").text().splitlines()

    assert lines[:8] == [
        "started with:",
        "  device     NVIDIA L4, 23.6 GB; 4 processor cores; DEVICE=auto",
        "  memory     3.0 of 8.0 GiB available",
        "  precision  fp16 wanted, greedy decoding",
        "  model      mine: /home/someone/models/mine.nemo, 2,400 MB, speaks de, en",
        PLAN_LINE,
        "  requests   16 at a time, 64 more may wait",
        "  settings",
    ]
    assert "    API_KEY=1 set  [environment]" in lines
    assert "    PORT=5092  [default]" in lines
    assert "s3cret" not in "".join(lines)


def test_without_a_gpu_the_plan_depends_on_no_memory() -> None:
    body = report().body()

    assert "as measured on a CPU" in report().text()
    assert body["device"] == {"wanted": "auto", "card": None, "cores": 4}
    assert body["plan"]["memory_mb"] is None
    assert report(Gpu("L4", 23.6)).body()["plan"]["memory_mb"] == 1500


@pytest.mark.parametrize("gpu", [None, Gpu("L4", 23.6, free_gb=22.9, driver="580.65")], ids=str)
def test_it_is_described(gpu: Gpu | None) -> None:
    document = {"components": {"schemas": body_schemas()}}

    validate(document, ref("StartReport"), report(gpu).body())


def test_as_json_it_has_no_secret_and_no_path() -> None:
    start_report = report(
        API_KEY="s3cret",
        HF_ENDPOINT="https://me:s3cret@mirror",
        RATE_LIMIT="1/hour",
        RATE_LIMIT_STORAGE="redis://:s3cret@redis",
        DATA_DIR="/home/someone/data",
        MODEL_PATH="/home/someone/models/mine.nemo",
    ).body()

    text = json.dumps(start_report)
    assert "s3cret" not in text
    assert "someone" not in text
    assert start_report["models"][0]["path"] == "mine.nemo"
    settings = {entry["name"]: entry["value"] for entry in start_report["settings"]}
    assert settings["MODEL_PATH"] == "mine.nemo"
    assert settings["RATE_LIMIT_STORAGE"] == "redis://***@redis"


def test_the_log_begins_with_it(server: Server) -> None:
    text = server.log.read_text(encoding="utf-8")

    assert text.index("started with:") < text.index("listening on")
    assert "parakeet-tdt-demo-en: " in text
    assert "DEMO_MODEL=grammar  [environment]" in text
    assert "; BUNDLED MODEL: model for tests; it understands" in text


def test_the_log_says_why_there_is_no_gpu(server: Server) -> None:
    reasons = re.findall(r"no GPU, the CPU is used: (\S.+)", server.log.read_text())

    # Not on a machine that has one.
    assert len(reasons) == (missing_gpu() is not None)


def test_health_returns_it_on_request(server: Server) -> None:
    assert "report" not in request(server, "GET", "/health").json()

    health = request(server, "GET", "/health?verbose=1").json()

    assert health["status"] == "ok"
    (model,) = health["report"]["models"]
    assert (model["name"], model["demo"]) == ("parakeet-tdt-demo-en", True)
    assert model["bytes"] > 1_000_000
    assert health["report"]["memory"]["available"] > 0
    assert {"name": "DEMO_MODEL", "value": "grammar", "origin": "environment"} in (
        health["report"]["settings"]
    )
    error_of(request(server, "GET", "/health?verbose=maybe"), 400)


def test_with_keys_it_takes_one(tmp_path: Path) -> None:
    with running_server(tmp_path, API_KEY="right") as locked:
        assert request(locked, "GET", "/health").status_code == 200
        assert request(locked, "GET", "/health?verbose=0").status_code == 200
        error_of(request(locked, "GET", "/health?verbose=1"), 401)
        key = {"Authorization": "Bearer right"}
        health = request(locked, "GET", "/health?verbose=1", headers=key)
        assert "right" not in health.text
        assert "report" in health.json()


def test_gpu_memory_is_reported_once_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = DeviceMemory(used=5, total=9, allocated=2, reserved=3)
    monkeypatch.setattr(cuda, "device_memory", lambda device: {"cuda:0": memory}[device])

    assert pages._memory_of(None) is None
    assert pages._memory_of("cpu") is None
    assert pages._memory_of("cuda:0") == {"used": 5, "total": 9, "allocated": 2, "reserved": 3}


def test_a_gpu_that_cannot_be_queried_does_not_fail_health(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> DeviceMemory:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(cuda, "device_memory", fail)

    assert pages._memory_of("cuda:0") is None


def test_a_model_that_is_not_downloaded_yet_is_reported_as_such(tmp_path: Path) -> None:
    settings = Settings.from_env(
        {
            "DEMO_MODEL": "never",
            "MODELS_DIR": str(tmp_path / "none"),
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "TEMP_UPLOADS_DIR": str(tmp_path / "uploads"),
        }
    )
    with build_services(settings) as services:
        made = report_start(settings, models=services.models, gpu=services.gpu)

    assert "parakeet-tdt-0.6b-v2: to be fetched as nvidia/parakeet-tdt-0.6b-v2" in made.text()
    assert made.body()["models"][0]["bytes"] is None
