# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from update_agent import connection
from update_agent.config import Config
from update_agent.connection import Connector, Url, is_excluded, proxy_for
from update_agent.errors import ServerError


@pytest.mark.parametrize(
    ("no_proxy", "excluded"),
    [
        ("", False),
        ("server.example.com", True),
        ("SERVER.example.com", True),
        ("other .example.com", True),
        ("other,.example.com", True),
        (".ample.com", False),
        ("example.com", False),
        (".server.example.com", False),
        ("server.example.com:8443", True),
        ("server.example.com:443", False),
        ("*", True),
    ],
)
def test_no_proxy(no_proxy: str, excluded: bool) -> None:
    assert is_excluded(Url("https://server.example.com:8443/"), no_proxy) is excluded


def test_the_proxy_follows_the_scheme_and_lower_case_comes_first() -> None:
    environ = {"http_proxy": "http://a:1", "HTTP_PROXY": "http://b:2", "HTTPS_PROXY": "c:3"}
    plain, tls = proxy_for(Url("http://s"), environ), proxy_for(Url("https://s"), environ)
    assert plain is not None
    assert (plain.host, plain.port) == ("a", 1)
    assert tls is not None
    assert (tls.host, tls.port) == ("c", 3)
    assert proxy_for(Url("http://s"), {**environ, "NO_PROXY": "s"}) is None
    assert proxy_for(Url("https://s"), {"http_proxy": "http://a:1"}) is None


@pytest.mark.parametrize(
    "environ",
    [
        {"HTTP_PROXY": "http://a:1", "REQUEST_METHOD": "GET"},
        {"http_proxy": "socks5://user:word@a:1"},
        {"http_proxy": "http://a:port"},
    ],
)
def test_proxies_that_cannot_be_used(environ: dict[str, str]) -> None:
    with pytest.raises(ServerError) as caught:
        proxy_for(Url("http://s"), environ)
    assert "word" not in str(caught.value)


# Connections that are kept


class Peer:
    """Answers each request on its connections in turn: a reply, or what it does instead."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bytes]] = []  # number of the connection, request line
        self.acts: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = Url(f"http://127.0.0.1:{self._listener.getsockname()[1]}/x")
        self.closed = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        number = 0
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            number += 1
            self._talk(number, client)

    def _talk(self, number: int, client: socket.socket) -> None:
        with client, client.makefile("rb") as stream:
            while line := stream.readline():
                while stream.readline() != b"\r\n":
                    pass
                self.seen.append((number, line.strip()))
                act = self.acts.pop(0)
                if act == "hang up":
                    break
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                if act == "answer and close":
                    break
        self.closed.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


def get(connector: Connector, peer: Peer) -> bytes:
    http, response = connector.send("GET", peer.url, {}, reuse=True)
    data = response.read(100)
    connector.keep(peer.url, http, response)
    return data


def test_a_connection_is_used_again(peer: Peer) -> None:
    connector = Connector(Config(), {})
    peer.acts = ["answer"] * 3
    assert [get(connector, peer) for _ in range(3)] == [b"ok"] * 3
    assert [number for number, _ in peer.seen] == [1, 1, 1]


def test_a_connection_that_was_idle_for_long_is_not(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_KEEP_S", -1.0)
    connector = Connector(Config(), {})
    peer.acts = ["answer"] * 2
    assert [get(connector, peer) for _ in range(2)] == [b"ok"] * 2
    assert [number for number, _ in peer.seen] == [1, 2]


def test_a_download_has_its_own(peer: Peer) -> None:
    connector = Connector(Config(), {})
    peer.acts = ["answer and close"] * 2
    get(connector, peer)
    http, response = connector.send("GET", peer.url, {})
    assert response.read(100) == b"ok"
    http.close()
    assert [number for number, _ in peer.seen] == [1, 2]


def test_a_server_that_closed_meanwhile_gets_a_new_connection(peer: Peer) -> None:
    connector = Connector(Config(), {})
    peer.acts = ["answer and close", "answer"]
    get(connector, peer)
    peer.closed.wait(30)
    assert get(connector, peer) == b"ok"
    assert [number for number, _ in peer.seen] == [1, 2]


def test_a_server_that_closes_just_then_gets_the_request_again(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It closed before the request came: the look at the connection was a moment too early."""
    monkeypatch.setattr(connection.select, "select", lambda *_: ([], [], []))
    connector = Connector(Config(), {})
    peer.acts = ["answer and close", "answer"]
    get(connector, peer)
    peer.closed.wait(30)
    assert get(connector, peer) == b"ok"
    assert [number for number, _ in peer.seen] == [1, 2]


def test_a_server_that_took_the_request_and_hung_up_does_not(peer: Peer) -> None:
    connector = Connector(Config(), {})
    peer.acts = ["answer", "hang up", "answer"]
    get(connector, peer)
    with pytest.raises(connection.ERRORS):
        get(connector, peer)
    assert [number for number, _ in peer.seen] == [1, 1]
    assert get(connector, peer) == b"ok"
