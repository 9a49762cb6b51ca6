# SPDX-License-Identifier: Apache-2.0
"""One HTTP/1.1 connection: requests go out, answers come in, bodies straight into the caller's buffer.

Why not `http.client`: with it come the mail parser, `re`, `enum` and `ssl`, 8 MB and 32 ms of every start of
the child process, also where neither mail nor TLS is in sight. Understood is what servers send: lengths,
chunks, bodies until the end of the connection, interim answers. All else is refused.
"""

from __future__ import annotations

from update_agent.lean import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    Socket = socket.socket | ssl.SSLSocket

MAX_HEAD_BYTES = 64 << 10
_MAX_LINE_BYTES = 4 << 10  # of a chunk's size and its extensions
_PIECE_BYTES = 8 << 10
_NO_BODY = (204, 304)


class HttpError(Exception):
    """The peer spoke something else, or ended too early; the text says what."""


class Connection:
    """To a server or a proxy. One request at a time: the answer must be read to its end before the next."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        """Connect to the first of the host's addresses that answers. Raises OSError."""
        error: OSError = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            _name(host), port, 0, socket.SOCK_STREAM
        ):
            try:
                plain = socket.socket(family, kind, protocol)
            except OSError as failed:
                error = failed
                continue
            try:
                plain.settimeout(timeout_s)
                plain.connect(address)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as failed:
                plain.close()
                error = failed
                continue
            except BaseException:
                plain.close()
                raise
            break
        else:
            raise error
        self.sock: Socket = plain
        self._rest = b""  # what came in and was not asked for yet

    def secure(self, context: ssl.SSLContext, host: str) -> None:
        """Speak TLS from here on, to a server of this name. Raises OSError (ssl.SSLError)."""
        self.sock = context.wrap_socket(self.sock, server_hostname=_name(host))

    def request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Response:
        """Send a request and return the answer once its head is there. Raises OSError or HttpError."""
        lines = [f"{method} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None or method in ("POST", "PUT"):
            lines.append(f"Content-Length: {len(body or b'')}")
        if any(character in line for line in lines for character in "\r\n\0"):
            raise HttpError("a header would have more than one line")
        self.sock.sendall("\r\n".join([*lines, "Accept-Encoding: identity", "", ""]).encode() + (body or b""))
        while True:
            response = Response(self, self._head())
            if response.status >= 200 or response.status == 101:
                return response

    def close(self) -> None:
        """Hang up. Fine at any time, and twice."""
        self.sock.close()

    # Input, for the response

    def _more(self) -> bool:
        piece = self.sock.recv(_PIECE_BYTES)
        self._rest += piece
        return bool(piece)

    def _head(self) -> list[str]:
        """Status line and headers, without the empty line."""
        while True:
            end = self._rest.find(b"\r\n\r\n")
            if end >= 0:
                break
            if len(self._rest) > MAX_HEAD_BYTES:
                raise HttpError(f"the head of the answer is longer than {MAX_HEAD_BYTES} bytes")
            if not self._more():
                if not self._rest:
                    raise HttpError("the server closed the connection without an answer")
                raise HttpError("the connection ended early")
            if not b"HTTP/".startswith(self._rest[:5]):
                raise HttpError("the answer is not HTTP")
        head, self._rest = self._rest[:end], self._rest[end + 4 :]
        return head.decode("latin-1").split("\r\n")

    def line(self) -> str:
        """One line of a chunked body."""
        while (end := self._rest.find(b"\n")) < 0:
            if len(self._rest) > _MAX_LINE_BYTES or not self._more():
                raise HttpError("the connection ended early")
        line, self._rest = self._rest[:end], self._rest[end + 1 :]
        return line.decode("latin-1").strip()

    def readinto(self, view: memoryview) -> int:
        """Fill the view; less at the end of the connection, or before an error that the next call raises."""
        done = min(len(self._rest), len(view))
        view[:done], self._rest = self._rest[:done], self._rest[done:]
        while done < len(view):
            try:
                count = self.sock.recv_into(view[done:])
            except OSError:
                if done:
                    break
                raise
            if not count:
                break
            done += count
        return done


class Response:
    """An answer: `status`, headers, the body once. `length`: bytes still to come, None if not announced."""

    def __init__(self, connection: Connection, head: list[str]) -> None:
        """Raises HttpError."""
        version, _, rest = head[0].partition(" ")
        status = rest[:3]
        if not version.startswith("HTTP/1.") or not status.isdigit() or len(status) < 3:
            raise HttpError("the answer is not HTTP/1.1")
        self.status = int(status)
        self._connection = connection
        self._headers = _headers(head[1:])
        self._chunk: int | None = None  # bytes left of it; None: bodies without chunks
        self.length: int | None = None
        self.is_complete = False
        tokens = self.getheader("Connection").lower().replace(",", " ").split()
        self.will_close = "close" in tokens or (version == "HTTP/1.0" and "keep-alive" not in tokens)
        coding, length = self.getheader("Transfer-Encoding").lower(), self.getheader("Content-Length")
        if self.status < 200 or self.status in _NO_BODY:
            self.length = 0
        elif coding == "chunked":
            self._chunk = 0
        elif coding not in ("", "identity"):
            raise HttpError(f"the answer has the unknown Transfer-Encoding {coding[:40]}")
        elif length:
            # Twice the same is allowed.
            if not length.isascii() or not length.isdigit():
                raise HttpError(f"the answer has the Content-Length {length[:40]}")
            self.length = int(length)
        else:
            self.will_close = True
        self.is_complete = self.length == 0

    def getheader(self, name: str, default: str = "") -> str:
        """A header's value, several joined by a comma."""
        return self._headers.get(name.lower(), default)

    def read(self, n: int) -> bytes:
        """n bytes of the body, fewer at its end or that of the connection."""
        data = bytearray()
        piece = memoryview(bytearray(min(n, _PIECE_BYTES)))
        while len(data) < n and (count := self.readinto(piece[: n - len(data)])):
            data += piece[:count]
        return bytes(data)

    def readinto(self, view: memoryview) -> int:
        """Fill the view; less at the end of the body, a chunk or the connection. 0: there is no more."""
        if self.is_complete or not len(view):
            return 0
        if self._chunk is not None:
            return self._read_chunk(view)
        if self.length is not None:
            view = view[: self.length]
        count = self._connection.readinto(view)
        if self.length is not None:
            self.length -= count
            self.is_complete = self.length == 0
        return count

    def _read_chunk(self, view: memoryview) -> int:
        assert self._chunk is not None
        if self._chunk == 0:
            size = self._connection.line().partition(";")[0].strip()
            if not size or len(size) > 15 or size.strip("0123456789abcdefABCDEF"):
                raise HttpError(f"the answer has a chunk of the size {size[:40]!r}")
            self._chunk = int(size, 16)
            if self._chunk == 0:
                while self._connection.line():
                    pass  # trailers
                self.is_complete = True
                return 0
        count = self._connection.readinto(view[: self._chunk])
        if count == 0:
            raise HttpError("the connection ended early")
        self._chunk -= count
        if self._chunk == 0 and self._connection.line():
            raise HttpError("the answer has a chunk that is longer than its size")
        return count


def _name(host: str) -> str | bytes:
    """The host's name; as bytes, as most are ASCII: for text, Python loads the tables of Unicode."""
    return host.encode() if host.isascii() else host


def _headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    name = ""
    for line in lines:
        if line[:1] in (" ", "\t") and name:  # folded, as of old
            headers[name] += " " + line.strip()
            continue
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not name or name != name.strip():
            raise HttpError("the answer has a header that is none")
        value = value.strip()
        if name in headers and headers[name] != value:
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers
