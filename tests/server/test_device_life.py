# SPDX-License-Identifier: Apache-2.0
"""A device's life on the server: accepted, updated, failed, decided about."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tests.server.conftest import ThreadServer
from tests.server.fake_device import KEY_KINDS, FakeDevice, make_key, sign

from update_agent.errors import ServerError
from update_tools.server.client import Management


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_whole_life(strict_server: ThreadServer, write_artifact: Callable[..., Path], kind: str) -> None:
    management = strict_server.management()
    device = FakeDevice(strict_server.url, "52:54:00:00:00:01", kind)

    waiting = device.authorize()
    assert waiting.status_code == 401
    assert "pending" in waiting.json()["error"]
    known = management.known_devices("pending")
    assert [entry["identity_data"] for entry in known] == [device.identity]
    management.accept(known[0]["id"])
    assert device.authorize().status_code == 200
    assert device.poll().status_code == 204

    management.upload(write_artifact("release-2"))
    deployment_id = management.deploy("to 2", "release-2")
    answer = device.poll()
    assert answer.status_code == 200
    body = answer.json()
    assert body["id"] == deployment_id
    assert body["artifact"]["artifact_name"] == "release-2"
    assert body["artifact"]["device_types_compatible"] == ["virt64"]
    assert "update_control_map" not in body
    artifact = device.http.get(body["artifact"]["source"]["uri"])
    assert artifact.content == write_artifact("release-2").read_bytes()

    for status in ("downloading", "installing", "rebooting", "installing"):
        assert device.report(deployment_id, status).status_code == 204
        assert management.devices(deployment_id)[0]["status"] == status
        assert management.deployment(deployment_id)["status"] == "inprogress"
    assert device.report(deployment_id, "success").status_code == 204
    device.provides["artifact_name"] = "release-2"
    assert device.poll().status_code == 204

    over = management.deployment(deployment_id)
    assert over["status"] == "finished"
    assert over["statistics"]["status"]["success"] == 1
    words = [event["word"] for event in management.events(deployment_id, known[0]["id"])]
    assert words == [
        "created",
        "handed out",
        "downloading",
        "installing",
        "rebooting",
        "installing",
        "success",
    ]
    assert management.known_devices()[0]["artifact_name"] == "release-2"


def test_the_same_deployment_until_it_is_over(
    device: FakeDevice, management: Management, release_2: Path
) -> None:
    deployment_id = management.deploy("again", "release-2")
    assert [device.poll().json()["id"] for _ in range(3)] == [deployment_id] * 3
    device.report(deployment_id, "downloading")
    assert device.poll().json()["id"] == deployment_id
    device.report(deployment_id, "failure")
    assert device.poll().status_code == 204


def test_failure_keeps_cause_and_log(device: FakeDevice, management: Management, release_2: Path) -> None:
    deployment_id = management.deploy("fails", "release-2")
    device.poll()
    device.report(deployment_id, "downloading")
    device.report(deployment_id, "installing")
    cause = "ArtifactCommit_Enter_20_sanity exited with 1"
    assert device.report(deployment_id, "failure", cause).status_code == 204
    assert device.report(deployment_id, "failure", cause).status_code == 204, "a repeated report is fine"
    assert device.upload_log(deployment_id, "sanity: disk is full", "rolling back").status_code == 204

    part = management.devices(deployment_id)[0]
    assert (part["status"], part["substate"], part["log"]) == ("failure", cause, True)
    assert "INFO: sanity: disk is full\n" in management.log(deployment_id, part["id"])


def test_failure_without_cause_keeps_the_last_substate(
    device: FakeDevice, management: Management, release_2: Path
) -> None:
    deployment_id = management.deploy("fails", "release-2")
    device.poll()
    device.report(deployment_id, "installing", "running ArtifactInstall_Enter_10")
    device.report(deployment_id, "failure")
    assert management.devices(deployment_id)[0]["substate"] == "running ArtifactInstall_Enter_10"


def test_success_is_only_what_the_device_reports(
    device: FakeDevice, management: Management, release_2: Path
) -> None:
    deployment_id = management.deploy("silent", "release-2")
    device.poll()
    device.report(deployment_id, "rebooting")
    assert management.devices(deployment_id)[0]["status"] == "rebooting"
    device.report(deployment_id, "failure", "fell back to slot A")
    answer = device.report(deployment_id, "success")
    assert answer.status_code == 409
    assert management.devices(deployment_id)[0]["status"] == "failure"


def test_already_installed(device: FakeDevice, management: Management, release_2: Path) -> None:
    device.provides["artifact_name"] = "release-2"
    deployment_id = management.deploy("again", "release-2")
    assert device.poll().status_code == 204
    assert management.devices(deployment_id)[0]["status"] == "already-installed"
    forced = management.deploy("forced", "release-2", force=True)
    assert device.poll().json()["id"] == forced


def test_no_artifact_for_the_device_type(device: FakeDevice, management: Management, release_2: Path) -> None:
    device.provides["device_type"] = "beaglebone"
    deployment_id = management.deploy("wrong board", "release-2")
    assert device.poll().status_code == 204
    assert management.devices(deployment_id)[0]["status"] == "noartifact"
    assert management.deployment(deployment_id)["status"] == "finished"


def test_artifact_of_the_device_type_is_chosen(
    device: FakeDevice, management: Management, write_artifact: Callable[..., Path]
) -> None:
    management.upload(write_artifact("release-2", "virt64"))
    management.upload(write_artifact("release-2", "beaglebone"))
    with pytest.raises(ServerError, match="409"):
        management.upload(write_artifact("release-2", "virt64", "none"))
    device.provides["device_type"] = "beaglebone"
    management.deploy("two boards", "release-2")
    assert device.poll().json()["artifact"]["device_types_compatible"] == ["beaglebone"]


def test_oldest_deployment_first(
    device: FakeDevice, management: Management, write_artifact: Callable[..., Path]
) -> None:
    for name in ("release-2", "release-3"):
        management.upload(write_artifact(name))
    first = management.deploy("one", "release-2")
    second = management.deploy("two", "release-3")
    assert device.poll().json()["id"] == first
    device.report(first, "success")
    assert device.poll().json()["id"] == second


def test_concurrent_polls_hand_out_once(device: FakeDevice, management: Management, release_2: Path) -> None:
    deployment_id = management.deploy("race", "release-2")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: device.poll(), range(24)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["id"] for answer in answers} == {deployment_id}
    device_id = management.devices(deployment_id)[0]["id"]
    words = [event["word"] for event in management.events(deployment_id, device_id)]
    assert words.count("handed out") == 1


def test_v1_poll(device: FakeDevice, management: Management, release_2: Path) -> None:
    assert device.poll_v1().status_code == 204
    deployment_id = management.deploy("old client", "release-2")
    assert device.poll_v1().json()["id"] == deployment_id


def test_inventory_replaces(device: FakeDevice, management: Management) -> None:
    device_id = management.known_devices()[0]["id"]
    device.inventory([{"name": "kernel", "value": "6.1"}, {"name": "ip", "value": ["10.0.2.15", "fe80::1"]}])
    assert management.inventory(device_id) == {"kernel": "6.1", "ip": ["10.0.2.15", "fe80::1"]}
    assert device.inventory([{"name": "kernel", "value": "6.6"}]).status_code == 200
    assert management.inventory(device_id) == {"kernel": "6.6"}


def test_rejecting_ends_the_token_at_once(
    device: FakeDevice, management: Management, operator: httpx.Client
) -> None:
    key = management.known_devices()[0]["auth_sets"][0]
    device_id = management.known_devices()[0]["id"]
    path = f"/api/management/v2/devauth/devices/{device_id}/auth/{key['id']}/status"
    assert operator.put(path, json={"status": "rejected"}).status_code == 204
    assert device.poll().status_code == 401
    assert device.authorize().status_code == 401, "a rejected key stays rejected, also with --auto-accept"


def test_a_new_key_needs_a_new_decision(strict_server: ThreadServer) -> None:
    management = strict_server.management()
    device = FakeDevice(strict_server.url, "52:54:00:00:00:01")
    device.authorize()
    management.accept(management.known_devices()[0]["id"])
    assert device.authorize().status_code == 200
    old_token = device.token

    device.key = make_key("ecdsa")
    assert device.authorize().status_code == 401
    known = management.known_devices()
    assert len(known) == 1, "the same identity is the same device"
    assert [key["status"] for key in known[0]["auth_sets"]] == ["accepted", "pending"]
    device.token = old_token
    assert device.poll().status_code == 204, "until then the old key counts"
    management.accept(known[0]["id"])
    assert device.poll().status_code == 401
    assert device.authorize().status_code == 200


def test_a_bench_board_that_is_reset_comes_back(device: FakeDevice, management: Management) -> None:
    first_key = device.key
    device.key = make_key("ed25519")
    assert device.authorize().status_code == 200
    device.key = first_key
    assert device.authorize().status_code == 200
    assert device.poll().status_code == 204
    keys = management.known_devices()[0]["auth_sets"]
    assert sorted(key["status"] for key in keys) == ["accepted", "pending"]


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_wrong_signature(server: ThreadServer, kind: str) -> None:
    device = FakeDevice(server.url, "52:54:00:00:00:01", kind)
    other = sign(make_key(kind), device.auth_body())
    tampered = sign(device.key, device.auth_body() + b" ")
    for signature in (other, tampered, "", "%%%", "AAAA"):
        answer = device.authorize(signature=signature)
        assert answer.status_code == 401, signature
        assert answer.json()["error"]
        assert answer.json()["request_id"]
    assert server.management().known_devices() == [], "a request that proves nothing leaves nothing"


def test_key_order_of_the_identity_makes_no_second_device(server: ThreadServer) -> None:
    device = FakeDevice(server.url, "52:54:00:00:00:01")
    device.identity = '{"mac":"1","serial":"2"}'
    device.authorize()
    device.identity = '{ "serial": "2", "mac": "1" }'
    device.authorize()
    assert len(server.management().known_devices()) == 1


def test_an_identity_with_half_a_surrogate(server: ThreadServer) -> None:
    device = FakeDevice(server.url, "52:54:00:00:00:01")
    device.identity = r'{"mac":"1","serial":"\udcff"}'
    assert device.authorize().status_code == 200
    assert "?" in server.management().known_devices()[0]["identity_data"]
