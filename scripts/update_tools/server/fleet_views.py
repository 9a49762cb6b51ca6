# SPDX-License-Identifier: Apache-2.0
"""Read models of the whole fleet: known devices, groups, and what waits for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Text, case, func, or_, select, type_coerce
from sqlalchemy.orm import Session, selectinload

from update_tools.server import rollout, views
from update_tools.server.db import Artifact, Deployment, Device, Part
from update_tools.server.rollout import Point


@dataclass(frozen=True)
class Waiting:
    """A deployment whose devices wait at a point for a person, or a gate, to decide."""

    deployment_id: str
    name: str
    point: Point
    devices: int


@dataclass(frozen=True)
class KnownDevices:
    """One page of devices, and how many there are of each status."""

    rows: Sequence[Device]
    total: int
    counts: Mapping[str, int]
    groups: Sequence[str]


def waiting(session: Session) -> list[Waiting]:
    """Where devices wait now, newest deployment first."""
    rows = session.execute(
        select(Deployment, Part.status, func.count())
        .join(Part)
        .where(Deployment.finished_at.is_(None), Part.status.in_(rollout.PAUSED))
        .group_by(Deployment.id, Part.status)
        .order_by(Deployment.created_at.desc(), Part.status)
    )
    return [
        Waiting(entry.id, entry.name, rollout.BY_STATUS[status], number) for entry, status, number in rows
    ]


def pending_devices(session: Session) -> int:
    """How many devices wait to be accepted."""
    return session.scalar(select(func.count()).where(Device.status == "pending")) or 0


def groups(session: Session) -> Sequence[str]:
    """The groups that have devices."""
    query = select(Device.group_name).where(Device.group_name != "").distinct().order_by(Device.group_name)
    return session.scalars(query).all()


def releases(session: Session) -> Sequence[str]:
    """The names of what can be deployed, newest first."""
    return session.scalars(
        select(Artifact.name).group_by(Artifact.name).order_by(func.max(Artifact.created_at).desc())
    ).all()


def known_devices(
    session: Session,
    *,
    status: str = "",
    group: str = "",
    search: str = "",
    page: int = 1,
    per_page: int = 50,
) -> KnownDevices:
    """A page of devices, those that wait to be accepted first.

    `search`: in identity, type, release and inventory.
    """
    query = select(Device).where(Device.status != "decommissioned")
    if group:
        query = query.where(Device.group_name == group)
    if search:
        pattern = f"%{views.escaped(search)}%"
        inventory = type_coerce(Device.inventory, Text)  # as it is stored
        columns = (Device.identity, Device.device_type, Device.artifact_name, Device.id, inventory)
        query = query.where(or_(*(column.ilike(pattern, escape="\\") for column in columns)))
    numbers = query.with_only_columns(Device.status, func.count()).group_by(Device.status)
    counts = {str(word): int(number) for word, number in session.execute(numbers)}
    if status:
        query = query.where(Device.status == status)
    rows = session.scalars(
        query.options(selectinload(Device.keys))
        .order_by(case((Device.status == "pending", 0), else_=1), Device.created_at.desc(), Device.id)
        .limit(per_page)
        .offset((page - 1) * per_page)
    ).all()
    total = counts.get(status, 0) if status else sum(counts.values())
    return KnownDevices(rows, total, counts, groups(session))
