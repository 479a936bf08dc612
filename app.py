"""Composition root: read the environment, build the objects, serve; or transcribe files.

python app.py                                          serve on HOST:PORT
python app.py transcribe FILE... --format srt          write FILE.srt, without a server
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__" and os.getpid() == 1:
    # Before all else: process 1 of a container ignores SIGTERM until it has a handler, and the
    # imports below take a second.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))

import argparse
import dataclasses
import logging
import math
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from werkzeug.datastructures import MultiDict

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import check_filter, find_ffmpeg
from parakeet_api.command_line import plan_outputs, transcribe_files
from parakeet_api.errors import (
    CheckpointError,
    DeviceLostError,
    InvalidRequestError,
    ModelLoadError,
    SettingsError,
)
from parakeet_api.formats.request_params import ResponseFormat, TranscriptionParams, read_track
from parakeet_api.http.admission import Admission
from parakeet_api.http.clip_desk import ClipDesk
from parakeet_api.http.routes import create_app
from parakeet_api.http.server import GracefulStop, bind, create_server
from parakeet_api.http.start_report import report_start
from parakeet_api.http.uploads import prepare_uploads, sweep_uploads
from parakeet_api.http.web import Services
from parakeet_api.jobs.runner import transcriber
from parakeet_api.jobs.service import Jobs, workers_for
from parakeet_api.logs import set_up_logging
from parakeet_api.metrics import Metrics
from parakeet_api.model.batching import Batcher
from parakeet_api.model.checkpoints import ModelStore
from parakeet_api.model.cuda import DeviceMemory, GraphVerdict, device_memory, limit_device_memory
from parakeet_api.model.devices import (
    Gpu,
    InferencePlan,
    available_cores,
    decoding_workers,
    find_gpu,
    main_permits,
    plan_inference,
)
from parakeet_api.model.memory import has_room
from parakeet_api.model.model_manager import ModelManager
from parakeet_api.model.model_pool import ModelPool, Resident
from parakeet_api.model.nemo_model import ModelOptions, import_libraries
from parakeet_api.model.recognizer import NemoRecognizer, Recognizer
from parakeet_api.model.voice_activity import SileroDetector
from parakeet_api.pipeline import Pipeline
from parakeet_api.served_models import Model, Models
from parakeet_api.settings import Settings, model_basename
from parakeet_api.speech.chunking import ChunkPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("parakeet_api")

ROOT = Path(__file__).resolve().parent
_LAST_PASS_S = 5.0
"""How long a forward pass may still take once everything else has ended."""
_SWITCH_INTERVAL_S = 0.001
"""With a GPU, how long a thread keeps the interpreter while others want it. A pass launches 1,500
operations, each of which gives it away: beside four busy threads that takes 255 ms at Python's 5
ms, and 23 ms at this. At 0.2 ms it is no better, and threads that wait wake up in vain."""
EXIT_DEVICE_LOST = 70
"""The card refused all further work, which only a new process cures; sysexits.h's EX_SOFTWARE."""
DEMO_MODEL = ROOT / "samples" / "demo-model" / "parakeet-tdt-demo-en.nemo"


