"""Rate limits, trusted proxies, allowed origins, and slow clients."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import PATIENCE_S, Clip, Server, running_server, wait_until
from http_helpers import ENDPOINT, error_of, request, transcribe, uploads
from waitress import wasyncore

from parakeet_api.errors import SettingsError
from parakeet_api.http import server as http_server
from parakeet_api.http.admission import Admission
from parakeet_api.http.proxies import TrustedProxies, is_local
from parakeet_api.http.rate_limits import limit_rates
from parakeet_api.http.server import bind, create_server
from parakeet_api.http.waitress_internals import Channel
from parakeet_api.http.waitress_internals import Server as HttpServer
from parakeet_api.settings import Settings

pytestmark = pytest.mark.integration

LOCAL = "127.0.0.1"
ORIGIN = "https://example.org"


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Three requests an hour for each key; the proxy's header identifies clients."""
    with running_server(
        tmp_path_factory.mktemp("limited"),
        API_KEY="first,second",
        RATE_LIMIT="3/hour;1000/day",
        TRUSTED_PROXY=LOCAL,
    ) as started:
        yield started


class TestRateLimit:
    def ask(
        self, server: Server, key: str, *, client: str = "192.0.2.1", path: str = ENDPOINT
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": client}
        return request(server, "POST", path, headers=headers, files={"file": b"no sound"})

    def test_a_key_is_refused_above_its_limit_wherever_it_comes_from(self, limited: Server) -> None:
        paths = [ENDPOINT, "/asr", "/v1/audio/translations"]
        before = [
            self.ask(limited, "first", client=f"192.0.2.{n}", path=path).status_code
            for n, path in enumerate(paths)
        ]
        refused = self.ask(limited, "first", client="192.0.2.9")

        assert before == [400, 400, 400]
        error = error_of(refused, 429)
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert "3/hour" in error["message"]
        assert 0 < int(refused.headers["retry-after"]) <= 3601
        assert self.ask(limited, "second").status_code == 400
        assert uploads(limited) == []

    def test_wrong_keys_are_counted_by_address(self, limited: Server) -> None:
        answers = [
            self.ask(limited, f"guess-{n}", client=f"2001:db8::{n}").status_code for n in range(5)
        ]

        assert answers == [401, 401, 401, 429, 429]
        assert self.ask(limited, "guess", client="2001:db8:1::1").status_code == 401

    def test_looking_is_not_limited(self, limited: Server) -> None:
        headers = {"Authorization": "Bearer second"}
        paths = ["/health", "/v1/models", "/"] * 3

        answers = {request(limited, "GET", path, headers=headers).status_code for path in paths}

        assert answers == {200}

    def test_a_storage_without_its_package_stops_the_start(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flask = pytest.importorskip("flask")
        monkeypatch.setitem(__import__("sys").modules, "redis", None)
        settings = Settings(rate_limit="1/hour", rate_limit_storage="redis://localhost")

        with pytest.raises(SettingsError, match="RATE_LIMIT_STORAGE needs a package"):
            limit_rates(flask.Flask("test"), settings)


class TestTrustedProxy:
    @staticmethod
    def environ_behind(trusted: list[str], peer: str, **headers: str) -> dict[str, Any]:
        """Return the environ of an application for a request from `peer`."""
        received: dict[str, Any] = {}

        def application(environ: dict[str, Any], _: object) -> list[bytes]:
            received.update(environ)
            return []

        environ = {
            "REMOTE_ADDR": peer,
            "SCRIPT_NAME": "",
            "PATH_INFO": "/health",
            "wsgi.url_scheme": "http",
            "SERVER_NAME": "inside",
            "SERVER_PORT": "5092",
            "HTTP_HOST": "inside:5092",
        }
        environ |= {f"HTTP_X_FORWARDED_{name.upper()}": value for name, value in headers.items()}
        answer: Any = None  # No response is sent.
        TrustedProxies(application, trusted=trusted)(environ, answer)
        return received

    @pytest.mark.parametrize(
        ("trusted", "peer", "headers", "local"),
        [
            ([], "127.0.0.1", {}, True),
            ([], "::1", {}, True),
            ([], "::ffff:127.0.0.1", {}, True),
            ([], "10.0.0.2", {}, False),
            ([], "unknown", {}, False),
            # From an untrusted proxy, whatever its header says.
            ([], "127.0.0.1", {"for": "127.0.0.1"}, False),
            (["10.0.0.2"], "127.0.0.1", {"for": "127.0.0.1"}, False),
            (["127.0.0.1"], "127.0.0.1", {"for": "192.0.2.1"}, False),
            (["127.0.0.1"], "127.0.0.1", {"for": "127.0.0.1, 192.0.2.1"}, False),
            (["127.0.0.1"], "127.0.0.1", {"for": "127.0.0.1"}, True),
            (["10.0.0.2"], "10.0.0.2", {"for": "127.0.0.1"}, True),
        ],
    )
    def test_a_request_is_local_if_it_is_known_to_be(
        self, trusted: list[str], peer: str, headers: dict[str, str], local: bool
    ) -> None:
        assert is_local(self.environ_behind(trusted, peer, **headers)) == local

    @pytest.mark.parametrize(
        ("trusted", "peer", "forwarded", "client"),
        [
            (["10.0.0.2"], "10.0.0.2", "192.0.2.1", "192.0.2.1"),
            (["10.0.0.2"], "10.0.0.3", "192.0.2.1", "10.0.0.3"),
            (["10.0.0.2"], "10.0.0.2", "6.6.6.6, 192.0.2.1", "192.0.2.1"),
            (["10.0.0.0/8"], "10.0.0.2", "6.6.6.6, 192.0.2.1, 10.9.9.9", "192.0.2.1"),
            (["10.0.0.0/8"], "10.0.0.2", "10.1.1.1, 10.9.9.9", "10.1.1.1"),
            (["10.0.0.0/8"], "::ffff:10.0.0.2", "192.0.2.1", "192.0.2.1"),
            (["fd00::/8"], "fd00::2", "2001:db8::1", "2001:db8::1"),
            (["*"], "10.0.0.2", "6.6.6.6, 192.0.2.1", "192.0.2.1"),
            (["*"], "10.0.0.2", "", "10.0.0.2"),
            (["*"], "10.0.0.2", "192.0.2.1, <script>", "10.0.0.2"),
        ],
        ids=str,
    )
    def test_the_client_is_the_last_hop_that_is_no_trusted_proxy(
        self, trusted: list[str], peer: str, forwarded: str, client: str
    ) -> None:
        assert self.environ_behind(trusted, peer, **{"for": forwarded})["REMOTE_ADDR"] == client

    def test_scheme_host_and_prefix_come_from_a_trusted_proxy_alone(self) -> None:
        forwarded = {"proto": "https", "host": "example.org", "prefix": "/speech"}

        believed = self.environ_behind(["10.0.0.2"], "10.0.0.2", **forwarded)
        ignored = self.environ_behind(["10.0.0.2"], "10.0.0.3", **forwarded)

        assert believed["wsgi.url_scheme"] == "https"
        assert believed["HTTP_HOST"] == "example.org"
        assert believed["SCRIPT_NAME"] == "/speech"
        assert (ignored["wsgi.url_scheme"], ignored["HTTP_HOST"]) == ("http", "inside:5092")
        assert ignored["SCRIPT_NAME"] == ""

    @pytest.mark.parametrize(("setting", "client"), [(LOCAL, "192.0.2.7"), ("", LOCAL)])
    def test_the_log_names_the_client(self, tmp_path: Path, setting: str, client: str) -> None:
        headers = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Prefix": "/speech"}
        with running_server(tmp_path, TRUSTED_PROXY=setting) as server:
            assert request(server, "GET", "/v1/models", headers=headers).status_code == 200
            wait_until(
                lambda: f"GET /v1/models from {client} -> 200" in server.log.read_text(),
                what="the line in the log",
            )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(
        tmp_path_factory.mktemp("shared"), API_KEY="key", CORS_ORIGINS=ORIGIN
    ) as started:
        yield started


class TestCrossOrigin:
    def preflight(self, server: Server, origin: str) -> httpx.Response:
        headers = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,x-stainless-lang",
        }
        return request(server, "OPTIONS", ENDPOINT, headers=headers)

    def test_a_browser_may_ask_with_a_key(self, shared: Server, clips: list[Clip]) -> None:
        preflight = self.preflight(shared, ORIGIN)
        headers = {"Origin": ORIGIN, "Authorization": "Bearer key"}
        answer = transcribe(shared, clips[3].path, headers=headers)

        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]

    def test_a_page_of_the_internet_may_ask_a_server_of_the_home_network(
        self, shared: Server
    ) -> None:
        headers = {
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Private-Network": "true",
        }
        preflight = request(shared, "OPTIONS", ENDPOINT, headers=headers)
        others = request(shared, "OPTIONS", ENDPOINT, headers=headers | {"Origin": "https://x.org"})

        assert preflight.headers["access-control-allow-private-network"] == "true"
        assert "access-control-allow-private-network" not in others.headers
        assert "access-control-allow-private-network" not in self.preflight(shared, ORIGIN).headers

    def test_an_error_can_be_read_too(self, shared: Server) -> None:
        answer = request(shared, "POST", ENDPOINT, headers={"Origin": ORIGIN})

        error_of(answer, 401)
        assert answer.headers["access-control-allow-origin"] == ORIGIN

    def test_other_origins_get_no_headers(self, shared: Server) -> None:
        for answer in (
            self.preflight(shared, "https://example.com"),
            request(shared, "GET", "/health", headers={"Origin": "https://example.com"}),
            request(shared, "GET", "/health"),
        ):
            assert not any(name.startswith("access-control") for name in answer.headers)
            assert "Origin" in answer.headers["vary"]

    def test_cors_is_off_by_default(self, server: Server) -> None:
        preflight = self.preflight(server, ORIGIN)
        answer = request(server, "GET", "/health", headers={"Origin": ORIGIN})

        for response in (preflight, answer):
            assert not any(name.startswith("access-control") for name in response.headers)


