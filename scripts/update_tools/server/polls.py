# SPDX-License-Identifier: Apache-2.0
"""The request that is made most: a poll of a device for which there is nothing.

Polls that come in while the database is asked are asked together with the next question: one statement for
all of them, so a busy server asks more at a time, not more often. Nothing is remembered between polls; each
answer is from after the poll came in. When a device was heard of is written down for many at once, some
seconds later; a crash loses those seconds of it, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, Select, String, any_, bindparam, func, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from update_tools.server import auth
from update_tools.server.bodies import STALL_S, parse_json
from update_tools.server.database import Database
from update_tools.server.db import Deployment, Device, DeviceKey, Moment, Part, now
from update_tools.server.faults import Refusal
from update_tools.server.tokens import Signer

log = logging.getLogger(__name__)

AT_ONCE = 500  # keys in one statement
PATH = "/api/devices/v2/deployments/device/deployments/next"
LIMIT_BYTES = 16 << 10
NOTHING: list[Message] = [
    {"type": "http.response.start", "status": 204, "headers": []},
    {"type": "http.response.body", "body": b""},
]


@dataclass(frozen=True)
class Standing:
    """What the server knows of an accepted device."""

    device_id: str
    artifact_name: str
    device_type: str
    has_deployment: bool

    def is_news(self, provides: Mapping[str, str]) -> bool:
        """Whether a poll with these provides has anything to write down, or the device anything to get."""
        return (
            self.has_deployment
            or self.artifact_name != provides["artifact_name"]
            or self.device_type != provides["device_type"]
        )


class Polls:
    """Looks devices up in batches, and gathers when they were heard of. `look` is the event loop's."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._query = _query(is_postgresql=db.is_postgresql)
        # One statement is a transaction; PostgreSQL need not be told of its end.
        self._engine = (
            db.engine.execution_options(isolation_level="AUTOCOMMIT") if db.is_postgresql else db.engine
        )
        self._waiting: list[tuple[str, asyncio.Future[Standing | None]]] = []
        self._asker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="polls")
        self._seen: dict[str, datetime] = {}
        self._seen_lock = threading.Lock()

    async def look(self, key_id: str) -> Standing | None:
        """What is known of the device with this key; None when there is none, or it is not accepted."""
        found: asyncio.Future[Standing | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key_id, found))
        if self._asker is None:
            self._asker = asyncio.create_task(self._ask())
        return await found

    def seen(self, device_id: str) -> None:
        """The device was heard of just now."""
        moment = now()
        with self._seen_lock:
            self._seen[device_id] = moment

    def flush(self) -> None:
        """Write down which devices were heard of."""
        with self._seen_lock:
            seen, self._seen = self._seen, {}
        if not seen:
            return
        try:
            with self._db.write() as session:
                # In one order, so that two processes never wait for each other.
                rows = [{"device": name, "moment": seen[name]} for name in sorted(seen)]
                session.connection().execute(_SEEN, rows)
        except SQLAlchemyError:
            with self._seen_lock:
                self._seen = seen | self._seen
            raise

    def close(self) -> None:
        """Write down the rest and end."""
        self._thread.shutdown()
        try:
            self.flush()
        except SQLAlchemyError as error:
            log.warning("when devices were heard of last is lost: %s", str(error).splitlines()[0])

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
                try:
                    keys = [key_id for key_id, _ in batch]
                    if self._db.is_postgresql:
                        known = await loop.run_in_executor(self._thread, self._find, keys)
                    else:  # a reader of SQLite waits for nobody, and a thread would cost more than it takes
                        known = self._find(keys)
                except Exception as error:
                    for _, future in batch:
                        if not future.done():  # who asked may have gone away
                            future.set_exception(error)
                else:
                    for key_id, future in batch:
                        if not future.done():
                            future.set_result(known.get(key_id))
        finally:
            self._asker = None

    def _find(self, key_ids: list[str]) -> dict[str, Standing]:
        keys: Any = key_ids if self._db.is_postgresql else json.dumps(key_ids)
        with self._engine.connect() as connection:
            rows = connection.execute(self._query, {"keys": keys, "moment": now()})
            return {row[0]: Standing(row[1], row[2], row[3], bool(row[4])) for row in rows}


class PollFirst:
    """Answers polls for which there is nothing, before the framework looks at the request.

    Whatever is not exactly that (a deployment, news of the device, a wrong token, a strange body) goes on to
    the route, unchanged. No line is logged for them: 10,000 devices would write 30 million a day.
    """

    def __init__(self, app: ASGIApp, polls: Polls, signer: Signer) -> None:
        self.app = app
        self.polls = polls
        self.signer = signer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(STALL_S):
                first = await receive()
        except TimeoutError:
            await self.app(scope, receive, send)  # to be refused like everybody who is that slow
            return
        is_whole = first["type"] == "http.request" and not first.get("more_body", False)
        if is_whole and await self._is_for_nothing(scope, first.get("body", b"")):
            for message in NOTHING:
                await send(message)
            return
        messages = [first]

        async def again() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, again, send)

    async def _is_for_nothing(self, scope: Scope, body: bytes) -> bool:
        """Whether it is a proper poll of an accepted device for which there is nothing."""
        headers = {
            name: value for name, value in scope["headers"] if name in (b"authorization", b"content-type")
        }
        kind = headers.get(b"content-type", b"application/json")
        if len(body) > LIMIT_BYTES or kind != b"application/json":
            return False
        try:
            claims = auth.check_token(self.signer, headers.get(b"authorization", b"").decode("latin-1"))
            asked = parse_json(body)
        except Refusal:
            return False
        provides = asked.get("device_provides") if isinstance(asked, dict) else None
        if not isinstance(provides, dict) or not all(isinstance(each, str) for each in provides.values()):
            return False
        if not provides.get("artifact_name") or not provides.get("device_type"):
            return False
        try:
            known = await self.polls.look(str(claims.get("key", "")))
        except SQLAlchemyError:
            return False  # the route says what to do about it
        if known is None or known.device_id != claims.get("sub") or known.is_news(provides):
            return False
        self.polls.seen(known.device_id)
        return True


def _query(*, is_postgresql: bool) -> Select[str, str, str, str, bool]:
    """Keys, their devices, and whether a deployment is there for them: services.open_parts in short."""
    due = (
        select(Part.id)
        .join(Deployment, Deployment.id == Part.deployment_id)
        .where(
            Part.device_id == DeviceKey.device_id,
            Part.finished_at.is_(None),
            or_(
                Part.handed_out_at.is_not(None),
                (Deployment.held_at.is_(None))
                & or_(Part.due_at.is_(None), Part.due_at <= bindparam("moment", type_=Moment())),
            ),
        )
        .exists()
    )
    if is_postgresql:
        is_asked = DeviceKey.id == any_(bindparam("keys", type_=ARRAY(String)))
    else:
        asked = func.json_each(bindparam("keys", type_=String)).table_valued("value")
        is_asked = DeviceKey.id.in_(select(asked.c.value))
    return (
        select(DeviceKey.id, Device.id, Device.artifact_name, Device.device_type, due)
        .join(Device, Device.id == DeviceKey.device_id)
        .where(is_asked, DeviceKey.status == "accepted")
    )


_SEEN = (
    update(Device)
    .where(
        Device.id == bindparam("device"),
        or_(Device.last_seen_at.is_(None), Device.last_seen_at < bindparam("moment")),
    )
    .values(last_seen_at=bindparam("moment"))
)
