"""Composition root: read the environment, build the objects, then serve or transcribe files.

python app.py                                          serve on HOST:PORT
python app.py transcribe FILE... --format srt          write FILE.srt, without a server
python app.py archive INPUT OUTPUT --format srt,json   transcribe an archive, on Ray
python app.py deploy                                   start or update the replicas on RAY_ADDRESS
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__" and os.getpid() == 1:
    # Before the imports, which take a second: process 1 of a container ignores SIGTERM until a
    # handler is installed.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.command_line import ArchiveCommand, DeployCommand, parse_arguments
from parakeet_api.errors import (
    EXIT_DEVICE_LOST,
    CheckpointError,
    DeviceLostError,
    ServiceUnavailableError,
    SettingsError,
)
from parakeet_api.http.admission import Admission
from parakeet_api.http.client_secrets import ClientSecrets
from parakeet_api.http.routes import create_app
from parakeet_api.http.server import bind
from parakeet_api.http.services import Services
from parakeet_api.http.serving import run_server
from parakeet_api.http.start_report import log_start
from parakeet_api.http.uploads import prepare_uploads, sweep_uploads
from parakeet_api.jobs.service import Jobs, workers_for
from parakeet_api.logs import set_up_logging
from parakeet_api.metrics import Metrics
from parakeet_api.model.checkpoints import BundledModels
from parakeet_api.model.devices import Gpu, available_cores, decoding_workers, find_gpu
from parakeet_api.realtime.places import Places
from parakeet_api.scale.cluster import require_ray
from parakeet_api.served_models import ServedModels
from parakeet_api.settings import Settings

logger = logging.getLogger("parakeet_api")

ROOT = Path(__file__).resolve().parent
_LAST_PASS_S = 5.0
"""At shutdown, how long to wait for a running forward pass after everything else has stopped."""
_SWITCH_INTERVAL_S = 0.001
"""With a GPU: how long a thread may hold the GIL while others wait. A forward pass launches 1,500
kernels and releases the GIL at each: with four busy threads it takes 255 ms at Python's default of
5 ms, and 23 ms at this value. 0.2 ms is no faster."""
BUNDLED_MODELS = BundledModels.of_checkout(ROOT)


@contextmanager
def build_services(
    settings: Settings, gpu: Gpu | None = None, *, on_device_lost: Callable[[], None] = lambda: None
) -> Iterator[Services]:
    """Build the service's objects; close them when the block exits.

    `on_device_lost` is called if the GPU fails for the rest of the process. Raises `SettingsError`
    or `CheckpointError` if the service cannot start.
    """
    workers = decoding_workers(gpu, available_cores())
    decoder = FfmpegDecoder.from_settings(settings, workers=workers)
    prepare_uploads(settings.temp_uploads_dir)
    metrics = Metrics()
    models = ServedModels.from_settings(
        settings,
        gpu=gpu,
        decoder=decoder,
        bundled=BUNDLED_MODELS,
        root=ROOT,
        metrics=metrics,
        on_device_lost=on_device_lost,
    )
    admission = Admission(
        active=settings.app_threads, waiting=settings.max_queued_requests, metrics=metrics
    )
    jobs = Jobs(
        settings=settings,
        pipeline_of=models.pipeline_of,
        workers=workers_for(cores=available_cores(), batch_size=models.first.plan.batch_size),
        metrics=metrics,
    )
    try:
        yield Services(
            settings=settings,
            models=models,
            admission=admission,
            metrics=metrics,
            jobs=jobs,
            decoder=decoder,
            realtime=Places(most=settings.max_realtime_sessions, metrics=metrics),
            client_secrets=ClientSecrets(settings.api_keys),
            gpu=gpu,
        )
    finally:
        jobs.close()
        models.close(last_pass_s=_LAST_PASS_S)


def serve(settings: Settings, gpu: Gpu | None) -> int:
    """Serve until SIGTERM or Ctrl-C and `STOP_GRACE_SECONDS` more; return the exit status."""
    device_lost = threading.Event()

    def stop() -> None:
        device_lost.set()
        # Stop gracefully, as on SIGTERM, so that requests under way are answered. A second signal
        # would abort them.
        if not services.admission.stopping:
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if gpu is not None:
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        # Bind before anything slow, so that a port in use is reported at once.
        with (
            bind(settings.host, settings.port) as listener,
            build_services(settings, gpu, on_device_lost=stop) as services,
        ):
            # Before anything slow as well: it validates further settings.
            application = create_app(services, root=ROOT)
            log_start(settings, models=services.models, gpu=gpu)
            sweep_uploads(settings.temp_uploads_dir)
            if not settings.enable_lazy_load:
                services.models.load_first()
            services.jobs.start()
            run_server(application, services, listener=listener)
    except KeyboardInterrupt:
        # During start-up; later signals are handled by `GracefulStop`.
        pass
    logger.info("stopped")
    return EXIT_DEVICE_LOST if device_lost.is_set() else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status of the process."""
    command = parse_arguments(arguments)
    # Before torch is imported: by default its OpenMP threads busy-wait for each other, and a clip
    # takes 20 times as long if another process uses the cores as well.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Ray would send statistics of its use, and its workers would give way to all other processes.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        settings = Settings.from_env(os.environ)
        set_up_logging(
            level="warning" if command else settings.log_level, log_format=settings.log_format
        )
        if settings.ray_address is not None:
            require_ray()
        on_ray = isinstance(command, ArchiveCommand | DeployCommand)
        # With RAY_ADDRESS the models are elsewhere, and so are the GPUs.
        is_remote = on_ray or settings.ray_address is not None
        gpu = None if is_remote else find_gpu(settings.device)
        # Read again, as presets depend on the GPU.
        vram_gb, cores = gpu.total_gb if gpu else None, available_cores()
        settings = Settings.from_env(os.environ, detected_vram_gb=vram_gb, cores=cores)
        settings = settings.with_absolute_paths()
        if command is None:
            return serve(settings, gpu)
        if command.model is not None:
            settings = settings.for_model(command.model)
        if isinstance(command, ArchiveCommand | DeployCommand):
            return command.run(settings, bundled=BUNDLED_MODELS, root=ROOT)
        outputs = command.plan_outputs()
        with build_services(settings, gpu) as services:
            return command.run(outputs, models=services.models, settings=settings)
    except (SettingsError, CheckpointError, ServiceUnavailableError) as error:
        print(f"app.py: {error}", file=sys.stderr)
        return EXIT_DEVICE_LOST if isinstance(error, DeviceLostError) else 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    outcome = main()
    logging.shutdown()
    sys.stdout.flush()
    # Not sys.exit: the interpreter's finalisation visits all objects of torch and NeMo, which takes
    # 2 to 4 s, and unloads libraries that a running forward pass may still use.
    os._exit(outcome)
