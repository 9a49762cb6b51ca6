# SPDX-License-Identifier: Apache-2.0
"""Writing a payload to an inactive slot: equal blocks are skipped, all of it is read back and compared."""

from __future__ import annotations

import os

from update_agent.errors import SlotError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Source(Protocol):
        """A payload file: its size is known, its bytes come once."""

        name: str
        size: int

        def readinto(self, buffer: memoryview) -> int:
            """Fill the buffer from its start; 0 at the end. May raise ArtifactError (checksum)."""

    from update_agent.slots import Slot, Slots

CHUNK_BYTES = 1 << 20
COMPARE_BYTES = 1 << 16
# Dirty pages are handed to the medium in portions: a slot's worth of them stalls small boards for seconds.
FLUSH_BYTES = 16 << 20


class Written:
    """What a copy did: payload size, bytes that had to be written, SHA-256 of the payload."""

    __slots__ = ("digest", "size_bytes", "written_bytes")

    def __init__(self, size_bytes: int, written_bytes: int, digest: str) -> None:
        self.size_bytes = size_bytes
        self.written_bytes = written_bytes
        self.digest = digest


def install(source: Source, slots: Slots, slot: Slot) -> Written:
    """Write the payload to an inactive slot, read it back, and return what was done.

    On return the data is on the medium and was read from there again with the digest it was written with.
    Raises SlotError; the content of the slot is then undefined, the running system untouched.
    """
    fd = slots.open_for_writing(slot, source.size)
    try:
        written = _update_ubi(source, fd) if slot.is_ubi else copy(source, fd)
        verify(fd, written)
    except OSError as error:
        raise SlotError(
            f"cannot write {slot.device}: {os.strerror(error.errno or 0)}",
            hint="the kernel log may tell of a failing medium",
        ) from error
    except SlotError as error:
        raise SlotError(f"{slot.device}: {error.message}", hint=error.hint) from error
    finally:
        os.close(fd)
    return written


def _fill(source: Source, buffer: memoryview) -> int:
    """Read until the buffer is full or the source at its end."""
    filled = 0
    while filled < len(buffer):
        count = source.readinto(buffer[filled:])
        if not count:
            break
        filled += count
    return filled


def copy(source: Source, fd: int) -> Written:
    """Copy the payload to `fd` from its start; blocks of 64 KiB that are there already are not written.

    On the medium (fsync) on return. Raises OSError, and SlotError when the source is shorter than it says.
    """
    import hashlib

    digest = hashlib.sha256()
    new, old = bytearray(CHUNK_BYTES), bytearray(CHUNK_BYTES)
    view = memoryview(new)
    position = written = unflushed = 0
    while position < source.size:
        want = min(CHUNK_BYTES, source.size - position)
        count = _fill(source, view[:want])
        digest.update(view[:count])
        present = os.preadv(fd, [memoryview(old)[:count]], position)
        for start, end in _differing(new, old, count, present):
            _write_all(fd, view[start:end], position + start)
            written += end - start
            unflushed += end - start
        position += count
        if count < want:
            raise SlotError(f"the payload ended after {position} of {source.size} bytes")
        if unflushed >= FLUSH_BYTES:
            os.fdatasync(fd)
            unflushed = 0
    _expect_end(source)
    os.fsync(fd)
    return Written(position, written, digest.hexdigest())


def _differing(new: bytearray, old: bytearray, count: int, present: int) -> list[tuple[int, int]]:
    """Ranges of `new[:count]` that must be written over `old[:present]`, in whole compare blocks, joined."""
    # Equality of bytearrays is one memcmp; of memoryviews it is eight times slower.
    if count == present == len(new) and new == old:
        return []
    ranges: list[tuple[int, int]] = []
    for start in range(0, count, COMPARE_BYTES):
        end = min(start + COMPARE_BYTES, count)
        if end <= present and new[start:end] == old[start:end]:
            continue
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    return ranges


def _write_all(fd: int, view: memoryview, position: int) -> None:
    while view:
        count = os.pwrite(fd, view, position)
        view, position = view[count:], position + count


def _expect_end(source: Source) -> None:
    """Read past the last byte: the end of the payload is where its checksum is compared."""
    if source.readinto(memoryview(bytearray(1))):
        raise SlotError(f"the payload is longer than the {source.size} bytes it was announced with")


def _update_ubi(source: Source, fd: int) -> Written:
    """Write a UBI volume as ubiupdatevol does: announce the size, then exactly that many bytes in order.

    Until the last byte has arrived the kernel treats the volume as damaged, so it is never half an old one.
    """
    import fcntl
    import hashlib
    import struct

    ubi_iocvolup = 0x40084F00  # _IOW('O', 0, __s64), the same on all architectures
    fcntl.ioctl(fd, ubi_iocvolup, struct.pack("q", source.size))
    digest = hashlib.sha256()
    view = memoryview(bytearray(CHUNK_BYTES))
    position = 0
    while position < source.size:
        want = min(CHUNK_BYTES, source.size - position)
        count = _fill(source, view[:want])
        if count < want:
            raise SlotError(f"the payload ended after {position + count} of {source.size} bytes")
        digest.update(view[:count])
        rest = view[:count]
        while rest:
            rest = rest[os.write(fd, rest) :]
        position += count
    _expect_end(source)
    os.fsync(fd)
    return Written(position, position, digest.hexdigest())


def verify(fd: int, written: Written) -> None:
    """Read back what was written and compare digests. Raises SlotError on a difference.

    The page cache is dropped first, so that the bytes come from the medium.
    """
    import hashlib

    digest = hashlib.sha256()
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    view = memoryview(bytearray(CHUNK_BYTES))
    position = 0
    while position < written.size_bytes:
        count = os.preadv(fd, [view[: min(CHUNK_BYTES, written.size_bytes - position)]], position)
        if not count:
            break
        digest.update(view[:count])
        position += count
    if digest.hexdigest() != written.digest:
        raise SlotError(
            f"what was read back differs from what was written (SHA-256 {digest.hexdigest()} instead of "
            f"{written.digest})",
            hint="the medium loses or changes data; replace it",
        )
