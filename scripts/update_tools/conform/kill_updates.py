# SPDX-License-Identifier: Apache-2.0
"""Which updates the kill matrix plays, and which kills of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from update_agent.errors import UpdateError
from update_agent.states import DAEMON_STEPS, POINTS, WIRE_POINTS
from update_tools.conform.ab_device import MODULE, ROOTFS, AbDevice
from update_tools.conform.try_device import TryDevice

if TYPE_CHECKING:
    from collections.abc import Sequence

BEFORE, AFTER = "before", "after"  # sides of a point
KILL, CUT = "kill", "cut"  # ways: the agent alone, at once started again; or everything, and the device boots
TORN = "torn"  # a cut in the middle of a write to the boot environment: the copy that was written is damaged
ENVIRONMENT_WRITTEN = "end environment write"
_PAST_PAUSE = 8  # points after a pause that still have to do with it


class Pause:
    """An update held at a point by someone, until someone else or the same tells it how to go on."""

    def __init__(self, point: str, by: str, end: str, end_by: str = "") -> None:
        self.point = point
        self.by = by
        self.end = end
        self.end_by = end_by or by


class Update:
    """A kind of update: what is installed, what fails, and how it ends undisturbed."""

    def __init__(
        self,
        name: str,
        end: str,
        *,
        payload_type: str = ROOTFS,
        reboot: str = "",
        faults: dict[str, int] | None = None,
        pause: Pause | None = None,
        is_standalone: bool = False,
        is_tryboot: bool = False,
    ) -> None:
        self.name = name
        self.end = end  # success or failure
        self.payload_type = payload_type
        self.reboot = reboot
        self.faults = faults or {}
        self.pause = pause
        self.is_standalone = is_standalone
        self.is_tryboot = is_tryboot

    def device(self, *, keep: bool) -> AbDevice:
        """A fresh device for it."""
        kind = TryDevice if self.is_tryboot else AbDevice
        return kind(self.payload_type, reboot=self.reboot, faults=self.faults, keep=keep)


def _paused(point: str, by: str, end: str, end_by: str = "", *, is_tryboot: bool = False) -> Update:
    name = f"{'tryboot-' if is_tryboot else ''}{by}-pauses-{point.replace('_', '-')}-{end}"
    if end_by:
        name += f"-by-{end_by}"
    pause = Pause(point, by, end, end_by)
    return Update(name, "success" if end == "continue" else "failure", pause=pause, is_tryboot=is_tryboot)


UPDATES = (
    Update("success", "success"),
    Update("rollback-by-script", "failure", faults={"ArtifactReboot_Leave_00": 1}),
    Update(
        "rollback-by-module",
        "failure",
        payload_type=MODULE,
        reboot="Yes",
        faults={"ArtifactVerifyReboot": 1},
    ),
    Update(
        "commit-failure", "failure", payload_type=MODULE, reboot="Automatic", faults={"ArtifactCommit": 1}
    ),
    Update("standalone", "success", is_standalone=True),
    _paused("ArtifactInstall_Enter", "server", "continue"),
    _paused("ArtifactCommit_Enter", "server", "fail"),
    _paused("ArtifactReboot_Enter", "bus", "continue"),
    _paused("ArtifactInstall_Enter", "bus", "fail"),
    _paused("ArtifactCommit_Enter", "hook", "continue"),
    _paused("ArtifactReboot_Enter", "hook", "fail"),
    _paused("ArtifactReboot_Enter", "command", "continue"),
    _paused("ArtifactCommit_Enter", "command", "fail"),
    _paused("ArtifactCommit_Enter", "bus", "continue", "command"),
    _paused("ArtifactInstall_Enter", "hook", "continue", "command"),
    # Points of our own, which no server knows.
    *(_paused(point, "command", "continue") for point in POINTS if point not in WIRE_POINTS),
    *(_paused(point, "hook", "fail") for point in POINTS if point not in WIRE_POINTS),
    # The same with Raspberry Pi's firmware as the boot loader.
    Update("tryboot-success", "success", is_tryboot=True),
    Update("tryboot-rollback", "failure", is_tryboot=True, faults={"ArtifactReboot_Leave_00": 1}),
    Update("tryboot-commit-refused", "failure", is_tryboot=True, faults={"ArtifactCommit_Enter_00": 1}),
    Update("tryboot-standalone", "success", is_tryboot=True, is_standalone=True),
    *(
        _paused(point, "command", end, is_tryboot=True)
        for point, end in (
            ("ArtifactInstall_Leave", "continue"),
            ("ArtifactReboot_Enter", "continue"),
            ("ArtifactReboot_Leave", "fail"),
            ("ArtifactCommit_Enter", "continue"),
        )
    ),
)


class Kill:
    """Where the agent is killed: at the n-th point of a name, on one side of it, and how."""

    def __init__(self, ordinal: int, step: str, name: str, occurrence: int, side: str, way: str) -> None:
        self.ordinal = ordinal
        self.step = step
        self.name = name
        self.occurrence = occurrence
        self.side = side
        self.way = way
        self.again = False  # kill also at the first point after it

    @property
    def spec(self) -> str:
        """As --point takes it."""
        return f"{self.ordinal}:{self.side}:{self.way}" + (":twice" if self.again else "")

    def __str__(self) -> str:
        return f"{self.spec} ({self.step}: {self.name})"


def kills_of(update: Update, points: Sequence[tuple[str, str]]) -> list[Kill]:
    """All kills of an update. One that is paused has those around its pause; the rest is another one's."""
    counts: dict[str, int] = {}
    window = range(len(points) + 1)
    if update.pause is not None:
        at = [number for number, (step, _) in enumerate(points, 1) if _is_at(step, update.pause.point)]
        if not at:
            raise UpdateError(f"{update.name}: it was not paused")
        window = range(at[0], at[-1] + 1 + _PAST_PAUSE)
    found = []
    for ordinal, (step, name) in enumerate(points, 1):
        counts[name] = counts.get(name, 0) + 1
        if ordinal in window:
            found.append((ordinal, step, name, counts[name]))
    # Not point by point: so every sample has all sides and ways.
    kills = [Kill(*each, side, way) for side in (BEFORE, AFTER) for way in (KILL, CUT) for each in found]
    return kills + [Kill(*each, BEFORE, TORN) for each in found if each[2] == ENVIRONMENT_WRITTEN]


def is_usual(kill: Kill) -> bool:
    """Half of them: what is after one point is before the next, unless something was started meanwhile."""
    usual = {(BEFORE, KILL), (AFTER, CUT), (BEFORE, TORN)}
    return (kill.side, kill.way) in usual or kill.name.startswith("start ")


def _is_at(step: str, point: str) -> bool:
    return (
        step in DAEMON_STEPS
        and DAEMON_STEPS[step].work.kind == "control"
        and DAEMON_STEPS[step].work.subject == point
    )
