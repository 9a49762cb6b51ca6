# SPDX-License-Identifier: Apache-2.0
"""Read models of single devices in deployments: live progress, timeline, scripts, log with search."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, selectinload

from update_tools.server import rollout, timeline, views
from update_tools.server.db import Deployment, Device, Part
from update_tools.server.records import get_deployment, get_part

GROUPS = {
    "pause": rollout.PAUSED,
    "active": ("pending", *rollout.RUNNING, *rollout.PAUSED),
    "finished": rollout.FINISHED,
}


@dataclass(frozen=True)
class DeviceRow:
    """A device in a deployment."""

    device_id: str
    identity: Mapping[str, Any]
    device_type: str
    status: str
    label: str
    phase: int
    due_at: datetime | None
    attempt: int
    attempts: int
    reason: str  # what it said with its last report; of a failure the cause
    changed_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    seen_at: datetime | None
    vanished_at: datetime | None  # silent since; None: it is not missed
    done_bytes: int | None  # while it downloads, from devices that tell
    size_bytes: int | None
    script: str  # the state script that runs now, likewise
    waits_at: str  # the pause point; empty: it does not wait
    decision: str  # the action that counts for it at that point
    is_decision_taken: bool  # the device has fetched it
    runs: str  # the artifact it says it has
    has_log: bool

    @property
    def percent(self) -> int | None:
        """Of the download."""
        if self.done_bytes is None or not self.size_bytes:
            return None
        return min(100, self.done_bytes * 100 // self.size_bytes)


@dataclass(frozen=True)
class DevicePage:
    """One page of a deployment's devices."""

    rows: Sequence[DeviceRow]
    total: int


@dataclass(frozen=True)
class LogLine:
    """A line of a device's log; numbers count from 1 in the whole log."""

    number: int
    at: str
    level: str
    text: str


@dataclass(frozen=True)
class LogPage:
    """Lines of a log that match a search."""

    lines: Sequence[LogLine]
    matches: int
    total: int
    attempt: int
    uploaded_at: datetime | None


@dataclass(frozen=True)
class DeviceDetail:
    """A device in a deployment with its history."""

    row: DeviceRow
    deployment: views.DeploymentRow
    entries: Sequence[timeline.Entry]
    scripts: Sequence[timeline.ScriptRun]
    log_lines: int | None = None


def device_rows(
    session: Session,
    deployment_id: str,
    *,
    place: str = "",
    status: str = "",
    phase: int | None = None,
    search: str = "",
    page: int = 1,
    per_page: int = 50,
    is_by_id: bool = False,
) -> DevicePage:
    """A page of devices, those that moved last first, or by id. Raises NotFound.

    `place`: one of views.PLACES or `vanished`. `status`: a word of the API, or pause, active, finished.
    `search`: in the identity.
    """
    deployment = get_deployment(session, deployment_id)
    query = select(Part).where(Part.deployment_id == deployment_id)
    if place:
        query = _at_place(query, place)
    if status:
        query = query.where(Part.status.in_(GROUPS.get(status, (status,))))
    if phase is not None:
        query = query.where(Part.phase == phase - 1)
    if search:
        found = Device.identity.ilike(f"%{views.escaped(search)}%", escape="\\")
        query = query.join(Device).where(found)
    total = session.scalar(select(func.count()).select_from(query.subquery())) or 0
    order = (Part.device_id,) if is_by_id else (Part.changed_at.desc(), Part.id)
    parts = session.scalars(
        query.options(selectinload(Part.device))
        .order_by(*order)
        .limit(per_page)
        .offset((page - 1) * per_page)
    )
    return DevicePage([device_row(part, deployment) for part in parts], total)


def device_detail(session: Session, deployment_id: str, device_id: str) -> DeviceDetail:
    """A device in a deployment with timeline and scripts. Raises NotFound."""
    deployment = get_deployment(session, deployment_id)
    part = get_part(session, deployment_id, device_id)
    happened = list(views.happened(views.events_of(session, deployment_id, device_id)))
    return DeviceDetail(
        row=device_row(part, deployment),
        deployment=views.rows_of(session, [deployment])[0],
        entries=timeline.entries(happened),
        scripts=timeline.script_runs(happened, part.log, part.log_attempt or part.attempt),
        log_lines=None if part.log is None else len(part.log),
    )


