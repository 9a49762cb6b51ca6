# SPDX-License-Identifier: Apache-2.0
"""The body of a deployment log upload, made from the log file (device-api.md section 5)."""

from __future__ import annotations

import collections
import json
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

LIMIT_BYTES = 1_000_000 - 256
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


def body(lines: Iterable[bytes], limit_bytes: int = LIMIT_BYTES) -> bytes:
    """The JSON body for these log lines; at most about `limit_bytes`, the oldest entries are dropped first.

    Lines that are not log entries become a note with the last good timestamp, and a first entry says so.
    """
    entries: collections.deque[bytes] = collections.deque()
    size = 0
    first = last = ""
    has_invalid = is_truncated = False
    for line in lines:
        if not line.strip():
            continue
        parsed = _parse(line)
        if parsed is None:
            has_invalid = True
            entry = _entry(last or NO_TIMESTAMP, "ERROR", CORRUPTED)
        else:
            last = parsed[0]
            first = first or last
            entry = _entry(*parsed)
        entries.append(entry)
        size += len(entry) + 1
        while size > limit_bytes and entries:
            size -= len(entries.popleft()) + 1
            is_truncated = True
    notes = []
    if has_invalid:
        notes.append(_entry(first or NO_TIMESTAMP, "ERROR", INVALID))
    if is_truncated:
        notes.append(_entry(first or NO_TIMESTAMP, "WARNING", TRUNCATED))
    return b'{"messages":[' + b",".join([*notes, *entries]) + b"]}"
