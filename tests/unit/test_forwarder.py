# SPDX-License-Identifier: Apache-2.0
"""The local way to the server: real sockets, real TLS, a child that comes and goes."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.peer import Answer, certificate, server_context, serving

from update_agent import child, forwarder
from update_agent.config import Config
from update_agent.forwarder import Forwarder
from update_agent.log import Log
from update_agent.loop import Loop

PATIENCE_S = 30


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def make(loop: Loop) -> Iterator[Callable[..., Forwarder]]:
    made: list[Forwarder] = []

    def forward(config: Config | None = None) -> Forwarder:
        made.append(Forwarder(config or Config(), Log("error", stream=io.StringIO()), loop))
        return made[-1]

    yield forward
    for each in made:
        each.close()


class Client:
    """A program on the device: one connection, read while the loop serves."""

    def __init__(self, loop: Loop, url: str) -> None:
        self._loop = loop
        host, _, port = url.removeprefix("http://").partition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=PATIENCE_S)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def until(self, end: bytes = b"") -> bytes:
        """What comes until these bytes, or until the other side closes."""
        data = b""
        while not (end and end in data):
            assert self._loop.wait([self.socket.fileno()], time.monotonic() + PATIENCE_S), data
            chunk = self.socket.recv(65536)
            if not chunk:
                assert not end, data
                return data
            data += chunk
        return data


@pytest.fixture
def connect(loop: Loop) -> Iterator[Callable[[str], Client]]:
    made: list[Client] = []

    def to(url: str) -> Client:
        made.append(Client(loop, url))
        return made[-1]

    yield to
    for client in made:
        client.socket.close()


Make = Callable[..., Forwarder]
Connect = Callable[[str], Client]


def test_a_request_is_relayed_with_its_own_headers(make: Make, connect: Connect) -> None:
    with serving() as peer:
        peer.answers = [Answer(200, b"hello", {"X-Answer": "yes"})]
        url = make().url_for(f"{peer.url}/prefix")
        client = connect(url)
        client.send(
            b"POST /api/x?y=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer t\r\n"
            b"Connection: keep-alive\r\nContent-Length: 4\r\n\r\nbody"
        )
        answer = client.until()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"X-Answer: yes" in answer
        assert answer.endswith(b"\r\n\r\nhello")
        (seen,) = peer.requests
        assert (seen.method, seen.path, seen.body) == ("POST", "/prefix/api/x?y=1", b"body")
        assert seen.headers["authorization"] == "Bearer t"
        assert seen.headers["host"] == f"127.0.0.1:{peer.port}"
        assert seen.headers["connection"] == "close"


def test_tls_and_the_client_certificate_are_the_agent_s(tmp_path: Path, make: Make, connect: Connect) -> None:
    cert, key = certificate(tmp_path, "server")
    own_cert, own_key = certificate(tmp_path, "device")
    config = Config()
    config.server_certificate = str(cert)
    with serving(server_context(cert, key, client_ca=own_cert)) as peer:
        peer.respond = lambda _: Answer(200, b"x" * 3_000_000)
        refused = connect(make(config).url_for(peer.url))
        refused.send(b"GET / HTTP/1.1\r\n\r\n")
        assert b"x" * 10 not in refused.until()
        config.https_client_certificate, config.https_client_key = str(own_cert), str(own_key)
        client = connect(make(config).url_for(peer.url))
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        assert client.until().endswith(b"\r\n\r\n" + b"x" * 3_000_000)


def test_a_server_s_certificate_that_is_not_trusted_is_said(
    tmp_path: Path, make: Make, connect: Connect
) -> None:
    with serving(server_context(*certificate(tmp_path, "server"))) as peer:
        client = connect(make().url_for(peer.url))
        client.send(b"GET /secret?token=1 HTTP/1.1\r\n\r\n")
        answer = client.until()
    assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert b"the server's certificate is refused" in answer
    assert b"token" not in answer


def test_a_large_body_goes_up_while_the_answer_comes_down(make: Make, connect: Connect) -> None:
    with serving() as peer:
        peer.respond = lambda request: Answer(200, request.body[::-1])
        client = connect(make().url_for(peer.url))
        body = os.urandom(1_000_000)
        client.send(b"PUT /up HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + body)
        assert client.until().endswith(body[::-1])


def test_an_upgraded_connection_is_a_pipe_until_one_side_closes(make: Make, connect: Connect) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    heads: list[bytes] = []
    closed = threading.Event()

    def echo() -> None:
        server, _ = listener.accept()
        with server:
            head = b""
            while b"\r\n\r\n" not in head:
                head += server.recv(65536)
            heads.append(head)
            server.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
            while data := server.recv(65536):
                server.sendall(data.upper())
        closed.set()

    threading.Thread(target=echo, daemon=True).start()
    client = connect(make().url_for(f"http://127.0.0.1:{listener.getsockname()[1]}"))
    client.send(
        b"GET /ws HTTP/1.1\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: k\r\n\r\n"
    )
    assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
    assert b"\r\nConnection: Upgrade\r\n" in heads[0]
    assert b"\r\nUpgrade: websocket\r\n" in heads[0]
    client.send(b"one")
    assert client.until(b"E") == b"ONE"
    client.send(b"t" * 100_000 + b"end")
    assert client.until(b"END") == b"T" * 100_000 + b"END"
    client.socket.shutdown(socket.SHUT_RDWR)  # the forked child has a copy: closing would not do
    assert closed.wait(PATIENCE_S)
    listener.close()


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (b"nonsense\r\n\r\n", b"not an HTTP/1 request"),
        (b"GET / HTTP/2\r\n\r\n", b"not an HTTP/1 request"),
        (b"CONNECT other:443 HTTP/1.1\r\n\r\n", b"not relayed"),
        (b"GET other HTTP/1.1\r\n\r\n", b"not relayed"),
        (b"GET / HTTP/1.1\r\nA: b\nHost: evil\r\n\r\n", b"control characters"),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 100_000 + b"\r\n\r\n", b"the head of the request is too long"),
    ],
)
def test_what_is_no_request_is_refused(make: Make, connect: Connect, request_: bytes, reason: bytes) -> None:
    with serving() as peer:
        client = connect(make().url_for(peer.url))
        client.send(request_)
        answer = client.until(reason)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert peer.requests == []


def test_a_server_that_is_not_there(make: Make, connect: Connect) -> None:
    with serving() as peer:
        url = peer.url
    client = connect(make().url_for(url))
    client.send(b"GET / HTTP/1.1\r\n\r\n")
    assert client.until().startswith(b"HTTP/1.1 502 ")


def test_the_child_ends_by_itself_and_the_next_connection_starts_another(
    make: Make, connect: Connect, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarder, "_IDLE_S", 0.05)
    started: list[int] = []
    start = child.Work.__init__

    def count(*words: object, **more: object) -> None:
        start(*words, **more)  # type: ignore[arg-type]
        started.append(1)

    monkeypatch.setattr(child.Work, "__init__", count)
    with serving() as peer:
        peer.respond = lambda _: Answer(200, b"hello")
        made = make()
        url = made.url_for(peer.url)
        assert started == []  # nothing runs while nobody uses it
        for number in (1, 2):
            client = connect(url)
            client.send(b"GET / HTTP/1.1\r\n\r\n")
            assert client.until().endswith(b"hello")
            assert len(started) == number
            while made._child is not None:
                loop.wait((), time.monotonic() + 0.05)


def test_the_address_stays_while_the_server_is_the_same(make: Make) -> None:
    made = make()
    first = made.url_for("https://one.example.com")
    assert made.url_for("https://one.example.com") == first
    assert made.url_for("") == ""
    assert made.url_for("https://one.example.com") == first
    assert made.url_for("https://two.example.com") != first


def test_without_a_port_programs_get_the_server_s_own_address(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(forwarder.socket, "socket", full)
    assert make().url_for("https://one.example.com") == "https://one.example.com"
