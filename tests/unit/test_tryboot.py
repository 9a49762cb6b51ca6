# SPDX-License-Identifier: Apache-2.0
"""Raspberry Pi firmware as the boot loader: the module rootfs-image over it, on a card of real file systems.

The firmware is the simulated one of update_tools.conform.pi. Root slots are ext4 that the agent mounts.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from tests.support.payloads import Payload

from update_agent import bootloader
from update_agent.boot_partition import command_line, root_argument
from update_agent.bootloader import UBoot
from update_agent.config import Config
from update_agent.errors import BootloaderError, ConfigError, PayloadError, SlotError
from update_agent.log import Log
from update_agent.payload import Tree
from update_agent.rootfs_image import RootfsImage
from update_agent.slots import Host, RootDevice, Slot, Slots
from update_agent.tryboot import TRY, Tryboot
from update_tools.conform import pi

MISSING = pi.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
REBOOT = ["reboot"]


class Header:
    name, group, payload_type = "v2", "", "rootfs-image"
    header_info, type_info, meta_data = b"{}", b"{}", None


class Device:
    """A Pi with slot A (boot 2, root 5) in use; `reboot` does what the boot loader's command asks for."""

    def __init__(self, directory: Path) -> None:
        self.pi = pi.Pi(str(directory))
        self.pi.flash()
        for version in ("old", "new"):
            pi.make_root(str(directory / version), pi.boot_files(version))
        self.old, self.new = ((directory / version).read_bytes() for version in ("old", "new"))
        for root in pi.ROOTS:
            Path(self.pi.part(root)).write_bytes(self.old)
        (directory / "mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/none rw\n")
        self.directory = directory
        self.config = Config()
        self.config.datastore = str(directory / "store")
        os.makedirs(self.config.datastore)
        document = {
            "AutobootPart": "1",
            "BootPartA": "2",
            "BootPartB": "3",
            "RootfsPartA": "5",
            "RootfsPartB": "6",
        }
        self.config.merge({key: self.pi.part(number) for key, number in document.items()}, "test")
        self.stream = io.StringIO()
        self.tree = Tree(str(directory / "store" / "tree"))
        self.start()

    def start(self) -> None:
        self.running = self.pi.start()
        host = Host(
            mountinfo=str(self.directory / "mountinfo"), bootloader=self.pi.tree, boot_id=self.pi.boot_id
        )
        self.loader = Tryboot(self.config, Log(stream=self.stream), host=host)
        running = RootDevice(0, [self.pi.part(self.running)])
        slots = Slots(self.config.rootfs_part_a, self.config.rootfs_part_b, host=host, root=lambda: running)
        self.module = RootfsImage(self.tree, slots, self.loader, Log(stream=self.stream))

    def reboot(self) -> None:
        """As the agent does."""
        command = self.loader.reboot_command()
        assert command in (TRY, REBOOT)
        if command == TRY:
            Path(self.pi.flag).touch()
        self.start()

    def cut(self) -> None:
        """The power goes and comes back; then the agent starts."""
        self.pi.lose_power()
        self.start()
        if command := self.loader.next_boot():
            assert command == TRY
            Path(self.pi.flag).touch()
            self.start()
            assert self.loader.next_boot() == []

    def install(self) -> None:
        self.module.prepare(Header(), current={"artifact_name": "v1", "device_type": "pi"})
        self.module.download(iter([Payload(self.new)]))
        self.module.call("ArtifactInstall")

    @property
    def state(self) -> tuple[str, str, str]:
        """Boot partition, upgrade_available, bootcount."""
        values = self.loader.read()
        assert values["mender_boot_part_hex"] == values["mender_boot_part"]
        return values["mender_boot_part"], values["upgrade_available"], values["bootcount"]

    @property
    def autoboot(self) -> str:
        return (self.pi.get("1", "autoboot.txt") or b"").decode()


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_success(device: Device) -> None:
    assert device.state == ("5", "0", "0")
    device.install()
    assert device.state == ("6", "1", "0")
    assert device.autoboot == pi.AUTOBOOT  # the trial changes nothing there
    device.reboot()
    assert (device.running, device.pi.booted, device.state) == ("6", "3", ("6", "1", "1"))
    device.module.call("ArtifactVerifyReboot")
    device.module.call("ArtifactCommit")
    assert device.state == ("6", "0", "0")
    for _ in range(2):
        device.cut()
        assert (device.running, device.state) == ("6", ("6", "0", "0"))
    device.install()  # and back into the other slot
    device.reboot()
    device.module.call("ArtifactCommit")
    assert (device.running, device.autoboot) == ("5", pi.AUTOBOOT)


