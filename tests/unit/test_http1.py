# SPDX-License-Identifier: Apache-2.0
"""The HTTP client against bytes on a real connection: what servers send, and what nobody may."""

from __future__ import annotations

import http.client
import http.server
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent.config import Config
from update_agent.connection import Connector, Url, explain
from update_agent.errors import ServerError
from update_agent.http1 import MAX_HEAD_BYTES, Connection, HttpError, Response


class Server:
    """Takes one connection after the other, reads a request's head, and sends what it was given."""

    def __init__(self) -> None:
        self.answer = b""
        self.pieces = 1 << 20
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                request = b""
                while b"\r\n\r\n" not in request and (piece := client.recv(65536)):
                    request += piece
                self.requests.append(request)
                try:
                    for start in range(0, len(self.answer), self.pieces):
                        client.sendall(self.answer[start : start + self.pieces])
                except OSError:
                    pass  # the client has seen enough

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def get(self, answer: bytes, *, pieces: int = 1 << 20) -> Response:
        self.answer, self.pieces = answer, pieces
        self.connection = Connection("127.0.0.1", self.port, 20)
        return self.connection.request("GET", "/", {"Host": "h"})


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def body(response: Response, view_bytes: int = 7) -> bytes:
    view, data = memoryview(bytearray(view_bytes)), bytearray()
    while count := response.readinto(view):
        data += view[:count]
    return bytes(data)


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("pieces", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    ("answer", "length", "stays"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello and more", 5, True),
        (OK + b"content-length:5\r\ncontent-length: 5\r\n\r\nhello", 5, True),
        (OK + b"Content-Length: 5\r\nConnection: Foo, Close\r\n\r\nhello", 5, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", 5, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello", 5, True),
        (OK + b"\r\nhello", None, False),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", 5, True),
        (OK + b"Transfer-Encoding: Chunked\r\n\r\n3;a=b\r\nhel\r\n02\r\nlo\r\n0\r\nX: y\r\n\r\n", None, True),
        (OK + b"X: a\r\n\tb\r\nContent-Length: 5\r\n\r\nhello", 5, True),
    ],
)
def test_bodies(server: Server, answer: bytes, length: int | None, stays: bool, pieces: int) -> None:
    response = server.get(answer, pieces=pieces)
    assert (response.status, response.length) == (200, length)
    assert body(response) == b"hello"
    assert (response.is_complete, not response.will_close) == (length is not None or stays, stays)
    assert response.readinto(memoryview(bytearray(9))) == 0
    server.connection.close()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 204 No Content\r\n\r\n", OK + b"Content-Length: 0\r\n\r\n"])
def test_no_body(server: Server, answer: bytes) -> None:
    response = server.get(answer)
    assert response.is_complete
    assert response.read(10) == b""


def test_headers(server: Server) -> None:
    response = server.get(OK + b"Date: now\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 0\r\n\r\n")
    assert response.getheader("DATE") == "now"
    assert response.getheader("X-A") == "1, 2"
    assert response.getheader("Retry-After") == ""
    assert response.getheader("Retry-After", "5") == "5"


