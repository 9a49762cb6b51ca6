# SPDX-License-Identifier: Apache-2.0
"""What a team gives for a rehearsal: scripts, hooks, artifact, configuration; and what is wrong at sight."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from update_agent import hooks as agent_hooks
from update_agent.artifact import Reader
from update_agent.errors import ArtifactError, UpdateError
from update_agent.scripts import SUPPORTED_VERSIONS, parse_name
from update_agent.states import ARTIFACT, ROOTFS, STATE_BY_NAME
from update_tools import script_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from update_agent.header import Header
    from update_tools.rehearse.findings import Findings

    Json = dict[str, Any]

ROOTFS_IMAGE = "rootfs-image"
DEVICE_TYPE = "rehearsal"
_LETTERS = {"Enter": "Ee", "Leave": "Ll", "Error": "!"}
_NEARLY = re.compile(r"(Idle|Sync|Download|Artifact)\w*_", re.IGNORECASE)
_SLOW_S = 60
_SHELLS = ("/bin/sh", "/usr/bin/env sh", "/bin/dash", "/bin/ash")


class InputError(UpdateError):
    """What was given cannot be rehearsed."""


class Script:
    """A state script: from where the agent would take it, and what it is."""

    __slots__ = ("data", "hook", "mode", "name", "origin")

    def __init__(self, name: str, origin: str, data: bytes, mode: int) -> None:
        self.name = name
        self.origin = origin
        self.data = data
        self.mode = mode
        parsed = parse_name(name)
        self.hook = "_".join(parsed) if parsed else ""

    @property
    def interpreter(self) -> str:
        """What its first line names, with arguments; empty if it names nothing."""
        return " ".join(script_text.interpreter(self.data))


class Team:
    """Everything that was given; `scripts` are folders. Raises InputError for what cannot be read at all."""

    def __init__(
        self,
        *scripts: Path,
        hooks: Path | None = None,
        artifact: Path | None = None,
        conf: Path | None = None,
        root: Path | None = None,
    ) -> None:
        if not scripts and hooks is None and artifact is None:
            raise InputError(
                "there is nothing to rehearse", hint="--scripts DIR, --hooks DIR or --artifact FILE"
            )
        self.conf = _conf(conf)
        self.root = _folder(root, "--root")
        self.hooks_from = _folder(hooks, "--hooks")
        self.hooks = _hooks(self.hooks_from) if self.hooks_from else {}
        self.artifact_from = artifact
        self.header = _header(artifact) if artifact else None
        self.version: bytes | None = None
        self.others: dict[str, str] = {}  # what is no script of ours, and why
        self.scripts: list[Script] = []
        self.not_in_artifact: list[Script] = []
        for path in scripts:
            if (folder := _folder(path, "--scripts")) is not None:
                self._read_scripts(folder)
        self._take_for_recipe()
        if self.header is not None:
            self.scripts += [Script(name, ARTIFACT, data, 0o755) for name, data in self.header.scripts]
        if scripts and not (self.scripts or self.not_in_artifact or self.others):
            raise InputError(
                f"{scripts[0]} has no state scripts", hint="files named as ArtifactInstall_Leave_10_migrate"
            )

    @property
    def payload_type(self) -> str:
        """Of the artifact; a root file system if none was given."""
        return ROOTFS_IMAGE if self.header is None else (self.header.payload_type or "")

    @property
    def device_type(self) -> str:
        """The device type that the artifact is for."""
        return self.header.device_types[0] if self.header and self.header.device_types else DEVICE_TYPE

    def of(self, origin: str) -> list[Script]:
        """The scripts of the image, or of the artifact, in the order of their names."""
        found = [script for script in self.scripts if script.origin == origin]
        return sorted(found, key=lambda script: os.fsencode(script.name))

    def by_hook(self) -> dict[str, list[str]]:
        """Names of the scripts that the agent will find, by State_Action, in order."""
        table: dict[str, list[str]] = {}
        for origin in (ROOTFS, ARTIFACT):
            for script in self.of(origin):
                is_startable = origin == ARTIFACT or script.mode & 0o111
                if script.hook and is_startable and _belongs(script) and _has_hook(script):
                    table.setdefault(script.hook, []).append(script.name)
        return table

    def _read_scripts(self, folder: Path) -> None:
        known = {script.name for script in (*self.scripts, *self.not_in_artifact)}
        for path in _entries(folder):
            if _is_beside(path):
                continue
            why = _why_not(path)
            if why:
                self.others[path.name] = why
                continue
            try:
                data = path.read_bytes()
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror}") from error
            if path.name in known:
                raise InputError(f"{path.name} is in more than one of the folders", hint="a device has one")
            if path.name == "version":
                self.version = data
                continue
            parsed = parse_name(path.name)
            assert parsed is not None
            origin = STATE_BY_NAME[parsed[0]].scripts
            script = Script(path.name, origin, data, path.stat().st_mode)
            if origin == ARTIFACT and self.header is not None:
                if path.name not in {name for name, _ in self.header.scripts}:
                    self.not_in_artifact.append(script)
            else:
                self.scripts.append(script)

    def _take_for_recipe(self) -> None:
        """If nothing is executable these are files of a recipe, which installs them as programs."""
        if any(script.mode & 0o111 for script in self.scripts):
            return
        self.others = {name: why for name, why in self.others.items() if _NEARLY.match(name)}
        for script in self.scripts:
            script.mode = 0o755


def _has_hook(script: Script) -> bool:
    """Its state has such an action."""
    state, _, action = script.hook.partition("_")
    return bool(set(_LETTERS[action]) & set(STATE_BY_NAME[state].hooks))


def _belongs(script: Script) -> bool:
    """The agent looks for scripts of this state where this one is."""
    return STATE_BY_NAME[script.hook.partition("_")[0]].scripts == script.origin


def _folder(path: Path | None, option: str) -> Path | None:
    if path is not None and not path.is_dir():
        raise InputError(f"{option} {path} is not a directory")
    return path


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from error


def _why_not(path: Path) -> str:
    """Why the agent would not run a file as a state script; empty if it would, or if it is their version."""
    if not path.is_file():
        return "it is a folder" if path.is_dir() else "it is no plain file, or a link that leads nowhere"
    if not path.name.isprintable():  # undecodable bytes as well, which an artifact cannot carry
        return "its name must be printable UTF-8"
    if path.name == "version" or parse_name(path.name) is not None:
        return ""
    nearly = "looks like a state script, but is not named as one"
    return nearly if _NEARLY.match(path.name) else "no state script"


def _is_beside(path: Path) -> bool:
    """No program and not named like one: a README, what Git or an editor keeps."""
    is_plain = path.is_dir() or (path.is_file() and not path.stat().st_mode & 0o111)
    return is_plain and path.name != "version" and not _NEARLY.match(path.name)


def _hooks(folder: Path) -> dict[str, bytes]:
    """Content by name; empty of what is no plain file, which the agent does not take for a hook either."""
    paths = [path for path in _entries(folder) if path.name.endswith(".json")]
    if not paths:
        raise InputError(f"{folder} has no pause hooks", hint="files named as 10-night.json")
    try:
        return {path.name: path.read_bytes() if path.is_file() else b"" for path in paths}
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error


def _header(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            return Reader(file).header
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ArtifactError as error:
        raise InputError(f"{path} is no artifact: {error.message}", hint=error.hint) from error


def _conf(path: Path | None) -> Json:
    if path is None:
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} must hold one JSON object, as mender.conf does")
    return document


# What is wrong at sight


def check(team: Team, findings: Findings, has_program: Sequence[Path]) -> bool:
    """Add what can be found without running anything. False if nothing can be run.

    `has_program`: the directories in which programs of the machine are, as roots.
    """
    for name, why in team.others.items():
        findings.add("script-bad-name", name, why)
    for script in team.not_in_artifact:
        findings.add("script-unreachable", script.name, f"{team.artifact_from} does not contain it")
    for script in team.scripts:
        _check_script(script, findings, has_program)
    _check_hooks(team, findings, has_program)
    if team.version is None:
        return True
    text = team.version.strip()
    if not text.isdigit() or int(text) not in SUPPORTED_VERSIONS:
        findings.add("scripts-version", "version", f"it holds {text.decode(errors='backslashreplace')!r}")
        return False
    return True


def _check_script(script: Script, findings: Findings, has_program: Sequence[Path]) -> None:
    state, _, action = script.hook.partition("_")
    if not script.hook or not _belongs(script):
        findings.add(
            "script-unreachable", script.name, f"the agent takes none of these from the {script.origin}"
        )
        return
    if not _has_hook(script):
        findings.add("script-no-such-hook", script.name, f"{state} has no {action}")
    if script.origin == ROOTFS and not script.mode & 0o111:
        findings.add("script-not-executable", script.name, f"mode {script.mode & 0o7777:04o}")
    if not script.data:
        findings.add("script-empty", script.name, "0 bytes")
    elif not script.data.startswith(b"\x7fELF"):
        words = script_text.interpreter(script.data)
        if not words:
            findings.add("script-no-interpreter", script.name, "its first line is not #!PROGRAM")
        elif line := script_text.dos_line(script.data):
            findings.add("script-crlf", script.name, f"line {line} ends with CR LF")
        elif program := script_text.missing(words, lambda path: _is_there(path, has_program)):
            findings.add("script-no-interpreter", script.name, f"there is no program {program}")


def _is_there(program: str, roots: Sequence[Path]) -> bool:
    places = [f"{root}/{program.lstrip('/')}" for root in roots] if program.startswith("/") else []
    return any(os.path.isfile(place) and os.access(place, os.X_OK) for place in places)


def program_beside(team: Team, program: str) -> Path | None:
    """The file of a hook's program, if it lies beside the hooks."""
    beside = (team.hooks_from or Path()) / Path(program).name
    return beside if team.hooks_from is not None and beside.is_file() else None


