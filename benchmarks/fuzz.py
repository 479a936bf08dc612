"""Fuzz the decoder with damaged media, and the server with damaged requests.

    make fuzz                                              100,000 of each
    .venv/bin/python -m benchmarks.fuzz --media 500        some media alone
    .venv/bin/python -m benchmarks.fuzz --requests 500     some requests alone

Each case has a seed of its own, so that a finding can be made again with `--first SEED`. A finding
is an exception that is no error of ours, a decoder that crashes or takes too long or too much
memory, an answer that is a 5xx (but for 503) or not in OpenAI's shape, a file left behind. The exit
status is 1 if there is any.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import random
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from app import build_services
from benchmarks.fidelity import ROOT, SPEECH
from parakeet_api.audio import ogg_pages
from parakeet_api.audio.decoder import FfmpegDecoder
from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.errors import ApiError, AudioDecodeError, ServiceUnavailableError
from parakeet_api.http.routes import create_app
from parakeet_api.http.server import bind, create_server
from parakeet_api.http.waitress_internals import Channel, Server
from parakeet_api.pipeline import Pipeline
from parakeet_api.settings import Settings
from parakeet_api.transcript import Transcript

MOST_AUDIO_S = 600.0
"""A damaged header may declare any length; decoding stops here."""
SLOW_S = 20.0
"""ffmpeg needs 20 ms for such a file: one that takes so long hangs, on a busy machine too."""
MOST_MEMORY_MB = 1200
"""Memory limit of ffmpeg, plus its executable."""
HEAD_BYTES = 2048
"""Most damage is in a file's header: the rest is mostly samples."""

Report = Callable[[int, str], None]
"""Callback with the seed and the description of a finding."""

FLV_HEADER_BYTES = 13

SOURCE = SPEECH / "clip-003.flac"
PICTURE = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=5:duration=2")
PICTURE_PAL = (
    "-f",
    "lavfi",
    "-i",
    "testsrc=size=720x576:rate=25:duration=1.5",
    "-c:v",
    "mpeg2video",
)
"""Required by broadcast formats."""
CONTAINERS: dict[str, tuple[str, ...]] = {
    "a.flac": (),
    "a.mp3": (),
    "a.wav": (),
    "vorbis.ogg": ("-c:a", "libvorbis"),
    "opus.ogg": ("-c:a", "libopus"),
    "a.m4a": (),
    "fragments.mp4": ("-c:a", "aac", "-movflags", "frag_keyframe+empty_moov"),
    "a.webm": ("-c:a", "libopus"),
    "a.mka": ("-c:a", "flac"),
    "film.mp4": (*PICTURE, "-shortest"),
    "film.mkv": (*PICTURE, "-shortest"),
    "film.ts": (*PICTURE, "-shortest"),
    "a.aac": (),
    "a.avi": ("-c:a", "pcm_s16le"),
    "a.aiff": (),
    "a.wv": (),
    "a.wma": ("-f", "asf"),
    "a.au": (),
    "a.caf": (),
    "a.nut": (),
    "a.wtv": ("-c:a", "ac3"),
    "a.gxf": (*PICTURE_PAL, "-ar", "48000", "-shortest"),
    "a.sox": (),
    "a.thd": ("-strict", "-2", "-ar", "48000"),
    "a.ircam": (),
    "a.w64": (),
    "a.mxf": (*PICTURE_PAL, "-ar", "48000", "-shortest"),
    "a.tta": (),
    "a.voc": (),
    "a.flv": ("-ar", "44100"),
    "a.rm": ("-c:a", "real_144", "-ar", "8000"),
    "a.ac3": (),
    "two-tracks.mp4": ("-map", "0", "-map", "0", "-c:a", "aac"),
    "sixteen.wav": ("-af", "pan=hexadecagonal|c0=c0|c15=c0"),
    "float.wav": ("-c:a", "pcm_f32le"),
    "surround.flac": ("-ac", "6"),
    "inverted.wav": ("-af", "pan=stereo|c0=c0|c1=-1*c0"),
    "film.flv": (*PICTURE, "-ar", "44100", "-shortest"),
    "film.nut": (*PICTURE, "-c:v", "mpeg4", "-shortest"),
    "film.mpg": (*PICTURE_PAL, "-c:a", "ac3", "-ar", "48000", "-shortest"),
    "ac3.ts": ("-c:a", "ac3", "-ar", "48000"),
    "mp2.m2ts": ("-c:a", "mp2", "-ar", "48000", "-mpegts_m2ts_mode", "1"),
    "mp3.flv": ("-c:a", "libmp3lame", "-ar", "44100"),
    "vorbis.webm": ("-c:a", "libvorbis"),
    "stereo.mp3": ("-ac", "2", "-ar", "44100"),
}
"""Files of every container, and their ffmpeg options."""


