# SPDX-License-Identifier: Apache-2.0
"""The tables for people: users, their sessions and tokens, failed logins, and the audit log."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from update_tools.server.db import Base, Moment, new_id, now


class User(Base):
    """A person who may log in. `role` is the largest scope: read, deploy or admin."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    password_hash: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(Moment, default=now)
    login_at: Mapped[datetime | None] = mapped_column(Moment)


class LoginSession(Base):
    """A browser that logged in. `id` is the hash of what its cookie holds."""

    __tablename__ = "login_sessions"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(Moment, default=now)
    seen_at: Mapped[datetime] = mapped_column(Moment, default=now)
    expires_at: Mapped[datetime] = mapped_column(Moment)
    address: Mapped[str] = mapped_column(Text, default="")
    user: Mapped[User] = relationship()


class ApiToken(Base):
    """A program's key to the management API. Only the hash is kept; the token is shown once.

    A token that belongs to a user never has more than the user's role; it goes when the user goes.
    """

    __tablename__ = "api_tokens"

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    scope: Mapped[str] = mapped_column(String(16))
    user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(Moment, default=now)
    expires_at: Mapped[datetime | None] = mapped_column(Moment)
    used_at: Mapped[datetime | None] = mapped_column(Moment)
    user: Mapped[User | None] = relationship()


class LoginFailure(Base):
    """Failed logins since the last good one, per name and per address; `key` says which."""

    __tablename__ = "login_failures"

    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    count: Mapped[int]
    at: Mapped[datetime] = mapped_column(Moment)


class AuditEntry(Base):
    """Who did what, when, from where. Entries are only ever added."""

    __tablename__ = "audit_log"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(Moment, default=now, index=True)
    actor: Mapped[str] = mapped_column(Text)
    address: Mapped[str] = mapped_column(Text, default="")
    action: Mapped[str] = mapped_column(String(48))
    kind: Mapped[str] = mapped_column(String(16))  # deployment, device, artifact, user, token, server
    subject: Mapped[str] = mapped_column(Text, default="")  # its id
    text: Mapped[str] = mapped_column(Text, default="")
