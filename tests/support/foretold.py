# SPDX-License-Identifier: Apache-2.0
"""What must come of a scenario, by executing the specification's state-machine.json: no line of the agent's.

`foretell` fills in what a scenario expects. `invent` makes some up, of faults that nobody put together,
and keeps the few that together go wherever any of them went.
Control maps are not executed here: whatever is asked of a control point, it continues.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

Json = dict[str, Any]
ARTIFACT_STATES = (
    *("ArtifactInstall", "ArtifactReboot", "ArtifactCommit"),
    *("ArtifactRollback", "ArtifactRollbackReboot", "ArtifactFailure"),
)
SCRIPTS = [
    f"{state}_{action}_00"
    for state in ("Download", *ARTIFACT_STATES)
    for action in ("Enter", "Leave", "Error")
]
CALLS = [
    *("ProvidePayloadFileSizes", "Download", "ArtifactInstall", "ArtifactReboot", "ArtifactVerifyReboot"),
    *("ArtifactCommit", "ArtifactRollback", "ArtifactRollbackReboot", "ArtifactVerifyRollbackReboot"),
    *("ArtifactFailure", "Cleanup", "NeedsArtifactReboot", "SupportsRollback"),
]
STOPS = (
    *("ArtifactInstall_Enter", "ArtifactCommit_Enter", "ArtifactCommit_Leave"),
    *("ArtifactRollback_Enter", "ArtifactFailure_Enter", "Cleanup"),
)
# Wherever an update may fail for the first time, so that most of them get to a rollback.
_FIRST = (
    *("ArtifactInstall", "ArtifactInstall_Leave_00", "NeedsArtifactReboot", "ArtifactVerifyReboot"),
    *("ArtifactReboot_Leave_00", "ArtifactCommit", "ArtifactCommit_Enter_00", "ArtifactCommit_Leave_00"),
)
_INTERVAL = {"StateScriptRetryIntervalSeconds": 10, "StateScriptRetryTimeoutSeconds": 20}
_MAX_EVENTS = 120  # longer ones only go in circles, which is seen in shorter ones


class Killed(Exception):
    """The power goes."""


class _Loop(Exception):
    """A save is refused."""


class _Device:
    """Scripts and module of a scenario with their faults; what happened on it; what it has installed."""

    def __init__(self, machine: Json, given: Json) -> None:
        self.machine = machine
        self.given = given
        self.trace: list[str] = []
        self.artifact_name = "old"
        self.ways: set[tuple[str, str]] = set()
        """Where it went: steps with their events, stored names with what they counted as, hooks cut short."""
        self._counts: dict[str, int] = {}
        config = given.get("config") or _INTERVAL
        self._attempts = math.ceil(
            config["StateScriptRetryTimeoutSeconds"] / config["StateScriptRetryIntervalSeconds"]
        )

    def happens(self, kind: str, at: str) -> str:
        """Note the event, and say what the faults do about it."""
        self.trace.append(f"{kind}:{at}")
        self._counts[at] = count = self._counts.get(at, 0) + 1
        action, until = "pass", 0.0
        for fault in self.given["faults"]:
            if fault["at"] == at and count > until:
                times = fault.get("times", 1)
                until += math.inf if times == "always" else times
                action = fault["do"] if count <= until else "pass"
        if action == "kill":
            self.trace.append("kill")
            raise Killed
        return action

    def call(self, name: str, kind: str = "module") -> bool:
        return self.happens(kind, name) == "pass"

    def hook(self, step: Json) -> bool:
        """Run a hook's scripts by its policy; whether all went well."""
        hook = f"{step['state']}_{step['action']}_"
        names = [
            f"{hook}00",
            *(name for name in self.given.get("extra_scripts", ()) if name.startswith(hook)),
        ]
        good = True
        for number, name in enumerate(sorted(names), 1):
            if not self._script(name):
                good = False
                if number < len(names):
                    self.ways.add((hook, "more scripts"))
                if step["policy"] != "ignore":
                    break
        return good

    def _script(self, name: str) -> bool:
        for _ in range(self._attempts):
            action = self.happens("script", name)
            if action != "retry_later":
                return action == "pass"
            self.trace.append("retry_wait")
        self.trace.append("retry_timeout")
        return False

    def download(self) -> bool:
        sizes = self.given.get("provide_file_sizes") == "Yes"
        return self.call("ProvidePayloadFileSizes") and self.call(
            "DownloadWithFileSizes" if sizes else "Download"
        )


