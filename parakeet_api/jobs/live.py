"""Words and waveform peaks of running jobs, as they become final; kept in memory only."""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from typing_extensions import TypedDict

from parakeet_api.formats.json_types import Count
from parakeet_api.formats.server_sent_events import EventWriter, RecognizedEvent
from parakeet_api.jobs.job import Job, JobJson
from parakeet_api.pipeline import Progress
from parakeet_api.settings import Settings

_MAX_RUNS = 32
"""Jobs whose events are kept, the newest first, so that a client that polls once a second also gets
the last events of an ended job. The events of a job of 12 hours take 1.2 MB."""


class JobEvents(TypedDict):
    """What came of a job since the client asked last."""

    object: Literal["transcription.job.events"]
    job: JobJson
    queue_position: Count | None
    """Its place among the jobs that wait, from 1."""
    run: str
    """Changes when the job is started anew. Empty = not begun, or forgotten."""
    following: Count
    """What to ask with next, as `after`."""
    events: list[RecognizedEvent]
    """In order."""


@dataclass(frozen=True, slots=True)
class LiveEvents:
    """The events of a job since a client's previous request."""

    run: str
    """Id of the attempt; another one means that the events begin again. "" = not started."""
    events: tuple[RecognizedEvent, ...]
    """`transcript.text.delta` and `transcript.peaks`, as in a stream, in order."""
    following: int
    """Value of `after` for the next request: the number of events of this run so far."""


@dataclass(eq=False, slots=True)
class _Run:
    """The events of one attempt at a job."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    events: list[RecognizedEvent] = field(default_factory=list)


class LiveJobs:
    """Keep the events of running jobs; thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}
        """By job id, in the order in which the runs started."""

    def follow(self, job: Job, record: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Start a run; return a progress callback that adds its events and calls `record`."""
        run = self._begin(job.id)
        params = dataclasses.replace(job.params, include=frozenset({"peaks"}))
        writer = EventWriter(params, settings=self._settings)

        def on_progress(progress: Progress) -> None:
            events = writer.recognized(progress)
            with self._lock:
                run.events.extend(events)
            record(progress)

        return on_progress

    def since(self, job_id: str, *, run: str, after: int) -> LiveEvents:
        """Return a job's events after the first `after`; all events if `run` is not the latest."""
        with self._lock:
            latest = self._runs.get(job_id)
            if latest is None:
                return LiveEvents("", (), 0)
            events = tuple(latest.events[after if run == latest.id else 0 :])
            return LiveEvents(latest.id, events, len(latest.events))

    def _begin(self, job_id: str) -> _Run:
        run = _Run()
        with self._lock:
            self._runs.pop(job_id, None)
            self._runs[job_id] = run
            for oldest in list(self._runs)[:-_MAX_RUNS]:
                del self._runs[oldest]
        return run
