# SPDX-License-Identifier: Apache-2.0
"""Walks Debian's own mender client through the server. Run by test_debian_client.py in namespaces of its own.

Network: loopback alone. Mounts: private, with a layer over /etc and /usr/share for what is written.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from update_tools.server.client import Management
from update_tools.server.run import start

DEADLINE_S = 120.0
CANNOT_ISOLATE = 77  # exit code: no overlay file system here
MODULE = """#!/bin/sh
echo "module: $1" >&2
case "$1" in
NeedsArtifactReboot) echo Yes ;;
SupportsRollback) echo Yes ;;
ArtifactCommit) [ ! -e REFUSE ] || { echo "commit refused by the test" >&2; exit 1; } ;;
esac
"""
PAUSES = {
    "pause_before_installing": "ArtifactInstall_Enter",
    "pause_before_rebooting": "ArtifactReboot_Enter",
    "pause_before_committing": "ArtifactCommit_Enter",
}
PAUSE_ALL = {"states": {point: {"action": "pause"} for point in PAUSES.values()}}


def furnish(url: str, work: Path) -> None:
    """The client's configuration, identity, module and first artifact name."""
    layers = work / "layers"
    layers.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", layers], check=True)
    for number, folder in enumerate(("/etc", "/usr/share")):
        upper, scratch = layers / f"upper{number}", layers / f"work{number}"
        upper.mkdir()
        scratch.mkdir()
        options = f"lowerdir={folder},upperdir={upper},workdir={scratch}"
        argv = ["mount", "-t", "overlay", "-o", options, "overlay", folder]
        if subprocess.run(argv, check=False).returncode != 0:
            sys.exit(CANNOT_ISOLATE)
        shutil.rmtree(f"{folder}/mender", ignore_errors=True)  # in the upper layer only
    configuration = {
        "ServerURL": url,
        "UpdatePollIntervalSeconds": 1,
        "InventoryPollIntervalSeconds": 5,
        "RetryPollIntervalSeconds": 1,
        "UpdateControlMapExpirationTimeSeconds": 60,
        "UpdateControlMapBootExpirationTimeSeconds": 60,
        "DeviceTypeFile": str(work / "device_type"),
        "DBus": {"Enabled": False},
    }
    write("/etc/mender/mender.conf", json.dumps(configuration))
    write("/etc/mender/artifact_info", "artifact_name=release-1\n")
    write(f"{work}/device_type", "device_type=virt64\n")
    write(
        "/usr/share/mender/identity/mender-device-identity", "#!/bin/sh\necho mac=52:54:00:00:00:01\n", 0o755
    )
    write("/usr/share/mender/inventory/mender-inventory-test", "#!/bin/sh\necho test_key=test value\n", 0o755)
    write("/usr/share/mender/modules/v3/test-module", MODULE.replace("REFUSE", f"{work}/refuse"), 0o755)


def write(path: str, text: str, mode: int = 0o644) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    Path(path).chmod(mode)


def until(what: str, ask: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.2)
    raise SystemExit(f"never: {what}")


def walk(management: Management, work: Path) -> None:
    """Accept, pause three times and succeed, roll back at a pause, fail with a log, abort."""
    waiting = until("an authorization request", lambda: management.known_devices("pending"))[0]
    management.accept(waiting["id"])
    device_id = waiting["id"]
    until("inventory", lambda: management.inventory(device_id).get("test_key") == "test value")
    for name in ("release-2", "release-3", "release-4", "release-5"):
        management.upload(work / "artifacts" / f"{name}.mender")

    def status(deployment_id: str) -> str:
        return str(management.devices(deployment_id)[0]["status"])

    def deploy(name: str, pauses: dict[str, Any]) -> str:
        return management.deploy(name, name, map=pauses)

    deployment_id = deploy("release-2", PAUSE_ALL)
    for word, point in PAUSES.items():
        until(word, lambda word=word: status(deployment_id) == word)
        assert management.continue_(deployment_id) == [point]
    until("success", lambda: status(deployment_id) == "success")
    words = [event["word"] for event in management.events(deployment_id, device_id)]
    expected = ["downloading", *PAUSES, "success"]
    assert [word for word in words if word in expected] == expected, words
    print("paused three times and succeeded:", " ".join(words))
    until("the new name", lambda: management.known_devices()[0]["artifact_name"] == "release-2")

    deployment_id = deploy("release-3", PAUSE_ALL)
    until("a pause", lambda: status(deployment_id) == "pause_before_installing")
    management.continue_(deployment_id)
    until("a pause", lambda: status(deployment_id) == "pause_before_rebooting")
    management.roll_back(deployment_id)
    until("failure", lambda: status(deployment_id) == "failure")
    print("rolled back from the pause before reboot")

    (work / "refuse").touch()
    deployment_id = deploy("release-4", {"states": {}})
    until("failure", lambda: status(deployment_id) == "failure")
    log = until("the log", lambda: management.log(deployment_id, device_id))
    assert "commit refused by the test" in log, log[-2000:]
    print("failed and uploaded a log of", len(log.splitlines()), "lines")

    deployment_id = deploy("release-5", PAUSE_ALL)
    until("a pause", lambda: status(deployment_id) == "pause_before_installing")
    management.abort(deployment_id)
    assert status(deployment_id) == "aborted"
    (work / "refuse").unlink()
    deployment_id = management.deploy("after the abort", "release-5")
    until("success", lambda: status(deployment_id) == "success")
    print("aborted, and took the next deployment")


def main(work: Path, program: str) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with start(work / "data") as server:
        furnish(server.url, work)
        with (work / "mender.log").open("wb") as log:
            (work / "state").mkdir()
            argv = [program, "--no-syslog", "--log-level", "debug", "--data", str(work / "state"), "daemon"]
            client = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            walk(server.management(), work)
        finally:
            client.terminate()
            client.wait(20)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
