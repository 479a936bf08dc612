"""What can be wrong with a request: a clear 4xx, nothing left behind, the server still well."""

from __future__ import annotations

import gzip
import io
import json
import random
import socket
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import PATIENCE_S, SPEECH, Clip, Server, encode, running_server
from http_helpers import ENDPOINT, error_of, ffmpegs, request, transcribe, uploads, wav

from parakeet_api.audio.ffmpeg import find_ffmpeg
from parakeet_api.transcript import SAMPLE_RATE

pytestmark = pytest.mark.integration

MB = 1024 * 1024
SPOKEN = SPEECH / "clip-010.flac"
AUDIO = SPOKEN.read_bytes()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes 1 MB and 3.6 s."""
    with running_server(
        tmp_path_factory.mktemp("small"), MAX_UPLOAD_MB="1", MAX_AUDIO_HOURS="0.001"
    ) as started:
        yield started


@pytest.fixture(autouse=True)
def still_well(server: Server, clips: list[Clip]) -> Iterator[None]:
    """After each case: no file, no decoder, and the next client is served."""
    yield
    assert uploads(server) == []
    assert ffmpegs(server) == []
    shortest = clips[3]
    assert transcribe(server, shortest.path).json()["text"] == shortest.text
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """Return what ffmpeg makes with the given options; the last one is the file's name."""
    folder = tmp_path_factory.mktemp("media")

    @cache
    def make(*options: str) -> bytes:
        target = folder / options[-1]
        if options[0] == "lavfi":
            command = [find_ffmpeg(), "-loglevel", "error", "-y", "-f", *options[:-1], str(target)]
            subprocess.run(command, check=True, timeout=PATIENCE_S)
            return target.read_bytes()
        return encode(SPOKEN, target, *options[:-1]).read_bytes()

    return make


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _zip(content: bytes) -> bytes:
    """Store, not compress: ffmpeg finds an mp3 in such a file."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("recording.mp3", content)
    return target.getvalue()


def _tar(content: bytes) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        entry = tarfile.TarInfo("recording.mp3")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return target.getvalue()


def _random(size: int) -> bytes:
    return random.Random(size).randbytes(size)


PICTURE = ("lavfi", "-i", "testsrc=duration=1:size=64x64:rate=5")

NO_SOUND = "no sound that can be decoded"
CODES = {
    "is empty": None,
    NO_SOUND: "invalid_audio",
    "archive": "invalid_audio",
    "cut short": "truncated_audio",
    "its index": "truncated_audio",
    "no sound track": "no_audio_track",
}
"""Part of the message, and the error's code."""

