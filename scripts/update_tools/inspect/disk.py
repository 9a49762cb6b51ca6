# SPDX-License-Identifier: Apache-2.0
"""Partition tables, MBR (with logical partitions) and GPT, and what kind of file system a partition has."""

from __future__ import annotations

import struct
import uuid
import zlib
from typing import IO

from . import ext4
from .tree import InspectError

SECTOR = 512
_EXTENDED = {0x05, 0x0F, 0x85}


class Partition:
    """One partition; `filesystem` is ext4, vfat, squashfs, erofs, other or empty (all zeros at the start)."""

    __slots__ = ("filesystem", "is_active", "kind", "label", "name", "number", "size", "start")

    def __init__(
        self, number: int, start: int, size: int, kind: str, *, name: str = "", active: bool = False
    ) -> None:
        self.number = number
        self.start = start
        self.size = size
        self.kind = kind
        self.name = name
        self.is_active = active
        self.filesystem = "empty"
        self.label = ""

    @property
    def end(self) -> int:
        """First byte behind it."""
        return self.start + self.size

    def document(self) -> dict[str, object]:
        """For JSON."""
        return {
            "number": self.number,
            "start_bytes": self.start,
            "size_bytes": self.size,
            "type": self.kind,
            "name": self.name,
            "active": self.is_active,
            "filesystem": self.filesystem,
            "label": self.label,
        }


class Disk:
    """A whole card. Raises InspectError if it has no partition table."""

    def __init__(self, image: IO[bytes], name: str) -> None:
        self.image = image
        self.name = name
        self.size = image.seek(0, 2)
        self.scheme, self.identifier, self.partitions = read_table(image, name)
        for partition in self.partitions:
            partition.filesystem, partition.label = identify(image, partition.start)

    def partition(self, number: int) -> Partition | None:
        """The partition of this number."""
        return next((found for found in self.partitions if found.number == number), None)


def read_table(image: IO[bytes], name: str) -> tuple[str, str, list[Partition]]:
    """Scheme (mbr, gpt), identifier of the disk, partitions by number."""
    first = at(image, 0, SECTOR)
    if len(first) < SECTOR or first[510:] != b"\x55\xaa":
        raise InspectError(f"{name} has no partition table", hint="an image of a whole card (.wic) has one")
    entries = [_entry(first, 446 + 16 * index) for index in range(4)]
    if any(kind == 0xEE for kind, _, _, _ in entries):
        return _gpt(image, name)
    partitions: list[Partition] = []
    for number, (kind, active, start, size) in enumerate(entries, 1):
        if kind and size:
            partitions.append(Partition(number, start * SECTOR, size * SECTOR, f"{kind:02x}", active=active))
            if kind in _EXTENDED:
                partitions += _logical(image, start)
    return "mbr", f"{struct.unpack_from('<I', first, 440)[0]:08x}", partitions


def _entry(sector: bytes, position: int) -> tuple[int, bool, int, int]:
    active, kind, start, size = struct.unpack_from("<B3xB3xII", sector, position)
    return kind, active == 0x80, start, size


def _logical(image: IO[bytes], extended: int) -> list[Partition]:
    found = []
    next_at = 0
    for number in range(5, 128):
        sector = at(image, (extended + next_at) * SECTOR, SECTOR)
        if len(sector) < SECTOR or sector[510:] != b"\x55\xaa":
            break
        kind, active, start, size = _entry(sector, 446)
        if kind and size:
            begin = (extended + next_at + start) * SECTOR
            found.append(Partition(number, begin, size * SECTOR, f"{kind:02x}", active=active))
        kind, _, next_at, _ = _entry(sector, 462)
        if not kind or not next_at:
            break
    return found


def _gpt(image: IO[bytes], name: str) -> tuple[str, str, list[Partition]]:
    header = at(image, SECTOR, 92)
    if header[:8] != b"EFI PART":
        raise InspectError(f"{name}: a protective MBR, but no GPT behind it", hint="is the image cut off?")
    crc = struct.unpack_from("<I", header, 16)[0]
    if zlib.crc32(header[:16] + b"\0\0\0\0" + header[20:92]) != crc:
        raise InspectError(f"{name}: the GPT's checksum is wrong", hint="sgdisk --verify says more")
    table, count, entry_bytes = struct.unpack_from("<QII", header, 72)
    if not 128 <= entry_bytes <= 4096 or count > 1024:
        raise InspectError(f"{name}: a GPT with {count} entries of {entry_bytes} bytes")
    entries = at(image, table * SECTOR, count * entry_bytes)
    partitions = []
    for index in range(len(entries) // entry_bytes):
        entry = entries[index * entry_bytes :][:entry_bytes]
        if entry[:16] == bytes(16):
            continue
        start, last, attributes = struct.unpack_from("<QQQ", entry, 32)
        label = entry[56:128].decode("utf-16-le", errors="replace").split("\0")[0]
        kind = str(uuid.UUID(bytes_le=entry[:16]))
        size = max(0, last + 1 - start) * SECTOR
        partitions.append(
            Partition(index + 1, start * SECTOR, size, kind, name=label, active=bool(attributes & 4))
        )
    return "gpt", str(uuid.UUID(bytes_le=header[56:72])), partitions


def identify(image: IO[bytes], start: int) -> tuple[str, str]:
    """File system and its label, by magic numbers."""
    head = at(image, start, 4096)
    if head[ext4.MAGIC_OFFSET : ext4.MAGIC_OFFSET + 2] == ext4.MAGIC:
        return "ext4", head[1024 + 0x78 : 1024 + 0x88].split(b"\0")[0].decode(errors="replace")
    if head[:4] == b"hsqs":
        return "squashfs", ""
    if head[1024:1028] == b"\xe2\xe1\xf5\xe0":
        return "erofs", ""
    if head[510:512] == b"\x55\xaa":
        for magic, label in ((54, 43), (82, 71)):
            if head[magic : magic + 3] == b"FAT":
                return "vfat", head[label : label + 11].decode("cp437").strip().replace("NO NAME", "")
    return ("other" if head.strip(b"\0") else "empty"), ""


def at(image: IO[bytes], position: int, size: int) -> bytes:
    """Bytes of an image; fewer at its end, none behind it."""
    try:
        image.seek(position)
    except (OverflowError, OSError):  # an offset that no file has
        return b""
    return image.read(size)
