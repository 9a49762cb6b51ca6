# SPDX-License-Identifier: Apache-2.0
"""Scenarios of the update flow, played against the real agent. The file's `schema` explains the format.

Each scenario has a device of its own (lab), a server of its own (peer) and a journal from which the trace is
read. A `kill` is SIGKILL to the agent and everything it started, as a power cut is; then it is started again.
Time settings are made short, nothing is faked.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from update_agent.errors import UpdateError
from update_tools.conform import local_bus
from update_tools.conform import trace as traces
from update_tools.conform.lab import Lab, leftovers
from update_tools.conform.peer import Peer

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence

    Json = dict[str, Any]

_STALL_S = 60  # no new journal line for so long: nothing will come any more
_GRACE_S = 2  # for processes that die with the agent
_TICK_S = 0.01
_PROGRESS = re.compile(r"^\d+ %$")


class Skipped(Exception):
    """The scenario needs something this agent does not have (yet)."""


class Difference(Exception):
    """The agent did not do what the scenario expects."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `scripts/conform scenarios`."""
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="play N scenarios at a time")
    parser.add_argument("--only", action="append", metavar="ID", help="play this one (may be repeated)")
    parser.add_argument("--keep", action="store_true", help="keep the folder of each scenario and name it")


def run(
    paths: Iterable[str],
    write: Callable[[str], object],
    *,
    jobs: int = 1,
    only: Sequence[str] | None = None,
    keep: bool = False,
) -> int:
    """Play all scenarios of the files, write each failure and the total, and return how many failed.

    Raises UpdateError for a file that is not one of scenarios, and for an id that none of them has.
    """
    chosen = [(path, scenario) for path in paths for scenario in load(path)]
    if only:
        missing = set(only) - {scenario["id"] for _, scenario in chosen}
        if missing:
            raise UpdateError(f"no scenario {', '.join(sorted(missing))} in the files")
        chosen = [(path, scenario) for path, scenario in chosen if scenario["id"] in only]

    def play_one(item: tuple[str, Json]) -> str:
        path, scenario = item
        try:
            play(scenario, keep=write if keep else None)
        except Difference as difference:
            write(f"FAIL {scenario['id']} ({path}): {difference}")
            return "failed"
        except Skipped as reason:
            write(f"SKIP {scenario['id']}: {reason}")
            return "skipped"
        except (KeyError, TypeError, UpdateError) as error:
            write(f"FAIL {scenario['id']} ({path}): it cannot be played: {error!r}")
            return "failed"
        return "passed"

    results = []
    pool = ThreadPoolExecutor(max(1, jobs))
    try:
        for result in pool.map(play_one, chosen):
            results.append(result)
            if sys.stderr.isatty():
                print(f"\r{len(results)} of {len(chosen)} ", end="", file=sys.stderr, flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # those being played end their processes
    counts = {word: results.count(word) for word in ("passed", "failed", "skipped")}
    total = f"{counts['passed']} passed, {counts['failed']} failed"
    write(total + (f", {counts['skipped']} skipped" if counts["skipped"] else ""))
    return counts["failed"]


def load(path: str) -> list[Json]:
    """The scenarios in a file; at least one. Raises UpdateError."""
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError) as error:
        raise UpdateError(f"cannot read scenarios from {path}: {error}") from error
    scenarios = document.get("scenarios") if isinstance(document, dict) else None
    if not isinstance(scenarios, list) or not scenarios:
        raise UpdateError(f"{path} has no list `scenarios`")
    for number, scenario in enumerate(scenarios):
        if not isinstance(scenario, dict) or not {"id", "mode", "given", "expect"} <= scenario.keys():
            raise UpdateError(f"{path}: scenario {number} lacks one of id, mode, given, expect")
    return scenarios


def play(scenario: Json, *, keep: Callable[[str], object] | None = None) -> None:
    """Play one scenario. Raises Difference or Skipped; `keep` is told the folder, which then stays."""
    given = dict(scenario["given"])
    if scenario.get("category") == "database":
        given.setdefault("db_writes_allowed", 0)  # the files leave out keys whose value is zero
    events = [event["type"] for event in given.get("control_events") or ()]
    needs_bus = bool(given.get("local_maps")) or "local_map" in events
    if needs_bus and local_bus.missing():
        raise Skipped(f"local control maps come over D-Bus, and there is no {local_bus.missing()}")
    if "expire" in events and given.get("server_map"):
        raise Skipped("a server's map does not expire while the server can be asked")
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(given, keep=keep is not None))
        if keep is not None:
            keep(f"KEPT {scenario['id']}: {lab.root}")
        lab.furnish()
        bus = stack.enter_context(local_bus.LocalBus(lab.root)) if needs_bus else None
        lab.bus_address = bus.address if bus else ""
        peer = Peer(given, lab.journal, lab.artifact)
        stack.callback(peer.close)
        lab.configure(peer.url)
        player = _Standalone(lab, peer) if scenario["mode"] == "standalone" else _Daemon(lab, peer, bus)
        stack.callback(player.power_off)
        try:
            player.play(scenario)
        except Difference as difference:
            raise Difference(f"{difference}{player.last_words()}") from None


