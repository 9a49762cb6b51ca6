# SPDX-License-Identifier: Apache-2.0
"""Every decision about a deployment, without I/O: reports, hand-out, and what a button does to a map.

The words are those of the device API (spec device-api.md section 4, control-map.md sections 1 and 8).
gates.py has the decisions about many devices, schedule.py those about when.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from update_agent import control, states
from update_agent.errors import ControlError
from update_tools.server.faults import Unprocessable


@dataclass(frozen=True)
class Point:
    """One place where a device can wait: its name in a control map, its status word, words for people."""

    name: str
    status: str
    phase: str
    label: str


def _point(step: states.Step) -> Point:
    phase = step.work.state.removeprefix("Artifact")
    return Point(step.work.subject, step.pause_report, phase, f"paused before {phase.lower()}")


# The agent's table is the one list of pause points.
POINTS = tuple(
    _point(step)
    for step in states.DAEMON
    if step.work.subject in states.WIRE_POINTS and step.work.kind == "control"
)
BY_NAME = {point.name: point for point in POINTS}
BY_STATUS = {point.status: point for point in POINTS}

PAUSED = tuple(point.status for point in POINTS)
RUNNING = ("downloading", "installing", "rebooting")
REPORTABLE = (*RUNNING, *PAUSED, "success", "failure", "already-installed")
FINISHED = ("success", "failure", "aborted", "noartifact", "already-installed", "decommissioned")
STATUSES = ("pending", *RUNNING, *PAUSED, *FINISHED)
FAILED = ("failure", "aborted", "noartifact", "decommissioned")
SKIPPED = ("already-installed", "noartifact", "decommissioned")  # never tried

# How far a device is. A status alone does not tell: "installing" is reported again before the commit.
STAGES = ("Waiting", "Download", "Install", "Reboot", "Commit", "Done")
MAX_RETRIES = 100

# Worded so that a map exists but decides nothing: without a map a device never asks again (control-map.md
# section 6, consequences), and a person could not stop it later.
OPEN_MAP: dict[str, Any] = {"states": {"ArtifactCommit_Enter": {"action": "continue"}}}


# --- reports -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What to do with a report. `answer`: store, retry (store, then another attempt), known (nothing new),
    unknown (404) or conflict (409).
    """

    answer: str
    substate: str = ""
    reason: str = ""


def judge_report(
    *,
    current: str,
    is_started: bool,
    substate: str,
    reported: str,
    reported_substate: str | None,
    attempt: int = 1,
    attempts: int = 1,
) -> Verdict:
    """Whether a device's report is taken, and the substate that is kept with it.

    The device is the only witness, so any word may follow any other while the deployment runs: after a power
    cut a device may well download again after it rebooted. A finished deployment stays as it finished.
    `is_started`: the present attempt was handed out.
    """
    if current in ("aborted", "decommissioned"):
        return Verdict("conflict", reason=f"the deployment was {current} on the server")
    if not is_started and current == "pending":
        if attempt > 1 and reported == "failure":
            return Verdict("known", substate)  # of the attempt before; our answer got lost
        return Verdict("unknown", reason="the deployment was never handed out to this device")
    if current in FINISHED:
        if reported == current:
            return Verdict("known", substate)
        return Verdict("conflict", reason=f"the deployment already ended as {current} on this device")
    if reported == "failure":
        # Where it was when it failed; the agent sends the cause here, older clients send nothing.
        kept = reported_substate or substate
        if attempt < attempts:
            return Verdict("retry", kept)
    else:
        kept = reported_substate or ""
    if reported == current and kept == substate:
        return Verdict("known", kept)
    return Verdict("store", kept)


def stage_after(stage: int, status: str, reported: str) -> int:
    """How far a device is (a number in STAGES) after a report, from where it was."""
    if reported in ("installing", "pause_before_rebooting"):
        is_commit = reported == "installing" and (stage >= 3 or status == "pause_before_committing")
        return 4 if is_commit else 2
    known = {"downloading": 1, "pause_before_installing": 1, "rebooting": 3, "pause_before_committing": 3}
    return 5 if reported == "success" else known.get(reported, stage)


def stage_reaches(status: str, stage: int, point: str) -> bool:
    """Whether a device waits at the point or got past it. One that is out of the deployment does not."""
    if status in FAILED or status in SKIPPED:
        return False
    return status == BY_NAME[point].status or stage >= STAGES.index(BY_NAME[point].phase)


# --- hand-out ------------------------------------------------------------------------------------------


