# SPDX-License-Identifier: Apache-2.0
"""The pair of root partitions: which is active, and which may be written (artifact-v3.md section 12).

Nothing is written before three checks: the active slot is what the system runs from, the other one is not
mounted and not otherwise in use, and the payload fits.
"""

from __future__ import annotations

import errno
import os
import stat

from update_agent.errors import SlotError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Host:
    """Where the kernel tells about mounts and devices; tests point it elsewhere."""

    __slots__ = ("boot_id", "bootloader", "cmdline", "dev", "mountinfo", "root", "sys_ubi")

    def __init__(
        self,
        root: str = "/",
        mountinfo: str = "/proc/self/mountinfo",
        cmdline: str = "/proc/cmdline",
        dev: str = "/dev",
        sys_ubi: str = "/sys/class/ubi",
        bootloader: str = "/proc/device-tree/chosen/bootloader",
        boot_id: str = "/proc/sys/kernel/random/boot_id",
    ) -> None:
        self.root = root
        self.mountinfo = mountinfo
        self.cmdline = cmdline
        self.dev = dev
        self.sys_ubi = sys_ubi
        self.bootloader = bootloader
        self.boot_id = boot_id


class Slot:
    """One root partition: `device` with all links resolved, and the number the boot loader knows it by."""

    __slots__ = ("configured", "device", "number")

    def __init__(self, configured: str, device: str) -> None:
        self.configured = configured
        self.device = device
        self.number = _trailing_digits(device)

    @property
    def number_hex(self) -> str:
        """As mender_boot_part_hex has it."""
        return f"{int(self.number):x}"

    @property
    def is_ubi(self) -> bool:
        """A volume of raw flash: a character device that is updated as a whole."""
        return os.path.basename(self.device).startswith("ubi")


class Pair:
    """The two slots as seen from the boot environment: `active` is what mender_boot_part names."""

    __slots__ = ("active", "inactive")

    def __init__(self, active: Slot, inactive: Slot) -> None:
        self.active = active
        self.inactive = inactive


class RootDevice:
    """What the system runs from: a device number; 0 where it says nothing (UBI, overlay), and paths then."""

    __slots__ = ("number", "paths")

    def __init__(self, number: int, paths: list[str]) -> None:
        self.number = number
        self.paths = paths

    def is_on(self, slot: Slot) -> bool:
        """Whether that is this slot."""
        if self.number and _device_number(slot.device):
            return self.number == _device_number(slot.device)
        return slot.device in self.paths


def _trailing_digits(path: str) -> str:
    digits = ""
    while path and path[-1] in "0123456789":
        digits = path[-1] + digits
        path = path[:-1]
    return digits


def _device_number(path: str) -> int:
    """Number of a block device; 0 for anything else."""
    try:
        info = os.stat(path)
    except OSError:
        return 0
    return info.st_rdev if stat.S_ISBLK(info.st_mode) else 0


