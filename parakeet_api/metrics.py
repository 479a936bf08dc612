"""The service's Prometheus metrics."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Enum,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_REQUEST_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
"""From a clip on a GPU to a day of recordings on a small CPU."""
_INFERENCE_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WAIT_S = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)
_DELAY_S = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)
_CHUNKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_RTFX = (1, 3, 10, 30, 100, 300, 1000, 3000)


class Metrics:
    """The metrics of one process; thread-safe."""

    def __init__(self) -> None:
        # No additional `_created` series for each metric.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.info = Info(
            "parakeet", "Version, model, device and precision.", registry=self.registry
        )
        self.requests = Counter(
            "parakeet_requests",
            "Requests by endpoint and result: ok, client_error, server_error, cancelled.",
            ["endpoint", "result"],
            registry=self.registry,
        )
        self.errors = Counter(
            "parakeet_errors",
            "Errors sent to clients, by code.",
            ["code"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "parakeet_request_seconds",
            "From a request's arrival to its last byte.",
            ["endpoint"],
            buckets=_REQUEST_S,
            registry=self.registry,
        )
        self.requests_active = Gauge(
            "parakeet_requests_active", "Transcriptions in progress.", registry=self.registry
        )
        self.requests_waiting = Gauge(
            "parakeet_requests_waiting",
            "Transcriptions waiting to be started.",
            registry=self.registry,
        )
        self.request_wait_seconds = Histogram(
            "parakeet_request_wait_seconds",
            "Time that transcriptions waited to be started.",
            buckets=_WAIT_S,
            registry=self.registry,
        )
        self.chunks_waiting = Gauge(
            "parakeet_chunks_waiting", "Chunks waiting for the model.", registry=self.registry
        )
        self.chunk_wait_seconds = Histogram(
            "parakeet_chunk_wait_seconds",
            "Time that chunks waited for the model.",
            buckets=_WAIT_S,
            registry=self.registry,
        )
        self.batch_chunks = Histogram(
            "parakeet_batch_chunks",
            "Chunks in a forward pass.",
            buckets=_CHUNKS,
            registry=self.registry,
        )
        self.inference_seconds = Histogram(
            "parakeet_inference_seconds",
            "Time of a forward pass, token decoding included.",
            buckets=_INFERENCE_S,
            registry=self.registry,
        )
        self.decode_seconds = Counter(
            "parakeet_decode_seconds", "Time spent waiting for ffmpeg.", registry=self.registry
        )
        self.audio_seconds = Counter(
            "parakeet_audio_seconds", "Audio that was recognised.", registry=self.registry
        )
        self.recovered_words = Counter(
            "parakeet_recovered_words",
            "Words recovered by decoding skipped speech again.",
            registry=self.registry,
        )
        self.unheard_seconds = Counter(
            "parakeet_unheard_speech_seconds",
            "Speech without words, even after it was decoded again.",
            registry=self.registry,
        )
        self.rtfx = Histogram(
            "parakeet_rtfx",
            "Seconds of audio per second of request time, waiting included.",
            buckets=_RTFX,
            registry=self.registry,
        )
        self.model_state = Enum(
            "parakeet_model_state",
            "State of a model; `model` is empty if there is only one, and `diarizer` for speakers.",
            ["model"],
            states=["unloaded", "loading", "ready", "failed"],
            registry=self.registry,
        )
        self.model_load_seconds = Histogram(
            "parakeet_model_load_seconds",
            "Time to load the model.",
            buckets=_REQUEST_S,
            registry=self.registry,
        )
        self.device_memory_bytes = Gauge(
            "parakeet_device_memory_bytes",
            "The GPU's memory: used and total by all, allocated and reserved by this process.",
            ["kind"],
            registry=self.registry,
        )
        self.realtime_sessions = Gauge(
            "parakeet_realtime_sessions", "Live sessions that are open.", registry=self.registry
        )
        self.realtime_ended = Counter(
            "parakeet_realtime_ended",
            "Live sessions that have ended, by who ended them and why: client, stopping, expired,"
            " idle, evicted.",
            ["by"],
            registry=self.registry,
        )
        self.realtime_audio_seconds = Counter(
            "parakeet_realtime_audio_seconds",
            "Sound that live sessions have sent.",
            registry=self.registry,
        )
        self.realtime_delay_seconds = Histogram(
            "parakeet_realtime_delay_seconds",
            "From the end of a spoken word to its delta, in the time of the sound.",
            buckets=_DELAY_S,
            registry=self.registry,
        )
        self.jobs = Gauge(
            "parakeet_jobs", "Unfinished jobs, by status.", ["status"], registry=self.registry
        )

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
