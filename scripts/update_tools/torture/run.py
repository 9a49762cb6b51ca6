# SPDX-License-Identifier: Apache-2.0
"""The run itself: a server, a board, updates back to back, power cuts at the planned moments."""

from __future__ import annotations

import hashlib
import json
import random
import time
from typing import TYPE_CHECKING, Any

from update_agent.errors import UpdateError
from update_tools.bench import boards, image, rootfs
from update_tools.bench.qemu import DESK, Board
from update_tools.demo.artifacts import make_artifact
from update_tools.server import rollout
from update_tools.server import run as server
from update_tools.server.client import Management

from . import judge
from .judge import Card, Problem, System, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .plan import Cut

SETTINGS = {
    "UpdatePollIntervalSeconds": 2,
    "InventoryPollIntervalSeconds": 600,
    "RetryPollIntervalSeconds": 5,
}
OWN_BYTES = 8 << 20
"""Of each system, in no other: blocks that are equal would not be written at all."""
LIMIT_S = 600.0
"""Nothing takes so long but what never ends."""


class Result:
    """One cut as the report has it: when, what the server had been told, what came up, what was wrong."""

    __slots__ = ("after_s", "came_up", "cut", "problems", "seconds_to_start", "slot", "status")

    def __init__(self, cut: Cut, after_s: float, status: str, slot: str) -> None:
        self.cut = cut
        self.after_s = after_s
        self.status = status
        self.slot = slot
        """The other slot at the cut: untouched, partly written, whole."""
        self.came_up = ""
        self.seconds_to_start = 0.0
        self.problems: list[Problem] = []

    def document(self) -> dict[str, Any]:
        """As a line of the report."""
        return {
            "cut": self.cut.number,
            "moment": round(self.cut.moment, 4),
            "after_s": round(self.after_s, 2),
            "again": None if self.cut.again is None else round(self.cut.again, 4),
            "status": self.status,
            "slot": self.slot,
            "came_up": self.came_up,
            "start_s": round(self.seconds_to_start, 1),
            "problems": [{"kind": each.kind, "text": each.text} for each in self.problems],
        }