class _Device:
    """The running agent of a scenario."""

    def __init__(self, lab: Lab, peer: Peer) -> None:
        self.lab = lab
        self.peer = peer
        self.agent: subprocess.Popen[str] | None = None
        self._served = 0  # requests of scripts that were seen to
        self._seen = 0
        self._moved_at = time.monotonic()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the agent in a session of its own."""
        with open(self.lab.path("stderr"), "a", encoding="utf-8") as stderr:
            self.agent = subprocess.Popen(
                self.lab.command(*arguments),
                env=self.lab.environment(),
                cwd=self.lab.root,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        self._moved_at = time.monotonic()
        return self.agent

    def has_ended(self) -> bool:
        """True once the agent has ended. It is left a zombie: its pid, and so its session, stays ours."""
        assert self.agent is not None
        return os.waitid(os.P_PID, self.agent.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def left_running(self) -> bool:
        """True if something that the agent started is alive, some time after the agent itself has ended."""
        assert self.agent is not None
        deadline = time.monotonic() + _GRACE_S
        while any(pid != self.agent.pid for pid in leftovers(self.agent.pid)):
            if time.monotonic() > deadline:
                return True
            time.sleep(_TICK_S)
        return False

    def power_off(self) -> None:
        """End the agent, then what it started, at once."""
        if self.agent is None:
            return
        session = self.agent.pid
        os.kill(session, signal.SIGKILL)
        while running := [pid for pid in leftovers(session) if pid != session]:
            for pid in running:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        self.agent.wait()
        if self.agent.stdout is not None:
            self.agent.stdout.close()
        self.agent = None

    def request(self) -> str:
        """The next thing a script asks for; empty if there is none."""
        requests = self.lab.journal.requests()
        if len(requests) <= self._served:
            return ""
        self._served += 1
        return requests[self._served - 1]

    def wait_a_moment(self) -> None:
        """Let the others go on. Raises Difference when nothing has moved for a long time."""
        size = os.stat(self.lab.journal.path).st_size
        now = time.monotonic()
        if size != self._seen:
            self._seen, self._moved_at = size, now
        elif now - self._moved_at > _STALL_S:
            found = [*self.lab.journal.trace(), "nothing"]
            raise Difference(
                f"nothing happened for {_STALL_S} s after {found[-2] if found[:-1] else 'the start'}"
            )
        time.sleep(_TICK_S)

    def last_words(self) -> str:
        """What may explain a difference: the agent's last error, and what it wrote to stderr."""
        errors = [line for line in self.lab.journal.lines() if " ERROR: " in line]
        text = f"\n     last error: {errors[-1]}" if errors else ""
        with open(self.lab.path("stderr"), encoding="utf-8", errors="replace") as file:
            stderr = file.read().strip()
        return text + (f"\n     stderr: {stderr[-2000:]}" if stderr else "")


