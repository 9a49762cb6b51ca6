# SPDX-License-Identifier: Apache-2.0
"""A local way to the server for other programs: HTTP on loopback, relayed with the agent's TLS settings.

`io.mender.Authentication1` hands its address out beside the token (dbus-api.md). Programs send their own
Authorization; nothing of the agent's is added but TLS, client certificate and proxy. A request and its answer
pass as they are, so bodies of any length and upgrades to WebSocket do; each has a connection of its own.

Nothing runs while nobody uses it: the agent only listens, a connection starts a child, and that ends when it
has had none for a while. The address stays for as long as the server is the same.
"""

from __future__ import annotations

import os
import select
import time

from update_agent import child
from update_agent.errors import ServerError
from update_agent.lean import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket as sockets
    import ssl
    from collections.abc import Sequence

    from update_agent.config import Config
    from update_agent.log import Log
    from update_agent.loop import Loop

    Socket = sockets.socket | ssl.SSLSocket

_HEAD_MAX = 64 * 1024
_CHUNK = 64 * 1024
_CLIENTS_MAX = 32
_HEAD_S = 60.0  # for a client to say what it wants
_IDLE_S = 30.0  # without a connection, then the child ends
_AGAIN_S = 5.0  # after a child that could not be started
_STALL_S = 300.0  # without a byte in either direction; not for upgraded connections
# Of one connection, not of the request (RFC 9110 section 7.6.1).
_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "proxy-authorization", "te", "host"}


class Forwarder:
    """The resident side: the listening socket, and the child while there is one."""

    def __init__(self, config: Config, log: Log, loop: Loop) -> None:
        self._config = config
        self._log = log
        self._loop = loop
        self._listener: sockets.socket | None = None
        self._server_url = ""
        self._url = ""
        self._child: child.Work | None = None

    def url_for(self, server_url: str) -> str:
        """Where to reach the server from now on: the local address, or its own if there can be none."""
        if server_url and (self._listener is None or server_url != self._server_url):
            self.close()
            try:
                self._listen()
            except OSError as error:
                self._log.error(f"Programs must reach the server by themselves: {error}")
                return server_url
            self._server_url = server_url
        return self._url if server_url else ""

    def _listen(self) -> None:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.bind(("127.0.0.1", 0))
        listener.listen(_CLIENTS_MAX)
        self._listener = listener
        self._url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._loop.watch(listener.fileno(), self._start)

    def _start(self) -> None:
        """Somebody connects: have a child take it, and all that follow."""
        assert self._listener is not None
        fd = self._listener.fileno()
        self._loop.unwatch(fd)
        try:
            process = self._child = child.Work(
                lambda _channel: Relay(fd, self._config, self._server_url, self._log).serve(),
                log=self._log,
                what="the local forwarder",
            )
        except OSError as error:  # no process or descriptor left
            self._log.error(f"A program cannot reach the server through us: {error.strerror}")
            self._loop.call_at(time.monotonic() + _AGAIN_S, self._listen_again)
            return

        def readable() -> None:
            if not process.receive(None) and process is self._child:
                self._end_child()
                self._listen_again()

        self._loop.watch(process.read_fd, readable)

    def _listen_again(self) -> None:
        if self._listener is not None:
            self._loop.watch(self._listener.fileno(), self._start)

    def _end_child(self) -> None:
        process, self._child = self._child, None
        if process is not None:
            self._loop.unwatch(process.read_fd)
            process.close()

    def close(self) -> None:
        """End it; connections break."""
        self._end_child()
        if self._listener is not None:
            self._loop.unwatch(self._listener.fileno())
            self._listener.close()
            self._listener = None
            self._url = ""


# In the child


