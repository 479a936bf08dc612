from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import PATIENCE_S, wait_until
from webhook_receiver import Receiver

from parakeet_api.allowed_hosts import webhook_hosts
from parakeet_api.errors import InvalidRequestError
from parakeet_api.formats.rendering import Rendered
from parakeet_api.formats.request_params import TranscriptionParams
from parakeet_api.jobs.job import Job, Webhook
from parakeet_api.jobs.sqlite_store import SqliteJobStore
from parakeet_api.jobs.store import JobStore
from parakeet_api.jobs.webhooks import WebhookSender
from parakeet_api.settings import Settings

QUICK = (0.05, 0.05, 0.05)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    started = Receiver()
    yield started
    started.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    opened = SqliteJobStore(tmp_path / "data")
    yield opened
    opened.close()


@pytest.fixture
def finish(store: JobStore, tmp_path: Path) -> Callable[[str], Job]:
    """Make a succeeded job with a webhook."""

    def make(url: str) -> Job:
        upload = tmp_path / "upload"
        upload.write_bytes(b"sound")
        job = store.add(
            upload, TranscriptionParams(), owner=None, webhook_url=url, max_unfinished=99
        )
        started = store.start(job)
        assert started is not None
        store.succeed(started, Rendered("words", "text/plain"))
        return job

    return make


@contextmanager
def sender_of(store: JobStore, *hosts: str) -> Iterator[WebhookSender]:
    def body(job: Job) -> bytes:
        return json.dumps({"id": job.id}).encode()

    sender = WebhookSender(store, hosts=webhook_hosts(hosts), body=body, delays_s=QUICK)
    try:
        yield sender
    finally:
        sender.close(within_s=PATIENCE_S)


def webhook_of(store: JobStore, job: Job) -> Webhook:
    found = store.get(job.id)
    assert found is not None
    assert found.webhook is not None
    return found.webhook


# Which addresses


