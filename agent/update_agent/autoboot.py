# SPDX-License-Identifier: Apache-2.0
"""autoboot.txt: the one sector by which a Raspberry Pi's firmware chooses its boot partition.

It is read and written where it lies on the partition, without mounting that. FAT has no journal: a file
that is replaced takes a new directory entry and new clusters, and a power cut in between leaves two files,
or none. Here two numbers change places, the text keeps its length, and one sector is written: after a cut a
card has the old or the new one. The firmware knows no second copy. So it is written once in an update, by
the commit.
"""

from __future__ import annotations

import errno
import fcntl
import os

from update_agent.errors import BootloaderError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[int, int], bytes]

NAME = "autoboot.txt"
LIMIT_BYTES = 512  # more is not read by the firmware; also a sector
_FAT_NAME = b"AUTOBOOTTXT"
_MAX_CLUSTERS = 64  # of a FAT32's first directory: a loop of them must end
_HINT = (
    "it is not touched; write it anew, for example: "
    "[all] tryboot_a_b=1 boot_partition=2 [tryboot] boot_partition=3, each on a line"
)


class Autoboot:
    """Its text, and the two partitions: `default` starts, `other` starts once when it is asked for."""

    def __init__(self, text: str, where: str) -> None:
        """Raises BootloaderError for what the firmware and we could understand differently."""
        self.text = text
        self.default, self.other = "", ""
        self._spans: dict[str, tuple[int, int]] = {}
        values: dict[str, str] = {}
        section, position = "all", 0
        for line in text.splitlines(keepends=True):
            content = line.strip()
            if content.startswith("[") and content.endswith("]"):
                section = content[1:-1].strip().lower()
            elif "=" in content and not content.startswith("#"):
                name, _, value = content.partition("=")
                key = f"{section} {name.strip().lower()}"
                value = value.strip()
                if key in values:
                    raise BootloaderError(f"{where}: {name.strip()} stands twice in [{section}]", hint=_HINT)
                start = position + line.index(value, line.index("="))
                values[key], self._spans[key] = value, (start, start + len(value))
            position += len(line)
        if values.get("all tryboot_a_b") != "1":
            raise BootloaderError(f"{where} has no tryboot_a_b=1 in [all]", hint=_HINT)
        for part in ("all", "tryboot"):
            if not values.get(f"{part} boot_partition", "").isdigit():
                raise BootloaderError(f"{where} has no boot_partition=NUMBER in [{part}]", hint=_HINT)
        self.default, self.other = values["all boot_partition"], values["tryboot boot_partition"]
        if self.default == self.other:
            raise BootloaderError(f"{where} names partition {self.default} twice", hint=_HINT)

    def swapped(self) -> str:
        """The text with the two numbers exchanged, and nothing else: so it is exactly as long."""
        (first, end), (second, last) = sorted(
            self._spans[f"{part} boot_partition"] for part in ("all", "tryboot")
        )
        text = self.text
        return text[:first] + text[second:last] + text[end:second] + text[first:end] + text[last:]


def locate(read: Read, where: str) -> tuple[int, int]:
    """Where the file's content is on a FAT12, FAT16 or FAT32: first byte, and size. `read`: position, size.

    Raises BootloaderError.
    """
    head = read(0, 512)

    def number(position: int, size: int) -> int:
        return int.from_bytes(head[position : position + size], "little")

    sector, per_cluster, root_entries = number(11, 2), number(13, 1), number(17, 2)
    if number(510, 2) != 0xAA55 or sector not in {512, 1024, 2048, 4096} or not per_cluster:
        raise BootloaderError(
            f"{where} has no FAT file system",
            hint="AutobootPart in mender.conf is the first partition, which holds autoboot.txt",
        )
    fat = number(14, 2) * sector
    root = fat + number(16, 1) * (number(22, 2) or number(36, 4)) * sector
    data = root + -(-root_entries * 32 // sector) * sector
    cluster_bytes = per_cluster * sector

    def start_of(cluster: int) -> int:
        return data + (cluster - 2) * cluster_bytes

    if root_entries:
        table = read(root, root_entries * 32)
    else:
        table, cluster = b"", number(44, 4)
        for _ in range(_MAX_CLUSTERS):
            table += read(start_of(cluster), cluster_bytes)
            cluster = int.from_bytes(read(fat + 4 * cluster, 4), "little") & 0x0FFFFFFF
            if not 2 <= cluster < 0x0FFFFFF7:
                break
    for position in range(0, len(table), 32):
        entry = table[position : position + 32]
        if entry[0] == 0:
            break
        if entry[:11] == _FAT_NAME and not entry[11] & 0x18:  # neither a directory nor the volume's label
            cluster = int.from_bytes(entry[26:28], "little")
            if not root_entries:
                cluster |= int.from_bytes(entry[20:22], "little") << 16
            size = int.from_bytes(entry[28:32], "little")
            if not 0 < size <= LIMIT_BYTES or cluster < 2:
                raise BootloaderError(
                    f"{where}: {NAME} has {size} bytes, the firmware reads 1 to {LIMIT_BYTES}", hint=_HINT
                )
            return start_of(cluster), size
    raise BootloaderError(f"{where} has no {NAME}", hint=_HINT)


def _failed(doing: str, path: str, error: OSError) -> BootloaderError:
    return BootloaderError(
        f"cannot {doing} {NAME} on {path}: {os.strerror(error.errno or 0)}",
        hint="AutobootPart in mender.conf is the partition that holds it",
    )


def _sector_of(fd: int, path: str) -> tuple[int, int, bytes]:
    """Position and size of the text, and the whole sector that it lies in, as the medium has it."""

    def read(position: int, size: int) -> bytes:
        return os.pread(fd, size, position)

    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # not what the page cache has from before
    position, size = locate(read, path)
    sector = read(position, LIMIT_BYTES)
    if len(sector) < LIMIT_BYTES or position % LIMIT_BYTES:
        raise BootloaderError(f"{path}: {NAME} lies outside of the partition")
    return position, size, sector


def load(path: str) -> Autoboot:
    """What the firmware would read on this partition. Raises BootloaderError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _, size, sector = _sector_of(fd, path)
        finally:
            os.close(fd)
    except OSError as error:
        raise _failed("read", path, error) from error
    return Autoboot(sector[:size].decode("ascii", "replace"), f"{path}: {NAME}")


def swap(path: str) -> None:
    """Exchange the two partitions, durably, by a write of the one sector. Raises BootloaderError."""
    import mmap

    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            position, size, sector = _sector_of(fd, path)
            text = Autoboot(sector[:size].decode("ascii", "replace"), f"{path}: {NAME}").swapped()
            buffer = mmap.mmap(-1, LIMIT_BYTES)  # aligned, as O_DIRECT wants it
            buffer[:] = text.encode("ascii", "replace") + sector[size:]
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            try:
                # Past the page cache, whose pages are eight sectors.
                fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
                os.pwrite(fd, buffer, position)
            except OSError as error:
                if error.errno != errno.EINVAL:  # a file system without it, a medium with larger sectors
                    raise
                fcntl.fcntl(fd, fcntl.F_SETFL, flags)
                os.pwrite(fd, buffer, position)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise _failed("write", path, error) from error
