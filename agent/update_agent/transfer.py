# SPDX-License-Identifier: Apache-2.0
"""Download with resume (device-api.md section 7). Only imported in a child process."""

from __future__ import annotations

import time

from update_agent import connection
from update_agent.connection import Connector, Url, without_query
from update_agent.errors import ServerError, TransferError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from update_agent.config import Config
    from update_agent.http1 import Connection, Response

    class Stream(Protocol):
        """Bytes in order, from a download or a file."""

        def read(self, size: int) -> bytes: ...
        def readinto(self, buffer: memoryview) -> int: ...
        def close(self) -> None: ...

    class Log(Protocol):
        def info(self, message: str) -> None: ...
        def warning(self, message: str) -> None: ...


RETRY_WAIT_S = 60.0
_MAX_REDIRECTS = 10
_EXPIRED = {400, 401, 403, 404, 410}  # what storage services answer to signed links of yesterday
_REDIRECTS = {301, 302, 303, 307, 308}


class _Broken(Exception):
    """The connection broke or could not be made; the rest may still come."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def range_error(content_range: str, start: int, length: int) -> str:
    """Why a 206 answer does not continue at `start` of `length` bytes; empty if it does."""
    unit, _, part = content_range.strip().partition(" ")
    span, _, total = part.partition("/")
    first, _, last = span.partition("-")
    numbers = (first, last, total if total != "*" else "0")
    if unit != "bytes" or not all(number.isascii() and number.isdigit() for number in numbers):
        return f"its Content-Range is {content_range!r}"
    if int(first) != start or int(last) != length - 1:
        return f"it has bytes {first}-{last} instead of {start}-{length - 1}"
    if total not in {"*", str(length)}:
        return f"the file has {total} bytes now instead of {length}"
    return ""


class Download:
    """A stream of the bytes behind a URL that survives broken connections.

    `length` is the size the server announced, None if it did not; then a break is final. All the waits for
    `retry_count` resumes go through `sleep`. `progress` gets (received, length) after each piece. `renew`
    gives a fresh link to the same file (empty: there is none) when the server refuses to resume from the old
    one: signed links expire. That is ours; the reference fails then.
    """

    def __init__(
        self,
        config: Config,
        log: Log,
        *,
        progress: Callable[[int, int | None], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        connector: Connector | None = None,
        renew: Callable[[], str] | None = None,
        timeout_s: float = connection.STALL_TIMEOUT_S,
    ) -> None:
        self._log = log
        self._progress = progress
        self._sleep = sleep
        self._timeout_s = timeout_s
        self._connector = connector or Connector(config)
        self._renew = renew
        self._etag = ""
        self._retry_count = config.retry_download_count
        self._url = ""
        self._connection: Connection | None = None
        self._response: Response | None = None
        self._started = False
        self._retries = 0
        self.received = 0
        self.length: int | None = None

    def open(self, url: str) -> Download:
        """Send the request and return the stream once the answer has begun. Raises TransferError."""
        self._url = url
        while self._response is None:
            try:
                self._connect()
            except _Broken as broken:
                self._wait_for_retry(broken)
        return self

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" at the end. Raises TransferError when the rest cannot be had."""
        data = bytearray(size)
        count = self.readinto(memoryview(data))
        return bytes(memoryview(data)[:count])

    def readinto(self, buffer: memoryview) -> int:
        """Put some bytes into `buffer` and return their number; 0 at the end. Errors as `read`."""
        while buffer and self.received != self.length:
            try:
                count = self._receive(buffer)
            except _Broken as broken:
                self._wait_for_retry(broken)
                continue
            if count == 0:
                break  # the end, where no length was announced
            self.received += count
            if self._progress is not None:
                self._progress(self.received, self.length)
            return count
        return 0

    def close(self) -> None:
        """Drop the connection. Fine at any time, and twice."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._response = None

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self, view: memoryview) -> int:
        """Some bytes of the body; 0 only at a proper end. Raises _Broken."""
        if self._response is None:
            self._connect()
        assert self._response is not None
        try:
            # Bytes that arrived before an error here are not counted, so they are asked for again.
            count = self._response.readinto(view)
        except connection.ERRORS as error:
            raise _Broken(*connection.explain(error)) from error
        if count == 0 and self.length is not None:
            raise _Broken("the connection ended early")
        return count

    def _wait_for_retry(self, broken: _Broken) -> None:
        """After a break: close, and wait if another try is allowed. Raises TransferError if not."""
        self.close()
        where = f"download of {without_query(self._url)}"
        if self._started:
            where += f" broke after {self.received} bytes"
        else:
            where += " could not be started"
        if self._started and self.length is None:
            raise TransferError(
                f"{where}: {broken.reason}", hint="no Content-Length, so it cannot be resumed"
            )
        if self._retries >= self._retry_count:
            raise TransferError(
                f"{where}: {broken.reason}; gave up after {self._retries} retries", hint=broken.hint
            )
        self._retries += 1
        hint = f" ({broken.hint})" if broken.hint else ""
        self._log.warning(
            f"The {where}: {broken.reason}{hint}. "
            f"Retry {self._retries} of {self._retry_count} in {RETRY_WAIT_S:.0f} s"
        )
        self._sleep(RETRY_WAIT_S)

    def _connect(self) -> None:
        """Ask for the whole, or after a break for the rest. Raises _Broken; TransferError: a wrong answer."""
        headers = {"Accept": "*/*"}
        if self._started:
            assert self.length is not None
            headers["Range"] = f"bytes={self.received}-{self.length - 1}"
        response = self._follow(headers)
        if self._started and self._renew is not None and response.status in _EXPIRED:
            self.close()
            self._renew_link(response.status)
            response = self._follow(headers)
        if self._started:
            self._check_resumed(response)
            self._log.info(f"The download goes on at byte {self.received}")
        else:
            if response.status != 200:
                raise self._refused(response.status)
            self.length = response.length  # None for a chunked body
            self._etag = response.getheader("ETag", "")
            self._started = True
        self._response = response

    def _check_resumed(self, response: Response) -> None:
        if response.status != 206:
            raise self._refused(response.status)
        assert self.length is not None
        reason = range_error(response.getheader("Content-Range", ""), self.received, self.length)
        etag = response.getheader("ETag", "")
        if not reason and etag != self._etag and '"' == etag[:1] == self._etag[:1]:  # W/"…" may differ
            reason = "it has another ETag"
        if not reason and response.length not in {None, self.length - self.received}:
            reason = f"it has {response.length} bytes instead of {self.length - self.received}"
        if reason:
            self.close()
            raise TransferError(
                f"cannot resume the download of {without_query(self._url)}: {reason}",
                hint="has the file changed on the server?",
            )

    def _renew_link(self, status: int) -> None:
        """Have a fresh link in place of one that was answered so. Raises _Broken, TransferError."""
        assert self._renew is not None
        try:
            link = self._renew()
        except ServerError as error:
            raise _Broken(f"the link was answered with {status}, and {error.message}", error.hint) from error
        if not link:
            raise self._refused(status)
        self._log.info(f"The link was answered with {status}, going on with a fresh one")
        self._url = link

    def _follow(self, headers: dict[str, str]) -> Response:
        """The answer after redirects. Always from the given URL on: redirect targets may expire."""
        url = self._parse(self._url)
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                self._connection, response = self._connector.send(
                    "GET", url, headers, timeout_s=self._timeout_s
                )
            except connection.ERRORS as error:
                raise _Broken(*connection.explain(error)) from error
            if response.status not in _REDIRECTS:
                return response
            target = response.getheader("Location", "")
            self.close()
            following = self._parse(url.resolve(target))
            if url.is_tls and not following.is_tls:
                raise TransferError(
                    f"{without_query(url.text)} redirects from https to http, which is not followed"
                )
            url = following
        raise TransferError(f"{without_query(self._url)} redirects more than {_MAX_REDIRECTS} times")

    def _parse(self, text: str) -> Url:
        try:
            return Url(text)
        except ServerError as error:
            raise TransferError(f"cannot download: {error.message}", hint=error.hint) from error

    def _refused(self, status: int) -> TransferError:
        self.close()
        doing = "resuming" if self._started else "starting"
        hint = ""
        if status == 403:
            hint = "the link has probably expired; the next deployment gets a new one"
        return TransferError(
            f"{doing} the download of {without_query(self._url)}: the server answered {status}", hint=hint
        )
