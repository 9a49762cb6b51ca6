# SPDX-License-Identifier: Apache-2.0
"""What kas/README.md says of kas-container: kas' real script, with a docker that says what it was asked."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.layer.bitbake import ROOT

SCRIPT = Path(sys.executable).with_name("kas-container")
DOCKER = """#!/bin/sh
case $1 in
-v) echo "Docker version 27.0.0, build x" ;;
context) echo default ;;
run) shift; for word; do echo "$word"; done ;;
esac
"""
README = (ROOT / "kas/README.md").read_text()
COMMANDS = re.findall(r"^    ((?:\w+=\S+ )*kas-container .*)$", README.replace("\\\n", " "), re.MULTILINE)
OF_KAS = ("UPDATE_ARTIFACT_NAME", "UPDATE_SIGNING_KEY", "UPDATE_VERIFY_KEYS")


def asked(folder: Path, command: str) -> list[str]:
    """The words that docker gets of a command line, run in the repository."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / "docker").write_text(DOCKER)
    (tools / "docker").chmod(0o755)
    (tools / "kas-container").symlink_to(SCRIPT)
    (folder / "work").mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("KAS_", "UPDATE_"))}
    env |= {"PATH": f"{tools}:{env['PATH']}", "KAS_WORK_DIR": str(folder / "work"), "SHELL": "/bin/sh"}
    env["KAS_ALLOW_ROOT"] = "yes"  # tests may run as root
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_of_the_readme_hands_on_what_it_names(tmp_path: Path, command: str) -> None:
    words = asked(tmp_path, command)
    handed = {word.partition("=")[0] for at, word in itertools.pairwise(words) if at == "-e"}
    assert {name for name in OF_KAS if name in command} == handed & {*OF_KAS}
    assert handed & {*OF_KAS}
    assert f"{ROOT}:/repo:ro" in words
    assert words[-2] == "build"
    files = words[-1].split(":")
    assert [name for name in files if not (ROOT / name.removeprefix("/repo/")).is_file()] == []
    for path in re.findall(r"UPDATE_\w+=(/\S+)", command):  # in a folder that the container has
        assert f"{Path(path).parent}:{Path(path).parent}:ro" in words


def test_without_that_nothing_of_ours_is_handed_on(tmp_path: Path) -> None:
    """The reason why the README says more than "in place of kas"."""
    command = "export UPDATE_ARTIFACT_NAME=product-1.4.0; kas-container build kas/boards/qemuarm64.yml"
    assert [word for word in asked(tmp_path, command) if "UPDATE_" in word] == []
