# SPDX-License-Identifier: Apache-2.0
"""Walks the table: save, do the work, pick the edge. What daemon and commands have in common is here."""

from __future__ import annotations

import time

from update_agent import payload as payloads
from update_agent import proc, scripts
from update_agent.errors import LoopError, PayloadError, StoreError, UpdateError
from update_agent.states import ARTIFACT, EXIT, STATE_BY_NAME, Step, next_step, state_of
from update_agent.update import Update

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from update_agent.bootloader import Bootloader
    from update_agent.config import Config
    from update_agent.log import Log
    from update_agent.loop import Loop, Wait
    from update_agent.payload import Payload
    from update_agent.store import Store

# After `reboot` returned, the system is given this long to end us (state-machine.md section 5).
REBOOT_WAIT_S = 600


class Context:
    """What a machine works with; everything that touches the world comes in here."""

    def __init__(self, config: Config, log: Log, store: Store, loop: Loop, bootloader: Bootloader) -> None:
        self.config = config
        self.log = log
        self.store = store
        self.loop = loop
        self.bootloader = bootloader


class Machine:
    """Takes one update through a flow of steps. Subclasses add the work that only their mode has."""

    flow: Mapping[str, Step]

    def __init__(self, context: Context) -> None:
        self.context = context
        self.config = context.config
        self.log = context.log
        self.store = context.store
        self.update = Update()
        self._payload: Payload | None = None
        self._devices: tuple[str, str] | None = None  # they cannot change while this process lives

    def walk(self, start: str) -> None:
        """Go from step to step until the flow's exit. Expected errors become events, others go on up."""
        name = start
        while name != EXIT:
            step = self.flow[name]
            event = self.perform(step)
            self.note(step, event)
            name = next_step(step, event)

    def perform(self, step: Step) -> str:
        """Save what the step wants saved, then do its work. Returns the event."""
        try:
            if step.save:
                self.save(step, step.save)
        except LoopError as error:
            self.failed(str(error))
            return "loop"
        except StoreError as error:
            self.failed(_told(step, error))
            if not step.failure:
                return "fail"
        name = f"do_{step.work.subject}" if step.work.kind == "do" else f"on_{step.work.kind}"
        work: Callable[[Step], str] = getattr(self, name)
        try:
            return work(step)
        except LoopError as error:
            self.failed(str(error))
            return "loop"
        except UpdateError as error:
            self.failed(_told(step, error))
            return "fail"

    def save(self, step: Step, name: str) -> None:
        """Store the update under a name, durably. Raises LoopError or StoreError."""
        raise NotImplementedError

    def note(self, step: Step, event: str) -> None:
        """Keep account of what an event means for the outcome."""
        raise NotImplementedError

    def failed(self, reason: str) -> None:
        """Log a failure; the first one of an update is its cause."""
        self.log.error(reason)
        self.update.cause = self.update.cause or reason

    # Payload

    @property
    def payload(self) -> Payload:
        """The module of the update's payload. Raises PayloadError if there is none for its type."""
        if self._payload is None:
            if not self.update.payload_type:
                raise PayloadError("there is no payload")
            self._payload = payloads.find(
                self.update.payload_type,
                self.config,
                self.log,
                self.context.bootloader,
                self.context.loop.wait,
            )
        return self._payload

    def forget_payload(self) -> None:
        """The update is over; the next one may have another payload type."""
        self._payload = None

    # Work that both modes have

    def script_environment(self) -> dict[str, str]:
        """The UPDATE_* variables of the present update."""
        if self._devices is None:
            self._devices = root_devices(self.config)
        active, inactive = self._devices
        return {
            "UPDATE_DEPLOYMENT_ID": self.update.id,
            "UPDATE_ARTIFACT_NAME": self.update.artifact_name,
            "UPDATE_ACTIVE_DEVICE": active,
            "UPDATE_INACTIVE_DEVICE": inactive,
            "UPDATE_DATA_DIR": self.config.datastore,
        }

    def on_hook(self, step: Step) -> str:
        """Run the state scripts of a hook."""
        work = step.work
        if STATE_BY_NAME[work.state].scripts == ARTIFACT:
            directory = self.config.scripts_artifact()
        else:
            directory = self.config.scripts_rootfs()
        outcome = scripts.run_hook(
            work.state,
            work.action,
            directory=directory,
            policy="ignore" if step.all_scripts else "fail",
            config=self.config,
            log=self.log,
            env=self.script_environment(),
            wait=self.context.loop.wait,
            watch=self.watch_script,
        )
        if outcome.failures:
            self.update.cause = self.update.cause or str(outcome.failures[0])
        return "ok" if outcome.ok else "fail"

    def watch_script(self, name: str, result: proc.Result | None) -> None:
        """A state script was started, or ended. For those who want to tell of it."""

    def on_module(self, step: Step) -> str:
        """Make an update-module call."""
        call = step.work.subject
        if call == "Cleanup":
            # Without an accepted artifact there is nothing to clean up, and no module to ask.
            if self.update.payload_type:
                self.payload.cleanup()
            return "ok"
        if call == "ArtifactCommit":
            # A new root file system that cannot run its own scripts must not become permanent.
            scripts.check_version(self.config.scripts_rootfs())
        self.payload.call(call)
        return "ok"

    def on_query(self, step: Step) -> str:
        """Ask the update module; the answer is the event."""
        answer = self.ask(step.work.subject)
        return answer if answer in step.edges else "No"

    def ask(self, query: str) -> str:
        """Yes, No or Automatic. Raises PayloadError."""
        answer = self.payload.query(query)
        if query == "NeedsArtifactReboot":
            self.update.needs_reboot = answer
        elif query == "SupportsRollback":
            self.update.supports_rollback = answer
        return answer

    def on_reboot(self, step: Step) -> str:
        """Reboot through the module or the system. Returning at all means it did not happen (yet)."""
        if self.update.needs_reboot == "Yes":
            self.payload.call(step.work.subject)
            return "ok"
        raise self.reboot(self.context.bootloader.reboot_command())

    def reboot(self, argv: Sequence[str]) -> PayloadError:
        """The function `reboot`, with what we work with."""
        return reboot(argv, self.log, self.context.loop.wait)

    def do_nothing(self, _step: Step) -> str:
        """A step that only saves."""
        return "ok"


