# SPDX-License-Identifier: Apache-2.0
"""Shows a rehearsal: tables for people, one JSON document, or a page (html.py)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from update_agent.states import ACTIONS, STATES
from update_tools.rehearse.findings import ERROR
from update_tools.rehearse.plan import hooks_of

if TYPE_CHECKING:
    from rich.console import Console

    from update_tools.rehearse.record import Played, Run, Update
    from update_tools.rehearse.rehearsal import Rehearsal

    Json = dict[str, Any]


class ScriptLine:
    """What is to be said of one script or hook program, over all scenarios."""

    def __init__(self, name: str, hook: str, origin: str) -> None:
        self.name = name
        self.hook = hook
        self.origin = origin
        self.runs = 0
        self.cut = 0
        self.longest_s = 0.0
        self.output_bytes = 0
        self.codes: set[str] = set()
        self.changed: set[str] = set()

    def add(self, run: Run) -> None:
        """One more run."""
        self.runs += 1
        self.cut += not run.is_ended
        self.longest_s = max(self.longest_s, run.seconds)
        self.output_bytes = max(self.output_bytes, run.output_bytes)
        if run.is_ended:
            self.codes.add("0" if run.is_injected else run.result)
        self.changed.update(run.changed)

    def document(self) -> Json:
        """For JSON."""
        kept = {
            name: getattr(self, name) for name in ("name", "hook", "origin", "runs", "cut", "output_bytes")
        }
        return {
            **kept,
            "longest_s": self.longest_s,
            "results": sorted(self.codes),
            "changed": sorted(self.changed),
        }


def script_lines(rehearsal: Rehearsal) -> list[ScriptLine]:
    """All scripts in the order of the table, then the programs of hooks."""
    lines: dict[tuple[str, str], ScriptLine] = {}
    scripts = {script.name: script for script in rehearsal.team.scripts}
    order = [f"{state.name}_{action}" for state in STATES for action in ACTIONS]
    for hook in order:
        for name in rehearsal.team.by_hook().get(hook, ()):
            lines["script", name] = ScriptLine(name, hook, scripts[name].origin)
    for hook_file in rehearsal.hooks:
        program = hook_file.program.rpartition("/")[2]
        if program:
            lines["hook", program] = ScriptLine(program, hook_file.point, hook_file.name)
    for played in rehearsal.played:
        for update in played.updates:
            for run in update.runs:
                line = lines.get((run.kind, run.name))
                if line is not None:
                    line.add(run)
    return list(lines.values())


def without_scripts(rehearsal: Rehearsal) -> list[str]:
    """Hooks that such an update comes to and that have no script, Idle and Sync left out."""
    scripts = rehearsal.team.by_hook()
    reached = hooks_of(rehearsal.answers)
    return [hook for hook in reached if hook not in scripts and not hook.startswith(("Idle_", "Sync_"))]


def document(rehearsal: Rehearsal) -> Json:
    """Everything, for `--json`. Keys are never renamed, only added."""
    return {
        "started": rehearsal.started.isoformat(timespec="seconds"),
        "seconds": round(rehearsal.seconds, 1),
        "payload_type": rehearsal.team.payload_type,
        "answers": rehearsal.answers,
        "scripts": [line.document() for line in script_lines(rehearsal)],
        "hooks": [
            {"name": hook.name, "point": hook.point, "kind": hook.kind, "limit_s": hook.limit_s}
            for hook in rehearsal.hooks
        ],
        "hooks_without_scripts": without_scripts(rehearsal),
        "scenarios": [_scenario(played) for played in rehearsal.played],
        "findings": [finding.document() for finding in rehearsal.findings],
        "errors": rehearsal.errors,
        "warnings": len(rehearsal.findings) - rehearsal.errors,
    }


def _scenario(played: Played) -> Json:
    return {
        "name": played.scenario.name,
        "kind": played.scenario.kind,
        "title": played.scenario.title,
        "seconds": round(played.seconds, 3),
        "updates": [_update(update) for update in played.updates],
    }


def _update(update: Update) -> Json:
    return {
        "status": update.status,
        "slot": update.slot,
        "stuck": update.stuck,
        "seconds": round(update.seconds, 3),
        "runs": [run.document() for run in update.runs],
    }


def printable(text: str) -> str:
    """For people: names of files that are no UTF-8 with escapes."""
    bytes_ = re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", text)
    return bytes_.encode(errors="backslashreplace").decode()


def counts(rehearsal: Rehearsal) -> str:
    """How much was played, in words."""
    kinds = [played.scenario.kind for played in rehearsal.played]
    updates = sum(len(played.updates) for played in rehearsal.played)
    killed = sum(played.updates[0].is_killed for played in rehearsal.played)
    words = [_many(len(kinds), "scenario"), _many(updates, "update")]
    words.append(f"{_many(kinds.count('failure'), 'way')} to fail")
    if "kill" in kinds:
        words.append(f"{killed} kills and power cuts")
    return ", ".join(words) + f" in {rehearsal.seconds:.0f} s"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def show(rehearsal: Rehearsal, console: Console) -> None:
    """The report as tables; the findings last, where they are seen."""
    lines = script_lines(rehearsal)
    if lines:
        console.print(_scripts(lines))
        console.print()
    if rehearsal.hooks:
        console.print(_hooks(rehearsal))
        console.print()
    missing = without_scripts(rehearsal)
    if rehearsal.played and missing:
        console.print(f"Without a script: {', '.join(missing)}", style="dim")
        console.print()
    for finding in rehearsal.findings:
        style = "red" if finding.severity == ERROR else "yellow"
        console.print(
            f"[{style}]{finding.severity}[/{style}] [bold]{finding.name}[/bold] "
            f"{escape(finding.where)}: {escape(finding.what)}"
        )
        console.print(f"    {escape(finding.hint)}", style="dim")
        if finding.scenarios:
            more = f" and {len(finding.scenarios) - 1} more" if len(finding.scenarios) > 1 else ""
            console.print(f"    scenario: {escape(finding.scenarios[0])}{more}", style="dim")
    if rehearsal.played:
        console.print(counts(rehearsal))
    if len(rehearsal.findings):
        warnings = len(rehearsal.findings) - rehearsal.errors
        console.print(f"{_many(rehearsal.errors, 'error')}, {_many(warnings, 'warning')}")
    else:
        console.print("[green]nothing wrong was found[/green]")


def _scripts(lines: list[ScriptLine]) -> Table:
    table = _table(
        "Scripts, in the order of the states",
        "script",
        "from",
        "runs",
        "longest",
        "exit codes",
        "output",
        "changes",
    )
    for line in lines:
        cells = (
            line.name,
            line.origin,
            str(line.runs),
            f"{line.longest_s:.2f} s",
            " ".join(sorted(line.codes)),
            f"{line.output_bytes} B" if line.output_bytes else "",
            " ".join(sorted(line.changed)[:3]) + (" …" if len(line.changed) > 3 else ""),
        )
        table.add_row(*map(escape, cells))
    return table


def _hooks(rehearsal: Rehearsal) -> Table:
    table = _table("Pause hooks", "hook", "point", "kind", "at most", "then")
    for hook in rehearsal.hooks:
        limit = f"{hook.limit_s} s" if hook.limit_s else "no limit"
        table.add_row(*map(escape, (hook.name, hook.point, hook.kind, limit, hook.at_limit)))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        right = column in {"runs", "longest", "output"}
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    return table
