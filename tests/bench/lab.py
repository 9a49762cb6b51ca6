# SPDX-License-Identifier: Apache-2.0
"""Sets up what the parts need and runs them; a part that fails does not stop the rest."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import install, peers
from tests.bench.agents import MATERIAL, UpdateAgent
from tests.bench.device import Device, Loop, Slot, as_local, installed_agent
from tests.bench.image import Material, material
from tests.bench.server import Server

from update_agent.errors import UpdateError
from update_tools.bench import cache
from update_tools.bench.tools import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.agents import Agent
    from tests.bench.report import Report


class Lab:
    """One measurement of everything asked for."""

    def __init__(self, folder: Path, report: Report, options: argparse.Namespace) -> None:
        self._report = report
        self._options = options
        self._closing: list[Callable[[], None]] = []
        self.failures: list[str] = []
        # In memory: what the agents keep beside the slot shall not depend on this machine's disk.
        self._work = folder
        run(["mount", "-t", "tmpfs", "tmpfs", self._work])
        run(["ip", "link", "set", "lo", "up"])

    def close(self) -> None:
        """End what was started, and let go of all mounts at once."""
        for close in reversed(self._closing):
            close()
        run(["umount", "--lazy", self._work])

    def run(self) -> None:
        """The parts, as asked."""
        for part in self._options.parts:
            say(part)
            try:
                getattr(self, f"_{part}")()
            except UpdateError as error:
                self.failures.append(part)
                self._report.notes.append(f"{part} failed: {error}")
                say(f"{part} failed: {error}")

    # Parts

    def _install(self) -> None:
        for place in ("ram", "disk"):
            folder = self._work / place
            folder.mkdir()
            stuff = material(self._options.size, quick=self._options.quick)
            slot = self._slot(place, stuff)
            folders = [stuff.folder]
            servers = {"http": Server(folders), "https": Server(folders, folder)}
            self._closing += [server.close for server in servers.values()]
            agents = self._agents(folder, slot, stuff, servers)
            if not self._options.no_peers:
                agents += self._peers(folder, slot, stuff, servers, folders)
            bench = install.Bench(agents, stuff, self._random(stuff.size_bytes), servers, self._report)
            for number in range(self._options.rounds + 1):
                say(f"install, {place}: " + (f"round {number}" if number else "warm-up, looks at memory"))
                for case in install.cases(place):
                    bench.run(case, warm_up=number == 0)
            if place == "ram":
                bench.upgrade(agents)

    # Pieces

    def _agents(self, folder: Path, slot: Slot, stuff: Material, servers: dict[str, Server]) -> list[Agent]:
        device = self._device(folder, slot)
        device.show(stuff.folder, MATERIAL)
        device.trust(servers["https"].certificate)
        device.configure()
        return [UpdateAgent(device)]

    def _peers(
        self, folder: Path, slot: Slot, stuff: Material, servers: dict[str, Server], folders: list[Path]
    ) -> list[Agent]:
        missing = peers.missing()
        for name, package in missing.items():
            note = f"{name} is not here: scripts/bench --fetch-peers, or apt-get install {package}"
            if note not in self._report.notes:
                self._report.notes.append(note)
        found: list[Agent] = []
        for name in peers.PROGRAMS:
            if name in missing:
                continue
            device = Device(folder, slot, usr=peers.usr(), name=name.split()[0].lower())
            device.show(stuff.folder, MATERIAL)
            releases = peers.releases(device, stuff, quick=self._options.quick)
            device.show(releases, peers.RELEASES)
            device.name_disk_of(releases)
            if releases not in folders:
                folders.append(releases)
            device.trust(servers["https"].certificate)
            device.configure()
            agent = peers.start(name, device)
            self._closing.append(agent.close)
            found.append(agent)
        return found

    def _device(self, folder: Path, slot: Slot) -> Device:
        local = self._work / "local"
        if not local.exists():
            as_local(installed_agent(self._work), local)
        return Device(folder, slot, local=local)

    def _slot(self, place: str, stuff: Material) -> Slot:
        folder = self._work if place == "ram" else cache.root()
        file = folder / f"slot-{os.getpid()}.img"
        with file.open("wb") as target:
            target.truncate(stuff.size_bytes)
            if place == "disk":
                os.posix_fallocate(target.fileno(), 0, stuff.size_bytes)
        try:
            slot = Slot(file, direct=place == "disk")
        finally:
            file.unlink()  # the loop device holds it
        self._closing.append(slot.close)
        return slot

    def _random(self, size: int) -> Path:
        path = self._work / "random"
        if not path.exists():
            with path.open("wb") as file:
                for _ in range(0, size, 1 << 20):
                    file.write(os.urandom(1 << 20))
        return path


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


__all__ = ["Lab", "Loop", "say"]
