# SPDX-License-Identifier: Apache-2.0
"""Pause hooks through the real agent: limits, programs, windows, broken ones, and who overrules whom."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.flow.test_pause_survives import BEFORE, POINTS, ROLLBACK, SUCCESS

from update_tools.conform import scenarios

INSTALL, REBOOT, COMMIT = POINTS
LIMIT = {"limit_s": 5, "at_limit": "continue"}


def play(
    hooks: dict[str, dict[str, Any]],
    trace: list[str],
    *,
    name: str = "new",
    events: list[dict[str, Any]] | None = None,
    server_map: dict[str, Any] | None = None,
) -> None:
    given = {
        "supports_rollback": True,
        "needs_reboot": "Yes",
        "faults": [],
        "config": {"PauseSurvivesRestart": True},
        "control_events": events or [],
        "pause_hooks": hooks,
    }
    if server_map is not None:
        given["server_map"] = server_map
    scenarios.play(
        {
            "id": "pause-hooks",
            "mode": "daemon",
            "given": given,
            "expect": {"trace": trace, "artifact_name": name},
        }
    )


def way(point: str, *there: str) -> list[str]:
    """The trace to a point, then `there`, then to the end if that lets the update go on."""
    trace: list[str] = []
    for other, before in BEFORE.items():
        trace += before
        if other == point:
            trace += there
            if there[-1] != f"control:{other}=continue":
                return trace
        else:
            trace.append(f"control:{other}=continue")
    return trace + SUCCESS


def paused(point: str) -> list[str]:
    return [f"control:{point}=pause", f"status:{POINTS[point]}"]


def program(tmp_path: Path, body: str) -> str:
    """A hook's program. Its calls can be counted in $calls; they are no part of the trace."""
    path = tmp_path / "ask"
    calls = tmp_path / "calls"
    path.write_text(f"#!/bin/sh\nset -eu\necho call >>{calls}\ncalls=$(wc -l <{calls})\n{body}\n")
    path.chmod(0o755)
    return str(path)


def asking(point: str, path: str, limit_s: int = 3600) -> dict[str, Any]:
    return {
        "point": point,
        "when": {"program": path, "interval_s": 1},
        "limit_s": limit_s,
        "at_limit": "fail",
    }


@pytest.mark.parametrize("point", POINTS)
def test_a_hook_holds_until_its_limit(point: str) -> None:
    hook = {"point": point, "when": "always", "limit_s": 1, "at_limit": "continue"}
    play({"10-hold.json": hook}, way(point, *paused(point), f"control:{point}=continue"))


@pytest.mark.parametrize("point", [REBOOT, COMMIT])
def test_a_hook_may_fail_the_update_at_its_limit(point: str) -> None:
    hook = {"point": point, "when": "always", "limit_s": 1, "at_limit": "fail"}
    trace = way(point, *paused(point), f"control:{point}=fail") + ROLLBACK
    play({"10-hold.json": hook}, trace, name="old")


@pytest.mark.parametrize("point", POINTS)
def test_a_hook_goes_on_holding_after_a_power_cut(point: str) -> None:
    hook = {"point": point, "when": "always", **LIMIT}
    again = ["kill", "boot", *paused(point)]
    trace = way(point, *paused(point), *again, f"control:{point}=continue")
    play({"10-hold.json": hook}, trace, events=[{"type": "kill"}])


def test_a_program_keeps_waiting_and_then_goes_on(tmp_path: Path) -> None:
    path = program(tmp_path, '[ "$UPDATE_STATE" = ArtifactReboot ]\n[ "$calls" -ge 3 ] || exit 21')
    play({"10-ask.json": asking(REBOOT, path)}, way(REBOOT, *paused(REBOOT), f"control:{REBOOT}=continue"))
    assert (tmp_path / "calls").read_text() == "call\n" * 3


def test_a_program_fails_the_update(tmp_path: Path) -> None:
    path = program(tmp_path, "exit 1")
    play(
        {"10-ask.json": asking(REBOOT, path)}, [*way(REBOOT, f"control:{REBOOT}=fail"), *ROLLBACK], name="old"
    )
    assert (tmp_path / "calls").read_text() == "call\n"


def test_an_open_window_lets_the_update_go_on() -> None:
    hook = {"point": INSTALL, "when": {"outside": "00:00 UTC", "lasting_s": 86400}}
    play({"10-night.json": hook}, way(INSTALL, f"control:{INSTALL}=continue"))


def test_a_person_overrules_hooks_that_hold(tmp_path: Path) -> None:
    """The person is a program here that is asked, and gives the command when the update is paused.

    Were hooks not overruled, its limit would fail the update.
    """
    far = time.gmtime(time.time() + 12 * 3600).tm_hour
    command = f"[ $calls -lt 2 ] || {sys.executable} -m update_agent continue {REBOOT} >&2"
    hooks = {
        "10-night.json": {"point": REBOOT, "when": {"outside": f"{far}:30 UTC", "lasting_s": 60}},
        "20-broken.json": {"point": REBOOT, "when": "never"},
        "30-ask.json": asking(REBOOT, program(tmp_path, f"{command}\nexit 21"), limit_s=20),
    }
    play(hooks, way(REBOOT, *paused(REBOOT), f"control:{REBOOT}=continue"))
    assert (tmp_path / "calls").read_text() == "call\n" * 2


def with_refreshes(trace: list[str]) -> list[str]:
    """The trace of a deployment for which the server has a map: it is asked before each decision."""
    result: list[str] = []
    for event in trace:
        if event.startswith("control:"):
            result.append("map_refresh:200")
        result.append(event)
    return result


def test_the_server_can_fail_an_update_that_a_hook_holds() -> None:
    hook = {"point": REBOOT, "when": "always"}
    events = [{"type": "patch", "map": {"states": {REBOOT: {"action": "fail"}}}}]
    trace = with_refreshes(way(REBOOT, *paused(REBOOT)))
    trace += ["event:patch", "map_refresh:200", f"control:{REBOOT}=fail", *ROLLBACK]
    play({"10-hold.json": hook}, trace, name="old", events=events, server_map={"states": {}})


def test_a_map_holds_where_a_hook_has_let_go() -> None:
    hook = {"point": REBOOT, "when": {"outside": "00:00 UTC", "lasting_s": 86400}}
    events = [{"type": "patch", "map": {"states": {}}}]
    there = [*paused(REBOOT), "event:patch", f"control:{REBOOT}=continue"]
    server_map = {"states": {REBOOT: {"action": "pause"}}}
    play({"10-night.json": hook}, with_refreshes(way(REBOOT, *there)), events=events, server_map=server_map)