@contextmanager
def build_services(
    settings: Settings, gpu: Gpu | None = None, *, on_device_lost: Callable[[], None] = lambda: None
) -> Iterator[Services]:
    """Wire the objects together; everything is closed afterwards.

    `on_device_lost` is told if the card refuses all further work.

    Raises `SettingsError` or `CheckpointError` for what should stop the start.
    """
    ffmpeg = find_ffmpeg()
    if settings.enable_ffmpeg_denoise:
        check_filter(ffmpeg, settings.denoise_filter)
    prepare_uploads(settings.temp_uploads_dir)
    plan = plan_inference(settings, gpu)
    metrics = Metrics()
    decoder = FfmpegDecoder(
        executable=ffmpeg,
        max_seconds=settings.max_audio_hours * 3600,
        audio_filter=settings.denoise_filter if settings.enable_ffmpeg_denoise else None,
        workers=decoding_workers(gpu, available_cores()),
    )
    models = _build_models(
        settings,
        gpu=gpu,
        plan=plan,
        decoder=decoder,
        metrics=metrics,
        on_device_lost=on_device_lost,
    )
    admission = Admission(
        active=settings.app_threads, waiting=settings.max_queued_requests, metrics=metrics
    )
    jobs = Jobs(
        settings=settings,
        transcribe=transcriber(settings=settings, pipeline_of=models.pipeline_of),
        workers=workers_for(cores=available_cores(), batch_size=plan.batch_size),
    )
    _watch(metrics, admission, models, jobs)
    if gpu is not None:
        _watch_card(metrics, models)
    try:
        yield Services(
            settings=settings,
            models=models,
            admission=admission,
            metrics=metrics,
            jobs=jobs,
            decoder=decoder,
            plan=plan,
            gpu=gpu,
        )
    finally:
        jobs.close()
        models.close(last_pass_s=_LAST_PASS_S)


def _build_models(
    settings: Settings,
    *,
    gpu: Gpu | None,
    plan: InferencePlan,
    decoder: FfmpegDecoder,
    metrics: Metrics,
    on_device_lost: Callable[[], None],
) -> Models:
    """Wire each model's own objects; those without a file on disk begin to be downloaded."""
    residents = [
        _resident(settings, only=name, gpu=gpu, plan=plan, metrics=metrics)
        for name in settings.models or (None,)
    ]
    for resident in residents:
        resident.store.start()
        resident.manager.unload_when_idle()
    pool = ModelPool(
        residents,
        permits=settings.max_concurrent_inferences,
        has_room=partial(has_room, settings=settings),
    )

    detector = SileroDetector()

    def model(resident: Resident) -> Model:
        batcher = Batcher(
            partial(pool.lease, resident),
            plan=plan,
            permits=settings.max_concurrent_inferences,
            metrics=metrics,
            on_device_lost=on_device_lost,
        )
        pipeline = Pipeline(
            decoder=decoder,
            batcher=batcher,
            policy=ChunkPolicy.from_settings(settings, longest_s=plan.longest_chunk_s),
            settings=settings,
            metrics=metrics,
            detector=detector,
        )
        return Model(
            resident=resident,
            batcher=batcher,
            pipeline=pipeline,
            configured_languages=settings.model_languages,
        )

    members = tuple(model(resident) for resident in residents)
    return Models(members=members, pool=pool, are_chosen=bool(settings.models))


def _resident(
    settings: Settings,
    *,
    only: str | None,
    gpu: Gpu | None,
    plan: InferencePlan,
    metrics: Metrics,
) -> Resident:
    store = ModelStore(settings, demo_path=DEMO_MODEL, only=only)

    def show(progress: float) -> None:
        manager.progress = progress

    manager = ModelManager(
        lambda: _load(store, settings, gpu, plan, on_warm_up=show),
        idle_timeout_s=settings.idle_timeout_minutes * 60,
        name=model_basename(only) if only else "",
        prepare=import_libraries,
        metrics=metrics,
    )
    return Resident(store=store, manager=manager)


def _watch_card(metrics: Metrics, models: Models) -> None:
    """The same for the GPU's memory, which is known once a model was loaded."""

    def look(kind: str) -> float:
        device = models.device()
        if device is None or device == "cpu":
            return math.nan
        try:
            return float(getattr(device_memory(device), kind))
        except RuntimeError:
            # One in trouble answers nothing; the other metrics are told all the same.
            return math.nan

    for field in dataclasses.fields(DeviceMemory):
        metrics.device_memory_bytes.labels(field.name).set_function(partial(look, field.name))


