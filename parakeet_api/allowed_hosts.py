"""Check that a URL from a client leads to a host that the operator allows."""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from parakeet_api.errors import InvalidRequestError

_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_URL_LENGTH = 2048


def webhook_hosts(hosts: Sequence[str]) -> AllowedHosts:
    """Return the hosts of `ALLOW_WEBHOOKS`."""
    return AllowedHosts(
        hosts, setting="ALLOW_WEBHOOKS", param="webhook_url", unused="calls no webhooks"
    )


def recording_hosts(hosts: Sequence[str]) -> AllowedHosts:
    """Return the hosts of `ALLOW_URLS`."""
    return AllowedHosts(hosts, setting="ALLOW_URLS", param="url", unused="fetches no recordings")


class AllowedHosts:
    """The hosts of a setting, as `host` (ports 80 and 443) or `host:port`.

    The host that is checked is the one that httpx connects to.
    """

    def __init__(self, hosts: Sequence[str], *, setting: str, param: str, unused: str) -> None:
        """Take a setting's value and name, and the parameter with the URL.

        `unused` says what the server does not do without hosts, such as `calls no webhooks`.
        """
        self._setting = setting
        self._unused = unused
        self._param = param
        self._allowed = {
            (listed.raw_host, port)
            for listed in (httpx.URL(f"//{host}") for host in hosts)
            for port in ((listed.port,) if listed.port else _DEFAULT_PORTS.values())
        }

    def check(self, text: str) -> httpx.URL:
        """Parse a URL. Raises `InvalidRequestError` for one that is not allowed."""
        if not self._allowed:
            raise self._refused(f"this server {self._unused} ({self._setting} is empty)")
        try:
            url = httpx.URL(text)
        except httpx.InvalidURL as error:
            raise self._refused(f"it is not a URL ({error})") from error
        if url.scheme not in _DEFAULT_PORTS or not url.host or len(text) > _MAX_URL_LENGTH:
            raise self._refused(
                "it is not a URL that begins with http:// or https://, of at most"
                f" {_MAX_URL_LENGTH} characters"
            )
        if url.userinfo:
            raise self._refused("it holds a user name or password")
        # A trailing dot makes a name absolute; it is the same host.
        host = url.raw_host.removesuffix(b".")
        port = _DEFAULT_PORTS[url.scheme] if url.port is None else url.port
        if (host, port) not in self._allowed:
            raise self._refused(f"its host and port are not among those of {self._setting}")
        return url

    def _refused(self, reason: str) -> InvalidRequestError:
        return InvalidRequestError(f"{self._param} cannot be used: {reason}.", param=self._param)
