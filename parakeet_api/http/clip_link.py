"""Messages between the processes that receive clips and the one that owns the model.

A message is a tuple of plain values and some bytes, sent over a socket pair between a process and
its parent. Client sockets are attached to messages if the parent should respond.
"""

from __future__ import annotations

import marshal
import socket
import struct
from collections.abc import Iterable
from typing import Any

from parakeet_api.transcript import Token, Word

_HEAD = struct.Struct("<II")
_MAX_BYTES = 64 * 1024 * 1024
"""A longer message is an error."""

Values = tuple[Any, ...]
"""What `marshal` writes: numbers, texts, bytes, and tuples, lists and dictionaries of them."""


class LinkClosedError(Exception):
    """The other process has ended."""


def send(link: socket.socket, values: Values, data: bytes | memoryview = b"") -> None:
    """Send a message. Raises `LinkClosedError`."""
    body = marshal.dumps(values)
    try:
        link.sendall(_HEAD.pack(len(body), len(data)) + body)
        if data:
            link.sendall(data)
    except OSError as error:
        raise LinkClosedError from error


def receive(link: socket.socket) -> tuple[Values, bytearray]:
    """Wait for a message. Raises `LinkClosedError`."""
    return _body(link, _exactly(link, _HEAD.size))


def send_socket(link: socket.socket, passed: socket.socket, values: Values, data: bytes) -> None:
    """Send a message with a socket, which the caller then closes. Raises `LinkClosedError`."""
    body = marshal.dumps(values)
    try:
        head = _HEAD.pack(len(body), len(data))
        if socket.send_fds(link, [head], [passed.fileno()]) != len(head):
            raise LinkClosedError
        link.sendall(body + data)
    except OSError as error:
        raise LinkClosedError from error


def receive_socket(link: socket.socket) -> tuple[socket.socket, Values, bytearray]:
    """Wait for a message with a socket. Raises `LinkClosedError`."""
    try:
        head, descriptors, _, _ = socket.recv_fds(link, _HEAD.size, 1)
    except OSError as error:
        raise LinkClosedError from error
    if not descriptors:
        raise LinkClosedError
    passed = socket.socket(fileno=descriptors[0])
    try:
        values, data = _body(link, head + _exactly(link, _HEAD.size - len(head)))
    except LinkClosedError:
        passed.close()
        raise
    return passed, values, data


def pack_words(words: Iterable[Word]) -> list[Values]:
    """Return words as plain values: `pickle` takes ten times as long for their classes."""
    return [
        (
            word.text,
            word.start,
            word.end,
            [(token.id, token.text, token.logprob) for token in word.tokens],
            word.language,
            word.from_keyword,
        )
        for word in words
    ]


def unpack_words(packed: Iterable[Values]) -> list[Word]:
    """Return the words that were packed."""
    return [
        Word(text, start, end, tuple(Token(*token) for token in tokens), language, from_keyword)
        for text, start, end, tokens, language, from_keyword in packed
    ]


def _body(link: socket.socket, head: bytes | bytearray) -> tuple[Values, bytearray]:
    size, data_size = _HEAD.unpack(head)
    if size + data_size > _MAX_BYTES:
        raise LinkClosedError
    values: Values = marshal.loads(_exactly(link, size))  # noqa: S302 - our own process wrote it
    return values, _exactly(link, data_size)


def _exactly(link: socket.socket, size: int) -> bytearray:
    received = bytearray(size)
    view = memoryview(received)
    done = 0
    while done < size:
        try:
            count = link.recv_into(view[done:])
        except OSError as error:
            raise LinkClosedError from error
        if count == 0:
            raise LinkClosedError
        done += count
    return received
