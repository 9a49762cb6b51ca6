# SPDX-License-Identifier: Apache-2.0
"""Programs that an agent left running when it was killed: the next one ends them before it does anything.

A service manager ends them with the agent, and a power cut does; where neither is there, a script that is
still at work would meet the rollback of its own update. What the agent starts is known by its environment,
which names that agent and its datastore, so nothing has to be written down and no moment is missed.
"""

from __future__ import annotations

import os
import time

from update_agent.lean import signal
from update_agent.loop import plain_wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from update_agent.log import Log
    from update_agent.loop import Wait

MARK = "UPDATE_AGENT_PROCESS"  # pid:start time:datastore
_PATIENCE_S = 1.0  # for what is about to end: half a write to the boot environment is worse than a whole one
_KILLED_S = 5.0


def mark(datastore: str) -> None:
    """Have all programs that this process starts carry its name."""
    pid = os.getpid()
    os.environ[MARK] = f"{pid}:{_stat(pid)[19]}:{os.path.abspath(datastore)}"


def end(datastore: str, log: Log, wait: Wait = plain_wait) -> None:
    """End what agents of this datastore that are no more have left running, each with its process group.

    A program that has ended is over, whatever it left behind on purpose.
    """
    left: dict[int, int] = {}  # pidfd: pid
    for pid in _find(os.path.abspath(datastore)):
        try:
            left[os.pidfd_open(pid)] = pid
        except OSError:
            continue  # gone meanwhile
    _await(left, _PATIENCE_S, wait)
    for pid in left.values():
        log.warning(f"Process {pid}, left running by an agent that was killed, is ended")
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    _await(left, _KILLED_S, wait)
    for fd, pid in left.items():
        log.error(f"Process {pid} could not be ended")
        os.close(fd)


def _await(left: dict[int, int], seconds: float, wait: Wait) -> None:
    deadline = time.monotonic() + seconds
    while left:
        ready = wait(list(left), deadline)
        if not ready:
            return
        for fd in ready:
            del left[fd]
            os.close(fd)


def _find(datastore: str) -> Iterator[int]:
    """Programs as `proc.run` starts them, each the leader of its group, whose agent is no more."""
    wanted = f"{MARK}=".encode()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb", buffering=0) as file:
                marks = [entry for entry in (file.read() or b"").split(b"\0") if entry.startswith(wanted)]
            if not marks or _stat(int(name))[2] != name:
                continue
            pid, start, where = os.fsdecode(marks[0][len(wanted) :]).split(":", 2)
            if where == datastore and not _is_alive(pid, start):
                yield int(name)
        except (OSError, ValueError, IndexError):
            continue  # it ended meanwhile, or its environment is not for us to read


def _is_alive(pid: str, start: str) -> bool:
    """Whether the process is there that had this pid and start time; a zombie is not."""
    try:
        stat = _stat(int(pid))
    except OSError:
        return False
    return stat[19] == start and stat[0] not in {"Z", "X"}


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on: 0 state, 2 process group, 19 start time."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()
