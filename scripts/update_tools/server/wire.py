# SPDX-License-Identifier: Apache-2.0
"""Connections that must say what they want in time; uvicorn alone waits for a request's head for ever."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

HEAD_S = 20.0  # from connecting, or from a request's first byte, to the end of its head
SEND_STALL_S = 300.0  # device-api.md section 1: a transfer without progress for so long is broken

LATE = (
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: 45\r\n\r\n"
    b'{"error":"the request did not come in time"}\n'
)


class TimedProtocol(H11Protocol):
    """HTTP/1.1 with time limits for a request's head and for taking the answer; bodies.py has the body's."""

    _head_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._waits_for_head():
            if self._head_timer is None:
                self._arm()
        else:
            self._disarm()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._waits_for_head():  # the next request has begun, and its rest may not come
            self._arm()

    def pause_writing(self) -> None:
        super().pause_writing()
        # The transport's close() would wait for what nobody takes.
        self._send_timer = self.loop.call_later(SEND_STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._forget_send_timer()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._forget_send_timer()
        super().connection_lost(exc)

    def _forget_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _waits_for_head(self) -> bool:
        """Whether a request's head is due: nothing came yet, or a part of a head."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None:
            return True
        return cycle.response_complete and bool(self.conn.trailing_data[0])

    def _arm(self) -> None:
        self._disarm()
        self._head_timer = self.loop.call_later(HEAD_S, self._too_late)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_late(self) -> None:
        self._head_timer = None
        if self._waits_for_head() and not self.transport.is_closing():
            self.transport.write(LATE)
            self.transport.close()
