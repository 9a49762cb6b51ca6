# SPDX-License-Identifier: Apache-2.0
"""What an update counts as so far, driven by the events of its steps (states.TRACKING)."""

from __future__ import annotations

from update_agent.states import BROKEN, BY_FLAG, FAILED, OK, ROLLED_BACK, TRACKING, Saved, Step


class Outcome:
    """Success or failure, and whether a failure was undone cleanly."""

    __slots__ = ("value",)

    def __init__(self, value: str = OK) -> None:
        self.value = value

    @classmethod
    def after_restart(cls, saved: Saved, *, all_rollbacks_successful: bool) -> Outcome:
        """What a saved update counts as when it goes on."""
        if saved.considered == BY_FLAG:
            return cls(ROLLED_BACK if all_rollbacks_successful else FAILED)
        return cls(saved.considered)

    def add(self, step: Step, event: str) -> None:
        """Take note of how a step ended."""
        if event in {"fail", "aborted"} and not step.quiet:
            self._move("failure")
        elif event == "loop":
            self._move("loop")
        elif (step.work.subject, event) in {("SupportsRollback", "Yes"), ("rollback_not_needed", "ok")}:
            self._move("rollback_started")

    def _move(self, event: str) -> None:
        self.value = TRACKING[self.value].get(event, self.value)

    @property
    def failed(self) -> bool:
        """The deployment is a failure, whatever else happens."""
        return self.value != OK

    @property
    def undone(self) -> bool:
        """It failed, and the device is as it was before."""
        return self.value == ROLLED_BACK

    @property
    def broken(self) -> bool:
        """It failed and could not be undone, or went in circles."""
        return self.value in {FAILED, BROKEN}
