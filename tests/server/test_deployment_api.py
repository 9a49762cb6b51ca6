# SPDX-License-Identifier: Apache-2.0
"""The management API of deployments over HTTP: the reference's requests, ours, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.server.conftest import ThreadServer
from tests.server.fake_device import FakeDevice

from update_agent.errors import ServerError
from update_tools.server.client import Management

V1 = "/api/management/v1/deployments/deployments"
V2 = "/api/management/v2/deployments/deployments"
PAUSE = {"states": {"ArtifactReboot_Enter": {"action": "pause"}}}
GATE = {"gates": {"ArtifactReboot_Enter": {"quorum": "all"}}, "hold": {"failed_count": 1}}


@pytest.fixture
def second(server: ThreadServer) -> FakeDevice:
    made = FakeDevice(server.url, "52:54:00:00:00:02")
    assert made.authorize().status_code == 200
    return made


def ids(management: Management) -> list[str]:
    return [entry["id"] for entry in management.known_devices()]


def test_a_gate_from_creation_to_success(
    management: Management, device: FakeDevice, second: FakeDevice, release_2: Path
) -> None:
    deployment_id = management.deploy("gated", "release-2", rules=GATE, retries=1)
    made = management.deployment(deployment_id)
    assert (made["retries"], made["rules"]["gates"]) == (1, GATE["gates"])
    assert made["update_control_map"]["states"] == PAUSE["states"]
    for each in (device, second):
        assert each.poll().json()["id"] == deployment_id
        each.report(deployment_id, "downloading")
    device.report(deployment_id, "pause_before_rebooting")
    gate = management.overview(deployment_id)["bar"][2]["gate"]
    assert (gate["waiting"], gate["missing"]) == (1, "1 of 2 devices are here")
    second.report(deployment_id, "pause_before_rebooting")
    for each in (device, second):
        states = each.control_map(deployment_id).json()["update_control_map"]["states"]
        assert states == {"ArtifactReboot_Enter": {"action": "continue"}}
        each.report(deployment_id, "rebooting")
        each.report(deployment_id, "success")
    assert management.deployment(deployment_id)["status"] == "finished"
    lines = management.timeline(deployment_id, ids(management)[0])["timeline"]
    assert [line["word"] for line in lines if line["kind"] == "state"][-2:] == ["rebooting", "success"]


def test_one_of_two_devices(
    management: Management, device: FakeDevice, second: FakeDevice, release_2: Path
) -> None:
    deployment_id = management.deploy("one of two", "release-2", map=PAUSE)
    for each in (device, second):
        each.poll()
        each.report(deployment_id, "pause_before_rebooting")
    first_id, second_id = ids(management)
    assert management.continue_(deployment_id, devices=[first_id]) == ["ArtifactReboot_Enter"]
    actions = [
        each.control_map(deployment_id).json()["update_control_map"]["states"]["ArtifactReboot_Enter"]
        for each in (device, second)
    ]
    assert actions == [{"action": "continue"}, {"action": "pause"}]
    management.abort(deployment_id, devices=[second_id])
    assert second.control_map(deployment_id).status_code == 404
    shown = {entry["id"]: entry for entry in management.devices(deployment_id)}
    assert shown[first_id]["pause"] == {
        "point": "ArtifactReboot_Enter",
        "action": "continue",
        "is_taken": True,
    }
    assert shown[second_id]["status"] == "aborted"


def test_hold_and_resume(management: Management, device: FakeDevice, release_2: Path) -> None:
    deployment_id = management.deploy("held", "release-2")
    management.hold(deployment_id, "wait for the weekend")
    assert device.poll().status_code == 204
    assert management.deployment(deployment_id)["held"]["why"] == "wait for the weekend"
    with pytest.raises(ServerError, match="409"):
        management.hold(deployment_id)
    management.resume(deployment_id)
    assert device.poll().json()["id"] == deployment_id
    with pytest.raises(ServerError, match="409"):
        management.resume(deployment_id)


def test_groups_and_filters(
    management: Management, device: FakeDevice, second: FakeDevice, operator: httpx.Client, release_2: Path
) -> None:
    first_id, second_id = ids(management)
    management.set_group(first_id, "bench")
    second.inventory([{"name": "kernel", "value": "6.6"}])
    groups = "/api/management/v1/inventory/groups"
    assert operator.get(groups).json() == ["bench"]
    deployment_id = management.deploy("group", "release-2", group="bench")
    assert operator.get(f"{V1}/{deployment_id}/device_list").json() == [first_id]
    assert management.deployment(deployment_id)["groups"] == ["bench"]
    terms = [{"scope": "inventory", "attribute": "kernel", "type": "$eq", "value": "6.6"}]
    deployment_id = management.deploy("filter", "release-2", terms=terms)
    assert operator.get(f"{V1}/{deployment_id}/device_list").json() == [second_id]
    assert management.deployment(deployment_id)["filter"]["terms"] == terms

    moved = operator.patch(f"{groups}/field/devices", json=[first_id, second_id, "nobody"]).json()
    assert moved == {"updated_count": 2, "matched_count": 2}
    assert sorted(operator.get(f"{groups}/field/devices").json()) == sorted([first_id, second_id])
    path = f"/api/management/v1/inventory/devices/{first_id}/group"
    assert operator.delete(f"{path}/bench").status_code == 404
    assert operator.delete(f"{path}/field").status_code == 204
    assert operator.put(path, json={"group": "no spaces"}).status_code == 422


def test_lists_and_histories(
    management: Management, device: FakeDevice, operator: httpx.Client, release_2: Path
) -> None:
    made = [management.deploy(f"number {number}", "release-2") for number in range(3)]
    device_id = ids(management)[0]
    answer = operator.get(V1, params={"per_page": 2})
    assert [entry["id"] for entry in answer.json()] == [made[2], made[1]]
    assert answer.headers["x-total-count"] == "3"
    for query, expected in (
        ({"search": "BER 1"}, [made[1]]),
        ({"status": "finished"}, []),
        ({"sort": "asc"}, made),
        ({"created_before": 1}, []),
        ({"created_after": 1, "per_page": 1}, [made[2]]),
    ):
        assert [entry["id"] for entry in operator.get(V1, params=query).json()] == expected, query
    assert [
        entry["id"] for entry in operator.get(V2, params={"id": made[:1], "name": "numb*"}).json()
    ] == made[:1]
    stats = operator.post(f"{V1}/statistics/list", json={"deployment_ids": made}).json()
    assert [entry["stats"]["pending"] for entry in stats] == [1, 1, 1]
    history = operator.get(f"{V1}/devices/{device_id}").json()
    assert [entry["deployment"]["id"] for entry in history] == made[::-1]
    assert operator.delete(f"{V1}/devices/{device_id}").status_code == 204
    assert [entry["status"] for entry in operator.get(V1).json()] == ["finished"] * 3


def test_phases_over_the_api(
    management: Management, device: FakeDevice, second: FakeDevice, release_2: Path
) -> None:
    phases = [{"batch_size": 50}, {"start_ts": "2100-01-01T00:00:00Z"}]
    deployment_id = management.deploy("phases", "release-2", phases=phases)
    assert sum(each.poll().status_code == 200 for each in (device, second)) == 1
    shown = management.deployment(deployment_id)["phases"]
    assert [(phase["id"], phase["device_count"]) for phase in shown] == [("1", 1), ("2", 1)]
    later = management.deploy("later", "release-2", start_at="2100-01-01T00:00:00Z")
    assert management.overview(later)["status"] == "scheduled"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"rules": {"gates": {"Install": {}}}}, "Install"),
        ({"rules": {"hold": {"failed_percent": 500}}}, "failed_percent"),
        ({"phases": [{"batch_size": 5}, {"batch_size": 5, "start_ts": "never"}]}, "start_ts"),
        ({"phases": [{"batch_size": 100}, {}]}, "phase 2"),
        ({"start_at": "tomorrow"}, "start_at"),
        ({"retries": -1}, "retries"),
        ({"retries": 101}, "retries"),
        ({"autogenerate_delta": True}, "delta"),
        ({"group_name": "bench"}, "group_name"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(
    management: Management, device: FakeDevice, release_2: Path, more: dict[str, Any], named: str
) -> None:
    with pytest.raises(ServerError, match=rf"422 .*{named}"):
        management.deploy("broken", "release-2", **more)


def test_broken_decisions(
    management: Management, device: FakeDevice, operator: httpx.Client, release_2: Path
) -> None:
    deployment_id = management.deploy("decide", "release-2", map=PAUSE)
    for body, status in (
        ({"action": "explode"}, 422),
        ({"action": "continue", "devices": ["nobody"]}, 404),
        ({"action": "continue", "devices": []}, 409),
        ({"action": "continue", "point": "Download_Enter"}, 422),
        ({"action": "continue"}, 409),
        ({"action": "abort", "device": "x"}, 422),
    ):
        answer = operator.post(f"{V1}/{deployment_id}/control", json=body)
        assert answer.status_code == status, (body, answer.text)
        assert answer.json()["error"]
    assert operator.post(f"{V1}/nothing/control", json={"action": "abort"}).status_code == 404
    for path in ("overview", "devices/list", "device_list", "statistics", "devices/x/timeline"):
        assert operator.get(f"{V1}/nothing/{path}").status_code == 404, path


def test_live_progress_is_asked_for_and_shown(
    management: Management, device: FakeDevice, release_2: Path
) -> None:
    deployment_id = management.deploy("live", "release-2")
    assert device.poll().json()["live_reports"]["interval_s"] > 0
    device.report(deployment_id, "downloading")
    device.report(deployment_id, "downloading", '{"live":{"bytes":[10,40],"script":"Download_Enter_00"}}')
    shown = management.devices(deployment_id)[0]
    assert shown["progress"] == {"done_bytes": 10, "size_bytes": 40, "script": "Download_Enter_00"}
    assert shown["substate"] == ""