@dataclass
class Running:
    """waitress as we set it up, in this process, so that a test can move its clock."""

    server: HttpServer
    address: tuple[str, int]

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(self.address, timeout=PATIENCE_S)
        connection.sendall(sent)
        return connection

    def channels(self) -> list[Channel]:
        return self.server.channels()

    def do(self, action: Callable[[], object]) -> None:
        """Run something in the server's own thread."""
        trigger: Any = self.server.trigger
        trigger.pull_trigger(action)

    def look_at_transfers(self) -> None:
        """Do what is done once a minute, in the server's own thread; idle times do not count."""
        looked = threading.Event()

        def look() -> None:
            self.server.maintenance(0)
            looked.set()

        self.do(look)
        assert looked.wait(PATIENCE_S)

    def look_now(self) -> None:
        """Advance past the minute between two checks."""
        logged = threading.Event()

        def let_it_be_over() -> None:
            self.server._next_maintenance = 0.0
            logged.set()

        self.do(let_it_be_over)
        assert logged.wait(PATIENCE_S)
        wait_until(lambda: self.server._next_maintenance > 0.0, what="the next look")


@contextmanager
def running(*, answer: bytes = b"well", spare: int = 1000) -> Iterator[Running]:
    """Serve `answer` for everything, once its body has been received."""

    def application(environ: Any, start_response: Any) -> list[bytes]:
        while environ["wsgi.input"].read(65536):
            pass
        start_response("200 OK", [("Content-Length", str(len(answer)))])
        return [answer]

    listener = bind(LOCAL, 0)
    with pytest.MonkeyPatch.context() as patch, closing(listener):
        patch.setattr(http_server, "_SPARE_CONNECTIONS", spare)
        server = create_server(
            application,
            listener=listener,
            max_upload_bytes=10**9,
            max_requests=1,
            admission=Admission(active=1, waiting=0),
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        served = Running(server, listener.getsockname())
        try:
            yield served
        finally:
            server.task_dispatcher.shutdown()
            # Its loop ends when there is nothing left to look at; it may do so before it is woken.
            with suppress(OSError):
                served.do(lambda: wasyncore.close_all(server._map))  # type: ignore[attr-defined]
            thread.join()


def is_closed(connection: socket.socket) -> bool:
    """Tell whether the server closes a connection within half a second, without a response."""
    connection.settimeout(0.5)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


HEAD = b"POST / HTTP/1.1\r\nHost: here\r\n"
BODY = HEAD + b"Content-Length: 1000000\r\n\r\n"


class TestSlowClients:
    @pytest.mark.parametrize("start", [HEAD, BODY], ids=["head", "body"])
    def test_a_request_that_trickles_is_cut(self, start: bytes) -> None:
        with running() as served, served.connect(start) as connection:
            wait_until(lambda: self.is_received(served), what="the beginning")
            served.look_at_transfers()
            connection.sendall(b"x")
            served.look_at_transfers()
            assert is_closed(connection)

    def test_a_request_that_moves_is_not_cut(self) -> None:
        with running() as served, served.connect(BODY) as connection:
            for _ in range(5):
                served.look_at_transfers()
                connection.sendall(bytes(20_000))
                time.sleep(0.1)
            connection.sendall(bytes(1_000_000 - 5 * 20_000))
            assert b"200 OK" in connection.recv(100)

    def test_a_client_that_does_not_read_holds_no_thread_and_is_cut(self) -> None:
        with running(answer=bytes(50_000_000)) as served, ExitStack() as stack:
            # More than there are threads.
            mute = [
                stack.enter_context(served.connect(b"GET / HTTP/1.0\r\n\r\n")) for _ in range(8)
            ]
            wait_until(lambda: len(self.unsent(served)) == len(mute), what="all answers")
            served.look_at_transfers()
            served.look_at_transfers()
            wait_until(lambda: not self.unsent(served), what="their ends")

    def test_a_clock_set_forward_closes_no_connection(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = time.time
        with running() as served, served.connect(BODY) as connection:
            wait_until(lambda: self.is_received(served), what="the beginning")
            monkeypatch.setattr(time, "time", lambda: clock() + 86400)
            served.look_now()
            connection.sendall(bytes(1_000_000))
            assert b"200 OK" in connection.recv(100)

    def test_a_clock_set_back_keeps_no_idle_connection(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = time.time
        with running() as served, served.connect() as connection:
            wait_until(served.channels, what="the connection")
            monkeypatch.setattr(time, "time", lambda: clock() - 86400)
            monkeypatch.setattr(served.server.adj, "channel_timeout", -1)
            served.look_now()
            assert is_closed(connection)

    def test_if_all_connections_are_in_use_the_most_idle_is_closed(self) -> None:
        with running(spare=20) as served, ExitStack() as stack:
            limit = served.server.adj.connection_limit
            idle = [stack.enter_context(served.connect(HEAD)) for _ in range(limit + 10)]
            with served.connect(b"GET / HTTP/1.0\r\n\r\n") as healthy:
                assert b"200 OK" in healthy.recv(100)
            assert is_closed(idle[0])
            assert not is_closed(idle[-1])

    @pytest.mark.parametrize("lines", [1, 10_000])
    def test_a_head_has_an_end(self, lines: int) -> None:
        sent = b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * lines + b"X-B: " + bytes(70_000)
        with running() as served, served.connect(sent) as connection:
            head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")

        assert b" 431 " in head
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}

    def test_a_request_is_answered_beside_sixty_slow_ones(
        self, server: Server, clips: list[Clip]
    ) -> None:
        address = (LOCAL, httpx.URL(server.url).port)
        starts = [b"", HEAD, BODY, b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n" * 200]
        with ExitStack() as stack:
            for n in range(60):
                slow = stack.enter_context(socket.create_connection(address, timeout=PATIENCE_S))
                slow.sendall(starts[n % len(starts)])
            assert server.health()["status"] == "ok"
            assert transcribe(server, clips[3].path).json()["text"] == clips[3].text

    @staticmethod
    def is_received(served: Running) -> bool:
        return any(channel.request for channel in served.channels())

    @staticmethod
    def unsent(served: Running) -> list[Channel]:
        return [c for c in served.channels() if c.total_outbufs_len and not c.requests]
