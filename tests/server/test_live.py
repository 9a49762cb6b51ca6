# SPDX-License-Identifier: Apache-2.0
"""The real daemon, real scripts and a slow module: what it tells this server while it works, and no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.server.conftest import ThreadServer

from update_agent.live import interval_s
from update_tools import artifact
from update_tools.server import live
from update_tools.server.client import Management

PAYLOAD_BYTES = 8 << 20
MODULE = """#!/bin/sh
case "$1" in
Download)
    while stream=$(cat stream-next); [ -n "$stream" ]; do
        python3 -c 'import sys, time
with open(sys.argv[1], "rb") as stream:
    while stream.read(1 << 20):
        time.sleep(0.4)' "$stream"
    done ;;
NeedsArtifactReboot) echo No ;;
SupportsRollback) echo Yes ;;
esac
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A device's folders: identity, module, two state scripts of its own."""
    folder = tmp_path / "device"
    programs = {
        "data/identity/mender-device-identity": "#!/bin/sh\necho mac=52:54:00:00:00:01\n",
        "data/modules/v3/slow": MODULE,
        "conf/scripts/Download_Enter_00_quick": "#!/bin/sh\nexit 0\n",
        "conf/scripts/Download_Enter_10_slow": "#!/bin/sh\nsleep 3\n",
    }
    for name, text in programs.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (folder / "conf/scripts/version").write_text("3\n")
    (folder / "store").mkdir()
    (folder / "store/device_type").write_text("device_type=virt64\n")
    return folder


@pytest.fixture
def daemon(root: Path) -> Iterator[Callable[[str], None]]:
    """Starts the daemon for a server."""
    running: list[subprocess.Popen[bytes]] = []

    def start(url: str) -> None:
        settings: dict[str, Any] = {
            "ServerURL": url,
            "UpdatePollIntervalSeconds": 1,
            "InventoryPollIntervalSeconds": 60,
            "RetryPollIntervalSeconds": 1,
            "DBus": {"Enabled": False},
        }
        (root / "conf/mender.conf").write_text(json.dumps(settings))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "MENDER_CONF_DIR": str(root / "conf"),
            "MENDER_DATA_DIR": str(root / "data"),
            "MENDER_DATASTORE_DIR": str(root / "store"),
            "UPDATE_CONTROL_SOCKET": str(root / "socket"),
        }
        log = (root / "daemon.log").open("wb")
        argv = [sys.executable, "-m", "update_agent", "--log-level", "debug", "daemon"]
        running.append(subprocess.Popen(argv, env=environment, stdout=log, stderr=log))

    yield start
    for process in running:
        process.terminate()
        process.wait(20)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    payload = tmp_path / "payload"
    payload.write_bytes(os.urandom(PAYLOAD_BYTES))
    path = tmp_path / "release.mender"
    contents = artifact.Contents("release-2", ["virt64"], "slow", [payload])
    artifact.write(contents, path, artifact.Packing("none"))
    return path


def update(management: Management, root: Path) -> tuple[str, list[dict[str, Any]]]:
    """Let the device take the release; returns the deployment and what was seen of the device meanwhile."""
    deployment_id = management.deploy("live", "release-2")
    seen: list[dict[str, Any]] = []
    deadline = time.monotonic() + 90
    while not seen or seen[-1]["status"] not in ("success", "failure"):
        assert time.monotonic() < deadline, (root / "daemon.log").read_text()[-4000:]
        shown = management.devices(deployment_id)[0]
        if not seen or shown != seen[-1]:
            seen.append(shown)
        time.sleep(0.05)
    assert seen[-1]["status"] == "success", (root / "daemon.log").read_text()[-4000:]
    return deployment_id, seen


def test_progress_and_scripts(
    server: ThreadServer,
    root: Path,
    release: Path,
    daemon: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "INTERVAL_S", 1)
    management = server.management()
    management.upload(release)
    daemon(server.url)
    while not management.known_devices():
        time.sleep(0.1)
    deployment_id, seen = update(management, root)
    progress = [entry["progress"] for entry in seen if "progress" in entry]
    assert "Download_Enter_10_slow" in [entry["script"] for entry in progress]
    done = [entry["done_bytes"] for entry in progress if entry["done_bytes"]]
    assert done == sorted(done)
    assert len(set(done)) >= 2
    assert all(entry["size_bytes"] > PAYLOAD_BYTES for entry in progress if entry["done_bytes"])
    assert all(entry["substate"] == "" for entry in seen), "it is not for people to read"
    timeline = management.timeline(deployment_id, seen[-1]["id"])
    scripts = [(run["name"], run["exit_code"]) for run in timeline["scripts"]]
    assert scripts == [("Download_Enter_00_quick", 0), ("Download_Enter_10_slow", 0)]
    assert timeline["scripts"][1]["seconds"] > 2.5


def test_a_server_that_does_not_ask_sees_nothing_of_it(
    server: ThreadServer,
    root: Path,
    release: Path,
    daemon: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "request", lambda: None)
    management = server.management()
    management.upload(release)
    daemon(server.url)
    while not management.known_devices():
        time.sleep(0.1)
    deployment_id, seen = update(management, root)
    assert not any("progress" in entry for entry in seen)
    events = management.events(deployment_id, seen[-1]["id"])
    reports = [(entry["word"], entry["text"]) for entry in events if entry["source"] == "device"]
    assert reports == [("downloading", ""), ("installing", ""), ("success", "")]


@pytest.mark.parametrize(
    ("asked", "interval"),
    [
        ({}, 0),
        ({"live_reports": None}, 0),
        ({"live_reports": []}, 0),
        ({"live_reports": {"interval_s": "5"}}, 0),
        ({"live_reports": {"interval_s": 5}}, 5),
        ({"live_reports": {"interval_s": 0.1}}, 1),
        ({"live_reports": {"interval_s": -1}}, 1),
        ({"live_reports": {"interval_s": 1e9}}, 3600),
    ],
)
def test_how_often(asked: dict[str, Any], interval: int) -> None:
    assert interval_s(asked) == interval
