# SPDX-License-Identifier: Apache-2.0
"""A real server process on loopback and artifacts made by mender-artifact."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import uvicorn
from argon2 import PasswordHasher
from fastapi.routing import APIRoute
from tests.server.fake_device import FakeDevice

from update_agent.errors import UpdateError
from update_tools.server import accounts
from update_tools.server.app import create_app
from update_tools.server.client import Management
from update_tools.server.database import Database
from update_tools.server.postgres import Postgres
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

    def connections(self) -> int:
        """How many are open, of devices, browsers and tests."""
        return len(self._server.server_state.connections)

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


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgres]:
    """A real PostgreSQL, empty."""
    try:
        server = Postgres(is_durable=False)
    except UpdateError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture(scope="session")
def postgres(postgresql: Postgres) -> Callable[[], str]:
    """Addresses of fresh databases with today's tables, on it."""
    db = Database(postgresql.url("model"))
    db.upgrade()
    db.close()
    numbers = itertools.count()
    return lambda: postgresql.url(f"test{next(numbers)}", "model")


@pytest.fixture(scope="session")
def empty_postgres(postgresql: Postgres) -> Callable[[], str]:
    """Addresses of databases without tables."""
    numbers = itertools.count()
    return lambda: postgresql.url(f"empty{next(numbers)}")


class Bucket:
    """An S3 bucket on this machine: moto's server, a process of its own."""

    NAME = "artifacts"

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        self.client.create_bucket(Bucket=self.NAME)

    def settings(self, prefix: str) -> dict[str, str]:
        return {
            "artifact_store": f"s3://{self.NAME}/{prefix}",
            "s3_endpoint": self.endpoint,
            "s3_region": "us-east-1",
        }

    def keys(self, prefix: str) -> list[str]:
        """What is there, without the mark of its owner."""
        found = self.client.list_objects_v2(Bucket=self.NAME, Prefix=f"{prefix}/").get("Contents", [])
        names = [entry["Key"].removeprefix(f"{prefix}/") for entry in found]
        return [name for name in names if name != "store.id"]


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }.items():
            patch.setenv(name, value)
        with (tmp_path_factory.mktemp("s3") / "log").open("wb") as log:
            argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
            process = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, "moto's server ended"
                    assert time.monotonic() < deadline, "moto's server does not listen"
                    time.sleep(0.05)
            yield Bucket(f"http://127.0.0.1:{port}")
        finally:
            process.kill()
            process.wait()


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

    def write(
        name: str, device_type: str = "virt64", compression: str = "gzip", payload: bytes = b""
    ) -> Path:
        path = made.get((name, device_type, compression))
        if path is None:
            image = folder / f"{name}.ext4"
            image.write_bytes(payload or name.encode() * 40_000)
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
