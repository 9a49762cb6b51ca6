# SPDX-License-Identifier: MIT
"""Names of state scripts: are they right, and does a script go into the root file system or the artifact?

The states are not listed here: they are read from the agent's table.
"""

from __future__ import annotations

import importlib
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_NAME = re.compile(r"([A-Za-z]+)_([A-Za-z]+)_([0-9]{2})(_\S+)?")
_LETTERS = {"Enter": "E", "Leave": "L", "Error": "!"}


def _table(source: str) -> Any:
    """The agent's module of states, of the repository at `source`."""
    agent = str(Path(source).resolve() / "agent")
    if agent not in sys.path:
        sys.path.append(agent)
    return importlib.import_module("update_agent.states")


def problem(name: str, source: str) -> str | None:
    """What is wrong with a name, or None. `source` is the repository with the agent."""
    table = _table(source)
    match = _NAME.fullmatch(name)
    if not match:
        return f"{name}: not STATE_ACTION_NN or STATE_ACTION_NN_text, like ArtifactInstall_Leave_10_migrate"
    state, action = match[1], match[2]
    if state not in table.STATE_BY_NAME:
        near = get_close_matches(state, table.STATE_BY_NAME, 1)
        return f"{name}: no state {state}" + (f"; {near[0]}?" if near else "")
    if action not in table.ACTIONS:
        return f"{name}: no action {action}; {', '.join(table.ACTIONS)}"
    if _LETTERS[action] not in table.STATE_BY_NAME[state].hooks:
        return f"{name}: {state} has no {action}, the script would never run"
    return None


def problems(names: Sequence[str], source: str) -> list[str]:
    """All that is wrong with these names, a line each."""
    found = [text for name in names if (text := problem(name, source))]
    return found + [f"{name}: named twice" for name in sorted({n for n in names if names.count(n) > 1})]


def split(names: Iterable[str], source: str) -> tuple[list[str], list[str]]:
    """Names that go into the root file system, and those that travel in the artifact; all must be right."""
    table = _table(source)
    rootfs: list[str] = []
    artifact: list[str] = []
    for name in names:
        place = table.STATE_BY_NAME[name.partition("_")[0]].scripts
        (rootfs if place == table.ROOTFS else artifact).append(name)
    return rootfs, artifact
