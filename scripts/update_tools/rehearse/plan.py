# SPDX-License-Identifier: Apache-2.0
"""Which updates are played: the undisturbed one, one for each way in which the table lets it fail, and kills.

Nothing here names a state: the ways are found in the agent's own table. No I/O.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from update_agent.states import ARTIFACT, DAEMON_STEPS, ROOTFS, STATE_BY_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from update_agent.states import Step

    Json = dict[str, object]

START = "idle.leave.deployment"
SUCCESS = "success"
KILL, CUT = "kill", "cut"  # of the agent alone, at once started again; of everything, and the device boots
DURING = "during"
NO_BOOT = "no-boot"  # the new system does not come up
_QUIET = ("do", "save", "wait")  # kinds of work that do not fail in the field in ways worth a rehearsal
_GOOD = {"hook": "ok", "module": "ok", "reboot": "ok", "report": "ok", "control": "go", "wait": "deployment"}
_SAID = {
    "control": "told to fail",
    "report": "deployment aborted",
    "request": "server not reached",
    "query": "module gives no answer",
}


class Fault:
    """What goes wrong at a step: the event it ends in, or which script is taken for failing."""

    __slots__ = ("event", "script", "step")

    def __init__(self, step: str, event: str, script: str = "") -> None:
        self.step = step
        self.event = event
        self.script = script

    def document(self) -> Json:
        """For the machine."""
        return {"step": self.step, "event": self.event, "script": self.script}

    def __str__(self) -> str:
        if self.script:
            return f"{self.script} fails"
        work = DAEMON_STEPS[self.step].work
        subject = work.subject if work.kind not in {"report", "request"} else ""
        said = (
            _SAID.get(work.kind, "fails")
            if self.event != "fail" or work.kind != "report"
            else "not delivered"
        )
        if work.kind == "download":
            subject = "Download"
        return f"{subject or self.step} {said}"


class Kill:
    """Where the agent is killed, and how. `name` and `occurrence` are of a point (conform/faults.py).

    DURING the n-th run of a script it is one of the changes to files that the script makes.
    """

    __slots__ = ("change", "name", "occurrence", "side", "step", "way", "where")

    def __init__(
        self,
        name: str,
        occurrence: int,
        side: str,
        way: str,
        *,
        step: str = "",
        change: int = 0,
        where: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.occurrence = occurrence
        self.side = side
        self.way = way
        self.step = step
        self.change = change
        self.where = where

    def document(self) -> Json:
        """For the machine."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        what = {KILL: "agent killed", CUT: "power cut"}[self.way]
        if self.side == DURING:
            return f"{what} in {self.name}, at its change {self.change}"
        verb, _, rest = self.name.partition(" ")
        if verb == "start":
            said = "starting" if self.side == "before" else "start of"
        else:
            said = {"end": "end of", "PUT": "report", "POST": "request", "GET": "request"}.get(
                verb, f"{verb}"
            )
        if "update-agent.json" in rest:
            said, rest = "saving the state", ""
        elif "/" in rest:
            said, rest = (said, "") if verb in {"PUT", "POST", "GET"} else (said, rest.rpartition("/")[2])
        return f"{what} {self.side} {f'{said} {rest}'.strip()}, at {self.step}"


class Leg:
    """One update of a scenario."""

    __slots__ = ("faults", "is_bootable", "kill")

    def __init__(
        self, faults: Iterable[Fault] = (), kill: Kill | None = None, *, is_bootable: bool = True
    ) -> None:
        self.faults = list(faults)
        self.kill = kill
        self.is_bootable = is_bootable

    @property
    def is_disturbed(self) -> bool:
        """Something is done to it."""
        return bool(self.faults or self.kill or not self.is_bootable)

    def document(self) -> Json:
        """For the machine."""
        return {
            "faults": [fault.document() for fault in self.faults],
            "kill": self.kill.document() if self.kill else None,
            "is_bootable": self.is_bootable,
        }


class Scenario:
    """Updates played one after the other on one device. `base`: the scenario whose first leg is killed."""

    __slots__ = ("base", "kind", "legs", "name", "title")

    def __init__(self, kind: str, name: str, title: str, legs: Sequence[Leg], base: str = "") -> None:
        self.kind = kind  # success, failure, kill
        self.name = name
        self.title = title
        self.legs = legs
        self.base = base or name

    def document(self) -> Json:
        """For the machine."""
        return {"name": self.name, "legs": [leg.document() for leg in self.legs]}


def success() -> Scenario:
    """Nothing goes wrong; and once more on the same device."""
    return Scenario(SUCCESS, SUCCESS, "Nothing goes wrong", [Leg(), Leg()])


def good_event(step: Step, answers: Mapping[str, str]) -> str:
    """How the step ends when nothing goes wrong. `answers`: of the payload's queries."""
    work = step.work
    if work.kind == "query":
        answer = answers.get(work.subject, "No")
        return answer if answer in step.edges else "No"
    return _GOOD.get(work.kind, "ok")


