# SPDX-License-Identifier: Apache-2.0
"""The one place where the process waits: file descriptors, a deadline, and callbacks served meanwhile."""

from __future__ import annotations

import os
import select
import time

from update_agent.lean import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol

    class Wait(Protocol):
        def __call__(self, fds: Iterable[int], deadline: float | None) -> list[int]:
            """Return those of `fds` that are readable, or [] when time.monotonic() reached `deadline`."""


_LONGEST_MS = (
    24 * 3600 * 1000.0
)  # poll() takes no more than 31 bits; a deadline may be far away, even infinite


def _poll(poller: select.poll, deadline: float | None) -> list[int]:
    """Readable descriptors; [] when the deadline has passed."""
    while True:
        left_ms = None if deadline is None else min(max(0.0, deadline - time.monotonic()) * 1000, _LONGEST_MS)
        # Round up: waking a millisecond early would spin until the deadline.
        ready = [fd for fd, _ in poller.poll(None if left_ms is None else int(left_ms) + 1)]
        if ready or (deadline is not None and time.monotonic() >= deadline):
            return ready


def plain_wait(fds: Iterable[int], deadline: float | None) -> list[int]:
    """Wait for `fds` alone. With no descriptors it sleeps until the deadline."""
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return _poll(poller, deadline)


class Loop:
    """Waiting that keeps serving the daemon's other descriptors (signals, D-Bus, control socket) and timers.

    Callbacks run between two waits, never during one another. `wake()` ends a `wait_for_change` early; it is
    how a callback tells the machine that something it decides on has changed.
    """

    def __init__(self) -> None:
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._timers: dict[Callable[[], None], float] = {}
        # A forked child that waits with this loop must not take the parent's signals and D-Bus messages.
        os.register_at_fork(after_in_child=self._callbacks.clear)
        os.register_at_fork(after_in_child=self._timers.clear)
        self._woken = False

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `fd` is readable while something waits."""
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Forget `fd`; unknown descriptors are fine."""
        self._callbacks.pop(fd, None)

    def call_at(self, at: float, callback: Callable[[], None]) -> None:
        """Call `callback` once when time.monotonic() has reached `at` and something waits.

        A callback has one time: the last one given counts.
        """
        self._timers[callback] = at

    def cancel(self, callback: Callable[[], None]) -> None:
        """Do not call `callback` at its time; unknown ones are fine."""
        self._timers.pop(callback, None)

    def wake(self) -> None:
        """End a `wait_for_change` that is going on, or the next one."""
        self._woken = True

    def wait(self, fds: Iterable[int], deadline: float | None) -> list[int]:
        """As `plain_wait`, while the watched descriptors are served."""
        wanted = list(fds)
        while True:
            ready = self._serve(wanted, deadline)
            mine = [fd for fd in ready if fd in wanted]
            if mine or (not ready and _is_past(deadline)):
                return mine

    def wait_for_change(self, deadline: float | None) -> bool:
        """Serve the watched descriptors until `wake` was called (True) or the deadline passed (False)."""
        while not self._woken:
            if not self._serve((), deadline) and not self._woken and _is_past(deadline):
                return False
        self._woken = False
        return True

    def _serve(self, fds: Iterable[int], deadline: float | None) -> list[int]:
        """Wait once, for anything; run the callbacks it is for. Returns all that is readable."""
        times = [*self._timers.values()] if deadline is None else [deadline, *self._timers.values()]
        ready = plain_wait([*fds, *self._callbacks], min(times, default=None))
        for fd in ready:
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()
        now = time.monotonic()
        for timer in [timer for timer, at in self._timers.items() if at <= now]:
            if self._timers.pop(timer, None) is not None:
                timer()
        return ready


def _is_past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


class Signals:
    """SIGUSR1 and SIGUSR2 as remembered requests, served in Idle (state-machine.md section 12)."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.pending: set[int] = set()
        self._read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._remember)
        loop.watch(self._read_fd, self._drain)

    def _remember(self, number: int, _frame: object) -> None:
        self.pending.add(number)

    def _drain(self) -> None:
        try:
            os.read(self._read_fd, 512)
        except BlockingIOError:
            return
        self._loop.wake()

    def take(self, number: int) -> bool:
        """Whether the signal arrived since it was last taken."""
        if number in self.pending:
            self.pending.discard(number)
            return True
        return False
