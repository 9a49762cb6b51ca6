# SPDX-License-Identifier: Apache-2.0
"""Slots as regular files, and as real loop devices where the machine has them (root)."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.payloads import Payload

from update_agent.errors import ArtifactError, SlotError, TransferError
from update_agent.slot_writer import install
from update_agent.slots import Host, RootDevice, Slot, Slots, root_device

MIB = 1 << 20


class Disk:
    """Two slots in files p2 and p3; the system "runs" from p2."""

    def __init__(self, directory: Path, size: int = 4 * MIB) -> None:
        self.directory = directory
        self.a, self.b = directory / "p2", directory / "p3"
        for path in (self.a, self.b):
            path.write_bytes(os.urandom(4096) * (size // 4096))
        self.mountinfo = directory / "mountinfo"
        self.mountinfo.write_text("1 0 8:1 / / rw - ext4 /dev/none rw\n")
        self.running = str(self.a)
        self.host = Host(mountinfo=str(self.mountinfo), dev=str(directory), sys_ubi=str(directory))
        self.slots = self.named(str(self.a), str(self.b))

    def named(self, a: str, b: str) -> Slots:
        return Slots(a, b, host=self.host, root=lambda: RootDevice(0, [self.running]))

    @property
    def inactive(self) -> Slot:
        return self.slots.pair("2").inactive


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


# Which is which


def test_active_is_what_the_boot_environment_names(disk: Disk) -> None:
    for number, active, inactive in (("2", disk.a, disk.b), ("3", disk.b, disk.a)):
        pair = disk.slots.pair(number)
        assert (pair.active.device, pair.inactive.device) == (str(active), str(inactive))
        assert pair.active.number == number


@pytest.mark.parametrize("number", ["", "1", "02", "x"])
def test_another_number_is_refused(disk: Disk, number: str) -> None:
    with pytest.raises(SlotError, match="mender_boot_part is"):
        disk.slots.pair(number)


def test_links_are_resolved_and_the_number_is_that_of_the_node(disk: Disk) -> None:
    links = disk.directory / "disk" / "by-partuuid"
    links.mkdir(parents=True)
    (links / "ab-07").symlink_to("../../p2")
    (links / "ab-08").symlink_to("../../p3")
    pair = disk.named(str(links / "ab-07"), str(links / "ab-08")).pair("3")
    assert pair.active.device == str(disk.b)
    assert pair.active.configured == str(links / "ab-08")


def test_hexadecimal_number(disk: Disk) -> None:
    assert Slot("x", "/dev/mmcblk0p12").number_hex == "c"


def test_ubi_names(disk: Disk) -> None:
    for name in ("ubi0_0", "ubi0_1"):
        (disk.directory / name).write_text("")
    a, b = disk.named("ubi0_0", "ubi0_1").both()
    assert (a.device, a.number, a.is_ubi) == (str(disk.directory / "ubi0_0"), "0", True)
    assert b.number == "1"


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("", "{0}/p3", "are not both set"),
        ("{0}/p2", "{0}/p4", "p4 does not exist"),
        ("{0}/p2", "{0}/same2", "are both"),
        ("{0}/p2", "{0}/disk", "does not end in a partition number"),
        ("{0}/p2", "{0}/q2", "same partition number"),
    ],
)
def test_wrong_configurations(disk: Disk, a: str, b: str, message: str) -> None:
    (disk.directory / "same2").symlink_to("p2")
    (disk.directory / "disk").write_text("")
    (disk.directory / "q2").write_text("")
    with pytest.raises(SlotError, match=message):
        disk.named(a.format(disk.directory), b.format(disk.directory)).both()


def test_root_check(disk: Disk) -> None:
    disk.slots.check_root(disk.slots.pair("2"))
    with pytest.raises(SlotError, match=f"runs from {disk.a}, but mender_boot_part is 3"):
        disk.slots.check_root(disk.slots.pair("3"))
    disk.running = "/dev/other"
    with pytest.raises(SlotError, match="runs from another device"):
        disk.slots.check_root(disk.slots.pair("2"))


# What the kernel tells


def test_the_real_root_is_found() -> None:
    root = root_device()
    assert root.number or root.paths or os.major(os.stat("/").st_dev) == 0


@pytest.mark.parametrize(
    ("source", "cmdline", "expected"),
    [
        ("ubi0_1", "", "ubi0_1"),
        ("overlay", "quiet root=PARTUUID=ab-3 rw", "p3"),
        ("overlay", "root=/dev/nowhere root={0}/p2", "p2"),
        ("{0}/p\\0402", "", "p 2"),
    ],
)
def test_root_of_file_systems_without_a_device_number(
    disk: Disk, source: str, cmdline: str, expected: str
) -> None:
    for name in ("ubi0_1", "p 2"):
        (disk.directory / name).write_text("")
    links = disk.directory / "disk" / "by-partuuid"
    links.mkdir(parents=True)
    (links / "ab-3").symlink_to("../../p3")
    # /proc has an anonymous device number, like UBIFS and overlayfs
    disk.mountinfo.write_text(f"1 0 0:5 / /proc rw master:1 - x {source.format(disk.directory)} rw\n")
    (disk.directory / "cmdline").write_text(cmdline.format(disk.directory))
    disk.host.root, disk.host.cmdline = "/proc", str(disk.directory / "cmdline")
    root = root_device(disk.host)
    assert root.number == 0
    assert root.is_on(Slot("x", str(disk.directory / expected)))
    assert not root.is_on(Slot("x", str(disk.directory / "p9")))


def test_the_running_or_a_mounted_slot_is_never_opened(disk: Disk) -> None:
    with pytest.raises(SlotError, match="is the running root"):
        disk.slots.open_for_writing(disk.slots.pair("2").active, 1)
    disk.mountinfo.write_text(f"1 0 7:0 / /mnt/a\\040b rw shared:1 - ext4 {disk.b} rw\n")
    with pytest.raises(SlotError, match=r"p3 is mounted at /mnt/a b .*umount"):
        disk.slots.open_for_writing(disk.inactive, 1)


def test_a_mount_table_that_makes_no_sense_stops_everything(disk: Disk) -> None:
    disk.mountinfo.write_text("nonsense\n")
    with pytest.raises(SlotError, match="cannot read the mount table"):
        disk.slots.open_for_writing(disk.inactive, 1)


# Writing


def test_a_payload_too_large_is_refused_before_the_first_write(disk: Disk) -> None:
    before = disk.b.read_bytes()
    with pytest.raises(
        SlotError, match=f"payload of {4 * MIB + 1} bytes does not fit into .*p3 of {4 * MIB} bytes"
    ):
        install(Payload(bytes(4 * MIB + 1)), disk.slots, disk.inactive)
    assert disk.b.read_bytes() == before


@pytest.mark.parametrize("compression", ["none", "zstd"])  # blocks of 512 KiB, of 1 MiB
@pytest.mark.parametrize("size", [0, 1, 4096, MIB - 1, MIB, MIB + 1, 3 * MIB + 70_000, 4 * MIB])
def test_install_writes_exactly_the_payload(disk: Disk, size: int, compression: str) -> None:
    data, before = os.urandom(size), disk.b.read_bytes()
    written = install(Payload(data, compression=compression), disk.slots, disk.inactive)
    assert disk.b.read_bytes() == data + before[size:]
    assert written.size_bytes == written.written_bytes == size
    assert written.digest == hashlib.sha256(data).hexdigest()
    again = Payload(data, compression=compression)
    assert install(again, disk.slots, disk.inactive).written_bytes == 0


@pytest.mark.parametrize("size", [100, MIB, 2 * MIB])
def test_a_payload_that_ends_early_is_an_error(disk: Disk, size: int) -> None:
    with pytest.raises(SlotError, match=rf"p3: the payload ended after {size} of {size + 1} bytes"):
        install(Payload(os.urandom(size), size=size + 1), disk.slots, disk.inactive)


def test_the_checksum_at_the_end_of_the_payload_is_asked_for(disk: Disk) -> None:
    error = ArtifactError("wrong checksum")
    with pytest.raises(ArtifactError, match="wrong checksum"):
        install(Payload(b"x" * 100, checksum_error=error), disk.slots, disk.inactive)


@pytest.mark.parametrize("fails_at", [0, MIB + 1, 3 * MIB])
def test_an_error_of_the_source_comes_up_as_it_is(disk: Disk, fails_at: int) -> None:
    error = TransferError("the connection broke")
    with pytest.raises(TransferError) as caught:
        install(Payload(bytes(4 * MIB), fails_at=fails_at, error=error), disk.slots, disk.inactive)
    assert caught.value is error


# Real block devices


@pytest.fixture
def loop_devices(tmp_path: Path) -> Iterator[tuple[str, str]]:
    if os.geteuid() != 0 or not shutil.which("losetup"):
        pytest.skip("loop devices need root and losetup")
    devices = []
    try:
        for name in ("a", "b"):
            (tmp_path / name).write_bytes(bytes(8 * MIB))
            attach = subprocess.run(
                ["losetup", "--find", "--show", tmp_path / name], capture_output=True, text=True, check=False
            )
            if attach.returncode != 0:
                pytest.skip(f"no loop devices here: {attach.stderr.strip()}")
            devices.append(attach.stdout.strip())
        yield devices[0], devices[1]
    finally:
        for device in devices:
            subprocess.run(["losetup", "--detach", device], check=False)


def loop_slots(a: str, b: str) -> Slots:
    return Slots(a, b, root=lambda: RootDevice(os.stat(a).st_rdev, []))


def test_a_real_block_device_is_written(loop_devices: tuple[str, str]) -> None:
    a, b = loop_devices
    slots = loop_slots(a, b)
    pair = slots.pair(Slot("", a).number)
    slots.check_root(pair)
    data = os.urandom(5 * MIB + 512)
    install(Payload(data), slots, pair.inactive)
    assert Path(b).read_bytes()[: len(data)] == data
    with pytest.raises(SlotError, match=f"does not fit into {b} of {8 * MIB} bytes"):
        install(Payload(bytes(8 * MIB + 1)), slots, pair.inactive)
    assert slots.runs_from(pair.active)
    assert not slots.runs_from(pair.inactive)


def test_a_mounted_block_device_is_never_opened(loop_devices: tuple[str, str], tmp_path: Path) -> None:
    a, b = loop_devices
    subprocess.run(["mkfs.ext4", "-q", b], check=True)
    point = tmp_path / "mnt"
    point.mkdir()
    if subprocess.run(["mount", b, point], check=False, capture_output=True).returncode != 0:
        pytest.skip("mount is not allowed here")
    slots = loop_slots(a, b)
    try:
        with pytest.raises(SlotError, match=f"{b} is mounted at {point}"):
            slots.open_for_writing(slots.both()[1], 1)
        empty = tmp_path / "mountinfo"  # as from another mount namespace
        empty.write_text("")
        slots._host.mountinfo = str(empty)
        with pytest.raises(SlotError, match=r"cannot open .*busy .*another namespace"):
            slots.open_for_writing(slots.both()[1], 1)
    finally:
        subprocess.run(["umount", point], check=True)
