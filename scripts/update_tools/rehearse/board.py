# SPDX-License-Identifier: Apache-2.0
"""The same on a virtual board: real U-Boot, kernel and slots, a real server, and real time.

Fewer scenarios: the update in which nothing goes wrong, a rollback from each hook that leads to one, a
system that does not boot, and power cuts. What ran is read from the deployment log on the device, so it
tells of exit codes, seconds and output, not of files or processes. Waits are waited for, so windows are left
out; an update that a hook holds is let go on as a person does, for somebody is at work on its console.
"""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from update_agent.errors import UpdateError
from update_agent.scripts import parse_name
from update_agent.states import ARTIFACT, DAEMON, ROOTFS, STATE_BY_NAME
from update_tools import artifact
from update_tools.bench import boards, rootfs
from update_tools.bench.qemu import DESK, Board
from update_tools.rehearse import analyse, plan, team
from update_tools.rehearse.plan import Leg, Scenario
from update_tools.rehearse.record import Played
from update_tools.rehearse.rehearsal import Options, Rehearsal
from update_tools.rehearse.template import program_of
from update_tools.server import run as server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from update_agent.hooks import Hook
    from update_tools.rehearse.team import Team
    from update_tools.server.client import Management

    Json = dict[str, Any]
    Progress = Callable[[str, int, int], object]

_KIND = "virt64"
_LONGEST_S = 900.0
_SETTINGS = {
    "UpdatePollIntervalSeconds": 2,
    "InventoryPollIntervalSeconds": 600,
    "RetryPollIntervalSeconds": 5,
}
_RETRY_WINDOW_S = 60  # a script that wants to wait for the night is not waited for
_FAILING = b"#!/bin/sh\necho 'fails, as the rehearsal wants it' >&2\nexit 1\n"
_OURS = "99_ota-rehearsal"
_CUTS = ("downloading", "installing", "rebooting")  # the status at which the power is cut
_FINAL = ("success", "failure", "aborted", "already-installed")
_ENDED = re.compile(r"State script (\S+) (?:exited with (\d+)|was killed by signal (\d+)) after ([\d.]+) s$")
_LIMIT = re.compile(r"State script (\S+) ran into its time limit after ([\d.]+) s")
_OUTPUT = re.compile(r"Collected output \(\w+\) while running script: (.*)")


class _Case:
    """A scenario on the board: the hook that fails, the system that is sent, and when the power is cut."""

    def __init__(self, scenario: Scenario, *, hook: str = "", variant: str = "good", cut: str = "") -> None:
        self.scenario = scenario
        self.hook = hook
        self.variant = variant
        self.cut = cut

    @property
    def expected(self) -> tuple[str, ...]:
        """How it may end."""
        if self.cut:
            return ("success", "failure")
        return ("failure",) if self.hook or self.variant != "good" else ("success",)


def cases(*, quick: bool) -> list[_Case]:
    """What is played. The hooks whose failure leads to a rollback are those of the agent's table."""
    hooks = [
        step.work.subject
        for step in DAEMON
        if step.work.kind == "hook"
        and STATE_BY_NAME[step.work.state].scripts == ARTIFACT
        and step.edges["fail"] != step.edges["ok"]
        and not step.failure
        and step.name.partition(".")[0] not in {"rollback", "rollback_reboot", "failure"}
    ]
    failing = [
        _Case(Scenario("failure", f"{hook}=fail", f"{hook} fails", [Leg(is_bootable=True)]), hook=hook)
        for hook in hooks
    ]
    panics = _Case(
        Scenario("failure", plan.NO_BOOT, "The new system does not boot", [Leg(is_bootable=False)]),
        variant="panic",
    )
    cuts = [
        _Case(Scenario("kill", f"success ! power cut at {word}", f"power cut at {word}", [Leg()]), cut=word)
        for word in _CUTS
    ]
    first = _Case(Scenario(plan.SUCCESS, plan.SUCCESS, "Nothing goes wrong", [Leg()]))
    return [first, *(failing[-1:] if quick else failing), panics, *(cuts[-1:] if quick else cuts)]


