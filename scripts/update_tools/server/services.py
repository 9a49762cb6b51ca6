# SPDX-License-Identifier: Apache-2.0
"""The rules, applied to the database: hand-out, reports, logs, pause, continue, roll back, abort.

Device API, management API and page all come through here. Each function works in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from update_tools.server import rollout
from update_tools.server.db import Artifact, Deployment, Device, Event, Part, new_id, now
from update_tools.server.faults import Conflict, NotFound, Unprocessable

SEEN_EVERY = timedelta(seconds=10)  # a poll that changes nothing costs no write more often than this

DEVICE, SERVER, OPERATOR = "device", "server", "operator"


# --- device side -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HandOut:
    """What a poll gives a device."""

    deployment_id: str
    artifact: Artifact
    control_map: dict[str, Any] | None


def needs_poll_write(session: Session, device: Device, provides: Mapping[str, str]) -> bool:
    """Whether a poll has anything to write down; most have not, and then take no writer's turn."""
    if device.artifact_name != provides["artifact_name"] or device.device_type != provides["device_type"]:
        return True
    if device.last_seen_at is None or now() - device.last_seen_at > SEEN_EVERY:
        return True
    return next(iter(open_parts(session, device.id)), None) is not None


def poll(
    session: Session, device: Device, provides: Mapping[str, str], *, understands_maps: bool
) -> HandOut | None:
    """The deployment a device gets: the oldest open one, the same one again until it is finished.

    Deployments it needs no artifact for, or has none for, end here.
    """
    device.last_seen_at = now()
    device.artifact_name = provides["artifact_name"]
    device.device_type = provides["device_type"]
    for part in open_parts(session, device.id):
        deployment = part.deployment
        found = session.execute(
            select(Artifact.id, Artifact.device_types)
            .where(Artifact.name == deployment.artifact_name)
            .order_by(Artifact.created_at)
        )
        artifact_id = part.artifact_id or rollout.choose_artifact(
            ((row.id, row.device_types) for row in found), device.device_type
        )
        answer = rollout.judge_poll(
            artifact_name=deployment.artifact_name,
            force_installation=deployment.force_installation,
            control_map=deployment.control_map,
            installed=device.artifact_name,
            understands_maps=understands_maps,
            has_artifact=artifact_id is not None,
        )
        if answer == "hold":
            _hold(session, part)
            return None
        if answer != "hand-out":
            _set_status(session, part, answer, "", source=SERVER)
            continue
        if part.started_at is None:
            part.started_at = now()
            part.artifact_id = artifact_id
            part.substate = ""
            _note(session, part.deployment_id, part.device_id, SERVER, "handed out")
        artifact = session.get(Artifact, artifact_id)
        assert artifact is not None
        control_map = rollout.hand_out_map(deployment.control_map, deployment.id)
        return HandOut(deployment.id, artifact, control_map)
    return None


def report(session: Session, device: Device, deployment_id: str, status: str, substate: str | None) -> None:
    """Take a device's report. Raises NotFound, or Conflict when the deployment is over on the server."""
    device.last_seen_at = now()
    part = device_part(session, device, deployment_id)
    verdict = rollout.judge_report(
        current=part.status,
        is_started=part.started_at is not None,
        substate=part.substate,
        reported=status,
        reported_substate=substate,
    )
    if verdict.answer == "unknown":
        raise NotFound(verdict.reason)
    if verdict.answer == "conflict":
        raise Conflict(verdict.reason)
    if verdict.answer == "store":
        _set_status(session, part, status, verdict.substate, source=DEVICE)


def control_map(session: Session, device: Device, deployment_id: str) -> dict[str, Any]:
    """The present map for a device's refresh. Raises NotFound when its deployment is over or has no map."""
    part = device_part(session, device, deployment_id)
    if part.finished_at is not None or part.started_at is None:
        raise NotFound(f"the deployment is {part.status} for this device")
    present = rollout.hand_out_map(part.deployment.control_map, deployment_id)
    if present is None:
        raise NotFound("the deployment has no control map")
    return present


