# SPDX-License-Identifier: Apache-2.0
"""A database that keeps what it acknowledged: one SQLite file, or a PostgreSQL that many processes share.

SQLite in WAL mode: readers never wait for the writer. `synchronous=FULL` because a device that got a 204
will not send its report again, so the report must survive a power cut of the server too. PostgreSQL gives
both by itself.

Writers. On SQLite a writer is alone from its start. On PostgreSQL writers run side by side, so whoever
decides about a row first locks it: `locked(session, Device, id)`. Always in this order: device, deployment,
anything else; so two writers never wait for each other.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine, event, inspect, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from update_agent.errors import UpdateError
from update_tools.server.db import Artifact, Base, Deployment, Device, DeviceKey, Event, Part
from update_tools.server.who import NOBODY, Who

MIGRATIONS = Path(__file__).parent / "migrations"
CHANNEL = "ota"  # PostgreSQL's NOTIFY
# Advisory locks: any numbers that nobody else takes.
MIGRATION_LOCK = 0x6F7461
PUBLISH_LOCK = 0x6F7462
STORE_LOCK = 0x6F7463
DEVICES_LOCK = 0x6F7464
PAYLOAD_LIMIT = 7900  # bytes of one NOTIFY
POOL_SIZE = 16  # connections of one process; PostgreSQL allows 100 in all unless told otherwise
EVERYTHING = "*"  # the topic that concerns every subscriber

Row = TypeVar("Row", bound=Base)


class Database:
    """Sessions. `read()` sees a snapshot; `write()` commits at its end and tells what changed.

    `on_change` gets the topics of each transaction of this process, after its commit, on SQLite. On
    PostgreSQL they go out as NOTIFY with the commit, and every process hears them (events.py).
    """

    def __init__(self, url: str) -> None:
        self.is_postgresql = not url.startswith("sqlite:")
        self.url = url
        self.on_change: Callable[[frozenset[str]], None] | None = None
        self.engine = _postgresql(url) if self.is_postgresql else _sqlite(url)
        # SQLite's own way of waiting for its one writer is to try again now and then, which starves some.
        self._turn: AbstractContextManager[object] = nullcontext() if self.is_postgresql else threading.Lock()
        looking: dict[str, Any] = {}
        if self.is_postgresql:
            looking = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._readers = sessionmaker(self.engine.execution_options(**looking), expire_on_commit=False)
        self._writers = sessionmaker(self.engine.execution_options(is_writer=True), expire_on_commit=False)
        event.listen(self._writers, "after_flush", _collect_topics)

    @classmethod
    def at(cls, path: Path) -> Database:
        """The SQLite database in a file."""
        return cls(f"sqlite:///{path}")

    def upgrade(self) -> None:
        """Bring the tables to this version, in one transaction: killed in between, it is as before.

        Processes that start together upgrade once; the others wait for it.
        """
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        try:
            with self.engine.execution_options(is_writer=True).begin() as connection:
                if self.is_postgresql:
                    connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except OperationalError as error:
            raise UpdateError(
                f"the database {self.shown_url} cannot be opened: {_first_line(error)}",
                hint="is it running, and are name and password right?" if self.is_postgresql else "",
            ) from error

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for looking only."""
        with self._readers() as session:
            yield session

    @contextmanager
    def write(self, who: Who = NOBODY) -> Iterator[Session]:
        """A session that is committed at the end, or rolled back on an exception.

        `who` decides in it: events and audit log name them (`session.info["who"]`).
        """
        topics: frozenset[str] = frozenset()
        with self._turn, self._writers() as session, session.begin():
            session.info["who"] = who
            yield session
            session.flush()
            topics = frozenset(session.info.pop("topics", ()))
            if topics and self.is_postgresql:
                payload = ",".join(sorted(topics))
                if len(payload) > PAYLOAD_LIMIT:
                    payload = EVERYTHING
                session.execute(text("SELECT pg_notify(:channel, :payload)"), _notify(payload))
        if topics and not self.is_postgresql and self.on_change is not None:
            self.on_change(topics)

    @property
    def shown_url(self) -> str:
        """The address without its password."""
        return self.engine.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()


