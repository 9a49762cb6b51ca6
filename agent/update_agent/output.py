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
# Each line becomes an entry of some 150 bytes more in the log, so short ones have a limit of their own.
_MAX_LINES = 10 << 10
_BYTES_PER_LINE = 32
_TAIL_BYTES = 2048


class OutputLines:
    """Logs chunks of a program's output line by line, each with a prefix that names the stream.

    `prefix` contains one `%s` for `stdout` or `stderr`. After `limit_bytes` of both streams together, or
    very many lines, one line says so and what follows is left out but for its end, where a program tells why
    it failed; None means no limit. Lines longer than 4 KiB are broken, so a program that never ends its line
    cannot fill the memory.
    """

    def __init__(self, log: Log, prefix: str, *, limit_bytes: int | None = None) -> None:
        self._log = log
        self._prefix = prefix
        self._limit_bytes = limit_bytes
        self._left_bytes = limit_bytes
        self._limit_lines = max(_MAX_LINES, (limit_bytes or 0) // _BYTES_PER_LINE)
        self._lines = 0
        self._is_cut = False
        self._partial = {"stdout": b"", "stderr": b""}
        self._tail = {"stdout": b"", "stderr": b""}

    def feed(self, stream: str, chunk: bytes) -> None:
        """Take the next bytes of "stdout" or "stderr"."""
        if self._is_cut:
            self._keep(stream, chunk)
            return
        rest = b""
        if self._left_bytes is not None:
            chunk, rest = chunk[: self._left_bytes], chunk[self._left_bytes :]
            self._left_bytes -= len(chunk)
        *lines, partial = (self._partial[stream] + chunk).split(b"\n")
        while len(partial) > _MAX_LINE_BYTES:
            lines.append(partial[:_MAX_LINE_BYTES])
            partial = partial[_MAX_LINE_BYTES:]
        self._partial[stream] = b""
        for number, line in enumerate(lines):
            if self._limit_bytes is not None and self._lines >= self._limit_lines:
                self._cut(stream, f"{self._lines} lines")
                self._keep(stream, b"\n".join([*lines[number:], partial]) + rest)
                return
            self._write(stream, line)
        self._partial[stream] = partial
        if rest:
            self._write_partial()
            self._cut(stream, f"{self._limit_bytes} bytes")
            self._keep(stream, rest)

    def close(self) -> None:
        """Log what came after the last line end, or the end of what was left out."""
        self._write_partial()
        for stream, tail in self._tail.items():
            self._tail[stream] = b""
            if len(tail) > _TAIL_BYTES:
                tail = tail[1:].partition(b"\n")[2] or tail[1:]
            for line in tail.removesuffix(b"\n").split(b"\n") if tail else ():
                self._write(stream, line)

    def _cut(self, stream: str, limit: str) -> None:
        self._is_cut = True
        self._log.info(f"{self._prefix % stream}[output truncated after {limit}]")

    def _keep(self, stream: str, data: bytes) -> None:
        """Of what is left out the end, and one byte more if there was more."""
        self._tail[stream] = (self._tail[stream] + data)[-_TAIL_BYTES - 1 :]

    def _write_partial(self) -> None:
        for stream, partial in self._partial.items():
            if partial:
                self._write(stream, partial)
                self._partial[stream] = b""

    def _write(self, stream: str, line: bytes) -> None:
        text = line.decode(errors="backslashreplace").replace("\0", "\\x00")
        for part in text.splitlines() or [""]:  # a progress bar's carriage returns
            self._lines += 1
            self._log.info(self._prefix % stream + part)
