# SPDX-License-Identifier: Apache-2.0
"""A new system in which the agent has no datastore: it goes back by itself, once, and says why."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from update_tools.conform.ab_device import ROOTFS, AbDevice

ON_TRIAL = {"mender_boot_part": "3", "mender_boot_part_hex": "3", "upgrade_available": "1", "bootcount": "0"}


@pytest.fixture
def device() -> Iterator[AbDevice]:
    with AbDevice(ROOTFS, reboot="Automatic", faults={}) as made:
        made.furnish()
        made.configure("http://127.0.0.1:9", has_bus=False)
        # `reboot` there sleeps until it is killed; this one has done its work when it returns.
        made.program("bin/reboot", 'echo "@ reboot" >>"$lab/journal"\nkill -TERM "$PPID"\n')
        yield made


def lose_the_data_partition(device: AbDevice) -> None:
    """What /var/lib/mender leads to is not there."""
    os.rename(device.path("store"), device.path("unmounted"))
    os.symlink(device.path("not/mounted"), device.path("store"))


def start(device: AbDevice) -> str:
    """What the daemon says before it ends."""
    done = subprocess.run(
        [sys.executable, "-m", "update_tools.conform.faults", device.root, "daemon"],
        env=device.agent_environment("unix:path=/nowhere"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def reboots(device: AbDevice) -> int:
    with open(device.path("journal"), encoding="utf-8") as file:
        return file.read().count("@ reboot")


def test_the_system_on_trial_is_left(device: AbDevice) -> None:
    device._set_environment(ON_TRIAL)
    device.boot()
    assert device.running == "3"
    lose_the_data_partition(device)
    said = start(device)
    assert "Going back to the system before this one: cannot make the datastore" in said
    assert reboots(device) == 1, said
    values, damage = device.boot_variables()
    assert (values["mender_boot_part"], values["mender_boot_part_hex"]) == ("2", "2")
    assert (values["upgrade_available"], damage) == ("0", "")
    assert values["boot_failure"].startswith("partition 3: cannot make the datastore ")
    device.boot()
    assert device.running == "2"
    start(device)  # still without a datastore, but nowhere to go
    assert reboots(device) == 1


@pytest.mark.parametrize("variables", [{}, {**ON_TRIAL, "bootcount": "5"}])
def test_the_committed_system_stays(device: AbDevice, variables: dict[str, str]) -> None:
    """Also when it is the boot loader that came back to it, and when a new one waits for its first boot."""
    device._set_environment({"boot_failure": "as it was", **variables})
    if not variables:
        device.boot()
    lose_the_data_partition(device)
    before = device.boot_variables()
    said = start(device)
    assert "Could not fulfill request: cannot make the datastore" in said
    assert (device.running, device.boot_variables(), reboots(device)) == ("2", before, 0)


def test_nothing_is_rebooted_into_what_could_not_be_chosen(device: AbDevice) -> None:
    device._set_environment(ON_TRIAL)
    device.boot()
    lose_the_data_partition(device)
    device.program("bin/fw_setenv", "echo 'no such device' >&2\nexit 1\n")
    said = start(device)
    assert "If this system is on trial, it cannot be left: fw_setenv exited with 1" in said
    assert reboots(device) == 0


def test_a_reboot_that_fails_is_told(device: AbDevice) -> None:
    device._set_environment(ON_TRIAL)
    device.boot()
    lose_the_data_partition(device)
    device.program("bin/reboot", "exit 3\n")
    assert "If this system is on trial, it cannot be left: `reboot` exited with 3" in start(device)
