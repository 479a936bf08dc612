"""The operator's filter, in real ffmpeg processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Clip, decode

from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.errors import ServiceUnavailableError


def test_a_filter_that_changes_nothing_changes_no_sample(
    decoder: FfmpegDecoder, clips: list[Clip]
) -> None:
    filtered = replace(decoder, audio_filter="anull")

    assert np.array_equal(decode(filtered, clips[6].path), decode(decoder, clips[6].path))


@pytest.mark.parametrize("audio_filter", ["channelmap=1", "aformat=sample_fmts=none"])
def test_a_filter_that_fails_is_an_error_and_no_silent_loss(
    decoder: FfmpegDecoder, clips: list[Clip], audio_filter: str
) -> None:
    with pytest.raises(ServiceUnavailableError, match="DENOISE_FILTER"):
        decode(replace(decoder, audio_filter=audio_filter), clips[6].path)


def test_an_ffmpeg_that_breaks_before_the_filter_is_an_error_of_the_server(
    decoder: FfmpegDecoder, clips: list[Clip], tmp_path: Path
) -> None:
    """As while a package is being updated; simulated by a program that refuses the filter."""
    broken = tmp_path / "ffmpeg"
    refuse = 'case "$*" in *pipe:0*) exit 127;; esac'
    broken.write_text(f'#!/bin/sh\n{refuse}\nexec {decoder.executable} "$@"\n')
    broken.chmod(0o755)
    filtered = FfmpegDecoder(str(broken), max_seconds=3600, audio_filter="anull")

    with pytest.raises(ServiceUnavailableError):
        decode(filtered, clips[6].path)

    assert str(broken) not in _usable(filtered)


def _usable(decoder: FfmpegDecoder) -> Iterator[str]:
    return decoder.executables.usable()
