# SPDX-License-Identifier: Apache-2.0
"""FAT12, FAT16 and FAT32, read where they lie in a larger image: no mount, no copy, no mtools.

An image may be cut off or forged: every cluster belongs to one file only, so that time and memory are bounded
by the size of the image.
"""

from __future__ import annotations

import stat
import struct
from array import array
from typing import IO, TYPE_CHECKING

from .tree import Entry, InspectError, Tree

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENTRY = 32
_LABEL, _DIRECTORY, _LONG_NAME = 0x08, 0x10, 0x0F
_MAX_DEPTH = 32
_MAX_CLUSTERS = 0x0FFFFFF5


class FatTree(Tree):
    """The files of a FAT at `offset` of an open image, all with mode 0755 as Linux shows them by default.

    Raises InspectError if nothing can be read; `damage` tells of single files: pairs of path and reason.
    """

    def __init__(self, image: IO[bytes], offset: int, name: str) -> None:
        super().__init__(name)
        self._image = image
        self._offset = offset
        self._chains: dict[str, array[int]] = {}
        self._used = bytearray()
        self.damage: list[tuple[str, str]] = []
        self.entries["/"] = Entry("/", stat.S_IFDIR | 0o755, 0, 0, 0)
        try:
            first = self._boot_sector()
            waiting = [("/", first)]
            while waiting:
                path, data = waiting.pop()
                waiting += self._directory(path, data)
        except (struct.error, ValueError) as error:
            raise InspectError(
                f"the FAT file system in {name} is damaged: {error}", hint="fsck.vfat -n says more"
            ) from error

    def _boot_sector(self) -> bytes:
        """Learn the layout; the content of the root directory."""
        head = self._at(0, 512)
        layout = struct.unpack_from("<HBHBHH", head, 11)
        sector, self._per_cluster, reserved, copies, root_entries, small = layout
        fat_sectors, large = struct.unpack_from("<H8xI", head, 22)
        if sector not in {512, 1024, 2048, 4096} or not self._per_cluster or not reserved or not copies:
            raise ValueError("impossible sizes in the boot sector")
        if not fat_sectors:
            (fat_sectors,) = struct.unpack_from("<I", head, 36)
        root_at = (reserved + copies * fat_sectors) * sector
        self._data_at = root_at + -(-root_entries * _ENTRY // sector) * sector
        self._cluster_bytes = self._per_cluster * sector
        clusters = ((small or large) * sector - self._data_at) // self._cluster_bytes
        self._bits = 12 if clusters < 4085 else 16 if clusters < 65525 else 32
        if not 0 < clusters <= min(_MAX_CLUSTERS, fat_sectors * sector * 8 // self._bits):
            raise ValueError("impossible sizes in the boot sector")
        self._end = clusters + 2
        self._table = self._at(reserved * sector, -(-self._end * self._bits // 8))
        self._used = bytearray(self._end)
        if self._bits == 32:
            (first,) = struct.unpack_from("<I", head, 44)
            return self._read(self._chain(first), 0, 1 << 21)
        return self._at(root_at, root_entries * _ENTRY)

    def _at(self, position: int, size: int) -> bytes:
        self._image.seek(self._offset + position)
        data = self._image.read(size)
        if len(data) != size:
            raise ValueError("the image ends before the file system does")
        return data

    def _next(self, cluster: int) -> int:
        """What the table says of a cluster; the next one, or something behind all clusters."""
        if self._bits == 12:
            (pair,) = struct.unpack_from("<H", self._table[cluster * 3 // 2 :].ljust(2, b"\0")[:2])
            return int(pair >> 4 if cluster & 1 else pair & 0xFFF)
        if self._bits == 16:
            return int(struct.unpack_from("<H", self._table, cluster * 2)[0])
        return int(struct.unpack_from("<I", self._table, cluster * 4)[0] & 0x0FFFFFFF)

    def _chain(self, cluster: int) -> array[int]:
        chain = array("L")
        last = {12: 0xFF8, 16: 0xFFF8, 32: 0x0FFFFFF8}[self._bits]
        while cluster < last:
            if not 2 <= cluster < self._end or self._used[cluster]:
                raise ValueError("its clusters run in circles, or into those of another file")
            self._used[cluster] = 1
            chain.append(cluster)
            cluster = self._next(cluster)
        return chain

    def _read(self, chain: array[int], position: int, size: int) -> bytes:
        size = min(size, len(chain) * self._cluster_bytes - position)
        found = bytearray()
        while len(found) < size:
            index, inside = divmod(position + len(found), self._cluster_bytes)
            run = 1  # clusters that follow one another are read at once
            while index + run < len(chain) and chain[index + run] == chain[index] + run:
                run += 1
            wanted = min(run * self._cluster_bytes - inside, size - len(found))
            found += self._at(self._data_at + (chain[index] - 2) * self._cluster_bytes + inside, wanted)
        return bytes(found)

    def find(self, path: str, *, follow: bool = True) -> Entry | None:
        """As U-Boot and Linux find it: upper and lower case are the same."""
        exact = super().find(path, follow=follow)
        return exact or self._folded().get(path.lower())

    def _folded(self) -> dict[str, Entry]:
        return {name.lower(): entry for name, entry in self.entries.items()}

    def at(self, entry: Entry, position: int, size: int) -> bytes:
        size = min(size, entry.size - position)
        chain = self._chains.get(entry.path)
        return self._read(chain, position, size) if chain and size > 0 else b""

    def _directory(self, path: str, data: bytes) -> list[tuple[str, bytes]]:
        """Take the files of a directory; the directories below it with their content."""
        below = []
        for name, attributes, cluster, size in _names(data):
            here = path.rstrip("/") + "/" + name
            is_directory = bool(attributes & _DIRECTORY)
            kind = stat.S_IFDIR if is_directory else stat.S_IFREG
            self.entries[here] = Entry(here, kind | 0o755, 0, 0, 0 if is_directory else size)
            try:
                chain = self._chain(cluster) if is_directory or size else array("L")
                if not is_directory and size > len(chain) * self._cluster_bytes:
                    raise ValueError("it ends before its size")
                if is_directory and here.count("/") > _MAX_DEPTH:
                    raise ValueError("directories without end")
                self._chains[here] = chain
                if is_directory:
                    below.append((here, self._read(chain, 0, 1 << 21)))
            except (ValueError, struct.error) as error:
                self.damage.append((here, str(error)))
        return below


def _names(data: bytes) -> Iterator[tuple[str, int, int, int]]:
    """Name, attributes, first cluster and size of what a directory lists."""
    long: dict[int, bytes] = {}
    for at in range(0, len(data) - _ENTRY + 1, _ENTRY):
        entry = data[at : at + _ENTRY]
        first, attributes = entry[0], entry[11]
        if first == 0:
            return
        if first == 0xE5:
            long = {}
        elif attributes & _LONG_NAME == _LONG_NAME:
            long[first & 0x3F] = entry[1:11] + entry[14:26] + entry[28:32]
        else:
            name = _long_name(long) or _short_name(entry)
            long = {}
            if attributes & _LABEL or name in {".", "..", ""}:
                continue
            high, low, size = struct.unpack_from("<H4xHI", entry, 20)
            yield name, attributes, low | high << 16, size


def _long_name(pieces: dict[int, bytes]) -> str:
    text = b"".join(pieces[number] for number in sorted(pieces)).decode("utf-16-le", errors="replace")
    return text.split("\0")[0].replace("/", "_")


def _short_name(entry: bytes) -> str:
    """As Linux shows it: lower case where Windows says so by two bits."""
    stem, end = (entry[a:b].decode("cp437").rstrip() for a, b in ((0, 8), (8, 11)))
    stem = stem.lower() if entry[12] & 0x08 else stem
    end = end.lower() if entry[12] & 0x10 else end
    return (f"{stem}.{end}" if end else stem).replace("/", "_").replace("\0", "")
