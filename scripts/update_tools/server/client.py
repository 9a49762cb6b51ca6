# SPDX-License-Identifier: Apache-2.0
"""The management API for programs: what the demo and the board tests press instead of buttons."""

from __future__ import annotations

import http.client
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from update_agent.errors import ServerError
from update_tools.server.upload_client import Uploader

BASE = "/api/management/v1/deployments"
DEVICES = "/api/management/v2/devauth/devices"


class Management:
    """A server's management side. Every method raises ServerError with the server's own words."""

    def __init__(self, base_url: str, token: str = "", *, timeout_s: float = 120.0) -> None:
        self.base_url = base_url.rstrip("/")
        self.token = token
        self._timeout_s = timeout_s

    def upload(self, path: Path, *, description: str = "") -> str:
        """Upload an artifact and return its id; it goes on after a broken line (upload_client.py)."""
        return Uploader(self.base_url, self.token, timeout_s=self._timeout_s).upload(
            path, description=description
        )

    def deploy(
        self,
        name: str,
        artifact: str,
        devices: Sequence[str] | None = None,
        map: dict[str, Any] | None = None,  # noqa: A002  the field's word
        *,
        force: bool = False,
        group: str = "",
        terms: Sequence[Mapping[str, Any]] = (),
        **more: Any,
    ) -> str:
        """Create a deployment for these devices, a group, a filter, or all accepted devices; returns its id.

        `map` is a control map without id, for instance
        `{"states": {"ArtifactReboot_Enter": {"action": "pause"}}}`. `more`: retries, phases, start_at, rules,
        max_devices, as the API has them.
        """
        body: dict[str, Any] = {"name": name, "artifact_name": artifact, "force_installation": force, **more}
        if map is not None:
            body["update_control_map"] = map
        if group:
            return _last(self._json("POST", f"{BASE}/deployments/group/{quote(group, safe='')}", body)[1])
        if terms:
            body["filter"] = {"terms": list(terms)}
            return _last(self._json("POST", "/api/management/v2/deployments/deployments", body)[1])
        if devices is None:
            body["all_devices"] = True
        else:
            body["devices"] = list(devices)
        return _last(self._json("POST", f"{BASE}/deployments", body)[1])

    def continue_(
        self, deployment_id: str, point: str | None = None, devices: Sequence[str] | None = None
    ) -> list[str]:
        """Release a pause: at `point`, or wherever devices wait now; for all or some. Returns the points."""
        return self._control(deployment_id, "continue", point, devices)

    def roll_back(
        self, deployment_id: str, point: str | None = None, devices: Sequence[str] | None = None
    ) -> list[str]:
        """Let devices roll back at `point`, or wherever they wait now. Returns the points."""
        return self._control(deployment_id, "fail", point, devices)

    def pause(self, deployment_id: str, point: str, devices: Sequence[str] | None = None) -> None:
        """Add a pause to a running deployment."""
        self._control(deployment_id, "pause", point, devices)

    def set_map(self, deployment_id: str, map: dict[str, Any]) -> None:  # noqa: A002
        """Replace the whole control map (PATCH)."""
        self._json("PATCH", f"{BASE}/deployments/{deployment_id}", {"update_control_map": map})

    def hold(self, deployment_id: str, why: str = "") -> None:
        """Hand it out to nobody new."""
        self._json("PUT", f"{BASE}/deployments/{deployment_id}/hold", {"is_held": True, "why": why})

    def resume(self, deployment_id: str) -> None:
        """Go on after a hold, also one that a rule made."""
        self._json("PUT", f"{BASE}/deployments/{deployment_id}/hold", {"is_held": False})

    def abort(self, deployment_id: str, devices: Sequence[str] | None = None) -> None:
        """Abort, for all or some; devices are told at their next request."""
        if devices is not None:
            self._control(deployment_id, "abort", None, devices)
            return
        self._json("PUT", f"{BASE}/deployments/{deployment_id}/status", {"status": "aborted"})

    def deployment(self, deployment_id: str) -> dict[str, Any]:
        """Status, control map, counts, and the points where devices wait (`paused_at`)."""
        return dict(self._get(f"{BASE}/deployments/{deployment_id}"))

    def devices(self, deployment_id: str) -> list[dict[str, Any]]:
        """Each device of a deployment: `id`, `status`, `substate`, `changed`, `log`."""
        return list(self._get(f"{BASE}/deployments/{deployment_id}/devices/list?per_page=500"))

    def events(self, deployment_id: str, device_id: str) -> list[dict[str, str]]:
        """What happened to one device, oldest first: `at`, `source`, `word`, `text`."""
        return list(self._get(f"{BASE}/deployments/{deployment_id}/devices/{device_id}/events"))

    def overview(self, deployment_id: str) -> dict[str, Any]:
        """Counts by place, the pauses with what will open them, phases, what happened."""
        return dict(self._get(f"{BASE}/deployments/{deployment_id}/overview"))

    def timeline(self, deployment_id: str, device_id: str) -> dict[str, Any]:
        """One device: `timeline` with how long each state took, `scripts` with exit code and seconds."""
        return dict(self._get(f"{BASE}/deployments/{deployment_id}/devices/{device_id}/timeline"))

    def log(self, deployment_id: str, device_id: str) -> str:
        """A device's deployment log as text; empty if it has not uploaded one."""
        path = f"{BASE}/deployments/{deployment_id}/devices/{device_id}/log"
        status, _, body = self._request("GET", path, None, {})
        if status == 404:
            return ""
        self._check("GET", path, status, body)
        return body.decode()

    def known_devices(self, status: str = "") -> list[dict[str, Any]]:
        """All devices with identity, status and keys (`auth_sets`)."""
        found: list[dict[str, Any]] = []
        for page in itertools.count(1):
            more = self._get(f"{DEVICES}?status={quote(status)}&per_page=500&page={page}")
            found += more
            if len(more) < 500:
                break
        return found

    def accept(self, device_id: str) -> None:
        """Accept a device's newest key."""
        device = next(iter(self._get(f"{DEVICES}?id={quote(device_id)}")), None)
        if device is None:
            raise ServerError(f"accepting device {device_id}: the server does not know it")
        key_id = device["auth_sets"][-1]["id"]
        self._json("PUT", f"{DEVICES}/{device_id}/auth/{key_id}/status", {"status": "accepted"})

    def set_group(self, device_id: str, group: str) -> None:
        """Put a device into a group."""
        self._json("PUT", f"/api/management/v1/inventory/devices/{device_id}/group", {"group": group})

    def inventory(self, device_id: str) -> dict[str, Any]:
        """A device's attributes by name."""
        answer = self._get(f"/api/management/v1/inventory/devices/{device_id}")
        return {entry["name"]: entry["value"] for entry in answer["attributes"]}

    def wait(
        self,
        deployment_id: str,
        is_there: Callable[[dict[str, Any]], bool],
        *,
        timeout_s: float,
        interval_s: float = 0.5,
    ) -> dict[str, Any]:
        """The deployment once `is_there` says so; it is asked for at every interval. Raises ServerError."""
        deadline = time.monotonic() + timeout_s
        while True:
            present = self.deployment(deployment_id)
            if is_there(present):
                return present
            if time.monotonic() >= deadline:
                counts = {key: count for key, count in present["statistics"]["status"].items() if count}
                raise ServerError(f"deployment {present['name']!r} after {timeout_s:.0f} s: {counts}")
            time.sleep(interval_s)

    def _control(
        self, deployment_id: str, action: str, point: str | None, devices: Sequence[str] | None
    ) -> list[str]:
        body: dict[str, Any] = {"action": action, "point": point}
        if devices is not None:
            body["devices"] = list(devices)
        answer = self._json("POST", f"{BASE}/deployments/{deployment_id}/control", body)[2]
        return list(json.loads(answer)["points"])

    def _get(self, path: str) -> Any:
        return json.loads(self._send("GET", path, None, {})[2])

    def _json(self, method: str, path: str, body: Any) -> tuple[int, str, bytes]:
        return self._send(method, path, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _send(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None, headers: dict[str, str]
    ) -> tuple[int, str, bytes]:
        status, location, answer = self._request(method, path, body, headers)
        self._check(method, path, status, answer)
        return status, location, answer

    def _check(self, method: str, path: str, status: int, answer: bytes) -> None:
        if status >= 300:
            try:
                reason = json.loads(answer)["error"]
            except (ValueError, KeyError, TypeError):
                reason = answer[:200].decode(errors="replace")
            raise ServerError(f"{method} {path}: {status} {reason}")

    def _request(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None, headers: dict[str, str]
    ) -> tuple[int, str, bytes]:
        parts = urlsplit(self.base_url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.netloc, timeout=self._timeout_s)
        if self.token:
            headers = {**headers, "Authorization": f"Bearer {self.token}"}
        try:
            connection.request(method, parts.path + path, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, response.headers.get("Location", ""), response.read()
        except OSError as error:
            raise ServerError(
                f"{method} {self.base_url}{path}: {error}", hint="is the server running?"
            ) from error
        finally:
            connection.close()


def _last(location: str) -> str:
    return location.rpartition("/")[2]
