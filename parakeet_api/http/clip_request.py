"""Parse a clip's request strictly, and write its response."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate

from parakeet_api.formats.rendering import Rendered

_REQUEST_LINE = re.compile(rb"POST ((?:/v1)?/audio/transcriptions) HTTP/1\.1")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")


class PassOnError(Exception):
    """The request is not plain: the process with the model must handle it."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The head of a request; header names are in lower case."""

    path: str
    headers: Mapping[str, str]
    size: int
    """Bytes, the empty line included."""

    @property
    def body_size(self) -> int:
        return int(self.headers["content-length"])


def parse_head(head: bytes) -> RequestHead:
    """Read a request's head, without the empty line. Raises `PassOnError` if it is not plain."""
    first, *lines = head.split(b"\r\n")
    request = _REQUEST_LINE.fullmatch(first)
    if request is None:
        raise PassOnError
    headers: dict[str, str] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        name = header[1].decode("ascii").lower() if header else ""
        if header is None or name in headers:
            raise PassOnError
        headers[name] = header[2].decode("latin-1")
    return RequestHead(request[1].decode("ascii"), headers, len(head) + len(b"\r\n\r\n"))


def response(
    rendered: Rendered, request_id: str, model: str, note: str | None, *, closes: bool
) -> bytes:
    """Return a response, with its headers in the server's order."""
    body = rendered.body.encode()
    headers = {
        **({"Connection": "close"} if closes else {}),
        "Content-Length": str(len(body)),
        "Content-Type": rendered.media_type,
        "Date": formatdate(usegmt=True),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Parakeet-Model": model,
        **({"X-Parakeet-Model-Note": note} if note is not None else {}),
        "X-Request-Id": request_id,
        **rendered.headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode("latin-1") + body
