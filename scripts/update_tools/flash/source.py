# SPDX-License-Identifier: Apache-2.0
"""The image as a stream: unpacked on the way, its end checked, and what its first MiB says of the rest."""

from __future__ import annotations

import bz2
import io
import lzma
import os
import zlib
from typing import IO, TYPE_CHECKING

from update_tools.inspect.disk import Partition, read_table
from update_tools.inspect.tree import InspectError

from .errors import FlashError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Protocol

    class Unpacker(Protocol):
        """What bz2, lzma, zlib and zstandard give: one packed stream, maybe followed by others."""

        @property
        def eof(self) -> bool: ...
        @property
        def unused_data(self) -> bytes: ...
        def decompress(self, data: bytes, /) -> bytes: ...


HEAD_BYTES = 1 << 20
_CHUNK = 1 << 20
_PACKED = 4 << 10  # zstd makes 128 MiB of zeros of so little


def _zstd() -> Unpacker:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=1 << 30).decompressobj()


_KINDS: tuple[tuple[bytes, str, Callable[[], Unpacker]], ...] = (
    (b"BZh", "bzip2", bz2.BZ2Decompressor),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\xfd7zXZ\0", "xz", lzma.LZMADecompressor),
    (b"\x1f\x8b", "gzip", lambda: zlib.decompressobj(wbits=31)),
)


class Image:
    """An image of a card. `needed_bytes` is the end of its last partition: known before it is unpacked."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self._file = file
        self._packed_bytes = os.fstat(file.fileno()).st_size
        start = file.read(6)
        file.seek(0)
        self.compression = "none"
        self._make: Callable[[], Unpacker] | None = None
        for magic, name, make in _KINDS:
            if start.startswith(magic):
                self.compression, self._make = name, make
        self._unpacker: Unpacker | None = None
        self._ready = bytearray()
        self.position = 0
        """Bytes given so far, the head included."""
        self.head = self._read(HEAD_BYTES)
        self.partitions = _partitions(self.head, path)
        ends = [partition.end for partition in self.partitions]
        self.needed_bytes = max([*ends, len(self.head)])
        self.size_bytes = self._packed_bytes if self._make is None else 0
        """Exact size; 0 while it is packed and not read to its end."""
        if self.size_bytes and self.size_bytes < self.needed_bytes:
            raise self._cut_off(self.size_bytes)

    @property
    def is_seekable(self) -> bool:
        """Not packed: it can be looked into."""
        return self._make is None

    def plain(self) -> IO[bytes]:
        """The file itself, for reading out of order; only if `is_seekable`."""
        return self.path.open("rb")

    def read(self, size: int) -> bytes:
        """The next bytes behind the head; fewer only at the end. Raises FlashError where it is cut off."""
        data = self._read(size)
        if len(data) < size:
            self.size_bytes = self.position
            if self.position < self.needed_bytes:
                raise self._cut_off(self.position)
        return data

    def _cut_off(self, size: int) -> FlashError:
        return FlashError(
            f"{self.path} is cut off: it has {size} bytes, its partitions go up to {self.needed_bytes}",
            hint="is the download or the build complete?",
        )

    def _read(self, size: int) -> bytes:
        try:
            while len(self._ready) < size and (data := self._unpacked()):
                self._ready += data
        except OSError as error:
            if error.errno is None:  # bz2 says "Invalid data stream" so
                raise self._damaged(error) from error
            raise FlashError(f"cannot read {self.path}: {error.strerror}") from error
        data = bytes(memoryview(self._ready)[:size])
        del self._ready[:size]
        self.position += len(data)
        return data

    def _unpacked(self) -> bytes:
        """Some more bytes; none at the end."""
        if self._make is None:
            return self._file.read(_CHUNK)
        while True:
            packed = self._file.read(_PACKED)
            if not packed:
                if self._unpacker is not None and not self._unpacker.eof:
                    raise FlashError(
                        f"{self.path} is cut off: the {self.compression} stream has no end",
                        hint="is the download complete?",
                    )
                return b""
            out = bytearray()
            while packed:
                if self._unpacker is None or self._unpacker.eof:
                    if self._unpacker is not None and not packed.strip(b"\0"):
                        break  # padding
                    self._unpacker = self._make()
                try:
                    out += self._unpacker.decompress(packed)
                except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
                    raise self._damaged(error) from error
                except Exception as error:
                    if type(error).__module__.startswith("zstandard"):
                        raise self._damaged(error) from error
                    raise
                packed = self._unpacker.unused_data if self._unpacker.eof else b""
            if out:
                return bytes(out)

    def _damaged(self, error: Exception) -> FlashError:
        return FlashError(
            f"cannot unpack {self.path} ({self.compression}): {error}", hint="is the download complete?"
        )


def open_image(path: Path) -> Image:
    """Open an image and read its head. Raises FlashError if it is not the image of a card."""
    try:
        if not path.is_file():
            raise FlashError(
                f"{path} is {'no file' if path.exists() else 'not there'}",
                hint="an image of a card (.wic) is expected",
            )
        return Image(path, path.open("rb"))
    except OSError as error:
        raise FlashError(f"cannot open {path}: {error.strerror}") from error


def _partitions(head: bytes, path: Path) -> list[Partition]:
    if head.startswith(b"version\0") and head[257:262] == b"ustar":
        raise FlashError(f"{path} is an artifact, for the server or update-agent install", hint=_WIC)
    try:
        found = read_table(io.BytesIO(head), path.name)[2]
    except InspectError as error:
        raise FlashError(f"{path} is no image of a card: {error.message}", hint=_WIC) from error
    if not found or b"FAT" in (head[54:57], head[82:85]) or head[3:7] == b"NTFS":
        raise FlashError(f"{path} is no image of a card: it has no partitions", hint=_WIC)
    return found


_WIC = "a card's image ends in .wic, .wic.bz2, .wic.xz, .wic.zst or .wic.gz"