def _unescape(field: str) -> str:
    r"""A mountinfo field with its octal escapes (\040 is a blank) undone."""
    first, *rest = field.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def mounts(host: Host) -> list[tuple[int, str, str]]:
    """Device number, mount point and source of everything mounted. Raises SlotError."""
    table = []
    try:
        with open(host.mountinfo, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.split()
                major, minor = fields[2].split(":")
                source = fields[fields.index("-") + 2]
                table.append((os.makedev(int(major), int(minor)), _unescape(fields[4]), _unescape(source)))
    except (OSError, ValueError, IndexError) as error:
        raise SlotError(f"cannot read the mount table {host.mountinfo}: {error}") from error
    return table


def _named_device(name: str, host: Host) -> str:
    """The device node for what the kernel command line or a mount table calls it; "" if that says nothing."""
    for tag, directory in (
        ("PARTUUID=", "by-partuuid"),
        ("PARTLABEL=", "by-partlabel"),
        ("UUID=", "by-uuid"),
        ("LABEL=", "by-label"),
    ):
        if name.startswith(tag):
            return os.path.realpath(os.path.join(host.dev, "disk", directory, name[len(tag) :].strip('"')))
    if name.startswith("ubi"):
        return os.path.realpath(os.path.join(host.dev, name))
    return os.path.realpath(name) if name.startswith("/") and os.path.exists(name) else ""


def root_device(host: Host | None = None) -> RootDevice:
    """What is mounted at `/`. Raises SlotError when the mount table cannot be read."""
    host = host or Host()
    number = os.stat(host.root).st_dev
    if os.major(number) == 0:
        number = 0  # UBIFS, overlayfs, btrfs: an anonymous number that no device node has
    names = [source for _, point, source in mounts(host) if point == host.root][-1:]
    try:
        with open(host.cmdline, encoding="utf-8", errors="surrogateescape") as file:
            names += [word[len("root=") :] for word in file.read().split() if word.startswith("root=")][-1:]
    except OSError:
        pass  # no /proc: the mount table has to do
    paths = [_named_device(name, host) for name in names]
    return RootDevice(number, [path for path in paths if path])


class Slots:
    """RootfsPartA and RootfsPartB of this device."""

    def __init__(
        self,
        part_a: str,
        part_b: str,
        *,
        host: Host | None = None,
        root: Callable[[], RootDevice] | None = None,
    ) -> None:
        self._configured = (part_a, part_b)
        self._host = host or Host()
        self._root = root or (lambda: root_device(self._host))

    @property
    def is_configured(self) -> bool:
        """Both partitions are named in mender.conf."""
        return all(self._configured)

    def _resolve(self, configured: str) -> Slot:
        path = os.path.join(self._host.dev, configured) if configured.startswith("ubi") else configured
        device = os.path.realpath(path)
        if configured == "/dev/root" and not os.path.exists(device):
            # The kernel's own name for what it mounted without an initramfs; udev links it only sometimes.
            paths = self._root().paths
            device = paths[-1] if paths else device
        if not os.path.exists(device):
            raise SlotError(
                f"root partition {configured} does not exist",
                hint="RootfsPartA and RootfsPartB in mender.conf name the two root partitions",
            )
        slot = Slot(configured, device)
        if not slot.number:
            raise SlotError(
                f"root partition {configured} is {device}, which does not end in a partition number",
                hint="name a partition, not a whole disk",
            )
        return slot

    def both(self) -> tuple[Slot, Slot]:
        """A and B, links resolved. Raises SlotError when they are not two existing partitions."""
        if not self.is_configured:
            raise SlotError(
                "RootfsPartA and RootfsPartB are not both set",
                hint="name the two root partitions in mender.conf, such as /dev/mmcblk0p2 and /dev/mmcblk0p3",
            )
        a, b = (self._resolve(path) for path in self._configured)
        number = _device_number(a.device)
        if a.device == b.device or (number and number == _device_number(b.device)):
            raise SlotError(f"RootfsPartA and RootfsPartB are both {a.device}")
        if a.number == b.number:
            raise SlotError(
                f"{a.device} and {b.device} have the same partition number, {a.number}, so the boot loader "
                "cannot tell them apart"
            )
        return a, b

    def pair(self, boot_part: str) -> Pair:
        """Active and inactive slot for the present mender_boot_part. Raises SlotError when it is neither."""
        a, b = self.both()
        for active, inactive in ((a, b), (b, a)):
            if boot_part == active.number:
                return Pair(active, inactive)
        raise SlotError(
            f"mender_boot_part is {boot_part or 'not set'}, the root partitions are {a.device}, {b.device}",
            hint="it must be the number of one of them",
        )

    def runs_from(self, slot: Slot) -> bool:
        """Whether the system's root is this slot."""
        return self._root().is_on(slot)

    def check_root(self, pair: Pair) -> None:
        """Raise SlotError unless the system runs from the active slot."""
        if not self.runs_from(pair.active):
            running = pair.inactive.device if self.runs_from(pair.inactive) else "another device"
            raise SlotError(
                f"the system runs from {running}, but mender_boot_part is {pair.active.number} "
                f"({pair.active.device})",
                hint="a switch that was not booted yet, or a boot loader that reads another environment",
            )

    def check_unused(self, slot: Slot) -> None:
        """Raise SlotError if the slot is the running root or mounted anywhere we can see."""
        if self.runs_from(slot):
            raise SlotError(f"{slot.device} is the running root file system and cannot be written")
        number = _device_number(slot.device)
        for mounted, point, source in mounts(self._host):
            if (number and mounted == number) or _named_device(source, self._host) == slot.device:
                raise SlotError(
                    f"{slot.device} is mounted at {point}", hint=f"umount {point}, then try again"
                )

    def open_for_writing(self, slot: Slot, size_bytes: int) -> int:
        """A descriptor of the slot after all checks that can be made before the first write.

        Raises SlotError if it is in use (also by another mount namespace, swap, dm or md) or too small.
        """
        self.check_unused(slot)
        # O_EXCL without O_CREAT on a block device: EBUSY while the kernel or another claimant uses it.
        exclusive = os.O_EXCL if _device_number(slot.device) else 0
        try:
            fd = os.open(slot.device, os.O_RDWR | os.O_CLOEXEC | exclusive)
        except OSError as error:
            in_use = "something uses it: a mount in another namespace, swap, device mapper?"
            raise SlotError(
                f"cannot open {slot.device} for writing: {os.strerror(error.errno or 0)}",
                hint=in_use if error.errno == errno.EBUSY else "",
            ) from error
        try:
            room = _capacity(fd, slot, self._host)
            if size_bytes > room:
                raise SlotError(
                    f"the payload of {size_bytes} bytes does not fit into {slot.device} of {room} bytes",
                    hint="build the root file system image smaller",
                )
        except BaseException:
            os.close(fd)
            raise
        return fd


def _capacity(fd: int, slot: Slot, host: Host) -> int:
    """Bytes the slot holds."""
    if slot.is_ubi:
        path = os.path.join(host.sys_ubi, os.path.basename(slot.device), "data_bytes")
        try:
            with open(path, encoding="ascii") as file:
                return int(file.read())
        except (OSError, ValueError) as error:
            raise SlotError(f"cannot read the size of {slot.device} from {path}: {error}") from error
    # Seeking to the end of a block device is BLKGETSIZE64 without its architecture-dependent request number.
    return os.lseek(fd, 0, os.SEEK_END)