HOSTS = webhook_hosts(
    Settings.from_env({"ALLOW_WEBHOOKS": "Hooks.example, 10.0.0.5:8080, [::1]:90"}).allow_webhooks
)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example",
        "https://hooks.example/a/b?c=d",
        "https://HOOKS.EXAMPLE:443/",
        "http://hooks.example.:80/",
        "http://10.0.0.5:8080/x",
        "https://10.0.0.5:8080/x",
        "http://[::1]:90/x",
    ],
)  # fmt: skip
def test_listed_hosts_are_allowed(url: str) -> None:
    HOSTS.check(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example/",
        "http://hooks.example@evil.example/",
        "http://hooks.example:80@evil.example/",
        "http://evil.example#@hooks.example/",
        "http://evil.example\\@hooks.example/",
        "http://evil.example?@hooks.example/",
        "http://hooks.example\\@evil.example/",
        "http://user@hooks.example/",
        "http://user:secret@hooks.example/",
        "http://hooks.example.evil.example/",
        "http://xhooks.example/",
        "http://hooks.example../",
        "http://hooks.example:8080/",
        "http://hooks.example:0/",
        "http://hooks%2eexample/",
        "http://10.0.0.5/",
        "http://10.0.0.5:80/",
        "http://10.0.0.5.:8081/",
        "http://[::1]/",
        "http://[::ffff:10.0.0.5]:8080/",
        "http://127.0.0.1/",
        "http://localhost/",
        "http://0/",
        "ftp://hooks.example/",
        "file:///etc/passwd",
        "gopher://hooks.example/",
        "hooks.example",
        "//hooks.example/",
        "http:hooks.example",
        "http://",
        "http://:80/",
        "http://hooks.example\r\nX: y/",
        "http://hooks.example/" + "x" * 3000,
        "http://[::1",
        "x" * 100_000,
    ],
    ids=lambda url: url[:40],
)
def test_other_addresses_are_refused_by_name(url: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        HOSTS.check(url)

    assert caught.value.param == "webhook_url"
    assert len(caught.value.message) < 300


def test_without_a_list_no_address_is_allowed() -> None:
    with pytest.raises(InvalidRequestError, match="ALLOW_WEBHOOKS is empty"):
        webhook_hosts(()).check("http://hooks.example/")


# Calls


def test_a_webhook_is_called_once(
    store: JobStore, receiver: Receiver, finish: Callable[[str], Job]
) -> None:
    job = finish(f"{receiver.url}/done?token=1")
    with sender_of(store, f"127.0.0.1:{receiver.port}") as sender:
        wait_until(lambda: webhook_of(store, job).delivered)
        sender.notify()
        time.sleep(0.2)

    assert receiver.calls == [{"path": "/done?token=1", "id": job.id}]
    assert receiver.headers[0]["content-type"] == "application/json"
    assert webhook_of(store, job) == Webhook(f"{receiver.url}/done?token=1", 1, delivered=True)


def test_a_webhook_is_called_when_its_job_ends(
    store: JobStore, receiver: Receiver, finish: Callable[[str], Job]
) -> None:
    with sender_of(store, f"127.0.0.1:{receiver.port}") as sender:
        time.sleep(0.1)
        job = finish(receiver.url)
        sender.notify()
        wait_until(lambda: webhook_of(store, job).delivered)


@pytest.mark.parametrize("status", [500, 404, 301, 307])
def test_a_failed_call_is_repeated_and_never_redirected(
    store: JobStore, receiver: Receiver, finish: Callable[[str], Job], status: int
) -> None:
    receiver.answers = [status, status]
    job = finish(f"{receiver.url}/done")

    with sender_of(store, f"127.0.0.1:{receiver.port}"):
        wait_until(lambda: webhook_of(store, job).delivered)

    assert [call["path"] for call in receiver.calls] == ["/done"] * 3
    assert webhook_of(store, job) == Webhook(f"{receiver.url}/done", 3, delivered=True)


def test_after_the_last_attempt_the_reason_is_stored(
    store: JobStore, receiver: Receiver, finish: Callable[[str], Job]
) -> None:
    receiver.answers = [503] * 99
    job = finish(receiver.url)

    with sender_of(store, f"127.0.0.1:{receiver.port}"):
        wait_until(lambda: webhook_of(store, job).attempts == 4)
        time.sleep(0.3)

    assert len(receiver.calls) == 4
    assert webhook_of(store, job) == Webhook(
        receiver.url, 4, delivered=False, last_error="answered 503 Service Unavailable"
    )


def test_a_receiver_that_is_down_does_not_delay_others(
    store: JobStore, receiver: Receiver, finish: Callable[[str], Job]
) -> None:
    nobody = Receiver()
    nobody.close()
    down, up = finish(nobody.url), finish(receiver.url)

    with sender_of(store, f"127.0.0.1:{receiver.port}", f"127.0.0.1:{nobody.port}"):
        wait_until(lambda: webhook_of(store, up).delivered)
        wait_until(lambda: webhook_of(store, down).attempts == 4)

    assert "refused" in (webhook_of(store, down).last_error or "")


def test_pending_webhooks_are_called_by_the_next_process(
    store: JobStore, receiver: Receiver, finish: Callable[[str], Job]
) -> None:
    receiver.answers = [500]
    job = finish(receiver.url)
    slow = WebhookSender(
        store,
        hosts=webhook_hosts([f"127.0.0.1:{receiver.port}"]),
        body=lambda job: json.dumps({"id": job.id}).encode(),
        delays_s=(3600,),
    )
    wait_until(lambda: webhook_of(store, job).attempts == 1)
    slow.close(within_s=PATIENCE_S)

    with sender_of(store, f"127.0.0.1:{receiver.port}"):
        wait_until(lambda: webhook_of(store, job).delivered)


def test_a_host_that_was_taken_off_the_list_is_not_called(
    store: JobStore, receiver: Receiver, finish: Callable[[str], Job]
) -> None:
    job = finish(receiver.url)

    with sender_of(store, "elsewhere.example"):
        wait_until(lambda: webhook_of(store, job).attempts == 4)

    assert receiver.calls == []
    assert "ALLOW_WEBHOOKS" in (webhook_of(store, job).last_error or "")


def test_proxies_and_netrc_of_the_environment_are_ignored(
    store: JobStore,
    receiver: Receiver,
    finish: Callable[[str], Job],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    job = finish(receiver.url)

    with sender_of(store, f"127.0.0.1:{receiver.port}"):
        wait_until(lambda: webhook_of(store, job).delivered)

    assert "authorization" not in receiver.headers[0]


def test_no_webhook_is_called_for_a_removed_job(
    store: JobStore, receiver: Receiver, finish: Callable[[str], Job]
) -> None:
    store.remove(finish(receiver.url))

    with sender_of(store, f"127.0.0.1:{receiver.port}"):
        time.sleep(0.2)

    assert receiver.calls == []


def test_closing_does_not_wait_for_the_next_try(
    store: JobStore, finish: Callable[[str], Job]
) -> None:
    finish("http://127.0.0.1:1/")
    sender = WebhookSender(
        store, hosts=webhook_hosts(["127.0.0.1:1"]), body=lambda _: b"{}", delays_s=(3600,)
    )

    sender.close(within_s=PATIENCE_S)

    assert not sender._thread.is_alive()
