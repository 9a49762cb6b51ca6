# SPDX-License-Identifier: Apache-2.0
"""The API as it describes itself, asked by Schemathesis: no crash, and every answer as described."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.server.conftest import ThreadServer
from tests.server.fake_device import FakeDevice

from update_tools.server.client import Management

SECONDS = 40  # where the machine is busy; else the examples end it
LOGIN = "/api/management/v1/useradm/auth/login"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def ask(server: ThreadServer, token: str, paths: str, folder: Path, schema: Path | None = None) -> None:
    """Let Schemathesis loose on the paths."""
    program = Path(sys.executable).with_name("schemathesis")
    where = [f"{server.url}/api/openapi.json"] if schema is None else [str(schema), "--url", server.url]
    argv = [str(program), "run", *where, "--include-path-regex", paths]
    argv += ["-H", f"Authorization: Bearer {token}", "--checks", CHECKS, "--phases", "coverage,fuzzing"]
    argv += [
        "--max-examples",
        "10",
        "--max-time",
        str(SECONDS),
        "--seed",
        "1",
        "--max-failures",
        "5",
        "--warnings",
        "off",
    ]
    argv += ["--suppress-health-check", "all", "--no-color"]
    answer = subprocess.run(argv, capture_output=True, text=True, cwd=folder, timeout=240, check=False)
    assert answer.returncode == 0, answer.stdout[-8000:] + answer.stderr[-2000:]
    assert "passed" in answer.stdout


def test_the_management_side(
    server: ThreadServer, management: Management, device: FakeDevice, release_2: Path, tmp_path: Path
) -> None:
    management.deploy("something to see", "release-2")
    ask(server, server.token, "^/api/management/", tmp_path)
    assert device.poll().status_code in (200, 204), "the server is well"


def test_the_device_side(
    server: ThreadServer, management: Management, device: FakeDevice, release_2: Path, tmp_path: Path
) -> None:
    management.deploy("something to get", "release-2")
    schema = tmp_path / "openapi.json"  # a device's token opens the device side only
    schema.write_bytes(server.http().get("/api/openapi.json").content)
    ask(server, device.token, "^/api/(devices|artifacts)/", tmp_path, schema)
    assert management.known_devices()


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Our description, without a server."""
    from update_tools.server.app import create_app
    from update_tools.server.settings import Settings

    app = create_app(Settings(data=tmp_path_factory.mktemp("described")))
    schema = app.openapi()
    app.state.house.close()
    return schema


# The reference's operations that this server has, with their path parameters as `{}`.
REFERENCE = (
    "GET /api/management/v1/deployments/deployments",
    "POST /api/management/v1/deployments/deployments",
    "POST /api/management/v1/deployments/deployments/statistics/list",
    "POST /api/management/v1/deployments/deployments/group/{}",
    "GET /api/management/v1/deployments/deployments/{}",
    "PATCH /api/management/v1/deployments/deployments/{}",
    "PUT /api/management/v1/deployments/deployments/{}/status",
    "GET /api/management/v1/deployments/deployments/{}/statistics",
    "GET /api/management/v1/deployments/deployments/{}/devices",
    "GET /api/management/v1/deployments/deployments/{}/devices/list",
    "GET /api/management/v1/deployments/deployments/{}/device_list",
    "GET /api/management/v1/deployments/deployments/{}/devices/{}/log",
    "DELETE /api/management/v1/deployments/deployments/devices/{}",
    "GET /api/management/v1/deployments/deployments/devices/{}",
    "GET /api/management/v1/deployments/deployments/releases",
    "GET /api/management/v1/deployments/deployments/releases/list",
    "GET /api/management/v1/deployments/artifacts",
    "POST /api/management/v1/deployments/artifacts",
    "GET /api/management/v1/deployments/artifacts/list",
    "GET /api/management/v1/deployments/artifacts/{}",
    "PUT /api/management/v1/deployments/artifacts/{}",
    "DELETE /api/management/v1/deployments/artifacts/{}",
    "GET /api/management/v1/deployments/artifacts/{}/download",
    "GET /api/management/v1/deployments/limits/storage",
    "GET /api/management/v2/deployments/deployments",
    "POST /api/management/v2/deployments/deployments",
    "GET /api/management/v2/deployments/deployments/releases",
    "GET /api/management/v2/deployments/deployments/releases/{}",
    "POST /api/devices/v1/authentication/auth_requests",
    "GET /api/devices/v1/deployments/device/deployments/next",
    "POST /api/devices/v2/deployments/device/deployments/next",
    "GET /api/devices/v2/deployments/device/deployments/{}/update_control_map",
    "PUT /api/devices/v1/deployments/device/deployments/{}/status",
    "PUT /api/devices/v1/deployments/device/deployments/{}/log",
    "PUT /api/devices/v1/inventory/device/attributes",
    "PATCH /api/devices/v1/inventory/device/attributes",
)


def test_the_references_operations_are_there(described: dict[str, Any]) -> None:
    ours = {
        f"{method.upper()} {re.sub(r'{[^}]+}', '{}', path)}"
        for path, methods in described["paths"].items()
        for method in methods
    }
    assert set(REFERENCE) - ours == set()


def test_everything_says_who_may(described: dict[str, Any]) -> None:
    open_paths = ("/health", "/api/artifacts/", "/api/devices/v1/authentication/", LOGIN)
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            if not path.startswith(open_paths):
                assert operation["security"], (method, path)