def _check_hooks(team: Team, findings: Findings, has_program: Sequence[Path]) -> None:
    for name in team.hooks:
        hook = agent_hooks.read(str((team.hooks_from or Path()) / name))
        if hook.fault:
            findings.add("hook-invalid", name, hook.fault.replace(hook.path, name))
        elif hook.program and not (
            program_beside(team, hook.program) or _is_there(hook.program, has_program)
        ):
            findings.add("hook-program-missing", name, f"there is no program {hook.program}")


def check_shell(team: Team, findings: Findings) -> None:
    """What a POSIX shell lacks, as far as ShellCheck is there to tell."""
    program = shutil.which("shellcheck") or shutil.which("shellcheck", path=os.path.dirname(sys.executable))
    if program is None:
        return
    for script in team.scripts:
        if not script.interpreter.startswith(_SHELLS):
            continue
        result = subprocess.run(
            [program, "--shell=sh", "--format=json", "-"],
            input=script.data,
            capture_output=True,
            timeout=_SLOW_S,
            check=False,
        )
        try:
            notes = [note for note in json.loads(result.stdout) if 3000 <= note["code"] < 4000]
        except ValueError:
            continue
        if notes:
            first = notes[0]
            findings.add("bashism", script.name, f"line {first['line']}: {first['message']}")