def test_the_boot_partition_is_the_slots_boot_with_a_command_line_of_its_own(device: Device) -> None:
    device.install()
    for name, content in pi.boot_files("new").items():
        found = device.pi.get("3", name.removeprefix("boot/"))
        if name == "boot/cmdline.txt":
            assert found == f"console=serial0,115200 root={device.pi.part('6')} rootwait panic=5\n".encode()
        else:
            assert found == content
    assert Path(device.pi.part("6")).read_bytes() == device.new  # looking into it changed nothing
    assert "read back and equal" in device.stream.getvalue()
    assert "tryboot-root" not in os.listdir(device.config.datastore)


def test_a_fall_back_is_told_with_its_cause(device: Device) -> None:
    device.install()
    device.reboot()
    device.cut()  # the new system hung, somebody pulled the plug
    assert (device.running, device.state) == ("5", ("5", "0", "0"))
    for call in ("ArtifactVerifyReboot", "ArtifactCommit"):
        with pytest.raises(
            PayloadError, match=r"fell back to partition 5: boot partition 3: its one boot did"
        ):
            device.module.call(call)
    device.module.call("ArtifactRollback")
    device.module.call("ArtifactVerifyRollbackReboot")
    device.install()
    assert "boot_failure" not in device.loader.read()


def test_a_boot_partition_that_does_not_start_falls_back(device: Device) -> None:
    device.install()
    Path(device.pi.part("3")).write_bytes(bytes(pi.BOOT_BYTES))
    device.reboot()
    assert (device.running, device.state[1]) == ("5", "0")


@pytest.mark.parametrize("is_booted", [True, False])
def test_rollback_before_the_commit(device: Device, is_booted: bool) -> None:
    device.install()
    if is_booted:
        device.reboot()
    device.module.call("ArtifactRollback")
    assert device.state == ("5", "0", "0")
    device.reboot()
    assert device.running == "5"
    device.module.call("ArtifactVerifyRollbackReboot")
    assert device.autoboot == pi.AUTOBOOT


def test_rollback_after_the_commit(device: Device) -> None:
    device.install()
    device.reboot()
    device.module.call("ArtifactCommit")
    device.module.call("ArtifactRollback")
    assert (device.state, device.autoboot) == (("5", "0", "0"), pi.AUTOBOOT)
    device.reboot()
    assert device.running == "5"


