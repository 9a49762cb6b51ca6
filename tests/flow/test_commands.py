# SPDX-License-Identifier: Apache-2.0
"""Commands of a person beside what the scenarios play: real processes on a throw-away device."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from update_agent.log import Log
from update_agent.store import Store
from update_agent.update import Update
from update_tools.conform.lab import Lab

GIVEN = {"supports_rollback": True, "needs_reboot": "No", "faults": []}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(GIVEN) as made:
        made.furnish()
        made.configure("http://127.0.0.1:9")
        yield made


def run(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = lab.command(*arguments)
    return subprocess.run(
        command, env=lab.environment(), cwd=lab.root, capture_output=True, text=True, check=False
    )


def test_what_is_installed_is_shown(lab: Lab) -> None:
    assert run(lab, "show-artifact").stdout == "old\n"
    assert run(lab, "install", lab.path("artifact.mender")).returncode == 0
    assert run(lab, "show-artifact").stdout == "old\n"
    assert run(lab, "commit").stdout == "Committed.\n"
    assert run(lab, "show-artifact").stdout == "new\n"
    assert run(lab, "show-provides").stdout == "artifact_name=new\n"


@pytest.mark.parametrize(
    ("verb", "words"), [("commit", "commit"), ("rollback", "roll back"), ("resume", "resume")]
)
def test_without_an_update_there_is_nothing_to_do(lab: Lab, verb: str, words: str) -> None:
    result = run(lab, verb)
    assert (result.returncode, result.stdout) == (2, "No update in progress.\n")
    assert f"Could not fulfill request: No update in progress: Cannot {words}" in result.stderr


def test_a_command_is_refused_while_another_process_updates(lab: Lab) -> None:
    other = Store(lab.store_dir, Log(level="error"))
    other.lock()
    result = run(lab, "install", lab.path("artifact.mender"))
    other.unlock()
    assert result.returncode == 1
    assert "another update process is at work" in result.stderr
    assert lab.journal.trace() == []


def test_an_install_is_refused_in_the_middle_of_a_deployment(lab: Lab) -> None:
    update = Update("3f1c", "https://example.com/a.mender")
    Store(lab.store_dir, Log(level="error")).write({"state": update.to_text("update-install")})
    result = run(lab, "install", lab.path("artifact.mender"))
    assert (result.returncode, result.stdout) == (1, "Installing artifact...\nSystem not modified.\n")
    assert "a deployment from the server is in progress" in result.stderr
    assert lab.journal.trace() == []


def test_a_saved_deployment_that_nobody_understands_is_in_nobody_s_way(lab: Lab) -> None:
    Store(lab.store_dir, Log(level="error")).write({"state": '{"Version":77}'})
    assert run(lab, "install", lab.path("artifact.mender")).returncode == 0


def test_the_reason_of_a_failure_is_told(lab: Lab) -> None:
    result = run(lab, "install", lab.path("absent.mender"))
    assert (result.returncode, result.stdout) == (
        1,
        "Installing artifact...\nStreaming failed.\nSystem not modified.\n",
    )
    assert f"cannot open the artifact {lab.path('absent.mender')}: No such file or directory" in result.stderr


def test_a_configuration_that_was_named_must_be_good(lab: Lab) -> None:
    result = run(lab, "--config", lab.path("absent.conf"), "show-artifact")
    assert (result.returncode, result.stdout) == (1, "")
    assert "absent.conf does not exist" in result.stderr


def test_wrong_usage_shows_the_help(lab: Lab) -> None:
    result = run(lab, "install")
    assert result.returncode == 1
    assert "usage: update-agent install" in result.stderr
    assert result.stderr.endswith("Could not fulfill request: install needs FILE_OR_URL\n")


def test_without_a_bootstrap_artifact_the_name_is_unknown(lab: Lab) -> None:
    Store(lab.store_dir, Log(level="error")).write({"artifact-name": None})
    assert run(lab, "show-artifact").stdout == "unknown\n"
    assert lab.saved("artifact-name") == "unknown"


def test_without_a_bootstrap_artifact_the_image_may_name_itself(lab: Lab) -> None:
    Store(lab.store_dir, Log(level="error")).write({"artifact-name": None})
    with open(lab.path("conf/artifact_info"), "w", encoding="utf-8") as file:
        file.write("# of client 3\nartifact_name=release-1\nartifact_group=x\n")
    assert run(lab, "show-artifact").stdout == "release-1\n"
    assert lab.saved("artifact-name") == "release-1"


def test_a_bootstrap_artifact_names_what_is_installed_once() -> None:
    with Lab({**GIVEN, "empty_payload": True}) as lab:
        lab.furnish()
        lab.configure("http://127.0.0.1:9")
        Store(lab.store_dir, Log(level="error")).write({"artifact-name": None})
        with open(lab.path("store/bootstrap.mender"), "wb") as file:
            file.write(lab.artifact)
        assert run(lab, "show-artifact").stdout == "new\n"
        assert not os.path.exists(lab.path("store/bootstrap.mender"))


def test_a_bootstrap_artifact_that_cannot_be_deleted_is_told_of(lab: Lab) -> None:
    Store(lab.store_dir, Log(level="error")).write({"artifact-name": None})
    os.makedirs(lab.path("store/bootstrap.mender"))
    result = run(lab, "show-artifact")
    assert result.returncode == 1
    told = "\n".join(lab.journal.lines())
    assert f"cannot delete {lab.path('store/bootstrap.mender')}: Is a directory" in told
    assert "Could not fulfill request: cannot install the bootstrap artifact" in result.stderr
    assert run(lab, "show-artifact").stdout == "unknown\n"
