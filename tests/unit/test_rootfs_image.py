# SPDX-License-Identifier: Apache-2.0
"""The built-in module with the real boot environment tools; slots are files, the reboot is a variable."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.support.payloads import Payload

from update_agent import bootloader
from update_agent.errors import BootloaderError, PayloadError, SlotError, UpdateError
from update_agent.log import Log
from update_agent.payload import Tree
from update_agent.rootfs_image import RootfsImage
from update_agent.slots import Host, RootDevice, Slots
from update_agent.states import POINTS

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("fw_printenv", "fw_setenv", "mkenvimage")),
    reason="needs fw_printenv, fw_setenv (libubootenv-tool) and mkenvimage (u-boot-tools)",
)


class Header:
    name, group, payload_type = "v2", "", "rootfs-image"
    header_info, type_info, meta_data = b"{}", b"{}", None


class Device:
    """A board: environment, slots 2 and 3, which of them runs, and a U-Boot that counts."""

    def __init__(self, directory: Path) -> None:
        self.running = "2"
        self.directory = directory
        for name in ("p2", "p3"):
            (directory / name).write_bytes(bytes(1 << 20))
        text = "mender_boot_part=2\nmender_boot_part_hex=2\nupgrade_available=0\nbootcount=0\nbootlimit=1\n"
        subprocess.run(
            ["mkenvimage", "-r", "-s", "0x4000", "-o", directory / "image", "-"],
            input=text.encode(),
            check=True,
        )
        medium = directory / "medium"
        medium.write_bytes((directory / "image").read_bytes() * 2)
        (directory / "config").write_text(f"{medium} 0x0 0x4000\n{medium} 0x4000 0x4000\n")
        self.writes = directory / "writes"
        self.writes.write_text("")
        for tool, extra in (("fw_printenv", ""), ("fw_setenv", f"echo w >> {self.writes}\n")):
            path = directory / tool
            path.write_text(f'#!/bin/sh\n{extra}exec {shutil.which(tool)} -c {directory}/config "$@"\n')
            path.chmod(0o755)
        (directory / "mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/none rw\n")
        self.env = bootloader.UBoot(str(directory / "fw_printenv"), str(directory / "fw_setenv"))
        self.stream = io.StringIO()
        self.tree = Tree(str(directory / "store" / "tree"))
        self.module = self.new_module()

    def new_module(self) -> RootfsImage:
        """As after a restart of the agent."""
        host = Host(mountinfo=str(self.directory / "mountinfo"))
        slots = Slots(
            str(self.directory / "p2"),
            str(self.directory / "p3"),
            host=host,
            root=lambda: RootDevice(0, [str(self.directory / f"p{self.running}")]),
        )
        return RootfsImage(self.tree, slots, self.env, Log(stream=self.stream))

    def get(self, *names: str) -> list[str]:
        values = self.env.read()
        return [values.get(name, "") for name in names]

    @property
    def state(self) -> tuple[str, str, str]:
        """Boot partition, upgrade_available, bootcount."""
        part, part_hex, available, count = self.get(
            "mender_boot_part", "mender_boot_part_hex", "upgrade_available", "bootcount"
        )
        assert part_hex == part
        return part, available, count

    @property
    def write_count(self) -> int:
        return self.writes.read_text().count("w")

    def boot(self, failure: str = "") -> None:
        """What U-Boot and the boot script do; `failure` is why the pending slot does not come up."""
        part, available, count = self.state
        while available == "1":
            count = str(int(count) + 1)
            if int(count) > 1:
                part, available = {"2": "3", "3": "2"}[part], "0"
                self.env.write(
                    {
                        "mender_boot_part": part,
                        "mender_boot_part_hex": part,
                        "upgrade_available": "0",
                        "bootcount": count,
                        "boot_failure": failure,
                    }
                )
            else:
                self.env.write({"bootcount": count})
                if not failure:
                    break
        self.running = part
        self.module = self.new_module()

    def install(self, data: bytes = b"new" * 1000) -> None:
        self.module.prepare(Header(), current={"artifact_name": "v1", "device_type": "virt64"})
        self.module.download(iter([Payload(data)]))
        self.module.call("ArtifactInstall")


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_queries(device: Device) -> None:
    queries = ("ProvidePayloadFileSizes", "NeedsArtifactReboot", "SupportsRollback", "PerformsFullUpdate")
    assert [device.module.query(name) for name in queries] == ["Yes", "Automatic", "Yes", "No"]


def test_success(device: Device) -> None:
    device.module.prepare(Header(), current={})
    device.module.download(iter([Payload(b"new" * 1000)]))
    assert (device.directory / "p3").read_bytes()[:3000] == b"new" * 1000
    assert device.state == ("2", "0", "0")
    device.module.call("ArtifactInstall")
    assert device.state == ("3", "1", "0")
    assert device.write_count == 1
    assert Path(device.tree / "tmp/orig-part").read_text() == "orig_part_num=2\norig_part_num_hex=2\n"
    device.boot()
    assert device.running == "3"
    device.module.call("ArtifactVerifyReboot")
    device.module.call("ArtifactCommit")
    assert device.state[:2] == ("3", "0")
    device.module.cleanup()
    assert not device.tree.exists
    device.boot()
    assert device.running == "3"


@pytest.mark.parametrize("count", [0, 2])
def test_exactly_one_file(device: Device, count: int) -> None:
    device.module.prepare(Header(), current={})
    with pytest.raises(PayloadError, match="no file" if count == 0 else "more than one file"):
        device.module.download(iter([Payload(b"x") for _ in range(count)]))


def test_an_empty_image_is_none(device: Device) -> None:
    """Else what the slot held before would boot, and be taken for what is new."""
    device.module.prepare(Header(), current={})
    with pytest.raises(PayloadError, match=r"is empty \(has its build failed"):
        device.module.download(iter([Payload(b"")]))


@pytest.mark.parametrize("call", ["Download", "ArtifactInstall"])
@pytest.mark.parametrize("available", ["1", ""])
def test_no_second_update_over_a_pending_one(device: Device, call: str, available: str) -> None:
    device.env.write({"upgrade_available": available})
    before = (device.directory / "p3").read_bytes()
    act = {
        "Download": lambda: device.module.download(iter([Payload(b"x")])),
        "ArtifactInstall": lambda: device.module.call("ArtifactInstall"),
    }[call]
    with pytest.raises(
        PayloadError, match=f"{call} needs upgrade_available=0, but it is {available or 'not set'}"
    ):
        act()
    assert (device.directory / "p3").read_bytes() == before


def test_the_wrong_root_stops_download_and_install(device: Device) -> None:
    device.running = "3"
    with pytest.raises(SlotError, match="runs from"):
        device.module.download(iter([Payload(b"x")]))
    with pytest.raises(SlotError, match="runs from"):
        device.module.call("ArtifactInstall")
    assert device.state == ("2", "0", "0")


@pytest.mark.parametrize("call", ["ArtifactVerifyReboot", "ArtifactCommit"])
def test_a_fall_back_is_told_with_its_cause(device: Device, call: str) -> None:
    device.install()
    device.boot(failure="kernel panic in slot 3")
    assert device.running == "2"
    with pytest.raises(
        PayloadError, match=r"^the boot loader fell back to partition 2: kernel panic in slot 3$"
    ):
        device.module.call(call)
    device.env.write({"boot_failure": ""})
    with pytest.raises(PayloadError, match=r"^the boot loader fell back to partition 2: no reason recorded$"):
        device.module.call(call)


@pytest.mark.parametrize("call", ["ArtifactVerifyReboot", "ArtifactCommit"])
def test_no_commit_before_the_reboot(device: Device, call: str) -> None:
    device.install()
    with pytest.raises(SlotError, match=r"runs from .*p2, but mender_boot_part is 3"):
        device.module.call(call)
    assert device.state == ("3", "1", "0")


def test_an_old_reason_is_cleared_by_the_next_installation(device: Device) -> None:
    device.env.write({"boot_failure": "last year"})
    device.install()
    assert device.get("boot_failure") == [""]


@pytest.mark.parametrize("booted", [False, True])
def test_rollback_before_commit(device: Device, booted: bool) -> None:
    device.install()
    if booted:
        device.boot()
    device.module.call("ArtifactRollback")
    assert device.state[:2] == ("2", "0")
    device.boot()
    assert device.running == "2"
    device.module.call("ArtifactVerifyRollbackReboot")


def test_rollback_after_commit_uses_the_saved_partition(device: Device) -> None:
    device.install()
    device.boot()
    device.module.call("ArtifactCommit")
    device.module.call("ArtifactRollback")
    assert device.state[:2] == ("2", "0")
    with pytest.raises(SlotError, match="runs from"):
        device.module.call("ArtifactVerifyRollbackReboot")
    device.boot()
    device.module.call("ArtifactVerifyRollbackReboot")


def test_rollback_with_nothing_to_roll_back(device: Device) -> None:
    device.module.call("ArtifactRollback")
    assert device.state == ("2", "0", "0")
    assert device.write_count == 0


def test_rollback_write_errors_are_left_to_the_boot_loader(device: Device) -> None:
    device.install()
    device.env = bootloader.UBoot(str(device.directory / "fw_printenv"), "false")
    device.new_module().call("ArtifactRollback")
    assert "ArtifactRollback goes on although false exited with 1" in device.stream.getvalue()


def test_rollback_without_configured_partitions_is_the_boot_loaders(device: Device) -> None:
    module = RootfsImage(device.tree, Slots("", ""), device.env, Log(stream=device.stream))
    module.call("ArtifactRollback")
    with pytest.raises(SlotError, match="not both set"):
        module.call("ArtifactCommit")


def test_verify_rollback_reboot_refuses_a_pending_update(device: Device) -> None:
    device.install()
    with pytest.raises(PayloadError, match="still 1 after the rollback reboot"):
        device.module.call("ArtifactVerifyRollbackReboot")


def test_a_damaged_environment_stops_the_installation_before_anything_is_written(device: Device) -> None:
    (device.directory / "medium").write_bytes(os.urandom(0x8000))
    with pytest.raises(BootloaderError, match="damaged"):
        device.install()
    assert device.write_count == 0


def test_calls_that_do_nothing(device: Device) -> None:
    for name in ("ArtifactReboot", "ArtifactRollbackReboot", "ArtifactFailure", "Unknown"):
        device.module.call(name)
    device.module.cleanup()  # without a tree
    assert device.write_count == 0


# Pauses

FLIPPED = ("ArtifactInstall_Leave", "ArtifactReboot_Enter")  # the other slot boots next
TRIED = ("ArtifactReboot_Leave", "ArtifactCommit_Enter")  # the new system runs, uncommitted


@pytest.mark.parametrize("point", FLIPPED)
def test_a_pause_before_the_reboot_survives_power_cuts(device: Device, point: str) -> None:
    device.install()
    for _ in range(2):
        device.module.hold(point)
        assert device.state == ("2", "0", "0")
        assert device.write_count == 2  # the installation's and the first hold's
        assert not device.module.rebooted(point)
        device.boot()
        assert device.running == "2"
    writes = device.write_count
    device.module.release(point)
    device.module.release(point)
    assert device.write_count == writes + 1
    assert device.state == ("3", "1", "0")
    device.boot()
    assert device.module.rebooted(point)
    device.module.call("ArtifactVerifyReboot")


def test_a_cut_before_hold_is_seen_as_the_reboot(device: Device) -> None:
    device.install()
    device.boot()
    assert device.module.rebooted("ArtifactReboot_Enter")
    device.module.hold("ArtifactReboot_Enter")  # runs from the new slot: nothing to take back
    assert device.state[:2] == ("3", "1")


@pytest.mark.parametrize("point", FLIPPED)
def test_rollback_out_of_a_held_pause(device: Device, point: str) -> None:
    device.install()
    device.module.hold(point)
    device.module.call("ArtifactRollback")
    assert device.state == ("2", "0", "0")
    device.module.call("ArtifactVerifyRollbackReboot")


@pytest.mark.parametrize("point", FLIPPED)
def test_release_never_flips_what_was_not_installed(device: Device, point: str) -> None:
    with pytest.raises(PayloadError, match="cannot switch to"):
        device.module.release(point)
    assert device.state == ("2", "0", "0")


@pytest.mark.parametrize("point", TRIED)
def test_a_pause_before_the_commit_survives_power_cuts(device: Device, point: str) -> None:
    device.install()
    device.boot()
    for _ in range(3):
        device.module.hold(point)
        assert device.state == ("3", "1", "0")
        device.boot()
        assert device.running == "3"
    device.module.release(point)
    assert not device.module.rebooted(point)
    device.module.call("ArtifactCommit")
    assert device.state[:2] == ("3", "0")


@pytest.mark.parametrize("point", TRIED)
def test_a_fall_back_during_a_pause_before_the_commit_is_told(device: Device, point: str) -> None:
    device.install()
    device.boot()
    device.module.hold(point)
    device.boot(failure="no kernel")
    assert device.running == "2"
    with pytest.raises(PayloadError, match=r"^the boot loader fell back to partition 2: no kernel$"):
        device.module.hold(point)
    assert device.state[:2] == ("2", "0")


@pytest.mark.parametrize("point", TRIED)
def test_two_power_cuts_before_the_pause_is_held_again_fall_back(device: Device, point: str) -> None:
    device.install()
    device.boot()
    device.module.hold(point)
    device.boot()
    device.boot()  # the second boot on trial without an agent in between: above bootlimit
    assert device.running == "2"
    with pytest.raises(PayloadError, match="fell back to partition 2: no reason recorded"):
        device.module.hold(point)


@pytest.mark.parametrize("point", sorted({*POINTS} - {*FLIPPED, *TRIED}))
def test_other_points_change_nothing(device: Device, point: str) -> None:
    device.install()
    before = (device.directory / "medium").read_bytes()
    device.module.hold(point)
    device.module.release(point)
    assert not device.module.rebooted(point)
    assert (device.directory / "medium").read_bytes() == before


def test_a_saved_partition_that_makes_no_sense_is_told(device: Device) -> None:
    device.install()
    device.boot()
    device.module.call("ArtifactCommit")
    Path(device.tree / "tmp/orig-part").write_text("orig_part_num=9\n")
    with pytest.raises(UpdateError, match="partition 9 was active, which is none of the two"):
        device.module.call("ArtifactRollback")
