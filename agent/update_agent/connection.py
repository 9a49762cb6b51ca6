# SPDX-License-Identifier: Apache-2.0
"""Connections to servers: URL, proxy, errors in words. Only imported in a child process."""

from __future__ import annotations

import binascii
import os
import select
import struct
import sys
import time

from update_agent import __version__
from update_agent.errors import ServerError
from update_agent.http1 import Connection, HttpError, Response
from update_agent.lean import socket
from update_agent.url import Url, join, unquote, without_query

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from update_agent.config import Config
    from update_agent.http1 import Socket

__all__ = ["Url", "join", "without_query"]  # and what is defined here

STALL_TIMEOUT_S = 300.0
_KEEP_S = 10.0  # an idle connection may be dead without a word after a while: mobile networks forget it
_RESET_WAIT_MS = 200
_TCP_CLOSE = 7  # enum in linux/tcp.h
# Servers and log filters made for the reference look at the first product: we speak its API as of 5.0.
USER_AGENT = f"Mender/5.0.0 meta-update/{__version__}"

# What can go wrong with a connection.
ERRORS = (OSError, HttpError)


# Proxies (config.md section 5)


def is_excluded(url: Url, no_proxy: str) -> bool:
    """Whether `no_proxy` (separated by blanks or commas) names the host.

    `.example.com` stands for all hosts below it, `*` for all; anything else is a whole host, or host:port.
    """
    host = url.host.lower()
    for entry in no_proxy.replace(",", " ").lower().split():
        if entry in {"*", host, f"[{host}]", f"{host}:{url.port}", f"[{host}]:{url.port}"}:
            return True
        if entry.startswith(".") and host.endswith(entry) and host != entry:
            return True
    return False


def proxy_for(url: Url, environ: Mapping[str, str]) -> Url | None:
    """The proxy to use, from the environment; None for a direct connection. Raises ServerError."""
    scheme = "https" if url.is_tls else "http"
    text = environ.get(f"{scheme}_proxy") or ""
    if not text:
        text = environ.get(f"{scheme.upper()}_PROXY") or ""
        if text and scheme == "http" and "REQUEST_METHOD" in environ:
            raise ServerError(
                "HTTP_PROXY is not used while REQUEST_METHOD is set", hint="set http_proxy instead"
            )
    if not text or is_excluded(url, environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
        return None
    try:
        proxy = Url(text if "://" in text else f"http://{text}")
    except ServerError:
        proxy = None
    if proxy is None or proxy.is_tls:
        shown = without_query(text)
        raise ServerError(f"{scheme}_proxy names {shown}, which cannot be used", hint="use http://host:port")
    return proxy


def _proxy_headers(proxy: Url) -> dict[str, str]:
    if not proxy.user:
        return {}
    name, _, password = proxy.user.partition(":")
    user = f"{unquote(name)}:{unquote(password)}"
    return {"Proxy-Authorization": f"Basic {binascii.b2a_base64(user.encode(), newline=False).decode()}"}


# Requests


class Connector:
    """Opens connections with the device's TLS settings and proxies. One per child process."""

    def __init__(self, config: Config, environ: Mapping[str, str] | None = None) -> None:
        self._config = config
        self._environ = os.environ if environ is None else environ
        self._context: ssl.SSLContext | None = None
        self._kept: tuple[str, float, Connection] | None = None  # origin, since when

    def send(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        timeout_s: float = STALL_TIMEOUT_S,
        reuse: bool = False,
    ) -> tuple[Connection, Response]:
        """Send one request and return the connection and the answer's start.

        The caller closes the connection, or gives it back with `keep`; `reuse` takes one that was.
        Raises one of ERRORS when the connection breaks or cannot be made, ServerError for bad settings.
        """
        proxy = proxy_for(url, self._environ)
        target, all_headers = url.target, {"Host": url.authority, "User-Agent": USER_AGENT, **headers}
        if proxy and not url.is_tls:
            target = f"http://{url.authority}{url.target}"
            all_headers.update(_proxy_headers(proxy))
        request = (method, target, all_headers, body)
        kept = self._kept_for(url) if reuse else None
        if kept is not None:
            try:
                return kept, kept.request(*request)
            except BaseException as error:
                is_unseen = isinstance(error, ERRORS) and _is_unseen(kept.sock)
                kept.close()
                if not is_unseen:
                    raise
        connection = self._open(url, proxy, timeout_s)
        try:
            return connection, connection.request(*request)
        except BaseException:
            connection.close()
            raise

    def dial(self, url: Url, *, timeout_s: float = STALL_TIMEOUT_S) -> tuple[Socket, str, dict[str, str]]:
        """A connected socket for a request that the caller writes, its target, and headers to add.

        Raises as `send`.
        """
        proxy = proxy_for(url, self._environ)
        connection = self._open(url, proxy, timeout_s)
        if proxy and not url.is_tls:
            return connection.sock, f"http://{url.authority}{url.target}", _proxy_headers(proxy)
        return connection.sock, url.target, {}

    def keep(self, url: Url, connection: Connection, response: Response) -> None:
        """Take a connection back for the next request to the same server; close it if that cannot be."""
        if response.is_complete and not response.will_close:
            if self._kept is not None:
                self._kept[2].close()
            self._kept = (url.origin, time.monotonic(), connection)
        else:
            connection.close()

    def _kept_for(self, url: Url) -> Connection | None:
        """The connection that was kept, if it leads there and is fresh."""
        if self._kept is None or self._kept[0] != url.origin:
            return None
        (_, since, connection), self._kept = self._kept, None
        readable, _, _ = select.select([connection.sock], [], [], 0)
        if readable or time.monotonic() - since > _KEEP_S:
            connection.close()
            return None
        return connection

    def _open(self, url: Url, proxy: Url | None, timeout_s: float) -> Connection:
        first = proxy or url
        connection = Connection(first.host, first.port, timeout_s)
        if not url.is_tls:
            return connection
        from update_agent import tls

        try:
            if proxy:
                headers = {"Host": url.place, **_proxy_headers(proxy)}
                answer = connection.request("CONNECT", url.place, headers)
                if answer.status != 200:
                    raise HttpError(f"the proxy refuses the connection: it answered {answer.status}")
            if self._context is None:
                self._context = tls.context_for(self._config)
            connection.secure(self._context, url.host)
        except BaseException:
            connection.close()
            raise
        return connection


def _is_unseen(connection: Socket) -> bool:
    """True if the server closed the connection before the last request came to it.

    The request may then be sent again. A server that took it and hung up has acknowledged it before; so a
    failure that it means (and counts) stays one.
    """
    poller = select.poll()
    poller.register(connection, 0)
    poller.poll(_RESET_WAIT_MS)  # a server that closes with the request unread ends first, and then resets
    information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    state, unacknowledged = struct.unpack("B23xI", information)
    return bool(state == _TCP_CLOSE or unacknowledged > 0)  # closed: by a reset


def is_about_time(error: Exception) -> bool:
    """Whether a certificate is not valid yet or any more: by this device's clock."""
    if "ssl" not in sys.modules:
        return False
    from update_agent import tls

    return tls.is_about_time(error)


def explain(error: Exception) -> tuple[str, str]:
    """What happened and what to try, in words, for one of ERRORS."""
    if "ssl" in sys.modules:  # only then can it be an error of TLS
        from update_agent import tls

        words = tls.explain(error)
        if words is not None:
            return words
    if isinstance(error, TimeoutError) and error.errno is None:
        return "no data came for too long", ""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text), ""
