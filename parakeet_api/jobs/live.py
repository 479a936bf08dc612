"""The words and the loudness of running jobs, as they become final; in memory alone."""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from typing_extensions import TypedDict

from parakeet_api.formats.json_types import Count
from parakeet_api.formats.server_sent_events import EventWriter, PeaksEvent, TextDelta
from parakeet_api.jobs.job import Job, JobJson
from parakeet_api.pipeline import Progress
from parakeet_api.settings import Settings

_MAX_ENDED = 32
"""Jobs whose events stay after their end: a client that asks once a second misses nothing. The
events of a job of 12 hours take 1.2 MB."""


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
    events: list[TextDelta | PeaksEvent]
    """In order."""


@dataclass(frozen=True, slots=True)
class LiveEvents:
    """What is new of a job since a client asked last."""

    run: str
    """Changes when the job is started anew: its events then begin again. "" = not begun."""
    events: tuple[TextDelta | PeaksEvent, ...]
    """`transcript.text.delta` and `transcript.peaks`, as a stream has them, in order."""
    following: int
    """What to ask with next: how many events of this run are known by then."""


@dataclass(eq=False, slots=True)
class _Run:
    """The events of one try of a job."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    events: list[TextDelta | PeaksEvent] = field(default_factory=list)


class LiveJobs:
    """Keep the events of running jobs; safe to use from many threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}
        """By job, in the order in which they began."""

    def follow(self, job: Job, record: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Begin a run of a job; give what takes its progress, and passes it on to `record`."""
        run = self._begin(job.id)
        params = dataclasses.replace(job.params, include=frozenset({"peaks"}))
        writer = EventWriter(params, settings=self._settings)

        def take(progress: Progress) -> None:
            events = writer.recognized(progress)
            with self._lock:
                run.events.extend(events)
            record(progress)

        return take

    def since(self, job_id: str, *, run: str, after: int) -> LiveEvents:
        """Give a job's events after the first `after` ones of a run; all of them for another."""
        with self._lock:
            kept = self._runs.get(job_id)
            if kept is None:
                return LiveEvents("", (), 0)
            events = tuple(kept.events[after if run == kept.id else 0 :])
            return LiveEvents(kept.id, events, len(kept.events))

    def _begin(self, job_id: str) -> _Run:
        run = _Run()
        with self._lock:
            self._runs.pop(job_id, None)
            self._runs[job_id] = run
            for oldest in list(self._runs)[:-_MAX_ENDED]:
                del self._runs[oldest]
        return run
