# SPDX-License-Identifier: Apache-2.0
"""The device side of the rules, applied to the database: hand-out, reports, maps, logs, inventory.

deployments.py has what people decide, fleet.py what the server decides by itself. Each function works in the
caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, contains_eager

from update_tools.server import fleet, gates, live, rollout
from update_tools.server.db import Artifact, Deployment, Device, Part, now
from update_tools.server.faults import Conflict, NotFound
from update_tools.server.records import (
    DEVICE,
    SERVER,
    finish_if_done,
    get_part,
    lock_deployment,
    note,
    relock,
    set_status,
)


@dataclass(frozen=True)
class HandOut:
    """What a poll gives a device."""

    deployment_id: str
    artifact: Artifact
    control_map: dict[str, Any] | None


def poll(
    session: Session, device: Device, provides: Mapping[str, str], *, understands_maps: bool
) -> HandOut | None:
    """The deployment a device gets: one it has already, else the oldest that is due.

    Deployments it needs no artifact for, or has none for, end here.
    """
    device.artifact_name = provides["artifact_name"]
    device.device_type = provides["device_type"]
    session.flush()  # the device's row first, then the deployment's (database.py)
    for part in open_parts(session, device.id):
        deployment = part.deployment
        if part.handed_out_at is None:
            deployment = lock_deployment(session, part.deployment_id)
            relock(session, part)
            if part.finished_at is not None or not _is_due(part, deployment):
                continue
        back(session, part)
        artifact_id = part.artifact_id or _artifact_for(session, deployment.artifact_name, device.device_type)
        control_map = part_map(part, deployment)
        answer = rollout.judge_poll(
            artifact_name=deployment.artifact_name,
            force_installation=deployment.force_installation,
            control_map=control_map,
            installed=device.artifact_name,
            understands_maps=understands_maps,
            has_artifact=artifact_id is not None,
        )
        if answer == "hold":
            _hold(session, part)
            return None
        if answer != "hand-out":
            if part.handed_out_at is not None:  # handed out before, and installed by other means since
                deployment = lock_deployment(session, part.deployment_id)
                relock(session, part)
                if part.finished_at is not None:
                    continue
            set_status(session, part, answer, "", source=SERVER)
            finish_if_done(session, deployment)
            continue
        artifact = session.get(Artifact, artifact_id)
        assert artifact is not None
        if part.handed_out_at is None:
            _hand_out(session, part, artifact)
        return HandOut(deployment.id, artifact, rollout.hand_out_map(control_map, deployment.id))
    return None


def report(session: Session, device: Device, deployment_id: str, status: str, substate: str | None) -> None:
    """Take a device's report. Raises NotFound, or Conflict when the deployment is over on the server."""
    deployment = session.get(Deployment, deployment_id)
    if deployment is None:
        raise NotFound("there is no such deployment for this device")
    is_counted = status in rollout.FINISHED or deployment.rules is not None
    if is_counted:
        deployment = lock_deployment(session, deployment_id)
    part = get_part(session, deployment_id, device.id, for_update=True)
    back(session, part)
    told = live.parse(substate)
    if told is not None:
        if part.handed_out_at is not None and part.finished_at is None:
            _note_live(session, part, status, told)
        if told.is_live and part.status != "aborted":
            return
        substate = None
    verdict = rollout.judge_report(
        current=part.status,
        is_started=part.handed_out_at is not None,
        substate=part.substate,
        reported=status,
        reported_substate=substate,
        attempt=part.attempt,
        attempts=deployment.retries + 1,
    )
    if verdict.answer == "unknown":
        raise NotFound(verdict.reason)
    if verdict.answer == "conflict":
        raise Conflict(verdict.reason)
    if verdict.answer == "retry":
        _try_again(session, part, verdict.substate, deployment.retries + 1)
    elif verdict.answer == "store":
        set_status(session, part, status, verdict.substate, source=DEVICE)
    else:
        return
    if is_counted:
        finish_if_done(session, deployment)
        fleet.settle(session, deployment)


@dataclass(frozen=True)
class MapAnswer:
    """A control map as a device gets it, its version, and whether the device has not had this one yet."""

    value: dict[str, Any]
    version: int
    is_news: bool


def control_map(session: Session, device: Device, deployment_id: str) -> MapAnswer:
    """The present map for a device's refresh. Raises NotFound when its deployment is over or has no map."""
    part = get_part(session, deployment_id, device.id)
    if part.finished_at is not None or part.handed_out_at is None:
        raise NotFound(f"the deployment is {part.status} for this device")
    present = rollout.hand_out_map(part_map(part, part.deployment), deployment_id)
    if present is None:
        raise NotFound("the deployment has no control map")
    version = part.deployment.map_version + part.map_version
    return MapAnswer(present, version, part.map_taken < version or part.vanished_at is not None)


def note_map_taken(session: Session, device_id: str, deployment_id: str, version: int) -> None:
    """Write down that a device has this version of its map: it knows what was decided."""
    part = get_part(session, deployment_id, device_id, for_update=True)
    back(session, part)
    if part.map_taken < version and part.finished_at is None:
        part.map_taken, part.map_taken_at = version, now()
        note(session, deployment_id, device_id, DEVICE, "took the new map")


