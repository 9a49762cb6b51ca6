# SPDX-License-Identifier: Apache-2.0
"""HTTP and HTTPS on loopback: files as fast as the kernel sends them, and a device API with deployments.

`requests` has every request with its time, in order.
"""

from __future__ import annotations

import json
import mmap
import os
import ssl
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.unit.peer import certificate, server_context

if TYPE_CHECKING:
    from collections.abc import Sequence

API = "/api/devices"
NEXT = ("/v1/deployments/device/deployments/next", "/v2/deployments/device/deployments/next")


@dataclass(frozen=True)
class Request:
    """One request, and when it was there. `status`: of a report."""

    at: float
    method: str
    path: str
    status: str = ""


@dataclass(frozen=True)
class Deployment:
    """What the device is told to install: `path` is the artifact's below the served folder."""

    id: str
    artifact_name: str
    path: str


class Server:
    """Serves files of `folders`. `offer` makes the next poll a deployment; without, polls get 204."""

    def __init__(self, folders: Sequence[Path], certificates: Path | None = None) -> None:
        self.folders = folders
        self.requests: list[Request] = []
        self.finished = threading.Event()
        self._offered: Deployment | None = None
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.is_tls = certificates is not None
        if certificates is not None:
            self.certificate, key = certificate(certificates, "bench")
            self._server.socket = server_context(self.certificate, key).wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"{'https' if self.is_tls else 'http'}://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Free the port."""
        self._server.shutdown()
        self._server.server_close()

    def offer(self, deployment: Deployment) -> None:
        """The next poll gets this; `finished` is set at its final status."""
        self.requests.clear()
        self.finished.clear()
        self._offered = deployment

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """The device API."""
        status = ""
        if path.endswith("/status"):
            status = str(json.loads(body)["status"])
        self.requests.append(Request(time.monotonic(), method, path, status))
        if path.endswith("/auth_requests"):
            return 200, b"token"
        if path.split("?", maxsplit=1)[0].endswith(NEXT):
            return self._next()
        if status in {"success", "failure"}:
            self.finished.set()
        if path.endswith(("/status", "/log")):
            return 204, b""
        return 200, b""

    def _next(self) -> tuple[int, bytes]:
        deployment, self._offered = self._offered, None
        if deployment is None:
            return 204, b""
        source = {"uri": f"{self.url}/{deployment.path}", "expire": "2099-01-01T00:00:00Z"}
        document: dict[str, Any] = {
            "id": deployment.id,
            "artifact": {
                "source": source,
                "artifact_name": deployment.artifact_name,
                "device_types_compatible": ["bench"],
            },
        }
        return 200, json.dumps(document).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 32

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: clients end as they like."""


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = 1 << 16  # header and body in one segment

        def serve(self) -> None:
            body = self.read_body()
            if self.path.startswith(API):
                code, content = server.answer(self.command, self.path, body)
                self.send_response(code)
                if code != 204:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            else:
                server.requests.append(Request(time.monotonic(), self.command, self.path))
                found = [folder / self.path.lstrip("/") for folder in server.folders]
                self.send_file(next((path for path in found if path.is_file()), None))

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = serve  # noqa: N815

        def send_file(self, path: Path | None) -> None:
            if path is None:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            size = path.stat().st_size
            start, end = 0, size
            wanted = self.headers.get("Range", "")
            if wanted.startswith("bytes="):
                first, _, last = wanted[6:].partition("-")
                start, end = int(first or 0), min(size, int(last) + 1) if last else size
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(end - start))
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self.end_headers()
            self.wfile.flush()
            if self.command != "HEAD" and end > start:
                self.send_range(path, start, end)

        def send_range(self, path: Path, start: int, end: int) -> None:
            with path.open("rb") as file:
                if isinstance(self.connection, ssl.SSLSocket):
                    with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data, memoryview(data) as view:
                        for at in range(start, end, 1 << 18):
                            with view[at : min(at + (1 << 18), end)] as piece:
                                self.connection.sendall(piece)
                    return
                while start < end:
                    start += os.sendfile(self.connection.fileno(), file.fileno(), start, end - start)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Quiet: `requests` has them."""

    return Handler
