# SPDX-License-Identifier: Apache-2.0
"""A slot's medium while a payload is written to it: equal blocks are skipped, and everything is read back.

What makes the reading back honest:

- It comes from the device. With O_DIRECT neither a write nor a read touches the page cache: the kernel
  hands our buffer to the driver. Where O_DIRECT is refused (tmpfs), all is flushed, the cache dropped, and
  the whole payload then read and hashed.
- It covers every byte. A block that was found equal was read from the device to find that; a block that was
  written is read again at once, into other memory, and compared with what was to be written. The hash that is
  compared with the artifact's checksum is of those same bytes.
- It is repeated after the last write and the flush for 32 KiB of each 2 MiB: a card that claims more room
  than it has writes late blocks over early ones, and one that loses its cache has nothing behind it; neither
  shows right after a write. (Everything once more would be a second SHA-256 of the image: most of the CPU
  time of an uncompressed install.)

What cannot be told from here: whether the device answers from memory of its own. After the flush it has
promised that this is durable.
"""

from __future__ import annotations

import errno
import fcntl
import os

from update_agent.digest import sha256
from update_agent.errors import SlotError
from update_agent.native import address, is_equal
from update_agent.ring import BLOCK_BYTES, aligned

COMPARE_BYTES = 64 << 10  # an upgrade of 3 % of the files writes 18 MiB of 256; with 1 MiB it would be 81
# After so much without one equal block the slot holds another system, not the release before: from there on
# only one block of sixteen is read before it is written, until one has something equal again.
FOREIGN_BYTES = 4 << 20
LOOK_AT_ONE_OF = 16
SAMPLE_EVERY_BYTES = 2 << 20
SAMPLE_BYTES = 32 << 10
# Dirty pages are handed to the medium in portions: a slot's worth of them stalls small boards for seconds.
FLUSH_BYTES = 16 << 20
_ALIGN = 4096  # what O_DIRECT may ask of position, length and memory
_HINT = "the kernel log may tell of a failing medium"


