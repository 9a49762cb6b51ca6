# SPDX-License-Identifier: Apache-2.0
"""The line itself: TLS, proxies, and peers that are slow on purpose."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

import httpx
import pytest
from tests.server.conftest import ThreadServer
from tests.server.fake_device import FakeDevice

from update_agent.errors import ServerError
from update_tools.server import bodies, wire
from update_tools.server.client import Management
from update_tools.server.run import start
from update_tools.server.upload_client import Answer, Uploader


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    argv += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=127.0.0.1"]
    argv += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(argv, check=True, capture_output=True)
    return cert, key


class InOneGo(Uploader):
    """An uploader that does not get a second chance with a file."""

    def _send_rest(self, place: str, file: IO[bytes], offset: int) -> Answer:
        assert offset == 0
        return super()._send_rest(place, file, offset)


def test_tls(tmp_path: Path, write_artifact: Callable[..., Path]) -> None:
    cert, key = certificate(tmp_path)
    options = ["--tls-cert", str(cert), "--tls-key", str(key)]
    context = ssl.create_default_context(cafile=str(cert))
    with start(tmp_path / "data", auto_accept=True, options=options) as server:
        assert server.url.startswith("https://127.0.0.1:")
        device = FakeDevice(server.url, "52:54:00:00:00:01")
        device.http = httpx.Client(base_url=server.url, verify=context, timeout=30)
        assert device.authorize().status_code == 200
        uploader = InOneGo(server.url, server.token, context=context)
        uploader.upload(write_artifact("release-2"))
        uploader.upload(write_artifact("large", compression="none", payload=bytes(16 << 20)))
        http = httpx.Client(
            base_url=server.url, verify=context, headers={"Authorization": f"Bearer {server.token}"}
        )
        body = {"name": "tls", "artifact_name": "release-2", "all_devices": True}
        assert http.post("/api/management/v1/deployments/deployments", json=body).status_code == 201
        link = device.poll().json()["artifact"]["source"]["uri"]
        assert link.startswith(server.url)
        assert device.http.get(link).content == write_artifact("release-2").read_bytes()
        login = httpx.get(f"{server.url}/login", verify=context)
        assert "; Secure" in login.headers["set-cookie"]
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(server.url)
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url.replace("https", "http"))


class Refuser(BaseHTTPRequestHandler):
    """A server that says no to an upload as soon as it knows about it."""

    protocol_version = "HTTP/1.1"
    received = 0

    def _say(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self._say(201, {"Location": "/there", "Upload-Offset": "0"})

    def do_PATCH(self) -> None:
        self._say(422, {}, b'{"error": "not today"}')
        while chunk := self.connection.recv(1 << 16):
            Refuser.received += len(chunk)
        self.close_connection = True


@pytest.mark.parametrize("is_tls", [False, True], ids=["http", "https"])
def test_a_server_that_refuses_early(tmp_path: Path, is_tls: bool) -> None:
    large = tmp_path / "large.mender"
    large.write_bytes(bytes(64 << 20))
    Refuser.received = 0
    context = None
    with ThreadingHTTPServer(("127.0.0.1", 0), Refuser) as server:
        if is_tls:
            cert, key = certificate(tmp_path)
            ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            ours.load_cert_chain(cert, key)
            server.socket = ours.wrap_socket(server.socket, server_side=True)
            context = ssl.create_default_context(cafile=str(cert))
        threading.Thread(target=server.serve_forever).start()
        try:
            url = f"{'https' if is_tls else 'http'}://127.0.0.1:{server.server_port}"
            with pytest.raises(ServerError, match=r"uploading large\.mender: 422 not today"):
                Uploader(url, "x", context=context).upload(large)
        finally:
            server.shutdown()
    assert Refuser.received < 64 << 20


@pytest.mark.parametrize("is_trusted", [True, False])
def test_behind_a_proxy(tmp_path: Path, write_artifact: Callable[..., Path], is_trusted: bool) -> None:
    """What a proxy says about scheme and sender counts if it is the one named, and else not."""
    options = ["--trust-proxy", "127.0.0.1" if is_trusted else "192.0.2.0/24"]
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "198.51.100.7", "Host": "ota.example"}
    with start(tmp_path / "data", auto_accept=True, options=options) as server:
        server.management().upload(write_artifact("release-2"))
        device = FakeDevice(server.url, "52:54:00:00:00:01")
        device.http.headers.update(forwarded)
        device.authorize()
        server.management().deploy("proxy", "release-2")
        link = device.poll().json()["artifact"]["source"]["uri"]
        assert link.startswith("https://ota.example/" if is_trusted else "http://ota.example/")
        login = httpx.get(f"{server.url}/login", headers=forwarded)
        assert ("; Secure" in login.headers["set-cookie"]) == is_trusted
        path = "/api/management/v1/useradm/auth/login"
        assert httpx.post(server.url + path, auth=("eve", "x" * 12), headers=forwarded).status_code == 401
        logs = "/api/management/v1/auditlogs/logs"
        entries = httpx.get(server.url + logs, headers={"Authorization": f"Bearer {server.token}"}).json()
        (failed,) = (entry for entry in entries if entry["action"] == "login failed")
        assert failed["address"] == ("198.51.100.7" if is_trusted else "127.0.0.1")


# --- slow peers ------------------------------------------------------------------------------------------


def connect(server: ThreadServer) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def read_answer(line: socket.socket, until: bytes) -> bytes:
    """An answer up to a text in it."""
    answer = b""
    while until not in answer:
        chunk = line.recv(65536)
        assert chunk, answer
        answer += chunk
    return answer


@pytest.mark.parametrize(
    "said",
    [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea"],
    ids=["nothing", "half a head", "a request and half a head"],
)
def test_a_head_that_does_not_come(
    server: ThreadServer, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(wire, "HEAD_S", 0.2)
    with connect(server) as line:
        line.sendall(said)
        answer = line.makefile("rb").read()  # to the end: it hangs up
    assert b"HTTP/1.1 408 " in answer
    assert answer.endswith(b'{"error":"the request did not come in time"}\n')
    assert answer.startswith(b"HTTP/1.1 200") == (b"\r\n\r\n" in said)


def test_a_connection_may_rest_between_requests(
    server: ThreadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "HEAD_S", 0.2)
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(server) as line:
        for _ in range(3):
            line.sendall(request)
            assert read_answer(line, b'{"status":"ok"}').startswith(b"HTTP/1.1 200")
            line.settimeout(0.4)
            with pytest.raises(TimeoutError):
                line.recv(1)
            line.settimeout(30)


def test_a_head_without_end(server: ThreadServer) -> None:
    with connect(server) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        try:
            for _ in range(200):
                line.sendall(b"X-More: " + b"x" * 1000 + b"\r\n")
            answer = line.makefile("rb").read()
        except OSError:
            return  # it hung up
    assert answer.startswith(b"HTTP/1.1 4")


def test_a_body_that_drips(device: FakeDevice, server: ThreadServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, all of them together do not."""
    monkeypatch.setattr(bodies, "WHOLE_S", 0.5)
    path = "/api/devices/v1/inventory/device/attributes"
    head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {device.token}\r\n"
    head += "Content-Length: 9999\r\n\r\n"
    with connect(server) as line:
        line.sendall(head.encode())
        line.settimeout(0.001)
        for _ in range(8000):
            line.sendall(b" ")
            try:
                line.recv(1, socket.MSG_PEEK)
                break
            except TimeoutError:
                continue
        line.settimeout(30)
        assert read_answer(line, b"took longer than").startswith(b"HTTP/1.1 408 ")


def wait_for_hang_up(server: ThreadServer, before: int) -> None:
    """Until the server has no more connections than before."""
    deadline = time.monotonic() + 60
    while server.connections() > before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_receiver_that_takes_nothing(
    device: FakeDevice,
    management: Management,
    server: ThreadServer,
    write_artifact: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "SEND_STALL_S", 0.5)
    management.upload(write_artifact("thick", compression="none", payload=bytes(32 << 20)))
    management.deploy("thick", "thick")
    link = httpx.URL(device.poll().json()["artifact"]["source"]["uri"])
    before = server.connections()
    with connect(server) as line:
        line.sendall(f"GET {link.raw_path.decode()} HTTP/1.1\r\nHost: {link.host}\r\n\r\n".encode())
        assert line.recv(100).startswith(b"HTTP/1.1 200")
        wait_for_hang_up(server, before)
        received = 0
        try:
            while chunk := line.recv(1 << 20):
                received += len(chunk)
        except ConnectionError:
            pass
    assert received < 32 << 20, "it hung up before the end"
    assert httpx.get(f"{server.url}/health").status_code == 200
