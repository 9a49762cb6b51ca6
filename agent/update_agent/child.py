# SPDX-License-Identifier: Apache-2.0
"""Work in a forked child that ends, so that the idle daemon never imports HTTP, TLS or decompressors.

The two sides speak JSON lines over a pair of pipes (a socket pair would need the `socket` module in the
resident process): the child sends messages and, last, its result or its error; the parent sends the answer
to each question. The child logs by itself, through the descriptors it inherited.

`run` is for one piece of work. A `Helper` keeps its child between tasks, with all that it has imported and
its connections, until it is told to rest.
"""

from __future__ import annotations

import os
import sys
import time

from update_agent import errors
from update_agent.errors import TransferError, UpdateError
from update_agent.lean import json, signal
from update_agent.loop import plain_wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn, Protocol

    from update_agent.loop import Wait

    class Log(Protocol):
        def debug(self, message: str) -> None: ...
        def warning(self, message: str) -> None: ...
        def error(self, message: str) -> None: ...


_CHUNK = 1 << 16
_PR_SET_PDEATHSIG = 1
_PATIENCE_S = 5.0  # with a task that may be given up
_LOOK_S = 0.5  # after that, between two looks whether it is
_GRACE_S = 2.0  # for a child told to stop: time to end the programs it runs


class _Stop(BaseException):
    """The parent told the child to stop (SIGTERM)."""


class Channel:
    """The child's side of the conversation."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._rest = b""

    def send(self, message: dict[str, object]) -> None:
        """Tell the parent something; its `answer` gets the message."""
        self.write({"say": message})

    def ask(self, message: dict[str, object]) -> dict[str, object]:
        """Ask the parent something and wait for what its `answer` returns (an empty object for None)."""
        self.write({"ask": message})
        answer = self.take()
        if answer is None:
            raise TransferError("the parent process closed the connection")
        return answer

    def take(self) -> dict[str, object] | None:
        """The next thing the parent says; None when it wants the child to end."""
        while b"\n" not in self._rest:
            chunk = os.read(self._read_fd, _CHUNK)
            if not chunk:
                return None
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        document: dict[str, object] | None = json.loads(line)
        return document

    def write(self, document: dict[str, object]) -> None:
        """Send one line of the protocol."""
        _write_line(self._write_fd, document)


def _write_line(fd: int, document: object) -> None:
    view = memoryview(json.dumps(document).encode() + b"\n")
    while view:
        view = view[os.write(fd, view) :]


def _stop(_number: int, _frame: object) -> NoReturn:
    raise _Stop


def _settle(parent: int) -> None:
    """Make the forked process a child of its own: signals, and death when the parent dies."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent decides
    signal.signal(signal.SIGTERM, _stop)  # unwinds, so that programs the child runs are ended too
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def kill_programs() -> None:
    """Kill the programs this process started, with their groups.

    `proc.run` does that while unwinding, but the signal may come between the start and its `try`.
    """
    own_pid = os.getpid()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                _state, parent, group = file.read().rpartition(b")")[2].split()[:3]
            if int(parent) == own_pid:
                os.kill(int(name), signal.SIGKILL)
                if int(group) == int(name):
                    os.killpg(int(group), signal.SIGKILL)
        except (OSError, ValueError):
            continue  # it ended meanwhile


def _error_document(error: UpdateError) -> dict[str, object]:
    names = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, UpdateError)]
    return {"error": names, "message": error.message, "hint": error.hint}


def _in_child(work: Callable[[Channel], object], channel: Channel, parent: int, log: Log) -> int:
    """Do the work and send its outcome. Returns the exit code; nothing is raised."""
    try:
        _settle(parent)
        channel.write({"result": work(channel)})
        return 0
    except _Stop:
        kill_programs()
        return 1
    except BrokenPipeError:
        return 1  # the parent is gone or gave up
    except UpdateError as error:
        document = _error_document(error)
    except MemoryError:
        document = {"error": ["TransferError"], "message": "the child process ran out of memory", "hint": ""}
    except BaseException as error:
        import traceback

        log.error(traceback.format_exc())
        document = {
            "error": ["TransferError"],
            "message": f"the child process failed: {type(error).__name__}: {error}",
            "hint": "this is a bug in the agent; the log has the details",
        }
    try:
        channel.write(document)
    except OSError:
        pass
    return 1


def _raise_again(document: dict[str, object]) -> NoReturn:
    """Raise the child's error as the nearest class that `errors` has."""
    names = document["error"]
    for name in names if isinstance(names, list) else []:
        kind = getattr(errors, str(name), None)
        if isinstance(kind, type) and issubclass(kind, UpdateError):
            raise kind(str(document["message"]), hint=str(document["hint"]))
    raise UpdateError(str(document["message"]), hint=str(document["hint"]))


