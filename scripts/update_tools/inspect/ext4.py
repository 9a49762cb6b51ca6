# SPDX-License-Identifier: Apache-2.0
"""ext2, ext3 and ext4 file systems, read where they lie in a larger image: no mount, no root, no copy.

debugfs could do it too, by copying each file out, on hosts that have it.
Layout: the kernel's Documentation/filesystems/ext4. Checksums are not verified; the journal is not replayed.
"""

from __future__ import annotations

import stat
import struct
from typing import IO, TYPE_CHECKING

from .tree import Entry, InspectError, Tree

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC_OFFSET = 1024 + 0x38
MAGIC = b"\x53\xef"

_EXTENTS_FLAG = 0x80000
_INLINE_FLAG = 0x10000000
_INCOMPAT_RECOVER = 0x4
_INCOMPAT_64BIT = 0x80
# filetype, recover, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data, casefold
_INCOMPAT_KNOWN = 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x20000
_COMPAT_JOURNAL = 0x4
_ROOT = 2
_MAX_DEPTH = 64
_MAX_ENTRIES = 2_000_000


class _Inode:
    __slots__ = ("block", "flags", "gid", "mode", "number", "rest", "size", "uid")

    def __init__(self, number: int, data: bytes) -> None:
        self.number = number
        self.mode, uid_low, size_low = struct.unpack_from("<HHI", data, 0)
        (gid_low,) = struct.unpack_from("<H", data, 0x18)
        (self.flags,) = struct.unpack_from("<I", data, 0x20)
        self.block = data[0x28:0x64]
        (size_high,) = struct.unpack_from("<I", data, 0x6C)
        uid_high, gid_high = struct.unpack_from("<HH", data, 0x78)
        self.uid = uid_low | uid_high << 16
        self.gid = gid_low | gid_high << 16
        self.size = size_low | size_high << 32
        self.rest = data[0x80:]