class Torture:
    """A board under torture; `say` gets a line for each thing worth one."""

    def __init__(self, folder: Path, kind: str, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.say = say
        self.ends: list[tuple[str, str]] = []
        """What was deployed, and how it ended by the server."""
        self.problems: list[Problem] = []
        """Problems of deployments' ends; those of cuts are in their results."""
        self.update_s = self.start_s = 0.0
        self._kind = boards.kind(kind)
        self._systems: dict[str, System] = {}
        self._management: Management
        self._board: Board
        self._running: tuple[System, int]
        self._update: Update
        self._deployment = ""
        self._before = ""
        """Digest of the other slot when the deployment began."""
        self._number = 0
        self._starts: list[float] = []

    def run(self, cuts: Sequence[Cut]) -> list[Result]:
        """Play the cuts. Stops early only at a board that does not start any more."""
        first = self._system("a")
        with server.start(self.folder / "server", auto_accept=True) as running:
            self._management = running.management()
            settings = {**SETTINGS, "ServerURL": f"http://{DESK}:{running.port}"}
            self._board = Board.create(
                self.folder / "board", self._file("a"), kind=self._kind.machine, settings=settings
            )
            try:
                return self._play(first, cuts)
            finally:
                if self._board.is_running():
                    self._board.power_cut()

    def _play(self, first: System, cuts: Sequence[Cut]) -> list[Result]:
        started = time.monotonic()
        part = self._board.boot().part
        self.start_s = time.monotonic() - started
        self._running = (first, part)
        self._until(lambda: bool(self._management.known_devices()), "the server's acceptance of the board")
        started = time.monotonic()
        self._begin("good")
        self._until(lambda: self._status() in judge.FINAL, "the end of the undisturbed update")
        self.update_s = time.monotonic() - started
        self.problems += self._judge_end()
        self.say(f"undisturbed: a start takes {self.start_s:.1f} s, an update {self.update_s:.1f} s")
        results: list[Result] = []
        try:
            self._cuts(cuts, results)
            if self._board.is_running():
                self._wait_end()
        except UpdateError as error:  # the rest of the plan has nothing to stand on
            self.problems.append(Problem("stuck", str(error)))
            self.say(f"         {self.problems[-1]!r}")
        except KeyboardInterrupt:
            self.say("interrupted")
        return results

    def _cuts(self, cuts: Sequence[Cut], results: list[Result]) -> None:
        for cut in cuts:
            result = self._one(cut)
            results.append(result)
            with open(self.folder / "report.jsonl", "a", encoding="utf-8") as report:
                report.write(json.dumps(result.document()) + "\n")
            what = "; ".join(map(repr, result.problems)) or "ok"
            when = f"after {result.after_s:4.1f} s, {result.status}, other slot {result.slot}"
            again = "" if cut.again is None else ", again while it started"
            came = f"{result.came_up} after {result.seconds_to_start:.1f} s"
            self.say(f"cut {cut.number:3}: {when}{again}: {came}: {what}")
            if result.problems:
                kept = self.folder / f"card-after-cut-{cut.number}.img"
                image.copy_sparse(self._board.disk, kept)
                self.say(f"         the card is kept in {kept}")
            if not self._board.is_running():
                return

    # One cut

    def _one(self, cut: Cut) -> Result:
        started = time.monotonic()
        if not self._deployment:
            self._begin(cut.variant)
        deadline = started + cut.moment * self.update_s * self._slowness()
        while time.monotonic() < deadline:
            if self._status() in judge.FINAL:
                self._finish()
                self._begin(cut.variant)
            time.sleep(max(0.0, min(0.5, deadline - time.monotonic())))
        status = self._status()
        self._board.power_cut()
        after_s = time.monotonic() - started
        found = self._card()
        now = found.digests[self._update.new_part]
        words = {self._before: "untouched", self._update.new.digest: "whole"}
        result = Result(cut, after_s, status, words.get(now, "partly written"))
        result.problems += judge.card(self._update, found, status)
        if cut.again is not None:
            self._board.power_on()
            time.sleep(cut.again * self.start_s)
            self._board.power_cut()
            found = self._card()
            result.problems += judge.card(self._update, found, self._status())
        started = time.monotonic()
        try:
            booted = self._board.boot(LIMIT_S / 2)
        except UpdateError as error:
            result.problems.append(Problem("unbootable", str(error)))
            result.came_up = "nothing"
            if self._board.is_running():
                self._board.power_cut()
            return result
        result.seconds_to_start = time.monotonic() - started
        self._starts.append(result.seconds_to_start)
        result.came_up = f"{booted.version} from partition {booted.part}"
        result.problems += judge.start(self._update, found, booted.part, booted.version)
        return result

    def _slowness(self) -> float:
        """How much longer things take now than when they were measured: other work on this machine varies."""
        last = sorted(self._starts[-3:])
        return last[len(last) // 2] / self.start_s if last else 1.0

    def _card(self) -> Card:
        board = self._board
        environment = board.read_env()
        values = None if environment.newer is None else environment.values
        digests = {board.layout.numbers[slot]: board.slot_digest(slot) for slot in ("A", "B")}
        return Card(values, digests)

    # Deployments

    def _begin(self, variant: str) -> None:
        old, old_part = self._running
        numbers = self._board.layout.numbers
        other = "B" if old_part == numbers["A"] else "A"
        self._before = self._board.slot_digest(other)
        self._number += 1
        # Not what the other slot holds already: nothing would be written.
        kind = "" if variant in {"good", "refusing"} else f"-{variant}"
        names = [f"{letter}{kind}" for letter in "abc" if letter != old.name]
        names = [name for name in names if self._system(name).digest != self._before]
        new = self._system(names[self._number % len(names)])
        artifact = self._artifact(new.name, variant)
        self._update = Update(old, old_part, new, numbers[other], is_good=variant == "good")
        self._deployment = self._management.deploy(f"{self._number}-{variant}", artifact, force=True)

    def _wait_end(self) -> None:
        if not self._deployment:
            self._begin("good")
        self._until(lambda: self._status() in judge.FINAL, "the end of the last update")
        self._finish()

    def _finish(self) -> None:
        found = self._judge_end()
        for problem in found:
            self.say(f"         deployment {self._number}: {problem!r}")
        self.problems += found

    def _judge_end(self) -> list[Problem]:
        """Ask the board what runs, and compare. The deployment is over then."""
        update, deployment = self._update, self._deployment
        status = self._status()
        if status == "failure":
            self._until(lambda: bool(self._device()["log"]), "the log of a failed update")
        shown = self._board.check("cat /proc/cmdline; cat /etc/update-version; update-agent show-artifact")
        *command_line, name, artifact = shown.split()
        (root,) = [word for word in command_line if word.startswith("root=")]
        part = int(root.rpartition("p")[2])
        device = self._device()
        events = self._management.events(deployment, device["id"])
        words = [event["word"] for event in events if event["source"] == "device"]
        statuses = [word for word in words if word in rollout.REPORTABLE]
        found = judge.end(update, statuses, part, name, artifact)
        self.ends.append((self._management.deployment(deployment)["name"].partition("-")[2], status))
        ended_new = part == update.new_part
        self._running = (update.new, part) if ended_new else (update.old, part)
        self._deployment = ""
        return found

    def _status(self) -> str:
        if not self._deployment:
            return ""
        return str(self._device()["status"])

    def _device(self) -> dict[str, Any]:
        (device,) = self._management.devices(self._deployment)
        return device

    def _until(self, is_there: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not is_there():
            if time.monotonic() > deadline:
                log = self._board.shell("tail -n 20 /data/log/update-agent.log").output
                raise UpdateError(f"{what} did not come within {LIMIT_S:g} s", hint=f"the agent says:\n{log}")
            time.sleep(0.3)

    # Systems and artifacts, made when first wanted

    def _file(self, name: str) -> Path:
        file = self.folder / f"{name}.ext4"
        if not file.exists():
            own = {"/usr/share/own": random.Random(name).randbytes(OWN_BYTES)}
            variant = name.partition("-")[2] or "good"
            rootfs.make_rootfs(file, self._kind, version=name, variant=variant, extra_files=own)
        return file

    def _system(self, name: str) -> System:
        if name not in self._systems:
            self._systems[name] = System(name, _digest(self._file(name)))
        return self._systems[name]

    def _artifact(self, system: str, variant: str) -> str:
        """Name of the artifact on the server, made and uploaded when first wanted."""
        # The same system with a script that refuses it has a name, and so a file, of its own.
        name = f"{system}-refusing" if variant == "refusing" else system
        if not (self.folder / f"{name}.mender").exists():
            file = self._file(system)
            if variant == "refusing":
                file = self.folder / f"{name}.ext4"
                file.symlink_to(f"{system}.ext4")
            scripts = ("refusing",) if variant == "refusing" else ()
            self._management.upload(make_artifact(file, name, self._kind.machine, *scripts))
        return name


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