FILES: dict[str, tuple[Callable[[Callable[..., bytes]], bytes], str]] = {
    "no bytes": (lambda _: b"", "is empty"),
    "one byte": (lambda _: b"\0", NO_SOUND),
    "zip of an mp3": (lambda make: _zip(make("a.mp3")), "archive"),
    "gzip of an mp3": (lambda make: gzip.compress(make("a.mp3")), "archive"),
    "tar of an mp3": (lambda make: _tar(make("a.mp3")), "archive"),
    "zip of nothing": (lambda _: b"PK\x05\x06" + bytes(18), NO_SOUND),
    "half an mp3": (lambda make: _half(make("a.mp3")), "cut short"),
    "half a flac": (lambda _: _half(AUDIO), "cut short"),
    "half an m4a with its index first": (
        lambda make: _half(make("-movflags", "+faststart", "index-first.m4a")),
        "cut short",
    ),
    "half an m4a without its index": (lambda make: _half(make("a.m4a")), "its index"),
    "mp3 of 10 bytes": (lambda make: make("a.mp3")[:10], NO_SOUND),
    "id3 tag alone": (lambda _: b"ID3\x04\0\0\0\0\0\x0a" + bytes(10), NO_SOUND),
    "wav header alone": (lambda _: wav(np.zeros(0)), NO_SOUND),
    "half a wav header": (lambda _: _half(wav(np.zeros(0))), NO_SOUND),
    "ogg page alone": (lambda make: make("-c:a", "libopus", "a.ogg")[:60], "cut short"),
    "webm head alone": (lambda make: make("-c:a", "libopus", "a.webm")[:100], NO_SOUND),
    "flac mark alone": (lambda _: b"fLaC" + bytes(100), NO_SOUND),
    "video without sound": (lambda make: make(*PICTURE, "silent.mp4"), "no sound track"),
    "picture in an mkv": (
        lambda make: make(*PICTURE, "-frames:v", "1", "-c:v", "mjpeg", "picture.mkv"),
        "no sound track",
    ),
    "png": (lambda make: make(*PICTURE, "-frames:v", "1", "a.png"), NO_SOUND),
    "gif": (lambda make: make(*PICTURE, "a.gif"), NO_SOUND),
    "svg": (
        lambda _: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>',
        NO_SOUND,
    ),
    "text": (lambda _: b"Dear all, this is no recording.\n" * 300, NO_SOUND),
    "subtitles": (lambda _: b"1\n00:00:00,000 --> 00:00:01,000\nHello.\n\n", NO_SOUND),
    "ffmetadata": (lambda _: b";FFMETADATA1\ntitle=x\n", NO_SOUND),
    "json": (lambda _: json.dumps({"a": [1] * 999}).encode(), NO_SOUND),
    "html": (lambda _: b"<!doctype html><p>404" * 99, NO_SOUND),
    "pdf": (lambda _: b"%PDF-1.7\n" + _random(5000), NO_SOUND),
    "program": (lambda _: Path("/bin/true").read_bytes(), NO_SOUND),
    "zeros": (lambda _: bytes(200_000), NO_SOUND),
    "ones": (lambda _: b"\xff" * 200_000, NO_SOUND),
    "100 random bytes": (lambda _: _random(100), NO_SOUND),
    "1 MB of random bytes": (lambda _: _random(MB), NO_SOUND),
    "sdp": (
        lambda _: (
            b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
            b"m=audio 5004 RTP/AVP 0\n"
        ),
        NO_SOUND,
    ),
}
"""How each is made, given the fixture `media`, and what the message says."""


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_recording_is_refused(
    server: Server, media: Callable[..., bytes], name: str
) -> None:
    make, word = FILES[name]

    error = error_of(transcribe(server, make(media), name="recording.mp3"), 400)

    assert (error["param"], error["code"]) == ("file", CODES[word])
    assert word in error["message"]
    assert ("Supported formats: ['flac'" in error["message"]) == (word == NO_SOUND)
    # ffmpeg's messages contain paths and versions.
    assert "upload-" not in error["message"]
    assert "ffmpeg" not in error["message"].lower()


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile '{path}'\n",
    "ffconcat of a url": "ffconcat version 1.0\nfile '{url}'\n",
    "hls of a file": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{path}\n#EXT-X-ENDLIST\n",
    "hls of a file url": (
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{path}\n#EXT-X-ENDLIST\n"
    ),
    "hls of a url": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n",
    "hls master": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}\n",
    "m3u": "{path}\n{url}\n",
    "dash": (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"'
        ' mediaPresentationDuration="PT9S"><Period><AdaptationSet mimeType="audio/mp4">'
        '<Representation id="1" bandwidth="1"><BaseURL>{url}</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>"
    ),
    "xspf": '<?xml version="1.0"?><playlist><trackList><track><location>{url}</location></track>'
    "</trackList></playlist>",
    "rtsp redirect": "RTSPtext\n{url}\n",
    "asx": '<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
}