def reboot(argv: Sequence[str], log: Log, wait: Wait) -> PayloadError:
    """Run the program that reboots and wait for it to happen. Returns the error when it does not."""
    log.info("Rebooting")
    command = " ".join(argv)
    result = proc.run(argv, timeout_s=REBOOT_WAIT_S, wait=wait)
    if not result.ok:
        return PayloadError(
            f"`{command}` {result.describe()}", hint=f"the agent must be root, and {argv[0]} on PATH"
        )
    wait((), time.monotonic() + REBOOT_WAIT_S)
    return PayloadError(f"the system did not go down within {REBOOT_WAIT_S} s after `{command}`")


def _told(step: Step, error: UpdateError) -> str:
    """An error with where it happened, in words of the field: a hook, a call of the module, or a state."""
    work = step.work
    where = work.subject if work.kind in {"hook", "module", "query"} else state_of(step)
    return f"{where}: {error}" if where else str(error)


def root_devices(config: Config) -> tuple[str, str]:
    """The root partition the system runs from and the other one; empty texts when there is no such pair."""
    from update_agent.slots import Slots

    slots = Slots(config.rootfs_part_a, config.rootfs_part_b)
    try:
        if slots.is_configured:
            one, other = slots.both()
            return (one.device, other.device) if slots.runs_from(one) else (other.device, one.device)
    except UpdateError:
        pass  # scripts must also run on a device whose partitions are wrong; writing to them is what checks
    return "", ""
