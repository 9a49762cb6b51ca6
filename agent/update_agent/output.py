# SPDX-License-Identifier: Apache-2.0
"""What scripts and modules print, as log lines (state-machine.md section 10, artifact-v3.md section 8)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from update_agent.log import Log

SCRIPT = "Collected output (%s) while running script: "
MODULE = "Update Module output (%s): "
PREFIXES = (SCRIPT.partition("%")[0], MODULE.partition("%")[0])
_MAX_LINE_BYTES = 4096


class OutputLines:
    """Logs chunks of a program's output line by line, each with a prefix that names the stream.

    `prefix` contains one `%s` for `stdout` or `stderr`. After `limit_bytes` of both streams together one line
    says so and the rest is dropped; None means no limit. Lines longer than 4 KiB are broken, so a program
    that never ends its line cannot fill the memory.
    """

    def __init__(self, log: Log, prefix: str, *, limit_bytes: int | None = None) -> None:
        self._log = log
        self._prefix = prefix
        self._limit_bytes = limit_bytes
        self._left_bytes = limit_bytes
        self._is_cut = False
        self._partial = {"stdout": b"", "stderr": b""}

    def feed(self, stream: str, chunk: bytes) -> None:
        """Take the next bytes of "stdout" or "stderr"."""
        if self._is_cut or not chunk:
            return
        if self._left_bytes is not None:
            self._is_cut = len(chunk) > self._left_bytes
            chunk = chunk[: self._left_bytes]
            self._left_bytes -= len(chunk)
        *lines, rest = (self._partial[stream] + chunk).split(b"\n")
        while len(rest) > _MAX_LINE_BYTES:
            lines.append(rest[:_MAX_LINE_BYTES])
            rest = rest[_MAX_LINE_BYTES:]
        self._partial[stream] = rest
        for line in lines:
            self._write(stream, line)
        if self._is_cut:
            self.close()
            self._log.info(f"{self._prefix % stream}[output truncated after {self._limit_bytes} bytes]")

    def close(self) -> None:
        """Log what came after the last line end."""
        for stream, rest in self._partial.items():
            if rest:
                self._write(stream, rest)
                self._partial[stream] = b""

    def _write(self, stream: str, line: bytes) -> None:
        text = line.decode(errors="backslashreplace").replace("\0", "\\x00")
        for part in text.splitlines() or [""]:  # a progress bar's carriage returns
            self._log.info(self._prefix % stream + part)