def test_a_cut_between_the_commits_two_writes_is_a_commit(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.install()
    device.reboot()

    def cut(*_: object, **__: object) -> None:
        raise SystemExit

    monkeypatch.setattr(Tryboot, "_save", cut)
    with pytest.raises(SystemExit):
        device.module.call("ArtifactCommit")
    monkeypatch.undo()
    device.cut()
    assert (device.running, device.state) == ("6", ("6", "0", "0"))
    device.module.call("ArtifactRollback")  # the trial that was left is none after that, either
    assert (device.state, device.pi.default_root()) == (("5", "0", "0"), "5")


@pytest.mark.parametrize("point", ["ArtifactInstall_Leave", "ArtifactReboot_Enter"])
def test_a_pause_before_the_reboot_survives_power_cuts(device: Device, point: str) -> None:
    device.install()
    device.module.hold(point)
    for _ in range(2):
        device.cut()
        assert (device.running, device.state) == ("5", ("5", "0", "0"))
        device.module.hold(point)
    device.module.release(point)
    device.reboot()
    assert device.running == "6"
    device.module.call("ArtifactVerifyReboot")


@pytest.mark.parametrize("point", ["ArtifactReboot_Leave", "ArtifactCommit_Enter"])
def test_a_pause_before_the_commit_survives_power_cuts(device: Device, point: str) -> None:
    device.install()
    device.reboot()
    for _ in range(3):
        device.module.hold(point)
        device.cut()
        assert (device.running, device.state) == ("6", ("6", "1", "1"))
    device.module.call("ArtifactCommit")
    assert device.pi.default_root() == "6"


def test_a_cut_before_the_pause_is_held_again_falls_back(device: Device) -> None:
    device.install()
    device.reboot()
    device.module.hold("ArtifactCommit_Enter")
    device.cut()
    device.cut()
    assert device.running == "5"
    with pytest.raises(PayloadError, match="fell back"):
        device.module.hold("ArtifactCommit_Enter")


def test_a_reboot_by_hand_becomes_the_trial(device: Device) -> None:
    """`mender-update install`, `reboot`: without the argument the old system starts, and its agent asks."""
    device.install()
    assert device.loader.next_boot() == []  # the agent was started again, in the same boot
    device.cut()
    assert (device.running, device.state) == ("6", ("6", "1", "1"))


def test_a_reboot_that_did_not_happen_is_told(device: Device) -> None:
    device.install()
    assert device.loader.reboot_command() == TRY
    with pytest.raises(PayloadError, match="boot partition 3: the device did not restart"):
        device.module.call("ArtifactVerifyReboot")


def test_other_reboots_are_plain_whatever_autoboot_says(device: Device) -> None:
    Path(device.pi.part("1")).write_bytes(b"")
    assert device.loader.reboot_command() == REBOOT
    assert device.loader.next_boot() == []


# What is wrong is told, and stays as it is


def test_a_broken_autoboot_stops_the_update_before_anything_is_written(device: Device) -> None:
    device.pi.put("1", "autoboot.txt", b"[all]\nboot_partition=2\n")
    before = {number: Path(device.pi.part(number)).read_bytes() for number in "12356"}
    with pytest.raises(BootloaderError, match="no tryboot_a_b=1 in") as caught:
        device.install()
    assert "it is not touched" in str(caught.value)
    assert {number: Path(device.pi.part(number)).read_bytes() for number in "12356"} == before


def test_autoboot_between_other_partitions_is_told(device: Device) -> None:
    device.pi.put("1", "autoboot.txt", pi.AUTOBOOT.replace("=3", "=4").encode())
    with pytest.raises(
        BootloaderError, match="between partitions 2 and 4, but BootPartA and BootPartB are 2 and 3"
    ):
        device.loader.read()


@pytest.mark.parametrize("name", ["autoboot_part", "boot_part_a", "boot_part_b"])
@pytest.mark.parametrize("value", ["", "/no/such/p9"])
def test_a_partition_that_is_none_is_told(device: Device, name: str, value: str) -> None:
    setattr(device.config, name, value)
    with pytest.raises(BootloaderError, match=r"(AutobootPart|BootPart[AB]) is (not set|/no/such/p9, which)"):
        device.loader.read()


def test_without_the_firmwares_word_nothing_is_assumed(device: Device) -> None:
    os.unlink(os.path.join(device.pi.tree, "partition"))
    with pytest.raises(BootloaderError, match=r"cannot read .*partition: No such file") as caught:
        device.loader.read()
    assert "not U-Boot" in caught.value.hint


def test_an_old_boot_loader_is_told_before_the_trial(device: Device) -> None:
    Path(device.pi.tree, "capabilities").write_bytes((0b1000).to_bytes(4, "big"))
    with pytest.raises(BootloaderError, match=r"does not know tryboot_a_b.*rpi-eeprom-update"):
        device.install()
    assert device.state == ("5", "0", "0")


def test_the_wrong_root_stops_the_installation(device: Device) -> None:
    """Somebody started the other slot by hand."""
    device.install()
    device.module.call("ArtifactRollback")
    Path(device.pi.flag).touch()
    device.start()
    assert device.running == "6"
    with pytest.raises(SlotError, match=r"runs from .*p6, but mender_boot_part is 5"):
        device.install()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"part": "6"}'])
def test_a_damaged_state_file_is_told(device: Device, content: str) -> None:
    path = Path(device.config.datastore, "tryboot.json")
    path.write_text(content)
    with pytest.raises(BootloaderError, match=r"cannot use .*tryboot\.json.*delete it"):
        device.loader.read()
    assert path.read_text() == content


def test_a_lost_state_file_ends_the_trial(device: Device) -> None:
    device.install()
    device.reboot()
    os.unlink(Path(device.config.datastore, "tryboot.json"))
    with pytest.raises(PayloadError, match="fell back"):
        device.module.call("ArtifactVerifyReboot")
    device.reboot()
    assert device.running == "5"


def test_values_that_are_there_are_not_written(device: Device) -> None:
    device.install()
    before = os.stat(Path(device.config.datastore, "tryboot.json")).st_ino
    device.loader.write({"mender_boot_part": "6", "upgrade_available": "1"})
    assert os.stat(Path(device.config.datastore, "tryboot.json")).st_ino == before


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"bootlimit": "2"}, "bootlimit: the firmware has no place"),
        ({"mender_boot_part": "7"}, "neither RootfsPartA nor RootfsPartB"),
        ({"upgrade_available": "1"}, "cannot be tried"),
    ],
)
def test_what_cannot_be_stored_is_refused(device: Device, values: dict[str, str], wrong: str) -> None:
    with pytest.raises(BootloaderError, match=wrong):
        device.loader.write(values)
    assert device.state == ("5", "0", "0")


# The boot partition


