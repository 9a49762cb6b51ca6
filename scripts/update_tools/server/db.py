# SPDX-License-Identifier: Apache-2.0
"""The tables: devices and their keys, artifacts, deployments and what happened in them.

One schema for SQLite and PostgreSQL. account_tables.py has those for people.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator


def now() -> datetime:
    """The wall clock in UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """A random UUID as text."""
    return str(uuid.uuid4())


class Moment(TypeDecorator[datetime]):
    """A point in time, always UTC and always aware; SQLite itself knows no zones."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC).replace(tzinfo=None) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None else None


class Json(TypeDecorator[Any]):
    """A JSON value in a text column; None is SQL NULL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


class Base(DeclarativeBase):
    """All tables."""


class Device(Base):
    """One identity that asked for authorization, and what it last told about itself."""

    __tablename__ = "devices"

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    identity: Mapped[str] = mapped_column(Text, unique=True)
    created_at: Mapped[datetime] = mapped_column(Moment, default=now)
    last_seen_at: Mapped[datetime | None] = mapped_column(Moment)
    tier: Mapped[str] = mapped_column(String(32), default="")
    device_type: Mapped[str] = mapped_column(Text, default="")
    artifact_name: Mapped[str] = mapped_column(Text, default="")
    group_name: Mapped[str] = mapped_column(Text, default="", index=True)
    inventory: Mapped[list[dict[str, Any]] | None] = mapped_column(Json)
    inventory_at: Mapped[datetime | None] = mapped_column(Moment)
    # accepted, pending, preauthorized, rejected or decommissioned; auth.py keeps it in step with the keys
    status: Mapped[str] = mapped_column(String(16), default="pending", index=True)
    keys: Mapped[list[DeviceKey]] = relationship(
        back_populates="device", order_by="DeviceKey.created_at", cascade="all, delete-orphan"
    )