def _watch(metrics: Metrics, admission: Admission, models: Models, jobs: Jobs) -> None:
    """Let the gauges look when they are read."""
    metrics.requests_active.set_function(lambda: admission.counts()[0])
    metrics.requests_waiting.set_function(lambda: admission.counts()[1])
    metrics.chunks_waiting.set_function(models.waiting_chunks)
    metrics.jobs.labels("queued").set_function(lambda: jobs.counts.queued)
    metrics.jobs.labels("running").set_function(lambda: jobs.counts.running)


def _load(
    store: ModelStore,
    settings: Settings,
    gpu: Gpu | None,
    plan: InferencePlan,
    *,
    on_warm_up: Callable[[float], None] = lambda _: None,
) -> Recognizer:
    import_libraries()
    if gpu is not None:
        limit_device_memory(gpu.device, settings.gpu_memory_fraction)
    return NemoRecognizer.load(
        store.checkpoint().path,
        ModelOptions(
            device=gpu.device if gpu else "cpu",
            precision=settings.precision,
            strategy=settings.decoding_strategy,
            beam_size=settings.beam_size,
            longest_s=plan.longest_chunk_s,
            largest_batch=plan.batch_size,
            cuda_graphs=settings.enable_cuda_graphs,
            graphed_s=plan.graphed_s,
            graph_verdict=_graph_verdict(settings, gpu) if gpu else None,
            cpu_threads=max(
                1, available_cores() // main_permits(settings.max_concurrent_inferences)
            ),
            keep_cached_mb=(
                settings.max_chunk_memory_mb if settings.aggressive_memory_cleanup else None
            ),
            cleanup_above=settings.force_cleanup_threshold,
            allow_tf32=settings.enable_tensor_core,
            cudnn_benchmark=settings.enable_cudnn_benchmark,
            matmul_precision=settings.tensor_core_precision,
            on_warm_up=on_warm_up,
        ),
    )


def _graph_verdict(settings: Settings, gpu: Gpu) -> GraphVerdict:
    """Give what is remembered of CUDA graphs with this GPU, driver, torch and NeMo."""
    packages = [f"{name} {version(name)}" for name in ("torch", "nemo_toolkit")]
    setup = ", ".join([gpu.name, f"driver {gpu.driver}", *packages])
    return GraphVerdict(settings.jobs_dir / "cuda-graphs.json", setup=setup)


def serve(settings: Settings, gpu: Gpu | None) -> int:
    """Serve until SIGTERM or Ctrl-C; requests under way then have `STOP_GRACE_SECONDS` to end.

    Gives the process' exit status.
    """
    device_lost = threading.Event()

    def stop() -> None:
        device_lost.set()
        # As if someone had stopped the service: what is under way is answered first. A second
        # signal would cut it off.
        if not services.admission.stopping:
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, _raise_interrupt)
    if gpu is not None:
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        # Bound before anything slow: a port in use is told at once.
        with (
            bind(settings.host, settings.port) as listener,
            build_services(settings, gpu, on_device_lost=stop) as services,
        ):
            # Its settings, too, are refused before anything slow.
            application = create_app(services, root=ROOT)
            _report(services)
            sweep_uploads(settings.temp_uploads_dir)
            if not settings.enable_lazy_load:
                first = services.models.first
                first.store.wait_until_decided()
                services.models.load(first).result()
            services.jobs.start()
            server = create_server(
                application,
                listener=listener,
                uploads=settings.temp_uploads_dir,
                max_upload_bytes=settings.max_upload_bytes,
                max_requests=settings.app_threads + settings.max_queued_requests,
                admission=services.admission,
            )
            desk = ClipDesk(services, server, listener=listener, ffmpeg=services.decoder.executable)
            GracefulStop(
                server, services.admission, grace_s=settings.stop_grace_s, elsewhere=desk
            ).install()
            desk.start()
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            logger.info("listening on http://%s:%d", host, listener.getsockname()[1])
            try:
                server.run()
            finally:
                desk.close()
                server.close()
    except KeyboardInterrupt:
        # While starting; later ones are GracefulStop's.
        pass
    logger.info("stopped")
    return EXIT_DEVICE_LOST if device_lost.is_set() else 0


