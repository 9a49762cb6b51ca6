# SPDX-License-Identifier: Apache-2.0
"""Sets up what the parts need and runs them; a part that fails does not stop the rest."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import desk, idle, install, machine, peers, size
from tests.bench.agents import MATERIAL, OURS, UpdateAgent
from tests.bench.device import Device, Loop, Slot, as_local, installed_agent
from tests.bench.image import Material, material
from tests.bench.run import PATH
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
        cache.root().mkdir(parents=True, exist_ok=True)
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
            agents += self._peers(folder, slot, stuff, servers, folders)
            bench = install.Bench(agents, stuff, self._random(stuff.size_bytes), servers, self._report)
            for number in range(self._options.rounds + 1):
                say(f"install, {place}: " + (f"round {number}" if number else "warm-up, looks at memory"))
                for case in install.cases(place):
                    bench.run(case, warm_up=number == 0)
            if place == "ram":
                bench.upgrade()

    def _machine(self) -> None:
        folder, slot = self._folder("machine")
        server = Server([machine.artifacts(folder / "nothing")])
        self._closing.append(server.close)
        # What is saved goes to this machine's disk: waiting for it is part of what is measured.
        disk = tempfile.TemporaryDirectory(dir=cache.root(), prefix="bench-")
        self._closing.append(disk.cleanup)
        subjects = [machine.ours(self._idle_device(folder, slot, "agent"))]
        if self._is_there("mender 3.4"):
            subjects.append(machine.mender(self._idle_device(folder, slot, "mender")))
        for subject in subjects:
            store = Path(disk.name, subject.device.root.name)
            store.mkdir()
            subject.device.store_on(store)
        rounds = self._options.rounds * (1 if self._options.quick else 2)
        machine.Bench(subjects, server, self._report, rounds).run()

    def _idle(self) -> None:
        folder, slot = self._folder("idle")
        machine.artifacts(folder / "nothing")
        server = Server([])
        self._closing.append(server.close)
        started: list[subprocess.Popen[bytes]] = []
        idlers: list[idle.Idler] = []

        def start(name: str, device: Device, argv: list[str], env: dict[str, str]) -> None:
            device.configure(ServerURL=server.url)
            device.renew()
            started.append(device.spawn(argv, {"PATH": PATH, "LANG": "C.UTF-8", **env}))
            idlers.append(idle.Idler(name, started[-1].pid))

        try:
            device = self._idle_device(folder, slot, "agent")
            start(OURS, device, ["update-agent", "daemon"], UpdateAgent.ENV)
            start(
                "limit", device, ["python3", "-I", "-S", "-c", "import select; select.select([], [], [])"], {}
            )
            if self._is_there("mender 3.4"):
                start("mender 3.4", self._idle_device(folder, slot, "mender"), ["mender", "daemon"], {})
            if self._is_there("SWUpdate"):
                device = self._idle_device(folder, slot, "swupdate")
                peers.keys(device, folder)
                start("SWUpdate", device, peers.SwUpdate.daemon(server.url), {})
            if self._is_there("RAUC"):
                device = self._idle_device(folder, slot, "rauc")
                peers.keys(device, folder)
                rauc = peers.Rauc(device)
                self._closing.append(rauc.close)
                idlers.append(idle.Idler("RAUC", rauc.pid))
            quick = self._options.quick
            idle.run(idlers, self._report, settle_s=1 if quick else 15, window_s=1 if quick else 60)
        finally:
            idle.stop(started)

    def _desk(self) -> None:
        stuff = material(self._options.size, quick=self._options.quick)
        folder = self._work / "desk"
        folder.mkdir()
        bench = desk.Bench(stuff, folder, self._report, with_peer=not self._options.no_peers)
        for number in range(self._options.rounds):
            say(f"desk: round {number + 1}")
            bench.run()

    def _size(self) -> None:
        size.run(self._tree(), self._report)

    # Pieces

    def _is_there(self, name: str) -> bool:
        """Whether this peer takes part; if it is missing, the report says what to do."""
        if self._options.no_peers:
            return False
        package = peers.missing().get(name)
        note = f"{name} is skipped: scripts/bench --fetch-peers, or apt-get install {package}"
        if package and note not in self._report.notes:
            self._report.notes.append(note)
        return package is None

    def _folder(self, name: str) -> tuple[Path, Slot]:
        """A place for a part that writes no slot, and a slot all the same."""
        folder = self._work / name
        folder.mkdir()
        file = folder / "slot.img"
        with file.open("wb") as target:
            target.truncate(16 << 20)
        slot = Slot(file)
        self._closing.append(slot.close)
        return folder, slot

    def _idle_device(self, folder: Path, slot: Slot, name: str) -> Device:
        """A device whose module and scripts do nothing."""
        data = machine.data_dir(folder / "data")
        if name == "agent":
            device = self._device(folder, slot)
            device.show(data, UpdateAgent.ENV["MENDER_DATA_DIR"])
        else:
            device = Device(folder, slot, usr=peers.usr(), name=name)
            device.show(data, "/usr/share/mender")
        device.show(folder / "nothing", machine.FOLDER)
        device.configure()
        return device

    def _agents(self, folder: Path, slot: Slot, stuff: Material, servers: dict[str, Server]) -> list[Agent]:
        device = self._device(folder, slot)
        device.show(stuff.folder, MATERIAL)
        device.trust(servers["https"].certificate)
        device.configure()
        return [UpdateAgent(device)]

    def _peers(
        self, folder: Path, slot: Slot, stuff: Material, servers: dict[str, Server], folders: list[Path]
    ) -> list[Agent]:
        found: list[Agent] = []
        for name in peers.PROGRAMS:
            if not self._is_there(name):
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
            as_local(self._tree(), local)
        return Device(folder, slot, local=local)

    def _tree(self) -> Path:
        """What the recipe installs."""
        tree = self._work / "tree"
        if not tree.exists():
            tree.symlink_to(installed_agent(self._work))
        return tree

    def _slot(self, place: str, stuff: Material) -> Slot:
        folder = self._work if place == "ram" else cache.root()
        fd, name = tempfile.mkstemp(dir=folder, prefix="slot-", suffix=".img")
        file = Path(name)
        with open(fd, "wb") as target:
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
