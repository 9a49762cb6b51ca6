# SPDX-License-Identifier: Apache-2.0
"""The daemon: polls, and takes deployments through the table, across any number of restarts."""

from __future__ import annotations

import os
import time

from update_agent import control, live
from update_agent.backoff import delays
from update_agent.decisions import Decisions
from update_agent.errors import ControlError, LoopError, StoreError, UpdateError
from update_agent.lean import signal
from update_agent.machine import Context, Machine
from update_agent.outcome import Outcome
from update_agent.states import DAEMON_STEPS, MAX_SAVES, SAVED_AFTER_SUCCESS, Step, resume_after, state_of
from update_agent.store import BusyError
from update_agent.timers import ClockWatch, PollTimer
from update_agent.update import COMMAND_KEY, Update, commit, from_text, installed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from update_agent.hooks import Holds
    from update_agent.loop import Signals
    from update_agent.proc import Result
    from update_agent.remote import Remote, Reply

_STATE = "state"
_CLAIM_S = 10  # between two tries to lock the store


class Daemon(Machine):
    """Walks `DAEMON`: waits for polls, and carries each deployment to its end."""

    flow = DAEMON_STEPS
    MAPS_KEY = "update-control-maps"  # in the store

    def __init__(self, context: Context, remote: Remote, signals: Signals) -> None:
        super().__init__(context)
        self.remote = remote
        self.signals = signals
        self.outcome = Outcome()
        self.pool = self._load_pool()
        self.pool_is_ahead = False  # of the disk: it goes there with the next state
        now = time.monotonic()
        config = self.config
        self.poll_timer = PollTimer(config.update_poll_interval_s, config, now)
        self.inventory_timer = PollTimer(config.inventory_poll_interval_s, config, now)
        self._clock = ClockWatch()
        self._inventory_ever_sent = False
        self._resumed_at = ""  # the pause at which this process took the update over
        # What status and D-Bus tell; `watchers` are called when any of it may have changed.
        self.step = self.flow["idle"]
        self.state = "Idle"
        self.pause: control.Decision | None = None  # why it is paused
        self.holds: Holds | None = None  # and what the pause hooks say there
        self.wake: control.Wake | None = None  # and what comes next if nobody decides
        self.done_bytes, self.size_bytes = 0, 0
        self.watchers: list[Callable[[], None]] = []
        self.decisions = Decisions(self)
        self.live = live.Live(self)

    # Start and saved state

    def run(self) -> None:
        """Go on with what was saved, then poll forever."""
        if any(os.path.isdir(directory) for directory in self.config.hook_dirs()):
            from update_agent.pauses import warn_of_broken_hooks

            warn_of_broken_hooks(self.config, self.log)
        self._finish_boot()
        self.walk(self.resume())

    def _finish_boot(self) -> None:
        """Reboot if the boot loader could not start what is to run without our asking."""
        try:
            if command := self.context.bootloader.next_boot():
                self.log.info("The system on trial was not started, or is wanted again")
                raise self.reboot(command)
        except UpdateError as error:
            self.log.error(str(error))

    def resume(self) -> str:
        """The step to start at, after taking over the saved update if there is one."""
        text = self.store.get(_STATE)
        if text is None:
            return "idle.enter"
        try:
            name, self.update = from_text(text)
        except StoreError as error:
            self.log.error(f"Cannot go on with the saved update: {error}")
            return "idle.enter"
        self._claim_store(wait=True)
        self.log.open_deployment(self.config.update_log_path, self.update.id)
        saved = resume_after(name)
        self.outcome = Outcome.after_restart(
            saved, all_rollbacks_successful=self.update.all_rollbacks_successful
        )
        self.log.info(f"Going on with deployment {self.update.id} after a restart: {name} -> {saved.resume}")
        if self.outcome.failed and not self.update.cause:
            self.failed(f"the device or the agent restarted during {name}")
        if self.flow[saved.resume].work.kind == "control":
            self._resumed_at = saved.resume
        try:
            # However often the power goes during a pause, that is not a loop.
            self.write_state(name, counted=not self._resumed_at)
        except LoopError as error:
            self.failed(str(error))
            self.outcome.add(self.flow["loop"], "loop")
            return "loop"
        except StoreError as error:
            self.log.error(str(error))
        return saved.resume

    def perform(self, step: Step) -> str:
        self.step = step
        self.state = state_of(step) or self.state
        self.pause = self.holds = self.wake = None
        self.announce()
        return super().perform(step)

    @property
    def paused_at(self) -> str:
        """The control point at which the update is paused, or empty."""
        return self.step.work.subject if self.pause else ""

    def announce(self) -> None:
        """Tell those who watch that the daemon's situation may have changed."""
        for watcher in self.watchers:
            watcher()

    def _claim_store(self, *, wait: bool) -> None:
        """Lock the store. With `wait` a command that was there first may finish, else BusyError is raised.

        A medium on which nothing can be locked does not keep an update from coming to its end.
        """
        while True:
            try:
                self.store.lock()
                self.store.reload()  # what a command saved that ended just now
                return
            except BusyError as error:
                if not wait:
                    raise
                self.log.warning(f"The saved update waits: {error}")
                self.context.loop.wait((), time.monotonic() + _CLAIM_S)
            except StoreError as error:
                self.log.error(str(error))
                return

    def save(self, step: Step, name: str) -> None:
        self.write_state(name)

    def write_state(
        self, name: str, *, counted: bool = True, also: dict[str, str | None] | None = None
    ) -> None:
        """Store the update under a name together with other changes. Raises LoopError or StoreError."""
        if counted:
            if self.update.save_count >= MAX_SAVES:
                raise LoopError(
                    f"the update was saved {self.update.save_count} times and goes in circles",
                    hint="look for a module or script that keeps failing in the deployment log",
                )
            self.update.save_count += 1
        if self.config.outcome_survives_restart and not self.outcome.failed:
            name = SAVED_AFTER_SUCCESS.get(name, name)
        changes = {_STATE: self.update.to_text(name), **(also or {})}
        if self.pool_is_ahead:
            changes[self.MAPS_KEY] = self.pool.to_store(time.monotonic())
        self.store.write(changes)
        self.pool_is_ahead = False

    def note(self, step: Step, event: str) -> None:
        if self.update.id:
            self.outcome.add(step, event)

    # Idle and Sync

    def on_wait(self, _step: Step) -> str:
        """Wait for the next poll. Control maps that expired are dropped here and nowhere earlier."""
        if self.pool.drop_expired(time.monotonic()):
            self.save_pool()
        while True:
            now = time.monotonic()
            if self._clock.was_set(now, time.time()):
                self.log.info("The clock was set, trying again")
                self.poll_timer.due = self.inventory_timer.due = now
            # The interval runs from here: a script that stops a poll must not bring it back at once.
            if self.signals.take(signal.SIGUSR2) or now >= self.inventory_timer.due:
                self.inventory_timer.started(now)
                return "inventory"
            if self.signals.take(signal.SIGUSR1) or now >= self.poll_timer.due:
                self.poll_timer.started(now)
                return "deployment"
            self.remote.rest()
            due = min(self.poll_timer.due, self.inventory_timer.due, self._clock.next_look(now))
            self.context.loop.wait_for_change(due)

    def on_request(self, step: Step) -> str:
        """Submit the inventory, or ask for a deployment."""
        if step.work.subject == "inventory":
            return self._submit_inventory()
        return self._poll()

    def _submit_inventory(self) -> str:
        provides = {**installed(self.store), "device_type": self.config.device_type()}
        reply = self.remote.inventory(provides)
        self._clock.suspect(reply.is_clock, time.monotonic(), time.time())
        if reply.kind == "ok":
            self.inventory_timer.succeeded()
            self._inventory_ever_sent = True
            return "ok"
        self.log.error(f"Inventory was not submitted: {reply.reason}")
        self.inventory_timer.failed(time.monotonic(), reply.retry_after_s)
        return "fail"

    def _next_deployment(self) -> Reply:
        return self.remote.poll({**installed(self.store), "device_type": self.config.device_type()})

    def _poll(self) -> str:
        self.store.reload()  # a command may have installed something meanwhile
        reply = self._next_deployment()
        self._clock.suspect(reply.is_clock, time.monotonic(), time.time())
        if reply.kind not in {"ok", "nothing"}:
            self.log.error(f"No answer to the deployment poll: {reply.reason}")
            self.poll_timer.failed(time.monotonic(), reply.retry_after_s)
            return "fail"
        self.poll_timer.succeeded()
        if reply.kind == "nothing":
            if not self._inventory_ever_sent:
                self.inventory_timer.due = time.monotonic()  # accepted just now: show up at once
            return "nothing"
        return self._take_on(reply.value)

    def _take_on(self, deployment: object) -> str:
        """Begin the deployment that the server handed out (validated by `server`)."""
        assert isinstance(deployment, dict)
        self._claim_store(wait=False)
        self.update = Update(deployment["id"])
        self.update.artifact_name = deployment["artifact"].get("artifact_name") or ""
        self.outcome = Outcome()
        self.done_bytes = self.size_bytes = 0
        self.log.open_deployment(self.config.update_log_path, self.update.id)
        self.log.info(f"Deployment {self.update.id}: {self.update.artifact_name}")
        try:
            self._take_over(deployment)
        except ControlError as error:
            return self._refuse(f"the server's control map is refused: {error}")
        return "ok"

    def _take_over(self, deployment: dict[str, Any]) -> None:
        """Link and control map as the server hands them out now. Raises ControlError."""
        source = deployment["artifact"]["source"]
        self.update.uri, self.update.expire = source["uri"], source.get("expire") or ""
        self.update.live_s = live.interval_s(deployment)
        document = deployment.get("update_control_map")
        content = None if document is None else control.parse_value(document)
        self.pool.set_server(content, self.update.id, time.monotonic())
        self.save_pool()

    def _refuse(self, reason: str) -> str:
        """End a deployment that must not start: report, upload the log, as if there had been none."""
        self.failed(reason)
        reply = self.remote.report(self.update.id, "failure", reason)
        if reply.kind == "ok":
            self.remote.upload_log(self.update.id, self.log.deployment_path)
        self._end("failed")
        return "nothing"

    # Download

    def on_download(self, step: Step) -> str:
        """Take the artifact in, in a child process. Only the header's facts come back to be saved."""

        def answer(message: dict[str, object]) -> dict[str, object] | None:
            if "done_bytes" in message:
                self._progressed(int(str(message["done_bytes"])), int(str(message["size_bytes"])))
                return None
            self.update.accept(message)
            self.log.info(f"Artifact {self.update.artifact_name}, payload {message['payload_type']}")
            self.write_state(step.save_mid, also={COMMAND_KEY: None})
            return {}

        if waiting := self.store.get(COMMAND_KEY):
            from update_agent.waiting import give_way

            give_way(waiting, self.context.bootloader, self.log)
        self.remote.download(self.update, installed(self.store), answer)
        return "ok" if self.update.payload_type else "nothing"

    def _progressed(self, done_bytes: int, size_bytes: int) -> None:
        """Note how far the download is; every fifth goes into the log."""
        if done_bytes * 5 // size_bytes > self.done_bytes * 5 // size_bytes:
            self.log.info(f"Downloaded {done_bytes} of {size_bytes} bytes")
        self.done_bytes, self.size_bytes = done_bytes, size_bytes
        self.announce()

    def do_renew_link(self, _step: Step) -> str:
        """A link may expire during a pause: ask for the deployment again, which brings a fresh one.

        A server that cannot be reached for long is not the end: the download tries again with the old link.
        """
        waits = self.unhurried(self.config.retry_poll_interval_s)
        while True:
            reply = self._next_deployment()
            if reply.kind == "ok" and isinstance(reply.value, dict) and reply.value["id"] == self.update.id:
                self._take_over(reply.value)
                return "ok"
            if reply.kind in {"ok", "nothing"}:
                self.failed("the server does not offer the deployment any more after the pause")
                return "fail"
            delay_s = reply.retry_after_s if reply.retry_after_s is not None else next(waits, None)
            if delay_s is None:
                self.log.warning(f"No fresh link to the artifact, going on with the old one: {reply.reason}")
                return "ok"
            self.log.warning(f"No fresh link to the artifact, again in {delay_s:.0f} s: {reply.reason}")
            self._wait_for_retry(delay_s, is_clock=reply.is_clock)

    def on_reboot(self, step: Step) -> str:
        """As `Machine`, with no child left that would have to be ended."""
        self.remote.rest()
        return super().on_reboot(step)

    def do_rollback_not_needed(self, _step: Step) -> str:
        """A failed download left nothing to undo."""
        self.update.all_rollbacks_successful = True
        return "ok"

    def do_rollback_done(self, _step: Step) -> str:
        """Everything was undone. That a rollback script failed on the way, client 5 forgets in a restart."""
        is_told = self.config.outcome_survives_restart
        self.update.all_rollbacks_successful = not (is_told and self.outcome.broken)
        return "ok"

    # Reports

    def watch_script(self, name: str, result: Result | None) -> None:
        self.live.script(name, result)

    def on_report(self, step: Step) -> str:
        """Tell the server. Only repeated reports (`retried`) can fail; a 409 always counts."""
        status, substate = step.work.subject, ""
        if status == "final":
            status = "failure" if self.outcome.failed else "success"
            substate = self.update.cause if self.outcome.failed else ""
        self.live.status = status
        substate = substate or self.live.take()
        if not step.retried:
            reply = self.remote.report(self.update.id, status, substate)
            if reply.kind not in {"ok", "aborted"}:
                self.log.warning(f"Status {status} was not delivered: {reply.reason}")
            return self.aborted(status) if reply.kind == "aborted" else "ok"
        waits = self.unhurried(self.config.retry_poll_interval_s)
        while True:
            reply = self._report_with_log(status, substate)
            if reply.kind == "ok":
                return "ok"
            if reply.kind == "aborted":
                return self.aborted(status)
            delay_s = reply.retry_after_s if reply.retry_after_s is not None else next(waits, None)
            if delay_s is None:
                self.failed(f"status {status} could not be delivered: {reply.reason}")
                return "fail"
            self.log.warning(f"Status {status} was not delivered, again in {delay_s:.0f} s: {reply.reason}")
            self._wait_for_retry(delay_s, is_clock=reply.is_clock)

    def _wait_for_retry(self, delay_s: float, *, is_clock: bool) -> None:
        """Wait so long; less if the clock may be why a request failed, and is set meanwhile."""
        now = time.monotonic()
        until = now + delay_s
        self._clock.suspect(is_clock, now, time.time())
        while now < until and not self._clock.was_set(now, time.time()):
            self.context.loop.wait((), min(until, self._clock.next_look(now)))
            now = time.monotonic()

    def unhurried(self, cap_s: int) -> Iterator[int]:
        """Waits of a report or refresh: no cap hurries them beyond the first wait (device-api.md)."""
        first_s = self.config.retry_first_interval_s
        return delays(max(first_s, cap_s), self.config.retry_poll_count, first_s=first_s)

    def _report_with_log(self, status: str, substate: str) -> Reply:
        """One try of a report; with a failure goes the deployment log."""
        reply = self.remote.report(self.update.id, status, substate)
        if reply.kind == "ok" and status == "failure":
            uploaded = self.remote.upload_log(self.update.id, self.log.deployment_path)
            if uploaded.kind == "gone":  # too large even when cut: trying again changes nothing
                self.log.warning(f"The deployment log was refused: {uploaded.reason}")
                return reply
            return uploaded
        return reply

    def aborted(self, status: str) -> str:
        """The server has no such deployment any more: the event of that, its reason noted."""
        self.failed(f"the server answered {status} with 409: the deployment was aborted")
        return "aborted"

    # Control points

    def on_control(self, step: Step) -> str:
        """Decide at a control point; a pause waits here, is reported once, and survives a restart."""
        resumed, self._resumed_at = self._resumed_at == step.name, ""
        from update_agent.pauses import ControlPoint

        return ControlPoint(self, step, resumed=resumed).decide()

    def _load_pool(self) -> control.Pool:
        config = self.config
        try:
            return control.Pool.from_store(
                self.store.get(self.MAPS_KEY),
                time.monotonic(),
                expiration_s=config.map_expiration_s,
                boot_expiration_s=config.map_boot_expiration_s,
            )
        except ControlError as error:
            self.log.error(f"The saved control maps are dropped: {error}")
            return control.Pool(config.map_expiration_s)

    def save_pool(self) -> None:
        """Write the maps down. A failure is logged; the maps in memory go on counting."""
        try:
            self.store.amend({self.MAPS_KEY: self.pool.to_store(time.monotonic())})
            self.pool_is_ahead = False
        except StoreError as error:
            self.log.error(f"The control maps will not survive a restart: {error}")

    # Commit and the end

    def do_drop_token(self, _step: Step) -> str:
        """The next request must prove that authentication still works from the new system."""
        self.remote.drop_token()
        return "ok"

    def do_commit_provides(self, step: Step) -> str:
        """Store what is installed now; nothing after a clean rollback."""
        if self.outcome.undone:
            return "ok"
        clean = not self.outcome.failed
        changes = commit(self.store, self.update, clean=clean, with_provides=clean)
        try:
            self.write_state(step.save_mid, also=changes)
        except LoopError:
            raise
        except StoreError as error:
            self.failed(str(error))
            return "fail"
        return "ok"

    def do_break_loop(self, _step: Step) -> str:
        """Give up: name what is on the device as inconsistent."""
        self.store.write(commit(self.store, self.update, clean=False, with_provides=True))
        return "ok"

    def do_clear(self, _step: Step) -> str:
        """The server knows the outcome: the saved update is not needed any more."""
        from update_agent.pauses import HOOKS_KEY

        self.store.write({_STATE: None, HOOKS_KEY: None})
        return "ok"

    def do_end_deployment(self, _step: Step) -> str:
        """Forget the deployment, and show the new state of the device at once."""
        self.inventory_timer.due = time.monotonic()
        self._end("failed" if self.outcome.failed else "succeeded")
        return "ok"

    def _end(self, verdict: str) -> None:
        reason = f": {self.update.cause}" if verdict == "failed" else ""
        self.log.info(f"Deployment {self.update.id} {verdict}{reason}")
        self.pool.clear_deployment(self.update.id)
        self.save_pool()
        self.log.close_deployment()
        self.store.unlock()
        self.update = Update()
        self.outcome = Outcome()
        self.live.forget()
        self.forget_payload()
        self.decisions.update_ended()