def device_history(
    session: Session, device_id: str, *, status: str = "", page: int = 1, per_page: int = 20
) -> list[tuple[views.DeploymentRow, DeviceRow]]:
    """The deployments a device was part of, newest first."""
    query = select(Part).join(Deployment).where(Part.device_id == device_id)
    if status:
        query = query.where(Part.status.in_(GROUPS.get(status, (status,))))
    parts = session.scalars(
        query.options(selectinload(Part.device), selectinload(Part.deployment))
        .order_by(Deployment.created_at.desc())
        .limit(per_page)
        .offset((page - 1) * per_page)
    ).all()
    rows = views.rows_of(session, [part.deployment for part in parts])
    return [(row, device_row(part, part.deployment)) for row, part in zip(rows, parts, strict=True)]


def device_log(
    session: Session,
    deployment_id: str,
    device_id: str,
    *,
    search: str = "",
    level: str = "",
    page: int = 1,
    per_page: int = 1000,
) -> LogPage | None:
    """The lines of a device's log that contain a text; None while it has not uploaded one. Raises NotFound.

    `level` leaves out what is less serious: error, warning, info or debug.
    """
    get_deployment(session, deployment_id)
    part = get_part(session, deployment_id, device_id)
    if part.log is None:
        return None
    levels = _levels_from(level)
    wanted = search.lower()
    matches = [
        LogLine(number, str(entry["timestamp"]), str(entry["level"]).lower(), str(entry["message"]))
        for number, entry in enumerate(part.log, 1)
        if (not levels or str(entry["level"]).lower() in levels)
        and (not wanted or wanted in f"{entry['level']} {entry['message']}".lower())
    ]
    first = (page - 1) * per_page
    lines = matches[first : first + per_page]
    return LogPage(lines, len(matches), len(part.log), part.log_attempt or part.attempt, part.log_at)


def device_row(part: Part, deployment: Deployment) -> DeviceRow:
    """One device's row."""
    waits_at = rollout.BY_STATUS.get(part.status)
    present = rollout.device_map(deployment.control_map, part.decisions)
    is_open = part.finished_at is None
    return DeviceRow(
        device_id=part.device_id,
        identity=json.loads(part.device.identity),
        device_type=part.device.device_type,
        status=part.status,
        label=rollout.label(part.status, part.stage),
        phase=part.phase + 1,
        due_at=part.due_at,
        attempt=part.attempt,
        attempts=deployment.retries + 1,
        reason=part.substate,
        changed_at=part.changed_at,
        started_at=part.started_at,
        finished_at=part.finished_at,
        seen_at=part.device.last_seen_at,
        vanished_at=part.vanished_at if is_open else None,
        done_bytes=part.progress_bytes,
        size_bytes=part.size_bytes,
        script=part.script,
        waits_at=waits_at.name if waits_at else "",
        decision=rollout.action_at(present, waits_at.name) if waits_at else "",
        is_decision_taken=part.map_taken >= deployment.map_version + part.map_version,
        runs=part.device.artifact_name,
        has_log=part.log_at is not None,
    )


def _at_place(query: Select[Any], place: str) -> Select[Any]:
    if place == "vanished":
        return query.where(Part.vanished_at.is_not(None), Part.finished_at.is_(None))
    if place == "skipped":
        return query.where(Part.status.in_(rollout.SKIPPED))
    if place == "committing":
        return query.where(Part.status == "installing", Part.stage >= views.COMMIT)
    if place == "installing":
        return query.where(Part.status == "installing", Part.stage < views.COMMIT)
    return query.where(Part.status == place)


def _levels_from(level: str) -> frozenset[str]:
    order = ("fatal", "error", "warning", "info", "debug", "trace")
    return frozenset(order[: order.index(level) + 1]) if level in order else frozenset()
