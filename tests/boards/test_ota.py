# SPDX-License-Identifier: Apache-2.0
"""Over-the-air updates on a board, virtual or real: good, broken, refused, paused, interrupted.

All tests share one board, so each begins in whichever slot the last one left. Each ends by asking the same:
which slot runs, what the agent says is installed, what the server was told, and what U-Boot would do next.
"""

from __future__ import annotations

import random
import time
from base64 import b64encode

import pytest

from .conftest import Lab
from .field import Field

pytestmark = pytest.mark.board

FULL = "/data/full"
# Every block, those that are kept for root as well; without writing a card full, which takes minutes.
FILL = f"""\
import os
fd = os.open("{FULL}", os.O_CREAT | os.O_WRONLY)
size = os.statvfs("/data").f_bfree * 4096
while size >= 512:
    try:
        os.posix_fallocate(fd, os.fstat(fd).st_size, size)
    except OSError:
        size //= 2
"""


@pytest.mark.every_board
def test_data_partition_has_grown_to_the_end_of_the_card(lab: Lab, field: Field) -> None:
    """At the first start already; what it was made of is small."""
    mount = field.device.check("grep ' /data ' /proc/mounts")
    name = mount.split()[0].rpartition("/")[2]
    card = f"$(basename $(readlink -f {name}/..))"
    numbers = field.device.check(
        f"cd /sys/class/block; cat {name}/start {name}/size {card}/size; df -k /data | tail -n 1"
    ).split()
    start, size, whole = (int(number) for number in numbers[:3])
    assert whole - start - size <= 2048, "a MiB or more of the card is not used"
    assert int(numbers[4]) * 2 > 0.8 * size, "the file system does not fill its partition"
    assert numbers[4] in lab.first_start.split(), "it grew at the first start, not later"


def test_environment_lost_in_the_trial_falls_back(field: Field) -> None:
    """Both copies. (U-Boot starts slot A without one, so slot A has to be the old one.)"""
    field.runs_in(field.device.slots[0])
    field.deploy(pauses=("ArtifactCommit_Enter",))
    field.until_paused("ArtifactCommit_Enter")
    field.device.tear_environment("both")
    assert field.device.cut_and_boot() == field.slot
    field.ends_as("failure", "environment was lost")


@pytest.mark.every_board
def test_good_version_is_committed_and_stays(field: Field) -> None:
    field.deploy()
    field.ends_as("success")
    assert field.statuses() == ["downloading", "installing", "rebooting", "installing", "success"]
    assert field.device.cut_and_boot() == field.slot
    field.is_settled()


def test_version_without_kernel_is_a_failure_with_the_boot_loaders_reason(field: Field) -> None:
    field.deploy("no-kernel")
    field.ends_as("failure", "no kernel")


@pytest.mark.every_board
def test_version_that_panics_is_a_failure_with_the_boot_loaders_reason(field: Field) -> None:
    field.deploy("panic")
    field.ends_as("failure", "not committed after 1 boot")


@pytest.mark.needs("watchdog")
def test_version_that_hangs_is_ended_by_the_watchdog(field: Field) -> None:
    field.deploy("hang")
    field.ends_as("failure", "not committed after 1 boot")


def test_version_that_its_own_script_refuses_is_rolled_back(field: Field) -> None:
    field.deploy("refusing")
    field.ends_as("failure", "ArtifactCommit_Enter_10_health-check exited with 1")
    assert "the application does not answer on its port" in field.log()


def test_version_without_network_goes_back_and_tells_then(field: Field) -> None:
    """The new system can tell nobody; its self-test fails, and the old one has the network again."""
    field.deploy("no-network")
    field.ends_as("failure", "self-test")
    assert "the control server cannot be reached from the new system" in field.log()


def test_power_cut_while_writing_leaves_the_running_system(field: Field) -> None:
    other = field.device.other(field.slot)
    before = field.device.written(other)
    field.deploy()
    field.until(lambda: field.device.written(other) - before > 1 << 20, "a MiB on the card")
    assert field.device.cut_and_boot() == field.slot
    field.ends_as("failure", "restarted during")


@pytest.mark.every_board
def test_pause_outlives_power_cuts_and_a_torn_environment(field: Field) -> None:
    """The pause resets the boot count, so that a cut is no failed boot.

    The newer copy of the environment says so; without it the board goes back. Nobody misses the older one.
    """
    point = "ArtifactCommit_Enter"
    new = field.device.other(field.slot)
    field.deploy(pauses=(point,))
    field.until_paused(point)
    assert field.device.cut_and_boot() == new
    field.until_paused(point)
    field.device.tear_environment("older")
    assert field.device.cut_and_boot() == new
    field.until_paused(point)
    field.management.continue_(field.deployment)
    field.ends_as("success")

    old = field.slot
    field.deploy(pauses=(point,))
    field.until_paused(point)
    field.device.tear_environment("newer")
    assert field.device.cut_and_boot() == old
    field.ends_as("failure", "not committed after 1 boot")


@pytest.mark.every_board
def test_power_cuts_at_random_moments(lab: Lab, field: Field) -> None:
    """Updates back to back. Each cut may end an update either way; the board starts, and no report is wrong.

    `ota board torture` does this a hundred times, and compares the card's bytes as well.
    """
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    started = time.monotonic()
    field.deploy()
    field.ends_as("success")
    whole_s = time.monotonic() - started
    field.deploy()
    for _ in range(lab.random_cuts):
        moment = time.monotonic() + dice.random() * whole_s
        while time.monotonic() < moment:
            time.sleep(min(0.5, max(0.0, moment - time.monotonic())))
            if field.told["status"] in {"success", "failure"}:
                field.ends()
                field.deploy()
        field.cut()
    field.ends()


def test_data_partition_that_is_full_is_told_and_no_end(field: Field) -> None:
    """Nothing can be saved, so nothing is begun; the server is told why, and the board starts as ever."""
    try:
        field.device.check(
            f"echo {b64encode(FILL.encode()).decode()} | base64 -d | python3; sync", timeout_s=120
        )
        assert field.device.check("df /data | tail -n 1").split()[3] == "0"
        field.deploy()
        field.until_status("failure")
        assert "No space left on device" in field.told["substate"]
        assert field.device.cut_and_boot() == field.slot
    finally:
        field.device.check(f"rm -f {FULL}; sync")
    field.is_settled()


def test_clock_that_is_wrong_and_jumps_does_not_matter(field: Field) -> None:
    point = "ArtifactReboot_Enter"
    field.device.check("date -s '1999-12-31 23:59:50'")
    field.deploy(pauses=(point,))
    field.until_paused(point)
    field.device.check("date -s '2036-02-29 12:00:00'")  # as by the first synchronization
    time.sleep(5)
    field.until_paused(point)
    field.management.continue_(field.deployment)
    field.ends_as("success")
