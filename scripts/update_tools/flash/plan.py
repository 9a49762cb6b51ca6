# SPDX-License-Identifier: Apache-2.0
"""What of an image is written: all, or what its block map names and what must not survive beside that."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from typing import TYPE_CHECKING

from .bmap import Range
from .errors import FlashError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from update_tools.inspect.disk import Partition

    from .bmap import Bmap

_EXTENDED = {"05", "0f", "85"}
STALE_BYTES = 1 << 20


def ranges(bmap: Bmap | None, partitions: Sequence[Partition], image_bytes: int) -> list[Range]:
    """Ranges to write, in order, not touching each other. Without a map: the whole image.

    A map leaves out what reads as zeros, also where something else stands on a used medium: before and
    between the partitions, where an old boot environment would be taken for the new one, and at the start of
    an empty slot, where an old system would still be found. Both are written.
    """
    if bmap is None:
        return [Range(0, image_bytes)]
    real = sorted(
        (part for part in partitions if part.kind not in _EXTENDED), key=lambda partition: partition.start
    )
    wanted = [(part.start, part.end) for part in bmap.ranges]
    position = 0
    for partition in real:
        wanted.append((position, min(partition.start, image_bytes)))
        wanted.append((partition.start, min(partition.start + STALE_BYTES, partition.end, image_bytes)))
        position = max(position, partition.end)
    return _joined(wanted)


def _joined(pieces: Iterable[tuple[int, int]]) -> list[Range]:
    joined: list[Range] = []
    for start, end in sorted(piece for piece in pieces if piece[0] < piece[1]):
        if joined and start <= joined[-1].end:
            joined[-1].end = max(joined[-1].end, end)
        else:
            joined.append(Range(start, end))
    return joined


def within(pieces: Sequence[Range], start: int, end: int, block_bytes: int) -> list[tuple[int, int]]:
    """The parts of sorted ranges between two offsets, widened to whole blocks of the medium, and joined."""
    found: list[tuple[int, int]] = []
    for index in range(bisect_right(pieces, start, key=lambda piece: piece.end), len(pieces)):
        piece = pieces[index]
        if piece.start >= end:
            break
        first = max(start, piece.start) // block_bytes * block_bytes
        last = min(end, -(-min(end, piece.end) // block_bytes) * block_bytes)
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return found


class Checker:
    """Compares an image that passes by with the checksums of its block map."""

    def __init__(self, bmap: Bmap) -> None:
        self._bmap = bmap
        self._index = 0
        self._digest = hashlib.new(bmap.algorithm, usedforsecurity=False)
        self._position = 0

    def feed(self, data: bytes) -> None:
        """The next bytes. Raises FlashError at the first range that is another."""
        view = memoryview(data)
        end = self._position + len(view)
        while self._index < len(self._bmap.ranges):
            current = self._bmap.ranges[self._index]
            if current.start >= end:
                break
            first = max(current.start, self._position) - self._position
            self._digest.update(view[first : min(current.end, end) - self._position])
            if current.end > end:
                break
            if current.checksum and self._digest.hexdigest() != current.checksum:
                raise self._wrong(f"the image is another between bytes {current.start} and {current.end}")
            self._digest = hashlib.new(self._bmap.algorithm, usedforsecurity=False)
            self._index += 1
        self._position = end

    def end(self) -> None:
        """The image is over. Raises FlashError if the map is of one of another size."""
        check_size(self._bmap, self._position)

    def _wrong(self, what: str) -> FlashError:
        return wrong(self._bmap, what)


def check_size(bmap: Bmap, image_bytes: int) -> None:
    """Raises FlashError if the map is of an image of another size."""
    if bmap.image_bytes != image_bytes:
        raise wrong(bmap, f"it is of one of {bmap.image_bytes} bytes, not {image_bytes}")


def wrong(bmap: Bmap, what: str) -> FlashError:
    """The error for a map that does not fit the image."""
    return FlashError(
        f"the block map {bmap.name} does not fit the image: {what}",
        hint="are both of the same build, and complete? --no-bmap writes without it",
    )