class _Daemon(_Device):
    """Plays scenarios of mode `daemon`."""

    def __init__(self, lab: Lab, peer: Peer, bus: local_bus.LocalBus | None) -> None:
        super().__init__(lab, peer)
        self._bus = bus

    def play(self, scenario: Json) -> None:
        """From start to the end of the deployment, with kills and control events, then compare."""
        pending = list(scenario["given"].get("control_events") or ())
        self.start("daemon")
        for document in scenario["given"].get("local_maps") or ():
            self._set_local_map(document)
        self.peer.offer()
        while not self.lab.journal.has_ended():
            request = self.request()
            if request:
                self._restart(request)
            elif pending and traces.paused_point(self.lab.journal.trace()):
                self._control_event(pending.pop(0))
            elif self.has_ended():
                raise Difference("the agent has ended")
            self.wait_a_moment()
        self._stop()
        found = traces.canonical(self.lab.journal.trace())
        _compare(scenario["expect"], found)
        name = scenario["expect"].get("artifact_name", self.lab.artifact_name())
        if self.lab.artifact_name() != name:
            raise Difference(f"artifact name: expected {name}, found {self.lab.artifact_name()}")

    def _restart(self, request: str) -> None:
        self.power_off()
        if request == traces.KILL:
            self.lab.journal.note("kill")
        self.lab.journal.note("boot")
        self.start("daemon")

    def _control_event(self, event: Json) -> None:
        kind = event["type"]
        if kind == "kill":
            self._restart(traces.KILL)
            return
        self.lab.journal.note(f"event:{kind}")
        if kind == "patch":
            self.peer.patch(event["map"])
        elif kind == "server_404":
            self.peer.abort()
        elif kind == "local_map":
            self._set_local_map(event["map"])
        elif kind not in {"refresh_timer", "expire"}:  # these come by themselves
            raise UpdateError(f"unknown control event {kind!r}")

    def _set_local_map(self, document: Json) -> None:
        assert self._bus is not None
        try:
            self._bus.set_map(document)
        except UpdateError as error:
            raise Difference(str(error)) from error

    def _stop(self) -> None:
        """Stop the agent as the service manager does. Raises Difference if it leaves something running."""
        assert self.agent is not None
        os.kill(self.agent.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STALL_S
        while not self.has_ended():
            if time.monotonic() > deadline:
                raise Difference("the agent did not end on SIGTERM")
            time.sleep(_TICK_S)
        if self.left_running():
            raise Difference("processes of scripts or modules were left running")
        self.power_off()


class _Standalone(_Device):
    """Plays scenarios of mode `standalone`."""

    def play(self, scenario: Json) -> None:
        """Run each command and compare after each."""
        for number, step in enumerate(scenario["commands"], 1):
            before = len(self.lab.journal.trace())
            code, stdout = self._command(step["command"])
            found = {
                "exit_code": code,
                "stdout": stdout,
                "in_state": self.lab.in_state(),
            }
            title = f"command {number} ({step['command']['cmd']})"
            try:
                _compare(step["expect"], self.lab.journal.trace()[before:])
            except Difference as difference:
                raise Difference(f"{title}: {difference}") from None
            for key, value in found.items():
                expected = step["expect"].get(key, value)
                if key == "stdout" and expected is None:
                    continue  # killed: what it had printed until then does not count
                if value != expected:
                    raise Difference(
                        f"{title}: {key}: expected {json.dumps(expected)}, found {json.dumps(value)}"
                    )
        name = scenario["expect"].get("artifact_name", self.lab.artifact_name())
        if self.lab.artifact_name() != name:
            raise Difference(f"artifact name: expected {name}, found {self.lab.artifact_name()}")

    def _command(self, command: Json) -> tuple[int | str, list[str]]:
        arguments = [command["cmd"]]
        if command.get("reboot_exit_code"):
            arguments.append("--reboot-exit-code")
        for state in command.get("stop_before") or ():
            arguments += ["--stop-before", state]
        if command["cmd"] == "install":
            broken = self.lab.given.get("broken_download")
            arguments.append(
                f"{self.peer.url}/artifact.mender" if broken else self.lab.path("artifact.mender")
            )
        agent = self.start(*arguments)
        while not self.has_ended():
            if self.request():
                self.power_off()
                self.lab.journal.note("kill")
                return "killed", []
            self.wait_a_moment()
        assert agent.stdout is not None
        lines = agent.stdout.read().splitlines()
        if self.left_running():
            raise Difference("processes of scripts or modules were left running")
        if "Installing artifact..." in lines:
            lines = lines[lines.index("Installing artifact...") + 1 :]
        self.power_off()
        return agent.returncode, [line for line in lines if not _PROGRESS.match(line)]


def _compare(expect: Json, found: list[str]) -> None:
    """Raise Difference where the trace is not the expected one."""
    final = [status for status in traces.statuses(found) if status in {"success", "failure"}]
    views = {
        "trace": found,
        "calls": traces.calls(found),
        "statuses": traces.statuses(found),
        "final_status": final[-1] if final else None,
    }
    for key, view in views.items():
        if key not in expect:
            continue
        expected = expect[key]
        if isinstance(expected, list):
            wanted = traces.canonical(expected) if key == "trace" else expected
            difference = traces.first_difference(wanted, view)  # type: ignore[arg-type]
        else:
            difference = None if expected == view else f"expected {expected}, found {view}"
        if difference:
            raise Difference(f"{key} {difference}")