class DeviceKey(Base):
    """One public key a device came with. At most one key of a device is accepted."""

    __tablename__ = "device_keys"
    __table_args__ = (UniqueConstraint("device_id", "public_key"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"))
    public_key: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(Moment, default=now)
    device: Mapped[Device] = relationship(back_populates="keys")


class Artifact(Base):
    """An uploaded .mender file. Artifacts with the same name and different device types form a release."""

    __tablename__ = "artifacts"

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(Text, index=True)
    device_types: Mapped[list[str]] = mapped_column(Json)
    payload_type: Mapped[str | None] = mapped_column(Text)
    is_signed: Mapped[bool]
    info: Mapped[dict[str, Any]] = mapped_column(Json)
    description: Mapped[str] = mapped_column(Text, default="")
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(Moment, default=now)


class Deployment(Base):
    """An artifact name on its way to a set of devices.

    `rules` are the gates and limits (rollout.Rules), `gate_states` what became of the gates. While `held_at`
    is set nobody new gets it; `held_waived` failures were accepted by a person. `map_version` counts changes
    of the control map and of decisions for single devices.
    """

    __tablename__ = "deployments"

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(Text)
    artifact_name: Mapped[str] = mapped_column(Text)
    force_installation: Mapped[bool] = mapped_column(default=False)
    control_map: Mapped[dict[str, Any] | None] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(Moment, default=now, index=True)
    finished_at: Mapped[datetime | None] = mapped_column(Moment, index=True)
    is_aborted: Mapped[bool] = mapped_column(default=False)
    created_by: Mapped[str] = mapped_column(Text, default="")
    start_at: Mapped[datetime | None] = mapped_column(Moment)
    retries: Mapped[int] = mapped_column(default=0)
    phases: Mapped[list[dict[str, Any]] | None] = mapped_column(Json)
    targets: Mapped[dict[str, Any] | None] = mapped_column(Json)
    rules: Mapped[dict[str, Any] | None] = mapped_column(Json)
    gate_states: Mapped[dict[str, str] | None] = mapped_column(Json)
    held_at: Mapped[datetime | None] = mapped_column(Moment)
    held_why: Mapped[str] = mapped_column(Text, default="")
    held_waived: Mapped[int] = mapped_column(default=0)
    map_version: Mapped[int] = mapped_column(default=1)
    parts: Mapped[list[Part]] = relationship(back_populates="deployment", order_by="Part.device_id")


class Part(Base):
    """One device's part in one deployment.

    `started_at` is the first hand-out, `handed_out_at` that of the present attempt. `decisions` (point ->
    action) count before the deployment's map; `map_version` is their version, `map_taken` the version that
    the device has fetched. `stage` is rollout.STAGES' number, because "installing" is said twice.
    """

    __tablename__ = "deployment_devices"
    __table_args__ = (
        UniqueConstraint("deployment_id", "device_id"),
        Index("ix_deployment_devices_open", "device_id", "finished_at"),
        Index("ix_deployment_devices_left", "deployment_id", "finished_at"),
        Index("ix_deployment_devices_status", "deployment_id", "status", "stage"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployments.id", ondelete="CASCADE"))
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"))
    artifact_id: Mapped[str | None] = mapped_column(ForeignKey("artifacts.id"))
    status: Mapped[str] = mapped_column(String(32), default="pending")
    substate: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[datetime] = mapped_column(Moment, default=now)
    started_at: Mapped[datetime | None] = mapped_column(Moment)
    changed_at: Mapped[datetime] = mapped_column(Moment, default=now)
    finished_at: Mapped[datetime | None] = mapped_column(Moment)
    log: Mapped[list[dict[str, Any]] | None] = mapped_column(Json, deferred=True)
    log_at: Mapped[datetime | None] = mapped_column(Moment)
    log_attempt: Mapped[int] = mapped_column(default=0)
    phase: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[datetime | None] = mapped_column(Moment)
    handed_out_at: Mapped[datetime | None] = mapped_column(Moment)
    attempt: Mapped[int] = mapped_column(default=1)
    stage: Mapped[int] = mapped_column(default=0)
    decisions: Mapped[dict[str, str] | None] = mapped_column(Json)
    map_version: Mapped[int] = mapped_column(default=0)
    map_taken: Mapped[int] = mapped_column(default=0)
    map_taken_at: Mapped[datetime | None] = mapped_column(Moment)
    progress_bytes: Mapped[int | None] = mapped_column(BigInteger)
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    script: Mapped[str] = mapped_column(Text, default="")
    progress_at: Mapped[datetime | None] = mapped_column(Moment)
    vanished_at: Mapped[datetime | None] = mapped_column(Moment)
    deployment: Mapped[Deployment] = relationship(back_populates="parts")
    device: Mapped[Device] = relationship()
    artifact: Mapped[Artifact | None] = relationship()


class Event(Base):
    """What happened and when: a device's report, a hand-out, a person's decision. Never changed afterwards.

    `device_id` is empty for what concerns the whole deployment; `actor` is who decided, if a person did.
    """

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_deployment_device", "deployment_id", "device_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployments.id", ondelete="CASCADE"))
    device_id: Mapped[str | None] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"))
    at: Mapped[datetime] = mapped_column(Moment, default=now)
    source: Mapped[str] = mapped_column(String(16))  # device, server, operator
    word: Mapped[str] = mapped_column(String(48))
    text: Mapped[str] = mapped_column(Text, default="")
    actor: Mapped[str] = mapped_column(Text, default="")


class Upload(Base):
    """An upload that is not an artifact yet. Its bytes are in the store under the same id.

    `offset_bytes` of them are on the medium; whatever lies behind was never acknowledged.
    """

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    is_resumable: Mapped[bool]
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    offset_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    sha256: Mapped[str] = mapped_column(String(64), default="")  # as announced; empty if it was not
    description: Mapped[str] = mapped_column(Text, default="")
    actor: Mapped[str] = mapped_column(Text, default="")
    store_state: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)  # what the store needs to go on
    writer: Mapped[str] = mapped_column(String(36), default="")  # the request that has it now
    created_at: Mapped[datetime] = mapped_column(Moment, default=now)
    touched_at: Mapped[datetime] = mapped_column(Moment, default=now, index=True)


class Secret(Base):
    """A key that all processes of one server share; with a single process the data folder has it."""

    __tablename__ = "server_secrets"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[str] = mapped_column(Text)
