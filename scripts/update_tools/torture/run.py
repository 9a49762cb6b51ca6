# SPDX-License-Identifier: Apache-2.0
"""The run itself: a server, a board, updates back to back, power cuts at the planned moments."""

from __future__ import annotations

import hashlib
import json
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
LIMIT_S = 600.0
"""Nothing takes so long but what never ends."""


class Result:
    """One cut as the report has it: when, what the server had been told, what came up, what was wrong."""

    __slots__ = ("after_s", "came_up", "cut", "problems", "seconds_to_start", "status")

    def __init__(self, cut: Cut, after_s: float, status: str) -> None:
        self.cut = cut
        self.after_s = after_s
        self.status = status
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
        self._number = 0

    def run(self, cuts: Sequence[Cut]) -> list[Result]:
        """Play the cuts. Stops early only at a board that does not start any more."""
        first = self._system("a")
        with server.start(self.folder / "server", auto_accept=True) as running:
            self._management = running.management()
            settings = {**SETTINGS, "ServerURL": f"http://{DESK}:{running.port}"}
            slot = self._file("a", "good")
            self._board = Board.create(
                self.folder / "board", slot, kind=self._kind.machine, settings=settings
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
        return results

    def _cuts(self, cuts: Sequence[Cut], results: list[Result]) -> None:
        for cut in cuts:
            result = self._one(cut)
            results.append(result)
            what = "; ".join(map(repr, result.problems)) or "ok"
            again = "" if cut.again is None else ", again while it started"
            self.say(
                f"cut {cut.number:3}: after {result.after_s:4.1f} s, {result.status or 'pending'}{again}: "
                f"{result.came_up} after {result.seconds_to_start:.1f} s: {what}"
            )
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
        deadline = started + cut.moment * self.update_s
        while time.monotonic() < deadline:
            if self._status() in judge.FINAL:
                self._finish()
                self._begin(cut.variant)
            time.sleep(max(0.0, min(0.2, deadline - time.monotonic())))
        status = self._status()
        self._board.power_cut()
        result = Result(cut, time.monotonic() - started, status)
        found = self._card()
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
        result.came_up = f"{booted.version} from partition {booted.part}"
        result.problems += judge.start(self._update, found, booted.part, booted.version)
        return result

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
        new_part = numbers["B"] if old_part == numbers["A"] else numbers["A"]
        name = "b" if old.name.startswith("a") else "a"
        image_variant = "good" if variant == "refusing" else variant
        file = self._file(name, image_variant)
        new = self._system(file.stem)
        # An artifact has one name: what a refusing script travels with is the good system's under it.
        scripts = ("refusing",) if variant == "refusing" else ()
        artifact = self._artifact(file, variant, scripts)
        self._update = Update(old, old_part, new, new_part, is_good=variant == "good")
        self._number += 1
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
            time.sleep(0.1)

    # Systems and artifacts, made when first wanted

    def _file(self, name: str, variant: str) -> Path:
        stem = name if variant == "good" else f"{name}-{variant}"
        file = self.folder / f"{stem}.ext4"
        if not file.exists():
            rootfs.make_rootfs(file, self._kind, version=stem, variant=variant)
        return file

    def _system(self, name: str) -> System:
        if name not in self._systems:
            stem, _, variant = name.partition("-")
            file = self._file(stem, variant or "good")
            self._systems[name] = System(name, _digest(file))
        return self._systems[name]

    def _artifact(self, file: Path, variant: str, scripts: Sequence[str]) -> str:
        """Name of the artifact on the server, made and uploaded when first wanted."""
        # A refusing update has the system of the good one, so that only its script tells them apart.
        name = f"{file.stem}-refusing" if variant == "refusing" else file.stem
        if not (self.folder / f"{name}.mender").exists():
            if variant == "refusing":
                linked = self.folder / f"{name}.ext4"
                linked.symlink_to(file)
                file = linked
            made = make_artifact(file, name, self._kind.machine, *scripts)
            self._management.upload(made)
        return name


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_report(path: Path, results: Sequence[Result]) -> None:
    """All cuts as lines of JSON."""
    path.write_text("".join(json.dumps(result.document()) + "\n" for result in results))
