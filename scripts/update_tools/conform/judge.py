# SPDX-License-Identifier: Apache-2.0
"""Whether what happened on a device is a way through the agent's table, restarts included. No I/O.

The judge keeps all positions at which a walk of the table could be after what was seen so far: a step, and
the stored name with which the agent would come back. Steps that leave no trace are passed in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from update_agent.states import (
    DAEMON_STEPS,
    EXIT,
    IN_STATE,
    STANDALONE_STEPS,
    STATE_BY_NAME,
    next_step,
    resume_after,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from update_agent.states import Step

    Position = tuple[str, str]  # step, stored name ("" for none)

RESTART = "restart"
_DOWNLOAD_CALLS = ("module:ProvidePayloadFileSizes", "module:Download", "module:DownloadWithFileSizes")
# What must never come after what, whatever the table says.
_NEVER_AFTER = {
    "script:ArtifactRollback_Enter": ("ArtifactInstall", "ArtifactReboot", "ArtifactCommit"),
    "module:ArtifactRollback": ("ArtifactInstall", "ArtifactReboot", "ArtifactCommit"),
    "script:ArtifactFailure_Enter": ("ArtifactInstall", "ArtifactReboot", "ArtifactCommit"),
    "script:ArtifactCommit_Leave": ("ArtifactRollback", "ArtifactFailure", "ArtifactInstall"),
    "module:Cleanup": ("ArtifactInstall", "ArtifactReboot", "ArtifactCommit"),
}


class Judge:
    """Follows one update. `has_module`: the payload's calls leave traces; `silent` states have no scripts."""

    def __init__(self, steps: Mapping[str, Step], *, has_module: bool, silent: Iterable[str] = ()) -> None:
        self._steps = steps
        self._has_module = has_module
        self._silent = set(silent)
        self._is_daemon = steps is DAEMON_STEPS
        self._positions: set[Position] = {("idle.enter" if self._is_daemon else "prepare", "")}

    def see(self, event: str) -> bool:
        """Take an event in; False if no way through the table leads there."""
        before = self._passed(self._positions)
        if event == RESTART:
            self._positions = {(self._resumed(name), name) for name in self._saved(before)}
        else:
            self._positions = {
                after
                for step, name in before
                if step != EXIT and event in self._traces(self._steps[step])
                for after in self._after(self._steps[step], name, event)
            }
        return bool(self._positions)

    def may_follow(self) -> list[str]:
        """The events that could come now."""
        return sorted(
            {
                trace
                for step, _ in self._passed(self._positions)
                if step != EXIT
                for trace in self._traces(self._steps[step])
            }
        )

    def _traces(self, step: Step) -> list[str]:
        """Events of which one tells that this step is being done; none if it is silent."""
        kind, subject = step.work.kind, step.work.subject
        if kind == "hook" and step.work.state not in self._silent:
            return [f"script:{subject}"]
        if kind == "report":
            return ["status:success", "status:failure"] if subject == "final" else [f"status:{subject}"]
        if kind == "control":
            return [f"status:{step.pause_report}"]
        if kind == "reboot":
            return ["reboot", f"module:{subject}"]
        if kind in {"module", "query"} and self._has_module:
            return [f"module:{subject}"]
        if kind == "download" and self._has_module:
            return list(_DOWNLOAD_CALLS)
        return []

    def _may_be_silent(self, step: Step) -> bool:
        """Nothing need be seen of it: no pause; a module that is gone; a download that is refused."""
        return not self._traces(step) or step.work.kind in {"control", "download"} or step.name == "cleanup"

    def _stored(self, step: Step, name: str) -> set[str]:
        """The names that may be stored while this step is done."""
        names = {name}
        work = step.work
        for each in (step.save, step.save_mid, step.pause_save, work.subject if work.kind == "save" else ""):
            if each:
                names.add(each)
        if work.subject == "ask_reboot_and_rollback":
            names.add("Before_ArtifactCommit_Enter")
        if work.subject in {"clear", "end_standalone"}:
            names.add("")
        return names

    def _after(self, step: Step, name: str, event: str = "") -> Iterable[Position]:
        names = self._stored(step, name)
        if step.save:
            names -= {name} - {step.save}
        if step.work.subject in {"clear", "end_standalone"}:
            names = {""}
        for result in [*step.edges, "loop"]:
            after = next_step(step, result) if result != "loop" or self._is_daemon else ""
            if after:
                yield from ((after, each) for each in names)
        if event in _DOWNLOAD_CALLS or (event and step.work.kind == "control"):  # more of them may follow
            yield from ((step.name, each) for each in names)

    def _passed(self, positions: Iterable[Position]) -> set[Position]:
        """These positions and all that are reached from them in silence."""
        found, new = set(), list(positions)
        while new:
            position = new.pop()
            if position in found:
                continue
            found.add(position)
            step, name = position
            if step != EXIT and self._may_be_silent(self._steps[step]):
                new += self._after(self._steps[step], name)
        return found

    def _saved(self, positions: Iterable[Position]) -> set[str]:
        return {
            each
            for step, name in positions
            for each in ([name] if step == EXIT else self._stored(self._steps[step], name))
        }

    def _resumed(self, name: str) -> str:
        if self._is_daemon:
            return resume_after(name).resume if name else "idle.enter"
        return IN_STATE[name] if name else EXIT


def first_wrong(events: Sequence[str], *, is_standalone: bool, has_module: bool) -> str:
    """The first thing that may not be, in words; empty if all is well.

    Events: `script:State_Action_NN`, `module:Call`, each with an `end` before it when it has ended;
    `status:NAME`, `reboot`, and RESTART when the agent starts again.
    """
    steps = STANDALONE_STEPS if is_standalone else DAEMON_STEPS
    judge = Judge(steps, has_module=has_module, silent=("Idle", "Sync"))
    running = ""
    forbidden: dict[str, str] = {}
    for number, event in enumerate(events, 1):
        if event.startswith("end "):
            if event != f"end {running}":
                return f"event {number}: {event}, but {running or 'nothing'} was running"
            running = ""
            continue
        if event == RESTART:
            pass  # what runs may end by itself before the agent goes on
        elif event.startswith(("script:", "module:")):
            running = event
        name = event.rpartition("_")[0] if event.startswith("script:") else event
        state = name.partition(":")[2].partition("_")[0]
        if event.startswith(("script:", "module:")) and state in forbidden:
            return f"event {number}: {event} after {forbidden[state]}"
        for state in _NEVER_AFTER.get(name, ()):
            forbidden[state] = event
        expected = judge.may_follow()
        if not judge.see(name):
            return f"event {number}: {event}, where the table has {' or '.join(expected)}"
    return ""


assert set(STATE_BY_NAME) >= {state for states in _NEVER_AFTER.values() for state in states}
