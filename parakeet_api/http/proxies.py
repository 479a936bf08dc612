"""Reverse proxies: accept `X-Forwarded-*` headers from trusted ones."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

from werkzeug.middleware.proxy_fix import ProxyFix

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

EVERYONE = "*"
_PASSED_ON = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_VIA")
"""What proxies add to a request."""
_TRUSTED = "werkzeug.proxy_fix.orig"
"""What `ProxyFix` leaves in the environment of a request that came through it."""


class TrustedProxies:
    """A WSGI application behind proxies: accepts `X-Forwarded-*` from trusted ones alone.

    waitress' own `trusted_proxy` takes one address, and werkzeug's `ProxyFix` trusts everyone.
    `trusted` holds addresses and networks, or `*` where nobody but the proxy can connect.
    """

    def __init__(self, application: WSGIApplication, *, trusted: Iterable[str]) -> None:
        names = set(trusted)
        self._all = EVERYONE in names
        self._networks = [ip_network(name) for name in names - {EVERYONE}]
        self._application = application
        self._forwarded = ProxyFix(application, x_for=0, x_proto=1, x_host=1, x_prefix=1)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        peer = environ.get("REMOTE_ADDR", "")
        if not self._trusts(peer):
            return self._application(environ, start_response)
        hops = environ.get("HTTP_X_FORWARDED_FOR", "").split(",")
        environ["REMOTE_ADDR"] = self._client(peer, [hop.strip() for hop in hops])
        return self._forwarded(environ, start_response)

    def _client(self, peer: str, hops: list[str]) -> str:
        """Find the last hop that is not a trusted proxy: anyone can write the ones before it."""
        for hop in reversed(hops):
            if _address(hop) is None:
                break
            peer = hop
            if self._all or not self._trusts(hop):
                break
        return peer

    def _trusts(self, hop: str) -> bool:
        address = _address(hop)
        return self._all or any(address in network for network in self._networks if address)


def is_local(environ: WSGIEnvironment) -> bool:
    """Return whether a request certainly comes from this machine.

    One that a proxy passed on may come from anywhere, unless the proxy is trusted: then
    `REMOTE_ADDR` is the client's address already.
    """
    passed_on = any(name in environ for name in _PASSED_ON)
    address = _address(environ.get("REMOTE_ADDR", ""))
    return address is not None and address.is_loopback and (not passed_on or _TRUSTED in environ)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # On a dual-stack socket, IPv4 clients have addresses such as ::ffff:192.0.2.1.
    return getattr(address, "ipv4_mapped", None) or address
