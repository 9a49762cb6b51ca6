# SPDX-License-Identifier: Apache-2.0
"""Every way a script or module can fail, with real shell: the message names file, state and remedy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support.artifacts import Artifact

import update_agent

TAKE = 'while line=$(cat stream-next) && [ -n "$line" ]; do cat "$line" >tmp/got; done'


@dataclass
class Device:
    """A device with an own module, scripts of image and artifact, and the commands that are given on it."""

    root: Path
    module: dict[str, str] = field(default_factory=dict)
    artifact_scripts: dict[str, str] = field(default_factory=dict)
    config: dict[str, int] = field(default_factory=dict)
    payload_type: str = "thing"
    files: dict[str, bytes] = field(default_factory=lambda: {"one": b"1" * 300_000})

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def rootfs_scripts(self) -> Path:
        return self.root / "conf/scripts"

    @property
    def module_path(self) -> Path:
        return self.root / "share/modules/v3/thing"

    def furnish(self) -> None:
        for folder in ("conf/scripts", "share/modules/v3", "store"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.store / "device_type").write_text("device_type=virt64\n")
        (self.root / "conf/mender.conf").write_text(json.dumps({"DBus": {"Enabled": False}, **self.config}))
        bodies = {"Download": TAKE, "SupportsRollback": "echo Yes", **self.module}
        cases = "".join(f"{name})\n{body}\n;;\n" for name, body in bodies.items())
        script(self.module_path, f'set -eu\ncase "$1" in\n{cases}esac')
        scripts = {name: f"#!/bin/sh\n{body}\n".encode() for name, body in self.artifact_scripts.items()}
        made = Artifact(payload_type=self.payload_type, scripts=scripts, files=self.files)
        (self.root / "a.mender").write_bytes(made.build())

    def run(self, *verbs: str) -> str:
        """What the commands log and say."""
        told = ""
        for verb in verbs:
            argv = [sys.executable, "-m", "update_agent", verb]
            argv += [str(self.root / "a.mender")] if verb == "install" else []
            done = subprocess.run(argv, env=self.environment(), capture_output=True, text=True, check=False)
            told += done.stderr
        return told

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "PYTHONPATH": str(Path(update_agent.__file__).parents[1]),
            "MENDER_CONF_DIR": str(self.root / "conf"),
            "MENDER_DATA_DIR": str(self.root / "share"),
            "MENDER_DATASTORE_DIR": str(self.store),
        }


def script(path: Path, body: str, interpreter: str = "/bin/sh") -> None:
    path.write_text(f"#!{interpreter}\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path)
    yield made
    assert not list(tmp_path.rglob("core*"))


def said(told: str, *, file: Path | str, state: str, remedy: str, what: str) -> None:
    """One line of what was told has all four."""
    lines = told.splitlines()
    assert any(
        str(file) in line and f" {state}: " in line and remedy in line and what in line for line in lines
    ), told


# State scripts: what they do, under which settings, what is said and which remedy

OUTPUT = "its output is in the deployment log; 0 means done, 21 try again later"
SCRIPTS = {
    "exits with 1": ("exit 1", {}, "exited with 1", OUTPUT),
    "exits with a reserved code": ("exit 22", {}, "exited with 22", OUTPUT),
    "is killed": ("kill -9 $$", {}, "was killed by signal 9", OUTPUT),
    "takes too long": (
        "exec sleep 600",
        {"StateScriptTimeoutSeconds": 1},
        "did not end within 1 s and was killed",
        "StateScriptTimeoutSeconds is the limit for one run",
    ),
    "wants to be run again for too long": (
        "exit 21",
        {"StateScriptRetryTimeoutSeconds": 1, "StateScriptRetryIntervalSeconds": 1},
        "wanted another run for 1 s",
        "StateScriptRetryTimeoutSeconds is the limit",
    ),
}
HOOKS = ["Download_Enter", "Download_Leave", "ArtifactInstall_Enter", "ArtifactInstall_Leave"]


# The one wait is as good as the other: those that take seconds stand for all hooks.
@pytest.mark.parametrize(
    ("hook", "case"),
    [(hook, case) for case in SCRIPTS for hook in (HOOKS[1:3] if "long" in case else HOOKS)],
)
def test_a_script_that(device: Device, hook: str, case: str) -> None:
    body, device.config, what, remedy = SCRIPTS[case]
    name = f"{hook}_10_check-disk"
    if hook.startswith("Artifact"):
        path = device.store / "scripts" / name
        device.artifact_scripts[name] = body
        device.furnish()
    else:
        path = device.rootfs_scripts / name
        device.furnish()
        script(path, body)
    told = device.run("install")
    said(told, file=path, state=hook, remedy=remedy, what=what)
    assert told.splitlines()[-1].startswith(f"Could not fulfill request: {hook}: state script {path} ")


def test_a_script_that_cannot_be_started(device: Device) -> None:
    device.furnish()
    path = device.rootfs_scripts / "Download_Enter_10"
    script(path, "", interpreter="/no/such/shell")
    remedy = "valid #! line and interpreter"
    said(device.run("install"), file=path, state="Download_Enter", remedy=remedy, what="cannot start")


def test_a_script_that_is_not_executable_is_told_of(device: Device) -> None:
    device.furnish()
    path = device.rootfs_scripts / "Download_Enter_10"
    path.write_text("")
    assert f"State script {path} is skipped: not executable (try chmod 0755)" in device.run("install")


@pytest.mark.parametrize(
    ("make", "what", "remedy"),
    [
        ("echo 9 >version", "says version '9', this agent runs 2 and 3", "a file that holds the number 3"),
        ("mkdir version", "cannot read the version of the state scripts", "a file that holds the number 3"),
        ("cd ..; rmdir scripts; : >scripts", "cannot read the", "(a "),
    ],
)
def test_a_directory_of_scripts_that_is_wrong(device: Device, make: str, what: str, remedy: str) -> None:
    device.furnish()
    subprocess.run(["sh", "-ec", make], cwd=device.rootfs_scripts, check=True)
    told = device.run("install")
    said(told, file=device.rootfs_scripts, state="Download_Enter", remedy=remedy, what=what)


# Update modules

LOG, NUMBER = "its output is in the log", {"ModuleTimeoutSeconds": 1}
LIMIT = "ModuleTimeoutSeconds is the limit"
# call: the state in which it fails, and the commands that lead there
CALLS = {
    "ProvidePayloadFileSizes": ("Download", ["install"]),
    "Download": ("Download", ["install"]),
    "ArtifactInstall": ("ArtifactInstall", ["install"]),
    "ArtifactCommit": ("ArtifactCommit", ["install", "commit"]),
    "ArtifactRollback": ("ArtifactRollback", ["install", "rollback"]),
    "ArtifactFailure": ("ArtifactFailure", ["install", "rollback"]),
    "Cleanup": ("Cleanup", ["install", "commit"]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("body", "config", "what", "remedy"),
    [
        ("exit 7", {}, "exited with 7", LOG),
        ("kill -9 $$", {}, "was killed by signal 9", LOG),
        ("exec sleep 600", NUMBER, "ran into its time limit", LIMIT),
    ],
    ids=["exits", "is killed", "takes too long"],
)
def test_a_call_that(
    device: Device, call: str, body: str, config: dict[str, int], what: str, remedy: str
) -> None:
    state, verbs = CALLS[call]
    device.module[call], device.config = body, config
    device.furnish()
    told = device.run(*verbs)
    said(told, file=device.module_path, state=state, remedy=remedy, what=f"{call} {what}")


@pytest.mark.parametrize(
    ("query", "answer"),
    [("NeedsArtifactReboot", "maybe"), ("SupportsRollback", "yes"), ("ProvidePayloadFileSizes", "Yes Yes")],
)
def test_an_answer_that_is_none(device: Device, query: str, answer: str) -> None:
    device.module[query] = f"echo {answer}"
    device.furnish()
    told = device.run("install")
    line = next(line for line in told.splitlines() if f"answered '{answer}' to {query}" in line)
    assert str(device.module_path) in line
    assert "(one line with one of No, Yes" in line
    assert "query." not in told  # steps of the table are our words, not the reader's


@pytest.mark.parametrize("query", ["NeedsArtifactReboot", "SupportsRollback"])
def test_a_query_that_fails(device: Device, query: str) -> None:
    device.module[query] = "exit 3"
    device.furnish()
    last = device.run("install").splitlines()[-1]
    what = f"update module {device.module_path}: {query} exited with 3 (its output is in the log)"
    assert last == f"Could not fulfill request: {what}"


STREAM = "line=$(cat stream-next)"
STREAMS = {
    "leaves early": (
        f"{STREAM}; exit 0",
        "before it had taken the whole payload",
        "until a read from it is empty",
    ),
    "fails in between": (f"{STREAM}; exit 3", "Download exited with 3", LOG),
    "puts a file in the way": (
        ": >streams; " + STREAM,
        "cannot make the FIFO",
        "does the module change them?",
    ),
}


@pytest.mark.parametrize("case", STREAMS)
def test_a_download_that(device: Device, case: str) -> None:
    device.module["Download"], what, remedy = STREAMS[case]
    device.furnish()
    told = device.run("install")
    file = (
        device.module_path if "FIFO" not in what else device.store / "modules/v3/payloads/0000/tree/streams"
    )
    said(told, file=file, state="Download", remedy=remedy, what=what)


def test_a_module_that_is_not_there(device: Device) -> None:
    device.payload_type = "other"
    device.furnish()
    file, remedy = device.module_path.with_name("other"), "does the image contain the update module other?"
    said(device.run("install"), file=file, state="Download", remedy=remedy, what="Update Module not found")


def test_a_module_that_cannot_be_started(device: Device) -> None:
    device.furnish()
    script(device.module_path, "", interpreter="/no/such/shell")
    remedy = "valid #! line and interpreter"
    told = device.run("install")
    said(told, file=device.module_path, state="Download", remedy=remedy, what="cannot start")


def test_a_tree_that_went_away(device: Device) -> None:
    device.furnish()
    device.run("install")
    subprocess.run(["rm", "-r", device.store / "modules"], check=True)
    remedy = "was the datastore emptied during the update?"
    told = device.run("commit")
    said(
        told,
        file=device.module_path,
        state="ArtifactCommit",
        remedy=remedy,
        what="cannot call ArtifactCommit",
    )
