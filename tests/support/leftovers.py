# SPDX-License-Identifier: Apache-2.0
"""What this process has open, for tests that nothing stays behind.

Compare sets, not counts: what earlier tests left may go during a test (a thread that was idle, garbage that
held a file).
"""

from __future__ import annotations

import os


def descriptors() -> set[tuple[str, str]]:
    """Open ones, each with what it leads to: a number alone may have been closed and given to another."""
    numbers = [number for number in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{number}")]
    return {(number, os.readlink(f"/proc/self/fd/{number}")) for number in numbers}


def tasks() -> set[str]:
    """Threads, by number."""
    return set(os.listdir("/proc/self/task"))


def children() -> set[int]:
    """Child processes, also ended ones that nobody has waited for; a database of other tests is one."""
    found = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        if parent == os.getpid():
            found.add(int(name))
    return found
