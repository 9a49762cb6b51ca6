# SPDX-License-Identifier: Apache-2.0
"""The download streams of an update module: FIFOs it opens at its own pace (artifact-v3.md section 11).

How to know that the module opened a FIFO: a blocking `open` for writing returns at exactly that moment, so
one waits in a thread of its own and reports through a pipe. (Opening without blocking would have to be tried
again and again, ENXIO each time; opening for reading and writing never blocks, but does not tell when the
module comes, and hides from us when it closes.) Everything else happens in the one thread that also waits for
the module to end: `Streams.wait` takes the place of the plain wait in `proc.run`.
"""

from __future__ import annotations

import _thread
import os
import select
import time

from update_agent.errors import PayloadError
from update_agent.files import remove_tree
from update_agent.lean import signal
from update_agent.loop import plain_wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from update_agent.slot_writer import Source

    # What the conversation waits for: a descriptor and the poll event on it.
    Wanted = tuple[int, int]

_CHUNK_BYTES = 1 << 18
_TAMPERED = "stream-next and streams/ of the file tree are the agent's: does the module change them?"
# A module that closes a stream early usually exits at once; its exit code tells more than our broken pipe.
_BROKEN_GRACE_S = 5.0
# The module opened a FIFO as its last act: our thread is runnable, but may not have run when we see the exit.
_OPENED_GRACE_MS = 100


class _Opening:
    """A FIFO being opened for writing: `fd` is readable when the module has opened it for reading.

    `handle` is an O_PATH descriptor of it. Not its name: that may lead elsewhere when the module tampers with
    it, and `cancel` must reach the thread.
    """

    def __init__(self, handle: int) -> None:
        self._path = f"/proc/self/fd/{handle}"
        self._opened = -1
        self._error = ""
        self._thread = 0
        self.fd, self._signal = os.pipe2(os.O_CLOEXEC)
        _thread.start_new_thread(self._open, ())

    def _open(self) -> None:
        self._thread = _thread.get_native_id()
        try:
            self._opened = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            self._error = os.strerror(error.errno or 0)
        os.close(self._signal)  # the end of the pipe is the signal

    def is_waiting(self) -> bool:
        """The thread sleeps in open(2): nobody has opened the other end, or it would be runnable.

        It cannot be asleep for the interpreter's lock: that is free during our read(2).
        """
        if not self._thread:
            return False
        try:
            with open(f"/proc/self/task/{self._thread}/stat", "rb", buffering=0) as file:
                return file.read(256).rpartition(b") ")[2][:1] == b"S"
        except OSError:
            return False

    def take(self) -> int:
        """The descriptor, once `fd` is readable. Raises PayloadError if it could not be opened."""
        os.close(self.fd)
        if self._opened < 0:
            raise PayloadError(f"cannot open a FIFO of the update module: {self._error}", hint=_TAMPERED)
        return self._opened

    def cancel(self) -> None:
        """End the thread: be the reader it waits for."""
        reader = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.read(self.fd, 1)
        os.close(reader)
        os.close(self.fd)
        if self._opened >= 0:
            os.close(self._opened)


class _BrokenStream(Exception):
    """The module closed a FIFO that we were writing to."""


class _TimeUp(BaseException):
    """The module's time limit passed while the source kept us waiting. Not for those who catch Exception."""


def _is_readable(fd: int, timeout_ms: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(timeout_ms))


def _closed(fd: int) -> int:
    """-1 in place of a descriptor that is now closed."""
    if fd >= 0:
        os.close(fd)
    return -1


