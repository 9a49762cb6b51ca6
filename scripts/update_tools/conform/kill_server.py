# SPDX-License-Identifier: Apache-2.0
"""The server of the kill matrix. It checks each status against the device at the moment it arrives."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

from update_tools.conform.ab_device import DEVICE_TYPE, NEXT, AbDevice, Facts
from update_tools.conform.peer import DEVICE, TOKEN, Listener

if TYPE_CHECKING:
    Json = dict[str, Any]

UPDATE_ID = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
NEXT_ID = "11111111-2222-4333-8444-555555555555"
_FINAL = ("success", "failure")
_DEPLOYMENTS = f"{DEVICE}/v{{}}/deployments/device/deployments"


class KillServer:
    """Hands out one deployment until it is over, then another one."""

    def __init__(self, device: AbDevice, control_map: Json | None = None) -> None:
        self._device = device
        self._map = control_map
        self._lock = threading.Lock()
        self._may_answer_poll = threading.Event()
        self.finals: list[str] = []
        self.lies: list[str] = []
        self.pauses = 0  # reports of a pause
        self.end: Facts | None = None  # the device when it asked for the next deployment
        self.points = 0  # that had been passed then
        self.is_next_taken = False
        self._listener = Listener(self._answer)
        self.url = self._listener.url
        self.close = self._listener.close

    def offer(self) -> None:
        """Answer polls from now on; until then they are kept waiting."""
        self._may_answer_poll.set()

    def patch(self, control_map: Json) -> None:
        """Replace the deployment's control map, as an operator does."""
        with self._lock:
            self._map = control_map

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes] | None:
        update = _DEPLOYMENTS.format(1) + f"/{UPDATE_ID}"
        if path == _DEPLOYMENTS.format(2) + "/next":
            self._may_answer_poll.wait(60)
        with self._lock:
            match method, path:
                case "POST", _ if path.endswith("/auth_requests"):
                    return 200, TOKEN.encode()
                case _, _ if path.endswith("/device/attributes"):
                    return 200, b""
                case "POST", _ if path == _DEPLOYMENTS.format(2) + "/next":
                    return 200, json.dumps(self._next()).encode()
                case "GET", _ if path.endswith(".mender"):
                    return 200, self._device.artifacts[path.strip("/").removesuffix(".mender")]
                case "GET", _ if path == _DEPLOYMENTS.format(2) + f"/{UPDATE_ID}/update_control_map":
                    if self._map is None:
                        return 404, b"{}"
                    document = {"update_control_map": {"id": UPDATE_ID, **self._map}}
                    return 200, json.dumps(document).encode()
                case "PUT", _ if path == f"{update}/status":
                    self._report(json.loads(body))
                    return 204, b""
                case "PUT", _ if path.endswith("/log"):
                    return 204, b""
                case "PUT", _ if path == update.replace(UPDATE_ID, NEXT_ID) + "/status":
                    self.is_next_taken = True
                    return 204, b""
            return 404, b'{"error":"no such path"}'

    def _next(self) -> Json:
        name, deployment_id = ("new", UPDATE_ID)
        if self.finals:
            name, deployment_id = (NEXT, NEXT_ID)
            if self.end is None:
                self.end = Facts(self._device)
                with open(self._device.path("points"), "rb") as file:
                    self.points = file.read().count(b"\n")
                self._device.journal.note(NEXT)
        deployment: Json = {
            "id": deployment_id,
            "artifact": {
                "source": {"uri": f"{self.url}/{name}.mender", "expire": "2099-01-01T00:00:00Z"},
                "artifact_name": name,
                "device_types_compatible": [DEVICE_TYPE],
            },
        }
        if self._map is not None and not self.finals:
            deployment["update_control_map"] = {"id": UPDATE_ID, **self._map}
        return deployment

    def _report(self, document: Json) -> None:
        status = str(document["status"])
        self._device.journal.note(f"status:{status}")
        if self.end is not None:
            self.lies.append(f"{status} was reported after the next deployment was handed out")
        if status.startswith("pause_before_") or "paused at" in str(document.get("substate") or ""):
            self.pauses += 1
        if status in _FINAL:
            self.finals.append(status)
            facts = Facts(self._device)
            wanted = "new" if status == "success" else "old"
            name = facts.provides["artifact_name"]
            if facts.system != wanted or name != wanted or not facts.is_settled:
                self.lies.append(
                    f"{status} was reported when the {facts.system} system ran, artifact name {name}, "
                    f"{facts.wrong_environment() or 'environment as it must be'}"
                )
