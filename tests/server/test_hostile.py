# SPDX-License-Identifier: Apache-2.0
"""Requests that mean harm, or are merely broken: each is refused with a status and a reason."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.server.conftest import ThreadServer
from tests.server.fake_device import DEPLOYMENTS, DEPLOYMENTS_V2, FakeDevice, sign

from update_tools.server import bodies
from update_tools.server.client import Management
from update_tools.server.tokens import Signer

AUTH = "/api/devices/v1/authentication/auth_requests"
INVENTORY = "/api/devices/v1/inventory/device/attributes"
MANAGE = "/api/management/v1/deployments"
USERS = "/api/management/v1/useradm/users"
TOKENS = "/api/management/v1/useradm/settings/tokens"

# what it is: (method, path, body, status, a word of the reason). {id}: a running deployment of the device.
DEVICE_TABLE: dict[str, tuple[str, str, Any, int, str]] = {
    "poll: not JSON": ("POST", f"{DEPLOYMENTS_V2}/next", b"{", 400, "not JSON"),
    "poll: not UTF-8": ("POST", f"{DEPLOYMENTS_V2}/next", b'"\xff"', 400, "UTF-8"),
    "poll: endless nesting": ("POST", f"{DEPLOYMENTS_V2}/next", b"[" * 60_000, 400, ""),
    "poll: NaN": ("POST", f"{DEPLOYMENTS_V2}/next", b"NaN", 400, "not JSON"),
    "poll: a list": ("POST", f"{DEPLOYMENTS_V2}/next", [], 400, "device_provides"),
    "poll: provides not strings": (
        "POST",
        f"{DEPLOYMENTS_V2}/next",
        {"device_provides": {"artifact_name": 1, "device_type": "x"}},
        400,
        "device_provides",
    ),
    "poll: no device type": (
        "POST",
        f"{DEPLOYMENTS_V2}/next",
        {"device_provides": {"artifact_name": "a"}},
        400,
        "device_type",
    ),
    "poll: too long": ("POST", f"{DEPLOYMENTS_V2}/next", b" " * 70_000, 413, "bytes"),
    "poll v1: nothing said": ("GET", f"{DEPLOYMENTS}/next", None, 400, "artifact_name"),
    "status: unknown word": ("PUT", f"{DEPLOYMENTS}/{{id}}/status", {"status": "fine"}, 400, "fine"),
    "status: the server's word": (
        "PUT",
        f"{DEPLOYMENTS}/{{id}}/status",
        {"status": "aborted"},
        400,
        "aborted",
    ),
    "status: a list": ("PUT", f"{DEPLOYMENTS}/{{id}}/status", {"status": ["success"]}, 400, "not a status"),
    "status: substate not text": (
        "PUT",
        f"{DEPLOYMENTS}/{{id}}/status",
        {"status": "failure", "substate": 5},
        400,
        "substate",
    ),
    "status: too long": (
        "PUT",
        f"{DEPLOYMENTS}/{{id}}/status",
        {"status": "failure", "substate": "x" * 70_000},
        413,
        "bytes",
    ),
    "status: unknown deployment": (
        "PUT",
        f"{DEPLOYMENTS}/00000000-0000-0000-0000-000000000000/status",
        {"status": "success"},
        404,
        "no such deployment",
    ),
    "status: traversal": (
        "PUT",
        f"{DEPLOYMENTS}/..%2f..%2fserver.key/status",
        {"status": "success"},
        404,
        "",
    ),
    "log: too long": ("PUT", f"{DEPLOYMENTS}/{{id}}/log", b" " * (3 << 20), 413, "bytes"),
    "log: no messages": ("PUT", f"{DEPLOYMENTS}/{{id}}/log", {}, 400, "messages"),
    "log: message without text": ("PUT", f"{DEPLOYMENTS}/{{id}}/log", {"messages": [{}]}, 400, "message"),
    "log: unknown deployment": ("PUT", f"{DEPLOYMENTS}/x/log", {"messages": []}, 404, "no such deployment"),
    "map: unknown deployment": ("GET", f"{DEPLOYMENTS_V2}/x/update_control_map", None, 404, "no such"),
    "inventory: an object": ("PUT", INVENTORY, {}, 400, "list"),
    "inventory: no name": ("PUT", INVENTORY, [{"value": 1}], 400, "name"),
    "inventory: nested value": ("PUT", INVENTORY, [{"name": "a", "value": {"b": 1}}], 400, "'a'"),
    "inventory: too long": ("PUT", INVENTORY, b" " * (2 << 20), 413, "bytes"),
    "inventory: wrong method": ("DELETE", INVENTORY, None, 405, "Method"),
}

MANAGEMENT_TABLE: dict[str, tuple[str, str, Any, int, str]] = {
    "create: not JSON": ("POST", f"{MANAGE}/deployments", b"{", 400, ""),
    "create: no name": ("POST", f"{MANAGE}/deployments", {"artifact_name": "release-2"}, 422, "name"),
    "create: unknown field": (
        "POST",
        f"{MANAGE}/deployments",
        {"name": "a", "artifact_name": "release-2", "all_devices": True, "retires": 3},
        422,
        "retires",
    ),
    "create: no release": (
        "POST",
        f"{MANAGE}/deployments",
        {"name": "a", "artifact_name": "../../x", "all_devices": True},
        422,
        "no release",
    ),
    "create: unknown device": (
        "POST",
        f"{MANAGE}/deployments",
        {"name": "a", "artifact_name": "release-2", "devices": ["../x"]},
        422,
        "../x",
    ),
    "create: no devices": (
        "POST",
        f"{MANAGE}/deployments",
        {"name": "a", "artifact_name": "release-2"},
        422,
        "no devices",
    ),
    "create: equal to an active one": (
        "POST",
        f"{MANAGE}/deployments",
        {"name": "running", "artifact_name": "release-2", "all_devices": True},
        409,
        "equal",
    ),
    "create: endless nesting": ("POST", f"{MANAGE}/deployments", b"[" * 100_000, 400, ""),
    "get: NUL in the path": ("GET", f"{MANAGE}/deployments/a%00b", None, 400, "NUL"),
    "get: NUL in the query": ("GET", f"{MANAGE}/artifacts?name=%00", None, 400, "NUL"),
    "get: traversal": ("GET", f"{MANAGE}/artifacts/..%2f..%2fserver.key", None, 404, ""),
    "download: traversal": ("GET", "/api/artifacts/..%2fserver.key/download", None, 404, ""),
    "download: no signature": ("GET", "/api/artifacts/x/download", None, 403, "not signed"),
    "delete: traversal": ("DELETE", f"{MANAGE}/artifacts/..%2fserver.db", None, 404, ""),
    "upload: JSON": ("POST", f"{MANAGE}/artifacts", {}, 415, "multipart"),
    "user: traversal": ("POST", USERS, {"name": "../x", "password": "x" * 10}, 422, "letters"),
    "user: markup": ("POST", USERS, {"name": "<b>", "password": "x" * 10}, 422, "letters"),
    "user: endless password": ("POST", USERS, {"name": "x", "password": "x" * 5000}, 422, "1024"),
    "token: scope": ("POST", TOKENS, {"name": "x", "scope": "root"}, 422, "scope"),
    "group: traversal": ("PATCH", "/api/management/v1/inventory/groups/..%2fx/devices", [], 404, ""),
    "get: unknown": ("GET", f"{MANAGE}/deployments/x", None, 404, "no such deployment"),
    "get: page zero": ("GET", f"{MANAGE}/deployments?page=0", None, 422, "page"),
    "patch: no map": ("PATCH", f"{MANAGE}/deployments/{{id}}", {}, 422, "update_control_map"),
    "patch: not a map": (
        "PATCH",
        f"{MANAGE}/deployments/{{id}}",
        {"update_control_map": 3},
        422,
        "update_control_map",
    ),
    "abort: another word": (
        "PUT",
        f"{MANAGE}/deployments/{{id}}/status",
        {"status": "success"},
        422,
        "status",
    ),
    "control: unknown point": (
        "POST",
        f"{MANAGE}/deployments/{{id}}/control",
        {"action": "pause", "point": "Download_Enter"},
        422,
        "Download_Enter",
    ),
    "log: none yet": ("GET", f"{MANAGE}/deployments/{{id}}/devices/{{device}}/log", None, 404, "log"),
    "delete: artifact in use": ("DELETE", f"{MANAGE}/artifacts/{{artifact}}", None, 409, "active"),
}


@pytest.fixture
def names(
    device: FakeDevice, management: Management, release_2: Path, server: ThreadServer
) -> dict[str, str]:
    """The ids that a table row may name."""
    deployment_id = management.deploy("running", "release-2")
    device.poll()
    return {
        "id": deployment_id,
        "device": management.known_devices()[0]["id"],
        "artifact": server.http().get(f"{MANAGE}/artifacts").json()[0]["id"],
    }


def encode(body: Any) -> bytes | None:
    return body if body is None or isinstance(body, bytes) else json.dumps(body).encode()


def check(answer: httpx.Response, status: int, reason: str, what: str) -> None:
    assert answer.status_code == status, (what, answer.text)
    error = answer.json()
    assert set(error) == {"error", "request_id"}, what
    assert reason in error["error"], what
    assert error["request_id"] == answer.headers["x-request-id"]


def test_device_table(device: FakeDevice, management: Management, names: dict[str, str]) -> None:
    for what, (method, path, body, status, reason) in DEVICE_TABLE.items():
        answer = device.send(method, path.format(**names), content=encode(body))
        check(answer, status, reason, what)
    assert management.devices(names["id"])[0]["status"] == "pending", "nothing of it counted"


def test_management_table(operator: httpx.Client, management: Management, names: dict[str, str]) -> None:
    for what, (method, path, body, status, reason) in MANAGEMENT_TABLE.items():
        headers = {"Content-Type": "application/json"}
        answer = operator.request(method, path.format(**names), content=encode(body), headers=headers)
        check(answer, status, reason, what)
    assert management.deployment(names["id"])["status"] == "pending"


def test_no_token_no_service(device: FakeDevice, names: dict[str, str], server: ThreadServer) -> None:
    foreign = Signer(b"x" * 32).issue({"sub": names["device"], "key": "k", "exp": 1e12})
    ours = Signer.load(server.data / "server.key")
    expired = ours.issue({"sub": names["device"], "key": "k", "exp": 1.0})
    head, body, signature = device.token.split(".")
    unsigned = "eyJhbGciOiJub25lIn0." + body + "."
    for token in (
        "",
        "x",
        "a.b.c",
        "\xe4.\xf6.\xfc",
        foreign,
        expired,
        f"{head}.{body}.{signature[:-2]}",
        unsigned,
    ):
        for method, path in (
            ("POST", f"{DEPLOYMENTS_V2}/next"),
            ("GET", f"{DEPLOYMENTS}/next?artifact_name=a&device_type=b"),
            ("GET", f"{DEPLOYMENTS_V2}/{names['id']}/update_control_map"),
            ("PUT", f"{DEPLOYMENTS}/{names['id']}/status"),
            ("PUT", f"{DEPLOYMENTS}/{names['id']}/log"),
            ("PUT", INVENTORY),
        ):
            headers = {"Authorization": f"Bearer {token}".encode("latin-1")} if token else {}
            check(device.http.request(method, path, headers=headers), 401, "", f"{method} {path} {token}")


def test_another_device_sees_nothing(device: FakeDevice, names: dict[str, str], server: ThreadServer) -> None:
    other = FakeDevice(server.url, "52:54:00:00:00:02")
    other.authorize()
    assert other.poll().status_code == 204
    check(other.report(names["id"], "success"), 404, "for this device", "status")
    check(other.control_map(names["id"]), 404, "for this device", "map")
    check(other.upload_log(names["id"], "forged"), 404, "for this device", "log")


def test_a_report_for_what_was_never_handed_out(
    device: FakeDevice, management: Management, release_2: Path
) -> None:
    deployment_id = management.deploy("not yet", "release-2")
    check(device.report(deployment_id, "success"), 404, "never handed out", "status")
    assert management.devices(deployment_id)[0]["status"] == "pending"


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ({"id_data": "no json"}, 400, "not JSON"),
        ({"id_data": "[]"}, 400, "object"),
        ({"id_data": "{}"}, 400, "object"),
        ({"id_data": '{"mac":{"a":1}}'}, 400, "mac"),
        ({"id_data": 5}, 400, "strings"),
        ({"pubkey": "-----BEGIN PUBLIC KEY-----\nrubbish\n-----END PUBLIC KEY-----\n"}, 400, "PEM"),
        ({"pubkey": ""}, 400, "PEM"),
        ({"tier": 1}, 400, "tier"),
    ],
    ids=str,
)
def test_authorization_requests(device: FakeDevice, fields: dict[str, Any], status: int, reason: str) -> None:
    body = json.dumps({**json.loads(device.auth_body()), **fields}).encode()
    headers = {"X-MEN-Signature": sign(device.key, body)}
    check(device.http.post(AUTH, content=body, headers=headers), status, reason, str(fields))


def test_weak_and_strange_keys(server: ThreadServer) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa

    for key, reason in (
        (rsa.generate_private_key(65537, 1024), "2048"),
        (ec.generate_private_key(ec.SECP384R1()), "P-256"),
        (ed448.Ed448PrivateKey.generate(), "RSA, ECDSA"),
    ):
        device = FakeDevice(server.url, "52:54:00:00:00:01")
        device.key = key
        check(device.authorize(signature="AAAA"), 400, reason, reason)


def test_an_oversized_body_is_refused_before_it_is_sent(device: FakeDevice, server: ThreadServer) -> None:
    """The announced length is enough to refuse; the sender need not deliver."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(
            f"PUT {INVENTORY} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {device.token}\r\n"
            "Content-Length: 99999999999\r\n\r\n[".encode()
        )
        assert line.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_the_same_for_the_management_side(server: ThreadServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(
            f"POST {MANAGE}/deployments HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {server.token}\r\n"
            "Content-Type: application/json\r\nContent-Length: 99999999\r\n\r\n[".encode()
        )
        assert line.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_sender_that_falls_asleep(
    device: FakeDevice, server: ThreadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "STALL_S", 0.2)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        head = f"PUT {INVENTORY} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {device.token}\r\n"
        line.sendall(f"{head}Content-Length: 100\r\n\r\n[".encode())
        assert line.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_endless_chunks(device: FakeDevice) -> None:
    def chunks() -> Any:
        while True:
            yield b" " * 65536

    try:
        answer = device.send("PUT", INVENTORY, content=chunks())
    except httpx.TransportError:
        pass  # closed while we still sent
    else:
        assert answer.status_code == 413
    assert device.poll().status_code == 204, "the server is well"


def test_endless_chunks_to_the_management_side(operator: httpx.Client) -> None:
    def chunks() -> Any:
        for _ in range(400):
            yield b" " * 65536

    try:
        answer = operator.post(f"{MANAGE}/deployments", content=chunks())
    except httpx.TransportError:
        pass  # closed while we still sent
    else:
        assert answer.status_code in (400, 413)
    assert operator.get(f"{MANAGE}/deployments").status_code == 200, "the server is well"


@pytest.mark.parametrize(
    "host", ["evil.example", "10.0.2.2:8080", "127.0.0.1.evil.example", "localhost@evil", ""]
)
def test_without_a_login_pages_answer_to_this_machines_names_only(
    serve: Callable[..., ThreadServer], host: str
) -> None:
    server = serve(needs_login=False, is_open=False)
    assert httpx.get(server.url + "/devices").status_code == 200
    for path in ("/", "/devices", "/api/management/v2/devauth/devices", "/api/openapi.json"):
        assert httpx.get(server.url + path, headers={"Host": host}).status_code in (400, 403)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://127.0.0.1:1"},
    ],
    ids=str,
)
def test_a_foreign_page_changes_nothing(
    operator: httpx.Client, names: dict[str, str], management: Management, headers: dict[str, str]
) -> None:
    body = {"status": "aborted"}
    answer = operator.put(f"{MANAGE}/deployments/{names['id']}/status", json=body, headers=headers)
    check(answer, 403, "another site", str(headers))
    assert management.deployment(names["id"])["status"] == "pending"


def test_static_files_stay_in_their_folder(server: ThreadServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd"):
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = line.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 404 "), path
