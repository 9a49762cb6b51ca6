# SPDX-License-Identifier: Apache-2.0
"""A process that is many devices: `python -m update_tools.server.load.fleet`, told what to do on stdin.

One job a line as JSON, one result a line on stdout. Devices keep their tokens between jobs.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from update_tools.server.load.devices import SimulatedDevice
from update_tools.server.load.wire import Broken, Connection


@dataclass
class Tally:
    """What requests of one kind took, and what was wrong with them."""

    seconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def document(self) -> dict[str, Any]:
        """For the report."""
        ordered = sorted(self.seconds)

        def at(share: float) -> float:
            return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0

        return {
            "count": len(ordered),
            "p50_s": at(0.5),
            "p99_s": at(0.99),
            "max_s": ordered[-1] if ordered else 0.0,
            "errors": dict(self.errors),
        }


class Crowd:
    """The devices of this process. Each job returns tallies by kind of request, and its seconds."""

    def __init__(self) -> None:
        self.devices: list[SimulatedDevice] = []
        self.tallies: dict[str, Tally] = {}

    async def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do one job."""
        self.tallies = {}
        work: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
            "authorize": self._authorize,
            "know": self._know,
            "flood": self._flood,
            "pace": self._pace,
            "walk": self._walk,
        }
        begun = time.perf_counter()
        await work[job["job"]](**job["with"])
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "kinds": {kind: tally.document() for kind, tally in self.tallies.items()}}

    async def _authorize(self, urls: list[str], first: int, count: int, connections: int) -> None:
        self.devices = [SimulatedDevice(number) for number in range(first, first + count)]
        requests = {device.number: device.authorization() for device in self.devices}
        waiting = iter(self.devices)

        async def worker(url: str) -> None:
            connection = await Connection.open(url)
            for device in waiting:
                status, body = await self._ask(connection, "authorize", requests[device.number], (200,))
                if status == 200:
                    device.token = body.decode()
            connection.close()

        await asyncio.gather(*(worker(urls[number % len(urls)]) for number in range(connections)))

    async def _know(self, first: int, tokens: list[str]) -> None:
        """More devices, whose tokens are there already."""
        self.devices += [SimulatedDevice(first + index, token) for index, token in enumerate(tokens)]

    async def _flood(self, urls: list[str], seconds: float, connections: int) -> None:
        """Polls as fast as answers come, over kept connections: what the server can do at most."""
        requests = [device.poll() for device in self.devices]
        random.Random(1).shuffle(requests)
        end = time.perf_counter() + seconds
        position = 0

        async def worker(url: str) -> None:
            nonlocal position
            connection = await Connection.open(url)
            while time.perf_counter() < end:
                position = (position + 1) % len(requests)
                await self._ask(connection, "poll", requests[position], (204,))
            connection.close()

        await asyncio.gather(*(worker(urls[number % len(urls)]) for number in range(connections)))

    async def _pace(self, urls: list[str], interval_s: float, seconds: float) -> None:
        """Each device polls once an interval, on a new connection; time counts from when the poll was due."""
        chance = random.Random(2)
        requests = {device.number: device.poll(is_last=True) for device in self.devices}
        due = sorted(
            (chance.random() * interval_s + turn * interval_s, device.number)
            for device in self.devices
            for turn in range(int(seconds / interval_s) + 1)
        )
        start = time.perf_counter()
        tasks = set()
        for moment, number in due:
            if moment >= seconds:
                break
            wait_s = start + moment - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            task = asyncio.create_task(
                self._once(urls[number % len(urls)], "poll", requests[number], start + moment)
            )
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)

    async def _walk(self, urls: list[str], deployment_id: str, count: int, connections: int) -> None:
        """Devices take a deployment to its end: one in ten fails and uploads its log."""
        waiting = iter(self.devices[:count])

        async def worker(url: str) -> None:
            connection = await Connection.open(url)
            for device in waiting:
                await self._take(connection, device, deployment_id)
            connection.close()

        await asyncio.gather(*(worker(urls[number % len(urls)]) for number in range(connections)))

    async def _take(self, connection: Connection, device: SimulatedDevice, deployment_id: str) -> None:
        async def ask(kind: str, request: bytes, *expected: int) -> bytes:
            return (await self._ask(connection, kind, request, expected))[1]

        answer = await ask("hand-out", device.poll(), 200)
        if not answer or json.loads(answer)["id"] != deployment_id:
            self._tally("hand-out").errors["another deployment"] += 1
            return
        for status in ("downloading", "installing", "rebooting", "installing"):
            await ask("status", device.report(deployment_id, status), 204)
            await ask("map refresh", device.refresh(deployment_id), 200)
        is_failure = device.number % 10 == 0
        await ask("status", device.report(deployment_id, "failure" if is_failure else "success"), 204)
        if is_failure:
            await ask("log", device.log(deployment_id), 204)
        await ask("inventory", device.inventory(), 200)

    async def _once(self, url: str, kind: str, request: bytes, due: float) -> None:
        try:
            connection = await Connection.open(url)
        except OSError as error:
            self._tally(kind).errors[type(error).__name__] += 1
            return
        await self._ask(connection, kind, request, (204,), since=due)
        connection.close()

    async def _ask(
        self,
        connection: Connection,
        kind: str,
        request: bytes,
        expected: tuple[int, ...],
        since: float | None = None,
    ) -> tuple[int, bytes]:
        begun = time.perf_counter() if since is None else since
        tally = self._tally(kind)
        try:
            status, body = await connection.ask(request)
        except Broken as error:
            tally.errors[str(error)] += 1
            return 0, b""
        tally.seconds.append(time.perf_counter() - begun)
        if status not in expected:
            tally.errors[f"{status}: {body[:120].decode(errors='replace')}"] += 1
        return status, body

    def _tally(self, kind: str) -> Tally:
        return self.tallies.setdefault(kind, Tally())


def main(read_line: Callable[[], str] = sys.stdin.readline) -> None:
    """Do jobs until stdin ends."""
    crowd = Crowd()
    with asyncio.Runner() as runner:
        while line := read_line():
            print(json.dumps(runner.run(crowd.run(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
