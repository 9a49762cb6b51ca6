# SPDX-License-Identifier: Apache-2.0
"""What people do with deployments: create, pause, continue, roll back, hold, abort; for all devices or some.

Each function works in the caller's transaction and notes who did it (the session's `who`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from update_tools.server import audit, gates, rollout, schedule, targets
from update_tools.server.database import announce
from update_tools.server.db import Artifact, Deployment, Device, Part, new_id, now
from update_tools.server.faults import Conflict, NotFound, Unprocessable
from update_tools.server.records import (
    OPERATOR,
    finish_if_done,
    lock_active,
    lock_deployment,
    lock_parts,
    note,
    note_decision,
    set_status,
)

WORDS = {"continue": "continue", "fail": "roll back", "pause": "pause"}
IN_ONE_QUERY = 500  # device ids; SQLite and PostgreSQL both limit a statement's parameters


@dataclass(frozen=True)
class NewDeployment:
    """What a person asks for.

    Devices: a list, else a group, else a filter, else all; only devices accepted now, at most `max_devices`.
    """

    name: str
    artifact_name: str
    devices: Sequence[str] | None = None
    force_installation: bool = False
    control_map: Mapping[str, Any] | None = None
    group: str = ""
    terms: Sequence[targets.Term] = ()
    max_devices: int | None = None
    start_at: datetime | None = None
    phases: Sequence[schedule.Phase] = ()
    retries: int = 0
    rules: gates.Rules = field(default_factory=gates.Rules)


@dataclass(frozen=True)
class Decided:
    """What a decision concerned: the points, and how many devices; None for the whole deployment."""

    points: list[str]
    devices: int | None = None


def create_deployment(session: Session, wanted: NewDeployment) -> Deployment:
    """Create it. Raises Unprocessable (release, devices, map), Conflict if an equal one is active."""
    if not 0 <= wanted.retries <= rollout.MAX_RETRIES:
        raise Unprocessable(f"retries is {wanted.retries}, must be 0 to {rollout.MAX_RETRIES}")
    chosen = find_targets(session, wanted)
    if session.scalar(select(Artifact.id).where(Artifact.name == wanted.artifact_name).limit(1)) is None:
        raise Unprocessable(f"there is no release {wanted.artifact_name!r}", hint="upload an artifact first")
    deployment_id = new_id()
    control_map = None
    if wanted.control_map is not None:
        control_map = rollout.check_map(wanted.control_map, deployment_id)
    for point in gates.gated_points(wanted.rules, control_map):
        control_map = rollout.with_action(control_map, point, "pause")
    _refuse_equal(session, wanted, set(chosen))
    moment = now()
    batches = schedule.plan(chosen, wanted.phases, start_at=wanted.start_at, now=moment)
    deployment = Deployment(
        id=deployment_id,
        name=wanted.name,
        artifact_name=wanted.artifact_name,
        force_installation=wanted.force_installation,
        control_map=control_map,
        created_at=moment,
        created_by=audit.actor(session).name,
        start_at=batches[0].start_at,
        retries=wanted.retries,
        phases=[batch.document() for batch in batches] if wanted.phases else None,
        targets=_target_document(wanted),
        rules=wanted.rules.document(),
    )
    session.add(deployment)
    session.flush()
    rows = [
        {"deployment_id": deployment_id, "device_id": device_id, "phase": number, "due_at": batch.start_at}
        for number, batch in enumerate(batches)
        for device_id in batch.devices
    ]
    session.execute(insert(Part), rows)
    pauses = rollout.pending_points(control_map or {})
    note_decision(session, deployment_id, None, "created", ", ".join(pauses))
    return deployment


def find_targets(session: Session, wanted: NewDeployment) -> list[str]:
    """The devices that are meant, those heard of last first. Raises Unprocessable if there are none."""
    query = (
        select(Device.id)
        .where(Device.status == "accepted")
        .order_by(func.coalesce(Device.last_seen_at, datetime(1970, 1, 1, tzinfo=UTC)).desc(), Device.id)
    )
    hint = "accept a device first"
    if wanted.devices is not None:
        accepted = list(session.scalars(query))
        listed = set(wanted.devices)
        strangers = sorted(listed.difference(accepted))
        if strangers:
            raise Unprocessable(f"no accepted device has the id {strangers[0]!r} ({len(strangers)} such)")
        found = [device_id for device_id in accepted if device_id in listed]
    elif wanted.group:
        found = list(session.scalars(query.where(Device.group_name == wanted.group)))
        hint = f"is there an accepted device in the group {wanted.group!r}?"
    elif wanted.terms:
        found = [
            row.id
            for row in session.execute(_known(query))
            if targets.matches(wanted.terms, _attributes(row))
        ]
        hint = "no accepted device matches the filter"
    else:
        found = list(session.scalars(query))
    if not found:
        raise Unprocessable("the deployment has no devices", hint=hint)
    return found[: wanted.max_devices]


def replace_map(session: Session, deployment_id: str, value: Any) -> None:
    """PATCH: the whole map is replaced, for every device. Raises Conflict when the deployment is over."""
    deployment = lock_active(session, deployment_id)
    before = deployment.control_map
    deployment.control_map = rollout.check_map(value, deployment_id)
    deployment.map_version += 1
    for point in rollout.BY_NAME:
        if rollout.action_at(before, point) != rollout.action_at(deployment.control_map, point):
            _take_over_gate(deployment, point)
    _drop_decisions(session, deployment_id, tuple(rollout.BY_NAME))
    said = ", ".join(
        f"{name}: {rollout.action_at(deployment.control_map, name)}"
        for name in deployment.control_map["states"]
    )
    note_decision(session, deployment_id, None, "control map changed", said)


def decide(
    session: Session,
    deployment_id: str,
    action: str,
    point: str | None = None,
    devices: Sequence[str] | None = None,
) -> Decided:
    """Continue, roll back (`fail`) or pause at a point; `abort` needs none. The last decision counts.

    For `devices`, or for the whole deployment, and then also for devices that come later. Without a point:
    where the devices wait now. It is one step in the database, so two people deciding at once do not undo
    each other. Raises Conflict when nothing waits, or all is over.
    """
    if point is not None and point not in rollout.BY_NAME:
        raise Unprocessable(f"{point!r} is not a pause point", hint=f"one of {', '.join(rollout.BY_NAME)}")
    if devices is not None:
        return _decide_for(session, deployment_id, action, point, devices)
    if action == "abort":
        abort(session, deployment_id)
        return Decided([])
    deployment = lock_active(session, deployment_id)
    if point is not None:
        points = [point]
    else:
        statuses = session.scalars(
            select(Part.status).where(Part.deployment_id == deployment_id).group_by(Part.status)
        )
        points = [entry.name for entry in rollout.waiting_points(statuses)]
        if not points:
            raise Conflict("no device waits at a pause")
    for name in points:
        deployment.control_map = rollout.with_action(deployment.control_map, name, action)
        _take_over_gate(deployment, name)
        note_decision(session, deployment_id, None, WORDS[action], name)
    deployment.map_version += 1
    _drop_decisions(session, deployment_id, points)
    return Decided(points)


def hold(session: Session, deployment_id: str, why: str = "") -> None:
    """Hand it out to nobody new. What runs goes on; pauses stay. Raises Conflict if it is over or held."""
    deployment = lock_active(session, deployment_id)
    if deployment.held_at is not None:
        raise Conflict("the deployment is held already")
    deployment.held_at, deployment.held_why = now(), why
    note_decision(session, deployment_id, None, "hold", why)


def resume(session: Session, deployment_id: str) -> None:
    """Go on after a hold; the failures up to now are accepted. Raises Conflict if it is not held."""
    deployment = lock_active(session, deployment_id)
    if deployment.held_at is None:
        raise Conflict("the deployment is not held")
    failed = select(func.count()).where(Part.deployment_id == deployment_id, Part.status == "failure")
    deployment.held_at, deployment.held_why = None, ""
    deployment.held_waived = session.scalar(failed) or 0
    note_decision(session, deployment_id, None, "resume", f"{deployment.held_waived} failures accepted")


def abort(session: Session, deployment_id: str) -> None:
    """Stop it: unfinished devices are told at their next request. Raises Unprocessable if it is over."""
    deployment = lock_deployment(session, deployment_id)
    if deployment.finished_at is not None:
        raise Unprocessable("the deployment is already finished")
    abort_all(session, deployment, source=OPERATOR)


def abort_all(session: Session, deployment: Deployment, *, source: str, why: str = "") -> None:
    """Abort a locked deployment: one statement, however many devices it has."""
    moment = now()
    session.flush()
    session.execute(
        update(Part)
        .where(Part.deployment_id == deployment.id, Part.finished_at.is_(None))
        .values(status="aborted", finished_at=moment, changed_at=moment, script="", vanished_at=None),
        execution_options={"synchronize_session": "fetch"},
    )
    deployment.is_aborted = True
    deployment.finished_at = moment
    announce(session, f"deployment:{deployment.id}")
    if source == OPERATOR:
        note_decision(session, deployment.id, None, "abort", why)
    else:
        note(session, deployment.id, None, source, "abort", why)


def abort_for_device(session: Session, device_id: str) -> int:
    """Abort a device's part in every deployment; returns how many there were."""
    unfinished = select(Part.deployment_id).where(Part.device_id == device_id, Part.finished_at.is_(None))
    found = sorted(session.scalars(unfinished))
    for deployment_id in found:
        deployment = lock_deployment(session, deployment_id)
        _abort_parts(session, deployment, lock_parts(session, deployment_id, [device_id]))
    return len(found)


