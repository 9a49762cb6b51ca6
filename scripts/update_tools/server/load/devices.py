# SPDX-License-Identifier: Apache-2.0
"""Simulated devices: keys, and the requests of their life with the real bytes (spec device-api.md)."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from update_tools.server.load.wire import request

AUTH = "/api/devices/v1/authentication/auth_requests"
V1 = "/api/devices/v1/deployments/device/deployments"
V2 = "/api/devices/v2/deployments/device/deployments"
OLD, NEW = "release-1", "release-2"
DEVICE_TYPE = "virt64"
LOG_LINES = 200


@dataclass
class SimulatedDevice:
    """Device number `number`; its key follows from the number."""

    number: int
    token: str = ""
    installed: str = OLD

    def identity(self) -> str:
        """Its identity, as it sends it."""
        mac = ":".join(f"{self.number >> shift & 255:02x}" for shift in (40, 32, 24, 16, 8, 0))
        return f'{{"mac":"{mac}"}}'

    def public_key(self) -> str:
        """Its public key as PEM."""
        pem = (
            self._key()
            .public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        return pem.decode()

    def authorization(self) -> bytes:
        """The signed authorization request."""
        fields = {"id_data": self.identity(), "pubkey": self.public_key(), "tier": "standard"}
        body = json.dumps(fields, separators=(",", ":")).encode()
        signature = base64.b64encode(self._key().sign(body)).decode()
        return request("POST", AUTH, body, signature=signature)

    def poll(self, *, is_last: bool = False) -> bytes:
        """The deployment poll, as our agent sends it."""
        provides = {
            "artifact_name": self.installed,
            "rootfs-image.version": self.installed,
            "rootfs-image.checksum": hashlib.sha256(self.installed.encode()).hexdigest(),
            "device_type": DEVICE_TYPE,
        }
        return self._send(
            "POST", f"{V2}/next", {"device_provides": provides, "update_control_map": True}, is_last
        )

    def report(self, deployment_id: str, status: str, substate: str = "") -> bytes:
        """A status report."""
        body = {"status": status, "substate": substate} if substate else {"status": status}
        return self._send("PUT", f"{V1}/{deployment_id}/status", body)

    def refresh(self, deployment_id: str) -> bytes:
        """A control map refresh."""
        return self._send("GET", f"{V2}/{deployment_id}/update_control_map", None)

    def log(self, deployment_id: str) -> bytes:
        """A deployment log of usual length."""
        messages = [
            {
                "timestamp": f"2026-01-01T00:{number // 60:02d}:{number % 60:02d}.000Z",
                "level": "info",
                "message": f"State script ArtifactInstall_Enter_{number % 100:02d} exited with 0 after 0.1 s",
            }
            for number in range(LOG_LINES)
        ]
        return self._send("PUT", f"{V1}/{deployment_id}/log", {"messages": messages})

    def inventory(self) -> bytes:
        """An inventory of usual size."""
        attributes = [{"name": f"attribute_{number}", "value": f"value {number}"} for number in range(20)]
        return self._send("PUT", "/api/devices/v1/inventory/device/attributes", attributes)

    def _key(self) -> Ed25519PrivateKey:
        seed = hashlib.sha256(f"device {self.number}".encode()).digest()
        return Ed25519PrivateKey.from_private_bytes(seed)

    def _send(self, method: str, path: str, body: Any, is_last: bool = False) -> bytes:
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        return request(method, path, data, token=self.token, is_last=is_last)
