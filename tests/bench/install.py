# SPDX-License-Identifier: Apache-2.0
"""Installing the image: wall time against the limit of the same minute, CPU, memory, bytes written.

Before each run the slot is filled with random bytes, so that who skips identical blocks must write; after it
the slot is compared with the image. A wrong slot is an error, not a result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.agents import OURS
from tests.bench.limits import limit
from tests.bench.report import Row
from tests.bench.run import BenchError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.bench.agents import Agent
    from tests.bench.image import Material
    from tests.bench.report import Report
    from tests.bench.run import Cost
    from tests.bench.server import Server

COMPRESSIONS = ("none", "gzip", "zstd", "xz")


class Case:
    """One compression over one transport; `place` is where the slot's bytes lie: ram or disk."""

    def __init__(self, compression: str, transport: str, place: str) -> None:
        self.compression = compression
        self.transport = transport
        self.place = place

    @property
    def title(self) -> str:
        """As in the table."""
        return f"{self.compression} {self.transport}" + (" disk" if self.place == "disk" else "")


def cases(place: str) -> list[Case]:
    """All transports where the slot costs nothing; on disk the transport makes no difference of its own."""
    transports = ("file", "http", "https") if place == "ram" else ("file",)
    return [Case(compression, transport, place) for compression in COMPRESSIONS for transport in transports]


class Bench:
    """Runs cases on one device kind and adds to the report."""

    def __init__(
        self,
        agents: Sequence[Agent],
        material: Material,
        random: Path,
        servers: dict[str, Server],
        report: Report,
    ) -> None:
        self._agents = list(agents)
        self._material = material
        self._random = random
        self._servers = servers
        self._report = report

    def run(self, case: Case, *, warm_up: bool) -> None:
        """One round of a case: the limit, then every agent that can. The first one only looks at memory."""
        able = [agent for agent in self._agents if agent.can(case.compression, case.transport)]
        if case.compression == "xz" and case.transport != "file":
            able = [agent for agent in able if agent.name == OURS]  # xz takes longer than any transport
        if not able:
            return
        slot = able[0].device.slot
        best = 0.0
        if not warm_up:
            best = limit(self._material, case.compression, slot.path).wall_s
            self._report.add(Row("install", case.title, "wall", "s"), "limit", best)
        for agent in able:
            try:
                cost = self._once(agent, case, sample=warm_up)
            except BenchError as error:
                self._give_up(agent, error)
                continue
            if warm_up:
                self._report.add(Row("install", case.title, "memory, tree", "MiB"), agent.name, cost.tree_mib)
                continue
            self._report.add(Row("install", case.title, "wall", "s"), agent.name, cost.wall_s)
            self._report.add(Row("install", case.title, "wall / limit", "x"), agent.name, cost.wall_s / best)
            self._report.add(Row("install", case.title, "CPU", "s"), agent.name, cost.cpu_s)
            self._report.add(Row("install", case.title, "memory, largest", "MiB"), agent.name, cost.rss_mib)

    def _give_up(self, agent: Agent, error: BenchError) -> None:
        """Go on without a peer that fails; ours must not."""
        if agent.name == OURS:
            raise error
        self._report.notes.append(f"{agent.name} takes no further part: {error}")
        self._agents.remove(agent)

    def upgrade(self) -> None:
        """Bytes written when the slot holds the release before, of which 3 % of the files are others."""
        for agent in self._agents:
            slot = agent.device.slot
            agent.prepare()
            slot.fill(self._material.image)
            before = slot.written_bytes()
            agent.install(self._source(agent, "gzip", "file", changed=True))
            self._check(agent, "upgrade", self._material.changed)
            written = (slot.written_bytes() - before) / (1 << 20)
            row = Row("install", "upgrade, 3 % other files", "written", "MiB")
            self._report.add(row, agent.name, written)

    def _once(self, agent: Agent, case: Case, *, sample: bool) -> Cost:
        agent.prepare()
        agent.device.slot.fill(self._random)
        cost = agent.install(self._source(agent, case.compression, case.transport), sample=sample)
        self._check(agent, case.title, self._material.image)
        return cost

    def _check(self, agent: Agent, title: str, image: Path) -> None:
        if not agent.device.slot.holds(image):
            raise BenchError(f"{agent.name} said it installed {title}, but the slot holds something else")

    def _source(self, agent: Agent, compression: str, transport: str, *, changed: bool = False) -> str:
        name = agent.release(compression, changed=changed)
        return f"{agent.folder}/{name}" if transport == "file" else f"{self._servers[transport].url}/{name}"