# --- inside ----------------------------------------------------------------------------------------------


def _decide_for(
    session: Session, deployment_id: str, action: str, point: str | None, devices: Sequence[str]
) -> Decided:
    deployment = lock_active(session, deployment_id)
    listed = sorted(set(devices))
    for chunk in _chunks(listed):
        known = select(Part.device_id).where(Part.deployment_id == deployment_id, Part.device_id.in_(chunk))
        strangers = set(chunk).difference(session.scalars(known))
        if strangers:
            raise NotFound(f"the deployment has no device {min(strangers)!r}")
    parts = [part for chunk in _chunks(listed) for part in lock_parts(session, deployment_id, chunk)]
    if not parts:
        raise Conflict("the deployment is already finished for these devices" if listed else "no devices")
    if action == "abort":
        _abort_parts(session, deployment, parts)
        return Decided([], len(parts))
    if deployment.control_map is None:
        raise Conflict(
            "the deployment was created without a control map, so its devices never ask again",
            hint="abort is possible",
        )
    points = set()
    decided = 0
    for part in parts:
        waits_at = rollout.BY_STATUS.get(part.status)
        name = point or (waits_at.name if waits_at else None)
        if name is None:
            continue
        part.decisions = {**(part.decisions or {}), name: action}
        part.map_version += 1
        points.add(name)
        decided += 1
        note(session, deployment_id, part.device_id, OPERATOR, WORDS[action], name)
    if not points:
        raise Conflict("none of these devices waits at a pause")
    _audit_devices(session, deployment_id, WORDS[action], parts, ", ".join(sorted(points)))
    return Decided([name for name in rollout.BY_NAME if name in points], decided)


