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
        row = http_rate.measure(process, address, options, 3)

    _, clients, answers, times_real_time, errors, *_ = (cell.strip() for cell in row.split("|"))
    assert (clients, errors) == ("3", "0")
    assert int(answers) > 0
    assert int(times_real_time.replace(",", "")) > 0


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
