# SPDX-License-Identifier: Apache-2.0
"""Swaps Debian's mender client for ours between steps of an update. Run by test_takeover.py in namespaces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.server.debian_client import furnish, until, write

from update_tools.server.client import Management
from update_tools.server.run import start

MODULE = """#!/bin/sh
echo "$1" >>WORK/calls
case "$1" in
NeedsArtifactReboot | SupportsRollback) echo Yes ;;
ArtifactReboot) [ ! -e WORK/hang ] || exec sleep 600 ;;
esac
"""


class Device:
    """One device, on which either client can be started."""

    def __init__(self, work: Path, former: str) -> None:
        self.work = work
        self.state = work / "state"
        self.former = [former, "--no-syslog", "--data", str(self.state)]
        self.environment = {**os.environ, "MENDER_DATASTORE_DIR": str(self.state)}

    def old(self, *arguments: str) -> None:
        subprocess.run([*self.former, *arguments], check=True, stdin=subprocess.DEVNULL)

    def new(self, *arguments: str) -> str:
        argv = [sys.executable, "-m", "update_agent", *arguments]
        return subprocess.run(
            argv, env=self.environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    def calls(self) -> list[str]:
        return (self.work / "calls").read_text().split()


def by_hand(device: Device) -> None:
    """Installed by the one, committed by the other; and again, after the former client was back meanwhile."""
    database = device.state / "mender-store"
    device.old("install", str(device.work / "artifacts/release-2.mender"))
    before = database.read_bytes()
    shown = device.new("show-artifact")
    assert shown == "release-1\n", shown  # of /etc/mender/artifact_info
    told = device.new("commit")
    assert told == "Committed.\n", told
    provides = device.new("show-provides")
    assert provides == (
        "artifact_group=beta\nartifact_name=release-2\n"
        "rootfs-image.test-module.version=release-2\nsensor.version=7\n"
    ), provides
    assert device.calls()[-2:] == ["ArtifactCommit", "Cleanup"]
    assert database.read_bytes() == before
    print("the new client committed what the former one installed")

    (device.state / "modules/v3/payloads/0000/tree").mkdir(parents=True)
    device.old("rollback")  # for it, release-2 still waits
    device.old("install", str(device.work / "artifacts/release-3.mender"))
    device.old("commit")
    shown = device.new("show-artifact")
    assert shown == "release-3\n", shown
    print("what the former client did later counts")


def in_a_deployment(device: Device, management: Management) -> None:
    """The former client starts the reboot; the system that comes up has the new one."""
    management.upload(device.work / "artifacts/release-4.mender")
    (device.work / "hang").touch()
    log = (device.work / "mender.log").open("wb")
    former = subprocess.Popen([*device.former, "daemon"], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    waiting = until("an authorization request", lambda: management.known_devices("pending"))[0]
    management.accept(waiting["id"])
    deployment = management.deploy("the swap", "release-4")
    until("the reboot", lambda: device.calls()[-1] == "ArtifactReboot")
    former.send_signal(signal.SIGKILL)
    former.wait()
    (device.work / "hang").unlink()

    argv = [sys.executable, "-m", "update_agent", "daemon"]
    new = subprocess.Popen(argv, env=device.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        until("the end", lambda: management.devices(deployment)[0]["status"] in {"success", "failure"})
    finally:
        new.terminate()
        new.wait(20)
    assert management.devices(deployment)[0]["status"] == "success"
    rest = device.calls()[device.calls().index("ArtifactReboot") + 1 :]
    assert rest == ["ArtifactVerifyReboot", "ArtifactCommit", "Cleanup"], rest
    shown = device.new("show-artifact")
    assert shown == "release-4\n", shown
    assert len(management.known_devices()) == 1, "the device key was not taken over"
    print("a deployment went on across the swap")


def main(work: Path, former: str) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with start(work / "data") as server:
        furnish(server.url, work)
        module = "/usr/share/mender/modules/v3/test-module"
        write(module, MODULE.replace("WORK", str(work)), 0o755)
        configuration = json.loads(Path("/etc/mender/mender.conf").read_text())
        configuration["UpdateLogPath"] = str(work)
        write("/etc/mender/mender.conf", json.dumps(configuration))
        (work / "state").mkdir()
        device = Device(work, former)
        by_hand(device)
        in_a_deployment(device, server.management())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
