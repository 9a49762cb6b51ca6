# SPDX-License-Identifier: Apache-2.0
"""The agent's own device side (child processes, openssl keys, resumable download) against the real server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from update_agent.config import Config
from update_agent.log import Log
from update_agent.remote import ABORTED, GONE, NOTHING, OK, Remote
from update_agent.transfer import Download
from update_tools.server.run import Server, start

PAUSE_REBOOT = {"states": {"ArtifactReboot_Enter": {"action": "pause"}}}
PROVIDES = {"artifact_name": "release-1", "rootfs-image.version": "release-1"}


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Server]:
    """A server in a process of its own: the agent forks, which a process with threads should not."""
    with start(tmp_path / "data") as running:
        yield running


@pytest.fixture
def config(tmp_path: Path, process: Server) -> Config:
    made = Config()
    made.server_url = process.url
    made.conf_dir, made.data_dir, made.datastore = (
        str(tmp_path / name) for name in ("conf", "share", "state")
    )
    device_type = tmp_path / "device_type"
    device_type.write_text("device_type=virt64\n")
    made.device_type_file_set = str(device_type)
    for program, line in (
        (made.identity_script(), "mac=52:54:00:00:00:01"),
        (f"{made.inventory_dir()}/mender-inventory-x", "kernel=6.1"),
    ):
        path = Path(program)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho {line}\n")
        path.chmod(0o755)
    (tmp_path / "state").mkdir()
    return made


def test_whole_life(
    config: Config, process: Server, tmp_path: Path, write_artifact: Callable[..., Path]
) -> None:
    management = process.management()
    artifact = write_artifact("release-2")
    management.upload(artifact)
    log = Log("debug")
    remote = Remote(config, log)

    refused = remote.poll(PROVIDES)
    assert "pending" in refused.reason
    device_id = management.known_devices("pending")[0]["id"]
    management.accept(device_id)
    assert remote.poll(PROVIDES).kind == NOTHING
    assert remote.inventory(PROVIDES).kind == OK
    assert management.inventory(device_id)["kernel"] == "6.1"

    deployment_id = management.deploy("paused", "release-2", map=PAUSE_REBOOT)
    deployment = remote.poll(PROVIDES).value
    assert isinstance(deployment, dict)
    assert deployment["id"] == deployment_id
    with Download(config, log).open(deployment["artifact"]["source"]["uri"]) as stream:
        assert b"".join(iter(lambda: stream.read(65536), b"")) == artifact.read_bytes()

    assert remote.report(deployment_id, "downloading").kind == OK
    assert remote.report(deployment_id, "pause_before_rebooting").kind == OK
    assert remote.control_map(deployment_id).value == {"id": deployment_id, **PAUSE_REBOOT}
    management.continue_(deployment_id)
    assert remote.control_map(deployment_id).value == {
        "id": deployment_id,
        "states": {"ArtifactReboot_Enter": {"action": "continue"}},
    }
    cause = "ArtifactCommit_Enter_10 printed \udcff and exited with 1"
    assert remote.report(deployment_id, "failure", cause).kind == OK
    lines = [{"timestamp": "2026-01-02T03:04:05Z", "level": "info", "message": "disk: 42 % \ud800"}]
    log_file = tmp_path / "deployments.log"
    log_file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "half a li")
    assert remote.upload_log(deployment_id, str(log_file)).kind == OK
    assert "INFO: disk: 42 %" in management.log(deployment_id, device_id)
    part = management.devices(deployment_id)[0]
    assert part["status"] == "failure"
    assert part["substate"] == "ArtifactCommit_Enter_10 printed ? and exited with 1"


def test_abort(config: Config, process: Server, write_artifact: Callable[..., Path]) -> None:
    management = process.management()
    management.upload(write_artifact("release-2"))
    remote = Remote(config, Log("debug"))
    remote.poll(PROVIDES)
    management.accept(management.known_devices()[0]["id"])
    remote.poll(PROVIDES)
    deployment_id = management.deploy("aborted", "release-2", map=PAUSE_REBOOT)
    assert remote.poll(PROVIDES).kind == OK
    management.abort(deployment_id)
    assert remote.control_map(deployment_id).kind == GONE
    aborted = remote.report(deployment_id, "rebooting")
    assert aborted.kind == ABORTED
    assert "aborted on the server" in aborted.reason
