# SPDX-License-Identifier: Apache-2.0
"""Requests and downloads through a real proxy: absolute URLs for http, CONNECT for https."""

from __future__ import annotations

import base64
import io
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.unit import peer as peers
from tests.unit.peer import Answer, Peer
from tests.unit.test_server import make_config
from tests.unit.test_transfer import DATA, part, read_all

from update_agent.config import Config
from update_agent.connection import Connector
from update_agent.errors import ServerError
from update_agent.log import Log
from update_agent.server import Api, Session
from update_agent.transfer import Download


class Proxy:
    """Tunnels what CONNECT names to one real peer, whatever the name says; `refuse` answers instead."""

    def __init__(self, target_port: int) -> None:
        self.heads: list[list[str]] = []  # request line and headers of each connection
        self.refuse = ""
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://user:p%40ss@127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with client:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1)
            self.heads.append(head.decode().split("\r\n")[:-2])
            if self.refuse:
                client.sendall(f"HTTP/1.1 {self.refuse}\r\nContent-Length: 2\r\n\r\nno".encode())
                return
            with socket.create_connection(("127.0.0.1", self._target_port)) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                ends = {client: server, server: client}
                while True:
                    for end in select.select(ends, [], [])[0]:
                        try:
                            data = end.recv(65536)
                            ends[end].sendall(data)
                        except (ConnectionResetError, BrokenPipeError):
                            return  # one end refused the other
                        if not data:
                            return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def tunnelled(directory: Path) -> Iterator[tuple[Peer, Proxy, Config]]:
    """A TLS server named updates.example.com that only the proxy knows the way to."""
    cert, key = peers.certificate(directory, "server", subject_alt="DNS:updates.example.com")
    with peers.serving(peers.server_context(cert, key)) as peer:
        peer.keeps_alive = True
        peer.respond = lambda _: Answer(204)
        proxy = Proxy(peer.port)
        config = make_config(directory, "https://updates.example.com")
        config.server_certificate = str(cert)
        try:
            yield peer, proxy, config
        finally:
            proxy.close()


def api(config: Config, environ: dict[str, str], url: str = "https://updates.example.com") -> Api:
    return Api(config, Log(stream=io.StringIO()), Session("t", url), connector=Connector(config, environ))


def test_https_goes_through_a_tunnel_that_is_kept(tmp_path: Path) -> None:
    with tunnelled(tmp_path) as (peer, proxy, config):
        client = api(config, {"https_proxy": proxy.url, "http_proxy": "http://127.0.0.1:9"})
        assert [client.report("d", status).kind for status in ("downloading", "installing")] == ["ok", "ok"]
        assert len(peer.requests) == 2
        assert [head[0] for head in proxy.heads] == ["CONNECT updates.example.com:443 HTTP/1.1"]
        password = base64.b64encode(b"user:p@ss").decode()
        assert f"Proxy-Authorization: Basic {password}" in proxy.heads[0]
        # The proxy's password is not for the server, nor the token for the proxy.
        assert "proxy-authorization" not in peer.requests[0].headers
        assert not [line for line in proxy.heads[0] if line.lower().startswith("authorization")]
        assert peer.requests[0].headers["host"] == "updates.example.com"


def test_the_certificate_is_checked_through_the_tunnel(tmp_path: Path) -> None:
    with tunnelled(tmp_path) as (peer, proxy, config):
        client = api(config, {"https_proxy": proxy.url}, "https://other.example.com:8443")
        with pytest.raises(ServerError, match="certificate names"):
            client.report("d", "installing")
        assert proxy.heads[0][0] == "CONNECT other.example.com:8443 HTTP/1.1"
        assert peer.requests == []


@pytest.mark.parametrize("refusal", ["403 Forbidden", "407 Proxy Authentication Required", "502 Bad Gateway"])
def test_a_proxy_that_refuses_is_named(tmp_path: Path, refusal: str) -> None:
    with tunnelled(tmp_path) as (peer, proxy, config):
        proxy.refuse = refusal
        with pytest.raises(ServerError) as caught:
            api(config, {"https_proxy": proxy.url}).report("d", "installing")
        assert "proxy" in str(caught.value).lower() or "Tunnel" in str(caught.value)
        assert refusal[:3] in str(caught.value)
        assert "p@ss" not in str(caught.value)
        assert peer.requests == []


def test_no_proxy_leads_past_it(tmp_path: Path) -> None:
    cert, key = peers.certificate(tmp_path, "server")
    with peers.serving(peers.server_context(cert, key)) as peer:
        peer.respond = lambda _: Answer(204)
        config = make_config(tmp_path, peer.url)
        config.server_certificate = str(cert)
        dead = {"https_proxy": "http://127.0.0.1:9"}
        with pytest.raises(ServerError, match="refused"):
            api(config, dead, peer.url).report("d", "installing")
        for exception in ("127.0.0.1", f"127.0.0.1:{peer.port}", "other,127.0.0.1", "*"):
            client = api(config, {**dead, "no_proxy": exception}, peer.url)
            assert client.report("d", "installing").kind == "ok"
        assert len(peer.requests) == 4


def test_a_download_is_resumed_through_the_proxy(tmp_path: Path) -> None:
    with tunnelled(tmp_path) as (peer, proxy, config):
        peer.keeps_alive = False
        peer.answers = [Answer(200, DATA, send_bytes=40_000), part(40_000)]
        stream = Download(
            config,
            Log(stream=io.StringIO()),
            sleep=lambda _: None,
            connector=Connector(config, {"https_proxy": proxy.url}),
        )
        with stream.open("https://updates.example.com/file?signature=1") as opened:
            assert read_all(opened) == DATA
        assert len(proxy.heads) == 2
        assert "signature" not in str(proxy.heads)
        assert peer.requests[1].headers["range"] == f"bytes=40000-{len(DATA) - 1}"


def test_client_certificates_go_through_the_tunnel(tmp_path: Path) -> None:
    cert, key = peers.certificate(tmp_path, "server", subject_alt="DNS:updates.example.com")
    client, client_key = peers.certificate(tmp_path, "client")
    with peers.serving(peers.server_context(cert, key, client_ca=client)) as peer:
        peer.respond = lambda _: Answer(204)
        proxy = Proxy(peer.port)
        config = make_config(tmp_path, "https://updates.example.com")
        config.server_certificate = str(cert)
        with pytest.raises(ServerError):
            api(config, {"https_proxy": proxy.url}).report("d", "installing")
        config.https_client_certificate, config.https_client_key = str(client), str(client_key)
        assert api(config, {"https_proxy": proxy.url}).report("d", "installing").kind == "ok"
        proxy.close()
