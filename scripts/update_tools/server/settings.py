# SPDX-License-Identifier: Apache-2.0
"""What a server is started with, and what its parts share."""

from __future__ import annotations

import fcntl
import ipaddress
import logging
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from sqlalchemy.dialects.postgresql import insert

from update_agent.errors import UpdateError
from update_tools.server.accounts import Passwords
from update_tools.server.database import Database
from update_tools.server.db import Secret
from update_tools.server.events import Hub
from update_tools.server.faults import Forbidden
from update_tools.server.intake import Intake, own_store
from update_tools.server.store import FolderStore, Store
from update_tools.server.tokens import KEY_BYTES, Signer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """The command line.

    Without `needs_login` everybody who is let in may do everything; then `is_open` gives up the check that
    people come from this machine.
    """

    data: Path
    database_url: str = ""  # empty: a SQLite file in the data folder
    artifact_store: str = ""  # s3://bucket/prefix; empty: the data folder
    s3_endpoint: str = ""
    s3_region: str = ""
    direct_links: bool = False  # devices download from the store itself
    auto_accept: bool = False
    public_url: str = ""
    needs_login: bool = True
    is_open: bool = True
    link_lifetime_s: int = 24 * 3600


class House:
    """The parts of one running server: database, keys, folders. The process itself keeps no other state."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = None if settings.database_url else _lock(settings.data / "server.lock")
        self.db = open_database(settings.data, settings.database_url)
        self.signer = open_signer(self.db, settings.data)
        self.store = open_store(settings)
        own_store(self.db, self.store)
        self.intake = Intake(self.db, self.store)
        self.intake.sweep(is_alone=not self.db.is_postgresql)
        self.passwords = Passwords()
        self.hub = Hub(self.db)

    def close(self) -> None:
        """Let go of the database and the folder."""
        self.db.close()
        if self._lock is not None:
            self._lock.close()

    def link(self, artifact_id: str, base_url: str) -> tuple[str, datetime]:
        """A download link that needs no token, and until when it works."""
        expires = int(time.time()) + self.settings.link_lifetime_s
        if self.settings.direct_links:
            url = self.store.link(artifact_id, self.settings.link_lifetime_s)
            if url:
                return url, datetime.fromtimestamp(expires, UTC)
        signature = self.signer.sign("download", f"{artifact_id} {expires}")
        base = (self.settings.public_url or base_url).rstrip("/")
        url = f"{base}/api/artifacts/{artifact_id}/download?expires={expires}&signature={signature}"
        return url, datetime.fromtimestamp(expires, UTC)

    def check_link(self, artifact_id: str, expires: str, signature: str) -> None:
        """Raises Forbidden unless the link is ours and still works."""
        if not self.signer.is_valid("download", f"{artifact_id} {expires}", signature):
            raise Forbidden("the download link is not signed by this server")
        if int(expires) <= time.time():
            raise Forbidden(
                "the download link has expired", hint="the device gets a new one with its next poll"
            )


def open_database(data: Path, database_url: str) -> Database:
    """The server's database, with the tables of this version."""
    if not database_url:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    db = Database(database_url) if database_url else Database.at(data / "server.db")
    db.upgrade()
    return db


def open_store(settings: Settings) -> Store:
    """Where the artifacts are. Raises UpdateError if it is not there."""
    if not settings.artifact_store:
        return FolderStore(settings.data)
    from update_tools.server.s3 import S3Store

    store = S3Store(settings.artifact_store, endpoint=settings.s3_endpoint, region=settings.s3_region)
    store.check()
    return store


def open_signer(db: Database, data: Path) -> Signer:
    """The server's key: a file in the data folder, or in the database where processes share one."""
    return _shared_signer(db) if db.is_postgresql else Signer.load(data / "server.key")


def _shared_signer(db: Database) -> Signer:
    """The key that all processes share, made by the first one.

    Whoever reads this database can sign device tokens and links; it belongs to the server alone.
    """
    with db.write() as session:
        values = {"name": "server.key", "value": secrets.token_hex(KEY_BYTES)}
        session.execute(insert(Secret).values(values).on_conflict_do_nothing())
        kept = session.get(Secret, "server.key")
        assert kept is not None
        return Signer(bytes.fromhex(kept.value))


def is_local_name(host: str) -> bool:
    """Whether a Host header names this machine.

    Anything else came through a proxy, or from a foreign page whose name points here (DNS rebinding).
    """
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _lock(path: Path) -> IO[bytes]:
    """Hold the data folder as long as the process lives: the SQLite way of running is one process."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise UpdateError(
            f"the data folder {path.parent} is in use by another server",
            hint="stop it, or give --data another folder",
        ) from error
    return file


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a server bound to this address."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
