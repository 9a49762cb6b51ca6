# SPDX-License-Identifier: Apache-2.0
"""Finds the data partition of a card, fills it, and reads back what it was filled with."""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING, cast

from update_tools.inspect.disk import Disk
from update_tools.inspect.ext4 import Ext4Tree

from . import ext4_write
from .errors import FlashError
from .target import Target, View

if TYPE_CHECKING:
    from update_tools.inspect.disk import Partition
    from update_tools.inspect.tree import Tree

    from .provision import Provision

_LABEL = "data"


class Card:
    """The file systems of a card: root file systems, and the data partition."""

    def __init__(self, image: IO[bytes], name: str) -> None:
        self.roots: list[Tree] = []
        self.data: Ext4Tree | None = None
        self.partition: Partition | None = None
        for partition in Disk(image, name).partitions:
            if partition.filesystem != "ext4":
                continue
            tree = Ext4Tree(image, partition.start, f"partition {partition.number}")
            if tree.find("/usr") is not None or tree.find("/etc") is not None:
                self.roots.append(tree)
            elif self.partition is None or self.partition.label != _LABEL:
                self.data, self.partition = tree, partition

    def check(self, provision: Provision) -> tuple[Tree, Partition]:
        """The data partition. Raises FlashError if there is none, or something given would not count."""
        if self.data is None or self.partition is None:
            raise FlashError(
                "the image has no data partition: no ext4 beside the root file systems",
                hint="images of the layer's class update-image have one",
            )
        if not self.data.is_clean:
            raise FlashError(
                f"the file system in {self.data.name} was not unmounted", hint="take a fresh image"
            )
        for root in self.roots:
            provision.check(root)
        provision.files(self.data)
        return self.data, self.partition


def fill(target: Target, head: bytes, provision: Provision) -> None:
    """Put the files into the data partition of what was just written. Raises FlashError."""
    data, partition = _card(target, head).check(provision)
    files = provision.files(data)
    ext4_write.add(target.name, partition.start, files, data)
    target.sync()
    now = _card(target, head).data
    for path, new in files.items():
        entry = now.find(path, follow=False) if now else None
        content = now.read(path) if now and new.content is not None else None
        if (
            entry is None
            or entry.mode & 0o7777 != new.mode
            or entry.uid
            or entry.gid
            or content != new.content
        ):
            raise FlashError(f"{path} in the data partition of {target.name} is not as it was written")


def _card(target: Target, head: bytes) -> Card:
    reader = io.BufferedReader(View(target, head), 4096)
    return Card(cast("IO[bytes]", reader), target.name)
