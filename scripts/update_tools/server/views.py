# SPDX-License-Identifier: Apache-2.0
"""Read models: what pages and API show of deployments, ready to be rendered. Nothing here changes anything.

Counting is the database's work, in one query for a page of deployments. device_views.py has the devices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from update_tools.server import gates, rollout, timeline
from update_tools.server.db import Deployment, Event, Part, now
from update_tools.server.records import get_deployment

# Where devices can be, in the order of an update; each is also a filter of devices.
PLACES = (
    "pending",
    "downloading",
    "pause_before_installing",
    "installing",
    "pause_before_rebooting",
    "rebooting",
    "pause_before_committing",
    "committing",
    "success",
    "failure",
    "skipped",
    "aborted",
)
PLACES_ONLY = ("committing", "skipped", "vanished")  # no words of the reference
COMMIT = rollout.STAGES.index("Commit")


@dataclass(frozen=True)
class GateRow:
    """A pause point of a deployment: the map's action, who waits, and what will open it by itself."""

    point: str
    phase: str
    action: str
    is_set: bool
    waiting: int
    reached: int
    rule: str = ""  # in words; empty: only a person
    state: str = ""  # armed, open, released, person
    missing: str = ""  # what the rule still waits for


@dataclass(frozen=True)
class BarPhase:
    """Download, Install, Reboot or Commit: devices inside, and the gate before it (none before Download)."""

    name: str
    inside: int
    gate: GateRow | None


@dataclass(frozen=True)
class PhaseRow:
    """A phase of the schedule."""

    number: int
    device_count: int
    percent: float | None
    start_at: datetime | None
    has_begun: bool
    counts: Mapping[str, int]  # by place


@dataclass(frozen=True)
class DeploymentRow:
    """A deployment in a list."""

    id: str
    name: str
    artifact_name: str
    status: str  # scheduled, pending, inprogress, finished, aborted
    created_at: datetime
    created_by: str
    start_at: datetime | None
    finished_at: datetime | None
    counts: Mapping[str, int]  # by place; all of PLACES
    statistics: Mapping[str, int]  # by status, as the API has it
    total: int
    failed: int
    vanished: int
    paused_at: Sequence[str]
    held_at: datetime | None
    held_why: str

    @property
    def is_active(self) -> bool:
        """Not over yet."""
        return self.finished_at is None


@dataclass(frozen=True)
class DeploymentDetail:
    """A deployment with everything its page shows but the devices."""

    row: DeploymentRow
    bar: Sequence[BarPhase]
    phases: Sequence[PhaseRow]
    targets: Mapping[str, Any]
    retries: int
    force_installation: bool
    has_map: bool
    hold_rule: str
    abort_rule: str
    vanished_after_s: int
    events: Sequence[timeline.Entry]  # what concerns the whole deployment


@dataclass
class _Counts:
    """What the database counted for one deployment."""

    statuses: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    cells: dict[tuple[str, int], int] = field(default_factory=dict)
    vanished: int = 0

    @property
    def facts(self) -> gates.Facts:
        return gates.Facts(self.cells, self.vanished)


# --- deployments -----------------------------------------------------------------------------------------


def deployment_rows(
    session: Session,
    *,
    status: str = "",
    search: str = "",
    ids: Sequence[str] | None = None,
    created_before: datetime | None = None,
    created_after: datetime | None = None,
    is_oldest_first: bool = False,
    page: int = 1,
    per_page: int = 20,
) -> tuple[list[DeploymentRow], int]:
    """A page of deployments, newest first, and their number. `status`: pending, inprogress, finished."""
    query = _filtered(select(Deployment), status, search)
    if ids is not None:
        query = query.where(Deployment.id.in_(ids))
    if created_before is not None:
        query = query.where(Deployment.created_at <= created_before)
    if created_after is not None:
        query = query.where(Deployment.created_at >= created_after)
    total = session.scalar(select(func.count()).select_from(query.subquery())) or 0
    order = Deployment.created_at.asc() if is_oldest_first else Deployment.created_at.desc()
    found = session.scalars(
        query.order_by(order, Deployment.id).limit(per_page).offset((page - 1) * per_page)
    )
    return rows_of(session, found.all()), total


def deployment_detail(
    session: Session, deployment_id: str, moment: datetime | None = None
) -> DeploymentDetail:
    """One deployment. Raises NotFound."""
    at = moment or now()
    entry = get_deployment(session, deployment_id)
    counts = _count(session, [deployment_id])[deployment_id]
    rules = gates.parse(entry.rules)
    return DeploymentDetail(
        row=_row(entry, counts, at),
        bar=_bar(entry, counts, rules, at),
        phases=_phases(session, entry, at),
        targets=entry.targets or {"kind": "devices"},
        retries=entry.retries,
        force_installation=entry.force_installation,
        has_map=entry.control_map is not None,
        hold_rule=rules.hold.describe() if rules.hold else "",
        abort_rule=rules.abort.describe() if rules.abort else "",
        vanished_after_s=rules.vanished_after_s,
        events=timeline.entries(happened(events_of(session, deployment_id, None))),
    )


