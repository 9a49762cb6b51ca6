# SPDX-License-Identifier: Apache-2.0
"""Run the agent, write down each point at which losing the power could matter, and kill it at one of them.

    python -m update_tools.conform.faults FOLDER AGENT_ARGUMENTS...

Points are what the agent does to the world: data made durable, names changed, programs and children started
and ended, requests to the server. Each is a line in FOLDER/points, `STEP<tab>NAME`, in the order in which
they happened, over all processes of the agent and all its restarts. FOLDER/kill has the one to be killed at:

    NAME<tab>OCCURRENCE<tab>before|after        the n-th point of that name
    *<tab>N<tab>before|after                    the n-th point of this run of the agent

Killed is the agent's main process, by SIGKILL; a child of it at work dies with it. Where the agent sees the
machine's root partitions is read from FOLDER as well (board.py). All else is the agent as it is.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from update_agent import __main__ as agent
from update_agent import connection, machine, slots

if TYPE_CHECKING:
    from collections.abc import Callable

BEFORE, AFTER = "before", "after"
_PROGRAM_ARGUMENTS = 1  # of a program that its points name: a module's call
_ENVIRONMENT_TOOL = "fw_setenv"
_HOST = ("root", "mountinfo", "cmdline", "dev", "sys-ubi", "bootloader", "boot-id")  # as slots.Host has them


class Points:
    """Writes points down, and kills at the chosen one."""

    def __init__(self, folder: str) -> None:
        self._folder = os.path.join(folder, "")
        self._agent = os.getpid()
        self._fd = os.open(self._folder + "points", os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
        self._start = os.pread(self._fd, os.fstat(self._fd).st_size, 0).count(b"\n")
        self._threads = threading.Lock()
        self._chosen = ("", 0, "")
        try:
            with open(self._folder + "kill", encoding="utf-8") as file:
                name, number, side = file.read().rstrip("\n").split("\t")
                self._chosen = (name, int(number), side)
        except (FileNotFoundError, ValueError):
            pass  # nothing to be killed at
        self._step = mmap.mmap(
            -1, 64
        )  # shared with children, which are forked in one step and work in others
        self.programs: dict[int, str] = {}

    def set_step(self, name: str) -> None:
        """The step of the table that the agent is at."""
        self._step[:64] = name.encode().ljust(64)

    def short(self, path: str | bytes | os.PathLike[str]) -> str:
        """A path without the folder."""
        return os.fsdecode(path).replace(self._folder, "")

    def enter(self, name: str) -> bool:
        """Note a point and kill before it if it is the one. Returns whether to kill after it."""
        step = self._step[:64].decode().strip(" \0") or "start"
        line = f"{step}\t{name}\n".encode()
        with self._threads:
            fcntl.lockf(self._fd, fcntl.LOCK_EX)
            before = os.pread(self._fd, os.fstat(self._fd).st_size, 0).splitlines()
            os.write(self._fd, line)
            fcntl.lockf(self._fd, fcntl.LOCK_UN)
        chosen, number, side = self._chosen
        if chosen == "*":
            is_chosen = len(before) - self._start + 1 == number
        else:
            is_chosen = chosen == name and number == 1 + sum(
                each.partition(b"\t")[2].decode() == name for each in before
            )
        if is_chosen and side == BEFORE:
            self.kill()
        return is_chosen

    def kill(self) -> None:
        """End the agent as a power cut or the kernel's out-of-memory killer ends it."""
        os.kill(self._agent, signal.SIGKILL)
        if os.getpid() != self._agent:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name: str, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Do the work of a point."""
        is_chosen = self.enter(name)
        try:
            return work(*arguments, **options)
        finally:
            if is_chosen:
                self.kill()

    def linger(self, program: str) -> None:
        """Have a program that is started now take its time: it is to be there when the agent is not."""
        with open(self._folder + "linger", "w", encoding="utf-8") as file:
            file.write(f"{program}\n")


def install(points: Points) -> None:
    """Put the points around the functions the agent calls."""
    _wrap_files(points)
    _wrap_processes(points)
    _wrap_requests(points)
    perform = machine.Machine.perform

    def named(self: machine.Machine, step: Any) -> str:
        points.set_step(step.name)
        return perform(self, step)

    machine.Machine.perform = named  # type: ignore[method-assign]


def _wrap_files(points: Points) -> None:
    def of_descriptor(work: Callable[..., None], word: str) -> Callable[[int], None]:
        def wrapped(fd: int) -> None:
            path = os.readlink(f"/proc/self/fd/{fd}")
            points.around(f"{word} {points.short(path)}", work, fd)

        return wrapped

    def of_path(work: Callable[..., None], word: str) -> Callable[..., None]:
        def wrapped(path: Any, *arguments: Any, **options: Any) -> None:
            last = arguments[0] if arguments and word != "remove" else path
            points.around(f"{word} {points.short(last)}", work, path, *arguments, **options)

        return wrapped

    os.fsync = of_descriptor(os.fsync, "write")  # type: ignore[assignment]
    os.fdatasync = of_descriptor(os.fdatasync, "write")  # type: ignore[assignment]
    os.replace = of_path(os.replace, "rename to")
    os.rename = of_path(os.rename, "rename to")
    os.link = of_path(os.link, "link")
    os.unlink = of_path(os.unlink, "remove")
    os.rmdir = of_path(os.rmdir, "remove")


def _wrap_processes(points: Points) -> None:
    spawn, fork, waitpid = os.posix_spawn, os.fork, os.waitpid

    def wrapped_spawn(path: Any, argv: list[str], env: Any, **options: Any) -> int:
        arguments = map(points.short, argv[1 : 1 + _PROGRAM_ARGUMENTS])
        name = " ".join([os.path.basename(path), *arguments])
        if os.path.basename(path) == _ENVIRONMENT_TOOL:
            name = "environment write"
        is_chosen = points.enter(f"start {name}")
        if is_chosen:
            points.linger(os.path.basename(path))
        pid = spawn(path, argv, env, **options)
        points.programs[pid] = name
        if is_chosen:
            points.kill()
        return pid

    def wrapped_fork() -> int:
        is_chosen = points.enter("fork")
        pid = fork()
        if pid:
            points.programs[pid] = "child"
            if is_chosen:
                points.kill()
        return pid

    def wrapped_waitpid(pid: int, options: int) -> tuple[int, int]:
        name = points.programs.pop(pid, "")
        if not name:
            return waitpid(pid, options)
        ended: tuple[int, int] = points.around(f"end {name}", waitpid, pid, options)
        return ended

    os.posix_spawn = wrapped_spawn  # type: ignore[assignment]
    os.fork, os.waitpid = wrapped_fork, wrapped_waitpid


def _wrap_requests(points: Points) -> None:
    send = connection.Connector.send

    def wrapped(self: Any, method: str, url: Any, *arguments: Any, **options: Any) -> Any:
        name = f"{method} {'/'.join(url.target.split('/')[-2:])}"
        # After it the server has done what was asked for, and the agent does not know.
        return points.around(name, send, self, method, url, *arguments, **options)

    connection.Connector.send = wrapped  # type: ignore[method-assign]


def main(folder: str, arguments: list[str]) -> int:
    """Run the agent in the folder's machine; arguments are the agent's."""
    slots.Host.__init__.__defaults__ = (*(os.path.join(folder, name) for name in _HOST),)
    install(Points(folder))
    return agent.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
