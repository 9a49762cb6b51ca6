# SPDX-License-Identifier: Apache-2.0
"""Pause, continue, roll back and abort, as a device sees them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.server.fake_device import FakeDevice

from update_agent.errors import ServerError
from update_tools.server import rollout
from update_tools.server.client import Management

PAUSE_REBOOT = {"states": {"ArtifactReboot_Enter": {"action": "pause"}}}


def start(device: FakeDevice, management: Management, control_map: dict[str, Any] | None) -> str:
    deployment_id = management.deploy("paused", "release-2", map=control_map)
    assert device.poll().json()["id"] == deployment_id
    device.report(deployment_id, "downloading")
    return deployment_id


def states(device: FakeDevice, deployment_id: str) -> Any:
    answer = device.control_map(deployment_id)
    assert answer.status_code == 200
    return answer.json()["update_control_map"]["states"]


def test_pause_and_continue(device: FakeDevice, management: Management, release_2: Path) -> None:
    deployment_id = management.deploy("paused", "release-2", map=PAUSE_REBOOT)
    handed = device.poll().json()["update_control_map"]
    assert handed == {"id": deployment_id, **PAUSE_REBOOT}
    device.report(deployment_id, "downloading")
    with pytest.raises(ServerError, match="no device waits"):
        management.continue_(deployment_id)
    device.report(deployment_id, "pause_before_rebooting")
    assert management.deployment(deployment_id)["paused_at"] == ["ArtifactReboot_Enter"]
    assert device.control_map(deployment_id).json()["update_control_map"] == handed

    assert management.continue_(deployment_id) == ["ArtifactReboot_Enter"]
    assert states(device, deployment_id) == {"ArtifactReboot_Enter": {"action": "continue"}}
    assert management.devices(deployment_id)[0]["status"] == "pause_before_rebooting", (
        "until it says otherwise"
    )
    device.report(deployment_id, "rebooting")
    device.report(deployment_id, "success")
    assert device.control_map(deployment_id).status_code == 404


@pytest.mark.parametrize("point", rollout.POINTS, ids=lambda point: point.phase)
def test_each_point(
    device: FakeDevice, management: Management, release_2: Path, point: rollout.Point
) -> None:
    everywhere = {"priority": 3, "states": {each.name: {"action": "pause"} for each in rollout.POINTS}}
    deployment_id = start(device, management, everywhere)
    device.report(deployment_id, point.status)
    assert management.deployment(deployment_id)["statistics"]["status"][point.status] == 1
    management.continue_(deployment_id)
    answer = device.control_map(deployment_id).json()["update_control_map"]
    assert answer["priority"] == 3
    for each in rollout.POINTS:
        assert answer["states"][each.name] == {"action": "continue" if each == point else "pause"}


def test_roll_back(device: FakeDevice, management: Management, release_2: Path) -> None:
    deployment_id = start(device, management, PAUSE_REBOOT)
    device.report(deployment_id, "pause_before_rebooting")
    management.roll_back(deployment_id)
    assert states(device, deployment_id) == {"ArtifactReboot_Enter": {"action": "fail"}}
    device.report(deployment_id, "failure", "control map: fail at ArtifactReboot_Enter")
    assert management.deployment(deployment_id)["statistics"]["status"]["failure"] == 1


def test_a_pause_can_be_added_while_it_runs(
    device: FakeDevice, management: Management, release_2: Path
) -> None:
    deployment_id = start(device, management, rollout.OPEN_MAP)
    management.pause(deployment_id, "ArtifactCommit_Enter")
    assert states(device, deployment_id)["ArtifactCommit_Enter"] == {"action": "pause"}


def test_patch_replaces_the_map(device: FakeDevice, management: Management, release_2: Path) -> None:
    deployment_id = start(device, management, PAUSE_REBOOT)
    new = {"priority": 1, "states": {"ArtifactCommit_Enter": {"action": "force_continue"}}}
    management.set_map(deployment_id, new)
    assert device.control_map(deployment_id).json() == {"update_control_map": {"id": deployment_id, **new}}
    assert management.deployment(deployment_id)["update_control_map"] == {"id": deployment_id, **new}


def test_two_people_decide_at_once(device: FakeDevice, management: Management, release_2: Path) -> None:
    everywhere = {"states": {point.name: {"action": "pause"} for point in rollout.POINTS}}
    deployment_id = start(device, management, everywhere)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda point: management.continue_(deployment_id, point.name), rollout.POINTS))
    assert states(device, deployment_id) == {point.name: {"action": "continue"} for point in rollout.POINTS}


def test_abort_while_paused(device: FakeDevice, management: Management, release_2: Path) -> None:
    deployment_id = start(device, management, PAUSE_REBOOT)
    device.report(deployment_id, "pause_before_rebooting", "waiting")
    management.abort(deployment_id)
    assert device.control_map(deployment_id).status_code == 404
    for status in ("rebooting", "success", "failure"):
        answer = device.report(deployment_id, status)
        assert answer.status_code == 409
        assert "abort" in answer.json()["error"]
    assert device.upload_log(deployment_id, "rolled back").status_code == 204, "its log is still welcome"
    assert device.poll().status_code == 204
    assert management.devices(deployment_id)[0]["status"] == "aborted"
    with pytest.raises(ServerError, match="422"):
        management.abort(deployment_id)
    with pytest.raises(ServerError, match="409"):
        management.continue_(deployment_id)


def test_no_map_no_refresh(device: FakeDevice, management: Management, release_2: Path) -> None:
    deployment_id = start(device, management, None)
    assert device.control_map(deployment_id).status_code == 404


def test_a_client_that_cannot_pause_gets_nothing(
    device: FakeDevice, management: Management, release_2: Path
) -> None:
    deployment_id = management.deploy("paused", "release-2", map=PAUSE_REBOOT)
    assert device.poll(understands_maps=False).status_code == 204
    assert device.poll_v1().status_code == 204
    part = management.devices(deployment_id)[0]
    assert part["status"] == "pending"
    assert "does not understand pauses" in part["substate"]
    management.continue_(deployment_id, "ArtifactReboot_Enter")
    answer = device.poll(understands_maps=False).json()
    assert answer["id"] == deployment_id
    assert "update_control_map" not in answer


@pytest.mark.parametrize(
    ("control_map", "named"),
    [
        ({"states": {"ArtifactInstall_Leave": {"action": "pause"}}}, "ArtifactInstall_Leave"),
        ({"states": {"ArtifactReboot_Enter": {"action": "stop"}}}, "action"),
        ({"states": {"ArtifactReboot_Enter": {"on_map_expire": "pause"}}}, "on_map_expire"),
        ({"states": {"ArtifactReboot_Enter": {"wait": 3}}}, "wait"),
        ({"priority": 11}, "priority"),
        ({"priority": "1"}, "priority"),
        ({"states": []}, "states"),
        ({"state": {}}, "state"),
        ({"id": "00000000-0000-0000-0000-000000000000"}, "id"),
    ],
    ids=str,
)
def test_a_broken_map_is_refused_by_name(
    device: FakeDevice, management: Management, release_2: Path, control_map: dict[str, Any], named: str
) -> None:
    with pytest.raises(ServerError, match=rf"422 .*{named}"):
        management.deploy("broken", "release-2", map=control_map)
    deployment_id = management.deploy("good", "release-2", map=PAUSE_REBOOT)
    with pytest.raises(ServerError, match=rf"422 .*{named}"):
        management.set_map(deployment_id, control_map)
    assert management.deployment(deployment_id)["update_control_map"]["states"] == PAUSE_REBOOT["states"]
