# SPDX-License-Identifier: Apache-2.0
"""ext2, ext3 and ext4 file systems, read where they lie in a larger image: no mount, no root, no copy.

debugfs could do it too, by copying each file out, on hosts that have it.
Layout: the kernel's Documentation/filesystems/ext4. Checksums are not verified; the journal is not replayed.

An image may be cut off or forged: every block belongs to one file only, and names are counted, so that time
and memory are bounded by the size of the image.
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
_RO_COMPAT_SHARED_BLOCKS = 0x4000
_COMPAT_JOURNAL = 0x4
_ROOT = 2
_MAX_DEPTH = 64
_MAX_NAMES = 1_000_000
_MAX_DIRECTORY_BYTES = 64 << 20

# Where the content of a file is: (first block of the file, first block on the medium, number of blocks), in
# order, holes left out; or the content itself where it is inline.
_Pieces = list[tuple[int, int, int]] | bytes


class _Damage(Exception):
    """Why a file or directory cannot be read; the rest may still be."""


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
    """The files of a file system at `offset` of an open image. Raises InspectError if nothing can be read.

    `damage` tells of what else cannot: pairs of path and reason. Such a file reads as empty.
    """

    def __init__(self, image: IO[bytes], offset: int, name: str) -> None:
        super().__init__(name)
        self._image = image
        self._offset = offset
        self._numbers: dict[str, int] = {}  # path -> inode
        self._pieces: dict[int, _Pieces] = {}  # inode -> content
        self._tables: dict[int, int] = {}  # group -> where its inodes are
        self._nodes: set[int] = set()  # blocks that hold extents or pointers
        self._claimed = 0
        self.damage: list[tuple[str, str]] = []
        self.size_bytes = self.used_bytes = 0
        try:
            self._superblock()
            self._walk()
        except (_Damage, struct.error, ValueError, OverflowError) as error:
            raise InspectError(
                f"the ext4 file system in {name} is damaged: {error}", hint="e2fsck -fn says more"
            ) from error

    def _superblock(self) -> None:
        data = self._at(1024, 1024)
        if data[0x38:0x3A] != MAGIC:
            raise _Damage("no superblock")
        blocks: int
        self._inode_count, blocks = struct.unpack_from("<II", data, 0)
        (free,) = struct.unpack_from("<I", data, 0xC)
        (self._first_block,) = struct.unpack_from("<I", data, 0x14)
        (log_size,) = struct.unpack_from("<I", data, 0x18)
        self._per_group, self._inodes_per_group = struct.unpack_from("<I4xI", data, 0x20)
        (state,) = struct.unpack_from("<H", data, 0x3A)
        (revision,) = struct.unpack_from("<I", data, 0x4C)
        self._inode_bytes = struct.unpack_from("<H", data, 0x58)[0] if revision else 128
        compat, incompat, ro_compat = struct.unpack_from("<III", data, 0x5C)
        if log_size > 6 or not self._per_group or not self._inodes_per_group or self._inode_bytes < 128:
            raise _Damage("impossible sizes in the superblock")
        if unknown := incompat & ~_INCOMPAT_KNOWN:
            raise InspectError(
                f"the ext4 file system in {self.name} has features {unknown:#x} that are not known here"
            )
        self.block_bytes = 1024 << log_size
        self._descriptor_bytes = 32
        if incompat & _INCOMPAT_64BIT:
            self._descriptor_bytes = max(32, struct.unpack_from("<H", data, 0xFE)[0])
            blocks |= struct.unpack_from("<I", data, 0x150)[0] << 32
            free |= struct.unpack_from("<I", data, 0x158)[0] << 32
        self.used_bytes = max(0, blocks - free) * self.block_bytes
        self.size_bytes = blocks * self.block_bytes
        self.label = data[0x78:0x88].split(b"\0")[0].decode(errors="replace")
        self.uuid = data[0x68:0x78].hex()
        self.has_journal = bool(compat & _COMPAT_JOURNAL)
        self.is_clean = bool(state & 1) and not state & 2 and not incompat & _INCOMPAT_RECOVER
        there = (self._image.seek(0, 2) - self._offset) // self.block_bytes
        self._end = min(blocks, there)
        self._is_shared = bool(ro_compat & _RO_COMPAT_SHARED_BLOCKS)

    def _at(self, position: int, size: int) -> bytes:
        self._image.seek(self._offset + position)
        data = self._image.read(size)
        if len(data) != size:
            raise _Damage("the image ends before the file system does")
        return data

    def _inode(self, number: int) -> _Inode:
        if not 0 < number <= self._inode_count:
            raise _Damage(f"there is no inode {number}")
        group, index = divmod(number - 1, self._inodes_per_group)
        if group not in self._tables:
            at = (self._first_block + 1) * self.block_bytes + group * self._descriptor_bytes
            descriptor = self._at(at, self._descriptor_bytes)
            (table,) = struct.unpack_from("<I", descriptor, 8)
            if self._descriptor_bytes >= 64:
                table |= struct.unpack_from("<I", descriptor, 0x28)[0] << 32
            self._tables[group] = table * self.block_bytes
        return _Inode(number, self._at(self._tables[group] + index * self._inode_bytes, self._inode_bytes))

    # Content

    def _find_pieces(self, inode: _Inode) -> _Pieces:
        if inode.flags & _INLINE_FLAG:
            return (inode.block + _inline_rest(inode.rest))[: inode.size]
        pieces: list[tuple[int, int, int]] = []
        if inode.flags & _EXTENTS_FLAG:
            self._extents(pieces, inode.block, 0)
            return pieces
        pointers = struct.unpack("<15I", inode.block)
        self._pointers(pieces, pointers[:12], 1, 0)
        logical = 12
        for depth, pointer in enumerate(pointers[12:], 2):
            self._pointers(pieces, (pointer,), depth, logical)
            logical += (self.block_bytes // 4) ** (depth - 1)
        return pieces

    def _claim(self, pieces: list[tuple[int, int, int]], logical: int, physical: int, count: int) -> None:
        """Add a piece; the next to the one before it is part of it."""
        if physical + count > self._end:
            raise _Damage("its content is behind the end of the file system")
        self._claimed += count
        if self._claimed > self._end and not self._is_shared:
            raise _Damage("its content belongs to other files, too")
        if pieces:
            before, at, length = pieces[-1]
            if logical < before + length:
                raise _Damage("its pieces are not in order")
            if logical == before + length and physical == at + length:
                pieces[-1] = (before, at, length + count)
                return
        pieces.append((logical, physical, count))

    def _node(self, block: int) -> bytes:
        """A block that holds extents or pointers: of one file, once."""
        if block in self._nodes or block >= self._end:
            raise _Damage("its list of blocks runs in circles or out of the file system")
        self._nodes.add(block)
        return self._at(block * self.block_bytes, self.block_bytes)

    def _extents(self, pieces: list[tuple[int, int, int]], node: bytes, level: int) -> None:
        magic, count, _, depth = struct.unpack_from("<HHHH", node, 0)
        if magic != 0xF30A or level > 5 or 12 + 12 * count > len(node):
            raise _Damage("its tree of extents is broken")
        for at in range(12, 12 + 12 * count, 12):
            if depth:
                low, high = struct.unpack_from("<4xIH", node, at)
                self._extents(pieces, self._node(low | high << 32), level + 1)
            else:
                logical, length, high, low = struct.unpack_from("<IHHI", node, at)
                if length <= 0x8000:  # a longer one is allocated and reads as zeros
                    self._claim(pieces, logical, low | high << 32, length)

    def _pointers(
        self, pieces: list[tuple[int, int, int]], pointers: tuple[int, ...], depth: int, logical: int
    ) -> None:
        """Depth 1: pointers to data; 2: to blocks of such pointers, and so on."""
        per_block = self.block_bytes // 4
        for index, pointer in enumerate(pointers):
            if pointer and depth == 1:
                self._claim(pieces, logical + index, pointer, 1)
            elif pointer:
                inner = struct.unpack(f"<{per_block}I", self._node(pointer))
                self._pointers(pieces, inner, depth - 1, logical + index * per_block ** (depth - 1))

    def at(self, entry: Entry, position: int, size: int) -> bytes:
        pieces = self._pieces.get(self._numbers[entry.path], b"")
        size = min(size, entry.size - position)
        if size <= 0 or pieces == b"":
            return b""
        if isinstance(pieces, bytes):
            return pieces[position : position + size]
        return self._gather(pieces, position, size)

    def _gather(self, pieces: list[tuple[int, int, int]], position: int, size: int) -> bytes:
        found = []
        done = position
        for logical, physical, count in pieces:
            start = logical * self.block_bytes
            begin, end = max(start, done), min(start + count * self.block_bytes, position + size)
            if begin < end:
                if begin > done:
                    found.append(bytes(begin - done))
                found.append(self._at(physical * self.block_bytes + begin - start, end - begin))
                done = end
        if done < position + size:
            found.append(bytes(position + size - done))
        return b"".join(found) if len(found) > 1 else found[0]

    # Names

    def _walk(self) -> None:
        root = self._inode(_ROOT)
        if not stat.S_ISDIR(root.mode):
            raise _Damage("it has no root directory")
        waiting = self._add("/", root)
        if self.damage:
            raise _Damage(self.damage[0][1])
        directories = {_ROOT}
        names = 0
        while waiting:
            path = waiting.pop()
            try:
                for number, name in self._listed(path):
                    names += 1
                    if names > _MAX_NAMES or path.count("/") > _MAX_DEPTH:
                        raise ValueError("directories without end")
                    child = self._inode(number)
                    below = path.rstrip("/") + "/" + name
                    if stat.S_ISDIR(child.mode):
                        if number in directories:
                            raise _Damage(f"a directory that is in two places: {name}")
                        directories.add(number)
                    waiting += self._add(below, child)
            except (_Damage, struct.error) as error:
                self.damage.append((path, str(error)))

    def _add(self, path: str, inode: _Inode) -> list[str]:
        """Take a file; its path, if it is a directory to look into."""
        self._numbers[path] = inode.number
        target = ""
        try:
            is_link = stat.S_ISLNK(inode.mode)
            if is_link and inode.size < 60 and not inode.flags & (_EXTENTS_FLAG | _INLINE_FLAG):
                self._pieces[inode.number] = inode.block[: inode.size]
            elif inode.number not in self._pieces and stat.S_IFMT(inode.mode) in _WITH_CONTENT:
                self._pieces[inode.number] = self._find_pieces(inode)
        except (_Damage, struct.error) as error:
            self._pieces[inode.number] = b""
            self.damage.append((path, str(error)))
        entry = Entry(path, inode.mode, inode.uid, inode.gid, inode.size)
        if is_link:
            target = self.at(entry, 0, 4096).decode(errors="backslashreplace")
            entry.target = target
        self.entries[path] = entry
        return [path] if entry.is_directory else []

    def _listed(self, path: str) -> Iterator[tuple[int, str]]:
        entry = self.entries[path]
        if entry.size > _MAX_DIRECTORY_BYTES:
            raise _Damage("an impossible size")
        data = self.at(entry, 0, entry.size)
        if isinstance(self._pieces.get(self._numbers[path]), bytes):
            data = data[4:]  # inline: the first word is the parent
        at = 0
        while at + 8 <= len(data):
            number, length, name_length = struct.unpack_from("<IHB", data, at)
            if self.block_bytes > 0xFFFF and length in {0, 0xFFFF}:
                length = self.block_bytes
            if length < 8:
                raise _Damage("a broken directory")
            name = data[at + 8 : at + 8 + name_length]
            if number and name not in {b"", b".", b".."}:
                if b"/" in name or b"\0" in name:
                    raise _Damage("a name that cannot be one")
                yield number, name.decode(errors="backslashreplace")
            at += length


_WITH_CONTENT = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}


def _inline_rest(extra: bytes) -> bytes:
    """What of a tiny file is behind the inode: the value of its attribute system.data."""
    if len(extra) < 6:
        return b""
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