class _Child:
    """The parent's side: the process, its pipes, and what has come in so far."""

    def __init__(self, pid: int, read_fd: int, write_fd: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.read_fd = read_fd
        self.write_fd = write_fd
        self._rest = b""
        self.outcome: dict[str, object] | None = None
        self.status: int | None = None

    def receive(self, answer: Callable[[dict[str, object]], dict[str, object] | None] | None) -> bool:
        """Handle what can be read now; False when the child closed its end (it is ending)."""
        chunk = os.read(self.read_fd, _CHUNK)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            document = json.loads(line)
            if "say" in document:
                if answer is not None:
                    answer(document["say"])
            elif "ask" in document:
                reply = answer(document["ask"]) if answer is not None else None
                try:
                    _write_line(self.write_fd, reply or {})
                except BrokenPipeError:
                    pass  # it died; the end of the pipe follows
            else:
                self.outcome = document
        return bool(chunk)

    def has_ended(self) -> bool:
        """Look whether the process is over, without waiting."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def reap(self) -> int:
        """Wait for the end and return the exit code, negative for a signal."""
        if self.status is None:
            self.status = os.waitpid(self.pid, 0)[1]
        return os.waitstatus_to_exitcode(self.status)

    def close(self) -> None:
        """End the child if it still runs (first politely), reap it, and close everything."""
        os.close(self.read_fd)
        os.close(self.write_fd)
        try:
            if self.status is None:
                os.kill(self.pid, signal.SIGTERM)
                if not plain_wait([self.pidfd], time.monotonic() + _GRACE_S):
                    os.kill(self.pid, signal.SIGKILL)
                self.reap()
        finally:
            os.close(self.pidfd)


def _death(code: int, what: str) -> TransferError:
    """The error for a child that ended without a word."""
    if code == -signal.SIGKILL:
        hint = "probably out of memory: see the kernel's log"
        return TransferError(f"the child process for {what} was killed (signal 9)", hint=hint)
    if code < 0:
        return TransferError(f"the child process for {what} was killed by signal {-code}")
    return TransferError(f"the child process for {what} ended with code {code} and no result")


def _flush() -> None:
    """Write out what is buffered, or the child would have a copy of it to write as well."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass  # closed, or there is none


class Work:
    """A child at work. Read from `read_fd` with `receive` until that returns False, then ask for `result`."""

    def __init__(self, work: Callable[[Channel], object], *, log: Log, what: str = "network work") -> None:
        """Fork. Call it from the main thread, while there is no other."""
        self.what = what
        up_read, up_write = os.pipe2(os.O_CLOEXEC)
        down_read, down_write = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        _flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(up_read)
                os.close(down_write)
                code = _in_child(work, Channel(down_read, up_write), parent, log)
            finally:
                os._exit(code)  # never back into the parent's stack
        os.close(up_write)
        os.close(down_read)
        self._child = _Child(pid, up_read, down_write)
        self.read_fd = up_read
        self.receive = self._child.receive
        self.close = self._child.close

    @property
    def is_over(self) -> bool:
        """The child has ended, by itself or by a signal."""
        return self._child.has_ended()

    @property
    def has_outcome(self) -> bool:
        """A result or an error has come."""
        return self._child.outcome is not None

    def tell(self, document: object) -> None:
        """Say something to a child that is in `Channel.take`, or soon. If it is dead, `receive` will tell."""
        try:
            _write_line(self._child.write_fd, document)
        except BrokenPipeError:
            pass

    def take_outcome(self) -> object:
        """`result` of a child that goes on: what it wrote last, or its error."""
        outcome, self._child.outcome = self._child.outcome, None
        if outcome is None:
            raise _death(self._child.reap(), self.what)
        if "error" in outcome:
            _raise_again(outcome)
        return outcome["result"]

    def dismiss(self) -> None:
        """Have a child that waits in `Channel.take` end by itself; then close everything."""
        self.tell(None)
        plain_wait([self._child.pidfd], time.monotonic() + _GRACE_S)
        self.close()

    def result(self) -> object:
        """What `work` returned, after its end. Raises its UpdateError again, or TransferError."""
        self._child.reap()
        return self.take_outcome()


def run(
    work: Callable[[Channel], object],
    *,
    answer: Callable[[dict[str, object]], dict[str, object] | None] | None = None,
    log: Log,
    wait: Wait = plain_wait,
    what: str = "network work",
) -> object:
    """Run `work` in a forked child and return its result, which must be representable in JSON.

    `answer` gets each message of the child; what it returns goes back to an `ask`. An UpdateError in the
    child is raised here as the same class with message and hint; any other end without a result is a
    TransferError. `wait` may serve other descriptors meanwhile. If it or `answer` raises, the child is ended
    first. The child dies with this process. Call it from the main thread, while there is no other.
    """
    process = Work(work, log=log, what=what)
    try:
        while True:
            if wait([process.read_fd], None) and not process.receive(answer):
                break
        return process.result()
    finally:
        process.close()


class Helper:
    """A child for one task after the other: started for the first, ended by `rest` or by an error.

    One that died meanwhile is replaced. `perform` runs in the child, with the channel and a task; both the
    task and what it returns must be representable in JSON.
    """

    def __init__(
        self, perform: Callable[[Channel, dict[str, object]], object], *, log: Log, wait: Wait = plain_wait
    ) -> None:
        self._perform = perform
        self._log = log
        self._wait = wait
        self._process: Work | None = None

    def ask(
        self,
        task: dict[str, object],
        answer: Callable[[dict[str, object]], dict[str, object] | None] | None = None,
        *,
        what: str,
        give_up: Callable[[], bool] | None = None,
    ) -> object:
        """Have the task performed and return its result; messages, errors and dying as with `run`.

        A task that takes long ends in a TransferError once `give_up` says that something else matters more.
        """
        process, look_at = self._process, time.monotonic() + _PATIENCE_S
        if process is None or process.is_over:
            self.rest()
            self._process = process = Work(self._serve, log=self._log)
        process.what = what
        try:
            process.tell(task)
            while not process.has_outcome:
                if self._wait([process.read_fd], look_at if give_up else None):
                    if not process.receive(answer):
                        break
                elif give_up is not None and give_up():
                    raise TransferError(
                        f"{what} was given up: nothing came, and something else is to be done"
                    )
                look_at = max(look_at, time.monotonic() + _LOOK_S)
            return process.take_outcome()
        except BaseException:
            self._process = None
            process.close()
            raise

    def rest(self) -> None:
        """End the child, if there is one; the next task starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.dismiss()

    def _serve(self, channel: Channel) -> None:
        while (task := channel.take()) is not None:
            channel.write({"result": self._perform(channel, task)})
