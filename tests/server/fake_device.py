# SPDX-License-Identifier: Apache-2.0
"""A device's side of the conversation over real HTTP, with real keys; only the machine is missing."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

KEY_KINDS = ("rsa", "ecdsa", "ed25519")
DEPLOYMENTS = "/api/devices/v1/deployments/device/deployments"
DEPLOYMENTS_V2 = "/api/devices/v2/deployments/device/deployments"


def make_key(kind: str) -> Any:
    """A private key of one of the three kinds devices have."""
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    if kind == "ecdsa":
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate()


def sign(key: Any, body: bytes) -> str:
    """The X-MEN-Signature of a body."""
    if isinstance(key, rsa.RSAPrivateKey):
        raw = key.sign(body, padding.PKCS1v15(), hashes.SHA256())
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        raw = key.sign(body, ec.ECDSA(hashes.SHA256()))
    else:
        raw = key.sign(body)
    return base64.b64encode(raw).decode()


class FakeDevice:
    """One device: its identity, key, token and what it has installed."""

    def __init__(self, url: str, mac: str, kind: str = "ed25519") -> None:
        self.http = httpx.Client(base_url=url, timeout=30)
        self.identity = json.dumps({"mac": mac}, separators=(",", ":"))
        self.key = make_key(kind)
        self.token = ""
        self.provides = {"artifact_name": "release-1", "device_type": "virt64"}

    def auth_body(self) -> bytes:
        pem = self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return json.dumps({"id_data": self.identity, "pubkey": pem.decode(), "tier": "standard"}).encode()

    def authorize(self, *, signature: str | None = None) -> httpx.Response:
        body = self.auth_body()
        answer = self.http.post(
            "/api/devices/v1/authentication/auth_requests",
            content=body,
            headers={
                "X-MEN-Signature": sign(self.key, body) if signature is None else signature,
                "Authorization": "API_KEY",
                "Content-Type": "application/json",
            },
        )
        if answer.status_code == 200:
            self.token = answer.text
        return answer

    def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}", **more.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **more)

    def poll(self, *, understands_maps: bool = True) -> httpx.Response:
        body = {"device_provides": self.provides, "update_control_map": understands_maps}
        return self.send("POST", f"{DEPLOYMENTS_V2}/next", json=body)

    def poll_v1(self) -> httpx.Response:
        return self.send("GET", f"{DEPLOYMENTS}/next", params=self.provides)

    def report(self, deployment_id: str, status: str, substate: str | None = None) -> httpx.Response:
        body = {"status": status} | ({} if substate is None else {"substate": substate})
        return self.send("PUT", f"{DEPLOYMENTS}/{deployment_id}/status", json=body)

    def control_map(self, deployment_id: str) -> httpx.Response:
        return self.send("GET", f"{DEPLOYMENTS_V2}/{deployment_id}/update_control_map")

    def upload_log(self, deployment_id: str, *texts: str) -> httpx.Response:
        messages = [
            {"timestamp": f"2026-01-02T03:04:{index:02d}.5Z", "level": "info", "message": text}
            for index, text in enumerate(texts)
        ]
        return self.send("PUT", f"{DEPLOYMENTS}/{deployment_id}/log", json={"messages": messages})

    def inventory(self, attributes: Any) -> httpx.Response:
        return self.send("PUT", "/api/devices/v1/inventory/device/attributes", json=attributes)
