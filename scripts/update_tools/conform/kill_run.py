# SPDX-License-Identifier: Apache-2.0
"""One run of the kill matrix: an update on a device of its own, the agent killed at a point, the verdict."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from update_agent import ctl
from update_agent.errors import UpdateError
from update_tools.conform import judge, local_bus
from update_tools.conform.ab_device import MODULE, NEXT, ROOTFS, Facts
from update_tools.conform.kill_server import UPDATE_ID, KillServer
from update_tools.conform.kill_updates import AFTER, KILL, TORN, Kill, Pause, Update
from update_tools.conform.lab import leftovers
from update_tools.conform.scenarios import Difference

if TYPE_CHECKING:
    from update_tools.conform.launcher import Agent, Launcher

    Json = dict[str, Any]

_STALL_S = 30  # nothing in the journal for so long: nothing will come any more
_BEGIN_S = 0.1
_TICK_S = 0.004
_APPLICATION = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
_ACTIONS = {"continue": "force_continue", "fail": "fail"}


class NotReached(Exception):
    """The run came to its end without passing the point."""


class Run:
    """One update on one device, from its start until the device has taken the next one."""

    def __init__(self, launcher: Launcher, update: Update, kill: Kill | None, *, keep: bool = False) -> None:
        self._launcher = launcher
        self._update = update
        self._kill = kill
        self._stack = ExitStack()
        self._device = self._stack.enter_context(update.device(keep=keep))
        self.folder = self._device.root
        self._agents: list[Agent] = []
        self._kills = 0  # so far
        self._reboots = 0  # that were seen to
        self._is_decided = False
        self._finals = 0  # that were seen
        self._moved_at, self._seen = time.monotonic(), 0
        self._bus: local_bus.LocalBus | None = None
        self._codes: list[int] = []  # of commands

    def play(self) -> list[tuple[str, str]]:
        """Play it, check the end, and return the points (step, name). Raises Difference or NotReached."""
        with self._stack:
            self._stack.callback(self._power_off)
            device, pause = self._device, self._update.pause
            device.furnish()
            if pause and "bus" in {pause.by, pause.end_by}:
                self._bus = self._stack.enter_context(local_bus.LocalBus(device.root))
            is_from_server = pause is not None and pause.by == "server"
            self._server = KillServer(device, self._map("pause") if is_from_server else None)
            self._stack.callback(self._server.close)
            device.configure(self._server.url, has_bus=self._bus is not None)
            self._plan()
            try:
                if self._update.is_standalone:
                    self._play_commands()
                else:
                    self._play_daemon()
                self._check()
            except Difference as difference:
                raise Difference(f"{difference}{self._last_words()}") from None
            return self._points()

    # The agent

    def _plan(self) -> None:
        """Tell the fault hook where to kill."""
        kill = self._kill
        text = ""
        if kill is not None and not self._kills:
            text = f"{kill.name}\t{kill.occurrence}\t{kill.side}\n"
        elif kill is not None and kill.again and self._kills == 1:
            text = f"*\t1\t{AFTER}\n"
        self._device.choose_point(text)

    def _start(self, *arguments: str) -> None:
        device = self._device
        self._agents.append(
            self._launcher.start(
                device.root,
                ["--log-file", device.journal.path, *arguments],
                env=device.agent_environment(self._bus.address if self._bus else ""),
                output=device.path("output"),
            )
        )

    def _ended(self) -> int | None:
        """Exit code of the agent, -9 if it was killed; None while it runs."""
        return self._agents[-1].ended()

    def _see_to_the_end(self, code: int, *arguments: str) -> bool:
        """If the agent was killed as planned, start it again as the way of the kill says."""
        if code != -signal.SIGKILL or self._kill is None or self._kills > self._kill.again:
            return False
        self._kills += 1
        self._finals = len(self._server.finals)  # it polls at once when it starts
        self._plan()
        if self._kill.way == KILL:
            self._let_it_begin()
        else:
            self._power_off()
            if self._kill.way == TORN and self._kills == 1:
                self._device.tear_environment()
            self._device.lose_power()
            self._reboots = self._count_reboots()
            self._device.boot()
        self._restart(*arguments)
        return True

    def _let_it_begin(self) -> None:
        """Let the program that was being started note that before the agent's restart is noted."""
        deadline = time.monotonic() + _BEGIN_S
        while os.path.exists(self._device.path("linger")) and time.monotonic() < deadline:
            time.sleep(_TICK_S)

    def _restart(self, *arguments: str) -> None:
        self._device.journal.note(judge.RESTART)
        self._start(*arguments)

    def _reboot(self, *arguments: str) -> None:
        """What the program `reboot` asked for."""
        self._power_off()
        self._reboots = self._count_reboots()
        self._device.boot()
        self._restart(*arguments)

    def _count_reboots(self) -> int:
        return self._device.journal.lines().count("@ reboot")

    def _power_off(self) -> None:
        """End all that was ever started here."""
        sessions = [agent.pid for agent in self._agents]
        for agent in self._agents:
            agent.signal(signal.SIGKILL)
        while running := [pid for session in sessions for pid in leftovers(session) if pid not in sessions]:
            for pid in running:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        for agent in self._agents:
            agent.reap()
        self._agents.clear()

    def _wait_a_moment(self) -> None:
        size = os.stat(self._device.journal.path).st_size
        now = time.monotonic()
        if size != self._seen:
            self._seen, self._moved_at = size, now
        elif now - self._moved_at > _STALL_S:
            raise Difference(f"nothing happened for {_STALL_S} s")
        time.sleep(_TICK_S)

    # A deployment

    def _play_daemon(self) -> None:
        server, pause = self._server, self._update.pause
        if pause is not None and pause.by == "hook":
            self._answer_hook(21)
        self._start("daemon")
        if pause is not None and pause.by in {"bus", "command"}:
            self._begin_pause(pause)
        server.offer()
        while not server.is_next_taken:
            code = self._ended()
            if code is not None and not self._see_to_the_end(code, "daemon"):
                raise Difference(f"the agent ended with {code}")
            if self._count_reboots() > self._reboots:
                self._reboot("daemon")
            if pause is not None and server.pauses and not self._is_decided:
                self._decide(pause)
            if len(server.finals) > self._finals and code is None:
                self._finals = len(server.finals)
                self._agents[-1].signal(signal.SIGUSR1)  # the next poll need not wait for its time
            self._wait_a_moment()
        agent = self._agents[-1]
        agent.signal(signal.SIGTERM)
        if agent.ended(_STALL_S) is None:
            raise Difference("the agent did not end on SIGTERM")

    def _map(self, action: str) -> Json:
        pause = self._update.pause
        assert pause is not None
        return {"states": {pause.point: {"action": action}}}

    def _begin_pause(self, pause: Pause) -> None:
        if self._bus is not None and pause.by == "bus":
            self._bus.set_map({"id": _APPLICATION, **self._map("pause")})
            return
        while not self._command({"verb": "pause", "points": [pause.point]}):
            self._wait_a_moment()

    def _decide(self, pause: Pause) -> None:
        """Tell the paused update how to go on. From then on it must, whatever happens to the agent."""
        if pause.end_by == "command":
            self._is_decided = self._command({"verb": pause.end, "point": pause.point})
        elif pause.end_by == "server":
            self._server.patch(self._map(_ACTIONS[pause.end]))
            self._is_decided = True
        elif pause.end_by == "hook":
            self._answer_hook(0 if pause.end == "continue" else 1)
            self._is_decided = True
        elif self._bus is not None and self._ended() is None:
            try:
                self._bus.set_map({"id": _APPLICATION, **self._map(_ACTIONS[pause.end])}, patience_s=0)
                self._is_decided = True
            except UpdateError:
                pass  # it was killed meanwhile
        if self._is_decided:
            self._device.journal.note(f"decided {pause.end}")

    def _command(self, request: Json) -> bool:
        """Ask the agent on its socket; False if it is not there or not in the situation."""
        try:
            ctl.ask(self._device.path("control.socket"), request, lambda _result: None)
        except (UpdateError, OSError):
            return False
        return True

    def _answer_hook(self, code: int) -> None:
        pause = self._update.pause
        assert pause is not None
        self._device.ask_program(pause.point, code)

    # Commands

    def _play_commands(self) -> None:
        """As the init of a product does: install, boot what was installed, commit; after a kill resume."""
        self._run_command("install", "--reboot-exit-code", self._device.path("new.mender"))
        while True:
            facts = Facts(self._device)
            if facts.boot_part != facts.running:
                self._power_off()
                self._device.reboot_by_hand()
            elif facts.in_state is None:
                break
            self._device.journal.note(judge.RESTART)
            self._run_command("resume" if self._kills or not self._codes else "commit")
        self._server.end = Facts(self._device)
        self._server.points = len(self._read_points())
        self._device.journal.note(NEXT)
        self._device.choose_point("")
        code = self._run_command(
            "install", "--stop-before", "ArtifactInstall_Enter", self._device.path("next.mender")
        )
        if code != 0:
            raise Difference(f"the next artifact was not taken, the command ended with {code}")

    def _run_command(self, *arguments: str) -> int:
        self._start(*arguments)
        while True:
            code = self._ended()
            if code is None:
                self._wait_a_moment()
            elif not self._see_to_the_end(code, "resume"):
                self._codes.append(code)
                return code

    # The end

    def _check(self) -> None:
        """Raise Difference unless the update came to one of its two ends, and all on the way was right."""
        server, end, update = self._server, self._server.end, self._update
        if self._kill is not None and not self._kills:
            raise NotReached  # after the first kill there may be no point left for a second
        assert end is not None
        result = "success" if end.system == "new" else "failure"
        if self._kill is None and result != update.end:
            raise Difference(f"undisturbed it ended with {result} instead of {update.end}")
        if update.end == "failure" and result == "success":
            raise Difference("it ended with success although it was failed")
        may_be_unpaused = self._kill is not None and result == "failure"  # it was killed before it came to it
        if update.pause is not None and not (server.pauses or may_be_unpaused):
            raise Difference("it was not paused")
        name = {"success": "new", "failure": "old"}[result]
        wanted = {"artifact_name": name, f"{ROOTFS}.version": name}
        found = {key: end.provides.get(key) for key in wanted}
        if found != wanted:
            raise Difference(f"the {end.system} system runs, and the device provides {found}")
        # What a cut has torn stays so until the next write: nothing in it is needed before.
        is_torn = self._kill is not None and self._kill.way == TORN
        if end.system == "neither" or end.wrong_environment(may_be_torn=is_torn):
            raise Difference(f"the {end.system} system runs; {end.wrong_environment()}")
        left = [
            what
            for what, is_left in (
                ("a saved deployment", end.state is not None),
                ("a saved standalone update", end.in_state is not None),
                ("limits of pause hooks", end.hooks is not None),
                ("the deployment's control map", UPDATE_ID in end.maps),
                # Of a standalone update nothing is saved before the installation: the next one clears up.
                ("the module's file tree", end.has_tree and not (update.is_standalone and self._kills)),
            )
            if is_left
        ]
        if left:
            raise Difference(f"{' and '.join(left)} was left")
        if server.lies:
            raise Difference(server.lies[0])
        if not update.is_standalone and set(server.finals) != {result}:
            raise Difference(f"the {end.system} system runs, and reported was {', '.join(server.finals)}")
        self._check_events()
        self._check_leftovers()

    def _check_events(self) -> None:
        lines = [line[2:] for line in self._device.journal.lines() if line.startswith("@ ")]
        unseen = ["booted", "decided"]
        if self._update.reboot == "Yes":
            unseen.append("reboot")  # by the module, whose call was seen
        events = [event for event in lines[: lines.index(NEXT)] if not event.startswith(tuple(unseen))]
        if self._device.reboots_at_start:
            both = zip(events, ["", *events], strict=False)
            events = [event for event, before in both if (event, before) != ("reboot", judge.RESTART)]
        wrong = judge.first_wrong(
            events, is_standalone=self._update.is_standalone, has_module=self._update.payload_type == MODULE
        )
        if wrong:
            raise Difference(wrong)

    def _check_leftovers(self) -> None:
        deadline = time.monotonic() + 1
        while True:
            left = [pid for agent in self._agents for pid in leftovers(agent.pid) if pid != agent.pid]
            if not left:
                return
            if time.monotonic() > deadline:
                raise Difference(f"{len(left)} processes that the agent had started were left running")
            time.sleep(_TICK_S)

    def _read_points(self) -> list[tuple[str, str]]:
        try:
            with open(self._device.path("points"), encoding="utf-8") as file:
                lines = file.read().splitlines()
        except FileNotFoundError:
            return []
        return [(line.partition("\t")[0], line.partition("\t")[2]) for line in lines]

    def _points(self) -> list[tuple[str, str]]:
        return self._read_points()[: self._server.points]

    def _last_words(self) -> str:
        lines = self._device.journal.lines()
        text = "".join(f"\n     {line}" for line in lines[-12:])
        with open(self._device.path("output"), encoding="utf-8", errors="replace") as file:
            output = file.read().strip()
        return text + (f"\n     output: {output[-2000:]}" if output else "")