class _Deployment(_Device):
    """The daemon's flow. `state` is in memory, `saved` on the medium."""

    def __init__(self, machine: Json, given: Json) -> None:
        super().__init__(machine["daemon"], given)
        self.state: Json = {"count": 0, "undone": False}
        self.saved: Json = {}
        self.tracking = "no_failures"

    def play(self) -> None:
        step = "status.downloading"
        while step:
            try:
                self._walk(step)
                step = ""
            except Killed:
                self.trace.append("boot")
                step = self._resumed()

    def _resumed(self) -> str:
        self.state = dict(self.saved)
        resume = self.machine["resume"]
        row = resume["by_stored_state"].get(self.saved["name"], resume["any_other"])
        if self.state["count"] >= self.machine["limits"]["max_state_data_store_count"]:
            row = resume["loop_detected"]
        else:
            self.state["count"] += 1
        tracking, _, other = row["tracking"].partition(" if AllRollbacksSuccessful else ")
        self.tracking = tracking if not other or self.state["undone"] else other
        self.ways.add((self.saved["name"], self.tracking))
        self.saved = dict(self.state)
        return str(row["step"])

    def _walk(self, name: str) -> None:
        while name != "idle.enter":
            step = self.machine["steps"][name]
            try:
                if "save" in step:
                    self._save(step["save"])
                event = getattr(self, f"_{step['kind']}")(name, step)
            except _Loop:
                event = "loop"
            self.ways.add((name, event))
            if event == "failure" and step.get("ignore_errors"):
                event = "success"
            elif not (event == "failure" and step.get("quiet_failure")):
                seen = step.get("emits", {}).get(event, event)
                self.tracking = self.machine["tracking"]["states"][self.tracking].get(seen, self.tracking)
            name = step["on"].get(event, "loop")

    def _save(self, name: str) -> None:
        if self.state["count"] >= self.machine["limits"]["max_state_data_store_count"]:
            raise _Loop
        self.state["count"] += 1
        self.state["name"] = name
        self.saved = dict(self.state)

    def _script(self, name: str, step: Json | None = None) -> Any:  # type: ignore[override]
        if step is None:
            return super()._script(name)
        return "success" if self.hook(step) else "failure"

    def _status(self, name: str, step: Json) -> str:
        status = step["status"]
        if name == "status.final":
            status = "success" if self.tracking == "no_failures" else "failure"
        answer = self.given.get("status_failures", {}).get(status)
        self.trace.append(f"status:{status}" + ("=409" if answer == "aborted" else ""))
        if answer == "aborted":
            return "aborted"
        if status == "failure":
            self.trace.append("logs")
        return "success"

    def _download(self, _name: str, step: Json) -> str:
        self._save(step["save_mid"])
        self.state["accepted"] = self.saved["accepted"] = True
        return "success" if self.download() else "failure"

    def _internal(self, name: str, step: Json) -> str:
        if "sets" in step:
            self.state["undone"] = True
        if name == "provides.commit" and self.tracking != "rollback_attempted":
            self._save(step["save_mid"])
            self.artifact_name = "new" if self.tracking == "no_failures" else "inconsistent"
        if name == "loop":
            self.artifact_name = "inconsistent"
        return "success"

    def _control(self, _name: str, step: Json) -> str:
        self.trace.append(f"control:{step['point']}=continue")
        return "continue"

    def _module(self, _name: str, step: Json) -> str:
        if step["call"] == "Cleanup" and not self.state.get("accepted"):
            return "success"
        return "success" if self.call(step["call"]) else "failure"

    def _query(self, _name: str, step: Json) -> str:
        if not self.call(step["call"], "query"):
            return "failure"
        if step["call"] == "SupportsRollback":
            return "Yes" if self.given["supports_rollback"] else "No"
        return str(self.given["needs_reboot"])

    def _reboot(self, _name: str, step: Json) -> str:
        if self.given["needs_reboot"] == "Automatic":
            self.trace.append("system:reboot")
            raise Killed
        return "success" if self.call(step["call"]) else "failure"


