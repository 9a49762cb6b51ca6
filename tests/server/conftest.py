# SPDX-License-Identifier: Apache-2.0
"""A real server process on loopback and artifacts made by mender-artifact."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from argon2 import PasswordHasher
from fastapi.routing import APIRoute
from tests.server.fake_device import FakeDevice

from update_tools.server import accounts
from update_tools.server.app import create_app
from update_tools.server.client import Management
from update_tools.server.database import Database
from update_tools.server.settings import House, Settings
from update_tools.server.who import Who
from update_tools.server.wire import TimedProtocol


class ThreadServer:
    """A real server over real sockets in a thread of the test's process: 0.1 s instead of 2 s to start."""

    def __init__(self, settings: Settings) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.data = settings.data
        self._app = app = create_app(settings)
        self.house: House = app.state.house
        self.house.passwords = accounts.Passwords(PasswordHasher(1, 1024, 1))  # quick instead of strong
        with self.house.db.write(Who(name="tests", scope="admin")) as session:
            self.token = accounts.add_token(session, "tests", "admin", replace=True)[1]
        config = uvicorn.Config(
            app, http=TimedProtocol, log_config=None, access_log=False, proxy_headers=False
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})
        self._thread.start()

    def management(self) -> Management:
        return Management(self.url, self.token)

    @property
    def auth(self) -> dict[str, str]:
        """The header that lets a test's own request in."""
        return {"Authorization": f"Bearer {self.token}"}

    def routes(self) -> list[APIRoute]:
        """All routes of the application, also those of included routers."""
        found: list[APIRoute] = []
        waiting = list(self._app.routes)
        while waiting:
            route = waiting.pop()
            if isinstance(route, APIRoute):
                found.append(route)
            waiting += getattr(getattr(route, "original_router", route), "routes", None) or ()
        return found

    def http(self) -> httpx.Client:
        """For a test's own requests to the management API."""
        return httpx.Client(base_url=self.url, headers=self.auth, timeout=30)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with today's tables, to copy: migrations have their own test."""
    path = tmp_path_factory.mktemp("empty") / "server.db"
    db = Database.at(path)
    db.upgrade()
    db.close()
    return path


@pytest.fixture
def serve(tmp_path: Path, empty_database: Path) -> Iterator[Callable[..., ThreadServer]]:
    """Starts servers over this test's data folder with the given settings."""
    running: list[ThreadServer] = []
    (tmp_path / "data").mkdir(mode=0o700)
    shutil.copy(empty_database, tmp_path / "data" / "server.db")

    def start(**settings: Any) -> ThreadServer:
        running.append(ThreadServer(Settings(data=tmp_path / "data", **settings)))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture
def server(serve: Callable[..., ThreadServer]) -> ThreadServer:
    """A server of this test's own that accepts every device."""
    return serve(auto_accept=True)


@pytest.fixture
def strict_server(serve: Callable[..., ThreadServer]) -> ThreadServer:
    """A server where a person accepts devices."""
    return serve()


@pytest.fixture
def management(server: ThreadServer) -> Management:
    return server.management()


@pytest.fixture
def operator(server: ThreadServer) -> Iterator[httpx.Client]:
    """Somebody with an admin token."""
    with server.http() as client:
        yield client


@pytest.fixture
def device(server: ThreadServer) -> FakeDevice:
    """An accepted device."""
    made = FakeDevice(server.url, "52:54:00:00:00:01")
    assert made.authorize().status_code == 200
    return made


@pytest.fixture(scope="session")
def write_artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes artifacts with the field's own tool."""
    tool = shutil.which("mender-artifact")
    if tool is None:
        if os.environ.get("CI") == "true":
            pytest.fail("mender-artifact is missing (Debian package mender-artifact)")
        pytest.skip("mender-artifact is missing (Debian package mender-artifact)")
    folder = tmp_path_factory.mktemp("artifacts")
    script = folder / "ArtifactInstall_Enter_10_check-disk"
    script.write_text("#!/bin/sh\nexit 0\n")
    made: dict[tuple[str, str, str], Path] = {}

    def write(name: str, device_type: str = "virt64", compression: str = "gzip") -> Path:
        path = made.get((name, device_type, compression))
        if path is None:
            image = folder / f"{name}.ext4"
            image.write_bytes(name.encode() * 40_000)
            path = folder / f"{name}-{device_type}-{compression}.mender"
            argv = [tool, "--compression", compression, "write", "rootfs-image", "--no-progress"]
            argv += ["-t", device_type, "-n", name, "-f", str(image), "-s", str(script), "-o", str(path)]
            subprocess.run(argv, check=True, capture_output=True)
            made[name, device_type, compression] = path
        return path

    return write


@pytest.fixture
def release_2(management: Management, write_artifact: Callable[..., Path]) -> Path:
    """Release 2, uploaded."""
    path = write_artifact("release-2")
    management.upload(path)
    return path