def make_media(folder: Path) -> list[bytes]:
    """Make one recording in every container."""
    recordings: dict[str, bytes] = {}
    for name, options in CONTAINERS.items():
        target = folder / name
        command = [find_ffmpeg(), "-loglevel", "error", "-y", "-t", "1.5", "-i", str(SOURCE)]
        subprocess.run([*command, *options, str(target)], check=True, timeout=60)
        recordings[name] = target.read_bytes()
    twice = joined([*recordings.values()])
    return [*recordings.values(), samples_of_sphere(), *twice, *changed(recordings), *HEADS]


def samples_of_sphere() -> bytes:
    """Make a NIST SPHERE file: ffmpeg writes none."""
    head = (
        b"NIST_1A\n   1024\nchannel_count -i 1\nsample_rate -i 16000\nsample_n_bytes -i 2\n"
        b"sample_byte_format -s2 01\nsample_coding -s3 pcm\nend_head\n"
    )
    return head.ljust(1024) + random.Random(1).randbytes(32_000)


def joined(recordings: list[bytes]) -> list[bytes]:
    """Concatenate files of the same format, as some tools do."""
    kinds = (b"ID3", b"RIFF", b"OggS", b"FLV", b"\x1aE", b"TTA1", b"caff", b"FORM", b"fLaC")
    return [content * 2 for content in recordings if content.startswith(kinds)]


def changed(recordings: dict[str, bytes]) -> list[bytes]:
    """Concatenate files of different codecs: the audio becomes another within a file."""
    return [
        recordings["film.ts"] + recordings["ac3.ts"],
        recordings["ac3.ts"] + recordings["film.ts"],
        recordings["mp2.m2ts"] * 2,
        recordings["film.flv"] + recordings["a.flv"][FLV_HEADER_BYTES:],
        recordings["mp3.flv"] + recordings["film.flv"][FLV_HEADER_BYTES:],
        recordings["a.webm"] + recordings["vorbis.webm"],
        recordings["film.mkv"] + recordings["a.mka"],
        recordings["vorbis.ogg"] + recordings["opus.ogg"],
        recordings["vorbis.ogg"] + without_positions(recordings["opus.ogg"]),
        recordings["stereo.mp3"] + recordings["a.mp3"],
    ]


def without_positions(ogg: bytes) -> bytes:
    """Write the granule position -1 on all pages but the headers, as some recorders do."""
    first, second, *pages = (b"OggS" + page for page in ogg.split(b"OggS")[1:])
    changed_pages = (page[:6] + b"\xff" * 8 + page[14:] for page in pages)
    checked = (
        page[:22] + struct.pack("<I", ogg_pages.checksum(page)) + page[26:]
        for page in changed_pages
    )
    return b"".join([first, second, *checked])


