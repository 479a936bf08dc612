"""Hand out the files of an archive to a pool of workers, with Ray Data, and report.

A file is one block of the data set. If a worker ends, Ray starts another one, which is given the
files that were under way.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from parakeet_api.archive.files import Files
from parakeet_api.archive.manifest import FOLDER, Entry, ManifestWriter, read_manifest
from parakeet_api.archive.worker import ArchiveTask, ArchiveWorker
from parakeet_api.errors import ServerError, SettingsError
from parakeet_api.formats.speaker_params import EXTENSIONS
from parakeet_api.model.devices import available_cores
from parakeet_api.scale.cluster import connect, gpu_count, require_ray
from parakeet_api.scale.deployment import worker_environment
from parakeet_api.settings import Settings

logger = logging.getLogger(__name__)

_FILES_AT_ONCE = 8
"""Files that a worker transcribes at a time, so that its batches are full and the next file is
decoded meanwhile."""
_LISTED_ERRORS = 10
_OBJECT_STORE_BYTES = 100 * 2**20
"""Of a cluster of this command's own: blocks are names of files."""


def run_archive(task: ArchiveTask, *, workers: int | None, retry_failed: bool) -> int:
    """Transcribe the files that the manifest lacks; return the exit status of the process.

    Raises `SettingsError` for an address that cannot be used, `ClusterUnavailableError`.
    """
    require_ray()
    source, target = Files(task.source), Files(task.target)
    if not source.exists():
        raise SettingsError(f"{task.source} is no folder")
    known = read_manifest(target)
    names = _recordings(source, target)
    left = [name for name in names if _is_left(known.get(name), retry_failed)]
    print(f"{len(names)} files, {len(names) - len(left)} of them done before", file=sys.stderr)
    started = time.monotonic()
    entries = {**known, **_run(left, target, task, workers=workers, total=len(names))}
    _report([entries[name] for name in names], ran=set(left), elapsed_s=time.monotonic() - started)
    return 1 if any(entries[name].status == "failed" for name in names) else 0


def _run(
    names: Sequence[str], target: Files, task: ArchiveTask, *, workers: int | None, total: int
) -> dict[str, Entry]:
    """Transcribe files, and write the manifest meanwhile; give their entries."""
    if not names:
        return {}
    entries: dict[str, Entry] = {}
    writer = ManifestWriter(target)
    try:
        with _cluster(task.settings, workers):
            for entry in _shown(_persistent(names, task, workers), total, len(names)):
                writer.add(entry)
                entries[entry.file] = entry
    finally:
        writer.flush()
    return entries


def _persistent(names: Sequence[str], task: ArchiveTask, workers: int | None) -> Iterator[Entry]:
    """Transcribe files; if Ray gives up after the end of a worker, begin again with the rest."""
    left = dict.fromkeys(names)
    while left:
        before = len(left)
        failure: Exception = ServerError("Ray gave no file back.")
        try:
            for entry in _transcribed([*left], task, workers):
                del left[entry.file]
                yield entry
        # Ray Data raises errors of many kinds, and those of a worker as they are.
        except Exception as error:
            failure = error
            logger.warning("the archive was given up and goes on", exc_info=error)
        if len(left) == before:
            raise failure


def _recordings(source: Files, target: Files) -> list[str]:
    """List the recordings; the transcripts may be in the same folder or below it."""
    names = source.names()
    inside = target.address.rstrip("/").removeprefix(source.address.rstrip("/"))
    if inside == target.address.rstrip("/"):
        return names
    prefix = f"{inside.lstrip('/')}/" if inside else ""
    if prefix:
        return [name for name in names if not name.startswith(prefix)]
    recordings = set(names)
    return [
        name
        for name in names
        if not name.startswith(f"{FOLDER}/")
        and not any(
            name.endswith(ending) and name.removesuffix(ending) in recordings
            for ending in EXTENSIONS.values()
        )
    ]


def _is_left(entry: Entry | None, retry_failed: bool) -> bool:
    return entry is None or (retry_failed and entry.status == "failed")


def _transcribed(names: Sequence[str], task: ArchiveTask, workers: int | None) -> Iterator[Entry]:
    """Transcribe files in the pool; yield their entries as they come."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    gpus = task.settings.ray_replica_gpus
    rows: Any = ray.data.from_items(
        [{"file": name} for name in names], override_num_blocks=len(names)
    ).map(
        ArchiveWorker,
        fn_constructor_args=(task,),
        compute=ActorPoolStrategy(
            size=workers or max(1, gpu_count()),
            max_tasks_in_flight_per_actor=2 * _FILES_AT_ONCE,
            max_concurrent_calls_per_actor=_FILES_AT_ONCE,
            enable_true_multi_threading=True,
        ),
        num_cpus=task.settings.ray_replica_cpus,
        num_gpus=min(1, gpu_count()) if gpus is None else gpus,
        runtime_env={"env_vars": worker_environment(task.root)},
    )
    for row in rows.iter_rows():
        fields = json.loads(row["line"])
        yield Entry(**{**fields, "warnings": tuple(fields["warnings"])})


@contextmanager
def _cluster(settings: Settings, workers: int | None) -> Iterator[None]:
    """Connect to the cluster, or start one on this machine until the block ends."""
    if settings.ray_address is not None:
        connect(settings.ray_address)
        yield
        return
    import ray

    reserved = round((workers or 1) * settings.ray_replica_cpus)
    ray.init(
        address="local",
        num_cpus=max(available_cores(), reserved),
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


def _shown(entries: Iterable[Entry], total: int, left: int) -> Iterator[Entry]:
    """Show progress on stderr, with an estimate of the time that is left."""
    audio_s, failed = 0.0, 0
    with tqdm(total=total, initial=total - left, unit="file", smoothing=0.05) as bar:
        for entry in entries:
            audio_s += entry.duration_s
            failed += entry.status == "failed"
            bar.set_postfix_str(f"{audio_s / 3600:.2f} h of audio, {failed} failed", refresh=False)
            bar.update()
            yield entry


def _report(entries: Sequence[Entry], *, ran: set[str], elapsed_s: float) -> None:
    """Print what there is now, and what this run did."""
    done = [entry for entry in entries if entry.status == "done"]
    failed = [entry for entry in entries if entry.status == "failed"]
    audio_s = sum(entry.duration_s for entry in done)
    ran_s = sum(entry.duration_s for entry in done if entry.file in ran)
    print(
        f"{len(done)} files done, {len(failed)} failed;"
        f" {audio_s / 3600:.2f} h of audio, {sum(entry.words for entry in done)} words"
    )
    if ran:
        print(
            f"this run: {len(ran)} files, {ran_s / 3600:.2f} h of audio in {elapsed_s:.0f} s,"
            f" {ran_s / max(elapsed_s, 1e-3):.0f} times real time"
        )
    for entry in failed[:_LISTED_ERRORS]:
        print(f"{entry.file}: {entry.error}")
    if len(failed) > _LISTED_ERRORS:
        print(f"... and {len(failed) - _LISTED_ERRORS} more: see the manifest")
