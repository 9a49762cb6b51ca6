# SPDX-License-Identifier: Apache-2.0
"""U-Boot's redundant environment on a card: read it as U-Boot and Linux do, tear it as a power cut may."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Literal

from .tools import BenchError

if TYPE_CHECKING:
    from pathlib import Path

    from .layer import Layout

Which = Literal["newer", "older", "both"]
_HEADER = 5  # CRC-32 of the text, little endian, and one counter byte


class Copy:
    """One copy: valid if its checksum is right; the counter says which of two is newer."""

    __slots__ = ("counter", "is_valid", "offset", "values")

    def __init__(self, offset: int, data: bytes) -> None:
        self.offset = offset
        self.counter = data[4]
        self.is_valid = zlib.crc32(data[_HEADER:]) == int.from_bytes(data[:4], "little")
        self.values: dict[str, str] = {}
        if self.is_valid:
            text = data[_HEADER:].split(b"\0\0", 1)[0]
            pairs = (entry.decode(errors="replace").partition("=") for entry in text.split(b"\0") if entry)
            self.values = {name: value for name, _, value in pairs}


class Environment:
    """Both copies. `newer` counts, None if neither is valid; `older` is the other one if it is valid too."""

    __slots__ = ("copies", "newer", "older")

    def __init__(self, first: Copy, second: Copy) -> None:
        self.copies = (first, second)
        valid = [copy for copy in self.copies if copy.is_valid]
        if len(valid) == 2 and _second_is_newer(first.counter, second.counter):
            valid.reverse()
        self.newer = valid[0] if valid else None
        self.older = valid[1] if len(valid) == 2 else None

    @property
    def values(self) -> dict[str, str]:
        """What U-Boot and fw_printenv see. Raises BenchError if both copies are bad."""
        if self.newer is None:
            raise BenchError("both copies of the U-Boot environment are bad")
        return self.newer.values


def _second_is_newer(first: int, second: int) -> bool:
    """The counter runs from 255 on to 0; equal means the first, as in U-Boot's env_check_redund."""
    if {first, second} == {0, 255}:
        return second == 0
    return second > first


def read(disk: Path, layout: Layout) -> Environment:
    """The environment of a raw card image, whether its board runs or not."""
    with open(disk, "rb") as file:
        copies = []
        for offset in layout.env_offsets:
            file.seek(offset)
            copies.append(Copy(offset, file.read(layout.env_bytes)))
    return Environment(*copies)


def tear(disk: Path, layout: Layout, which: Which) -> None:
    """Leave copies as a write that broke off: the first sector is from another write than the rest.

    Raises BenchError if there is no such valid copy, or if the torn copy were still valid.
    """
    before = read(disk, layout)
    chosen: list[Copy | None] = list(before.copies)
    if which != "both":
        chosen = [before.newer if which == "newer" else before.older]
    with open(disk, "r+b") as file:
        for copy in chosen:
            if copy is None or not copy.is_valid:
                raise BenchError(f"there is no valid {which} environment copy to tear")
            file.seek(copy.offset + 512)
            rest = file.read(1536)
            file.seek(copy.offset + 512)
            file.write(bytes(byte ^ 0x20 for byte in rest))
    after = read(disk, layout)
    for copy in chosen:
        if copy is not None and any(now.offset == copy.offset and now.is_valid for now in after.copies):
            raise BenchError(f"the environment copy at {copy.offset:#x} is still valid after tearing")
