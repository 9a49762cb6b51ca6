# SPDX-License-Identifier: Apache-2.0
"""A file tree as the device will see it: modes and owners, and links that are followed inside of it."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from update_agent.errors import UpdateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAX_LINKS = 40  # as Linux


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
    """Base of all trees. `entries` holds every file by its absolute path, "/" included."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.entries: dict[str, Entry] = {}

    @abstractmethod
    def content(self, entry: Entry, limit_bytes: int) -> bytes:
        """The first bytes of a regular file."""

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
        """Content of a regular file, links followed; None if there is none."""
        entry = self.find(path)
        return self.content(entry, limit_bytes) if entry is not None and entry.is_file else None

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
        if top is None:
            return []
        depth = len(top.path.rstrip("/")) + 1
        found = {entry.path[depth:] for entry in self.below(directory)}
        return sorted((name for name in found if "/" not in name), key=os.fsencode)


class DirectoryTree(Tree):
    """A directory of this host, with its modes and owners."""

    def __init__(self, top: Path, name: str = "") -> None:
        super().__init__(name or str(top))
        self.top = top
        self._add("/", top)
        for here, directories, files in os.walk(top):
            for found in (*directories, *files):
                path = os.path.join(here, found)
                self._add("/" + os.path.relpath(path, top), path)

    def _add(self, path: str, host: str | Path) -> None:
        info = os.lstat(host)
        target = os.readlink(host) if stat.S_ISLNK(info.st_mode) else ""
        self.entries[path] = Entry(path, info.st_mode, info.st_uid, info.st_gid, info.st_size, target)

    def content(self, entry: Entry, limit_bytes: int) -> bytes:
        path = os.path.join(self.top, entry.path.lstrip("/"))
        try:
            with open(path, "rb") as file:
                return file.read(limit_bytes)
        except OSError as error:
            raise InspectError(
                f"cannot read {path}: {error.strerror}", hint="a tree of another user? run it as that user"
            ) from error
