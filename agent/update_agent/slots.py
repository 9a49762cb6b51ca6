# SPDX-License-Identifier: Apache-2.0
"""The pair of root partitions: which is active, which may be written, and writing it (artifact-v3.md 12).

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
    from typing import Protocol

    class Source(Protocol):
        """A payload file: its size is known, its bytes come once."""

        name: str
        size: int

        def readinto(self, buffer: memoryview) -> int:
            """Fill the buffer from its start; 0 at the end. May raise ArtifactError (checksum)."""


CHUNK_BYTES = 1 << 20
COMPARE_BYTES = 1 << 16
# Dirty pages are handed to the medium in portions: a slot's worth of them stalls small boards for seconds.
FLUSH_BYTES = 16 << 20


class Host:
    """Where the kernel tells about mounts and devices; tests point it elsewhere."""

    __slots__ = ("cmdline", "dev", "mountinfo", "root", "sys_ubi")

    def __init__(
        self,
        root: str = "/",
        mountinfo: str = "/proc/self/mountinfo",
        cmdline: str = "/proc/cmdline",
        dev: str = "/dev",
        sys_ubi: str = "/sys/class/ubi",
    ) -> None:
        self.root = root
        self.mountinfo = mountinfo
        self.cmdline = cmdline
        self.dev = dev
        self.sys_ubi = sys_ubi


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
            f"mender_boot_part is {boot_part or 'not set'}, but the root partitions are {a.device}, {b.device}",
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


class Written:
    """What a copy did: payload size, bytes that had to be written, SHA-256 of the payload."""

    __slots__ = ("digest", "size_bytes", "written_bytes")

    def __init__(self, size_bytes: int, written_bytes: int, digest: str) -> None:
        self.size_bytes = size_bytes
        self.written_bytes = written_bytes
        self.digest = digest


def install(source: Source, slots: Slots, slot: Slot) -> Written:
    """Write the payload to an inactive slot, read it back, and return what was done.

    On return the data is on the medium and was read from there again with the digest it was written with.
    Raises SlotError; the content of the slot is then undefined, the running system untouched.
    """
    fd = slots.open_for_writing(slot, source.size)
    try:
        written = _update_ubi(source, fd) if slot.is_ubi else copy(source, fd)
        verify(fd, written)
    except OSError as error:
        raise SlotError(
            f"cannot write {slot.device}: {os.strerror(error.errno or 0)}",
            hint="the kernel log may tell of a failing medium",
        ) from error
    except SlotError as error:
        raise SlotError(f"{slot.device}: {error.message}", hint=error.hint) from error
    finally:
        os.close(fd)
    return written


def _fill(source: Source, buffer: memoryview) -> int:
    """Read until the buffer is full or the source at its end."""
    filled = 0
    while filled < len(buffer):
        count = source.readinto(buffer[filled:])
        if not count:
            break
        filled += count
    return filled


def copy(source: Source, fd: int) -> Written:
    """Copy the payload to `fd` from its start; blocks of 64 KiB that are there already are not written.

    On the medium (fsync) on return. Raises OSError, and SlotError when the source is shorter than it says.
    """
    import hashlib

    digest = hashlib.sha256()
    new, old = bytearray(CHUNK_BYTES), bytearray(CHUNK_BYTES)
    view = memoryview(new)
    position = written = unflushed = 0
    while position < source.size:
        want = min(CHUNK_BYTES, source.size - position)
        count = _fill(source, view[:want])
        digest.update(view[:count])
        present = os.preadv(fd, [memoryview(old)[:count]], position)
        for start, end in _differing(new, old, count, present):
            _write_all(fd, view[start:end], position + start)
            written += end - start
            unflushed += end - start
        position += count
        if count < want:
            raise SlotError(f"the payload ended after {position} of {source.size} bytes")
        if unflushed >= FLUSH_BYTES:
            os.fdatasync(fd)
            unflushed = 0
    _expect_end(source)
    os.fsync(fd)
    return Written(position, written, digest.hexdigest())


def _differing(new: bytearray, old: bytearray, count: int, present: int) -> list[tuple[int, int]]:
    """Ranges of `new[:count]` that must be written over `old[:present]`, in whole compare blocks, joined."""
    # Equality of bytearrays is one memcmp; of memoryviews it is eight times slower.
    if count == present == len(new) and new == old:
        return []
    ranges: list[tuple[int, int]] = []
    for start in range(0, count, COMPARE_BYTES):
        end = min(start + COMPARE_BYTES, count)
        if end <= present and new[start:end] == old[start:end]:
            continue
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    return ranges


def _write_all(fd: int, view: memoryview, position: int) -> None:
    while view:
        count = os.pwrite(fd, view, position)
        view, position = view[count:], position + count


def _expect_end(source: Source) -> None:
    """Read past the last byte: the end of the payload is where its checksum is compared."""
    if source.readinto(memoryview(bytearray(1))):
        raise SlotError(f"the payload is longer than the {source.size} bytes it was announced with")


def _update_ubi(source: Source, fd: int) -> Written:
    """Write a UBI volume as ubiupdatevol does: announce the size, then exactly that many bytes in order.

    Until the last byte has arrived the kernel treats the volume as damaged, so it is never half an old one.
    """
    import fcntl
    import hashlib
    import struct

    ubi_iocvolup = 0x40084F00  # _IOW('O', 0, __s64), the same on all architectures
    fcntl.ioctl(fd, ubi_iocvolup, struct.pack("q", source.size))
    digest = hashlib.sha256()
    view = memoryview(bytearray(CHUNK_BYTES))
    position = 0
    while position < source.size:
        want = min(CHUNK_BYTES, source.size - position)
        count = _fill(source, view[:want])
        if count < want:
            raise SlotError(f"the payload ended after {position + count} of {source.size} bytes")
        digest.update(view[:count])
        rest = view[:count]
        while rest:
            rest = rest[os.write(fd, rest) :]
        position += count
    _expect_end(source)
    os.fsync(fd)
    return Written(position, position, digest.hexdigest())


def verify(fd: int, written: Written) -> None:
    """Read back what was written and compare digests. Raises SlotError on a difference.

    The page cache is dropped first, so that the bytes come from the medium.
    """
    import hashlib

    digest = hashlib.sha256()
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    view = memoryview(bytearray(CHUNK_BYTES))
    position = 0
    while position < written.size_bytes:
        count = os.preadv(fd, [view[: min(CHUNK_BYTES, written.size_bytes - position)]], position)
        if not count:
            break
        digest.update(view[:count])
        position += count
    if digest.hexdigest() != written.digest:
        raise SlotError(
            f"what was read back differs from what was written (SHA-256 {digest.hexdigest()} instead of "
            f"{written.digest})",
            hint="the medium loses or changes data; replace it",
        )
