# SPDX-License-Identifier: Apache-2.0
"""Reports between the reports, for a server that asked for them with `live_reports` in its deployment.

Other servers never see anything of this. At most one request an interval, never waited for, never repeated:

    {"live": {"bytes": [done, size], "script": NAME}, "scripts": [[NAME, RESULT, SECONDS], ...]}

as the substate of a report of the status that was reported last. The download's come from its own child
process (`Teller`); a script that runs longer than the interval is told once, from a child of its own. Scripts
that ended go with the next report, whichever it is.
"""

from __future__ import annotations

import time

from update_agent.lean import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from update_agent.daemon import Daemon
    from update_agent.proc import Result

ENDED_MAX = 50


def interval_s(deployment: dict[str, object]) -> int:
    """The interval that a deployment from the server asks for; 0: it does not."""
    wanted = deployment.get("live_reports")
    seconds = wanted.get("interval_s") if isinstance(wanted, dict) else None
    return min(max(int(seconds), 1), 3600) if isinstance(seconds, (int, float)) else 0


class Live:
    """What the daemon tells of state scripts while and after they run."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._running = ""
        self._ended: list[list[object]] = []
        self.status = ""  # the one reported last; unknown after a restart

    def script(self, name: str, result: Result | None) -> None:
        """A script begins (no result yet), or ended."""
        update, loop = self._daemon.update, self._daemon.context.loop
        loop.cancel(self._tell)
        if not update.live_s:
            return
        if result is None:
            self._running = name
            loop.call_at(time.monotonic() + update.live_s, self._tell)
        else:
            self._ended = [
                *self._ended[1 - ENDED_MAX :],
                [name, result.describe(), round(result.seconds, 2)],
            ]

    def take(self) -> str:
        """The scripts that ended since the last report, as a substate; empty when there are none."""
        ended, self._ended = self._ended, []
        return json.dumps({"scripts": ended}) if ended and self._daemon.update.live_s else ""

    def forget(self) -> None:
        """The deployment is over."""
        self.status = ""
        self._ended = []

    def _tell(self) -> None:
        if self.status:
            substate = json.dumps({"live": {"script": self._running}})
            self._daemon.remote.tell(self._daemon.update.id, self.status, substate)


class Teller:
    """Tells how far a download is, from a thread of the child that downloads. The first failure ends it."""

    def __init__(self, report: Callable[[str], bool], interval_s: int) -> None:
        import threading

        self._report = report
        self._interval_s = interval_s
        self._end = threading.Event()
        self.done_bytes, self.size_bytes = 0, 0
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        """No more of it. A report on its way is not waited for."""
        self._end.set()

    def _run(self) -> None:
        told = 0
        while not self._end.wait(self._interval_s):
            done = self.done_bytes
            if done > told:
                told = done
                if not self._report(json.dumps({"live": {"bytes": [done, self.size_bytes]}})):
                    return
