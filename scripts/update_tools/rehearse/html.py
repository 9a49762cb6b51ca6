# SPDX-License-Identifier: Apache-2.0
"""A rehearsal as one page: what was found, each script, and a timeline of each scenario. Needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from update_tools.rehearse.plan import START
from update_tools.rehearse.report import counts, printable, script_lines, without_scripts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from update_tools.rehearse.record import Played, Run, Update
    from update_tools.rehearse.rehearsal import Rehearsal

    Json = dict[str, Any]

_WIDTH, _LEFT, _ROW, _TOP = 1000, 8, 22, 30
_LEAST_WIDTH = 3.0
_LETTER, _GAP = 7.0, 8.0  # of a label: width of a letter, and room beside its bar
_APART = 80  # of two marks whose names do not meet
_MARKS = {
    "boot": "boot",
    "killed": "agent killed",
    "cut": "power cut",
    "no-boot": "does not boot",
    "person": "continue",
}
_STEPS_SHOWN = ("idle", "sync", "control", "status")  # not told apart in the band of states


def page(rehearsal: Rehearsal) -> str:
    """The page's text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    flawed = {name for finding in rehearsal.findings for name in finding.scenarios[:1]}
    shown = [
        each for each in rehearsal.played if each.scenario.kind != "kill" or each.scenario.name in flawed
    ]
    text = environment.get_template("report.html.j2").render(
        rehearsal=rehearsal,
        title=_title(rehearsal),
        counts=counts(rehearsal) if rehearsal.played else "nothing was played",
        findings=list(rehearsal.findings),
        warnings=len(rehearsal.findings) - rehearsal.errors,
        lines=script_lines(rehearsal),
        missing=without_scripts(rehearsal),
        titles={each.scenario.name: each.scenario.title for each in rehearsal.played},
        ids={each.scenario.name: f"scenario-{number}" for number, each in enumerate(rehearsal.played)},
        scenarios=[
            Drawn(each, is_open=each.scenario.name in flawed or number == 0)
            for number, each in enumerate(shown)
        ],
        kills=[each for each in rehearsal.played if each.scenario.kind == "kill"],
    )
    return printable(text)


def _title(rehearsal: Rehearsal) -> str:
    team = rehearsal.team
    name = f"artifact {team.header.name}" if team.header else "state scripts"
    return f"Rehearsal of {name}"


class Drawn:
    """A scenario with the timelines of its updates."""

    def __init__(self, played: Played, *, is_open: bool) -> None:
        self.played = played
        self.scenario = played.scenario
        self.is_open = is_open
        self.updates = [
            Timeline(update, number, is_disturbed=leg.is_disturbed)
            for number, (update, leg) in enumerate(zip(played.updates, played.scenario.legs, strict=False), 1)
        ]
        self.ends = ", then ".join(timeline.update.status or "no end" for timeline in self.updates)


