# SPDX-License-Identifier: Apache-2.0
"""A file tree as the device will see it: modes and owners, and links that are followed inside of it."""

from __future__ import annotations

import io
import os
import stat
from abc import ABC, abstractmethod
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from update_agent.errors import UpdateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Buffer

_MAX_LINKS = 40  # as Linux
_BUFFER_BYTES = 16 << 10
_KERNEL_S = ("dev", "proc", "run", "sys")


class InspectError(UpdateError):
    """What should be inspected cannot be read."""


class Entry:
    """One file: mode with its kind, owner, size; `target` is where a symbolic link leads."""

    __slots__ = ("gid", "mode", "path", "size", "target", "uid")

    def __init__(self, path: str, mode: int, uid: int, gid: int, size: int, target: str = "") -> None:
        self.path = path
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.target = target

    @property
    def is_file(self) -> bool:
        """A regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        """A directory, not a link to one."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        """A symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def is_executable(self) -> bool:
        """Somebody may execute it."""
        return self.is_file and bool(self.mode & 0o111)


class Tree(ABC):
    """Base of all trees. `entries` holds every file by its absolute path, "/" included.

    `unreadable` tells what this user may not look into: pairs of path and reason.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.entries: dict[str, Entry] = {}
        self.unreadable: dict[str, str] = {}
        self._names: dict[str, list[str]] | None = None  # by directory, once they are asked for

    @abstractmethod
    def at(self, entry: Entry, position: int, size: int) -> bytes:
        """Bytes of a regular file; fewer at its end, none of one that cannot be read."""

    def content(self, entry: Entry, limit_bytes: int) -> bytes:
        """The first bytes of a regular file."""
        return self.at(entry, 0, limit_bytes)

    def open(self, entry: Entry) -> io.BufferedReader:
        """A regular file to seek in and read from, piece by piece."""
        return io.BufferedReader(_Reader(self, entry), _BUFFER_BYTES)

    def find(self, path: str, *, follow: bool = True) -> Entry | None:
        """The file at a path, links followed inside the tree, the last one only if `follow`."""
        parts = [part for part in PurePosixPath("/", path).parts[1:] if part != "."]
        seen = 0
        at = "/"
        while parts:
            part = parts.pop(0)
            if part == "..":
                at = str(PurePosixPath(at).parent)
                continue
            here = at.rstrip("/") + "/" + part
            entry = self.entries.get(here)
            if entry is None:
                return None
            if entry.is_link and (parts or follow):
                seen += 1
                if seen > _MAX_LINKS:
                    return None
                target = PurePosixPath(entry.target)
                if target.is_absolute():
                    at = "/"
                parts = [name for name in target.parts if name not in {"/", "."}] + parts
                continue
            at = here
        return self.entries.get(at)

    def read(self, path: str, *, limit_bytes: int = 64 << 20) -> bytes | None:
        """Content of a regular file, links followed; None if there is none, or it cannot be read."""
        entry = self.find(path)
        data = self.content(entry, limit_bytes) if entry is not None and entry.is_file else None
        return None if entry is not None and entry.path in self.unreadable else data

    def text(self, path: str) -> str | None:
        """A small file as text; None if there is none."""
        data = self.read(path, limit_bytes=1 << 20)
        return None if data is None else data.decode(errors="replace")

    def below(self, directory: str) -> Iterator[Entry]:
        """Everything below a directory, sorted by path; nothing if there is none."""
        top = self.find(directory)
        prefix = "/" if top is not None and top.path == "/" else f"{top.path}/" if top else "//"
        for path in sorted(self.entries):
            if path.startswith(prefix) and path != "/":
                yield self.entries[path]

    def names(self, directory: str) -> list[str]:
        """Names in a directory, in the byte order in which the agent takes them."""
        top = self.find(directory)
        if self._names is None:
            self._names = {}
            for path in self.entries:
                parent, _, name = path.rpartition("/")
                if name:
                    self._names.setdefault(parent or "/", []).append(name)
        return sorted(self._names.get(top.path, ()), key=os.fsencode) if top else []


class _Reader(io.RawIOBase):
    """A file of a tree as Python's file."""

    def __init__(self, tree: Tree, entry: Entry) -> None:
        self._tree = tree
        self._entry = entry
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._entry.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        data = self._tree.at(self._entry, self._position, len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


class DirectoryTree(Tree):
    """A directory of this host, with its modes and owners."""

    def __init__(self, top: Path, name: str = "") -> None:
        super().__init__(name or str(top))
        self.top = top
        self._add("/", str(top))
        device = os.lstat(top).st_dev
        for here, directories, files in os.walk(top, onerror=self._refused):
            for found in (*directories, *files):
                path = os.path.join(here, found)
                self._add(self._inside(path), path)
            if here == str(top):  # a running system: what the kernel makes up is not of the image
                directories[:] = [
                    name
                    for name in directories
                    if name not in _KERNEL_S or os.lstat(os.path.join(top, name)).st_dev == device
                ]

    def _inside(self, host: str) -> str:
        return "/" + os.path.relpath(host, self.top)

    def _add(self, path: str, host: str) -> None:
        try:
            info = os.lstat(host)
            target = os.readlink(host) if stat.S_ISLNK(info.st_mode) else ""
        except OSError as error:
            self._refused(error)
            return
        self.entries[path] = Entry(path, info.st_mode, info.st_uid, info.st_gid, info.st_size, target)

    def _refused(self, error: OSError) -> None:
        self.unreadable[self._inside(os.fsdecode(error.filename))] = error.strerror or str(error)

    def at(self, entry: Entry, position: int, size: int) -> bytes:
        try:
            with open(os.path.join(self.top, entry.path.lstrip("/")), "rb") as file:
                file.seek(position)
                return file.read(size)
        except OSError as error:
            self._refused(error)
            return b""