def locked(session: Session, table: type[Row], key: Any) -> Row | None:
    """A row that nobody else changes until this transaction ends, as it is now; None if there is none."""
    if session.get_bind().dialect.name != "postgresql":  # an SQLite writer is alone anyway
        return session.get(table, key)
    return session.get(table, key, with_for_update={"key_share": True}, populate_existing=True)


def alone(session: Session, number: int) -> None:
    """Until this transaction ends nobody else passes here with the same number."""
    if session.get_bind().dialect.name == "postgresql":  # an SQLite writer is alone anyway
        session.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})


def announce(session: Session, topic: str) -> None:
    """Tell subscribers about a change that was made past the mapped classes, when it is committed."""
    session.info.setdefault("topics", set()).add(topic)


def topics_of(entry: object) -> set[str]:
    """The topics that a changed row concerns."""
    match entry:
        case Deployment():
            return {"deployments", f"deployment:{entry.id}"}
        case Part() | Event():
            return {f"deployment:{entry.deployment_id}"}
        case Device():
            return {"devices", f"device:{entry.id}"}
        case DeviceKey():
            return {"devices"}
        case Artifact():
            return {"releases"}
    return set()


def _collect_topics(session: Session, _flush: object) -> None:
    topics: set[str] = session.info.setdefault("topics", set())
    for entry in (*session.new, *session.deleted):
        topics |= topics_of(entry)
    for entry in session.dirty:
        changed = {name.key for name in inspect(entry).attrs if name.history.has_changes()}
        if isinstance(entry, Device):
            changed -= {"last_seen_at"}  # each poll would be news
        if changed:
            topics |= topics_of(entry)


def _notify(payload: str) -> dict[str, str]:
    return {"channel": CHANNEL, "payload": payload}


def _first_line(error: Exception) -> str:
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# --- SQLite ----------------------------------------------------------------------------------------------


def _sqlite(url: str) -> Engine:
    engine = create_engine(
        url,
        connect_args={"timeout": 30.0},
        pool_size=48,  # more than the web framework has threads: nobody waits for a connection
    )
    event.listen(engine, "connect", _on_sqlite_connect)
    event.listen(engine, "begin", _on_sqlite_begin)
    return engine


def _on_sqlite_connect(connection: sqlite3.Connection, _record: object) -> None:
    # The sqlite3 module would begin transactions at the first write only; _on_sqlite_begin does it.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _on_sqlite_begin(connection: Connection) -> None:
    # A writer takes the lock at once: a transaction that begins by reading cannot be upgraded to writing
    # when another has written meanwhile (SQLITE_BUSY without waiting).
    is_writer = connection.get_execution_options().get("is_writer")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")


# --- PostgreSQL ------------------------------------------------------------------------------------------


def _postgresql(url: str) -> Engine:
    if not url.startswith("postgresql+psycopg://"):
        raise UpdateError(
            f"--database-url {url.partition(':')[0]}://… is not known", hint="postgresql+psycopg://…"
        )
    try:
        engine = create_engine(
            url, pool_size=POOL_SIZE, max_overflow=0, pool_timeout=30.0, connect_args={"connect_timeout": 10}
        )
    except (ArgumentError, ImportError) as error:
        raise UpdateError(f"--database-url cannot be used: {error}") from error
    event.listen(engine, "connect", _on_postgresql_connect)
    return engine


def _on_postgresql_connect(connection: Any, _record: object) -> None:
    # PostgreSQL's text has no NUL, and devices report what their scripts print. SQLite keeps it as it is.
    from psycopg.types.string import StrDumperUnknown, StrDumperVarchar

    for base in (StrDumperVarchar, StrDumperUnknown):  # the last one registered is the usual one

        class WithoutNul(base):  # type: ignore[misc, valid-type]
            def dump(self, obj: str) -> Any:
                return super().dump(obj.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in obj else obj)

        connection.adapters.register_dumper(str, WithoutNul)
