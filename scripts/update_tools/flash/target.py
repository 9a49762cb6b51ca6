# SPDX-License-Identifier: Apache-2.0
"""What is written to: a whole medium, taken for ourselves and past the page cache, or a plain file."""

from __future__ import annotations

import errno
import fcntl
import io
import mmap
import os
import struct
from functools import lru_cache
from typing import TYPE_CHECKING

from update_tools.inspect.units import mib

from . import devices
from .errors import FlashError

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Buffer

    from .devices import Medium

CHUNK_BYTES = 4 << 20
_BLKGETSIZE64 = 0x80081272
_BLKSSZGET = 0x1268
_BLKFLSBUF = 0x1261
_BLKRRPART = 0x125F
_CACHE_BYTES = 128 << 10
_CACHE_BLOCKS = 512
_SECTOR_BYTES = 512
_HOLE_BYTES = 64 << 10
_ZEROS = memoryview(bytes(_HOLE_BYTES))
_GONE = {errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM}
_LOCKED = {errno.EROFS, errno.EPERM}
AGAIN = "what was on it is lost and it does not boot; the same command starts over"


class Target:
    """An open target. Offsets and sizes of writes are multiples of `block_bytes`, but for a file's end."""

    def __init__(self, name: str, descriptor: int, size_bytes: int, block_bytes: int) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.block_bytes = block_bytes
        self._descriptor = descriptor
        self._buffer = mmap.mmap(-1, CHUNK_BYTES)  # aligned to pages, as O_DIRECT wants it

    def close(self) -> None:
        """Let go of it; what must be on the medium was synced before."""
        os.close(self._descriptor)
        self._buffer.close()

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reserve(self, end: int) -> None:
        """There is room up to this byte. Raises FlashError if the medium is smaller."""
        if end > self.size_bytes:
            raise FlashError(
                f"the image is larger than {self.name}, which has {mib(self.size_bytes)}",
                hint=f"take a larger medium; {AGAIN}",
            )

    def write(self, offset: int, data: Buffer) -> None:
        """Write at most CHUNK_BYTES, where there is room. Raises FlashError."""
        size = memoryview(data).nbytes
        padded = -(-size // self.block_bytes) * self.block_bytes
        self._buffer[:size] = bytes(data)
        self._buffer[size:padded] = bytes(padded - size)
        try:
            done = 0
            while done < padded:
                done += os.pwrite(self._descriptor, memoryview(self._buffer)[done:padded], offset + done)
        except OSError as error:
            raise self.failure("writing", offset, error) from error

    def read(self, offset: int, size: int) -> bytes:
        """At most CHUNK_BYTES less a block, as they are on the medium; fewer at its end."""
        start = offset - offset % self.block_bytes
        end = -(-(offset + size) // self.block_bytes) * self.block_bytes
        try:
            count = os.preadv(self._descriptor, [memoryview(self._buffer)[: end - start]], start)
            if count < min(offset + size, self.size_bytes) - start:
                raise OSError(errno.EIO, "it ends there")
        except OSError as error:
            raise self.failure("reading back", offset, error) from error
        return self._buffer[offset - start : min(offset - start + size, count)]

    def sync(self) -> None:
        """Put all on the medium, and forget what the kernel keeps of it in memory."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self.failure("syncing", 0, error) from error
        self.forget()

    def forget(self) -> None:
        """What is read from now on comes from the medium."""
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def finish(self) -> None:
        """All is written."""

    def failure(self, doing: str, offset: int, error: OSError) -> FlashError:
        """The error for people."""
        hint = AGAIN if error.errno != errno.ENOSPC else f"is the disk full? {AGAIN}"
        return FlashError(f"{doing} {self.name} at {mib(offset)}: {error.strerror}", hint=hint)


class _File(Target):
    """Zeros stay holes: it was emptied when it was opened, and each place is written once."""

    def reserve(self, end: int) -> None:
        if end > self.size_bytes:
            os.ftruncate(self._descriptor, end)
            self.size_bytes = end

    def write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        for start in range(0, len(view), _HOLE_BYTES):
            part = view[start : start + _HOLE_BYTES]
            if part != _ZEROS[: len(part)]:
                super().write(offset + start, part)


class _Device(Target):
    def __init__(self, medium: Medium, descriptor: int, size_bytes: int, block_bytes: int) -> None:
        super().__init__(medium.path, descriptor, size_bytes, block_bytes)
        self._medium = medium
        self._sequence = devices.sequence(medium)

    def forget(self) -> None:
        super().forget()
        try:
            fcntl.ioctl(self._descriptor, _BLKFLSBUF)  # only root may; O_DIRECT reads around it anyway
        except OSError:
            pass

    def finish(self) -> None:
        try:
            fcntl.ioctl(self._descriptor, _BLKRRPART)  # the new partitions appear; not every device has any
        except OSError:
            pass

    def failure(self, doing: str, offset: int, error: OSError) -> FlashError:
        where = f"{self.name} at {mib(offset)}"
        is_same = devices.is_there(self._medium) and devices.sequence(self._medium) == self._sequence
        if error.errno in _GONE or not is_same:
            return FlashError(
                f"{self.name} is gone: it was pulled out while {doing} at {mib(offset)}", hint=AGAIN
            )
        if error.errno in _LOCKED:
            return FlashError(
                f"{doing} {where}: it is write-protected",
                hint="is the card's or the adapter's switch on LOCK?",
            )
        return FlashError(
            f"{doing} {where} failed: {error.strerror}", hint=f"a bad medium, reader or cable; {AGAIN}"
        )


def open_device(medium: Medium, seen: str) -> Target:
    """Take a medium for ourselves: the kernel refuses if anything has it mounted, or uses it otherwise.

    `seen` is its sequence number when it was looked at. Raises FlashError, also if another one is there now.
    """
    flags = os.O_RDWR | os.O_EXCL | os.O_DIRECT | os.O_CLOEXEC
    try:
        descriptor = os.open(medium.path, flags)
    except OSError as error:
        raise _not_open(medium, error) from error
    try:
        number = os.fstat(descriptor).st_rdev
        size = struct.unpack("Q", fcntl.ioctl(descriptor, _BLKGETSIZE64, bytes(8)))[0]
        block = struct.unpack("i", fcntl.ioctl(descriptor, _BLKSSZGET, bytes(4)))[0]
        is_same = f"{os.major(number)}:{os.minor(number)}" == medium.number and size == medium.size_bytes
        if not is_same or devices.sequence(medium) != seen:
            raise FlashError(f"{medium.path} is another medium than a moment ago", hint="start again")
        if block != _SECTOR_BYTES:
            raise FlashError(
                f"{medium.path} has sectors of {block} bytes; the image's table counts in {_SECTOR_BYTES}",
                hint="another medium or reader",
            )
    except BaseException:
        os.close(descriptor)
        raise
    return _Device(medium, descriptor, size, block)


def _not_open(medium: Medium, error: OSError) -> FlashError:
    path = medium.path
    if error.errno == errno.EBUSY:
        return FlashError(
            f"{path} is in use: the kernel does not give it",
            hint="mounted in a container, or opened by a program?",
        )
    if error.errno == errno.EACCES:
        return FlashError(f"no permission to write {path}", hint="run it with sudo, or join the group disk")
    if error.errno in _GONE:
        return FlashError(f"{path} has no medium in it", hint="put it in again")
    if error.errno in _LOCKED:
        return FlashError(f"{path} is write-protected", hint="is the card's or the adapter's switch on LOCK?")
    return FlashError(f"cannot open {path}: {error.strerror}")


def open_file(path: Path, size_bytes: int) -> Target:
    """A file, emptied; it keeps its size if it was larger: a card of a virtual board. Raises FlashError."""
    if path.exists() and not path.is_file():
        raise FlashError(f"{path} is no plain file", hint="give a block device as DEVICE, without --to-file")
    if not path.parent.is_dir():
        raise FlashError(f"the folder {path.parent} is not there", hint=f"mkdir -p {path.parent}")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise FlashError(f"cannot write {path}: {error.strerror}") from error
    size = max(os.fstat(descriptor).st_size, size_bytes)
    os.ftruncate(descriptor, 0)
    os.ftruncate(descriptor, size)
    return _File(str(path), descriptor, size, 1)


class View(io.RawIOBase):
    """A target for reading as a file, with the head that is written last already at its place."""

    def __init__(self, target: Target, head: bytes) -> None:
        self._target = target
        self._head = head
        self._position = 0
        self._block = lru_cache(maxsize=_CACHE_BLOCKS)(self._read_block)

    def _read_block(self, number: int) -> bytes:
        """A medium is slow in small pieces, and a file system is read in many of them."""
        start = number * _CACHE_BYTES
        data = self._target.read(start, min(_CACHE_BYTES, self._target.size_bytes - start))
        return self._head[start : start + len(data)] + data[max(0, len(self._head) - start) :]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._target.size_bytes}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        into = memoryview(buffer).cast("B")
        if not 0 <= self._position < self._target.size_bytes:
            return 0
        number, offset = divmod(self._position, _CACHE_BYTES)
        data = self._block(number)[offset : offset + len(into)]
        into[: len(data)] = data
        self._position += len(data)
        return len(data)
