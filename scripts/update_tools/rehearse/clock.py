# SPDX-License-Identifier: Apache-2.0
"""The clock of a rehearsal: where the agent only waits, time is leapt over; where a program runs, it runs.

An update that waits a week for its window, or a script that is called again each minute for half an hour, is
over in a moment. A program that shows no life for `patience_s` is taken for hanging, and the clock leaps to
its limit. Programs on the machine see the same wall clock by the stand-in for `date`.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING

from update_agent import ctl, hooks, loop, pauses
from update_agent.errors import UpdateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_GLANCE_MS = 3  # given to callbacks before the clock leaps
_LONG_S = 86400.0
_ASKS = 20  # of a hook's program, until its limit
_real_monotonic, _real_time = time.monotonic, time.time


class Clock:
    """Replaces the clocks of this process, and the one place in which the agent waits."""

    def __init__(self, path: str, patience_s: float, note: Callable[..., None]) -> None:
        """`path`: file with the seconds by which the machine's wall clock is ahead of the host's."""
        self._path = path
        self.patience_s = patience_s
        self._note = note
        self._leapt_s = 0.0
        with open(path, encoding="ascii") as file:
            self._ahead_s = float(file.read())
        self._is_idle = False
        self.point = ""  # at which the agent is
        self._helped: set[str] = set()

    def install(self) -> None:
        """From now on the agent lives by this clock."""
        time.monotonic = lambda: _real_monotonic() + self._leapt_s
        time.time = lambda: _real_time() + self._ahead_s
        loop._poll = self._poll
        serve, plain = loop.Loop._serve, loop.plain_wait

        def serve_idle(waiting: loop.Loop, fds: Iterable[int], deadline: float | None) -> list[int]:
            wanted = list(fds)
            before, self._is_idle = self._is_idle, not wanted
            try:
                return serve(waiting, wanted, deadline)
            finally:
                self._is_idle = before

        def wait_idle(fds: Iterable[int], deadline: float | None) -> list[int]:
            wanted = list(fds)
            before, self._is_idle = self._is_idle, self._is_idle or not wanted
            try:
                return plain(wanted, deadline)
            finally:
                self._is_idle = before

        loop.Loop._serve = serve_idle  # type: ignore[method-assign,assignment]
        loop.plain_wait = wait_idle
        hooks._LOOK_S = pauses._SAVE_S = pauses._REPORT_S = int(_LONG_S)
        load = hooks.load

        def load_patient(directories: Iterable[str]) -> list[hooks.Hook]:
            found = load(directories)
            for hook in found:
                if hook.kind == "program":
                    hook.interval_s = max(hook.interval_s, (hook.limit_s or 0) // _ASKS)
            return found

        hooks.load = load_patient

    def _leap(self, deadline: float) -> None:
        ahead_s = deadline - time.monotonic()
        if ahead_s <= 0:
            return
        self._leapt_s += ahead_s
        self._ahead_s += ahead_s
        beside = f"{self._path}.{os.getpid()}"
        with open(beside, "w", encoding="ascii") as file:
            file.write(f"{self._ahead_s:.0f}\n")
        os.replace(beside, self._path)
        if ahead_s >= 1:
            self._note("leap", seconds=round(ahead_s, 1))

    def _poll(self, poller: select.poll, deadline: float | None) -> list[int]:
        """As loop._poll, in which nothing is waited for that only time can bring."""
        if self._is_idle:
            ready = [fd for fd, _ in poller.poll(_GLANCE_MS)]
            if ready:
                return ready
            if deadline is not None and deadline < float("inf"):
                self._leap(deadline)
                return []
            self._help()
            return [fd for fd, _ in poller.poll(1000)]
        left_s = self.patience_s if deadline is None else min(self.patience_s, deadline - time.monotonic())
        ready = [fd for fd, _ in poller.poll(max(0, int(left_s * 1000) + 1))]
        if not ready and deadline is not None and deadline < float("inf"):
            self._leap(deadline)
        return ready

    def _help(self) -> None:
        """Nothing will happen any more by itself: be the person who says `update-agent continue`."""
        point = self.point
        if not point or point in self._helped:
            return
        self._helped.add(point)
        self._note("person", point=point)

        def say() -> None:
            path = os.environ["UPDATE_CONTROL_SOCKET"]
            try:
                ctl.ask(path, {"verb": "continue", "point": point}, lambda _answer: None)
            except (UpdateError, OSError) as error:
                self._note("person", point=point, refused=str(error))

        threading.Thread(target=say, daemon=True).start()