def store_log(session: Session, device: Device, deployment_id: str, messages: list[dict[str, Any]]) -> None:
    """Keep a device's deployment log; a second upload replaces the first, as after a lost answer."""
    part = device_part(session, device, deployment_id)
    device.last_seen_at = now()
    part.log = messages
    part.log_at = now()
    _note(session, deployment_id, device.id, DEVICE, "log uploaded", f"{len(messages)} messages")


def store_inventory(device: Device, attributes: list[dict[str, Any]]) -> None:
    """Replace all attributes of a device."""
    device.inventory = sorted(attributes, key=lambda attribute: str(attribute["name"]))
    device.inventory_at = device.last_seen_at = now()


def device_part(session: Session, device: Device, deployment_id: str) -> Part:
    """A device's part in a deployment. Raises NotFound, also for another device's deployment."""
    return _part(session, deployment_id, device.id)


def open_parts(session: Session, device_id: str) -> Sequence[Part]:
    """A device's unfinished parts, oldest deployment first."""
    return session.scalars(
        select(Part)
        .join(Deployment)
        .where(Part.device_id == device_id, Part.finished_at.is_(None))
        .order_by(Deployment.created_at, Deployment.id)
    ).all()


# --- operator side ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NewDeployment:
    """What a person asks for. `devices` None means all devices accepted now."""

    name: str
    artifact_name: str
    devices: Sequence[str] | None
    force_installation: bool = False
    control_map: Mapping[str, Any] | None = None


def create_deployment(session: Session, wanted: NewDeployment) -> Deployment:
    """Create it. Raises Unprocessable (release, devices, map), Conflict if an equal one is active."""
    known = session.scalars(select(Device)).all()
    accepted = {device.id for device in known if device.status == "accepted"}
    chosen = accepted if wanted.devices is None else set(wanted.devices)
    if not chosen:
        raise Unprocessable("the deployment has no devices", hint="accept a device first")
    strangers = sorted(chosen - accepted)
    if strangers:
        raise Unprocessable(f"no accepted device has the id {strangers[0]!r} ({len(strangers)} such)")
    if session.scalar(select(Artifact.id).where(Artifact.name == wanted.artifact_name).limit(1)) is None:
        raise Unprocessable(f"there is no release {wanted.artifact_name!r}", hint="upload an artifact first")
    deployment_id = new_id()
    checked = None
    if wanted.control_map is not None:
        checked = rollout.check_map(wanted.control_map, deployment_id)
    for other in session.scalars(
        select(Deployment).where(
            Deployment.finished_at.is_(None),
            Deployment.name == wanted.name,
            Deployment.artifact_name == wanted.artifact_name,
        )
    ):
        if {part.device_id for part in other.parts} == chosen:
            raise Conflict(f"an equal deployment is active: {other.id}")
    deployment = Deployment(
        id=deployment_id,
        name=wanted.name,
        artifact_name=wanted.artifact_name,
        force_installation=wanted.force_installation,
        control_map=checked,
    )
    session.add(deployment)
    session.add_all(Part(deployment_id=deployment_id, device_id=device_id) for device_id in sorted(chosen))
    session.flush()
    pauses = rollout.pending_points(checked or {})
    _note(session, deployment_id, None, OPERATOR, "created", ", ".join(pauses))
    return deployment


def replace_map(session: Session, deployment_id: str, value: Any) -> None:
    """PATCH: the whole map is replaced. Raises Conflict when the deployment is over."""
    deployment = active_deployment(session, deployment_id)
    deployment.control_map = rollout.check_map(value, deployment_id)
    said = ", ".join(
        f"{name}: {rollout.action_at(deployment.control_map, name)}"
        for name in deployment.control_map["states"]
    )
    _note(session, deployment_id, None, OPERATOR, "control map changed", said)