HEADS = [
    b"DSD "
    + struct.pack("<QQQ", 28, 4096, 0)
    + b"fmt "
    + struct.pack("<QIIIIIIQII", 52, 1, 0, 1, 1, 2822400, 1, 8000, 4096, 0)
    + b"data"
    + struct.pack("<Q", 3000)
    + bytes(3000),
    b"MP+\x07" + bytes(range(256)) * 8,
    b"MPCKSH" + bytes(range(256)) * 8,
    b"tBaK" + bytes(range(256)) * 8,
    b"FORM"
    + struct.pack(">I", 2000)
    + b"8SVXVHDR"
    + struct.pack(">IIIIHBBI", 20, 1800, 0, 0, 8000, 1, 0, 65536)
    + b"BODY"
    + struct.pack(">I", 1800)
    + bytes(range(200)) * 9,
    b"RIFF"
    + struct.pack("<I", 2000)
    + b"QLCMfmt "
    + struct.pack("<I", 150)
    + bytes(range(150)) * 12,
    b"\x1f\x07\x00\x3f" + bytes(range(250)) * 40,
]
"""Beginnings of formats that ffmpeg has no encoder for: DSF, MPC, MPC8, TAK, 8SVX, QCP, DV."""


def damage(content: bytes, rng: random.Random, *, within: int) -> bytes:
    """Change a few things in the first `within` bytes."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 5, 10, 30))):
        end = max(1, min(within, len(damaged)))
        place = rng.randrange(end)
        size = rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(7):
            case 0:
                damaged[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                damaged[place : place + size] = rng.randbytes(size)
            case 2:
                # Extreme values of sizes and counts.
                damaged[place : place + size] = (
                    rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * size
                )
            case 3:
                del damaged[place : place + size]
            case 4:
                damaged[place:place] = damaged[rng.randrange(end) :][:size]
            case 5:
                damaged[place : place + 1] = bytes([damaged[place] ^ 1 << rng.randrange(8)])
            case _:
                del damaged[rng.randrange(len(damaged)) :]
        damaged = damaged or bytearray(1)
    return bytes(damaged)


def fuzz_media(seeds: range, report: Report) -> Counter[str]:
    """Decode damaged recordings; count how they end."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recordings = make_media(folder)
        decoder = FfmpegDecoder(executable=find_ffmpeg(), max_seconds=MOST_AUDIO_S)
        for seed in seeds:
            rng = random.Random(seed)
            within = HEAD_BYTES if rng.random() < 0.8 else sys.maxsize
            upload = folder / "upload"
            upload.write_bytes(damage(rng.choice(recordings), rng, within=within))
            outcomes[decode(decoder, upload, lambda what, seed=seed: report(seed, what))] += 1  # type: ignore[misc]
    return outcomes


def decode(decoder: FfmpegDecoder, upload: Path, report: Callable[[str], None]) -> str:
    """Decode a file; name the outcome."""
    started = time.monotonic()
    # Includes processes that were started before: in the tests also a server.
    largest_mb = max(largest_decoder_mb(), MOST_MEMORY_MB)
    try:
        with closing(decoder.stream(upload)) as blocks:
            outcome = "decoded" if sum(len(block) for block in blocks) else "nothing"
    except AudioDecodeError as error:
        outcome = str(error.code)
        if "to its end" in error.message:
            report("ffmpeg was ended by a signal")
    except Exception as error:
        outcome = "exception"
        report(f"raised {error!r}")
    if time.monotonic() - started > SLOW_S:
        report(f"took {time.monotonic() - started:.0f} s")
    if largest_decoder_mb() > largest_mb:
        report(f"a decoder took {largest_decoder_mb():.0f} MB")
    return outcome


def largest_decoder_mb() -> float:
    """Return the resident memory of the largest process that this one started."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


@dataclass(frozen=True)
class Target:
    """The whole server without its model and threads: bytes in, bytes out."""

    server: Server
    tasks: deque[Channel]
    uploads: Path

    def exchange(self, sent: bytes) -> bytes:
        """Return what the server answers; nothing where it waits for more."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            channel = Channel(self.server, theirs, ("127.0.0.1", 0), self.server.adj, map={})
            channel.received(sent)
            if channel.request is not None and channel.request.error is None:
                # It waits for more, and so does the application.
                channel.handle_close()
                self.tasks.clear()
                return b""
            while self.tasks:
                self.tasks.popleft().service()
            while channel.total_outbufs_len:
                channel.handle_write()
            channel.handle_close()
            received = bytearray()
            ours.settimeout(5)
            while data := ours.recv(1 << 20):
                received += data
        return bytes(received)


