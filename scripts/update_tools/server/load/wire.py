# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 as devices speak it, at as little cost as Python allows: the load must not be the bottleneck."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

ANSWER_TIMEOUT_S = 60.0


class Broken(Exception):
    """The connection broke, or no answer came."""


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    @classmethod
    async def open(cls, url: str) -> Connection:
        """Connect. Raises OSError."""
        parts = urlsplit(url)
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(cls, parts.hostname or "", parts.port or 80)
        return protocol

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer. Raises Broken."""
        if self._transport is None or self._transport.is_closing():
            raise Broken("the server closed the connection")
        self._buffer = b""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        self._answer = answer
        late = loop.call_later(ANSWER_TIMEOUT_S, self._fail, "no answer in time")
        self._transport.write(request)
        try:
            return await answer
        finally:
            late.cancel()

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or self._answer is None or self._answer.done():
            return
        length = 0
        at = head.lower().find(b"\r\ncontent-length:")
        if at >= 0:
            length = int(head[at + 17 :].split(b"\r\n", 1)[0])
        if len(body) >= length:
            self._answer.set_result((int(head[9:12]), body[:length]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the server hung up")

    def _fail(self, why: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Broken(why))


def request(
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    token: str = "",
    signature: str = "",
    is_last: bool = False,
) -> bytes:
    """A request's bytes. `is_last`: the connection is closed after it, as devices do between polls."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Accept: application/json",
        "User-Agent: Mender/5.1",
    ]
    lines.append(f"Authorization: Bearer {token}" if token else "Authorization: API_KEY")
    if signature:
        lines.append(f"X-MEN-Signature: {signature}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    if is_last:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")