def choose_artifact(artifacts: Iterable[tuple[str, list[str]]], device_type: str) -> str | None:
    """The id of the newest artifact (given oldest first) that is for this device type."""
    chosen = None
    for artifact_id, device_types in artifacts:
        if device_type in device_types:
            chosen = artifact_id
    return chosen


def judge_poll(
    *,
    artifact_name: str,
    force_installation: bool,
    control_map: Mapping[str, Any] | None,
    installed: str,
    understands_maps: bool,
    has_artifact: bool,
) -> str:
    """What a poll does to a waiting deployment: hand-out, already-installed, noartifact, or hold.

    hold: a pause was asked for and this client would run straight through it. It gets nothing until the
    deployment is continued or aborted.
    """
    if artifact_name == installed and not force_installation:
        return "already-installed"
    if not has_artifact:
        return "noartifact"
    if control_map is not None and not understands_maps and pending_points(control_map):
        return "hold"
    return "hand-out"


def hand_out_map(control_map: Mapping[str, Any] | None, deployment_id: str) -> dict[str, Any] | None:
    """The map as a device gets it: with the deployment's id, or None if the deployment has none."""
    if control_map is None:
        return None
    return {"id": deployment_id, **control_map}


def device_map(
    control_map: Mapping[str, Any] | None, decisions: Mapping[str, str] | None
) -> Mapping[str, Any] | None:
    """The map for one device: what was decided for it alone counts before what counts for all."""
    for point, action in (decisions or {}).items():
        control_map = with_action(control_map, point, action)
    return control_map


def check_map(value: Any, deployment_id: str) -> dict[str, Any]:
    """The map of a management request, checked with the agent's own parser, field names in lower case.

    The reference server checks nothing, and a broken map makes every device fail. Raises Unprocessable
    naming the field that is wrong.
    """
    if not isinstance(value, dict):
        raise Unprocessable("update_control_map must be an object")
    if any(name.lower() == "id" for name in value):
        raise Unprocessable("update_control_map.id is set by the server", hint="leave it out")
    try:
        control.parse_value({"id": deployment_id, **value})
    except ControlError as error:
        raise Unprocessable(f"update_control_map: {error.message}", hint=error.hint) from error
    lower = {name.lower(): entry for name, entry in value.items() if entry is not None}
    lower["states"] = {
        point: {name.lower(): word for name, word in state.items() if word}
        for point, state in (lower.get("states") or {}).items()
        if state
    }
    return lower


# --- buttons -------------------------------------------------------------------------------------------


def action_at(control_map: Mapping[str, Any] | None, point: str) -> str:
    """The action a map has at a point; continue if it says nothing."""
    state = (control_map or {}).get("states", {}).get(point) or {}
    return state.get("action") or "continue"


def pending_points(control_map: Mapping[str, Any]) -> list[str]:
    """The points where this map stops a device: pause or fail."""
    return [point.name for point in POINTS if action_at(control_map, point.name) in ("pause", "fail")]


def with_action(control_map: Mapping[str, Any] | None, point: str, action: str) -> dict[str, Any]:
    """The map with one point set to exactly this action; the other points and the priority stay."""
    present = dict(control_map or {})
    present["states"] = {**present.get("states", {}), point: {"action": action}}
    return present


def pause_map(points: Iterable[str]) -> dict[str, Any]:
    """The map for the ticked pauses; none ticked gives the map that keeps the option open."""
    states = {point.name: {"action": "pause"} for point in POINTS if point.name in set(points)}
    return {"states": states} if states else OPEN_MAP


# --- sums ----------------------------------------------------------------------------------------------


def statistics(statuses: Iterable[str]) -> dict[str, int]:
    """How many devices have each status; every word is there."""
    counts = dict.fromkeys(STATUSES, 0)
    for status in statuses:
        counts[status] += 1
    return counts


def overall(statuses: Iterable[str]) -> str:
    """pending, inprogress or finished, as the management API says it."""
    seen = set(statuses)
    if seen <= set(FINISHED):
        return "finished"
    return "pending" if seen == {"pending"} else "inprogress"


def waiting_points(statuses: Iterable[str]) -> list[Point]:
    """The points where at least one device waits now."""
    seen = set(statuses)
    return [point for point in POINTS if point.status in seen]


def label(status: str, stage: int = 0) -> str:
    """A status for people."""
    if status == "installing" and STAGES[stage] == "Commit":
        return "committing"
    return BY_STATUS[status].label if status in BY_STATUS else status.replace("-", " ")
