# SPDX-License-Identifier: Apache-2.0
"""The tables, and a database that keeps what it acknowledged.

SQLite in WAL mode: readers never wait for the writer. `synchronous=FULL` because a device that got a 204
will not send its report again, so the report must survive a power cut of the server too.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    DateTime,
    ForeignKey,
    Index,
    String,
    Text,
    UniqueConstraint,
    create_engine,
    event,
)
from sqlalchemy.engine import Dialect, Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker
from sqlalchemy.types import TypeDecorator

MIGRATIONS = Path(__file__).parent / "migrations"


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
    inventory: Mapped[list[dict[str, Any]] | None] = mapped_column(Json)
    inventory_at: Mapped[datetime | None] = mapped_column(Moment)
    keys: Mapped[list[DeviceKey]] = relationship(back_populates="device", order_by="DeviceKey.created_at")

    @property
    def status(self) -> str:
        """accepted, pending or rejected: the best word any of its keys has."""
        words = {key.status for key in self.keys}
        return next((word for word in ("accepted", "pending", "rejected") if word in words), "pending")


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
    """An artifact name on its way to a set of devices."""

    __tablename__ = "deployments"

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(Text)
    artifact_name: Mapped[str] = mapped_column(Text)
    force_installation: Mapped[bool] = mapped_column(default=False)
    control_map: Mapped[dict[str, Any] | None] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(Moment, default=now, index=True)
    finished_at: Mapped[datetime | None] = mapped_column(Moment, index=True)
    is_aborted: Mapped[bool] = mapped_column(default=False)
    parts: Mapped[list[Part]] = relationship(back_populates="deployment", order_by="Part.device_id")


class Part(Base):
    """One device's part in one deployment."""

    __tablename__ = "deployment_devices"
    __table_args__ = (
        UniqueConstraint("deployment_id", "device_id"),
        Index("ix_deployment_devices_open", "device_id", "finished_at"),
        Index("ix_deployment_devices_left", "deployment_id", "finished_at"),
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
    deployment: Mapped[Deployment] = relationship(back_populates="parts")
    device: Mapped[Device] = relationship()
    artifact: Mapped[Artifact | None] = relationship()


class Event(Base):
    """What happened and when: a device's report, a hand-out, a person's decision. Never changed afterwards.

    `device_id` is empty for what concerns the whole deployment.
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


class Database:
    """Sessions on one SQLite file. `read()` sees a snapshot; `write()` is alone from its start."""

    def __init__(self, path: Path) -> None:
        self.engine: Engine = create_engine(
            f"sqlite:///{path}",
            connect_args={"timeout": 30.0},
            pool_size=48,  # more than the web framework has threads: nobody waits for a connection
        )
        event.listen(self.engine, "connect", _on_connect)
        event.listen(self.engine, "begin", _on_begin)
        self._readers = sessionmaker(self.engine, expire_on_commit=False)
        self._writers = sessionmaker(
            self.engine.execution_options(is_writer=True), expire_on_commit=False, autoflush=True
        )

    def upgrade(self) -> None:
        """Bring the tables to this version, in one transaction: killed in between, it is as before."""
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self.engine.execution_options(is_writer=True).begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for looking only."""
        with self._readers() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that is committed at the end, or rolled back on an exception."""
        with self._writers() as session, session.begin():
            yield session

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()


def _on_connect(connection: sqlite3.Connection, _record: object) -> None:
    # The sqlite3 module would begin transactions at the first write only; _on_begin says BEGIN instead.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(connection: Connection) -> None:
    # A writer takes the lock at once: a transaction that begins by reading cannot be upgraded to writing
    # when another has written meanwhile (SQLITE_BUSY without waiting).
    is_writer = connection.get_execution_options().get("is_writer")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")