def statistics(session: Session, deployment_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Devices per status, for several deployments in one query."""
    counted = _count(session, deployment_ids)
    return {name: rollout.statistics(()) | dict(counted[name].statuses) for name in deployment_ids}


def _filtered(query: Select[Any], status: str, search: str) -> Select[Any]:
    begun = select(Part.id).where(Part.deployment_id == Deployment.id, Part.status != "pending").exists()
    if status == "finished":
        query = query.where(Deployment.finished_at.is_not(None))
    elif status == "pending":
        query = query.where(Deployment.finished_at.is_(None), ~begun)
    elif status == "inprogress":
        query = query.where(Deployment.finished_at.is_(None), begun)
    if search:
        pattern = f"%{escaped(search)}%"
        names = (Deployment.name, Deployment.artifact_name)
        query = query.where(or_(*(name.ilike(pattern, escape="\\") for name in names)))
    return query


def rows_of(session: Session, entries: Sequence[Deployment]) -> list[DeploymentRow]:
    """Rows for deployments, counted in one query."""
    counted = _count(session, [entry.id for entry in entries])
    at = now()
    return [_row(entry, counted[entry.id], at) for entry in entries]


def _row(entry: Deployment, counts: _Counts, at: datetime) -> DeploymentRow:
    status = rollout.overall(counts.statuses)
    if entry.is_aborted:
        status = "aborted"
    elif status == "pending" and entry.start_at is not None and entry.start_at > at:
        status = "scheduled"
    return DeploymentRow(
        id=entry.id,
        name=entry.name,
        artifact_name=entry.artifact_name,
        status=status,
        created_at=entry.created_at,
        created_by=entry.created_by,
        start_at=entry.start_at,
        finished_at=entry.finished_at,
        counts={place: counts.places[place] for place in PLACES},
        statistics=rollout.statistics(()) | dict(counts.statuses),
        total=sum(counts.statuses.values()),
        failed=counts.statuses["failure"],
        vanished=counts.vanished,
        paused_at=[point.name for point in rollout.waiting_points(counts.statuses)],
        held_at=entry.held_at,
        held_why=entry.held_why,
    )


def _bar(entry: Deployment, counts: _Counts, rules: gates.Rules, at: datetime) -> list[BarPhase]:
    inside = {
        "Download": "downloading",
        "Install": "installing",
        "Reboot": "rebooting",
        "Commit": "committing",
    }
    bar = [BarPhase("Download", counts.places["downloading"], None)]
    for point in rollout.POINTS:
        rule = rules.gates.get(point.name)
        state = (entry.gate_states or {}).get(point.name, "armed") if rule else ""
        missing = ""
        if rule is not None and state == "armed" and entry.finished_at is None:
            is_held = entry.held_at is not None
            missing = "held" if is_held else gates.unmet(rule, point.name, counts.facts, at)
        row = GateRow(
            point=point.name,
            phase=point.phase,
            action=rollout.action_at(entry.control_map, point.name),
            is_set=point.name in (entry.control_map or {}).get("states", {}),
            waiting=counts.statuses[point.status],
            reached=counts.facts.reached(point.name),
            rule=rule.describe() if rule else "",
            state=state,
            missing=missing,
        )
        bar.append(BarPhase(point.phase, counts.places[inside[point.phase]], row))
    return bar


def _phases(session: Session, entry: Deployment, at: datetime) -> list[PhaseRow]:
    if not entry.phases:
        return []
    rows = session.execute(
        select(Part.phase, Part.status, Part.stage, func.count())
        .where(Part.deployment_id == entry.id)
        .group_by(Part.phase, Part.status, Part.stage)
    )
    places: dict[int, Counter[str]] = {}
    for phase, status, stage, number in rows:
        places.setdefault(phase, Counter())[place_of(status, stage)] += number
    phases = []
    for number, batch in enumerate(entry.phases):
        start = batch.get("start_ts")
        start_at = None if start is None else datetime.fromisoformat(start)
        counts = places.get(number, Counter())
        phases.append(
            PhaseRow(
                number=number + 1,
                device_count=batch["device_count"],
                percent=batch.get("batch_size"),
                start_at=start_at,
                has_begun=start_at is None or start_at <= at,
                counts={place: counts[place] for place in PLACES},
            )
        )
    return phases


def _count(session: Session, deployment_ids: Sequence[str]) -> dict[str, _Counts]:
    counted = {name: _Counts() for name in deployment_ids}
    rows = session.execute(
        select(Part.deployment_id, Part.status, Part.stage, func.count(), func.count(Part.vanished_at))
        .where(Part.deployment_id.in_(deployment_ids))
        .group_by(Part.deployment_id, Part.status, Part.stage)
    )
    for deployment_id, status, stage, number, vanished in rows:
        counts = counted[deployment_id]
        counts.statuses[status] += number
        counts.places[place_of(status, stage)] += number
        counts.cells[status, stage] = number
        counts.vanished += vanished
    return counted


def place_of(status: str, stage: int) -> str:
    """Where a device is, as one of PLACES."""
    if status in rollout.SKIPPED:
        return "skipped"
    return "committing" if status == "installing" and stage >= COMMIT else status


# --- shared with device_views.py -------------------------------------------------------------------------


def events_of(session: Session, deployment_id: str, device_id: str | None) -> Sequence[Event]:
    """What happened to the whole deployment, with a device also to that one, oldest first."""
    query = select(Event).where(Event.deployment_id == deployment_id).order_by(Event.id)
    if device_id is None:
        query = query.where(Event.device_id.is_(None))
    else:
        query = query.where(or_(Event.device_id == device_id, Event.device_id.is_(None)))
    return session.scalars(query).all()


def happened(events: Iterable[Event]) -> Iterable[timeline.Happened]:
    """Events as timeline.py takes them."""
    for event in events:
        yield timeline.Happened(
            event.at, event.source, event.word, event.text, event.actor, event.device_id is None
        )


def escaped(text: str) -> str:
    """Text for a LIKE pattern that means itself."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