def rehearse(given: Team, options: Options, folder: Path, *, progress: Progress) -> Rehearsal:
    """Play all cases on one board, kept in `folder`. Raises UpdateError when it cannot be made."""
    if given.payload_type != team.ROOTFS_IMAGE:
        raise team.InputError(
            f"a board is updated as a whole, and the artifact is a {given.payload_type}",
            hint="leave out --board",
        )
    result = Rehearsal(given, options)
    started = time.monotonic()
    # What the board lacks is found when it starts a script: programs are looked for on the host.
    if team.check(given, result.findings, [Path("/"), *([given.root] if given.root else [])]):
        _Player(result, folder, progress).play(cases(quick=options.quick))
        known = {script.name for script in given.scripts}
        analyse.judge(
            result.played,
            answers=result.answers,
            hooks=[],
            scripts={},
            persistent=("/",),  # files are not looked at
            findings=result.findings,
        )
        assert all(run.name in known for each in result.played for run in each.updates[0].runs)
    result.seconds = time.monotonic() - started
    return result


class _Player:
    def __init__(self, result: Rehearsal, folder: Path, progress: Progress) -> None:
        self._result = result
        self._team = result.team
        self._folder = folder
        self._progress = progress
        self._kind = boards.kind(_KIND)
        self._management: Management
        self._board: Board
        self._number = 0

    def play(self, chosen: Sequence[_Case]) -> None:
        """Make board and server, and play."""
        self._progress("U-Boot, kernel, root file systems", 0, 1)
        first = self._system("a", "good")
        self._progress("U-Boot, kernel, root file systems", 1, 1)
        with server.start(self._folder / "server", auto_accept=True) as running:
            self._management = running.management()
            settings = {**self._settings(), "ServerURL": f"http://{DESK}:{running.port}"}
            self._board = Board.create(
                self._folder / "board", first, kind=self._kind.machine, settings=settings
            )
            try:
                self._board.boot(_LONGEST_S)
                self._until(lambda: bool(self._management.known_devices()), "the board at the server")
                for number, case in enumerate(chosen):
                    self._progress("updates on the board", number, len(chosen))
                    self._result.played.append(self._play(case))
                self._progress("updates on the board", len(chosen), len(chosen))
            finally:
                if self._board.is_running():
                    self._board.power_cut()

    def _settings(self) -> Json:
        window_s = self._team.conf.get("StateScriptRetryTimeoutSeconds")
        window_s = min(window_s, _RETRY_WINDOW_S) if isinstance(window_s, int) else _RETRY_WINDOW_S
        return {
            **_SETTINGS,
            "StateScriptRetryIntervalSeconds": 5,
            "StateScriptRetryTimeoutSeconds": window_s,
            "StateScriptTimeoutSeconds": max(1, round(self._result.options.patience_s)),
        }

    # One update

    def _play(self, case: _Case) -> Played:
        self._number += 1
        name = self._artifact(case)
        deployment = self._management.deploy(f"{self._number}-{case.scenario.name}", name, force=True)
        stuck = ""
        was_cut = False
        try:
            if case.cut:
                self._until(
                    lambda: self._has_ended(deployment) or self._status(deployment) == case.cut,
                    f"status {case.cut}",
                    interval_s=0.1,
                )
                if self._status(deployment) not in _FINAL:
                    self._board.power_cut()
                    was_cut = True
                    self._board.boot(_LONGEST_S)
            self._until(lambda: self._has_ended(deployment), "the end of the update")
        except UpdateError as error:
            stuck = str(error)
        status = self._status(deployment)
        if not stuck and status not in case.expected:
            stuck = f"it ended with {status}: {self._device(deployment).get('substate') or 'no reason given'}"
        lines = self._log(deployment)
        events = read_log(lines, {script.name for script in self._team.scripts})
        if was_cut:
            events.append({"at": events[-1]["at"] if events else 0.0, "event": "cut"})
        end_s = events[-1]["at"] if events else 0.0
        events.append({"at": end_s, "event": "status", "status": status, "substate": ""})
        leg = {
            "events": events,
            "points": [],
            "before": {},
            "after": {},
            "slot": str(self._part()),
            "environment": {},
            "stuck": stuck if not _is_explained(events) else "",
            "log": "\n".join(message for _, message in lines),
        }
        return Played(case.scenario, {"legs": [leg], "output": ""})

    def _part(self) -> int:
        said = self._board.shell("tr ' ' '\\n' </proc/cmdline | sed -n 's/^root=.*p//p'").output.strip()
        return int(said) if said.isdigit() else 0

    def _log(self, deployment: str) -> list[tuple[float, str]]:
        text = self._board.shell(f"cat /data/mender/deployments.*.{deployment}.log").output
        found = []
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                at = datetime.fromisoformat(entry["timestamp"]).timestamp()
            except (ValueError, KeyError, TypeError):
                continue
            found.append((at, str(entry["message"])))
        return found

    def _device(self, deployment: str) -> Json:
        return dict(next(iter(self._management.devices(deployment)), {}))

    def _status(self, deployment: str) -> str:
        return str(self._device(deployment).get("status", ""))

    def _has_ended(self, deployment: str) -> bool:
        """Whether it is over; an update that a hook holds is let go on, as a person does."""
        device = self._device(deployment)
        status, substate = str(device.get("status", "")), str(device.get("substate") or "")
        if status.startswith("pause_before_") or substate.startswith("paused at"):
            self._board.shell("update-agent continue")
        return status in _FINAL

    def _until(self, is_there: Callable[[], bool], what: str, *, interval_s: float = 0.5) -> None:
        deadline = time.monotonic() + _LONGEST_S
        while not is_there():
            if time.monotonic() > deadline:
                raise UpdateError(f"{what} did not come within {_LONGEST_S:.0f} s")
            time.sleep(interval_s)

    # Systems and artifacts

    def _system(self, name: str, variant: str) -> Path:
        image = self._folder / f"{name}-{variant}.ext4"
        if not image.exists():
            rootfs.make_rootfs(image, self._kind, version=name, variant=variant, extra_files=self._files())
        return image

    def _files(self) -> dict[str, str | bytes]:
        """Scripts of the image and hooks that ask a program."""
        given = self._team
        files: dict[str, str | bytes] = {f"/etc/mender/scripts/{s.name}": s.data for s in given.of(ROOTFS)}
        for name, text in given.hooks.items():
            program = program_of(text)
            beside = team.program_beside(given, program) if program else None
            if beside is not None:
                files[program] = beside.read_bytes()
                files[f"/etc/mender/pause.d/{name}"] = text
        if given.root is not None:
            for path in given.root.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    files[f"/{path.relative_to(given.root)}"] = path.read_bytes()
        return files

    def _artifact(self, case: _Case) -> str:
        """Name of an artifact of its own, uploaded."""
        name = f"rehearsal-{self._number}"
        place = self._folder / name
        place.mkdir()
        scripts = [(script.name, script.data) for script in self._team.of(ARTIFACT)]
        if case.hook:
            scripts.append((f"{case.hook}_{_OURS}", _FAILING))
        for script, data in scripts:
            (place / script).write_bytes(data)
        contents = artifact.Contents(
            name=name,
            device_types=(self._kind.machine,),
            payload_type=team.ROOTFS_IMAGE,
            files=(self._system("b" if case.variant == "good" else "c", case.variant),),
            scripts=[place / script for script, _ in scripts],
        )
        file = self._folder / f"{name}.mender"
        artifact.write(artifact.with_software(contents, artifact.Software()), file)
        self._management.upload(file)
        file.unlink()
        return name


