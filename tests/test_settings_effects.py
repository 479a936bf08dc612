"""Every setting has its effect: the list of tests, and those without a better place.

Here are the settings that `app.py` hands from the environment to what it builds.
"""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import PATIENCE_S, ROOT, Clip, Server, running_server, wait_until
from http_helpers import transcribe
from settings_tables import FIELDS

from app import build_services
from parakeet_api.http.services import Services
from parakeet_api.model.recognizer import NemoRecognizer, Recognizer
from parakeet_api.settings import Settings
from parakeet_api.transcript import Chunk, Word

pytestmark = pytest.mark.integration


@contextmanager
def service(folder: Path, **environ: str) -> Iterator[Services]:
    """Build what `app.py` serves with, around the demo model on a CPU."""
    defaults = {"DEMO_MODEL": "grammar", "DEVICE": "cpu", "TEMP_UPLOADS_DIR": str(folder / "up")}
    with build_services(Settings.from_env(defaults | environ)) as services:
        yield services


@contextmanager
def loaded(folder: Path, **environ: str) -> Iterator[Recognizer]:
    """Load the model as the first request does."""
    with (
        service(folder, **environ) as services,
        services.models.first.slot.lease() as recognizer,
    ):
        yield recognizer


def start(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a server that cannot start."""
    defaults = {"DEMO_MODEL": "grammar", "PORT": "0", "TEMP_UPLOADS_DIR": str(folder / "up")}
    return subprocess.run(
        [sys.executable, "app.py"],
        cwd=ROOT,
        env=os.environ | defaults | environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


# Invalid settings stop the start


BAD = {
    "HOST": ["\udcff", "a" * 300, "a..b", "http://0.0.0.0"],
    "PORT": ["http", "9" * 100_000 + "x"],
    "CHUNK_MINITE": ["nan", "9" * 100_000 + "x", "5\n6"],
    "TEMP_UPLOADS_DIR": ["/dev/null", "/dev/null/x", "a" * 5000],
    "MODEL_PATH": ["/dev/null", ".", "a" * 5000, "\udcff"],
    "HF_ENDPOINT": ["https://["],
    "DEVICE": ["cuda:99"],
    "API_KEY": ["\udcff"],
    "DENOISE_FILTER": ["hum=less", "\udcff", "volume=0;[", "a" * 100_000],
}
"""What the system refuses, or ffmpeg; and what an environment can hold that no text has."""


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, text) for name, texts in BAD.items() for text in texts],
    ids=lambda text: ascii(text[:20]),
)
def test_an_invalid_setting_stops_the_start_with_one_line_that_names_it(
    tmp_path: Path, name: str, text: str
) -> None:
    outcome = start(tmp_path, ENABLE_FFMPEG_DENOISE="on", **{name: text})

    assert outcome.returncode == 2
    assert re.fullmatch(rf"app\.py: .*\b{name}\b.*\n", outcome.stderr)


# When there is a model in memory


@pytest.mark.parametrize(("lazy", "state"), [("true", "unloaded"), ("false", "ready")])
def test_the_model_is_loaded_before_serving_unless_that_may_wait(
    tmp_path: Path, lazy: str, state: str
) -> None:
    with running_server(tmp_path, ENABLE_LAZY_LOAD=lazy) as server:
        assert server.health()["model"]["state"] == state


def test_an_idle_model_is_unloaded_after_its_time(tmp_path: Path, clips: list[Clip]) -> None:
    with service(tmp_path, IDLE_TIMEOUT_MINUTES="0.001") as services:
        assert services.models.first.pipeline.transcribe(clips[10].path).text == clips[10].text

        wait_until(lambda: services.models.first.slot.state == "unloaded", what="unloading")


# Where and how it computes


@pytest.mark.parametrize("precision", ["bf16", "int8", "fp32"])
def test_the_precision_is_the_configured_one(tmp_path: Path, precision: str) -> None:
    with loaded(tmp_path, PRECISION=precision) as recognizer:
        assert recognizer.info.precision == precision
        assert recognizer.info.precision_reason == "PRECISION"


def test_the_decoding_strategy_is_the_configured_one(tmp_path: Path) -> None:
    with loaded(tmp_path, DECODING_STRATEGY="beam", RNNT_BEAM_SIZE="3") as recognizer:
        assert isinstance(recognizer, NemoRecognizer)
        assert recognizer.info.decoding == "beam of 3"
        assert recognizer._decoder.nemo.decoding.beam_size == 3


@pytest.fixture
def backends() -> Iterator[None]:
    """Restore torch's global switches."""
    cudnn = torch.backends.cudnn
    before = (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic)
    attention = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    precision = torch.get_float32_matmul_precision()
    yield
    torch.backends.cuda.enable_cudnn_sdp(attention)
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
    torch.set_float32_matmul_precision(precision)


@pytest.mark.usefixtures("backends")
@pytest.mark.parametrize(
    ("environ", "tf32", "benchmark", "matmul"),
    [
        ({}, True, False, "highest"),
        ({"TENSOR_CORE_PRECISION": "medium"}, True, False, "medium"),
        ({"TENSOR_CORE_PRECISION": "high", "ENABLE_TENSOR_CORE": "no"}, False, False, "highest"),
        ({"ENABLE_CUDNN_BENCHMARK": "yes"}, True, True, "highest"),
    ],
    ids=str,
)
def test_torch_gets_its_gpu_settings(
    tmp_path: Path, environ: dict[str, str], tf32: bool, benchmark: bool, matmul: str
) -> None:
    with loaded(tmp_path, **environ):
        cudnn = torch.backends.cudnn
        assert cudnn.allow_tf32 is tf32
        assert (cudnn.benchmark, cudnn.deterministic) == (benchmark, not benchmark)
        assert torch.backends.cuda.cudnn_sdp_enabled() is benchmark  # type: ignore[no-untyped-call]
        assert torch.get_float32_matmul_precision() == matmul


@pytest.mark.parametrize("value", ["true", "false", ""])
def test_a_setting_without_effect_logs_a_warning(tmp_path: Path, value: str) -> None:
    with running_server(tmp_path, ENABLE_GRADIENT_CHECKPOINTING=value) as server:
        warned = "ENABLE_GRADIENT_CHECKPOINTING has no effect" in server.log.read_text()

    assert warned is bool(value)


# How much at once


class Gate:
    """Blocks the model's forward passes until they are released; records their batches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[int] = []
        self.open = threading.Event()
        monkeypatch.setattr(NemoRecognizer, "recognize", self._recognize)

    def _recognize(self, chunks: Sequence[Chunk]) -> list[list[Word]]:
        self.batches.append(len(chunks))
        assert self.open.wait(PATIENCE_S)
        return [[] for _ in chunks]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@contextmanager
def queued_requests(services: Services, clip: Clip, gate: Gate, *, times: int) -> Iterator[None]:
    """Send one clip several times at once; the answers are waited for at the end."""
    with ThreadPoolExecutor(times) as clients:
        try:
            answers = [
                clients.submit(services.models.first.pipeline.transcribe, clip.path)
                for _ in range(times)
            ]
            yield
        finally:
            gate.open.set()
    for answer in answers:
        answer.result()


def test_as_many_forward_passes_run_at_a_time_as_there_are_permits(
    tmp_path: Path, clips: list[Clip], gate: Gate
) -> None:
    limits = {"MAX_CONCURRENT_INFERENCES": "2", "TRANSCRIBE_BATCH_SIZE": "1"}
    with (
        service(tmp_path, **limits) as services,
        queued_requests(services, clips[10], gate, times=5),
    ):
        wait_until(lambda: len(gate.batches) == 2, what="two at work")
        wait_until(lambda: services.models.first.batcher.waiting() == 3)

        assert gate.batches == [1, 1]


def test_a_forward_pass_takes_as_many_chunks_as_it_may(
    tmp_path: Path, clips: list[Clip], gate: Gate
) -> None:
    limits = {"MAX_CONCURRENT_INFERENCES": "1", "TRANSCRIBE_BATCH_SIZE": "3"}
    with service(tmp_path, **limits) as services:
        with queued_requests(services, clips[10], gate, times=8):
            # The first to come may have gone alone.
            wait_until(
                lambda: sum(gate.batches) + services.models.first.batcher.waiting() == 8,
                what="all asked",
            )
        # At least: without words from the model, the speech is decoded again.
        assert sum(gate.batches) >= 8
        assert max(gate.batches) == 3


# Sound


@pytest.mark.parametrize("enabled", ["true", "false"])
def test_the_filter_is_applied_where_it_is_enabled(
    tmp_path: Path, clips: list[Clip], enabled: str
) -> None:
    silencing = {"ENABLE_FFMPEG_DENOISE": enabled, "DENOISE_FILTER": "volume=0"}
    with service(tmp_path, **silencing) as services:
        text = services.models.first.pipeline.transcribe(clips[10].path).text

    assert text == ("" if enabled == "true" else clips[10].text)


# The server and its log


def test_the_port_is_the_configured_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        outcome = start(tmp_path, HOST="127.0.0.1", PORT=port)

    assert outcome.returncode == 2
    assert outcome.stderr.startswith(f"app.py: HOST='127.0.0.1' PORT='{port}' is not ")


def test_the_log_level_is_the_configured_one(
    tmp_path: Path, server: Server, clips: list[Clip]
) -> None:
    def log_of(by: Server) -> str:
        assert transcribe(by, clips[10].path).status_code == 200
        # The request's line is logged last.
        wait_until(lambda: "-> 200" in by.log.read_text(), what="the line")
        return by.log.read_text()

    with running_server(tmp_path, LOG_LEVEL="debug") as talkative:
        assert "times real time" in log_of(talkative)
    assert "times real time" not in log_of(server)


# All of them

EFFECTS = {
    "API_KEY": "test_http.py::TestApiKey::test_no_other_does",
    "HOST": "test_http.py::TestStart::test_an_address_of_another_machine_is_one_clear_line",
    "PORT": "test_settings_effects.py::test_the_port_is_the_configured_one",
    "APP_THREADS": "test_operations.py::TestReadiness::test_a_full_server_is_not",
    "MAX_QUEUED_REQUESTS": "test_operations.py::TestReadiness::test_a_full_server_is_not",
    "CLIP_PROCESSES": "test_clip_desk.py::test_many_clients_get_their_own_words",
    "RATE_LIMIT": (
        "test_limits.py::TestRateLimit"
        "::test_a_key_is_refused_above_its_limit_wherever_it_comes_from"
    ),
    "RATE_LIMIT_STORAGE": (
        "test_limits.py::TestRateLimit::test_a_storage_without_its_package_stops_the_start"
    ),
    "MAX_REALTIME_SESSIONS": "test_realtime_limits.py::test_one_session_too_many_is_rejected",
    "REALTIME_IDLE_SECONDS": "test_realtime_limits.py::test_a_session_without_audio_ends",
    "REALTIME_MAX_MINUTES": (
        "test_realtime_limits.py::test_a_session_that_expires_sends_the_current_turn"
    ),
    "TRUSTED_PROXY": "test_limits.py::TestTrustedProxy::test_the_log_names_the_client",
    "CORS_ORIGINS": "test_limits.py::TestCrossOrigin::test_a_browser_may_ask_with_a_key",
    "STOP_GRACE_SECONDS": (
        "test_operations.py::TestStopping::test_what_does_not_end_in_time_is_cancelled"
    ),
    "MODELS": "test_several_models.py::TestChoice::test_both_transcribe",
    "MODEL_ID": "test_checkpoints.py::test_models_on_disk_have_an_order",
    "MODEL_PATH": "test_checkpoints.py::test_model_path_is_used_and_nothing_else",
    "MODELS_DIR": "test_checkpoints.py::test_models_on_disk_have_an_order",
    "DIARIZATION": "test_served_models.py::test_speakers_are_told_apart_unless_that_is_off",
    "DIARIZER_ID": ("test_diarizer_checkpoints.py::test_the_file_named_like_diarizer_id_is_used"),
    "DIARIZER_PATH": "test_diarizer_checkpoints.py::test_diarizer_path_is_used_and_nothing_else",
    "KEYWORDS_FILE": "test_keyword_routes.py::test_a_keywords_file_applies_to_all_requests",
    "MODEL_LANGUAGES": (
        "test_http.py::TestParameters::test_the_languages_of_a_model_can_be_configured"
    ),
    "DEMO_MODEL": "test_checkpoints.py::test_a_bundled_model_can_be_forced",
    "HF_ENDPOINT": (
        "test_checkpoints.py::test_a_model_is_downloaded_into_the_models_folder_and_ready"
    ),
    "ENABLE_LAZY_LOAD": (
        "test_settings_effects.py::test_the_model_is_loaded_before_serving_unless_that_may_wait"
    ),
    "IDLE_TIMEOUT_MINUTES": (
        "test_settings_effects.py::test_an_idle_model_is_unloaded_after_its_time"
    ),
    "TEMP_UPLOADS_DIR": (
        "test_bad_input.py::TestLimits"
        "::test_a_recording_longer_than_the_limit_is_refused_however_small"
    ),
    "MAX_UPLOAD_MB": (
        "test_bad_input.py::TestLimits::test_an_upload_larger_than_the_limit_is_refused"
    ),
    "MAX_AUDIO_HOURS": (
        "test_bad_input.py::TestLimits"
        "::test_a_recording_longer_than_the_limit_is_refused_however_small"
    ),
    "DATA_DIR": "test_job_routes.py::TestRestarts::test_two_servers_never_share_a_folder",
    "MAX_QUEUED_JOBS": (
        "test_job_routes.py::TestRefusals::test_one_job_too_many_is_503_and_leaves_nothing"
    ),
    "JOB_RETENTION_HOURS": "test_job_routes.py::test_results_are_removed_after_their_time",
    "ALLOW_URLS": "test_recording_url.py::test_a_recording_is_fetched",
    "ALLOW_WEBHOOKS": "test_job_routes.py::TestWebhooks::test_it_is_sent_the_job_as_it_is_answered",
    "DATABASE_URL": "test_shared_jobs.py::test_a_job_is_seen_and_cancelled_by_the_other_server",
    "JOBS_STORAGE": "test_shared_jobs.py::test_recordings_are_in_the_shared_storage",
    "RAY_ADDRESS": "test_replicas.py::test_both_servers_give_the_known_words_in_every_format",
    "RAY_REPLICAS": "test_deployment.py::test_a_range_of_replicas_is_scaled_by_what_waits",
    "RAY_REPLICA_CPUS": "test_deployment.py::test_a_replica_reserves_what_the_settings_say",
    "RAY_REPLICA_GPUS": "test_deployment.py::test_a_replica_reserves_what_the_settings_say",
    "PRESET": "test_devices.py::test_the_plan_suits_the_gpu",
    "GPU_VRAM_GB": "test_settings.py::test_a_preset_sets_what_is_not_configured",
    "DEVICE": (
        "test_settings_effects.py"
        "::test_an_invalid_setting_stops_the_start_with_one_line_that_names_it"
    ),
    "PRECISION": "test_settings_effects.py::test_the_precision_is_the_configured_one",
    "ENABLE_CUDA_GRAPHS": "test_token_decoder.py::test_the_switch_turns_all_graphs_off",
    "GPU_MEMORY_FRACTION": "test_devices.py::test_what_is_set_for_a_gpu_reaches_the_model",
    "CHUNK_MINITE": "test_devices.py::test_chunks_are_never_longer_than_configured",
    "MAX_CONCURRENT_INFERENCES": (
        "test_settings_effects.py::test_as_many_forward_passes_run_at_a_time_as_there_are_permits"
    ),
    "TRANSCRIBE_BATCH_SIZE": (
        "test_settings_effects.py::test_a_forward_pass_takes_as_many_chunks_as_it_may"
    ),
    "TRANSCRIBE_NUM_WORKERS": (
        "test_pipeline.py::test_audio_is_prepared_in_the_configured_number_of_threads"
    ),
    "MAX_CHUNK_MEMORY_MB": (
        "test_devices.py::test_little_memory_makes_chunks_shorter_and_batches_smaller"
    ),
    "AGGRESSIVE_MEMORY_CLEANUP": "test_devices.py::test_what_is_set_for_a_gpu_reaches_the_model",
    "FORCE_CLEANUP_THRESHOLD": "test_devices.py::test_what_is_set_for_a_gpu_reaches_the_model",
    "ENABLE_GRADIENT_CHECKPOINTING": (
        "test_settings_effects.py::test_a_setting_without_effect_logs_a_warning"
    ),
    **dict.fromkeys(
        ("ENABLE_TENSOR_CORE", "ENABLE_CUDNN_BENCHMARK", "TENSOR_CORE_PRECISION"),
        "test_settings_effects.py::test_torch_gets_its_gpu_settings",
    ),
    **dict.fromkeys(
        ("DECODING_STRATEGY", "RNNT_BEAM_SIZE"),
        "test_settings_effects.py::test_the_decoding_strategy_is_the_configured_one",
    ),
    "ENABLE_OVERLAP_CHUNKING": (
        "test_chunking.py::test_without_overlap_chunks_contain_only_what_they_own"
    ),
    "CHUNK_OVERLAP_SECONDS": (
        "test_chunking.py::test_the_overlap_setting_is_an_upper_bound_and_bounded_by_the_chunk"
    ),
    "SENTENCE_BOUNDARY_THRESHOLD": (
        "test_pipeline.py::test_a_sentence_end_is_preferred_as_the_hand_over_within_the_configured_distance"
    ),
    "ENABLE_SILENCE_ALIGNED_CHUNKING": (
        "test_chunking.py::test_without_alignment_chunks_have_the_maximum_length"
    ),
    "SILENCE_THRESHOLD_DB": "test_chunking.py::test_silence_is_what_is_below_the_threshold",
    "MIN_SILENCE_DURATION": "test_chunking.py::test_the_minimum_silence_is_the_configured_one",
    "SILENCE_MAX_SHIFT_SECONDS": "test_chunking.py::test_a_cut_moves_no_further_than_configured",
    **dict.fromkeys(
        ("ENABLE_FFMPEG_DENOISE", "DENOISE_FILTER"),
        "test_settings_effects.py::test_the_filter_is_applied_where_it_is_enabled",
    ),
    **dict.fromkeys(
        (
            *("MERGE_SHORT_SUBTITLES", "MIN_SUBTITLE_DURATION_SECONDS"),
            *("SHORT_SUBTITLE_MERGE_MAX_GAP_SECONDS", "SHORT_SUBTITLE_MIN_CHARS"),
            *("SUBTITLE_MIN_GAP_SECONDS", "SPLIT_LONG_SUBTITLES"),
            *("MAX_SUBTITLE_DURATION_SECONDS", "MAX_SUBTITLE_CHARS_PER_SEGMENT"),
            *("PREFERRED_LINE_LENGTH", "MAX_SUBTITLE_LINES"),
        ),
        "test_subtitles.py::test_each_setting_of_cues_has_its_effect",
    ),
    "LOG_LEVEL": "test_settings_effects.py::test_the_log_level_is_the_configured_one",
    "LOG_FORMAT": "test_operations.py::TestLogs::test_a_request_is_one_line_with_the_clients_id",
}
"""The test that fails once the setting is ignored."""


def test_every_setting_has_a_test_of_its_effect() -> None:
    assert set(EFFECTS) == set(FIELDS)


@pytest.mark.parametrize("name", sorted(set(EFFECTS.values())))
def test_every_test_of_an_effect_is_there(name: str) -> None:
    file, *path = name.split("::")
    [module] = (ROOT / "tests").rglob(file)
    body = ast.parse(module.read_text(encoding="utf-8")).body
    for part in path:
        found = [
            node
            for node in body
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part
        ]
        assert len(found) == 1, f"{part} is not in {file}"
        body = found[0].body
