# SPDX-License-Identifier: Apache-2.0
"""Writing a payload to an inactive slot: unpacked, hashed and written at once, verified at the end."""

from __future__ import annotations

import os

from update_agent.errors import SlotError
from update_agent.medium import Medium, Volume
from update_agent.ring import BLOCK_BYTES, LARGE_BLOCK_BYTES, pump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Source(Protocol):
        """A payload file: its size is known, its bytes come once."""

        name: str
        size: int
        compression: str  # it comes out of: none, gzip, xz, zstd

        def readinto(self, buffer: memoryview) -> int:
            """Fill the buffer from its start; 0 at the end. May raise ArtifactError (checksum)."""

        # The same in three parts, for a data path that hashes beside reading.

        def fill(self, view: memoryview, /) -> int:
            """Like `readinto`, but nothing is hashed; less than a full view only at the end."""

        def hash(self, view: memoryview, /) -> None:
            """Take the next bytes into the checksum."""

        def verify(self) -> str:
            """SHA-256 in hex after all bytes were hashed. Raises ArtifactError if it is wrong."""

    from update_agent.slots import Slot, Slots


class Written:
    """What a copy did: payload size, bytes that had to be written, SHA-256 of the payload."""

    __slots__ = ("digest", "size_bytes", "written_bytes")

    def __init__(self, size_bytes: int, written_bytes: int, digest: str) -> None:
        self.size_bytes = size_bytes
        self.written_bytes = written_bytes
        self.digest = digest


def install(source: Source, slots: Slots, slot: Slot) -> Written:
    """Write the payload to an inactive slot, read it back, and return what was done.

    On return the data is on the medium, was read from there again (see `medium`), and has the checksum that
    the artifact says. Threads are at work meanwhile, none afterwards: not for a process that stays.
    Raises SlotError, ArtifactError (checksum) or what the source raises; the content of the slot is then
    undefined, the running system untouched.
    """
    # zstd has a window of megabytes in any case.
    block_bytes = LARGE_BLOCK_BYTES if source.compression == "zstd" else BLOCK_BYTES
    fd = slots.open_for_writing(slot, source.size)
    try:
        medium: Medium | Volume
        if slot.is_ubi:
            medium = Volume(fd, slot.device, source.size)
        else:
            medium = Medium(fd, slot.device, block_bytes)

        def take_hash(view: memoryview, _position: int) -> None:
            source.hash(view)

        count = pump(source.fill, source.size, take_hash, medium.take, block_bytes=block_bytes)
        if count < source.size:
            raise SlotError(f"{slot.device}: the payload ended after {count} of {source.size} bytes")
        digest = source.verify()
        medium.finish(digest)
    finally:
        os.close(fd)
    return Written(count, medium.written_bytes, digest)
