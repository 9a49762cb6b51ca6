# SPDX-License-Identifier: Apache-2.0
"""Rows of deployments: find and lock them, note what happens, set a status.

Whoever changes rows locks them first, in the order database.py names: device, deployment, part.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from update_tools.server import audit, rollout
from update_tools.server.database import locked
from update_tools.server.db import Deployment, Event, Part, now
from update_tools.server.faults import Conflict, NotFound

DEVICE, SERVER, OPERATOR = "device", "server", "operator"


def note(
    session: Session, deployment_id: str, device_id: str | None, source: str, word: str, text: str = ""
) -> None:
    """Write down what happened, with the name of the person if it was one."""
    actor = audit.actor(session).name if source == OPERATOR else ""
    session.add(
        Event(
            deployment_id=deployment_id,
            device_id=device_id,
            source=source,
            word=word,
            text=text,
            actor=actor,
        )
    )


def note_decision(
    session: Session, deployment_id: str, device_id: str | None, word: str, text: str = ""
) -> None:
    """Write down what a person decided, in the timeline and in the audit log."""
    note(session, deployment_id, device_id, OPERATOR, word, text)
    concerning = f"device {device_id}: {text}" if device_id else text
    audit.record(session, word, "deployment", deployment_id, concerning)


def get_deployment(session: Session, deployment_id: str) -> Deployment:
    """A deployment by id. Raises NotFound."""
    deployment = session.get(Deployment, deployment_id)
    if deployment is None:
        raise NotFound("there is no such deployment")
    return deployment


def lock_deployment(session: Session, deployment_id: str) -> Deployment:
    """A deployment that nobody else changes until the transaction ends. Raises NotFound."""
    deployment = locked(session, Deployment, deployment_id)
    if deployment is None:
        raise NotFound("there is no such deployment")
    return deployment


def lock_active(session: Session, deployment_id: str) -> Deployment:
    """The same for one that is not over. Raises NotFound or Conflict."""
    deployment = lock_deployment(session, deployment_id)
    if deployment.finished_at is not None:
        raise Conflict("the deployment is already finished")
    return deployment


def get_part(session: Session, deployment_id: str, device_id: str, *, for_update: bool = False) -> Part:
    """One device's part in a deployment, locked if wanted. Raises NotFound."""
    query = select(Part).where(Part.deployment_id == deployment_id, Part.device_id == device_id)
    if for_update:
        query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    part = session.scalar(query)
    if part is None:
        raise NotFound("there is no such deployment for this device")
    return part


def lock_parts(session: Session, deployment_id: str, device_ids: Sequence[str] | None) -> Sequence[Part]:
    """The unfinished parts of these devices (or of all), locked, in a fixed order."""
    query = (
        select(Part)
        .where(Part.deployment_id == deployment_id, Part.finished_at.is_(None))
        .order_by(Part.id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    if device_ids is not None:
        query = query.where(Part.device_id.in_(device_ids))
    return session.scalars(query).all()


def relock(session: Session, part: Part) -> None:
    """Lock a part that was only read, and read it again. A writer on SQLite is alone anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.refresh(part, with_for_update={"key_share": True})


def set_status(session: Session, part: Part, status: str, substate: str, *, source: str) -> None:
    """Set a part's status and note it. Afterwards, if it is a final one, call `finish_if_done`."""
    moment = now()
    if status != part.status:
        part.changed_at = moment
        part.script = ""
        part.progress_bytes = part.progress_at = None
    part.stage = rollout.stage_after(part.stage, part.status, status)
    part.status = status
    part.substate = substate
    if status in rollout.FINISHED:
        part.finished_at = moment
        part.vanished_at = None
    note(session, part.deployment_id, part.device_id, source, status, substate)


def finish_if_done(session: Session, deployment: Deployment) -> None:
    """End a deployment whose last device ended. The deployment is locked."""
    session.flush()
    still_open = select(Part.id).where(Part.deployment_id == deployment.id, Part.finished_at.is_(None))
    if deployment.finished_at is None and session.scalar(still_open.limit(1)) is None:
        deployment.finished_at = now()
