# SPDX-License-Identifier: Apache-2.0
"""The body of a deployment log upload, made from the log file (device-api.md section 5)."""

from __future__ import annotations

import collections
import json
import re

from update_agent.output import PREFIXES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

LIMIT_BYTES = 1_000_000 - 256
OUTPUT_BYTES = 10 << 10  # of one script or module call are sent in any case
NO_TIMESTAMP = "1970-01-01T00:00:00.000000000Z"
CORRUPTED = "(CORRUPTED LOG DATA)"
INVALID = "(THE ORIGINAL LOGS CONTAINED INVALID ENTRIES)"
TRUNCATED = "(THE ORIGINAL LOGS WERE TOO BIG, THIS LOG IS TRUNCATED. The full log can be found on the device)"

# The server refuses a whole upload for one timestamp it cannot read.
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


def _entry(timestamp: str, level: str, message: str) -> bytes:
    document = {"timestamp": timestamp, "level": level, "message": message}
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def _parse(line: bytes) -> tuple[str, str, str] | None:
    """Timestamp, level and message; None for a line that is not a log entry."""
    try:
        document = json.loads(line)
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    timestamp, level, message = (document.get(key) for key in ("timestamp", "level", "message"))
    if not (isinstance(timestamp, str) and isinstance(level, str) and isinstance(message, str)):
        return None
    return (timestamp, level, message) if _RFC3339.fullmatch(timestamp) else None


class _Entries:
    """The newest entries that fit."""

    def __init__(self, limit_bytes: int) -> None:
        self.kept: collections.deque[bytes] = collections.deque()
        self.has_dropped = False
        self._left = limit_bytes

    def add(self, entry: bytes) -> None:
        self.kept.append(entry)
        self._left -= len(entry) + 1
        while self._left < 0 and self.kept:
            self._left += len(self.kept.popleft()) + 1
            self.has_dropped = True


class _Output:
    """What a script or module printed, up to the next entry of another kind: only its end is kept."""

    def __init__(self) -> None:
        self._lines: collections.deque[tuple[bytes, int]] = collections.deque()
        self._size = self._left_out = 0

    def add(self, entry: bytes, message: str) -> None:
        size = len(message.encode(errors="replace"))
        self._lines.append((entry, size))
        self._size += size
        while self._size - self._lines[0][1] >= OUTPUT_BYTES:
            self._size -= self._lines.popleft()[1]
            self._left_out += 1

    def flush(self, into: _Entries, timestamp: str) -> None:
        if self._left_out:
            into.add(
                _entry(
                    timestamp, "WARNING", f"(THE FIRST {self._left_out} LINES OF THIS OUTPUT ARE LEFT OUT)"
                )
            )
        for entry, _ in self._lines:
            into.add(entry)
        self._lines.clear()
        self._size = self._left_out = 0


def body(lines: Iterable[bytes], limit_bytes: int = LIMIT_BYTES) -> bytes:
    """The JSON body for these log lines; at most about `limit_bytes`.

    If they are more, first the output of each script and module is cut to its end, then the oldest entries
    are dropped. Lines that are not log entries become a note with the last good timestamp, and a first entry
    says so.
    """
    whole, short, output = _Entries(limit_bytes), _Entries(limit_bytes), _Output()
    first = last = ""
    has_invalid = False
    for line in lines:
        if not line.strip():
            continue
        parsed = _parse(line)
        if parsed is None:
            has_invalid = True
            parsed = last or NO_TIMESTAMP, "ERROR", CORRUPTED
        else:
            last = parsed[0]
            first = first or last
        entry = _entry(*parsed)
        whole.add(entry)
        if parsed[2].startswith(PREFIXES):
            output.add(entry, parsed[2])
        else:
            output.flush(short, parsed[0])
            short.add(entry)
    output.flush(short, last or NO_TIMESTAMP)
    notes = []
    if has_invalid:
        notes.append(_entry(first or NO_TIMESTAMP, "ERROR", INVALID))
    if whole.has_dropped:
        notes.append(_entry(first or NO_TIMESTAMP, "WARNING", TRUNCATED))
    entries = short.kept if whole.has_dropped else whole.kept
    return b'{"messages":[' + b",".join([*notes, *entries]) + b"]}"