def test_a_body_that_is_cut_off_ends_short(server: Server) -> None:
    response = server.get(OK + b"Content-Length: 50\r\n\r\nhello")
    assert body(response) == b"hello"
    assert response.length == 45
    assert not response.is_complete


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n", "ended early"),
        (b"220 mail ready\r\n\r\n", "not HTTP"),
        (b"HTTP/2 200\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 20\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 abc\r\n\r\n", "not HTTP/1.1"),
        (OK + b"Content-Length: -1\r\n\r\n", "Content-Length -1"),
        (OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", "Content-Length 1, 2"),
        (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n", "unknown Transfer-Encoding gzip, chunked"),
        (OK + b"no colon\r\n\r\n", "header that is none"),
        (OK + b"A : b\r\n\r\n", "header that is none"),
        (OK + b"X: " + b"x" * (MAX_HEAD_BYTES + 9000), "longer than 65536 bytes"),
    ],
)
def test_what_is_no_answer(server: Server, answer: bytes, reason: str) -> None:
    with pytest.raises(HttpError, match=reason) as caught:
        server.get(answer)
    assert explain(caught.value) == (str(caught.value), "")


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        (b"", "ended early"),
        (b"5\r\nhel", "ended early"),
        (b"5\r\nhello", "ended early"),
        (b"5\r\nhello\r\n", "ended early"),
        (b"x\r\nhello\r\n0\r\n\r\n", "chunk of the size 'x'"),
        (b"-5\r\nhello\r\n0\r\n\r\n", "chunk of the size '-5'"),
        (b"0x5\r\nhello\r\n0\r\n\r\n", "chunk of the size '0x5'"),
        (b"1" * 16 + b"\r\n", "chunk of the size"),
        (b"4\r\nhello\r\n0\r\n\r\n", "longer than its size"),
        (b"1;" + b"x" * 20_000, "ended early"),
    ],
)
def test_broken_chunks(server: Server, chunks: bytes, reason: str) -> None:
    response = server.get(OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    with pytest.raises(HttpError, match=reason):
        body(response)


@given(junk=st.binary(max_size=200), start=st.sampled_from([b"", OK, OK + b"Transfer-Encoding: chunked\r\n"]))
def test_junk_gives_an_answer_or_an_error_of_ours(server: Server, start: bytes, junk: bytes) -> None:
    try:
        response = server.get(start + junk)
        body(response)
    except HttpError:
        pass
    finally:
        server.connection.close()


@given(
    data=st.binary(max_size=2000),
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=5),
    view_bytes=st.integers(1, 900),
)
def test_chunks_of_any_size(server: Server, data: bytes, sizes: list[int], view_bytes: int) -> None:
    chunks, rest = b"", data
    while rest:
        for size in sizes:
            piece, rest = rest[:size], rest[size:]
            if piece:
                chunks += b"%X\r\n%s\r\n" % (len(piece), piece)
    response = server.get(OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    assert body(response, view_bytes) == data
    server.connection.close()


def test_what_is_sent(server: Server) -> None:
    server.answer = OK + b"Content-Length: 0\r\n\r\n"
    connection = Connection("127.0.0.1", server.port, 20)
    connection.request("PUT", "/a?b", {"Host": "h", "X": "y"}, b"body")
    head, _, sent = server.requests[-1].partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"PUT /a?b HTTP/1.1",
        b"Host: h",
        b"X: y",
        b"Content-Length: 4",
        b"Accept-Encoding: identity",
    ]
    assert sent == b"body"


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nb", "a\0"])
def test_no_header_is_smuggled(server: Server, value: str) -> None:
    connection = Connection("127.0.0.1", server.port, 20)
    with pytest.raises(HttpError, match="more than one line"):
        connection.request("GET", "/", {"X": value})


def test_two_requests_on_one_connection() -> None:
    """With a real server, and a body that only the standard library's client sends the same way."""

    class Echo(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as real:
        threading.Thread(target=real.serve_forever, args=(0.01,), daemon=True).start()
        ours = Connection("127.0.0.1", real.server_port, 20)
        theirs = http.client.HTTPConnection("127.0.0.1", real.server_port, timeout=20)
        for data in (b"", b"x" * 300_000):
            response = ours.request("POST", "/", {"Host": "h"}, data)
            theirs.request("POST", "/", data, {"Host": "h"})
            assert response.read(1 << 20) == theirs.getresponse().read() == data
            assert response.is_complete
        ours.close()
        theirs.close()
        real.shutdown()


def test_nobody_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        Connection("127.0.0.1", port, 20)
    with pytest.raises(OSError, match=r"not known|resolution|No address"):
        Connection("no-such-host.invalid", port, 20)


def test_the_next_address_is_tried(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """A host with two addresses of which only the second answers."""
    import _socket

    lookup: Callable[..., list[tuple[object, ...]]] = _socket.getaddrinfo
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]

    def both(_host: str, _port: int, *rest: object) -> list[tuple[object, ...]]:
        return lookup("127.0.0.1", closed, *rest) + lookup("127.0.0.1", server.port, *rest)

    monkeypatch.setattr(_socket, "getaddrinfo", both)
    connection = Connection("two.example", 80, 20)
    assert connection.sock.getpeername()[1] == server.port
    connection.close()


def test_silence_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = Connection("127.0.0.1", listener.getsockname()[1], 0.01)
        with pytest.raises(TimeoutError) as caught:
            connection.request("GET", "/", {})
    assert explain(caught.value) == ("no data came for too long", "")


def test_a_proxy_that_refuses_is_told(server: Server) -> None:
    server.answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    connector = Connector(Config(), {"https_proxy": f"http://user:word@127.0.0.1:{server.port}"})
    with pytest.raises(HttpError, match="the proxy refuses the connection: it answered 407"):
        connector.send("GET", Url("https://updates.example.com/x"), {})
    lines = server.requests[-1].split(b"\r\n")
    assert lines[:2] == [b"CONNECT updates.example.com:443 HTTP/1.1", b"Host: updates.example.com:443"]
    assert b"Proxy-Authorization: Basic dXNlcjp3b3Jk" in lines


def test_tls_settings_are_read_before_anything_is_sent(server: Server) -> None:
    config = Config()
    config.server_certificate = "/nowhere.pem"
    with pytest.raises(ServerError, match=r"cannot use ServerCertificate /nowhere.pem"):
        Connector(config, {}).send("GET", Url(f"https://127.0.0.1:{server.port}/"), {})