class _Listener:
    """A TCP port that counts who connects."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self._closing = threading.Event()
        self.connections = 0
        self._thread = threading.Thread(target=self._count)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/recording.mp3"

    def _count(self) -> None:
        while not self._closing.is_set():
            try:
                self._socket.accept()[0].close()
            except TimeoutError:
                continue
            self.connections += 1

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[_Listener]:
    started = _Listener()
    yield started
    started.close()


@pytest.mark.parametrize("extension", ["mp3", "m3u8"])
@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_opens_no_file_and_no_connection(
    server: Server, listener: _Listener, name: str, extension: str
) -> None:
    playlist = PLAYLISTS[name].format(path=SPOKEN.absolute(), url=listener.url)

    answer = transcribe(server, playlist.encode(), name=f"list.{extension}")

    error = error_of(answer, 400)
    assert (error["param"], error["code"]) == ("file", "invalid_audio")
    assert "thousand" not in answer.text
    listener.close()
    assert listener.connections == 0


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile 'sibling.flac'\n",
        "ffconcat version 1.0\nfile sibling.flac\ninpoint 0\noutpoint 9\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsibling.ts\n#EXT-X-ENDLIST\n",
    ],
    ids=["ffconcat", "ffconcat with times", "hls"],
)
def test_a_playlist_does_not_read_another_clients_upload(
    server: Server, media: Callable[..., bytes], playlist: str
) -> None:
    # Relative names need no permission of ffmpeg's own, as absolute ones do.
    siblings = [server.uploads / "sibling.flac", server.uploads / "sibling.ts"]
    siblings[0].write_bytes(AUDIO)
    siblings[1].write_bytes(media("a.ts"))

    try:
        answer = transcribe(server, playlist.encode())
    finally:
        for sibling in siblings:
            sibling.unlink()

    assert error_of(answer, 400)["code"] == "invalid_audio"
    assert "thousand" not in answer.text


def test_a_connection_would_have_been_counted(listener: _Listener) -> None:
    with pytest.raises(httpx.HTTPError), httpx.Client(trust_env=False) as client:
        client.get(listener.url)
    listener.close()
    assert listener.connections == 1


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"temperature": "NaN"}, "temperature", "number from 0 to 1"),
        ({"temperature": "inf"}, "temperature", "number from 0 to 1"),
        ({"temperature": "-inf"}, "temperature", "number from 0 to 1"),
        ({"temperature": "-1"}, "temperature", "'-1'"),
        ({"temperature": "2"}, "temperature", "'2'"),
        ({"temperature": "1e999"}, "temperature", "'1e999'"),
        ({"temperature": "abc"}, "temperature", "'abc'"),
        ({"temperature": "0,5"}, "temperature", "'0,5'"),
        ({"temperature": "9" * 5000}, "temperature", "..."),
        ({"response_format": "docx"}, "response_format", "verbose_json"),
        ({"response_format": "diarised_json"}, "response_format", "'diarised_json'"),
        ({"response_format": "json\0"}, "response_format", "srt"),
        ({"response_format": ["json", "pdf"]}, "response_format", "'pdf'"),
        ({"language": "fr"}, "language", "'fr'"),
        ({"language": "klingon"}, "language", "'klingon'"),
        ({"language": "../../etc"}, "language", "not supported"),
        ({"language": "x" * 5000}, "language", "not supported"),
        ({"timestamp_granularities[]": "letter"}, "timestamp_granularities[]", "'letter'"),
        ({"timestamp_granularities": "word,letter"}, "timestamp_granularities[]", "'letter'"),
        ({"timestamp_granularities": '["word"'}, "timestamp_granularities[]", "segment"),
        ({"timestamp_granularities": "[1e999]"}, "timestamp_granularities[]", "word"),
        ({"timestamp_granularities": "[" * 5000}, "timestamp_granularities[]", "word"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_field_that_cannot_be_used_is_refused_by_name(
    server: Server, fields: dict[str, Any], param: str, word: str
) -> None:
    error = error_of(transcribe(server, SPOKEN, fields), 400)

    assert error["param"] == param
    assert word in error["message"]
    assert len(error["message"]) < 400, "a client's value is not repeated at length"


def _part(name: str, content: bytes, *, filename: bytes | None = None) -> bytes:
    tail = b"" if filename is None else b'; filename="' + filename + b'"'
    head = b'--sep\r\nContent-Disposition: form-data; name="' + name.encode() + b'"' + tail
    return head + b"\r\n\r\n" + content + b"\r\n"


@dataclass(frozen=True)
class _Body:
    """A request's body that no client library would write."""

    content: bytes
    word: str
    """What the message says."""
    content_type: bytes | None = b"multipart/form-data; boundary=sep"
    status: int = 400
    param: str | None = "file"
    headers: dict[str, str] = field(default_factory=dict)


FILE_PART = _part("file", AUDIO, filename=b"a.flac")
END = b"--sep--\r\n"

