# SPDX-License-Identifier: Apache-2.0
"""Uploading from the desk: goes on where the line broke, and never sends what the server has."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from update_agent.errors import ServerError

UPLOADS = "/api/management/v1/deployments/artifacts/uploads"
CHUNK_BYTES = 256 << 10
WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # between attempts that brought nothing; afterwards it gives up
AGAIN = (408, 409, 423, 429, 502, 503, 504)  # another attempt may work; all else is the server's last word


@dataclass(frozen=True)
class Answer:
    """What the server said, or (status 0) that the line broke."""

    status: int
    headers: http.client.HTTPMessage | None
    reason: str

    def header(self, name: str) -> str:
        """A header's value, or nothing."""
        return (self.headers.get(name) or "") if self.headers is not None else ""


class Uploader:
    """Uploads to one server. `waits_s` is how long it waits between attempts in vain."""

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        timeout_s: float = 120.0,
        waits_s: tuple[float, ...] = WAITS_S,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._base = urlsplit(base_url)
        self._token = token
        self._timeout_s = timeout_s
        self._waits_s = waits_s
        self._context = context

    def upload(self, path: Path, *, description: str = "") -> str:
        """Upload an artifact and return its id. Raises ServerError with the server's reason."""
        size = path.stat().st_size
        metadata = {"sha256": _sha256(path), "description": description}
        headers = {
            "Upload-Length": str(size),
            "Upload-Metadata": ",".join(f"{name} {_b64(text)}" for name, text in metadata.items()),
        }
        created = self._insist("POST", UPLOADS, headers)
        place = urlsplit(created.header("Location")).path
        offset = int(created.header("Upload-Offset") or 0)
        in_vain = 0
        is_done = offset >= size  # the server has these bytes already
        with path.open("rb") as file:
            while not is_done:
                sent = self._send_rest(place, file, offset)
                if sent.status and sent.status not in (204, *AGAIN):
                    raise ServerError(f"uploading {path.name}: {sent.status} {sent.reason}")
                now = self._insist("HEAD", place, {}, also=(404,))
                if now.status == 404:  # refused for good, and gone
                    raise ServerError(f"uploading {path.name}: {sent.status or 404} {sent.reason}")
                is_done = bool(now.header("Location"))
                before, offset = offset, int(now.header("Upload-Offset"))
                in_vain = in_vain + 1 if offset <= before and not is_done else 0
                if in_vain > len(self._waits_s):
                    raise ServerError(
                        f"uploading {path.name}: given up at byte {offset}: {sent.status or ''} {sent.reason}"
                    )
                if in_vain:
                    time.sleep(self._waits_s[in_vain - 1])
        return place.rpartition("/")[2]

    def _send_rest(self, place: str, file: IO[bytes], offset: int) -> Answer:
        """The file from an offset on. A server that answers before the end is listened to."""
        file.seek(0, 2)
        length = file.tell() - offset
        file.seek(offset)
        connection = self._connect()
        try:
            connection.putrequest("PATCH", self._base.path + place)
            for name, value in {
                **self._headers(),
                "Content-Type": "application/offset+octet-stream",
                "Content-Length": str(length),
                "Upload-Offset": str(offset),
            }.items():
                connection.putheader(name, value)
            connection.endheaders()
            ear = _Ear(connection)
            try:
                while chunk := file.read(CHUNK_BYTES):
                    if ear.hears_answer():
                        break
                    connection.send(chunk)
            except OSError:
                pass  # it may have said why before it hung up
            return _answer(connection)
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, None, str(error) or type(error).__name__)
        finally:
            connection.close()

    def _insist(self, method: str, path: str, headers: dict[str, str], also: tuple[int, ...] = ()) -> Answer:
        """A small request, repeated until the server answers with success, or with a status in `also`."""
        for wait_s in (*self._waits_s, None):
            answer = self._ask(method, path, headers)
            if 200 <= answer.status < 300 or answer.status in also:
                return answer
            if (answer.status and answer.status not in AGAIN) or wait_s is None:
                said = f"{answer.status} " if answer.status else ""
                hint = "" if answer.status else "is the server running?"
                raise ServerError(f"{method} {self._base.geturl()}{path}: {said}{answer.reason}", hint=hint)
            time.sleep(wait_s)
        raise AssertionError("the last wait is None")

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        connection = self._connect()
        try:
            connection.request(method, self._base.path + path, headers={**self._headers(), **headers})
            return _answer(connection)
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, None, str(error) or type(error).__name__)
        finally:
            connection.close()

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}", "Tus-Resumable": "1.0.0"}

    def _connect(self) -> http.client.HTTPConnection:
        if self._base.scheme == "https":
            return http.client.HTTPSConnection(
                self._base.netloc, timeout=self._timeout_s, context=self._context
            )
        return http.client.HTTPConnection(self._base.netloc, timeout=self._timeout_s)


def _answer(connection: http.client.HTTPConnection) -> Answer:
    response = connection.getresponse()
    body = response.read()
    try:
        reason = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        reason = body[:200].decode(errors="replace") or response.reason
    return Answer(response.status, response.headers, reason)


class _Ear:
    """Listens for an answer while the body is still being sent.

    That the socket has something to read is not enough to know: with TLS 1.3 the server sends tickets after
    the handshake, at any time. So it reads, and what it has heard is where `getresponse` reads on.
    """

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._sock: socket.socket = connection.sock
        self._file = self._sock.makefile("rb")
        connection.response_class = self._response  # type: ignore[assignment]

    def hears_answer(self) -> bool:
        """Whether a byte of it has come. Raises OSError if the line broke."""
        timeout_s = self._sock.gettimeout()
        self._sock.settimeout(0)
        try:
            return bool(self._file.peek(1))
        except ssl.SSLWantReadError:
            return False
        finally:
            self._sock.settimeout(timeout_s)

    def makefile(self, _mode: str) -> IO[bytes]:
        """All that a response wants of a socket (http.client.HTTPResponse)."""
        return self._file

    def _response(self, _sock: socket.socket, **options: Any) -> http.client.HTTPResponse:
        return http.client.HTTPResponse(self, **options)  # type: ignore[arg-type]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