class Streams:
    """Feeds a payload to the module that is running; see `wait`."""

    def __init__(self, module: str, tree: str, files: Iterator[Source], *, with_sizes: bool) -> None:
        """Make `stream-next`; the module, whose path is for messages, may be started then.

        Raises PayloadError.
        """
        self._module = module
        self._tree = tree
        self._files = files
        self._with_sizes = with_sizes
        self._next = -1
        self._stream = -1
        self._directory = os.path.join(tree, "streams")
        self._opening: _Opening | None = None
        self._fd = -1
        self._wanted: Wanted | None = None
        self._talk: Generator[Wanted, None, None] | None = None
        self._broken_at: float | None = None
        self._is_advancing = False
        self._sigpipe = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self.was_asked = False
        self.is_done = False
        self.progress = "nothing"
        self._next = self._make(os.path.join(tree, "stream-next"))

    def _make(self, path: str) -> int:
        """A new FIFO and an O_PATH descriptor of it."""
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            if os.path.lexists(path):
                os.unlink(path)
            os.mkfifo(path, 0o600)
            return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise PayloadError(
                f"cannot make the FIFO {path}: {os.strerror(error.errno or 0)}", hint=_TAMPERED
            ) from error

    # Waiting (in place of loop.plain_wait while the module runs)

    def wait(self, fds: Iterable[int], deadline: float | None) -> list[int]:
        """Wait for `fds` while the module is fed. Errors of the payload's source come up from here.

        A source that has nothing to give does not keep us beyond the deadline; the module gets no more then.
        """
        fds = list(fds)
        if self._talk is None:
            self._talk = self._conversation()
            self._advance(deadline)
        while True:
            if self._broken_at is not None:
                give_up = self._broken_at + _BROKEN_GRACE_S
                ready = plain_wait(fds, give_up if deadline is None else min(deadline, give_up))
                if not ready and time.monotonic() >= give_up:
                    self._raise_broken()
                return ready
            if self._wanted is None:
                return plain_wait(fds, deadline)
            mine = self._poll(fds, deadline)
            if mine is not None:
                return mine

    def _poll(self, fds: list[int], deadline: float | None) -> list[int] | None:
        """One wait; None when only the conversation went on."""
        assert self._wanted is not None
        fd, event = self._wanted
        poller = select.poll()
        for other in fds:
            poller.register(other, select.POLLIN)
        poller.register(fd, event)
        left_ms = None if deadline is None else int(max(0.0, deadline - time.monotonic()) * 1000) + 1
        ready = [number for number, _ in poller.poll(left_ms)]
        mine = [number for number in ready if number != fd]
        if fd in ready:
            self._advance(deadline)
        if mine or (deadline is not None and time.monotonic() >= deadline):
            return mine
        return None

    def _advance(self, deadline: float | None) -> None:
        assert self._talk is not None
        # The source may block in the kernel, in a network read: only a signal gets us out of there.
        before = signal.signal(signal.SIGALRM, self._alarm)
        if deadline is not None:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, deadline - time.monotonic()))
        try:
            self._is_advancing = True
            self._wanted = next(self._talk, None)
        except _BrokenStream:
            self._wanted = None
            self._broken_at = time.monotonic()
        except _TimeUp:
            self._wanted = None  # and the FIFO stays open: its end would look like the end of the file
        finally:
            self._is_advancing = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _alarm(self, *_: object) -> None:
        if self._is_advancing:
            raise _TimeUp

    def _raise_broken(self) -> None:
        raise PayloadError(
            f"update module {self._module}: it closed a stream early ({self.progress})",
            hint="it must read each stream to its end",
        )

    # The conversation: yields what it waits for

    def _conversation(self) -> Generator[Wanted, None, None]:
        from update_agent.modules import safe_name

        yield from self._open(self._next)
        self.was_asked = True
        for file in self._files:
            name = safe_name(file.name)
            self._stream = self._make(os.path.join(self._directory, name))
            if self._fd < 0:  # not for the first file, whose stream-next is open already
                yield from self._open(self._next)
            line = f"streams/{name} {file.size}\n" if self._with_sizes else f"streams/{name}\n"
            self.progress = f"at {line.strip()}"
            self._write(line.encode())
            self._fd = _closed(self._fd)
            yield from self._open(self._stream)
            yield from self._feed(file)
            self._fd = _closed(self._fd)
            self._stream = _closed(self._stream)
        if self._fd < 0:
            yield from self._open(self._next)
        self._fd = _closed(self._fd)  # the empty read: that was all
        self.is_done = True

    def _open(self, handle: int) -> Generator[Wanted, None, None]:
        self._opening = _Opening(handle)
        yield self._opening.fd, select.POLLIN
        opening, self._opening = self._opening, None
        self._fd = opening.take()

    def _feed(self, file: Source) -> Generator[Wanted, None, None]:
        os.set_blocking(self._fd, False)
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        done = 0
        while count := file.readinto(buffer):
            rest = buffer[:count]
            while rest:
                written = self._write(rest)
                if not written:
                    yield self._fd, select.POLLOUT
                    continue
                rest = rest[written:]
                done += written
                self.progress = f"after {done} of {file.size} bytes of {file.name}"

    def _write(self, data: bytes | memoryview) -> int:
        """Bytes the FIFO took; 0 when it is full."""
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except BrokenPipeError as error:
            raise _BrokenStream from error

    # After the module

    def end(self) -> None:
        """The module ended by itself: see whether it had opened a FIFO just before."""
        if self._opening is None:
            return
        for _ in range(_OPENED_GRACE_MS):
            if self.was_asked or self._opening.is_waiting():
                return
            self.was_asked = _is_readable(self._opening.fd, 1)

    def rest(self) -> Iterator[Source]:
        """The payload files, when the module never asked for them."""
        return self._files

    def close(self) -> None:
        """Remove the FIFOs. The module has ended, or was killed, before."""
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        if self._talk is not None:
            self._talk.close()
        self._fd = _closed(self._fd)
        self._next = _closed(self._next)
        self._stream = _closed(self._stream)
        signal.signal(signal.SIGPIPE, self._sigpipe)
        try:
            remove_tree(self._directory)
            remove_tree(os.path.join(self._tree, "stream-next"))
        except OSError:
            pass  # the module's doing; Cleanup deletes the whole tree