class Relay:
    """Takes connections until there have been none for a while."""

    def __init__(self, listener_fd: int, config: Config, server_url: str, log: Log) -> None:
        import threading

        self._listener_fd = listener_fd
        self._config = config
        self._server_url = server_url
        self._log = log
        self._lock = threading.Lock()
        self._clients = 0
        self._quiet_since = time.monotonic()

    def serve(self) -> None:
        """Until nobody has been connected for _IDLE_S."""
        import socket as sockets
        import threading

        listener = sockets.socket(fileno=os.dup(self._listener_fd))
        listener.settimeout(0)
        while True:
            with self._lock:
                is_full = self._clients >= _CLIENTS_MAX
                left_s = _IDLE_S if self._clients else self._quiet_since + _IDLE_S - time.monotonic()
            if left_s <= 0:
                return  # who connects now waits in the listening socket for the next child
            if is_full:
                time.sleep(0.1)
                continue
            if not select.select([listener], [], [], left_s)[0]:
                continue
            try:
                client = listener.accept()[0]
            except OSError:
                continue  # gone again
            with self._lock:
                self._clients += 1
            threading.Thread(target=self._serve_one, args=(client,), daemon=True).start()

    def _serve_one(self, client: sockets.socket) -> None:
        from update_agent import connection

        try:
            with client:
                client.settimeout(_HEAD_S)
                try:
                    self._relay(client)
                except (ServerError, *connection.ERRORS) as error:
                    reason = str(error) if isinstance(error, ServerError) else connection.explain(error)[0]
                    self._log.debug(f"Local forwarder: {reason}")
        finally:
            with self._lock:
                self._clients -= 1
                self._quiet_since = time.monotonic()

    def _relay(self, client: sockets.socket) -> None:
        from update_agent import connection

        try:
            head, rest = _read_head(client)
            method, target, lines = _parse(head)
        except ValueError as error:
            _refuse(client, "400 Bad Request", str(error))
            return
        connector = connection.Connector(self._config)
        url = connection.Url(connection.join(self._server_url, target))
        try:
            server, target, headers = connector.dial(url, timeout_s=_STALL_S)
        except (ServerError, *connection.ERRORS) as error:
            reason = str(error) if isinstance(error, ServerError) else connection.explain(error)[0]
            _refuse(client, "502 Bad Gateway", f"{connection.without_query(url.text)}: {reason}")
            return
        try:
            is_upgrade = _is_upgrade(lines)
            kept = [line for line in lines if line.partition(":")[0].strip().lower() not in _HOP_BY_HOP]
            headers = {"Host": url.authority, "Connection": "Upgrade" if is_upgrade else "close", **headers}
            kept += [f"{name}: {value}" for name, value in headers.items()]
            request = "\r\n".join([f"{method} {target} HTTP/1.1", *kept, "", ""]).encode("latin-1")
            _pump(client, server, request + rest, None if is_upgrade else _STALL_S)
        finally:
            server.close()


def _read_head(client: sockets.socket) -> tuple[bytes, bytes]:
    """The head of a request, and what came after it. Raises ValueError."""
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0 and len(data) <= _HEAD_MAX:
        chunk = client.recv(_CHUNK)
        if not chunk:
            raise ValueError("the request ended early")
        data += chunk
    if not 0 <= end <= _HEAD_MAX:
        raise ValueError("the head of the request is too long")
    return data[:end], data[end + 4 :]


def _parse(head: bytes) -> tuple[str, str, list[str]]:
    """Method, target on the server, header lines. Raises ValueError."""
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1.") or not words[0].isalpha():
        raise ValueError("this is not an HTTP/1 request")
    method, target, _ = words
    if target.startswith("http://"):
        target = "/" + target.removeprefix("http://").partition("/")[2]
    if not target.startswith("/") or not target.isprintable() or method == "CONNECT":
        raise ValueError(f"{method} of this target is not relayed")
    if any(character in line for line in lines for character in "\r\n\0"):
        raise ValueError("a header line has control characters")
    return method, target, lines


def _is_upgrade(lines: Sequence[str]) -> bool:
    """Whether the client asks for another protocol on this connection."""
    names: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        names[name.strip().lower()] = value
    return "upgrade" in names and "upgrade" in names.get("connection", "").lower()


def _refuse(client: sockets.socket, status: str, reason: str) -> None:
    body = f"{reason}\n".encode("utf-8", "replace")
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close"
    )
    client.sendall(f"{head}\r\n\r\n".encode() + body)


def _pump(client: sockets.socket, server: Socket, to_server: bytes, stall_s: float | None) -> None:
    """Copy both ways until the server has ended and all of it has arrived."""
    client.setblocking(False)
    server.setblocking(False)
    to_client, client_ended, server_ended = b"", False, False
    while not server_ended or to_client:
        if client_ended and not to_server and stall_s is None:
            return  # nobody is left to talk to: an upgraded connection has no other end
        readers = [] if server_ended or to_client else [server]
        if not client_ended and not to_server:
            readers.append(client)
        writers = [each for each, data in ((server, to_server), (client, to_client)) if data]
        # TLS may have taken more from the network than was asked of it.
        has_more = server in readers and hasattr(server, "pending") and server.pending() > 0
        readable, writable, _ = select.select(readers, writers, [], 0 if has_more else stall_s)
        if not (has_more or readable or writable):
            return
        with _Again():
            if to_server and server in writable:
                to_server = to_server[server.send(to_server) :]
        with _Again():
            if has_more or server in readable:
                to_client = server.recv(_CHUNK)
                server_ended = not to_client
        with _Again():
            if to_client:
                to_client = to_client[client.send(to_client) :]
        with _Again():
            if client in readable:
                to_server = client.recv(_CHUNK)
                client_ended = not to_server


class _Again:
    """Lets pass that a socket is not ready; with TLS it may need to read in order to write."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        names = {kind.__name__ for kind in type(error).__mro__}
        return bool(names & {"BlockingIOError", "SSLWantReadError", "SSLWantWriteError"})