def failures(
    answers: Mapping[str, str], scripts: Mapping[str, Sequence[str]], *, twice: bool = True
) -> list[Scenario]:
    """A scenario for each edge of the table that is not the good one, with the least faults that lead there.

    `scripts`: names of the scripts of each hook, in order; each of them fails once.
    """
    found: list[Scenario] = []
    reached: dict[str, tuple[Fault, ...]] = {START: ()}
    pending = deque([START])
    while pending:
        name = pending.popleft()
        step = DAEMON_STEPS[name]
        good = good_event(step, answers)
        after = step.edges.get(good, "")
        if after and after not in reached:
            reached[after] = reached[name]
            pending.appendleft(after)
        for fault in _faults(step, good, scripts):
            path = (*reached[name], fault)
            after = step.edges[fault.event]
            if after not in reached:
                reached[after] = path
                pending.append(after)
            found.append(_failure(path, twice=twice))
    if answers.get("NeedsArtifactReboot") == "Automatic":
        legs = [Leg(is_bootable=False)] * (2 if twice else 1) + [Leg()]
        found.append(Scenario("failure", NO_BOOT, "The new system does not boot", legs))
    return found


def _failure(path: Sequence[Fault], *, twice: bool) -> Scenario:
    name = "+".join(f"{fault.script or fault.step}={fault.event}" for fault in path)
    legs = [Leg(path)] * (2 if twice else 1) + [Leg()]
    return Scenario("failure", name, ", then ".join(map(str, path)), legs)


def _faults(step: Step, good: str, scripts: Mapping[str, Sequence[str]]) -> Iterable[Fault]:
    work = step.work
    if work.kind == "hook":
        for script in scripts.get(work.subject, ()):
            yield Fault(step.name, "fail", script)
        return
    if work.kind in _QUIET:
        return
    for event in ("fail", "aborted"):
        after = step.edges.get(event)
        if after and after != step.edges.get(good):
            yield Fault(step.name, event)


def steps_of(answers: Mapping[str, str]) -> set[str]:
    """All steps that an update with such a payload can come to, whatever goes wrong."""
    reached: set[str] = set()
    pending = [START, "idle.enter", "idle.leave.inventory"]
    while pending:
        name = pending.pop()
        if name in reached or not name:
            continue
        reached.add(name)
        step = DAEMON_STEPS[name]
        chosen = [good_event(step, answers), "fail"] if step.work.kind == "query" else step.edges
        pending += [step.edges[event] for event in chosen if event in step.edges]
    return reached


def hooks_of(answers: Mapping[str, str]) -> list[str]:
    """The hooks, State_Action, that such a payload can come to, in the order of the table."""
    reached = steps_of(answers)
    return list(
        dict.fromkeys(
            step.work.subject
            for name, step in DAEMON_STEPS.items()
            if name in reached and step.work.kind == "hook"
        )
    )


def points_of(answers: Mapping[str, str]) -> list[str]:
    """The control points that such a payload can come to."""
    reached = steps_of(answers)
    return [s.work.subject for n, s in DAEMON_STEPS.items() if n in reached and s.work.kind == "control"]


def origin(state: str) -> str:
    """Where a state's scripts come from: rootfs or artifact."""
    scripts = STATE_BY_NAME[state].scripts
    assert scripts in {ROOTFS, ARTIFACT}
    return scripts


# Kills

_AROUND = ("start ", "end ")
# Programs of the agent's own, which tell it something and change nothing.
_DULL = ("openssl", "mender-device-identity", "fw_printenv", "child")


def kills(
    scenario: Scenario,
    points: Sequence[tuple[str, str]],
    changes: Mapping[str, Sequence[Sequence[str]]],
    *,
    every: bool,
    known: set[tuple[str, str]],
) -> list[Scenario]:
    """The scenario with its first update killed, at each of its points.

    `points`: step and name, as that update passed them. `every`: all of them; else one in each step, and
    those around programs. `known`: what other scenarios were killed at; extended. `changes`: for each script
    the paths that each of its runs changed.
    """
    counts: dict[str, int] = {}
    found: list[Kill] = []
    steps: set[str] = set()
    passed: set[tuple[str, str]] = set()  # a program that is called again and again is killed once
    for step, name in points:
        counts[name] = counts.get(name, 0) + 1
        is_first = step not in steps
        steps.add(step)
        is_again = (step, name) in passed
        passed.add((step, name))
        if (step, name) in known or not (every or is_first or (_is_shown(name) and not is_again)):
            continue
        found += [Kill(name, counts[name], side, way, step=step) for side, way in _ways(name)]
    known.update(points)
    for script, runs in changes.items():
        for number, paths in enumerate(runs, 1):
            if not paths or ("during", f"{script} {number}") in known:
                continue
            known.add(("during", f"{script} {number}"))
            found += [
                Kill(script, number, DURING, way, change=change, where=list(paths))
                for change in range(1, min(len(paths), _CHANGES) + 1)
                for way in (CUT, KILL)
            ]
    first = scenario.legs[0]
    return [
        Scenario(
            "kill",
            f"{scenario.name} ! {kill}",
            str(kill) if scenario.kind == SUCCESS else f"{scenario.title}; {kill}",
            [Leg(first.faults, kill, is_bootable=first.is_bootable), Leg()],
            scenario.name,
        )
        for kill in found
    ]


_CHANGES = 3


def _is_shown(name: str) -> bool:
    """Around a script, a hook's program, a module's call, or what moves the boot loader."""
    return name.startswith(_AROUND) and name.split()[1] not in _DULL


def _ways(name: str) -> Iterable[tuple[str, str]]:
    """What is after one point is before the next, unless something was started meanwhile."""
    if name.startswith("start "):
        return (("before", KILL), ("after", KILL), ("after", CUT))
    return (("before", KILL), ("after", CUT))