def store_log(session: Session, device: Device, deployment_id: str, messages: list[dict[str, Any]]) -> None:
    """Keep a device's deployment log; a second upload replaces the first, as after a lost answer."""
    part = get_part(session, deployment_id, device.id, for_update=True)
    part.log = messages
    part.log_at = now()
    # A log follows the report of its failure, and that may already have begun the next attempt.
    is_of_last = part.attempt > 1 and part.handed_out_at is None
    part.log_attempt = part.attempt - 1 if is_of_last else part.attempt
    note(
        session,
        deployment_id,
        device.id,
        DEVICE,
        "log uploaded",
        f"{len(messages)} message{'s' if len(messages) != 1 else ''}",
    )


def store_inventory(device: Device, attributes: list[dict[str, Any]]) -> None:
    """Replace all attributes of a device."""
    device.inventory = sorted(attributes, key=lambda attribute: str(attribute["name"]))
    device.inventory_at = now()


def open_parts(session: Session, device_id: str) -> Sequence[Part]:
    """A device's unfinished parts that are due: what it has begun first, then the oldest deployment."""
    return session.scalars(
        select(Part)
        .join(Deployment)
        .options(contains_eager(Part.deployment))
        .where(
            Part.device_id == device_id,
            Part.finished_at.is_(None),
            or_(Part.due_at.is_(None), Part.due_at <= now(), Part.handed_out_at.is_not(None)),
            or_(Deployment.held_at.is_(None), Part.handed_out_at.is_not(None)),
        )
        .order_by(Part.handed_out_at.is_(None), Deployment.created_at, Deployment.id)
    ).all()


def part_map(part: Part, deployment: Deployment) -> Mapping[str, Any] | None:
    """A device's map as it counts now: the deployment's, its windows, and what was decided for it alone."""
    present: Mapping[str, Any] | None = deployment.control_map
    if deployment.rules is not None:
        rules = gates.parse(deployment.rules)
        present = gates.timed_map(present, rules, deployment.gate_states or {}, now())
    return rollout.device_map(present, part.decisions)


def back(session: Session, part: Part) -> None:
    """A device that was given up as vanished is heard of again. The part is locked, or only read."""
    if part.vanished_at is not None:
        note(
            session,
            part.deployment_id,
            part.device_id,
            SERVER,
            "back",
            f"silent since {part.vanished_at:%F %T}",
        )
        part.vanished_at = None
        part.device.last_seen_at = now()  # the others of its kind are written later (polls.py)


# --- for people ---------------------------------------------------------------------------------------


def log_text(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    """A log as lines, as the management API and the page show it."""
    return [f"{entry['timestamp']} {str(entry['level']).upper()}: {entry['message']}" for entry in messages]


# --- inside ----------------------------------------------------------------------------------------------


def _is_due(part: Part, deployment: Deployment, moment: datetime | None = None) -> bool:
    at = moment or now()
    return (
        deployment.finished_at is None
        and deployment.held_at is None
        and (part.due_at is None or part.due_at <= at)
    )


def _artifact_for(session: Session, name: str, device_type: str) -> str | None:
    found = session.execute(
        select(Artifact.id, Artifact.device_types).where(Artifact.name == name).order_by(Artifact.created_at)
    )
    return rollout.choose_artifact(((row.id, row.device_types) for row in found), device_type)


def _hand_out(session: Session, part: Part, artifact: Artifact) -> None:
    moment = now()
    part.started_at = part.started_at or moment
    part.handed_out_at = part.changed_at = moment
    part.artifact_id, part.size_bytes = artifact.id, artifact.size_bytes
    part.substate = ""
    part.map_taken, part.map_taken_at = part.deployment.map_version + part.map_version, moment
    text = f"attempt {part.attempt}" if part.attempt > 1 else ""
    note(session, part.deployment_id, part.device_id, SERVER, "handed out", text)


def _try_again(session: Session, part: Part, reason: str, attempts: int) -> None:
    """Take a failure and wait for the device's next poll, which begins the next attempt."""
    note(session, part.deployment_id, part.device_id, DEVICE, "failure", reason)
    part.attempt += 1
    part.status, part.substate, part.stage = "pending", reason, 0
    part.handed_out_at = part.progress_bytes = part.progress_at = None
    part.script = ""
    part.changed_at = now()
    text = f"attempt {part.attempt} of {attempts} with its next poll"
    note(session, part.deployment_id, part.device_id, SERVER, "again", text)


def _note_live(session: Session, part: Part, status: str, told: live.Live) -> None:
    for script in told.ended:
        text = f"{script.name} {script.result} after {script.seconds:.2f} s"
        note(session, part.deployment_id, part.device_id, DEVICE, "script", text)
    if not told.is_live or status != part.status:
        return  # late: it tells about a status that is over
    part.progress_at = now()
    part.script = told.script
    if told.done_bytes is not None:
        part.progress_bytes = told.done_bytes
        part.size_bytes = told.size_bytes or part.size_bytes


def _hold(session: Session, part: Part) -> None:
    why = "held: this client does not understand pauses and would run through them"
    if part.substate != why:
        part.substate = why
        note(session, part.deployment_id, part.device_id, SERVER, "held", why)
