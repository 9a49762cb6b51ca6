# SPDX-License-Identifier: Apache-2.0
"""A real HTTP(S) server on loopback that answers as a test tells it, and certificates made by openssl."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Request:
    """What came in."""

    def __init__(
        self, method: str, path: str, headers: dict[str, str], body: bytes, client_port: int = 0
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self.client_port = client_port  # tells connections apart


class Answer:
    """What goes out. `send_bytes` fewer than the announced length is a connection that breaks."""

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        send_bytes: int | None = None,
        announce: bool = True,
    ) -> None:
        self.status = status
        self.body = body
        self.headers = headers or {}
        self.send_bytes = len(body) if send_bytes is None else send_bytes
        self.announce = announce


Respond = Callable[[Request], Answer]


class Peer:
    """`answers` are used up in order, then `respond` decides."""

    def __init__(self, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.requests: list[Request] = []
        self.answers: list[Answer] = []
        self.respond: Respond = lambda _: Answer(404)
        self.keeps_alive = False
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, body, self.client_address[1])
                peer.requests.append(request)
                answer = peer.answers.pop(0) if peer.answers else peer.respond(request)
                self.send_response(answer.status)
                if answer.announce and answer.status != 204:
                    self.send_header("Content-Length", str(len(answer.body)))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body[: answer.send_bytes])
                self.close_connection = not peer.keeps_alive  # without saying so before

            do_GET = do_POST = do_PUT = handle_any  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass  # clients that refuse the certificate

        self._server = Server((host, 0), Handler)
        self.is_tls = context is not None
        if context is not None:
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        """Without a path."""
        return f"{'https' if self.is_tls else 'http'}://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop; connections are then refused."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Peer]:
    """A peer for the time of a test."""
    peer = Peer(context)
    try:
        yield peer
    finally:
        peer.close()


def openssl(*arguments: str | Path) -> bytes:
    """Run the real one."""
    return subprocess.run(
        ["openssl", *map(str, arguments)], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ).stdout


def certificate(directory: Path, name: str, *, subject_alt: str = "IP:127.0.0.1") -> tuple[Path, Path]:
    """A fresh self-signed certificate and its key."""
    cert, key = directory / f"{name}.crt", directory / f"{name}.key"
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "10"),
        *("-subj", f"/CN={name}", "-addext", f"subjectAltName={subject_alt}", "-keyout", key, "-out", cert),
    )
    return cert, key


def future_certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate that becomes valid in 2090: what a board with an unset clock sees."""
    key, request, cert = (directory / f"future.{ending}" for ending in ("key", "csr", "crt"))
    openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=future"),
        *("-keyout", key, "-out", request),
    )
    (directory / "index.txt").write_text("")
    (directory / "serial").write_text("01\n")
    (directory / "ca.cnf").write_text(
        "[ca]\ndefault_ca=d\n[d]\n"
        f"database={directory}/index.txt\nserial={directory}/serial\nnew_certs_dir={directory}\n"
        "default_md=sha256\npolicy=p\nx509_extensions=x\n[p]\ncommonName=supplied\n"
        "[x]\nsubjectAltName=IP:127.0.0.1\nbasicConstraints=critical,CA:true\n"
    )
    openssl(
        *("ca", "-batch", "-selfsign", "-config", directory / "ca.cnf", "-keyfile", key, "-in", request),
        *("-out", cert, "-startdate", "20900101000000Z", "-enddate", "20910101000000Z", "-notext"),
    )
    return cert, key


def server_context(cert: Path, key: Path, *, client_ca: Path | None = None) -> ssl.SSLContext:
    """TLS for a peer; with `client_ca` it asks for a client certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context
