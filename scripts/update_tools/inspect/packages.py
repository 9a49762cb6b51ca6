# SPDX-License-Identifier: Apache-2.0
"""Which package a file is of, by the database of opkg or dpkg in the image; else the directory it is in."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tree import Tree

_DATABASES = (("/var/lib/opkg/info", "opkg"), ("/usr/lib/opkg/info", "opkg"), ("/var/lib/dpkg/info", "dpkg"))


class Packages:
    """`source` is opkg, dpkg or directories. rpm's database is not read: its files count by directory."""

    def __init__(self, root: Tree) -> None:
        self.source = "directories"
        self._owners: dict[str, str] = {}
        for directory, source in _DATABASES:
            for name in root.names(directory):
                if name.endswith(".list"):
                    self.source = source
                    package = name.removesuffix(".list").partition(":")[0]
                    for line in (root.text(f"{directory}/{name}") or "").splitlines():
                        path = line.split("\t")[0]
                        entry = root.find(path, follow=False)
                        self._owners[entry.path if entry else path] = package

    def owner(self, path: str) -> str:
        """Name of the package, or of the directory."""
        if path in self._owners:
            return self._owners[path]
        if self._owners:
            return "of no package"
        return str(PurePosixPath(*PurePosixPath(path).parent.parts[:4]))