class Ext4Tree(Tree):
    """The files of a file system at `offset` of an open image. Raises InspectError if it is damaged."""

    def __init__(self, image: IO[bytes], offset: int, name: str) -> None:
        super().__init__(name)
        self._image = image
        self._offset = offset
        self._inodes: dict[str, _Inode] = {}
        self.size_bytes = 0
        try:
            self._superblock()
            self._walk()
        except (struct.error, IndexError, ValueError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> InspectError:
        return InspectError(
            f"the ext4 file system in {self.name} is damaged: {why}", hint="e2fsck -fn says more"
        )

    def _superblock(self) -> None:
        data = self._at(1024, 1024)
        if data[0x38:0x3A] != MAGIC:
            raise self._damaged("no superblock")
        blocks: int
        (blocks,) = struct.unpack_from("<I", data, 0x4)
        (self._first_block,) = struct.unpack_from("<I", data, 0x14)
        (log_size,) = struct.unpack_from("<I", data, 0x18)
        self._per_group, self._inodes_per_group = struct.unpack_from("<I4xI", data, 0x20)
        (state,) = struct.unpack_from("<H", data, 0x3A)
        (revision,) = struct.unpack_from("<I", data, 0x4C)
        self._inode_bytes = struct.unpack_from("<H", data, 0x58)[0] if revision else 128
        compat, incompat = struct.unpack_from("<II", data, 0x5C)
        if log_size > 6 or not self._per_group or not self._inodes_per_group or self._inode_bytes < 128:
            raise self._damaged("impossible sizes in the superblock")
        if unknown := incompat & ~_INCOMPAT_KNOWN:
            raise InspectError(
                f"the ext4 file system in {self.name} has features {unknown:#x} that are not known here"
            )
        self.block_bytes = 1024 << log_size
        self._descriptor_bytes = 32
        if incompat & _INCOMPAT_64BIT:
            self._descriptor_bytes = max(32, struct.unpack_from("<H", data, 0xFE)[0])
            blocks |= struct.unpack_from("<I", data, 0x150)[0] << 32
        self.size_bytes = blocks * self.block_bytes
        self.label = data[0x78:0x88].split(b"\0")[0].decode(errors="replace")
        self.uuid = data[0x68:0x78].hex()
        self.has_journal = bool(compat & _COMPAT_JOURNAL)
        self.is_clean = bool(state & 1) and not state & 2 and not incompat & _INCOMPAT_RECOVER

    def _at(self, position: int, size: int) -> bytes:
        self._image.seek(self._offset + position)
        data = self._image.read(size)
        if len(data) != size:
            raise self._damaged("the image ends before the file system does")
        return data

    def _inode(self, number: int) -> _Inode:
        group, index = divmod(number - 1, self._inodes_per_group)
        descriptor = self._at(
            (self._first_block + 1) * self.block_bytes + group * self._descriptor_bytes,
            self._descriptor_bytes,
        )
        (table,) = struct.unpack_from("<I", descriptor, 8)
        if self._descriptor_bytes >= 64:
            table |= struct.unpack_from("<I", descriptor, 0x28)[0] << 32
        return _Inode(
            number, self._at(table * self.block_bytes + index * self._inode_bytes, self._inode_bytes)
        )

    # Content

    def _runs(self, inode: _Inode) -> Iterator[tuple[int, int, int]]:
        """Pieces of a file: its block, block on the medium, number of blocks. What is left out is a hole."""
        if inode.flags & _EXTENTS_FLAG:
            yield from self._extents(inode.block, 0)
            return
        pointers = struct.unpack("<15I", inode.block)
        logical = 0
        per_block = self.block_bytes // 4
        for pointer in pointers[:12]:
            if pointer:
                yield logical, pointer, 1
            logical += 1
        for depth, pointer in enumerate(pointers[12:], 1):
            if pointer:
                yield from self._indirect(pointer, depth, logical)
            logical += per_block**depth

    def _extents(self, node: bytes, level: int) -> Iterator[tuple[int, int, int]]:
        magic, count, _, depth = struct.unpack_from("<HHHH", node, 0)
        if magic != 0xF30A or level > 5:
            raise self._damaged("a broken extent tree")
        for index in range(count):
            at = 12 + 12 * index
            if depth:
                low, high = struct.unpack_from("<4xIH", node, at)
                block = self._at((low | high << 32) * self.block_bytes, self.block_bytes)
                yield from self._extents(block, level + 1)
            else:
                logical, length, high, low = struct.unpack_from("<IHHI", node, at)
                if length <= 0x8000:  # a longer one is allocated and reads as zeros
                    yield logical, low | high << 32, length

    def _indirect(self, pointer: int, depth: int, logical: int) -> Iterator[tuple[int, int, int]]:
        per_block = self.block_bytes // 4
        for index, inner in enumerate(
            struct.unpack(f"<{per_block}I", self._at(pointer * self.block_bytes, self.block_bytes))
        ):
            if inner and depth == 1:
                yield logical + index, inner, 1
            elif inner:
                yield from self._indirect(inner, depth - 1, logical + index * per_block ** (depth - 1))

    def _data(self, inode: _Inode, limit_bytes: int) -> bytes:
        size = min(inode.size, limit_bytes)
        if inode.flags & _INLINE_FLAG:
            return (inode.block + _inline_rest(inode.rest))[:size]
        data = bytearray(size)
        for logical, physical, length in self._runs(inode):
            start = logical * self.block_bytes
            if start < size:
                wanted = min(length * self.block_bytes, size - start)
                data[start : start + wanted] = self._at(physical * self.block_bytes, wanted)
        return bytes(data)

    def content(self, entry: Entry, limit_bytes: int) -> bytes:
        return self._data(self._inodes[entry.path], limit_bytes)

    # Names

    def _walk(self) -> None:
        waiting = [("/", self._inode(_ROOT))]
        seen = {_ROOT}
        while waiting:
            path, inode = waiting.pop()
            target = ""
            if stat.S_ISLNK(inode.mode):
                short = inode.size < 60 and not inode.flags & (_EXTENTS_FLAG | _INLINE_FLAG)
                data = inode.block[: inode.size] if short else self._data(inode, 4096)
                target = data.decode(errors="surrogateescape")
            self.entries[path] = Entry(path, inode.mode, inode.uid, inode.gid, inode.size, target)
            self._inodes[path] = inode
            if not stat.S_ISDIR(inode.mode):
                continue
            if path.count("/") > _MAX_DEPTH or len(self.entries) > _MAX_ENTRIES:
                raise self._damaged("directories without end")
            for number, name in self._names(inode):
                child = self._inode(number)
                if stat.S_ISDIR(child.mode):
                    if number in seen:
                        raise self._damaged(f"a directory that is in two places: {path}/{name}")
                    seen.add(number)
                waiting.append((path.rstrip("/") + "/" + name, child))

    def _names(self, inode: _Inode) -> Iterator[tuple[int, str]]:
        data = self._data(inode, 64 << 20)
        if inode.flags & _INLINE_FLAG:
            data = data[4:]  # the first word is the parent
        at = 0
        while at + 8 <= len(data):
            number, length, name_length = struct.unpack_from("<IHB", data, at)
            if length < 8:
                raise self._damaged("a broken directory")
            name = data[at + 8 : at + 8 + name_length].decode(errors="surrogateescape")
            if number and name not in {"", ".", ".."}:
                yield number, name
            at += length


def _inline_rest(extra: bytes) -> bytes:
    """What of a tiny file is behind the inode: the value of its attribute system.data."""
    (extra_size,) = struct.unpack_from("<H", extra, 0)
    body = extra[extra_size:]
    if body[:4] != b"\x00\x00\x02\xea":
        return b""
    at = 4
    while at + 16 <= len(body) and body[at : at + 4] != b"\0\0\0\0":
        name_length, index, offset, _, size = struct.unpack_from("<BBHII", body, at)
        if index == 7 and body[at + 16 : at + 16 + name_length] == b"data":
            return body[4 + offset : 4 + offset + size]
        at += (16 + name_length + 3) & ~3
    return b""