def windows(hooks: Sequence[Hook]) -> list[str]:
    """The hooks that are left out on a board: they would be waited for."""
    return [hook.name for hook in hooks if not hook.program]


def _is_explained(events: Sequence[Json]) -> bool:
    """A script of the team's failed: that is told of it, and not of the update."""
    return any(event["event"] == "end" and event["code"] not in {0, 21} for event in events)


def read_log(lines: Sequence[tuple[float, str]], names: set[str]) -> list[Json]:
    """What the deployment log says of these scripts, as events of a machine's journal."""
    events: list[Json] = []
    steps = {step.work.subject: step.name for step in reversed(DAEMON) if step.work.kind == "hook"}
    output, size = "", 0
    for at, message in lines:
        if printed := _OUTPUT.match(message):
            output, size = f"{output}{printed[1]}\n", size + len(printed[1].encode()) + 1
            continue
        ended, limit = _ENDED.match(message), _LIMIT.match(message)
        found = ended or limit
        if found is None:
            continue
        seconds = float(ended[4] if ended else found[2])
        parsed = parse_name(found[1])
        if found[1] in names and parsed is not None:
            step = steps.get("_".join(parsed), "")
            common = {"kind": "script", "name": found[1]}
            events.append({"at": at - seconds, "event": "start", "step": step, "point": "", **common})
            events.append(
                {
                    "at": at,
                    "event": "end",
                    "seconds": seconds,
                    "code": int(ended[2]) if ended and ended[2] else None,
                    "signal": int(ended[3]) if ended and ended[3] else None,
                    "timed_out": ended is None,
                    "output": output,
                    "output_bytes": size,
                    "left": [],
                    "changed": [],
                    "no_route": 0,
                    **common,
                }
            )
        output, size = "", 0
    return events