class InstantPipeline:
    """A stand-in for the model, which is not under test."""

    def transcribe(self, path: Path, **_: object) -> Transcript:
        """Read the upload; return no words."""
        path.read_bytes()
        return Transcript(segments=(), duration=1.0, language="en")

    def stream(self, path: Path, **_: object) -> Iterator[Any]:
        """Return no words."""
        path.read_bytes()
        yield from ()


class InOurThread:
    """A replacement of waitress' thread pool without threads."""

    def __init__(self) -> None:
        self.tasks: deque[Channel] = deque()

    def add_task(self, channel: Channel) -> None:
        """Leave the task to the caller that runs the channel."""
        self.tasks.append(channel)


@contextmanager
def running_target(folder: Path) -> Iterator[Target]:
    """Build the server around a model that answers at once."""
    environ = {"DEMO_MODEL": "grammar", "TEMP_UPLOADS_DIR": str(folder / "uploads")}
    environ |= {"DATA_DIR": str(folder / "data"), "MODELS_DIR": str(folder), "MAX_UPLOAD_MB": "1"}
    settings = Settings.from_env(environ)
    with build_services(settings) as services, closing(bind("127.0.0.1", 0)) as listener:
        model = replace(services.models.first, pipeline=cast(Pipeline, InstantPipeline()))
        model.checkpoints.wait_until_decided()
        models = replace(services.models, members=(model,))
        application = create_app(replace(services, models=models), root=ROOT)
        server = create_server(
            application,
            listener=listener,
            max_upload_bytes=settings.max_upload_bytes,
            max_requests=1,
            admission=services.admission,
        )
        server.task_dispatcher.shutdown()
        threadless = InOurThread()
        server.task_dispatcher = cast(Any, threadless)
        with closing(server):
            yield Target(server, threadless.tasks, settings.temp_uploads_dir)


def make_requests() -> list[bytes]:
    """Make valid requests of every kind."""
    fields = {"model": "whisper-1", "response_format": "verbose_json", "language": "en"}
    granular = fields | {"timestamp_granularities[]": "word", "include[]": "logprobs"}
    return [
        _request("/v1/audio/transcriptions", {"model": "whisper-1"}),
        _request("/v1/audio/transcriptions", granular),
        _request("/v1/audio/transcriptions", fields | {"response_format": "srt"}),
        _request("/v1/audio/transcriptions", fields, chunked=True),
        _request("/audio/translations", fields),
        _request("/asr?output=vtt&task=transcribe&encode=true", {}, name="audio_file"),
        _request("/detect-language", {}, name="audio_file"),
        b"GET /v1/models/whisper-1 HTTP/1.1\r\nHost: here\r\n\r\n",
        b"GET /v1/jobs?limit=5&after=x HTTP/1.1\r\nHost: here\r\nOrigin: http://there\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: here\r\nAccept-Language: zh\r\nIf-None-Match: x\r\n\r\n",
        b"GET /static/app.js HTTP/1.1\r\nHost: here\r\nRange: bytes=0-99\r\n\r\n",
    ]


def _request(
    path: str, fields: dict[str, str], *, name: str = "file", chunked: bool = False
) -> bytes:
    body = b"".join(
        b'--sep\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
        % (key.encode(), value.encode())
        for key, value in fields.items()
    )
    body += (
        b'--sep\r\nContent-Disposition: form-data; name="%s"; filename="a.flac"\r\n'
        b"Content-Type: audio/flac\r\n\r\n%s\r\n--sep--\r\n" % (name.encode(), bytes(range(256)))
    )
    length = b"Content-Length: %d" % len(body)
    if chunked:
        length, body = b"Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return (
        b"POST %s HTTP/1.1\r\nHost: here\r\nUser-Agent: fuzz\r\nAuthorization: Bearer x\r\n"
        b"Content-Type: multipart/form-data; boundary=sep\r\n%s\r\n\r\n%s"
        % (path.encode(), length, body)
    )


