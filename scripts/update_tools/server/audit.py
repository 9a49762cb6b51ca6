# SPDX-License-Identifier: Apache-2.0
"""The audit log: who did what, when, from where. Written in the transaction of the deed itself."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from update_tools.server.account_tables import AuditEntry
from update_tools.server.who import NOBODY, Who


def actor(session: Session) -> Who:
    """Who decides in this transaction, as given to `Database.write`."""
    who = session.info.get("who", NOBODY)
    assert isinstance(who, Who)
    return who


def record(session: Session, action: str, kind: str, subject: str = "", text: str = "") -> None:
    """Add an entry. `kind` is deployment, device, artifact, user, token or server; `subject` its id."""
    who = actor(session)
    session.add(
        AuditEntry(
            actor=who.name, address=who.address, action=action, kind=kind, subject=subject, text=text[:4096]
        )
    )


def entries(
    session: Session, *, kind: str = "", subject: str = "", actor: str = "", limit: int = 100, offset: int = 0
) -> Sequence[AuditEntry]:
    """The newest first."""
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit).offset(offset)
    for column, wanted in ((AuditEntry.kind, kind), (AuditEntry.subject, subject), (AuditEntry.actor, actor)):
        if wanted:
            query = query.where(column == wanted)
    return session.scalars(query).all()
