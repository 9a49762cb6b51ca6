# SPDX-License-Identifier: Apache-2.0
"""Devices from the first request to the last: preauthorized, replayed, with new keys, let go."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from tests.server.conftest import ThreadServer
from tests.server.fake_device import DEPLOYMENTS, KEY_KINDS, FakeDevice, make_key, sign

from update_tools.server.client import Management

DEVICES = "/api/management/v2/devauth/devices"
AUTH = "/api/devices/v1/authentication/auth_requests"
INVENTORY = "/api/devices/v1/inventory/device/attributes"


@pytest.fixture
def strict(strict_server: ThreadServer) -> httpx.Client:
    """The management side of a server where people decide."""
    return strict_server.http()


def pem(device: FakeDevice) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return str(device.key.public_key().public_bytes(serialization.Encoding.PEM, form).decode())


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_preauthorized(strict_server: ThreadServer, strict: httpx.Client, kind: str) -> None:
    device = FakeDevice(strict_server.url, "52:54:00:00:00:01", kind)
    body = {"identity_data": json.loads(device.identity), "pubkey": pem(device)}
    made = strict.post(DEVICES, json=body)
    assert made.status_code == 201
    assert strict.get(made.headers["location"]).json()["status"] == "preauthorized"
    assert strict.post(DEVICES, json=body).status_code == 409
    other = FakeDevice(strict_server.url, "52:54:00:00:00:01", kind)
    assert other.authorize().status_code == 401, "the identity alone is worth nothing"
    assert device.authorize().status_code == 200
    assert device.poll().status_code == 204
    assert strict.get(made.headers["location"]).json()["status"] == "accepted"
    assert strict.get(f"{DEVICES}/count", params={"status": "accepted"}).json() == {"count": 1}


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({}, 422, "identity_data"),
        ({"identity_data": {}, "pubkey": "x"}, 422, "identity_data"),
        ({"identity_data": {"mac": 5}, "pubkey": "x"}, 422, "identity_data"),
        ({"identity_data": {"mac": "a"}, "pubkey": "x"}, 400, "PEM"),
    ],
    ids=str,
)
def test_preauthorizing_nonsense(
    strict: httpx.Client, body: dict[str, object], status: int, reason: str
) -> None:
    answer = strict.post(DEVICES, json=body)
    assert answer.status_code == status
    assert reason in answer.json()["error"]


def test_a_replayed_request_changes_nothing(strict_server: ThreadServer, strict: httpx.Client) -> None:
    """The protocol has no nonce, and devices send the same bytes each time; so a replay cannot be refused.

    It can do no harm but where a device's own request could: it makes no second device, decides nothing,
    takes the device's token from nobody, and is worth nothing once the key is rejected.
    """
    device = FakeDevice(strict_server.url, "52:54:00:00:00:01")
    body = device.auth_body()
    headers = {"X-MEN-Signature": sign(device.key, body)}

    def replay() -> httpx.Response:
        return httpx.post(strict_server.url + AUTH, content=body, headers=headers)

    assert [replay().status_code for _ in range(3)] == [401] * 3
    (known,) = strict.get(DEVICES).json()
    assert (known["status"], len(known["auth_sets"])) == ("pending", 1)
    strict_server.management().accept(known["id"])
    assert device.authorize().status_code == 200
    before = strict.get(DEVICES).json()[0]["auth_sets"]
    assert replay().status_code == 200
    assert strict.get(DEVICES).json()[0]["auth_sets"] == before
    assert device.poll().status_code == 204, "its token still works"
    place = f"{DEVICES}/{known['id']}/auth/{before[0]['id']}/status"
    assert strict.put(place, json={"status": "rejected"}).status_code == 204
    assert replay().status_code == 401
    assert strict.get(place).json() == {"status": "rejected"}
    altered = body.replace(b"00:01", b"00:02")
    assert httpx.post(strict_server.url + AUTH, content=altered, headers=headers).status_code == 401
    assert len(strict.get(DEVICES).json()) == 1


def test_a_signature_of_one_key_with_another(strict_server: ThreadServer, strict: httpx.Client) -> None:
    device = FakeDevice(strict_server.url, "52:54:00:00:00:01", "rsa")
    for kind in KEY_KINDS:
        assert device.authorize(signature=sign(make_key(kind), device.auth_body())).status_code == 401
    assert strict.get(DEVICES).json() == []


def test_let_go(device: FakeDevice, management: Management, operator: httpx.Client, release_2: Path) -> None:
    deployment_id = management.deploy("lets go", "release-2")
    device.poll()
    device.report(deployment_id, "downloading")
    (known,) = management.known_devices()
    assert operator.delete(f"{DEVICES}/{known['id']}").status_code == 204
    assert operator.delete(f"{DEVICES}/{known['id']}").status_code == 404
    assert management.known_devices() == []
    assert device.poll().status_code == 401
    assert device.report(deployment_id, "success").status_code == 401
    over = management.deployment(deployment_id)
    assert over["status"] == "finished"
    assert over["statistics"]["status"]["decommissioned"] == 1
    words = [event["word"] for event in management.events(deployment_id, known["id"])]
    assert words[-1] == "decommissioned", "what it did stays to be read"

    assert device.authorize().status_code == 200, "it may come back; here everybody is accepted"
    (again,) = management.known_devices()
    assert again["id"] == known["id"]
    assert device.report(deployment_id, "success").status_code == 409


def test_keys_are_forgotten_one_by_one(strict_server: ThreadServer, strict: httpx.Client) -> None:
    first = FakeDevice(strict_server.url, "52:54:00:00:00:01")
    first.authorize()
    device_id = strict.get(DEVICES).json()[0]["id"]
    strict_server.management().accept(device_id)
    first.authorize()
    second = FakeDevice(strict_server.url, "52:54:00:00:00:01")
    assert second.authorize().status_code == 401
    keys = {key["status"]: key["id"] for key in strict.get(f"{DEVICES}/{device_id}").json()["auth_sets"]}
    assert set(keys) == {"accepted", "pending"}
    assert strict.delete(f"{DEVICES}/{device_id}/auth/no-such-key").status_code == 404
    assert strict.delete(f"{DEVICES}/x/auth/{keys['accepted']}").status_code == 404
    assert strict.delete(f"{DEVICES}/{device_id}/auth/{keys['accepted']}").status_code == 204
    assert first.poll().status_code == 401
    assert strict.get(f"{DEVICES}/{device_id}").json()["status"] == "pending"
    assert strict.delete(f"{DEVICES}/{device_id}/auth/{keys['pending']}").status_code == 204
    assert strict.get(DEVICES).json() == []


def test_listing(strict_server: ThreadServer, strict: httpx.Client) -> None:
    for number in range(5):
        FakeDevice(strict_server.url, f"52:54:00:00:00:{number:02x}").authorize()
    answer = strict.get(DEVICES, params={"per_page": 2, "page": 3, "status": "pending"})
    assert (len(answer.json()), answer.headers["x-total-count"]) == (1, "5")
    wanted = answer.json()[0]["id"]
    assert [entry["id"] for entry in strict.get(DEVICES, params={"id": wanted}).json()] == [wanted]
    assert strict.get(DEVICES, params={"status": "nonsense"}).status_code == 422
    assert strict.get(DEVICES, params={"status": "rejected"}).json() == []


def test_inventory_can_be_added_to(device: FakeDevice, management: Management) -> None:
    device_id = management.known_devices()[0]["id"]
    assert device.inventory([{"name": "a", "value": "1"}, {"name": "b", "value": "2"}]).status_code == 200
    change = [{"name": "b", "value": ["3", "4"]}, {"name": "c", "value": "5", "description": "new"}]
    assert device.send("PATCH", INVENTORY, json=change).status_code == 200
    assert management.inventory(device_id) == {"a": "1", "b": ["3", "4"], "c": "5"}
    assert device.inventory([{"name": "d", "value": "6"}]).status_code == 200
    assert management.inventory(device_id) == {"d": "6"}
    assert device.send("PATCH", INVENTORY, json={}).status_code == 400


def test_no_device_uses_anothers_token(
    device: FakeDevice, server: ThreadServer, management: Management, release_2: Path
) -> None:
    """A token says which device it is for; who has it is that device and no other."""
    other = FakeDevice(server.url, "52:54:00:00:00:02")
    other.authorize()
    first_id, second_id = (entry["id"] for entry in management.known_devices())
    deployment_id = management.deploy("for the first", "release-2", devices=[first_id])
    device.poll()
    stolen, own = device.token, other.token
    assert other.report(deployment_id, "success").status_code == 404
    other.token = stolen
    other.inventory([{"name": "whose", "value": "of the second"}])
    assert "whose" not in management.inventory(second_id)
    head, _, signature = stolen.split(".")
    other.token = f"{head}.{own.split('.')[1]}.{signature}"
    assert other.send("PUT", f"{DEPLOYMENTS}/{deployment_id}/status", json={}).status_code == 401