def _raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def transcribe(
    settings: Settings,
    gpu: Gpu | None,
    files: Sequence[Path],
    *,
    params: TranscriptionParams,
    folder: Path,
) -> int:
    """Transcribe files into `folder`; give the process' exit status."""
    outputs = plan_outputs(files, response_format=params.response_format, folder=folder)
    with build_services(settings, gpu) as services:
        model = services.models.first
        model.store.wait_until_decided()
        model.store.checkpoint()
        failed = transcribe_files(
            outputs,
            pipeline=model.pipeline,
            params=dataclasses.replace(params, languages=model.languages),
            settings=settings,
        )
    return 1 if failed else 0


def _report(services: Services) -> None:
    """Log what the server was started with."""
    settings = services.settings
    report = report_start(settings, models=services.models, gpu=services.gpu, plan=services.plan)
    logger.info("%s", report.text())
    if settings.origins["enable_gradient_checkpointing"] == "environment":
        logger.info("ENABLE_GRADIENT_CHECKPOINTING has no effect: inference keeps no gradients")


def _audio_track(text: str) -> int | Literal["all"] | None:
    try:
        return read_track(MultiDict({"audio_track": text}))
    except InvalidRequestError as error:
        raise argparse.ArgumentTypeError(error.message) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="app.py", description="Speech-to-text server around NVIDIA's Parakeet-TDT."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="serve the HTTP API and the page (the default)")
    files = commands.add_parser("transcribe", help="transcribe files without a server")
    files.add_argument("files", nargs="+", type=Path, metavar="FILE")
    files.add_argument("--format", choices=get_args(ResponseFormat), default="text")
    files.add_argument(
        "--model", metavar="NAME", help="as in MODELS; the default is the server's own choice"
    )
    files.add_argument("--output-dir", type=Path, default=Path(), metavar="DIR")
    files.add_argument(
        "--audio-track",
        type=_audio_track,
        metavar="N",
        help="which sound track, from 1, or all of them mixed; the default is a player's choice",
    )
    files.add_argument(
        "--allow-partial",
        action="store_true",
        help="transcribe a file that is cut short as far as it goes",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; give the process' exit status."""
    options = _parser().parse_args(arguments)
    # Before torch is imported: its threads spin while they wait for each other, and where anything
    # else uses the cores as well, a clip then takes 20 times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        settings = Settings.from_env(os.environ)
        transcribes = options.command == "transcribe"
        level = "warning" if transcribes else settings.log_level
        set_up_logging(level=level, log_format=settings.log_format)
        gpu = find_gpu(settings.device)
        # Once more: what presets derive depends on the card.
        settings = Settings.from_env(
            os.environ,
            detected_vram_gb=gpu.total_gb if gpu else None,
            cores=available_cores(),
        ).with_absolute_paths()
        if not transcribes:
            return serve(settings, gpu)
        if options.model is not None:
            settings = settings.for_model(options.model)
        params = TranscriptionParams(
            response_format=options.format,
            audio_track=options.audio_track,
            allow_partial=options.allow_partial,
        )
        files = [file.absolute() for file in options.files]
        folder = options.output_dir.absolute()
        return transcribe(settings, gpu, files, params=params, folder=folder)
    except (SettingsError, CheckpointError, ModelLoadError) as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    except DeviceLostError as error:
        print(f"app.py: {error}", file=sys.stderr)
        return EXIT_DEVICE_LOST
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    outcome = main()
    logging.shutdown()
    sys.stdout.flush()
    # Not sys.exit: Python would look through all of torch's and NeMo's objects, which takes 2 to
    # 4 s, and a forward pass that still runs would have its libraries pulled from under it.
    os._exit(outcome)
