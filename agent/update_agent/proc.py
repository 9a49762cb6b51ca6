# SPDX-License-Identifier: Apache-2.0
"""Run a program: own process group, time limit, output as it comes (`subprocess` costs 2.5 MB resident)."""

from __future__ import annotations

import os
import select
import time

from update_agent.errors import ProcError
from update_agent.lean import signal
from update_agent.loop import plain_wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from update_agent.loop import Wait

_CHUNK = 1 << 16
# Signals that Python ignores or we handle; programs get them as they are.
_OURS = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]


class Result:
    """How a program ended."""

    __slots__ = ("code", "seconds", "signal", "timed_out")

    def __init__(self, code: int | None, signal_number: int | None, timed_out: bool, seconds: float) -> None:
        self.code = code
        self.signal = signal_number
        self.timed_out = timed_out
        self.seconds = seconds

    @property
    def ok(self) -> bool:
        """Exit code 0, in time."""
        return self.code == 0 and not self.timed_out

    def describe(self) -> str:
        """The end in words: `exited with 3`, `was killed by signal 9`, `ran into its time limit …`."""
        if self.timed_out:
            return f"ran into its time limit after {self.seconds:.1f} s and was killed"
        if self.signal is not None:
            return f"was killed by signal {self.signal}"
        return f"exited with {self.code}"


def _find(program: str, env: Mapping[str, str]) -> str:
    if "/" in program:
        return program
    for directory in env.get("PATH", os.defpath).split(":"):
        candidate = os.path.join(directory, program)
        if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            return candidate
    raise ProcError(f"cannot start {program}: not found on PATH", hint="is its package in the image?")


def _spawn(argv: Sequence[str], env: Mapping[str, str], cwd: str | None, stdio: tuple[int, int, int]) -> int:
    """Start the program in a process group of its own and return its pid."""
    actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(stdio)]
    path = _find(argv[0], env)
    # posix_spawn cannot change the directory. This process has one thread whenever it spawns with cwd.
    here = os.open(".", os.O_RDONLY | os.O_CLOEXEC) if cwd is not None else -1
    try:
        if cwd is not None:
            os.chdir(cwd)
        return os.posix_spawn(
            path,
            list(argv),
            dict(env),
            file_actions=actions,
            setpgroup=0,
            setsigdef=_OURS,
            setsigmask=[],
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in arguments or environment
        reason = (isinstance(error, OSError) and error.errno and os.strerror(error.errno)) or str(error)
        raise ProcError(
            f"cannot start {path}: {reason}", hint="executable, with a valid #! line and interpreter?"
        ) from error
    finally:
        if here >= 0:
            os.fchdir(here)
            os.close(here)


class _Running:
    """One started program: its pid, its pidfd and the read ends of its output."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: str | None, stdin: bytes) -> None:
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        err_read, err_write = os.pipe2(os.O_CLOEXEC)
        in_fd = _input(stdin)
        try:
            self.pid = _spawn(argv, env, cwd, (in_fd, out_write, err_write))
        except BaseException:
            os.close(out_read)
            os.close(err_read)
            raise
        finally:
            os.close(in_fd)
            os.close(out_write)
            os.close(err_write)
        self.pidfd = os.pidfd_open(self.pid)
        self.pipes = {out_read: "stdout", err_read: "stderr"}
        self.status: int | None = None

    def kill(self, number: int) -> None:
        """Signal the whole group; gone is fine."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass

    def pump(self, fd: int, on_output: Callable[[str, bytes], None] | None) -> bool:
        """Move one chunk of output; False when the pipe is at its end (and then closed)."""
        chunk = os.read(fd, _CHUNK)
        if not chunk:
            os.close(fd)
            del self.pipes[fd]
            return False
        if on_output is not None:
            on_output(self.pipes[fd], chunk)
        return True

    def drain(self, on_output: Callable[[str, bytes], None] | None) -> None:
        """Take what is in the pipes now, without waiting for processes the program left behind.

        One read each is all that was there at the end; reading on could follow a chatty one of them forever.
        """
        for fd in list(self.pipes):
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            if poller.poll(0):
                self.pump(fd, on_output)

    def close(self) -> None:
        """Reap the program (killing it if it still runs) and close everything."""
        if self.status is None:
            self.kill(signal.SIGKILL)
            self.status = os.waitpid(self.pid, 0)[1]
        for fd in list(self.pipes):
            os.close(fd)
        self.pipes.clear()
        os.close(self.pidfd)


def _input(data: bytes) -> int:
    """A descriptor that reads as `data`."""
    if not data:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    if len(data) <= select.PIPE_BUF:
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        os.write(write_fd, data)
        os.close(write_fd)
        return read_fd
    fd = os.memfd_create("stdin")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    on_output: Callable[[str, bytes], None] | None = None,
    stdin: bytes = b"",
    grace_s: float = 0.0,
    wait: Wait = plain_wait,
) -> Result:
    """Run a program to its end and return how it ended; `on_output` gets ("stdout" | "stderr", chunk).

    At the time limit the process group gets SIGTERM and `grace_s` later SIGKILL (at once when 0). Processes
    left behind by a program that ended by itself are not waited for and not killed. An exception in
    `on_output` or `wait` kills the group and goes on up. Raises ProcError if the program cannot be started.
    """
    started = time.monotonic()
    deadline: float | None = started + timeout_s
    timed_out = terminated = False
    running = _Running(argv, os.environ if env is None else env, cwd, stdin)
    try:
        while running.status is None:
            ready = wait([running.pidfd, *running.pipes], deadline)
            # Looked at after every wait: a program that never stops printing has a limit as well.
            if running.pidfd not in ready and deadline is not None and time.monotonic() >= deadline:
                timed_out = True
                if grace_s > 0 and not terminated:
                    running.kill(signal.SIGTERM)
                    terminated, deadline = True, time.monotonic() + grace_s
                else:
                    running.kill(signal.SIGKILL)
                    deadline = None
            for fd in ready:
                if fd in running.pipes:
                    running.pump(fd, on_output)
            if running.pidfd in ready:
                if timed_out:
                    running.kill(signal.SIGKILL)  # the rest of a group whose leader obeyed SIGTERM
                running.status = os.waitpid(running.pid, 0)[1]
                running.drain(on_output)
        code = os.waitstatus_to_exitcode(running.status)
    finally:
        running.close()
    seconds = time.monotonic() - started
    return Result(code if code >= 0 else None, -code if code < 0 else None, timed_out, seconds)


def output(
    argv: Sequence[str],
    *,
    timeout_s: float,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    limit_bytes: int = 1 << 20,
    grace_s: float = 0.0,
    wait: Wait = plain_wait,
) -> tuple[Result, bytes, bytes]:
    """Run a program and return how it ended, its stdout and its stderr, each cut at `limit_bytes`."""
    kept: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    sizes = {"stdout": 0, "stderr": 0}

    def keep(stream: str, chunk: bytes) -> None:
        room = limit_bytes - sizes[stream]
        if room > 0:
            kept[stream].append(chunk[:room])
            sizes[stream] += min(room, len(chunk))

    result = run(
        argv,
        timeout_s=timeout_s,
        cwd=cwd,
        env=env,
        on_output=keep,
        stdin=stdin,
        grace_s=grace_s,
        wait=wait,
    )
    return result, b"".join(kept["stdout"]), b"".join(kept["stderr"])
