"""The private interfaces of waitress that `waitress_internals` relies on are still there."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import Any

import pytest
from conftest import ROOT
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.receiver import ChunkedReceiver, FixedStreamReceiver
from waitress.server import BaseWSGIServer, TcpWSGIServer
from waitress.task import ErrorTask, Task, ThreadedTaskDispatcher, WSGITask
from waitress.trigger import trigger
from waitress.wasyncore import dispatcher

NAMES: dict[Any, str] = {
    HTTPChannel: (
        "task_class error_task_class parser_class request requests requests_lock received readable"
        " service send handle_close cancel write_soon will_close close_when_flushed connected"
        " total_outbufs_len last_activity send_continue sent_continue"
    ),
    HTTPRequestParser: (
        "parse_header received completed empty error expect_continue headers_finished body_rcv"
        " get_body_stream content_length chunked close"
    ),
    FixedStreamReceiver: "buf getbuf received",
    ChunkedReceiver: "buf getbuf received",
    Task: (
        "set_close_on_finish build_response_header response_headers content_length close_on_finish"
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
    dispatcher: "_map send recv",
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