class Medium:
    """An open slot: `take` every part of the payload in order, then `finish`.

    Both raise SlotError, which names slot and position; the content is then undefined.
    """

    def __init__(self, fd: int, name: str, block_bytes: int = BLOCK_BYTES) -> None:
        """block_bytes: largest part that is taken at once, at most SAMPLE_EVERY_BYTES."""
        self.written_bytes = 0
        self._fd = fd
        self._name = name
        self._size = 0
        self._unflushed = 0
        self._foreign_bytes = 0  # so many up to here were all different
        self._samples = sha256()
        self._block_bytes = block_bytes
        self._old = aligned(block_bytes)
        self._old_address = address(self._old)
        self._flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT
        self.is_direct = False
        self._set_direct(True)

    def take(self, new: memoryview, position: int) -> None:
        """Have this part on the medium: at most a block, from a multiple of its size, page-aligned."""
        self._size = position + len(new)
        body = len(new) & -_ALIGN if self.is_direct else len(new)
        try:
            if position % SAMPLE_EVERY_BYTES == 0:
                self._samples.update(new[: _sample_bytes(len(new))])
            self._update(new[:body], position)
            if body < len(new):
                self._update_tail(new[body:], position + body)
        except OSError as error:
            raise _failed("write", self._name, position, error) from error

    def finish(self, digest: str) -> None:
        """Flush, and look again. `digest`: SHA-256 in hex of all that was taken."""
        try:
            os.fsync(self._fd)
            if self.is_direct:
                self._check_samples()
            else:
                read_back(self._fd, self._name, self._size, digest)
        except OSError as error:
            raise _failed("flush", self._name, self._size, error) from error

    def _update(self, new: memoryview, position: int) -> None:
        """Write where the medium differs. With O_DIRECT, read back as well."""
        if not new:
            return
        if self._foreign_bytes >= FOREIGN_BYTES and position // self._block_bytes % LOOK_AT_ONE_OF:
            ranges = [(0, len(new))]
        else:
            ranges = self._differing(new, self._read(position, len(new)))
        self._foreign_bytes = self._foreign_bytes + len(new) if ranges == [(0, len(new))] else 0
        for start, end in ranges:
            self._write(new[start:end], position + start)
            self.written_bytes += end - start
        if self.is_direct:
            for start, end in ranges:
                self._compare(new[start:end], position + start)
        elif self._unflushed >= FLUSH_BYTES:
            os.fdatasync(self._fd)
            self._unflushed = 0

    def _update_tail(self, new: memoryview, position: int) -> None:
        """The end of a payload that does not fill a block goes through the page cache."""
        was_direct = self.is_direct
        self._set_direct(False)
        self._forget(position)
        self._update(new, position)
        os.fdatasync(self._fd)
        self._forget(position)
        self._compare(new, position)
        self._set_direct(was_direct)

    def _forget(self, position: int) -> None:
        """Drop the page cache from here to the end, so that a read comes from the medium."""
        os.posix_fadvise(self._fd, position, 0, os.POSIX_FADV_DONTNEED)

    def _differing(self, new: memoryview, present: int) -> list[tuple[int, int]]:
        """Ranges of `new` that the first `present` bytes of `_old` do not have, in whole compare blocks."""
        base, count = address(new), len(new)
        if present == count and is_equal(base, self._old_address, count):
            return []
        ranges: list[tuple[int, int]] = []
        for start in range(0, count, COMPARE_BYTES):
            end = min(start + COMPARE_BYTES, count)
            if end <= present and is_equal(base + start, self._old_address + start, end - start):
                continue
            if ranges and ranges[-1][1] == start:
                start = ranges.pop()[0]
            ranges.append((start, end))
        return ranges

    def _compare(self, new: memoryview, position: int) -> None:
        """Raise SlotError unless the medium has this."""
        got = self._read(position, len(new))
        if got < len(new) or not is_equal(address(new), self._old_address, got):
            raise _differs(self._name, f"in the {len(new)} bytes from byte {position} on")

    def _check_samples(self) -> None:
        digest = sha256()
        for position in range(0, self._size, SAMPLE_EVERY_BYTES):
            want = _sample_bytes(self._size - position)
            digest.update(self._old[: self._read(position, want)])
        if digest.digest() != self._samples.digest():
            raise _differs(self._name, "when it was looked at again after the last write")

    # Input and output

    def _set_direct(self, is_direct: bool) -> None:
        """Turn O_DIRECT on, if the file system can, or off."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, self._flags | (os.O_DIRECT if is_direct else 0))
            self.is_direct = is_direct
        except OSError as error:
            if error.errno != errno.EINVAL or not is_direct:
                raise

    def _go_on_buffered(self, error: OSError) -> None:
        """Some file systems take O_DIRECT, then refuse to read or write with it."""
        if error.errno != errno.EINVAL or not self.is_direct:
            raise error
        self._set_direct(False)

    def _read(self, position: int, size: int) -> int:
        """Read into `_old`; the bytes there were, fewer at the end of a file."""
        done = 0
        while done < size:
            try:
                count = os.preadv(self._fd, [self._old[done:size]], position + done)
            except OSError as error:
                self._go_on_buffered(error)
                continue
            done += count
            if count == 0 or (self.is_direct and count % 512):
                break
        return done

    def _write(self, view: memoryview, position: int) -> None:
        while view:
            try:
                count = os.pwrite(self._fd, view, position)
            except OSError as error:
                self._go_on_buffered(error)
                continue
            if count == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._unflushed += count
            view, position = view[count:], position + count


class Volume:
    """A UBI volume, written as ubiupdatevol does: the size is announced, then exactly as many bytes follow.

    Until the last byte has arrived the kernel treats the volume as damaged, so it is never half an old one.
    UBI reads have no cache: reading back is reading the flash.
    """

    def __init__(self, fd: int, name: str, size: int) -> None:
        import struct

        self.written_bytes = 0
        self._fd = fd
        self._name = name
        ubi_iocvolup = 0x40084F00  # _IOW('O', 0, __s64), the same on all architectures
        try:
            fcntl.ioctl(fd, ubi_iocvolup, struct.pack("q", size))
        except OSError as error:
            raise _failed("start to write", name, 0, error) from error

    def take(self, new: memoryview, position: int) -> None:
        """Write the next part."""
        try:
            while new:
                count = os.write(self._fd, new)
                self.written_bytes += count
                new = new[count:]
        except OSError as error:
            raise _failed("write", self._name, position, error) from error

    def finish(self, digest: str) -> None:
        """Flush, and read all of it back."""
        try:
            os.fsync(self._fd)
            read_back(self._fd, self._name, self.written_bytes, digest)
        except OSError as error:
            raise _failed("flush", self._name, self.written_bytes, error) from error


def read_back(fd: int, name: str, size: int, digest: str) -> None:
    """Read what was written and flushed, from the medium, and compare the digests. Raises SlotError."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    found = sha256()
    buffer = aligned(BLOCK_BYTES)
    position = 0
    while position < size:
        count = os.preadv(fd, [buffer[: min(BLOCK_BYTES, size - position)]], position)
        if not count:
            break
        found.update(buffer[:count])
        position += count
    if found.hexdigest() != digest:
        raise _differs(name, f"(SHA-256 {found.hexdigest()} instead of {digest})")


def _sample_bytes(available: int) -> int:
    return min(SAMPLE_BYTES, available) & -_ALIGN


def _failed(doing: str, name: str, position: int, error: OSError) -> SlotError:
    return SlotError(f"cannot {doing} {name} at byte {position}: {os.strerror(error.errno or 0)}", hint=_HINT)


def _differs(name: str, where: str) -> SlotError:
    return SlotError(
        f"{name}: what was read back differs from what was written {where}",
        hint="the medium loses or changes data; replace it",
    )
