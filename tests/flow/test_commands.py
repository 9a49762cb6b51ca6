# SPDX-License-Identifier: Apache-2.0
"""Commands of a person beside what the scenarios play: real processes on a throw-away device."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from update_agent.log import Log
from update_agent.store import Store
from update_agent.update import Update
from update_tools.conform.lab import Lab
from update_tools.conform.peer import Peer

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


@pytest.mark.parametrize("saved", ['{"Version":3}', '{"Version":2,"PayloadTypes":[]}', "[]", "nonsense"])
def test_a_saved_update_that_nobody_understands_is_in_nobody_s_way(lab: Lab, saved: str) -> None:
    """It may be of a newer agent, before the system was rolled back."""
    Store(lab.store_dir, Log(level="error")).write({"standalone-state": saved})
    for verb in ("commit", "rollback", "resume"):
        refused = run(lab, verb)
        assert refused.returncode == 1
        assert "Could not fulfill request: the saved update" in refused.stderr
        assert "install an artifact anew" in refused.stderr
    assert run(lab, "install", lab.path("artifact.mender")).returncode == 0
    assert "Cannot go on with the saved update" in told(lab)
    assert run(lab, "commit").stdout == "Committed.\n"


def deployed(lab: Lab) -> list[str]:
    """What happens on the device when the server has a deployment for it."""
    before = len(lab.journal.trace())
    peer = Peer(GIVEN, lab.journal, lab.artifact)
    lab.configure(peer.url)
    daemon = subprocess.Popen(lab.command("daemon"), env=lab.environment(), cwd=lab.root)
    try:
        peer.offer()
        deadline = time.monotonic() + 60
        while not lab.journal.has_ended() and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        daemon.terminate()
        daemon.wait(30)
        peer.close()
    return lab.journal.trace()[before:]


def test_a_deployment_takes_the_place_of_an_update_that_waits(lab: Lab) -> None:
    """There is one file tree: a commit that came later would not be of what was installed."""
    assert run(lab, "install", lab.path("artifact.mender")).returncode == 0
    assert deployed(lab)[-1] == "status:success"
    assert "new, installed with a command and never committed, can no longer be" in told(lab)
    assert run(lab, "commit").stdout == "No update in progress.\n"
    assert run(lab, "show-artifact").stdout == "new\n"


def test_a_deployment_that_comes_to_nothing_leaves_an_update_that_waits(lab: Lab) -> None:
    assert run(lab, "install", lab.path("artifact.mender")).returncode == 0
    lab.artifact = lab.artifact[:1000]
    assert "status:failure" in deployed(lab)
    assert run(lab, "commit").stdout == "Committed.\n"


@pytest.mark.parametrize(("pending", "is_kept"), [("1", True), ("0", False)])
def test_a_root_file_system_on_trial_is_decided_about_first(lab: Lab, pending: str, is_kept: bool) -> None:
    for name, body in (("fw_printenv", f"echo upgrade_available={pending}"), ("fw_setenv", "exit 1")):
        with open(lab.path(f"bin/{name}"), "w", encoding="utf-8") as file:
            file.write(f"#!/bin/sh\n{body}\n")
        os.chmod(lab.path(f"bin/{name}"), 0o755)
    saved = {"ArtifactName": "r2", "PayloadTypes": ["rootfs-image"], "InState": "Before_ArtifactCommit_Enter"}
    waits = json.dumps({"Version": 2, **saved})
    Store(lab.store_dir, Log(level="error")).write({"standalone-state": waits})
    trace = deployed(lab)
    assert (lab.saved("standalone-state") == waits) is is_kept
    if is_kept:
        assert trace == [
            *("status:downloading", "script:Download_Enter_00", "script:Download_Error_00"),
            *("status:failure", "logs"),
        ]
        assert "Download: r2, installed with a command, is on trial (first make it permanent" in told(lab)
    else:
        assert trace[-1] == "status:success"


def told(lab: Lab) -> str:
    return "\n".join(lab.journal.lines())


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
    assert f"cannot delete {lab.path('store/bootstrap.mender')}: Is a directory" in told(lab)
    assert "Could not fulfill request: cannot install the bootstrap artifact" in result.stderr
    assert run(lab, "show-artifact").stdout == "unknown\n"