class Timeline:
    """One update, drawn: a band of states, a bar for each run, marks for boots and kills."""

    def __init__(self, update: Update, number: int, *, is_disturbed: bool) -> None:
        self.update = update
        self.title = f"Update {number}: {update.status or 'no end'}"
        self.is_disturbed = is_disturbed
        self._begin_s = self._first_s()
        self._span_s = max(update.seconds - self._begin_s, 0.001)
        # What ran before the deployment was there, and while the next poll waits, is of no update.
        self._runs = [run for run in update.runs if self._begin_s <= run.at_s <= update.seconds]
        self.states = list(self._states())
        self.bars = list(self._bars())
        self.marks = list(self._marks())
        rows = 1 + max((bar["row"] for bar in self.bars), default=-1)
        self.width = _WIDTH
        self.height = _TOP + _ROW * rows + 24
        self.rows = list(self._lines())
        self.leaps_s = sum(event["seconds"] for event in update.events if event["event"] == "leap")

    def _first_s(self) -> float:
        """When the agent set out to ask for the deployment."""
        asked = 0.0
        for event in self.update.events:
            if event["event"] == "step" and event["step"] == START:
                asked = float(event["at"] - self.update.start_s)
            elif event["event"] == "step" and event["step"] == "sync.leave.update":
                break
        return asked

    def _x(self, seconds: float) -> float:
        part = min(1.0, max(0.0, (seconds - self._begin_s) / self._span_s))
        return round(_LEFT + part * (_WIDTH - 2 * _LEFT), 1)

    def _states(self) -> Iterator[Json]:
        begun: tuple[str, float] | None = None
        found: list[tuple[str, float, float]] = []
        for event in self.update.events:
            at = event["at"] - self.update.start_s
            if event["event"] not in {"step", "ended"}:
                continue
            name = event.get("step", "").partition(".")[0]
            if event["event"] == "step" and (name in _STEPS_SHOWN or (begun and begun[0] == name)):
                continue
            if begun is not None:
                found.append((*begun, at))
            begun = (name, at) if event["event"] == "step" else None
            if event["event"] == "ended":
                break
        for number, (name, start, end) in enumerate(found):
            x, width = self._x(start), self._x(end) - self._x(start)
            if width > 0.5:
                yield {
                    "name": name,
                    "x": x,
                    "width": round(width, 1),
                    "odd": number % 2,
                    "fits": width > 7 * len(name),
                }

    def _bars(self) -> Iterator[Json]:
        ends: list[float] = []  # of the rows, in pixels
        for run, times, end_s in self._together():
            x = self._x(run.at_s)
            width = max(_LEAST_WIDTH, self._x(end_s) - x)
            whole = f"{run.name}: {run.result}" + (f", {times} times" if times > 1 else "")
            room_left, room_right = x - _GAP, _WIDTH - x - width - _GAP
            is_left = _LETTER * len(whole) > room_right and room_left > room_right
            room = room_left if is_left else room_right
            is_inside = _LETTER * len(whole) > room and width - _GAP > room
            label = _shortened(whole, int((width - _GAP if is_inside else room) / _LETTER))
            is_left = is_left and not is_inside
            needed = width if is_inside else width + _LETTER * len(label) + 14
            begin = x - (needed - width) if is_left else x
            row = next((row for row, end in enumerate(ends) if end < begin), len(ends))
            ends[row : row + 1] = [max(x + width, begin + needed)]
            yield {
                "x": x,
                "width": round(width, 1),
                "row": row,
                "y": _TOP + _ROW * row,
                "label": label,
                "whole": whole,
                "label_x": round(x + 5 if is_inside else x - 5 if is_left else x + width + 5, 1),
                "anchor": "end" if is_left else "start",
                "inside": is_inside,
                "look": look(run),
            }

    def _together(self) -> Iterator[tuple[Run, int, float]]:
        """Runs, those that wanted to be called again as one: how many, and when the last one ended."""
        found: list[tuple[Run, int, float]] = []
        for run in self._runs:
            end_s = run.at_s + run.seconds
            if found and look(run) == look(found[-1][0]) == "later" and run.name == found[-1][0].name:
                found[-1] = (found[-1][0], found[-1][1] + 1, end_s)
            else:
                found.append((run, 1, end_s))
        return iter(found)

    def _marks(self) -> Iterator[Json]:
        """Boots, kills and the like; one that is close to the next has a common name with it."""
        found: list[Json] = []
        for event in self.update.events:
            at = event["at"] - self.update.start_s
            if event["event"] in _MARKS and (at >= self._begin_s or event["event"] != "boot"):
                mark = {"x": self._x(at), "name": _MARKS[event["event"]], "kind": event["event"]}
                if found and mark["x"] - found[-1]["x"] < _APART:
                    mark["name"], found[-1]["name"] = f"{found[-1]['name']}, {mark['name']}", ""
                found.append(mark)
        return iter(found)

    def _lines(self) -> Iterator[Json]:
        """A line of the table for each run, or for the runs that are shown as one."""
        for run, times, _ in self._together():
            at_s = max(0.0, run.at_s - self._begin_s)
            yield {"run": run, "at_s": at_s, "look": look(run), "times": times}


def _shortened(text: str, letters: int) -> str:
    """Without what stands in the middle; the end, how it went, is kept."""
    if len(text) <= letters:
        return text
    kept = max(letters - 1, 8)
    return f"{text[: kept * 2 // 3]}…{text[-(kept - kept * 2 // 3) :]}"


def look(run: Run) -> str:
    """How a run is shown: good, later (exit code 21), cut (ended with the agent), injected, bad."""
    if not run.is_ended or (run.code is None and run.signal is not None and not run.timed_out):
        return "cut"
    if run.is_injected:
        return "injected"
    if run.code == 21:
        return "later"
    return "good" if run.code == 0 and not run.timed_out else "bad"
