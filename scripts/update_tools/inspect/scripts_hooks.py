# SPDX-License-Identifier: Apache-2.0
"""Section: state scripts and pause hooks: what runs or holds in which state and order, and what never will.

The states are the agent's own table, the hooks are checked by the agent's own checker.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from update_agent import hooks as agent_hooks
from update_agent import scripts as agent_scripts
from update_agent.states import ARTIFACT, POINTS, ROOTFS, STATE_BY_NAME, STATES
from update_tools import script_text

if TYPE_CHECKING:
    from .findings import Findings
    from .subject import Subject
    from .tree import Entry, Tree

SCRIPTS = "/etc/mender/scripts"
HOOKS = ("/usr/share/mender/pause.d", "/etc/mender/pause.d")  # of the latter counts
_ACTIONS = {"Enter": "Ee", "Leave": "Ll", "Error": "!"}
# What is told of a name that is nearly one.
_NEARLY = re.compile(r"(Idle|Sync|Download|Artifact)\w*_(Enter|Leave|Error)", re.IGNORECASE)


class _Script:
    """One state script: where it is from, and its content."""

    __slots__ = ("data", "entry", "name", "origin", "where")

    def __init__(self, name: str, origin: str, where: str, data: bytes, entry: Entry | None) -> None:
        self.name = name
        self.origin = origin
        self.where = where
        self.data = data
        self.entry = entry


def section(subject: Subject) -> dict[str, object] | None:
    """Scripts in the order in which they run, what never will, and hooks by the point at which they hold."""
    found = _of_image(subject) + _of_artifact(subject)
    never = [(script, why) for script in found if (why := _check_script(subject, script))]
    idle = {id(script) for script, _ in never}
    rows = [
        {"state": state.name, "action": action, "script": script.name, "from": script.origin}
        for state in STATES
        for action in ("Enter", "Leave", "Error")
        for script in sorted(found, key=lambda script: os.fsencode(script.name))
        if id(script) not in idle and agent_scripts.parse_name(script.name) == (state.name, action)
    ]
    unreachable = [{"script": script.where, "why": why} for script, why in never]
    held = _hooks(subject)
    if not (rows or unreachable or held):
        return None
    return {"scripts": rows, "never_run": unreachable, "hooks": held}


def _of_image(subject: Subject) -> list[_Script]:
    root = subject.root
    if root is None:
        return []
    found = []
    for name in root.names(SCRIPTS):
        path = f"{SCRIPTS}/{name}"
        entry = root.find(path)
        if name == "version":
            text = (root.text(path) or "").strip()
            if not text.isdigit() or int(text) not in agent_scripts.SUPPORTED_VERSIONS:
                subject.findings.add("scripts-version", path, f"it holds {text!r}")
        elif entry is not None and entry.is_file:
            found.append(_Script(name, ROOTFS, path, root.content(entry, 1 << 20), entry))
    return found


def _of_artifact(subject: Subject) -> list[_Script]:
    artifact = subject.artifact
    scripts = artifact.header.scripts if artifact else []
    return [_Script(name, ARTIFACT, f"artifact: {name}", data, None) for name, data in scripts]


def _check_script(subject: Subject, script: _Script) -> str:
    """Add what is wrong with a script; why it will never run, or nothing."""
    findings = subject.findings
    parsed = agent_scripts.parse_name(script.name)
    if parsed is None:
        nearly = "it looks like a state script, but is not named as one"
        why = nearly if _NEARLY.match(script.name) else "its name is none of a state script"
        findings.add("script-bad-name", script.where, why)
        return why
    why = ""
    state, action = STATE_BY_NAME[parsed[0]], parsed[1]
    if state.scripts != script.origin:
        why = f"scripts of {state.name} are run from the {state.scripts}"
        findings.add("script-unreachable", script.where, why)
    elif not set(_ACTIONS[action]) & set(state.hooks):
        why = f"{state.name} has no {action}"
        findings.add("script-no-such-hook", script.where, why)
    if script.entry is not None:
        _check_rights(findings, script, script.entry, subject.root)
        if not script.entry.is_executable:
            why = why or "it is not executable"
    _check_start(findings, script, subject.root)
    return why


def _check_rights(findings: Findings, script: _Script, entry: Entry, root: Tree | None) -> None:
    if not entry.is_executable:
        findings.add("script-not-executable", script.where, f"mode {entry.mode & 0o7777:04o}")
    if entry.mode & 0o022:
        findings.add("script-writable", script.where, f"mode {entry.mode & 0o7777:04o}")
    if entry.uid != 0 and root is not None and root.entries["/"].uid == 0:
        findings.add("script-not-root", script.where, f"it belongs to user {entry.uid}")


def _check_start(findings: Findings, script: _Script, root: Tree | None) -> None:
    """Would the kernel start it?"""
    if not script.data:
        findings.add("script-empty", script.where, "0 bytes")
        return
    if script.data.startswith(b"\x7fELF"):
        return
    words = script_text.interpreter(script.data)
    if not words:
        findings.add("script-no-interpreter", script.where, "its first line is not #!PROGRAM")
    elif number := script_text.dos_line(script.data):
        findings.add("script-crlf", script.where, f"line {number} ends with CR LF")
    elif root is not None:
        missing = script_text.missing(words, lambda path: _is_program(root, path))
        if missing:
            findings.add("script-no-interpreter", script.where, f"the image has no program {missing}")


def _is_program(root: Tree, path: str) -> bool:
    entry = root.find(path)
    return entry is not None and entry.is_file and entry.is_executable


# Pause hooks


def _hooks(subject: Subject) -> list[dict[str, object]]:
    """Hooks in the order of points and names, read by the agent's checker from copies with the same names."""
    root = subject.root
    if root is None or not any(root.find(directory) for directory in HOOKS):
        return []
    for directory in HOOKS:
        for name in root.names(directory):
            if not name.endswith(".json"):
                where = f"{directory}/{name}"
                subject.findings.add("hook-bad-name", where, "the agent reads only names that end in .json")
    with tempfile.TemporaryDirectory() as scratch:
        copies = [
            _copy(root, directory, Path(scratch, str(number))) for number, directory in enumerate(HOOKS)
        ]
        loaded = agent_hooks.load(str(copy) for copy in copies)
        rows: list[dict[str, object]] = []
        for hook in sorted(loaded, key=lambda hook: POINTS.index(hook.point)):
            path = Path(hook.path)
            where = f"{HOOKS[copies.index(path.parent)]}/{path.name}"
            if hook.kind == "broken":
                fault = hook.fault.replace(hook.path, path.name)
                subject.findings.add("hook-invalid", where, fault)
            _check_hook(subject.findings, root, hook, where)
            rows.append(
                {
                    "point": hook.point,
                    "hook": where,
                    "kind": hook.kind,
                    "program": hook.program,
                    "window": hook.window.text if hook.window else "",
                    "lasting_s": hook.window.lasting_s if hook.window else None,
                    "limit_s": hook.limit_s,
                    "at_limit": hook.at_limit,
                }
            )
    return rows


def _copy(root: Tree, directory: str, target: Path) -> Path:
    target.mkdir()
    for name in root.names(directory):
        if not name.endswith(".json"):
            continue
        link = root.find(f"{directory}/{name}", follow=False)
        if link is not None and link.is_link and link.target == os.devnull:
            (target / name).symlink_to(os.devnull)  # switches the hook of the other directory off
        elif (data := root.read(f"{directory}/{name}", limit_bytes=1 << 20)) is not None:
            (target / name).write_bytes(data)
    return target


def _check_hook(findings: Findings, root: Tree, hook: agent_hooks.Hook, where: str) -> None:
    entry = root.find(where)
    if entry is not None and entry.mode & 0o022:
        findings.add("hook-writable", where, f"mode {entry.mode & 0o7777:04o}")
    if hook.program:
        program = root.find(hook.program)
        if program is None or not program.is_executable:
            what = "is not in the image" if program is None else "is not executable"
            findings.add("hook-program-missing", where, f"{hook.program} {what}")