@pytest.mark.parametrize("missing", ["boot/config.txt", "boot/cmdline.txt"])
def test_a_root_without_its_boot_files_is_refused(device: Device, missing: str) -> None:
    files = {name: content for name, content in pi.boot_files("new").items() if name != missing}
    pi.make_root(str(device.directory / "new"), files)
    device.new = (device.directory / "new").read_bytes()
    with pytest.raises(PayloadError, match=f"has no /{missing}.*UPDATE_BOOTFLOW"):
        device.install()
    assert device.state == ("5", "0", "0")


def test_a_root_that_is_no_file_system_is_refused(device: Device) -> None:
    device.new = bytes(1 << 20)
    with pytest.raises(PayloadError, match=r"cannot mount .*p6: mount exited with"):
        device.install()
    assert device.state == ("5", "0", "0")


def test_a_boot_partition_in_use_is_not_written(device: Device) -> None:
    before = Path(device.pi.part("3")).read_bytes()
    table = f"1 0 8:1 / / rw - ext4 /dev/none rw\n2 0 8:3 / /mnt rw - vfat {device.pi.part('3')} rw\n"
    (device.directory / "mountinfo").write_text(table)
    with pytest.raises(SlotError, match="p3 is mounted at /mnt"):
        device.install()
    assert Path(device.pi.part("3")).read_bytes() == before


def test_a_mounted_autoboot_partition_is_told_at_the_installation(device: Device) -> None:
    table = f"1 0 8:1 / / rw - ext4 /dev/none rw\n2 0 8:3 / /boot rw - vfat {device.pi.part('1')} rw\n"
    (device.directory / "mountinfo").write_text(table)
    with pytest.raises(SlotError, match="p1 is mounted at /boot"):
        device.install()
    assert device.state == ("5", "0", "0")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("console=tty1 root=/dev/mmcblk0p5 rootwait\n", "console=tty1 root=NEW rootwait\n"),
        ("root=PARTUUID=1-2", "root=NEW\n"),
        ("quiet\nroot=/dev/sda\n", "quiet root=NEW\n"),
        ("root=a x root=b rootfstype=ext4", "root=NEW x rootfstype=ext4\n"),
        ("", "root=NEW\n"),
    ],
)
def test_command_line(text: str, line: str) -> None:
    assert command_line(text, "root=NEW") == line


@pytest.mark.parametrize(
    ("configured", "argument"),
    [
        ("/dev/mmcblk0p6", "root=/dev/mmcblk0p6"),
        ("/dev/disk/by-partuuid/1234-06", "root=PARTUUID=1234-06"),
        ("/dev/disk/by-partlabel/root-b", "root=PARTLABEL=root-b"),
        ("/dev/disk/by-label/root-b", "root=/dev/mmcblk0p6"),  # what udev makes the kernel does not know
    ],
)
def test_root_argument(configured: str, argument: str) -> None:
    assert root_argument(Slot(configured, "/dev/mmcblk0p6")) == argument


# Which boot loader


def test_which_boot_loader(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(stream=device.stream)

    def found(word: str, *, has_fw_env: bool = False, has_partitions: bool = True) -> type:
        monkeypatch.setattr(bootloader, "_FW_ENV_CONFIG", str(device.directory) if has_fw_env else "/no/such")
        device.config.bootloader = word
        device.config.autoboot_part = device.pi.part("1") if has_partitions else ""
        return type(bootloader.find(device.config, log))

    assert found("tryboot", has_fw_env=True) is Tryboot
    assert found("uboot") is UBoot
    assert found("") is Tryboot
    assert found("", has_fw_env=True) is UBoot
    assert found("", has_partitions=False) is UBoot
    with pytest.raises(ConfigError, match=r"Bootloader is 'grub' \(mender.conf may have uboot or tryboot"):
        found("grub")


def test_the_state_file_is_what_the_documentation_says(device: Device) -> None:
    device.install()
    saved = json.loads(Path(device.config.datastore, "tryboot.json").read_text())
    boot = Path(device.pi.boot_id).read_text().strip()
    assert saved == {"part": "6", "bootcount": "0", "boot": boot, "boot_failure": ""}


def test_a_trial_without_the_saved_state_is_left_by_a_plain_reboot(tmp_path: Path) -> None:
    device = Device(tmp_path)

    def is_left() -> bool:
        return device.module.leave_trial("no datastore")

    assert not is_left()
    device.install()
    device.reboot()
    assert (device.running, device.loader.is_started_once()) == ("6", True)
    os.unlink(device.loader._path)
    assert is_left()
    assert device.loader.reboot_command() == REBOOT
    device.reboot()
    assert (device.running, is_left()) == ("5", False)
