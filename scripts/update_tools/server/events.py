# SPDX-License-Identifier: Apache-2.0
"""Live events: who waits for a change is told when a transaction that made it was committed.

Topics are what database.topics_of says: `deployments`, `deployment:ID`, `devices`, `device:ID`, `releases`.
They carry no data; who hears one looks in the database. On SQLite one process serves, and its own commits
are the events. On PostgreSQL each process listens (LISTEN), and the commits of all are heard by all; after
a lost connection everybody is told to look again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

from update_tools.server.database import CHANNEL, EVERYTHING, Database

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

RECONNECT_S = 2.0


class Subscription:
    """What one waiter has not looked at yet. It does not grow: a topic that changes twice is there once."""

    def __init__(self, topics: Iterable[str]) -> None:
        self.topics = frozenset(topics)
        self._news: set[str] = set()
        self._ready = asyncio.Event()
        self.is_closed = False

    def tell(self, topics: Iterable[str]) -> None:
        """New topics; called in the event loop."""
        self._news |= self.topics if EVERYTHING in topics else self.topics & set(topics)
        if self._news:
            self._ready.set()

    def close(self) -> None:
        """No more news: the server ends."""
        self.is_closed = True
        self._ready.set()

    async def wait(self, timeout_s: float) -> set[str]:
        """The topics with news; empty after the time is over, or at once when the server ends."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        news, self._news = self._news, set()
        if not self.is_closed:
            self._ready.clear()
        return news


class Hub:
    """Subscriptions of one process. `running` must be entered once, in the event loop."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._subscriptions: set[Subscription] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def publish(self, topics: Iterable[str]) -> None:
        """Tell subscribers of this process, from any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has just ended
                self._loop.call_soon_threadsafe(self._tell, frozenset(topics))

    @contextmanager
    def subscribe(self, topics: Iterable[str]) -> Iterator[Subscription]:
        """Hear of these topics from now on."""
        subscription = Subscription(topics)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the server runs."""
        self._loop = asyncio.get_running_loop()
        self._db.on_change = self.publish
        listener = asyncio.create_task(self._listen()) if self._db.is_postgresql else None
        try:
            yield
        finally:
            self.close()
            self._db.on_change = None
            if listener is not None:
                listener.cancel()
                with suppress(asyncio.CancelledError):
                    await listener
            self._loop = None

    def close(self) -> None:
        """Wake everybody up for the last time."""
        for subscription in list(self._subscriptions):
            subscription.close()

    def _tell(self, topics: frozenset[str]) -> None:
        for subscription in self._subscriptions:
            subscription.tell(topics)

    async def _listen(self) -> None:
        import psycopg

        url = self._db.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    self._tell(frozenset({EVERYTHING}))  # what was missed until now
                    await self._hear(connection)
            except psycopg.Error as error:
                log.warning("live events are late, the database does not answer: %s", str(error).strip())
            await asyncio.sleep(RECONNECT_S)

    async def _hear(self, connection: psycopg.AsyncConnection) -> None:
        async for notice in connection.notifies():
            self._tell(frozenset(notice.payload.split(",")))
