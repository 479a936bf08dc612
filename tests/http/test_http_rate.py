"""The benchmark of HTTP beside a fast GPU: that it runs, and that all its requests are answered."""

from __future__ import annotations

import argparse
from collections import Counter

import pytest
from conftest import Server

from benchmarks import http_rate

pytestmark = pytest.mark.integration


def test_a_fast_gpu_is_measured_over_http() -> None:
    options = argparse.Namespace(seconds=0.5, keep_alive=True, mixed=True)

    with http_rate.serving("--batch-size", "4") as (process, address):
        rate = http_rate.measure(process, address, options, 3)

    assert rate.errors == 0
    # Each client gets its first answer, however slow the machine is.
    assert rate.answers >= 3
    assert rate.audio_s >= sum(http_rate.MIXED_S[:3])


def test_answers_are_counted_by_their_status(server: Server) -> None:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    request = http_rate.request_of(
        http_rate.speech()[:16_000], {"response_format": "pdf"}, keep_alive=False
    )

    load = http_rate.put_load(
        (host, int(port)), [(request, 1.0)], clients=2, seconds=0, keep_alive=False
    )

    assert load.statuses == Counter({400: 2})
    assert load.audio_s == 0
    assert len(load.times_s) == 2
