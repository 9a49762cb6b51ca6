# SPDX-License-Identifier: Apache-2.0
"""Fleet gates: when a pause ends by itself, and when failures stop a deployment. Pure decisions.

`judge` is given what is (Situation) and says what to do (Steps). It may be asked at any time, by any process
and any number of times: once its steps are carried out it has nothing more to say. Carrying them out is
fleet.py's work.

    {"gates": {"ArtifactReboot_Enter": {"quorum": {"percent": 80}},
               "ArtifactCommit_Enter": {"window": {"calendar": "Sat,Sun 02:00 UTC", "lasting_s": 14400}}},
     "hold": {"failed_percent": 10, "at_least": 2},
     "abort": {"failed_count": 20},
     "vanished_after_s": 3600}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from update_agent.windows import LASTING_MAX_S, Window
from update_tools.server.faults import Unprocessable
from update_tools.server.rollout import BY_NAME, FINISHED, POINTS, SKIPPED, action_at, stage_reaches

VANISHED_AFTER_S = 3600  # twice the agent's usual poll interval
# What became of a gate: no word while it is shut, `open` in its window, and two for good.
OPEN, RELEASED, PERSON = "open", "released", "person"


@dataclass(frozen=True)
class Gate:
    """Lets devices past a pause when all its conditions hold.

    `quorum`: `all`, a number of devices, or a share (`80%`) that wait at the point or are past it.
    `not_before` is a moment; `window` shuts the gate again when it ends.
    """

    quorum: str = ""
    not_before: datetime | None = None
    window: Window | None = None
    without_vanished: bool = False

    def document(self) -> dict[str, Any]:
        """As `parse` takes it."""
        value: dict[str, Any] = {}
        if self.quorum == "all":
            value["quorum"] = "all"
        elif self.quorum.endswith("%"):
            value["quorum"] = {"percent": float(self.quorum[:-1])}
        elif self.quorum:
            value["quorum"] = {"count": int(self.quorum)}
        if self.not_before is not None:
            value["not_before"] = self.not_before.isoformat()
        if self.window is not None:
            value["window"] = {"calendar": self.window.text, "lasting_s": self.window.lasting_s}
        if self.without_vanished:
            value["without_vanished"] = True
        return value

    def describe(self) -> str:
        """The conditions in words."""
        words = []
        if self.quorum == "all":
            words.append("all devices wait here")
        elif self.quorum:
            words.append(
                f"{self.quorum} of the devices wait here".replace("1 of the devices wait", "1 waits")
            )
        if self.not_before is not None:
            words.append(f"it is {self.not_before.astimezone(UTC):%Y-%m-%d %H:%M} UTC")
        if self.window is not None:
            words.append(f"the window {self.window.text} (for {_span(self.window.lasting_s)}) is open")
        return "when " + " and ".join(words)


@dataclass(frozen=True)
class Limit:
    """A number of failed devices, or their share of those that ended, at which something is done."""

    count: int | None = None
    percent: float | None = None
    at_least: int = 1

    def is_exceeded(self, failed: int, ended: int) -> bool:
        """True when `failed` of `ended` devices are too many; never for fewer than `at_least`."""
        if failed == 0 or failed < self.at_least:
            return False
        if self.count is not None and failed >= self.count:
            return True
        return self.percent is not None and failed * 100 > self.percent * ended

    def document(self) -> dict[str, Any]:
        """As `parse` takes it."""
        value = {"failed_count": self.count, "failed_percent": self.percent, "at_least": self.at_least}
        return {name: number for name, number in value.items() if number is not None}

    def describe(self) -> str:
        """The limit in words."""
        words = []
        if self.count is not None:
            words.append(f"{self.count} devices failed" if self.count != 1 else "a device failed")
        if self.percent is not None:
            words.append(f"more than {self.percent:g} % of the finished devices failed")
        least = f" (at least {self.at_least})" if self.at_least > 1 else ""
        return "when " + " or ".join(words) + least


@dataclass(frozen=True)
class Rules:
    """What a deployment does by itself."""

    gates: Mapping[str, Gate] = field(default_factory=dict)
    hold: Limit | None = None
    abort: Limit | None = None
    vanished_after_s: int = VANISHED_AFTER_S

    def document(self) -> dict[str, Any] | None:
        """For the database and the API; None when there are no rules at all."""
        value: dict[str, Any] = {}
        if self.gates:
            value["gates"] = {point: gate.document() for point, gate in self.gates.items()}
        if self.hold is not None:
            value["hold"] = self.hold.document()
        if self.abort is not None:
            value["abort"] = self.abort.document()
        if self.vanished_after_s != VANISHED_AFTER_S:
            value["vanished_after_s"] = self.vanished_after_s
        return value or None


# --- facts and decisions ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """Where the devices are: how many have each (status, stage), and how many of the open ones vanished."""

    places: Mapping[tuple[str, int], int]
    vanished: int = 0

    def count(self, *statuses: str) -> int:
        """Devices with one of the statuses."""
        return sum(number for (status, _), number in self.places.items() if status in statuses)

    @property
    def total(self) -> int:
        """Devices that the deployment is really for."""
        return sum(self.places.values()) - self.count(*SKIPPED)

    @property
    def failed(self) -> int:
        """Devices that tried and failed."""
        return self.count("failure")

    @property
    def ended(self) -> int:
        """Devices that tried and are through with it."""
        return self.count("failure", "success")

    def reached(self, point: str) -> int:
        """Devices that wait at the point or got past it, and have not failed."""
        return sum(
            number for (status, stage), number in self.places.items() if stage_reaches(status, stage, point)
        )

    def to_come(self, point: str) -> int:
        """Devices that may still come to the point."""
        still_open = sum(number for (status, _), number in self.places.items() if status not in FINISHED)
        open_there = sum(
            number
            for (status, stage), number in self.places.items()
            if status not in FINISHED and stage_reaches(status, stage, point)
        )
        return still_open - open_there


@dataclass(frozen=True)
class Situation:
    """A deployment as it is now."""

    rules: Rules
    facts: Facts
    control_map: Mapping[str, Any] | None
    gate_states: Mapping[str, str]
    is_held: bool
    held_waived: int
    now: datetime


@dataclass(frozen=True)
class Step:
    """What is to be done: release or shut a point, hold, or abort; `why` is for people."""

    word: str
    point: str = ""
    why: str = ""


def judge(now_is: Situation) -> list[Step]:
    """What the rules want done now; empty when all is as they want it."""
    rules, facts = now_is.rules, now_is.facts
    share = f"{facts.failed} of {facts.ended} finished devices failed"
    if rules.abort is not None and rules.abort.is_exceeded(facts.failed, facts.ended):
        return [Step("abort", why=share)]
    steps = []
    is_held = now_is.is_held
    is_too_much = rules.hold is not None and rules.hold.is_exceeded(facts.failed, facts.ended)
    if is_too_much and not is_held and facts.failed > now_is.held_waived:
        steps.append(Step("hold", why=share))
        is_held = True
    for point in POINTS:
        gate = rules.gates.get(point.name)
        state = now_is.gate_states.get(point.name, "")
        if gate is None or state in (RELEASED, PERSON):
            continue
        missing = "held" if is_held else unmet(gate, point.name, facts, now_is.now)
        if not missing and state != OPEN:
            steps.append(Step("release", point.name, gate.describe()))
        elif missing and state == OPEN:
            steps.append(Step("shut", point.name, missing))
    return steps


def unmet(gate: Gate, point: str, facts: Facts, now: datetime) -> str:
    """The first condition of a gate that does not hold, in words with numbers; empty when all do."""
    if gate.quorum:
        reached = facts.reached(point)
        needed, missing = _needed(gate, point, facts)
        if missing:
            return f"{reached} of {needed} devices are here"
    if gate.not_before is not None and now < gate.not_before:
        return f"not before {gate.not_before.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    if gate.window is not None and not gate.window.is_open(now.timestamp()):
        opening = gate.window.next_opening(now.timestamp())
        at = (
            f"{datetime.fromtimestamp(opening, UTC):%Y-%m-%d %H:%M} UTC"
            if math.isfinite(opening)
            else "never"
        )
        return f"the window opens {at}"
    return ""


def timed_map(
    control_map: Mapping[str, Any] | None, rules: Rules, gate_states: Mapping[str, str], now: datetime
) -> Mapping[str, Any] | None:
    """The map as it counts this second: a window that ended is shut even if nobody has noted it yet."""
    for point, gate in rules.gates.items():
        if gate.window is None or gate_states.get(point) != OPEN or gate.window.is_open(now.timestamp()):
            continue
        states = (control_map or {}).get("states", {})
        control_map = {**(control_map or {}), "states": {**states, point: {"action": "pause"}}}
    return control_map


def gated_points(rules: Rules, control_map: Mapping[str, Any] | None) -> list[str]:
    """Gates whose point the map does not pause yet: a gate without a pause would let everyone through."""
    return [point for point in rules.gates if action_at(control_map, point) != "pause"]


def _needed(gate: Gate, point: str, facts: Facts) -> tuple[int, int]:
    """How many devices the quorum needs, and how many are missing."""
    reached = facts.reached(point)
    vanished = facts.vanished if gate.without_vanished else 0
    if gate.quorum == "all":
        to_come = max(facts.to_come(point) - vanished, 0)
        return reached + to_come, to_come if reached else max(to_come, 1)
    if gate.quorum.endswith("%"):
        needed = math.ceil(max(facts.total - vanished, 1) * float(gate.quorum[:-1]) / 100)
    else:
        needed = int(gate.quorum)
    return needed, max(needed - reached, 0)


# --- reading ---------------------------------------------------------------------------------------------


def parse(value: Any) -> Rules:
    """The rules of a management request or a row. Raises Unprocessable naming the field that is wrong."""
    fields = _object({} if value is None else value, "rules", ("gates", "hold", "abort", "vanished_after_s"))
    gates = {}
    for point, entry in _object(fields.get("gates", {}), "rules.gates", tuple(BY_NAME)).items():
        gates[point] = _gate(entry, f"rules.gates.{point}")
    vanished = fields.get("vanished_after_s", VANISHED_AFTER_S)
    return Rules(
        gates,
        _limit(fields.get("hold"), "rules.hold"),
        _limit(fields.get("abort"), "rules.abort"),
        int(_number(vanished, "rules.vanished_after_s", 10, 30 * 86400)),
    )


def parse_moment(value: Any, where: str) -> datetime:
    """An RFC 3339 time with its zone. Raises Unprocessable."""
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise ValueError("it names no time zone")
        return moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise Unprocessable(
            f"{where}: {value!r:.60} is not a time: {error}", hint="2026-01-31T02:00:00Z"
        ) from error


def _gate(value: Any, where: str) -> Gate:
    fields = _object(value, where, ("quorum", "not_before", "window", "without_vanished"))
    without = fields.get("without_vanished", False)
    if not isinstance(without, bool):
        raise Unprocessable(f"{where}.without_vanished must be true or false")
    moment = fields.get("not_before")
    gate = Gate(
        _quorum(fields.get("quorum"), f"{where}.quorum"),
        None if moment is None else parse_moment(moment, f"{where}.not_before"),
        _window(fields.get("window"), f"{where}.window"),
        without,
    )
    if not gate.quorum and gate.not_before is None and gate.window is None:
        raise Unprocessable(f"{where} has no condition", hint="quorum, not_before or window")
    return gate


def _quorum(value: Any, where: str) -> str:
    if value is None:
        return ""
    if value == "all":
        return "all"
    fields = _object(value, where, ("count", "percent"))
    if len(fields) != 1:
        raise Unprocessable(f'{where} must be "all", {{"count": N}} or {{"percent": N}}')
    if "count" in fields:
        return str(int(_number(fields["count"], f"{where}.count", 1, 10_000_000)))
    return f"{_number(fields['percent'], f'{where}.percent', 0.01, 100):g}%"


def _window(value: Any, where: str) -> Window | None:
    if value is None:
        return None
    fields = _object(value, where, ("calendar", "lasting_s"))
    lasting_s = int(_number(fields.get("lasting_s"), f"{where}.lasting_s", 60, LASTING_MAX_S))
    try:
        return Window(str(fields.get("calendar", "")), lasting_s)
    except ValueError as error:
        raise Unprocessable(f"{where}.calendar: {error}", hint="Sat,Sun 02:00 UTC") from error


def _limit(value: Any, where: str) -> Limit | None:
    if value is None:
        return None
    fields = _object(value, where, ("failed_count", "failed_percent", "at_least"))
    count, percent = fields.get("failed_count"), fields.get("failed_percent")
    if count is None and percent is None:
        raise Unprocessable(f"{where} needs failed_count or failed_percent")
    return Limit(
        None if count is None else int(_number(count, f"{where}.failed_count", 1, 10_000_000)),
        None if percent is None else _number(percent, f"{where}.failed_percent", 0, 100),
        int(_number(fields.get("at_least", 1), f"{where}.at_least", 1, 10_000_000)),
    )


def _object(value: Any, where: str, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unprocessable(f"{where} must be an object")
    for name in value:
        if name not in names:
            raise Unprocessable(f"{where} has no field {name!r:.60}", hint=f"one of {', '.join(names)}")
    return {name: entry for name, entry in value.items() if entry is not None}


def _number(value: Any, where: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Unprocessable(f"{where} is {value!r:.60}, must be a number from {low:g} to {high:g}")
    return float(value)


def _span(seconds: int) -> str:
    return f"{seconds / 3600:g} h" if seconds % 1800 == 0 else f"{seconds / 60:g} min"
