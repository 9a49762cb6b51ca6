# SPDX-License-Identifier: Apache-2.0
"""A pause goes on after a power cut, as many as there may be (PauseSurvivesRestart, the default)."""

from __future__ import annotations

from typing import Any

import pytest

from update_tools.conform import scenarios

POINTS = {
    "ArtifactInstall_Enter": "pause_before_installing",
    "ArtifactReboot_Enter": "pause_before_rebooting",
    "ArtifactCommit_Enter": "pause_before_committing",
}
BEFORE = {
    "ArtifactInstall_Enter": [
        "status:downloading",
        "script:Download_Enter_00",
        "module:ProvidePayloadFileSizes",
        "module:Download",
        "script:Download_Leave_00",
    ],
    "ArtifactReboot_Enter": [
        "status:installing",
        "script:ArtifactInstall_Enter_00",
        "module:ArtifactInstall",
        "script:ArtifactInstall_Leave_00",
        "query:NeedsArtifactReboot",
    ],
    "ArtifactCommit_Enter": [
        "status:rebooting",
        "script:ArtifactReboot_Enter_00",
        "module:ArtifactReboot",
        "module:ArtifactVerifyReboot",
        "script:ArtifactReboot_Leave_00",
    ],
}
SUCCESS = [
    "status:installing",
    "script:ArtifactCommit_Enter_00",
    "module:ArtifactCommit",
    "script:ArtifactCommit_Leave_00",
    "module:Cleanup",
    "status:success",
]
ROLLBACK = [
    "query:SupportsRollback",
    "script:ArtifactRollback_Enter_00",
    "module:ArtifactRollback",
    "script:ArtifactRollback_Leave_00",
    "query:NeedsArtifactReboot",
    "script:ArtifactRollbackReboot_Enter_00",
    "module:ArtifactRollbackReboot",
    "module:ArtifactVerifyRollbackReboot",
    "script:ArtifactRollbackReboot_Leave_00",
    "script:ArtifactFailure_Enter_00",
    "module:ArtifactFailure",
    "script:ArtifactFailure_Leave_00",
    "module:Cleanup",
    "status:failure",
    "logs",
]


def scenario(point: str, events: list[dict[str, Any]], trace: list[str], name: str) -> dict[str, Any]:
    return {
        "id": f"pause-survives-{point}",
        "mode": "daemon",
        "given": {
            "supports_rollback": True,
            "needs_reboot": "Yes",
            "faults": [],
            "config": {"PauseSurvivesRestart": True},
            "server_map": {"states": {point: {"action": "pause"}}},
            "control_events": events,
        },
        "expect": {"trace": trace, "artifact_name": name},
    }


def reached(point: str) -> list[str]:
    """The trace up to the first pause at a point."""
    trace: list[str] = []
    for other, events in BEFORE.items():
        trace += [*events, "map_refresh:200"]
        if other == point:
            return [*trace, f"control:{point}=pause", f"status:{POINTS[point]}"]
        trace.append(f"control:{other}=continue")
    raise AssertionError(point)


def again(point: str) -> list[str]:
    """What a restart during the pause adds."""
    return ["kill", "boot", "map_refresh:200", f"control:{point}=pause", f"status:{POINTS[point]}"]


def went_on(point: str) -> list[str]:
    trace = ["event:patch", "map_refresh:200", f"control:{point}=continue"]
    points = list(POINTS)
    for other in points[points.index(point) + 1 :]:
        trace += [*BEFORE[other], "map_refresh:200", f"control:{other}=continue"]
    return trace + SUCCESS


@pytest.mark.parametrize("point", POINTS)
def test_a_pause_goes_on_after_power_cuts_and_can_be_ended(point: str) -> None:
    events = [{"type": "kill"}, {"type": "kill"}, {"type": "patch", "map": {"states": {}}}]
    trace = reached(point) + 2 * again(point) + went_on(point)
    scenarios.play(scenario(point, events, trace, "new"))


@pytest.mark.parametrize("point", POINTS)
def test_a_deployment_can_be_aborted_after_the_power_cut(point: str) -> None:
    events = [{"type": "kill"}, {"type": "server_404"}]
    trace = reached(point) + again(point) + ["event:server_404", "map_refresh:404", *ROLLBACK]
    scenarios.play(scenario(point, events, trace, "old"))


def test_many_power_cuts_during_a_pause_are_not_a_loop() -> None:
    point = "ArtifactReboot_Enter"
    events = [{"type": "kill"}] * 30 + [{"type": "patch", "map": {"states": {}}}]
    trace = reached(point) + 30 * again(point) + went_on(point)
    scenarios.play(scenario(point, events, trace, "new"))
