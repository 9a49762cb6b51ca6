# SPDX-License-Identifier: Apache-2.0
"""What our agent tells between its reports, when this server asked for it: progress and scripts' results.

Asked for in the answer to a poll: `"live_reports": {"interval_s": 5}`; clients ignore fields they do not
know, and ours sends nothing of this to a server that does not ask. It comes as the substate of ordinary
reports, as JSON, at most once an interval:

    {"live": {"bytes": [1048576, 94371840], "script": "ArtifactInstall_Enter_10_check-disk"},
     "scripts": [["Download_Leave_00_free-space", "exited with 0", 0.41]]}

`live` tells about the status that is reported with it, and never changes the status: it may arrive late.
`scripts` ended since the last report.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

INTERVAL_S = 5
MAX_SCRIPTS = 100
MAX_NAME = 200


@dataclass(frozen=True)
class ScriptEnd:
    """A state script that ended: how, and after how many seconds."""

    name: str
    result: str
    seconds: float


@dataclass(frozen=True)
class Live:
    """Progress of a download, the script that runs now, the ones that ended."""

    is_live: bool
    done_bytes: int | None = None
    size_bytes: int | None = None
    script: str = ""
    ended: tuple[ScriptEnd, ...] = ()


def request() -> dict[str, Any]:
    """The field of a hand-out that asks for it."""
    return {"interval_s": INTERVAL_S}


def parse(substate: str | None) -> Live | None:
    """What a substate says in this form; None for every other text, which stays as it is."""
    if not substate or not substate.startswith('{"'):
        return None
    try:
        value = json.loads(substate)
        if not isinstance(value, dict) or not value or not set(value) <= {"live", "scripts"}:
            return None
        now = value.get("live") or {}
        done, size = now.get("bytes") or (None, None)
        ended = [
            ScriptEnd(str(name)[:MAX_NAME], str(result)[:MAX_NAME], round(float(seconds), 3))
            for name, result, seconds in (value.get("scripts") or [])[:MAX_SCRIPTS]
        ]
        return Live(
            "live" in value,
            None if done is None else _count(done),
            None if size is None else _count(size),
            str(now.get("script") or "")[:MAX_NAME],
            tuple(ended),
        )
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


def _count(value: Any) -> int:
    number = int(value)
    if not 0 <= number < 1 << 62:
        raise ValueError("not a number of bytes")
    return number
