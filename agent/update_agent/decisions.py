# SPDX-License-Identifier: Apache-2.0
"""The one place where decisions made on the device enter: maps of applications, and a person's commands.

D-Bus and control socket both end here. A decision is on disk before the caller is answered, and acts at once.

A command is a control map of our own, COMMAND_ID at PRIORITY, merged, saved and shown like any other. `pause`
holds every update at its points until someone decides there; `go_on` and `fail` count once and only for the
present update. Its priority is the highest: the person at the device has the last word, and only a map that
pauses or fails at the same priority is stronger than `go_on` (fail > pause > force_continue among equals).
"""

from __future__ import annotations

import time

from update_agent import control
from update_agent.control import COMMAND_ID, PRIORITY_MAX
from update_agent.errors import ControlError, IdleError, StoreError
from update_agent.states import POINTS, WIRE_POINTS, points_ahead

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from update_agent.daemon import Daemon

PRIORITY = PRIORITY_MAX
MAPS_MAX = 2000  # each change writes them all; the store's file may have 8 MiB

_PAUSE = ("pause", "fail", "pause")  # action, on_map_expire (never reached), on_action_executed
_GO_ON = ("force_continue", "force_continue", "continue")
_FAIL = ("fail", "fail", "continue")


class Decisions:
    """Takes decisions for the daemon's pool. A method takes full effect, or raises and changes nothing."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        if daemon.store.get("state") is None:
            self.update_ended()  # a power cut may have come before it could be done

    # Maps of applications

    def set_map(self, text: str, points: Sequence[str] = WIRE_POINTS) -> int:
        """Take a map as JSON text: set, replace, or delete when it has no states (control-map.md section 2).

        It may decide at these `points`.

        Returns the seconds after which the sender should send it again. Raises ControlError for a map that is
        not valid, StoreError for one that cannot be saved.
        """
        log = self._daemon.log
        log.info(f"Control map received: {_one_line(text)}")
        try:
            content = control.parse(text, points)
            if content.id == COMMAND_ID:
                raise ControlError(f"control map: id {COMMAND_ID} is the agent's own, for commands")
            self._set(content)
        except (ControlError, StoreError) as error:
            log.error(f"Control map refused: {error}")
            raise
        return self._daemon.pool.refresh_timeout_s

    def maps(self) -> list[dict[str, object]]:
        """All maps in the pool with where they are from and for how many more seconds they are active."""
        now = time.monotonic()
        return [self.describe(entry, now) for entry in self._daemon.pool.entries()]

    def describe(self, entry: control.Entry, now: float) -> dict[str, object]:
        """One map, for people and programs."""
        kind = "application"
        if entry.map.id == COMMAND_ID:
            kind = "command"
        elif entry.map.id == self._daemon.update.id:
            kind = "server"
        seconds = entry.expires_at - now
        return {
            **entry.document(),
            "from": kind,
            "expires_in_s": None if seconds == float("inf") else max(0, round(seconds)),
        }

    # Commands

    def pause(self, points: Iterable[str]) -> list[str]:
        """Hold the present and every later update at these points, until `go_on` or `fail` there."""
        names = list(points)
        if not names:
            raise ControlError("no control point is named", hint="there are " + ", ".join(POINTS))
        self._command(names, _PAUSE)
        return names

    def go_on(self, point: str = "") -> list[str]:
        """Let the update go on from the point where it is paused; a pause that was set there is used up.

        At a point where it is not paused, undo the command given for that point; but this one counts once
        even if it is said twice, as after an agent that was killed before it could answer.
        Raises IdleError when there is nothing to go on with.
        """
        paused_at = self._daemon.paused_at
        if point:
            _check(point)
        if paused_at and point in {"", paused_at}:
            self._command([paused_at], _GO_ON)
            return [paused_at]
        commanded = self._commanded().get(point)
        if commanded is not None:
            if commanded.action != "force_continue":
                self._command([point], None)
            return [point]
        where = f"at {point}" if point else "at any point"
        raise IdleError(f"no update is paused {where}", hint="`update-agent status` shows what is going on")

    def fail(self, point: str = "") -> list[str]:
        """Fail the present update at the point, or where it is paused, or else at the next point it reaches.

        It is rolled back if its payload supports that. Raises IdleError when no update can get there.
        """
        if point:
            _check(point)
        daemon = self._daemon
        if not daemon.update.id:
            raise IdleError("no update is in progress")
        ahead = points_ahead(daemon.step.name)
        points = [point or daemon.paused_at] if point or daemon.paused_at else ahead
        if not points or not set(points) <= set(ahead):
            where = point or "all control points"
            raise IdleError(f"the update is past {where}", hint="`update-agent status` shows where it is")
        self._command(points, _FAIL)
        return points

    def update_ended(self) -> None:
        """Forget commands that were meant for the update that has ended. Pauses stay."""
        pauses = {point: state for point, state in self._commanded().items() if state.action == "pause"}
        entry = self._entry()
        if entry is not None and len(pauses) < len(entry.map.states):
            try:
                self._set(control.Map(COMMAND_ID, PRIORITY, pauses))
            except StoreError as error:
                self._daemon.log.error(f"Commands for the last update may come back: {error}")

    def _entry(self) -> control.Entry | None:
        for entry in self._daemon.pool.entries():
            if (entry.map.id, entry.map.priority) == (COMMAND_ID, PRIORITY):
                return entry
        return None

    def _commanded(self) -> dict[str, control.State]:
        """What commands still have to say, by point."""
        entry = self._entry()
        if entry is None:
            return {}
        return {
            point: state for point, state in entry.map.states.items() if entry.actions[point] != "continue"
        }

    def _command(self, points: list[str], words: tuple[str, str, str] | None) -> None:
        for point in points:
            _check(point)
        states = self._commanded()
        for point in points:
            if words is None:
                states.pop(point)
            else:
                states[point] = control.State(*words)
        what = words[0] if words else "no command any more"
        self._daemon.log.info(f"Command for {', '.join(points)}: {what}")
        self._set(control.Map(COMMAND_ID, PRIORITY, states))

    # The pool

    def _set(self, content: control.Map) -> None:
        """Change the pool and the disk, or neither."""
        daemon = self._daemon
        now = time.monotonic()
        if content.states and len(daemon.pool.entries()) >= MAPS_MAX and not daemon.pool.has(content):
            raise ControlError(
                f"there are {MAPS_MAX} control maps already", hint="give each application one fixed UUID"
            )
        mark = daemon.pool.mark()
        is_change = daemon.pool.set_local(content, now)
        try:
            daemon.store.amend({daemon.MAPS_KEY: daemon.pool.to_store(now)})
        except StoreError:
            daemon.pool.undo(mark)
            raise
        if is_change:
            daemon.context.loop.wake()
            daemon.announce()


def _check(point: str) -> None:
    if point not in POINTS:
        raise ControlError(f"{point!r} is not a control point", hint="there are " + ", ".join(POINTS))


def _one_line(text: str) -> str:
    """What a stranger sent, fit for a log line."""
    line = text if len(text) <= 1000 else text[:1000] + "..."
    return line if line.isprintable() else ascii(line)
