# SPDX-License-Identifier: Apache-2.0
"""What happened in the scenarios, as it is judged and shown. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from update_agent.states import DAEMON_STEPS, state_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from update_tools.rehearse.plan import Scenario

    Json = dict[str, Any]


class Run:
    """One run of a script, a hook's program or a module's call. `code` None: it was ended, or not started."""

    __slots__ = (
        "at_s",
        "changed",
        "code",
        "error",
        "is_ended",
        "is_injected",
        "kind",
        "left",
        "name",
        "no_route",
        "output",
        "output_bytes",
        "point",
        "seconds",
        "signal",
        "step",
        "timed_out",
    )

    def __init__(self, start: Mapping[str, Any], at_s: float) -> None:
        self.kind: str = start["kind"]
        self.name: str = start["name"]
        self.step: str = start["step"]
        self.point: str = start["point"]
        self.at_s = at_s
        self.is_ended = self.is_injected = self.timed_out = False
        self.code: int | None = None
        self.signal: int | None = None
        self.error = ""
        self.seconds = 0.0
        self.output = ""
        self.output_bytes = 0
        self.changed: list[str] = []
        self.left: list[str] = []
        self.no_route = 0

    def end(self, event: Mapping[str, Any]) -> None:
        """Take over how it ended."""
        self.is_ended = True
        for name in ("code", "signal", "timed_out", "seconds", "output", "output_bytes", "changed", "left"):
            setattr(self, name, event.get(name, getattr(self, name)))
        self.no_route = event["no_route"]
        self.error = event.get("error", "")

    @property
    def state(self) -> str:
        """The state in which it ran."""
        step = DAEMON_STEPS.get(self.step)
        return "" if step is None else state_of(step)

    @property
    def hook(self) -> str:
        """State_Action of a script."""
        step = DAEMON_STEPS.get(self.step)
        return step.work.subject if step is not None and step.work.kind == "hook" else ""

    @property
    def result(self) -> str:
        """How it ended, in a word or two."""
        if not self.is_ended:
            return "cut off"
        if self.error:
            return "not started"
        if self.timed_out:
            return "time limit"
        if self.signal is not None:
            return f"signal {self.signal}"
        if self.is_injected:
            return "0, taken for 1"
        return f"{self.code}"

    def document(self) -> Json:
        """For JSON."""
        kept = {name: getattr(self, name) for name in self.__slots__}
        return {**kept, "state": self.state, "hook": self.hook, "result": self.result}


class Update:
    """One update of a scenario, as it went."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        self.events: list[Json] = result["events"]
        self.points: list[tuple[str, str]] = [tuple(point) for point in result["points"]]
        self.before: dict[str, str] = result["before"]
        self.after: dict[str, str] = result["after"]
        self.slot: str = result["slot"]
        self.stuck: str = result["stuck"]
        self.log: str = result["log"]
        self.start_s: float = self.events[0]["at"] if self.events else 0.0
        self.runs = list(_runs(self.events, self.start_s))

    @property
    def seconds(self) -> float:
        """How long it took here."""
        ends = [event["at"] for event in self.events if event["event"] == "ended"] or [
            event["at"] for event in self.events[-1:]
        ]
        return float(max(ends, default=self.start_s) - self.start_s)

    @property
    def status(self) -> str:
        """What was reported last: success, failure, or nothing final."""
        finals = [event["status"] for event in self.events if event["event"] == "status"]
        last = finals[-1] if finals else ""
        if last in {"success", "failure"}:
            return str(last)
        verdicts = [event["verdict"] for event in self.events if event["event"] == "ended"]
        return {"succeeded": "success", "failed": "failure"}.get(verdicts[-1], "") if verdicts else ""

    @property
    def answers(self) -> dict[str, str]:
        """What the module answered to its queries."""
        return {
            e["query"]: e["answer"] for e in self.events if e["event"] == "answer" and e["answer"] != "fail"
        }

    @property
    def has_committed(self) -> bool:
        """It went past the commit: what fails after that undoes nothing."""
        steps = {event["step"] for event in self.events if event["event"] == "step"}
        return any(DAEMON_STEPS[step].save == "update-after-commit" for step in steps if step in DAEMON_STEPS)

    @property
    def is_killed(self) -> bool:
        """The kill took place."""
        return any(event["event"] in {"killed", "cut"} for event in self.events)


def _runs(events: Sequence[Mapping[str, Any]], start_s: float) -> Iterator[Run]:
    running: dict[str, Run] = {}
    last: Run | None = None
    found: list[Run] = []
    for event in events:
        if event["event"] == "start":
            last = running[event["name"]] = Run(event, event["at"] - start_s)
            found.append(last)
        elif event["event"] == "end" and event["name"] in running:
            last = running.pop(event["name"])
            last.end(event)
        elif event["event"] == "fault" and event.get("script") and last is not None:
            last.is_injected = True
        elif event["event"] in {"killed", "cut", "reboot"}:
            running.clear()
    return iter(found)


class Played:
    """A scenario and what came of it."""

    def __init__(self, scenario: Scenario, result: Mapping[str, Any]) -> None:
        self.scenario = scenario
        self.updates = [Update(leg) for leg in result["legs"]]
        self.output: str = result["output"]

    @property
    def seconds(self) -> float:
        """All its updates together."""
        return sum(update.seconds for update in self.updates)
