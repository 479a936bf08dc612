"""The private interfaces of waitress that `waitress_internals` relies on are still there."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import pytest
from conftest import PATIENCE_S, ROOT, wait_until
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.receiver import ChunkedReceiver, FixedStreamReceiver
from waitress.server import BaseWSGIServer, TcpWSGIServer
from waitress.task import ErrorTask, Task, ThreadedTaskDispatcher, WSGITask
from waitress.trigger import trigger
from waitress.wasyncore import dispatcher as wasyncore_dispatcher

from parakeet_api.http import waitress_internals
from parakeet_api.http.waitress_internals import Dispatcher

NAMES: dict[Any, str] = {
    HTTPChannel: (
        "task_class error_task_class parser_class request requests requests_lock received readable"
        " service send handle_close cancel write_soon will_close close_when_flushed connected"
        " total_outbufs_len last_activity send_continue sent_continue"
    ),
    HTTPRequestParser: (
        "parse_header received completed empty error expect_continue headers_finished body_rcv"
        " get_body_stream content_length chunked close command headers"
    ),
    FixedStreamReceiver: "buf getbuf received",
    ChunkedReceiver: "buf getbuf received",
    Task: (
        "set_close_on_finish build_response_header response_headers content_length close_on_finish"
        " write"
    ),
    WSGITask: "execute get_environment",
    ErrorTask: "execute",
    ThreadedTaskDispatcher: (
        "lock queue queue_cv threads stop_count active_count thread_exit_cv add_task handler_thread"
        " start_new_thread shutdown"
    ),
    BaseWSGIServer: (
        "channel_class next_channel_cleanup maintenance readable handle_accept active_channels"
        " add_task pull_trigger trigger task_dispatcher"
    ),
    TcpWSGIServer: "getsockname set_socket_options",
    wasyncore_dispatcher: "_map send recv del_channel",
}
"""Attributes and methods, by class; some are only set in `__init__`."""


@pytest.mark.parametrize("owner", NAMES, ids=lambda owner: owner.__name__)
def test_waitress_still_has_what_is_used_of_it(owner: Any) -> None:
    source = "".join(inspect.getsource(cls) for cls in owner.__mro__ if cls is not object)

    missing = [
        name
        for name in NAMES[owner].split()
        if not (hasattr(owner, name) or f"self.{name} = " in source)
    ]

    assert missing == []


def test_the_signatures_that_are_overridden_are_the_same() -> None:
    def parameters(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert parameters(HTTPRequestParser.__init__) == ["self", "adj"]
    assert parameters(HTTPRequestParser.parse_header) == ["self", "header_plus"]
    assert parameters(HTTPChannel.__init__) == ["self", "server", "sock", "addr", "adj", "map"]
    assert parameters(HTTPChannel.received) == ["self", "data"]
    assert parameters(HTTPChannel.send) == ["self", "data", "do_close"]
    assert parameters(ThreadedTaskDispatcher.handler_thread) == ["self", "thread_no"]
    assert parameters(BaseWSGIServer.maintenance) == ["self", "now"]
    assert parameters(trigger.pull_trigger) == ["self", "thunk"]


def test_a_channel_serves_its_first_request_and_leaves_the_next_to_another_task() -> None:
    source = inspect.getsource(HTTPChannel.service)

    assert "request = self.requests[0]" in source
    assert "self.requests.pop(0)" in source
    assert "self.server.add_task(self)" in source


def test_the_pinned_version_is_the_one_that_is_tested() -> None:
    assert f"waitress=={version('waitress')}\n" in (ROOT / "requirements.txt").read_text()


def test_output_is_sent_at_once() -> None:
    assert Adjustments.send_bytes == 1


class _Task:
    def __init__(self, work: Callable[[], object]) -> None:
        self.service = work


def test_threads_are_started_while_all_are_busy_and_end_when_they_are_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waitress_internals, "_IDLE_THREAD_S", 0.05)
    dispatcher = Dispatcher(max_threads=20, max_idle=5)
    all_are_there = threading.Barrier(11)
    done: list[int] = []

    def work(number: int) -> None:
        all_are_there.wait(PATIENCE_S)
        done.append(number)

    for number in range(10):
        dispatcher.add_task(_Task(partial(work, number)))
    all_are_there.wait(PATIENCE_S)

    wait_until(lambda: len(done) == 10)
    wait_until(lambda: not dispatcher.threads)
    dispatcher.add_task(_Task(lambda: done.append(10)))
    wait_until(lambda: 10 in done)
    dispatcher.shutdown()
    assert dispatcher.active_count == 0


def test_a_thread_that_cannot_be_started_leaves_its_request_to_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dispatcher = Dispatcher(max_threads=20, max_idle=5)
    entered, leave = threading.Event(), threading.Event()
    done = threading.Event()

    def work() -> None:
        entered.set()
        leave.wait(PATIENCE_S)

    dispatcher.add_task(_Task(work))
    assert entered.wait(PATIENCE_S)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _no_more_threads)
        dispatcher.add_task(_Task(done.set))
    leave.set()

    assert done.wait(PATIENCE_S)
    dispatcher.shutdown()
    assert dispatcher.active_count == 0


def _no_more_threads(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_request_that_raises_does_not_end_the_service(caplog: pytest.LogCaptureFixture) -> None:
    dispatcher = Dispatcher(max_threads=1, max_idle=1)
    done = threading.Event()

    def fail() -> None:
        raise ValueError("an error that nobody handled")

    dispatcher.add_task(_Task(fail))
    dispatcher.add_task(_Task(done.set))

    assert done.wait(PATIENCE_S)
    dispatcher.shutdown()
    assert "an error that nobody handled" in caplog.text
