# SPDX-License-Identifier: Apache-2.0
"""Run the agent on a disk that turns read-only after a number of state-data writes.

    python -m update_tools.conform.full_disk WRITES COUNT_FILE AGENT_ARGUMENTS...

The agent's one place that replaces files fails as such a disk makes it fail (EROFS); all else is the agent.
"""

from __future__ import annotations

import errno
import json
import os
import sys

from update_agent import __main__ as agent
from update_agent import store


def main(allowed: int, count_file: str, arguments: list[str]) -> int:
    """Run the agent; the count of writes so far is kept in a file, for it must survive a kill."""
    replace = store.replace

    def failing(path: str, data: bytes, mode: int = 0o600) -> None:
        if os.path.basename(path) == "update-agent.json":
            count, last = _count(count_file)
            state = json.loads(data)["values"].get("state")
            if count >= allowed:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            if state not in {None, last}:
                replace(count_file, json.dumps([count + 1, state]).encode())
        replace(path, data, mode)

    store.replace = failing
    return agent.main(arguments)


def _count(path: str) -> tuple[int, str | None]:
    try:
        with open(path, encoding="utf-8") as file:
            count, last = json.load(file)
    except FileNotFoundError:
        return 0, None
    return count, last


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
