# SPDX-License-Identifier: Apache-2.0
"""Writes an image so that a medium boots only when all of it is there, and reads it back.

The order is the safety: the first MiB with the partition table is emptied before anything else, written after
all the rest was read back, and its first block is the very last. A medium that was left half-written at any
moment has no partition table, hence does not boot; starting over is always right.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from typing import TYPE_CHECKING

from update_tools.inspect.units import mib

from . import plan
from .errors import FlashError
from .source import HEAD_BYTES
from .target import AGAIN, CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .bmap import Bmap, Range
    from .source import Image
    from .target import Target

    Progress = Callable[[str, int, int], object]
    """Called with what is being done, bytes done, and bytes in all."""

_FIRST_BLOCK = 4096  # of any medium; holds the MBR and the header of a GPT
_GPT_BLOCKS = 33
_AHEAD = 3


class Summary:
    """What was done: bytes of the image, and how many were written."""

    __slots__ = ("image_bytes", "written_bytes")

    def __init__(self, image_bytes: int, written_bytes: int) -> None:
        self.image_bytes = image_bytes
        self.written_bytes = written_bytes


class Piece:
    """What was written at a stretch: its places, and the digest of all of them."""

    __slots__ = ("digest", "places")

    def __init__(self, places: list[tuple[int, int]], digest: bytes) -> None:
        self.places = places
        self.digest = digest


def flash(
    image: Image,
    target: Target,
    bmap: Bmap | None,
    *,
    fill: Callable[[Target], None] | None = None,
    progress: Progress = lambda doing, done, total: None,
) -> Summary:
    """Write an image whose head was read already; `fill` then adds files, before the medium can boot.

    Raises FlashError; the target then has no partition table.
    """
    _empty(target)
    pieces = plan.ranges(bmap, image.partitions, bmap.image_bytes if bmap else 1 << 60)
    written = _write_body(image, target, bmap, pieces, progress)
    target.sync()
    _read_back(target, written, progress)
    if fill is not None:
        fill(target)
        target.sync()
    _write_head(image.head, target)
    target.finish()
    total = len(image.head) + sum(end - start for piece in written for start, end in piece.places)
    return Summary(image.position, total)


def _empty(target: Target) -> None:
    """From now on nothing on the medium is found, not even by the second table of a GPT, at its end."""
    target.write(0, bytes(min(HEAD_BYTES, target.size_bytes)))
    backup = target.size_bytes - _GPT_BLOCKS * target.block_bytes
    if backup >= HEAD_BYTES and target.block_bytes > 1:
        last = target.read(target.size_bytes - target.block_bytes, target.block_bytes)
        if last.startswith(b"EFI PART"):
            target.write(backup, bytes(target.size_bytes - backup))
    target.sync()


def _write_body(
    image: Image, target: Target, bmap: Bmap | None, pieces: list[Range], progress: Progress
) -> list[Piece]:
    checker = plan.Checker(bmap) if bmap else None
    if checker:
        checker.feed(image.head)
    total = bmap.image_bytes if bmap else max(image.size_bytes, image.needed_bytes)
    written = []
    position = HEAD_BYTES
    progress("writing", position, total)
    for data in _ahead(image):
        end = position + len(data)
        if checker:
            checker.feed(data)
        target.reserve(end)
        places = plan.within(pieces, position, end, target.block_bytes)
        digest = hashlib.sha256()
        view = memoryview(data)
        for start, stop in places:
            part = view[start - position : stop - position]
            digest.update(part)
            target.write(start, part)
        written.append(Piece(places, digest.digest()))
        position = end
        progress("writing", position, max(total, position))
    if checker:
        checker.end()
    return written


def _ahead(image: Image) -> Iterator[bytes]:
    """The rest of the image, unpacked by another thread while the medium is busy."""
    ready: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def put(item: bytes | BaseException) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return

    def read() -> None:
        try:
            while not stop.is_set() and (data := image.read(CHUNK_BYTES)):
                put(data)
            put(b"")
        except BaseException as error:  # told where it is awaited
            put(error)

    thread = threading.Thread(target=read, name="unpack", daemon=True)
    thread.start()
    try:
        while item := ready.get():
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def _read_back(target: Target, written: list[Piece], progress: Progress) -> None:
    total = sum(stop - start for piece in written for start, stop in piece.places)
    done = 0
    progress("verifying", 0, total)
    for piece in written:
        digest = hashlib.sha256()
        for start, stop in piece.places:
            for position in range(start, stop, CHUNK_BYTES // 2):
                size = min(CHUNK_BYTES // 2, stop - position)
                digest.update(target.read(position, size))
                done += size
        if digest.digest() != piece.digest:
            raise _differs(target, piece.places[0][0], piece.places[-1][1])
        progress("verifying", done, total)


def _write_head(head: bytes, target: Target) -> None:
    for start, stop in ((_FIRST_BLOCK, len(head)), (0, _FIRST_BLOCK)):
        target.write(start, head[start:stop])
        target.sync()
        if target.read(start, stop - start) != head[start:stop]:
            raise _differs(target, start, stop)


def _differs(target: Target, start: int, stop: int) -> FlashError:
    return FlashError(
        f"{target.name} does not keep what it is given: other bytes come back between {mib(start)}"
        f" and {mib(stop)}",
        hint=f"worn out, or sold as larger than it is? take another one; {AGAIN}",
    )
