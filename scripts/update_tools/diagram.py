# SPDX-License-Identifier: Apache-2.0
"""The flow as a picture, drawn from the agent's table: `python -m update_tools.diagram README.md` renews it.

The steps of a state become one node; steps between states (reports, pauses, saves) become their edges. A node
says so itself if an update can be held before the state's Leave scripts.
"""

from __future__ import annotations

import sys
from pathlib import Path

from update_agent.states import DAEMON, DAEMON_STEPS, STATES, Step

BEGIN = "<!-- flow: made by update_tools.diagram from agent/update_agent/states.py -->"
END = "<!-- flow: end -->"
_FAILING = {"fail", "aborted"}


def states_of_steps() -> dict[str, str]:
    """The state of each step that belongs to one: those whose name begins as a hook's of that state does."""
    prefixes = {
        step.name.partition(".")[0]: step.work.state
        for step in DAEMON
        if step.work.kind == "hook" and step.work.action != "Error"
    }
    prefixes["cleanup"] = "Cleanup"
    # Asked at the end of ArtifactInstall, before it is known whether there will be a reboot; and what only
    # decides about a rollback, or notes that it is done.
    own = {"reboot.check": "ArtifactInstall"}
    own |= dict.fromkeys(("rollback.check", "rollback.not_needed", "rollback.done"), "")
    return {step.name: own.get(step.name, prefixes.get(step.name.partition(".")[0], "")) for step in DAEMON}


def _reached(name: str, owners: dict[str, str], seen: frozenset[str] = frozenset()) -> set[tuple[str, bool]]:
    """States reached from a step, through steps without one, each with whether a pause point lies between."""
    if owners[name]:
        return {(owners[name], False)}
    if name in seen:
        return set()
    step = DAEMON_STEPS[name]
    pausing = step.work.kind == "control"
    return {
        (state, pause or pausing)
        for event, target in step.edges.items()
        if target and event not in _FAILING
        for state, pause in _reached(target, owners, seen | {name})
    }


def _events(step: Step) -> list[tuple[bool, str]]:
    same = step.edges["fail"] == step.edges["ok"]
    return [
        (event in _FAILING, target)
        for event, target in step.edges.items()
        if target and not (event == "fail" and same)
    ]


def edges() -> dict[tuple[str, str], str]:
    """From state to state: `ok`, `fail`, or `pause` for a way on which an update can be held."""
    owners = states_of_steps()
    found: dict[tuple[str, str], str] = {}
    for step in DAEMON:
        start = owners[step.name]
        if not start:
            continue
        is_error = step.work.action == "Error"
        for failing, target in _events(step):
            for state, pausing in sorted(_reached(target, owners)):
                if state == start:
                    continue
                kind = "fail" if failing or is_error else "pause" if pausing else "ok"
                key = (start, state)
                # One line between two states; the good way names it.
                if found.get(key) in {None, "fail"}:
                    found[key] = kind
    return found


def mermaid() -> str:
    """The picture as Mermaid text, which Git hosts render."""
    lines = ["```mermaid", "flowchart LR"]
    for state in STATES:
        holds = "l" in state.pause.lower()
        lines.append(f'    {state.name}["{state.name}<br>pause? Leave"]' if holds else f"    {state.name}")
    lines.append("    Cleanup")
    arrows = {"ok": "-->", "fail": "-. error .->", "pause": "-- pause? -->"}
    lines += [f"    {start} {arrows[kind]} {end}" for (start, end), kind in edges().items()]
    return "\n".join([*lines, "```"])


def renewed(text: str) -> str:
    """A document with the picture between its two markers replaced."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{mermaid()}\n{END}{tail}"


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(renewed(path.read_text()))
    if len(sys.argv) == 1:
        print(mermaid())
