# SPDX-License-Identifier: Apache-2.0
"""An update at a control point: ask maps, hooks and the server, and wait there until they let it go on.

Control maps (`control.Pool`) and pause hooks (`hooks.Holds`) vote alike: fail beats pause beats continue.
Only a person's command to go on, which is a map of its own, overrules the hooks.

The server knows nothing of local points (`states.WIRE_POINTS` has the others): it is not asked for its map
there, and hears of a pause as the status of the state, with the point as substate. That is repeated at the
interval at which a map would be asked for, so that an abort is noticed.
"""

from __future__ import annotations

import time

from update_agent import control, hooks
from update_agent.errors import ControlError, StoreError
from update_agent.lean import json
from update_agent.states import WIRE_POINTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from update_agent.config import Config
    from update_agent.daemon import Daemon
    from update_agent.log import Log
    from update_agent.states import Step

HOOKS_KEY = "pause-hooks"  # in the store: the time left of the hooks' limits at a point
_SAVE_S = 600  # of a limit's time a power cut may bring back so much; each save is a write to flash
_REPORT_S = 60  # between two reports of one pause, at least


class ControlPoint:
    """One stay of an update at a control point."""

    def __init__(self, daemon: Daemon, step: Step, *, resumed: bool) -> None:
        self._daemon = daemon
        self._step = step
        self._point = step.work.subject
        self._is_local = self._point not in WIRE_POINTS
        self._resumed = resumed  # from before a restart
        self._paused = False  # in this process
        self._is_lasting = daemon.config.pause_survives_restart
        self._decision = control.Decision("continue")  # of the maps
        self._save_at = self._report_at = float("inf")
        found = [hook for hook in hooks.load(daemon.config.hook_dirs()) if hook.point == self._point]
        self._holds = hooks.Holds(found, self._ask, self._left_before(), time.monotonic())
        for hook in found:
            if hook.fault:
                daemon.log.warning(f"A pause hook is broken and holds the update: {hook.fault}")

    def decide(self) -> str:
        """Return the event: go, waited, booted, or fail. Raises ControlError when told to fail."""
        daemon, point = self._daemon, self._point
        if self._is_local and not (self._resumed or self._holds.votes or daemon.pool.speaks_at(point)):
            return "go"  # nobody has anything to say
        keeps = self._is_lasting and bool(daemon.update.payload_type)
        if self._resumed and keeps and daemon.payload.rebooted(point):
            daemon.log.info(f"The new system was booted during the pause at {point}")
            return "booted"
        if self._resumed and keeps:
            daemon.payload.hold(point)  # before the server is asked: the next power cut may come meanwhile
        then = "refresh" if daemon.pool.has_deployment_map(self._map_id) else "evaluate"
        while True:
            if then == "refresh":
                reason = self._refresh()
                if reason:
                    raise ControlError(reason)
            self._holds.look(time.monotonic(), time.time())
            # Asking a hook takes time, so the maps come after it; an answer of theirs is not asked for twice.
            if then != "hooks" or daemon.pool.has_changed:
                self._decision = daemon.pool.evaluate(point, time.monotonic())
                daemon.pool_is_ahead = True
            action = self._together()
            # A decision that ends a pause is used up on disk only when the update has gone on there.
            if daemon.pool_is_ahead and (action == "pause" or not self._keeps_decision):
                daemon.save_pool()
            names = self._names(action)
            maps = self._decision.by if self._decision.action == action else ()
            daemon.pause = control.Decision(action, maps) if action == "pause" else None
            daemon.holds = self._holds
            daemon.log.info(f"Control point {point}: {action}{names}")
            if action == "fail":
                raise ControlError(f"told to fail{names}")
            if action == "continue":
                return self._go_on()
            self._save_left()
            if not self._paused:
                self._paused = True
                self._hold()
                daemon.announce()  # the server may take its time
                if self._report() == "aborted":
                    return "fail"
            then = self._wait()
            if then == "aborted":
                return "fail"

    @property
    def _keeps_decision(self) -> bool:
        """True if the update would be back in this pause after a restart."""
        return self._is_lasting and (self._paused or self._resumed)

    @property
    def _map_id(self) -> str:
        """The deployment whose map the server is asked for here; none at a local point."""
        return "" if self._is_local else self._daemon.update.id

    def _go_on(self) -> str:
        """Leave the point, and what a pause had changed as it was."""
        daemon, step = self._daemon, self._step
        if not (self._paused or self._resumed):
            return "go"
        if self._is_lasting:
            if step.save_mid:
                daemon.write_state(step.save_mid, counted=False)
            if daemon.update.payload_type:
                daemon.payload.release(self._point)
        if "waited" in step.edges:
            return "waited"
        return "fail" if self._is_local and self._report(ended=True) == "aborted" else "go"

    def _together(self) -> str:
        """What maps and hooks say together."""
        if self._is_commanded():
            return "continue"
        actions = {self._decision.action, self._holds.action}
        return next((action for action in ("fail", "pause") if action in actions), "continue")

    def _is_commanded(self) -> bool:
        """True if a person has told the update to go on."""
        decision = self._decision
        is_command = any(entry.map.id == control.COMMAND_ID for entry in decision.by)
        return decision.action == "continue" and is_command

    def _names(self, action: str) -> str:
        """Who is behind an action, to be put after it; empty if nobody is."""
        names = []
        if self._decision.action == action and self._decision.by:
            maps = [f"{entry.map.id} (priority {entry.map.priority})" for entry in self._decision.by]
            names.append(f"map {', '.join(maps)}")
        if action != "continue":
            names += [f"hook {vote.hook.name} ({vote.why})" for vote in self._holds.by(action)]
        return f" by {' and '.join(names)}" if names else ""

    def _hold(self) -> None:
        """Make the pause safe against a power cut, and save it.

        In this order: what is saved as a pause is one that a cut does not change. A cut between the two falls
        into the state before, as if it had come a moment earlier.
        """
        daemon = self._daemon
        if self._is_lasting:
            if daemon.update.payload_type:
                daemon.payload.hold(self._point)
            self._save_pause(self._step.pause_save)
        elif self._point == "ArtifactReboot_Enter":
            self._save_pause("reboot")  # as client 3.5 does: the power cut then counts as the reboot

    def _report(self, *, ended: bool = False) -> str:
        """Tell the server that it waits here, or no longer; one try. Returns ok, or aborted."""
        daemon, status, substate = self._daemon, self._step.pause_report, ""
        if self._is_local and not ended:
            substate = f"paused at {self._point}"
            self._report_at = time.monotonic() + max(_REPORT_S, daemon.config.map_poll_interval_s)
        # A decision that is made meanwhile does not wait for a server that does not answer.
        give_up = None if ended else self._is_overtaken
        reply = daemon.remote.report(daemon.update.id, status, substate, give_up=give_up)
        if reply.kind == "aborted":
            return daemon.aborted(status)
        if reply.kind != "ok":
            daemon.log.warning(f"Status {status} was not delivered: {reply.reason}")
        return "ok"

    def _is_overtaken(self) -> bool:
        """True if somebody on the device has decided since the maps were evaluated."""
        return (self._paused or self._resumed) and self._daemon.pool.has_changed

    def _save_pause(self, name: str) -> None:
        try:
            self._daemon.write_state(name, counted=False)
        except StoreError as error:
            self._daemon.log.error(f"The pause will not survive a restart: {error}")

    def _wait(self, retry_at: float | None = None) -> str:
        """Wait until the pause must be decided again: refresh (ask the server first), evaluate, or hooks.

        Or until the server says that the deployment was aborted.
        """
        daemon = self._daemon
        while True:
            now = time.monotonic()
            wake = self._next_wake(now, retry_at)
            daemon.wake = wake
            daemon.announce()
            if wake.at > now and daemon.context.loop.wait_for_change(wake.at):
                continue
            if wake.then == "report":
                if self._report() == "aborted":
                    return "aborted"
                continue
            if wake.then != "hooks":
                return wake.then
            if time.monotonic() >= self._save_at:
                self._save_left()
            if self._holds.look(time.monotonic(), time.time()):
                return "hooks"

    def _next_wake(self, now: float, retry_at: float | None) -> control.Wake:
        pool, config = self._daemon.pool, self._daemon.config
        poll_s = config.map_poll_interval_s
        if retry_at is not None or self._decision.action == "pause":
            wake = pool.next_deadline(now, self._map_id, poll_s, retry_at=retry_at)
        else:
            wake = pool.next_change(now, self._map_id, poll_s)
        wakes = [
            wake,
            control.Wake(self._report_at, "report", "poll"),
            control.Wake(min(self._holds.next_look(), self._save_at), "hooks", "hooks"),
        ]
        # A hook whose program takes longer than its interval is always due: it must not keep the others away.
        due = [each for each in wakes if each.at <= now]
        return due[0] if due else min(wakes, key=lambda each: each.at)

    def _refresh(self) -> str:
        """Fetch the deployment's map. Empty when the pool is up to date, else why the update must fail.

        While paused, a change or an expiry is decided even though the refresh still fails.
        """
        daemon = self._daemon
        waits = daemon.unhurried(daemon.config.update_poll_interval_s)
        while True:
            reply = daemon.remote.control_map(daemon.update.id, give_up=self._is_overtaken)
            if reply.kind == "gone":
                return f"the deployment was aborted on the server: {reply.reason}"
            reason = reply.reason
            if reply.kind == "ok":
                try:
                    content = control.parse_value(reply.value)
                    daemon.pool.set_server(content, daemon.update.id, time.monotonic())
                    daemon.save_pool()
                    return ""
                except ControlError as error:
                    reason = str(error)
            delay_s = reply.retry_after_s if reply.retry_after_s is not None else next(waits, None)
            if delay_s is None:
                return f"the control map could not be refreshed: {reason}"
            daemon.log.warning(f"The control map was not refreshed, next try in {delay_s:.0f} s: {reason}")
            retry_at = time.monotonic() + delay_s
            if not (self._paused or self._resumed):
                daemon.context.loop.wait((), retry_at)
            elif self._wait(retry_at) != "refresh":
                return ""

    # Hooks

    def _ask(self, hook: hooks.Hook) -> tuple[str, str]:
        daemon = self._daemon
        return hooks.ask_program(hook, daemon.script_environment(), daemon.log, daemon.context.loop.wait)

    def _left_before(self) -> dict[str, float]:
        """What was left of the limits when this stay was last saved."""
        saved = self._daemon.store.get_json(HOOKS_KEY)
        if not isinstance(saved, dict) or saved.get("at") != [self._daemon.update.id, self._point]:
            return {}
        left = saved.get("left_s")
        return {name: float(seconds) for name, seconds in left.items()} if isinstance(left, dict) else {}

    def _save_left(self) -> None:
        """Write down what is left of the limits. A failure is logged; they go on counting."""
        daemon, now = self._daemon, time.monotonic()
        left = self._holds.left(now)
        self._save_at = now + _SAVE_S if any(left.values()) else float("inf")
        if not left:
            return
        document = {"at": [daemon.update.id, self._point], "left_s": left}
        try:
            daemon.store.amend({HOOKS_KEY: json.dumps(document, separators=(",", ":"))})
        except StoreError as error:
            daemon.log.error(f"The limits of pause hooks will not survive a restart: {error}")


def warn_of_broken_hooks(config: Config, log: Log) -> None:
    """Say at the start which hooks are broken, and where they will hold updates."""
    for hook in hooks.load(config.hook_dirs()):
        if hook.fault:
            log.warning(f"A pause hook is broken and will hold updates at {hook.point}: {hook.fault}")
