# SPDX-License-Identifier: Apache-2.0
"""A FAT16 file system made anew from a directory, as a stream of bytes: what a boot partition is filled with.

All of it is decided before the first byte: files lie one after the other, in one piece each. So a partition
is written like a root slot, from front to back and read again, and what a power cut left of the one before
does not matter. Same files, same bytes.
"""

from __future__ import annotations

import os
import stat
import struct

from update_agent.digest import sha256
from update_agent.errors import PayloadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SECTOR = 512
_RESERVED = 8  # sectors before the first table
_ROOT_ENTRIES = 512
_MAX_CLUSTERS, _MIN_CLUSTERS = 65524, 4085  # what makes it FAT16
_DATE = 1 << 5 | 1  # 1980-01-01: no build, no device tells the time
_PLAIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"


class _Node:
    """A file or a directory: its content is `data`, else `path` (of `size` bytes)."""

    __slots__ = ("cluster", "data", "entries", "is_directory", "name", "path", "size")

    def __init__(self, name: str, path: str, size: int, *, is_directory: bool) -> None:
        self.name = name
        self.path = path
        self.size = size
        self.is_directory = is_directory
        self.data: bytes | None = None
        self.entries: list[_Node] = []
        self.cluster = 0


class Fat16:
    """A payload for `slot_writer.install`: `replaced` has files whose content is not the directory's."""

    def __init__(self, directory: str, partition_bytes: int, replaced: Mapping[str, bytes]) -> None:
        """Raises PayloadError for what does not fit, or is neither file nor directory."""
        self.name = "the boot partition"
        self.compression = "none"
        root = _Node("", directory, 0, is_directory=True)
        _scan(root, directory)
        for node in root.entries:
            if (data := replaced.get(node.name)) is not None:
                node.data, node.size = data, len(data)
        sectors = partition_bytes // _SECTOR
        per_cluster = 1
        while sectors // per_cluster > _MAX_CLUSTERS and per_cluster < 64:
            per_cluster *= 2
        table_sectors = -(-(sectors // per_cluster + 2) * 2 // _SECTOR)
        data_sector = _RESERVED + 2 * table_sectors + _ROOT_ENTRIES * 32 // _SECTOR
        clusters = (sectors - data_sector) // per_cluster
        self._cluster_bytes = per_cluster * _SECTOR
        nodes = list(_walk(root))
        chains, used = [], 2
        for node in nodes:
            if node.is_directory:
                node.size = (2 + sum(_slots(each) for each in node.entries)) * 32
            node.cluster = used if node.size else 0
            length = -(-node.size // self._cluster_bytes)
            if length:
                chains.append((used, length))
            used += length
        if not _MIN_CLUSTERS <= clusters <= _MAX_CLUSTERS:
            raise PayloadError(
                f"a boot partition of {partition_bytes} bytes cannot be FAT16", hint="make it 16 MiB to 2 GiB"
            )
        if used - 2 > clusters or sum(_slots(each) for each in root.entries) > _ROOT_ENTRIES:
            raise PayloadError(
                f"{directory} of the new root file system does not fit into the boot partition: it takes "
                f"{(used - 2) * self._cluster_bytes} bytes of {clusters * self._cluster_bytes}",
                hint="a larger boot partition, or fewer files in /boot",
            )
        table = bytearray(table_sectors * _SECTOR)
        table[:4] = b"\xf8\xff\xff\xff"
        for first, length in chains:
            for cluster in range(first, first + length):
                after = 0xFFFF if cluster == first + length - 1 else cluster + 1
                table[2 * cluster : 2 * cluster + 2] = after.to_bytes(2, "little")
        boot = bytearray(_RESERVED * _SECTOR)
        boot[:11] = b"\xeb\x3c\x90update  "
        for position, size, value in (
            (11, 2, _SECTOR),
            (13, 1, per_cluster),
            (14, 2, _RESERVED),
            (16, 1, 2),
            (17, 2, _ROOT_ENTRIES),
            (19, 2, sectors if sectors < 1 << 16 else 0),
            (21, 1, 0xF8),
            (22, 2, table_sectors),
            (24, 2, 63),
            (26, 2, 255),
            (32, 4, 0 if sectors < 1 << 16 else sectors),
            (36, 2, 0x80),
            (38, 1, 0x29),
            (39, 4, used),
            (510, 2, 0xAA55),
        ):
            boot[position : position + size] = value.to_bytes(size, "little")
        boot[43:62] = b"NO NAME    FAT16   "
        top = _table(root.entries, b"").ljust(_ROOT_ENTRIES * 32, b"\0")
        for parent in (root, *nodes):
            for node in parent.entries:
                if node.is_directory:
                    node.data = _table(node.entries, _dots(node.cluster, parent.cluster))
        self._parts = iter([_Part(bytes(boot + table + table + top), "", 0), *map(self._part, nodes)])
        self.size = data_sector * _SECTOR + (used - 2) * self._cluster_bytes
        self._rest: Iterator[bytes] = iter(())
        self._pending = memoryview(b"")
        self._digest = sha256()

    # As slot_writer.Source

    def fill(self, view: memoryview) -> int:
        """The next bytes, less than a full view only at the end. Raises PayloadError."""
        done = 0
        while done < len(view):
            if not self._pending:
                chunk = next(self._rest, None)
                if chunk is None:
                    part = next(self._parts, None)
                    if part is None:
                        break
                    self._rest = part.chunks()
                    continue
                self._pending = memoryview(chunk)
            count = min(len(self._pending), len(view) - done)
            view[done : done + count] = self._pending[:count]
            self._pending = self._pending[count:]
            done += count
        return done

    def readinto(self, buffer: memoryview) -> int:
        """`fill` and `hash`."""
        count = self.fill(buffer)
        self.hash(buffer[:count])
        return count

    def hash(self, view: memoryview) -> None:
        """Take the next bytes into the checksum."""
        self._digest.update(view)

    def verify(self) -> str:
        """SHA-256 in hex of what was made."""
        return self._digest.hexdigest()

    def _part(self, node: _Node) -> _Part:
        padded = -(-node.size // self._cluster_bytes) * self._cluster_bytes
        if node.data is not None:
            return _Part(node.data.ljust(padded, b"\0"), "", 0)
        return _Part(b"", node.path, node.size, padded - node.size)


class _Part:
    """Bytes, or a file with so many zeros after it."""

    def __init__(self, data: bytes, path: str, size: int, padding: int = 0) -> None:
        self._data = data
        self._path = path
        self._size = size
        self._padding = padding

    def chunks(self) -> Iterator[bytes]:
        if not self._path:
            yield self._data
            return
        left = self._size
        try:
            with open(self._path, "rb", buffering=0) as file:
                while left and (chunk := file.read(min(left, 256 << 10))):
                    left -= len(chunk)
                    yield chunk
        except OSError as error:
            raise PayloadError(f"cannot read {self._path}: {os.strerror(error.errno or 0)}") from error
        if left:
            raise PayloadError(f"{self._path} ended {left} bytes before its size")
        yield bytes(self._padding)


def _scan(node: _Node, top: str) -> None:
    """Take in what a directory has. A link counts as the file that it leads to, within the same tree."""
    seen: dict[str, str] = {}
    try:
        for name in sorted(os.listdir(node.path)):
            path = os.path.join(node.path, name)
            real = os.path.realpath(path)
            if not real.startswith(os.path.join(os.path.realpath(top), "")):
                raise PayloadError(f"{path} is a link that leads out of {top}", hint="put the file there")
            info = os.stat(real)
            is_directory = stat.S_ISDIR(info.st_mode)
            if name == "lost+found" or (os.path.islink(path) and is_directory):
                continue
            if not (is_directory or stat.S_ISREG(info.st_mode)):
                raise PayloadError(f"{path} is neither a file nor a directory")
            if name.lower() in seen:
                raise PayloadError(f"{path} and {seen[name.lower()]} are one name to FAT")
            if len(name) > 255 or set(name) & set('"*:<>?\\|') or name.endswith((" ", ".")):
                raise PayloadError(f"{path} has a name that FAT does not have")
            seen[name.lower()] = name
            child = _Node(name, real, 0 if is_directory else info.st_size, is_directory=is_directory)
            if is_directory:
                _scan(child, top)
            node.entries.append(child)
    except OSError as error:
        raise PayloadError(f"cannot read {node.path}: {os.strerror(error.errno or 0)}") from error


def _walk(node: _Node) -> Iterator[_Node]:
    for entry in node.entries:
        yield entry
        yield from _walk(entry)


def _slots(node: _Node) -> int:
    """Directory entries that a name takes: a short one, and before it those of the long name."""
    return 1 + (0 if _is_short(node.name) else -(-len(node.name.encode("utf-16-le")) // 26))


def _is_short(name: str) -> bool:
    base, dot, extension = name.partition(".")
    return (
        0 < len(base) <= 8
        and len(extension) <= 3
        and bool(dot) == bool(extension)
        and not set(base + extension) - set(_PLAIN)
    )


def _alias(name: str, taken: set[bytes]) -> bytes:
    """The short name of a file, 11 bytes, of which there is one in its directory."""
    base, _, extension = name.upper().rpartition(".") if "." in name[1:] else (name.upper(), "", "")
    stem = "".join(c if c in _PLAIN else "_" for c in base.replace(".", "").replace(" ", ""))
    end = "".join(c if c in _PLAIN else "_" for c in extension)[:3].ljust(3)
    short = (stem[:8].ljust(8) + end).encode()
    number = 0
    while short in taken or (number == 0 and len(stem) > 8):
        number += 1
        tail = f"~{number}"
        short = ((stem[: 8 - len(tail)] + tail).ljust(8) + end).encode()
    taken.add(short)
    return short


def _entry(short: bytes, attributes: int, cluster: int, size: int) -> bytes:
    return struct.pack(
        "<11sBBBHHHHHHHI", short, attributes, 0, 0, 0, _DATE, _DATE, 0, 0, _DATE, cluster, size
    )


def _dots(own: int, parent: int) -> bytes:
    return _entry(b".".ljust(11), 0x10, own, 0) + _entry(b"..".ljust(11), 0x10, parent, 0)


def _table(nodes: list[_Node], before: bytes) -> bytes:
    """A directory's entries."""
    taken = {
        (base.ljust(8) + extension.ljust(3)).encode()
        for base, _, extension in (node.name.partition(".") for node in nodes if _is_short(node.name))
    }
    table = before
    for node in nodes:
        if _is_short(node.name):
            base, _, extension = node.name.partition(".")
            short = (base.ljust(8) + extension.ljust(3)).encode()
        else:
            short = _alias(node.name, taken)
            table += _long_name(node.name, short)
        table += _entry(
            short, 0x10 if node.is_directory else 0x20, node.cluster, 0 if node.is_directory else node.size
        )
    return table


def _long_name(name: str, short: bytes) -> bytes:
    check = 0
    for byte in short:
        check = ((check >> 1) + (check << 7 & 0x80) + byte) & 0xFF
    text = name.encode("utf-16-le")
    count = -(-len(text) // 26)
    if len(text) % 26:
        text = (text + b"\0\0").ljust(count * 26, b"\xff")
    entries = []
    for number in range(count, 0, -1):
        part = text[(number - 1) * 26 : number * 26]
        order = number | (0x40 if number == count else 0)
        entries.append(
            bytes([order]) + part[:10] + bytes([0x0F, 0, check]) + part[10:22] + b"\0\0" + part[22:]
        )
    return b"".join(entries)