class _Commands(_Device):
    """The standalone flow; texts are not foretold."""

    def __init__(self, machine: Json, given: Json) -> None:
        super().__init__(machine["standalone"], given)
        self.saved: Json = {}
        self._flags: set[str] = set()
        self._failed = self._rolled_back = False
        self._stops: Sequence[str] = ()

    def run(self, command: Json) -> Json:
        before = len(self.trace)
        try:
            code: int | str = self._command(command)
        except Killed:
            code = "killed"
        in_state = self.saved.get("in_state")
        return {"exit_code": code, "trace": self.trace[before:], "in_state": in_state}

    def _command(self, command: Json) -> int:
        verb, rules = command["cmd"], self.machine["commands"][command["cmd"]]
        self._flags, self._failed, self._rolled_back = set(), False, False
        self._stops = command.get("stop_before", ())
        if verb == "install":
            if self.saved:
                return 1
            start = "prepare"
        else:
            if not self.saved:
                return 2
            if rules["allowed_in_state"] != "all" and self.saved["in_state"] not in rules["allowed_in_state"]:
                return 1
            self._failed, self._rolled_back = self.saved["failed"], self.saved["rolled_back"]
            self._flags = {"Failed"} if self._failed else set()
            start = self.machine["start_by_in_state"][self.saved["in_state"]]
            self.ways.add((self.saved["in_state"], verb))
            start = "query.rollback" if verb == "rollback" else start
        self._walk(start)
        if self.saved:
            self.saved["failed"] = False
        if "Failed" in self._flags:
            return 1
        return 4 if "RebootRequired" in self._flags and command.get("reboot_exit_code") else 0

    def _walk(self, name: str) -> None:
        while name != "exit":
            step = self.machine["steps"][name]
            event = getattr(self, f"_{step['kind']}")(step)
            self.ways.add((name, event))
            self._add(step.get(f"on_{event}_flags", ()))
            if name == "cleanup":
                if not self._rolled_back:
                    self.artifact_name = "inconsistent" if self._failed else "new"
                self.saved = {}
            name = "exit" if event == "stop" else step["on"][event]

    def _add(self, flags: Sequence[str]) -> None:
        self._flags |= set(flags)
        self._failed = self._failed or "Failed" in self._flags
        undone = bool(self._flags & {"RolledBack", "NoRollbackNecessary"})
        self._rolled_back = (self._rolled_back or undone) and "RollbackFailed" not in self._flags

    def _save(self, step: Json) -> str:
        state = {"in_state": step["in_state"], "failed": self._failed, "rolled_back": self._rolled_back}
        self.saved = state
        return "stop" if step.get("stop_before") in self._stops else "success"

    def _prepare(self, _step: Json) -> str:
        return "success"

    def _script(self, step: Any) -> Any:
        if isinstance(step, str):
            return super()._script(step)
        return "success" if self.hook(step) else "failure"

    def _download(self, _step: Json) -> str:
        return "success" if self.download() else "failure"

    def _module(self, step: Json) -> str:
        return "success" if self.call(step["call"]) else "failure"

    def _query2(self, step: Json) -> str:
        if not self.call("NeedsArtifactReboot", "query"):
            return "failure"
        self._add(["RebootRequired"] if self.given["needs_reboot"] != "No" else [])
        if not self.call("SupportsRollback", "query"):
            return "failure"
        if not self.given["supports_rollback"]:
            return "success"
        self._save(step)
        return "needs_interaction"

    def _query(self, step: Json) -> str:
        had_failed = "Failed" in self._flags
        if not self.call(step["call"], "query"):
            self._add(["Failed", "RollbackFailed"])
            return "failure"
        if self.given["supports_rollback"]:
            return "success"
        self._add(["Failed", "NoRollback"])
        return "nothing" if had_failed else "needs_interaction"


def foretell(machine: Json, scenario: Json) -> set[tuple[str, str]]:
    """Fill in what the scenario expects. Returns where it goes."""
    if scenario["mode"] == "daemon":
        deployment = _Deployment(machine, scenario["given"])
        deployment.play()
        scenario["expect"] = {"trace": deployment.trace, "artifact_name": deployment.artifact_name}
        return deployment.ways
    device = _Commands(machine, scenario["given"])
    for step in scenario["commands"]:
        step["expect"] = device.run(step["command"])
    scenario["expect"] = {"artifact_name": device.artifact_name}
    return device.ways


def invent(machine: Json, seed: str, mode: str, count: int) -> list[Json]:
    """Of so many scenarios of this mode the few that go wherever any of them goes; others for each seed."""
    random = Random(seed)
    made = []
    for number in range(count):
        scenario: Json = {"id": f"{mode}-{number}", "mode": mode, "given": _given(random, mode)}
        if mode == "standalone":
            verbs = ["install", *random.choices(("install", "commit", "rollback", "resume"), k=4)]
            scenario["commands"] = [{"command": _command(random, verb)} for verb in verbs]
        ways = foretell(machine, scenario)
        if len(scenario["expect"].get("trace", ())) <= _MAX_EVENTS:
            made.append((scenario, ways))
    kept = []
    missing = set().union(*(ways for _, ways in made))
    while missing:
        scenario, ways = max(made, key=lambda each: len(each[1] & missing))
        kept.append(scenario)
        missing -= ways
    return kept


def _given(random: Random, mode: str) -> Json:
    extra = [
        f"{random.choice(SCRIPTS)[:-2]}{random.randint(1, 99):02}_x" for _ in range(random.randint(0, 3))
    ]
    faults: list[Json] = [{"at": random.choice(_FIRST), "do": "fail"}]
    for _ in range(random.randint(1, 4)):
        at = random.choice([*SCRIPTS, *CALLS, *CALLS, *extra * 5])
        words = ("fail", "kill", "pass", "retry_later") if at in SCRIPTS else ("fail", "kill", "pass")
        do = random.choice(words)
        faults.append({"at": at, "do": do})
        if do != "kill" or mode == "daemon":
            faults[-1]["times"] = random.choice((1, 1, 1, 2, 3, "always"))
    given: Json = {
        "supports_rollback": random.random() < 0.75,
        "needs_reboot": random.choice(("No", "Yes", "Automatic")),
        "provide_file_sizes": random.choice(("", "No", "Yes")),
        "extra_scripts": sorted(set(extra)),
        "faults": faults,
        "config": _INTERVAL,
    }
    if mode == "daemon" and random.random() < 0.2:
        status = random.choice(("downloading", "installing", "rebooting", "failure", "success"))
        given["status_failures"] = {status: "aborted"}
    return given


def _command(random: Random, verb: str) -> Json:
    command: Json = {"cmd": verb}
    if random.random() < 0.4:
        command["stop_before"] = random.sample(STOPS, random.randint(1, 3))
    if verb in {"install", "resume"}:
        command["reboot_exit_code"] = random.random() < 0.3
    return command