def _abort_parts(session: Session, deployment: Deployment, parts: Sequence[Part]) -> None:
    for part in parts:
        set_status(session, part, "aborted", part.substate, source=OPERATOR)
    _audit_devices(session, deployment.id, "abort", parts, "")
    finish_if_done(session, deployment)


def _audit_devices(session: Session, deployment_id: str, word: str, parts: Sequence[Part], text: str) -> None:
    names = ", ".join(part.device_id for part in parts[:20])
    more = f" and {len(parts) - 20} more" if len(parts) > 20 else ""
    said = f"{text} for {names}{more}".strip()
    audit.record(session, word, "deployment", deployment_id, said)


def _take_over_gate(deployment: Deployment, point: str) -> None:
    """A person decided at a point: its gate has nothing to say any more."""
    if point in gates.parse(deployment.rules).gates:
        deployment.gate_states = {**(deployment.gate_states or {}), point: gates.PERSON}


def _drop_decisions(session: Session, deployment_id: str, points: Iterable[str]) -> None:
    """A decision for all is newer than those for single devices."""
    query = (
        select(Part)
        .where(Part.deployment_id == deployment_id, Part.finished_at.is_(None), Part.decisions.is_not(None))
        .order_by(Part.id)
        .with_for_update(key_share=True)
    )
    dropped = set(points)
    for part in session.scalars(query):
        left = {name: action for name, action in (part.decisions or {}).items() if name not in dropped}
        part.decisions = left or None


def _refuse_equal(session: Session, wanted: NewDeployment, chosen: set[str]) -> None:
    query = select(Deployment.id).where(
        Deployment.finished_at.is_(None),
        Deployment.name == wanted.name,
        Deployment.artifact_name == wanted.artifact_name,
    )
    for other in session.scalars(query):
        members = session.scalars(select(Part.device_id).where(Part.deployment_id == other))
        if set(members) == chosen:
            raise Conflict(f"an equal deployment is active: {other}")


def _target_document(wanted: NewDeployment) -> dict[str, Any]:
    if wanted.devices is not None:
        return {"kind": "devices"}
    if wanted.group:
        return {"kind": "group", "group": wanted.group}
    if wanted.terms:
        return {"kind": "filter", "terms": [term.document() for term in wanted.terms]}
    return {"kind": "all"}


def _known(query: Any) -> Any:
    return query.add_columns(
        Device.identity, Device.inventory, Device.device_type, Device.artifact_name, Device.group_name
    )


def _attributes(row: Any) -> targets.Attributes:
    return targets.attributes(
        identity=row.identity,
        inventory=row.inventory,
        device_type=row.device_type,
        artifact_name=row.artifact_name,
        group=row.group_name,
    )


def _chunks(items: Sequence[str]) -> Iterable[Sequence[str]]:
    return (items[start : start + IN_ONE_QUERY] for start in range(0, len(items), IN_ONE_QUERY))
