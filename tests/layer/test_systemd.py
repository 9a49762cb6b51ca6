# SPDX-License-Identifier: Apache-2.0
"""The layer's units in a real systemd: /usr is this machine's with what our recipes install laid over it.

systemd is started in a container (systemd-nspawn). A unit of the test's looks around when the system is up,
and turns it off.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import jeepney
import pytest
from tests.layer.bitbake import Build

RECIPES = ("update-agent", "update-agent-conf", "update-identity", "update-data")
OURS = ("update-identity", "update-grow-data", "mender-updated")
USR = ("bin", "sbin", "lib", "lib64")  # links into /usr
MACHINE_ID = "0123456789abcdef0123456789abcdef"
DATA = "/persistent /data none bind,nofail 0 0\n"

# The namespace is only for what is mounted here: the container has its own.
START = """
mount -t tmpfs tmpfs /run
mount -t overlay -o "lowerdir=$LOWER" overlay "$ROOT/usr"
exec systemd-nspawn --quiet --register=no --keep-unit --private-network --directory="$ROOT" "$@"
"""

PROBE_UNIT = """[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh /probe
ExecStopPost=/bin/systemctl --no-block --force poweroff
[Install]
WantedBy=multi-user.target
"""
# `facts NAME`: what systemd says of our units now.
PROBE = """
set -u
facts() {
    for unit in data.mount update-identity.service update-grow-data.service mender-updated.service; do
        systemctl show "$unit" >"/result/$1-$unit"
    done
}
until_changed() {
    for _ in $(seq 60); do
        if [ "$(systemctl show -P "$1" mender-updated)" != "$2" ]; then return; fi
        sleep 0.5
    done
}
until_named() {
    for _ in $(seq 60); do
        if busctl --system status "$1" >"/result/bus" 2>&1; then return; fi
        sleep 0.5
    done
}
"""
WITH_DATA = """
until_named io.mender.UpdateManager
facts up
systemctl kill --signal=KILL mender-updated
until_changed NRestarts 0
until_named io.mender.UpdateManager
facts killed
systemctl stop mender-updated
facts stopped
"""
WITHOUT_DATA = """
until_changed NRestarts 0
facts up
mount --bind /persistent /data
until_named io.mender.UpdateManager
facts mounted
"""
JOURNAL = """
journalctl --output=json --unit=mender-updated --unit=update-identity --unit=update-grow-data >/result/journal
"""


@cache
def why_not() -> str:
    """Why no container can be started here, empty if one can."""
    missing = [name for name in ("systemd-nspawn", "systemctl", "unshare") if not shutil.which(name)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if os.geteuid() != 0:
        return "a container needs root"
    if not os.path.samefile(os.path.realpath(sys.executable), os.path.realpath("/usr/bin/python3")):
        return "the tests' Python is not the system's, for which the agent's byte code would have to be"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        (root / "usr").mkdir(parents=True)
        for name in USR:
            (root / name).symlink_to(f"usr/{name}")
        empty = Path(folder, "empty")
        empty.mkdir()
        trial = start(root, f"{empty}:/usr", "--console=pipe", "/usr/bin/true")
    return f"no containers here: {trial.stderr}" if trial.returncode else ""


def start(root: Path, lower: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """systemd-nspawn in this root, whose /usr is these directories over each other."""
    return subprocess.run(
        ["unshare", "--mount", "sh", "-euc", START, "sh", *arguments],
        env={**os.environ, "ROOT": str(root), "LOWER": lower},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What our recipes install, and jeepney where its recipe would put it."""
    if why_not():
        pytest.skip(why_not())
    folder = tmp_path_factory.mktemp("systemd")
    found = [
        Path(
            Build(
                folder / recipe,
                conf='INHERIT += "update"\nDISTRO_FEATURES:append = " systemd"\nINIT_MANAGER = "systemd"\n',
            ).run(recipe)["D"]
        )
        for recipe in RECIPES
    ]
    (archive,) = found[0].glob("usr/lib/python*/site-packages/update-agent.zip")
    shutil.copytree(Path(jeepney.__file__).parent, archive.parent / "jeepney")
    return found


class Machine:
    """A root file system that systemd starts from, and what the probe saw in it."""

    def __init__(self, folder: Path, trees: list[Path]) -> None:
        self.root = folder / "root"
        self._lower = ":".join(str(tree / "usr") for tree in trees if (tree / "usr").is_dir()) + ":/usr"
        for name in (
            "usr",
            "etc/systemd/system",
            "var",
            "data",
            "persistent/mender",
            "result",
            "proc",
            "sys",
        ):
            (self.root / name).mkdir(parents=True)
        for tree in trees:
            for part in tree.iterdir():
                if part.name not in {"usr", "data"}:
                    shutil.copytree(part, self.root / part.name, symlinks=True, dirs_exist_ok=True)
        for name in USR:
            (self.root / name).symlink_to(f"usr/{name}")
        for name in ("passwd", "group", "os-release", "ld.so.cache"):
            shutil.copy(f"/etc/{name}", self.root / "etc" / name)
        (self.root / "etc/machine-id").write_text(f"{MACHINE_ID}\n")
        self._grow_data()
        self._unit("probe.service", PROBE_UNIT)
        for unit in (*OURS, "probe"):
            self._enable(f"{unit}.service", trees)

    def _unit(self, name: str, text: str) -> None:
        path = self.root / "etc/systemd/system" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def _enable(self, unit: str, trees: list[Path]) -> None:
        """Without presets and systemctl: both would look at this machine's units."""
        places = [tree / "usr/lib/systemd/system" / unit for tree in trees]
        assert [place for place in places if place.is_file()] or unit == "probe.service", unit
        wants = self.root / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        source = "/etc" if unit == "probe.service" else "/usr/lib"
        (wants / unit).symlink_to(f"{source}/systemd/system/{unit}")

    def _grow_data(self) -> None:
        """A card whose data partition has all the room already: the file system is left to grow."""
        for name, values in {"mmcblk0": {"size": 9000}, "mmcblk0p4": {"start": 2000, "size": 7000}}.items():
            folder = self.root / "fake/sys/class/block" / name
            folder.mkdir(parents=True)
            for file_name, value in values.items():
                (folder / file_name).write_text(f"{value}\n")
        tool = self.root / "fake/bin/resize2fs"
        tool.parent.mkdir()
        tool.write_text('#!/bin/sh\necho "resize2fs $*"\n')
        tool.chmod(0o755)
        self._unit(
            "update-grow-data.service.d/test.conf",
            "[Service]\nEnvironment=UPDATE_SYSFS=/fake/sys UPDATE_DEV=/dev PATH=/fake/bin:/usr/bin\n",
        )

    def boot(self, fstab: str, probe: str) -> None:
        """From start to power off."""
        (self.root / "etc/fstab").write_text(fstab)
        (self.root / "probe").write_text(PROBE + probe + JOURNAL)
        done = start(self.root, self._lower, "--console=passive", "--boot", "systemd.show_status=1")
        self.said = done.stdout + done.stderr
        assert (self.root / "result/journal").is_file(), self.said

    def facts(self, when: str, unit: str) -> dict[str, str]:
        """All properties of a unit."""
        text = (self.root / "result" / f"{when}-{unit}").read_text()
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def journal(self, unit: str) -> list[str]:
        """What a unit of ours said."""
        entries: list[dict[str, Any]] = [
            json.loads(line) for line in (self.root / "result/journal").read_text().splitlines()
        ]
        return [e["MESSAGE"] for e in entries if e.get("_SYSTEMD_UNIT") == f"{unit}.service"]


@pytest.fixture
def machine(tmp_path: Path, trees: list[Path]) -> Machine:
    return Machine(tmp_path, trees)


def test_units_start_in_order_and_the_agent_comes_back(machine: Machine) -> None:
    machine.boot(DATA, WITH_DATA)
    data, identity, grow, agent = (
        machine.facts("up", unit) for unit in ("data.mount", *(f"{name}.service" for name in OURS))
    )
    assert data["ActiveState"] == "active", machine.said
    assert (identity["ActiveState"], identity["Result"]) == ("active", "success"), machine.said
    assert (grow["Result"], grow["ExecMainStatus"]) == ("success", "0"), machine.said
    assert machine.journal("update-grow-data") == ["resize2fs /dev/mmcblk0p4"]
    assert (agent["ActiveState"], agent["NRestarts"]) == ("active", "0"), machine.said

    def began(unit: dict[str, str]) -> int:
        return int(unit["InactiveExitTimestampMonotonic"])

    def ended(unit: dict[str, str]) -> int:
        return int(unit["ExecMainExitTimestampMonotonic"])

    mounted = int(data["ActiveEnterTimestampMonotonic"])
    assert mounted <= began(identity) < ended(identity) <= began(agent)
    assert mounted <= began(grow)
    # What the two programs and the agent keep is on the data partition.
    kept = machine.root / "persistent"
    assert (kept / "identity/machine-id").read_text() == f"{MACHINE_ID}\n"
    assert (kept / "mender/device_type").read_text() == "device_type=virt64\n"
    assert (kept / "mender/update-agent.json").is_file()  # the agent keeps its state there

    killed, stopped = (machine.facts(when, "mender-updated.service") for when in ("killed", "stopped"))
    assert (killed["ActiveState"], killed["NRestarts"]) == ("active", "1")
    assert killed["MainPID"] not in {"0", agent["MainPID"]}
    assert (stopped["ActiveState"], stopped["Result"], stopped["ExecMainStatus"]) == (
        "inactive",
        "success",
        "0",
    )


def test_agent_waits_for_the_data_partition(machine: Machine) -> None:
    """It is not its dependency: on trial the agent goes back without it (tests/flow/test_trial.py)."""
    machine.boot("none /data nosuchfs nofail 0 0\n", WITHOUT_DATA)
    assert machine.facts("up", "data.mount")["ActiveState"] == "failed", machine.said
    for unit in ("update-identity.service", "update-grow-data.service"):
        found = machine.facts("up", unit)
        assert (found["ActiveState"], found["ConditionResult"]) == ("inactive", "no"), unit
    agent = machine.facts("up", "mender-updated.service")
    assert (agent["SubState"], agent["Result"]) in {("auto-restart", "exit-code"), ("running", "success")}
    assert "cannot make the datastore /var/lib/mender" in "\n".join(machine.journal("mender-updated"))
    assert machine.facts("mounted", "mender-updated.service")["SubState"] == "running", machine.said