def damage_request(request: bytes, rng: random.Random) -> bytes:
    """Damage a request's head, its body, or both; mostly the length still fits."""
    head, _, body = request.partition(b"\r\n\r\n")
    where = rng.random()
    if body and where < 0.75:
        before, body = len(body), damage(body, rng, within=sys.maxsize)
        if rng.random() < 0.8:
            head = head.replace(b"Length: %d" % before, b"Length: %d" % len(body))
    if not body or where > 0.6:
        head = damage(head, rng, within=sys.maxsize)
    return head + b"\r\n\r\n" + body


def fuzz_requests(seeds: range, report: Report) -> Counter[str]:
    """Send damaged requests; count the answers by status."""
    statuses: Counter[str] = Counter()
    requests = make_requests()
    with tempfile.TemporaryDirectory() as name, running_target(Path(name)) as target:
        for seed in seeds:
            rng = random.Random(seed)
            sent = damage_request(rng.choice(requests), rng)
            statuses[ask(target, sent, lambda what, seed=seed: report(seed, what))] += 1  # type: ignore[misc]
    return statuses


def ask(target: Target, sent: bytes, report: Callable[[str], None]) -> str:
    """Send a request; give the answer's status, or `waiting`."""
    started = time.monotonic()
    try:
        received = target.exchange(sent)
    except Exception as error:
        report(f"raised {error!r}")
        return "exception"
    if time.monotonic() - started > SLOW_S:
        report(f"took {time.monotonic() - started:.0f} s")
    if left := list(target.uploads.glob("upload-*")):
        report(f"left {len(left)} files")
        for upload in left:
            upload.unlink()
    if not received:
        return "waiting"
    received = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n") or b"HTTP/1.1 100 \r\n\r\n"
    for finding in wrong_with(sent, received):
        report(finding)
    return received.split(maxsplit=2)[1].decode()


class _Received(io.BytesIO):
    """A response that `http.client` can read like a socket."""

    def makefile(self, *_: object) -> io.BytesIO:
        return self


def wrong_with(sent: bytes, received: bytes) -> Iterator[str]:
    """Tell what is wrong with the first answer to a request."""
    answer = http.client.HTTPResponse(
        cast(Any, _Received(received)), method="HEAD" if sent.startswith(b"HEAD ") else "GET"
    )
    answer.begin()
    body = answer.read()
    if answer.status >= 500 and answer.status != ServiceUnavailableError.status:
        yield f"answered {answer.status}: {body[:200]!r}"
    if answer.status >= 400 and not sent.startswith(b"HEAD "):
        try:
            error = json.loads(body)["error"]
        except (ValueError, KeyError, TypeError):
            yield f"answered {answer.status} in another shape: {body[:200]!r}"
        else:
            if set(error) != set(ApiError("").body()["error"]):
                yield f"answered {answer.status} with {set(error)}"


def main() -> int:
    """Run both, print what was found; give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--media", type=int, metavar="N", help="damaged recordings")
    parser.add_argument("--requests", type=int, metavar="N", help="damaged requests")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="where to begin")
    options = parser.parse_args()
    if options.media is options.requests is None:
        options.media = options.requests = 100_000
    found = 0
    for name, count, fuzz in (
        ("media", options.media or 0, fuzz_media),
        ("requests", options.requests or 0, fuzz_requests),
    ):

        def report(seed: int, what: str, name: str = name) -> None:
            nonlocal found
            found += 1
            print(f"{name} {seed}: {what}", flush=True)

        if count:
            started = time.monotonic()
            outcomes = fuzz(range(options.first, options.first + count), report)
            elapsed_s = time.monotonic() - started
            print(f"{count} damaged {name} in {elapsed_s:.0f} s: {dict(outcomes.most_common())}")
    print(f"{found} findings; the largest decoder took {largest_decoder_mb():.0f} MB")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