def decide(session: Session, deployment_id: str, action: str, point: str | None) -> list[str]:
    """The Continue and Roll back buttons: set points to `continue` or `fail`; returns the points.

    Without a point: those where a device waits now. It is one step in the database, so two people deciding
    at once do not undo each other.
    """
    deployment = active_deployment(session, deployment_id)
    if point is not None:
        if point not in rollout.BY_NAME:
            raise Unprocessable(
                f"{point!r} is not a pause point", hint=f"one of {', '.join(rollout.BY_NAME)}"
            )
        points = [point]
    else:
        waiting = rollout.waiting_points(part.status for part in deployment.parts)
        points = [entry.name for entry in waiting]
        if not points:
            raise Conflict("no device waits at a pause")
    for name in points:
        deployment.control_map = rollout.with_action(deployment.control_map, name, action)
        word = {"continue": "continue", "fail": "roll back", "pause": "pause"}[action]
        _note(session, deployment_id, None, OPERATOR, word, name)
    return points


def abort(session: Session, deployment_id: str) -> None:
    """Stop it: unfinished devices are told at their next request. Raises Unprocessable if it is over."""
    deployment = get_deployment(session, deployment_id)
    if deployment.finished_at is not None:
        raise Unprocessable("the deployment is already finished")
    deployment.is_aborted = True
    _note(session, deployment_id, None, OPERATOR, "abort")
    for part in deployment.parts:
        if part.finished_at is None:
            _set_status(session, part, "aborted", part.substate, source=OPERATOR)


def get_deployment(session: Session, deployment_id: str) -> Deployment:
    """A deployment by id. Raises NotFound."""
    deployment = session.get(Deployment, deployment_id)
    if deployment is None:
        raise NotFound("there is no such deployment")
    return deployment


def active_deployment(session: Session, deployment_id: str) -> Deployment:
    """A deployment that is not over. Raises NotFound or Conflict."""
    deployment = get_deployment(session, deployment_id)
    if deployment.finished_at is not None:
        raise Conflict("the deployment is already finished")
    return deployment


def part_of(session: Session, deployment_id: str, device_id: str) -> Part:
    """One device's part, for a person. Raises NotFound."""
    get_deployment(session, deployment_id)
    return _part(session, deployment_id, device_id)


def events(session: Session, deployment_id: str, device_id: str | None = None) -> Sequence[Event]:
    """What happened, oldest first: to the whole deployment, or to one device with what it concerns."""
    query = select(Event).where(Event.deployment_id == deployment_id).order_by(Event.id)
    if device_id is not None:
        query = query.where((Event.device_id == device_id) | Event.device_id.is_(None))
    else:
        query = query.where(Event.device_id.is_(None))
    return session.scalars(query).all()


def log_text(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    """A log as lines, as the management API and the page show it."""
    return [f"{entry['timestamp']} {str(entry['level']).upper()}: {entry['message']}" for entry in messages]


# --- inside ----------------------------------------------------------------------------------------------


def _part(session: Session, deployment_id: str, device_id: str) -> Part:
    part = session.scalar(
        select(Part).where(Part.deployment_id == deployment_id, Part.device_id == device_id)
    )
    if part is None:
        raise NotFound("there is no such deployment for this device")
    return part


def _set_status(session: Session, part: Part, status: str, substate: str, *, source: str) -> None:
    moment = now()
    if status != part.status:
        part.changed_at = moment
    part.status = status
    part.substate = substate
    if status in rollout.FINISHED:
        part.finished_at = moment
    _note(session, part.deployment_id, part.device_id, source, status, substate)
    if status in rollout.FINISHED:
        session.flush()
        still_open = select(Part.id).where(
            Part.deployment_id == part.deployment_id, Part.finished_at.is_(None)
        )
        if session.scalar(still_open.limit(1)) is None:
            part.deployment.finished_at = moment


def _hold(session: Session, part: Part) -> None:
    why = "held: this client does not understand pauses and would run through them"
    if part.substate != why:
        part.substate = why
        _note(session, part.deployment_id, part.device_id, SERVER, "held", why)


def _note(
    session: Session, deployment_id: str, device_id: str | None, source: str, word: str, text: str = ""
) -> None:
    session.add(Event(deployment_id=deployment_id, device_id=device_id, source=source, word=word, text=text))