BODIES = {
    "nothing": _Body(b"", "multipart/form-data", content_type=None),
    "no file": _Body(_part("model", b"whisper-1") + END, "Missing required parameter: 'file'"),
    "no part": _Body(END, "Missing required parameter: 'file'"),
    "file under another name": _Body(_part("audio", AUDIO, filename=b"a.flac") + END, "Missing"),
    "file as a text field": _Body(_part("file", b"UklGRg==") + END, "text field"),
    "json": _Body(b'{"file": "a.mp3"}', "multipart/form-data", content_type=b"application/json"),
    "recording as the body": _Body(AUDIO, "multipart/form-data", content_type=b"audio/flac"),
    "recording without a type": _Body(AUDIO, "multipart/form-data", content_type=None),
    "url-encoded form": _Body(
        b"file=a.mp3&model=whisper-1",
        "multipart/form-data",
        content_type=b"application/x-www-form-urlencoded",
    ),
    "no boundary": _Body(FILE_PART + END, "boundary", content_type=b"multipart/form-data"),
    "boundary beyond ASCII": _Body(
        FILE_PART + END, "malformed", content_type=b"multipart/form-data; boundary=\xe9"
    ),
    "another boundary": _Body((FILE_PART + END).replace(b"--sep", b"--pes"), "malformed"),
    "cut in the file": _Body(FILE_PART[:-5000], "cut short"),
    "cut in a head": _Body(b"--sep\r\nContent-Dispo", "cut short"),
    "no end": _Body(FILE_PART, "cut short"),
    "part without a name": _Body(
        b"--sep\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END, "Missing"
    ),
    "part without a head": _Body(b"--sep\r\n\r\nx\r\n" + END, "malformed"),
    "name that is no UTF-8": _Body(_part("file", AUDIO, filename=b"\xff\xfe") + END, "malformed"),
    "two parts too many": _Body(
        b"".join(_part(f"field-{n}", b"x") for n in range(601)) + FILE_PART + END,
        "too many",
        status=413,
        param=None,
    ),
    "text field of 1 MB": _Body(
        _part("prompt", b"x" * MB) + FILE_PART + END, "too long", status=413, param=None
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_form_with_a_file_is_refused(server: Server, name: str) -> None:
    body = BODIES[name]
    content_type = {"Content-Type": body.content_type} if body.content_type else {}

    answer = request(server, "POST", ENDPOINT, content=body.content, headers=content_type)

    error = error_of(answer, body.status)
    assert error["param"] == body.param
    assert error["type"] == "invalid_request_error"
    assert body.word in error["message"]


def test_a_part_without_a_name_is_ignored(server: Server) -> None:
    nameless = b"--sep\r\nContent-Disposition: form-data\r\n\r\nx\r\n"

    answer = request(
        server,
        "POST",
        ENDPOINT,
        content=nameless + FILE_PART + END,
        headers={"Content-Type": "multipart/form-data; boundary=sep"},
    )

    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "filename",
    [
        b"../../../etc/cron.d/recording.flac",
        b"/etc/passwd",
        b"..\\..\\boot.ini",
        b"upload-\0.flac",
        b"two\r\n lines.flac",
        b'a\\"quoted\\".flac',
        b"$(touch hacked); touch hacked.flac",
        b"-i.flac",
        b"concat:a.flac|b.flac",
        b"http://127.0.0.1/recording.flac",
        b"n" * 300 + b".flac",
        "запись 录音.flac".encode(),
        b"",
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_files_name_is_never_used(server: Server, filename: bytes) -> None:
    before = _files_around(server)

    answer = request(
        server,
        "POST",
        ENDPOINT,
        content=_part("file", AUDIO, filename=filename) + END,
        headers={"Content-Type": "multipart/form-data; boundary=sep"},
    )

    assert answer.status_code == 200, answer.text
    assert answer.json()["text"].startswith("It costs five thousand")
    assert _files_around(server) == before


def _files_around(server: Server) -> set[Path]:
    """List what is in the folder of the uploads, beside it and above."""
    return set(server.uploads.parent.rglob("*")) | set(server.uploads.parents[1].glob("*"))


class TestLimits:
    def test_a_recording_longer_than_the_limit_is_refused_however_small(
        self, small: Server
    ) -> None:
        error = error_of(transcribe(small, SPOKEN), 400)

        assert (error["param"], error["code"]) == ("file", "audio_too_long")
        assert "MAX_AUDIO_HOURS" in error["message"]
        assert uploads(small) == []

    def test_a_recording_that_unpacks_to_much_more_is_refused(
        self, small: Server, media: Callable[..., bytes]
    ) -> None:
        silence = media("lavfi", "-i", "anullsrc=r=16000:cl=mono:d=2000", "silence.flac")

        error = error_of(transcribe(small, silence), 400)

        assert error["code"] == "audio_too_long"
        assert uploads(small) == []
        assert ffmpegs(small) == []

    def test_an_upload_larger_than_the_limit_is_refused(self, small: Server) -> None:
        loud = np.random.default_rng(1).uniform(-1, 1, 45 * SAMPLE_RATE)
        error = error_of(transcribe(small, wav(loud)), 413)

        assert (error["param"], error["code"]) == ("file", "upload_too_large")
        assert "MAX_UPLOAD_MB" in error["message"]
        assert uploads(small) == []
