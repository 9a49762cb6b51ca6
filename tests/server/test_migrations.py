# SPDX-License-Identifier: Apache-2.0
"""Migrations on SQLite and PostgreSQL: killed anywhere, the data is as before and the next start goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import DateTime, Text, text

from update_tools.server import account_tables
from update_tools.server.database import MIGRATIONS, Database
from update_tools.server.db import Base, Device, Json, Moment

# Runs the migrations and kills itself after that many statements.
SUICIDE = """
import os, signal, sys
from sqlalchemy import event
from update_tools.server.database import Database
db, left = Database(sys.argv[1]), [int(sys.argv[2])]
@event.listens_for(db.engine, "after_cursor_execute")
def count(*_):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
db.upgrade()
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'server.db'}"
    return str(request.getfixturevalue("empty_postgres")())


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    made = Database(url)
    yield made
    made.close()


def revision(db: Database, target: str, go: Callable[[Config, str], None] = command.upgrade) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with db.engine.execution_options(is_writer=True).begin() as connection:
        config.attributes["connection"] = connection
        go(config, target)


def difference(db: Database) -> list[object]:
    """Between the tables there are and the tables of this version."""
    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": _compare_type})
        return list(compare_metadata(context, Base.metadata))


def _compare_type(
    _context: object, _column: object, _meta: object, stored: object, wanted: object
) -> bool | None:
    if isinstance(wanted, Json):
        return not isinstance(stored, Text)
    if isinstance(wanted, Moment):
        return not isinstance(stored, DateTime)
    return None


def test_they_make_the_tables_of_this_version(db: Database) -> None:
    assert account_tables.User.metadata is Base.metadata
    db.upgrade()
    db.upgrade()
    assert difference(db) == []


def test_and_back(db: Database) -> None:
    db.upgrade()
    revision(db, "0001", command.downgrade)
    revision(db, "head")
    assert difference(db) == []


def test_sqlite_keeps_what_it_acknowledges(tmp_path: Path) -> None:
    db = Database.at(tmp_path / "server.db")
    db.upgrade()
    with db.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    db.close()


OLD_DEVICES = {"one": ["accepted", "pending"], "two": ["rejected"], "three": ["pending", "rejected"]}


def fill(db: Database) -> None:
    """Data of the first version."""
    moment = "'2026-01-01 00:00:00'"
    with db.engine.begin() as connection:
        for name, keys in OLD_DEVICES.items():
            connection.exec_driver_sql(
                "INSERT INTO devices (id, identity, created_at, tier, device_type, artifact_name)"
                f" VALUES ('{name}', '{name}', {moment}, '', '', '')"
            )
            for number, status in enumerate(keys):
                connection.exec_driver_sql(
                    "INSERT INTO device_keys (id, device_id, public_key, kind, status, created_at)"
                    f" VALUES ('{name}{number}', '{name}', 'key {number}', '', '{status}', {moment})"
                )


def test_killed_anywhere(url: str, db: Database) -> None:
    revision(db, "0001")
    fill(db)
    db.close()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for statements in (4, 15, 40):
        argv = [sys.executable, "-c", SUICIDE, url, str(statements)]
        answer = subprocess.run(argv, env=environment, capture_output=True, timeout=120, check=False)
        assert answer.returncode == -signal.SIGKILL, answer.stderr.decode()
        with db.engine.connect() as connection:
            query = text("SELECT version_num FROM alembic_version")
            assert connection.execute(query).scalar() == "0001", f"half done after {statements}"
            assert connection.execute(text("SELECT count(*) FROM devices")).scalar() == 3
    db.upgrade()
    assert difference(db) == []
    with db.read() as session:
        found = {device.id: device.status for device in session.query(Device)}
    assert found == {"one": "accepted", "two": "rejected", "three": "pending"}


def test_servers_that_start_together_migrate_once(url: str) -> None:
    bases = [Database(url) for _ in range(4)]
    with ThreadPoolExecutor(len(bases)) as pool:
        list(pool.map(Database.upgrade, bases))
    assert difference(bases[0]) == []
    for base in bases:
        base.close()
