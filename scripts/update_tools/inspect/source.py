# SPDX-License-Identifier: Apache-2.0
"""Opens what is to be inspected: a card (.wic), a root file system (.ext4), a directory, an artifact.

By content, not by name; card and file system may be compressed. No root, no loop device.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import zlib
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING

from update_agent.artifact import Reader
from update_agent.errors import ArtifactError

from .disk import Disk, at, identify
from .tree import DirectoryTree, InspectError, Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from update_agent.header import Header

    class Readable(Protocol):
        """Bytes of an image, until none are left."""

        def read(self, n: int, /) -> bytes: ...


_CHUNK = 1 << 20
_PACKED_BYTES = 16 << 10  # zeros become 10,000 times as much
_LARGEST_BYTES = 256 << 30  # no card is larger; what is, was made to fill a disk
_MEMORY_LIMIT_BYTES = 1 << 30
_HEAD = 1  # of a payload that is not looked into: one chunk


class _Zstd:
    """zstandard's own reader takes a file that is cut off for a shorter one."""

    def __init__(self, file: IO[bytes]) -> None:
        import zstandard

        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 30)
        self._frame = self._decompressor.decompressobj()
        self._rest = b""

    def read(self, n: int, /) -> bytes:
        while True:
            packed = self._rest or self._file.read(_PACKED_BYTES)
            self._rest = b""
            if self._frame.eof and packed:
                self._frame = self._decompressor.decompressobj()
            elif not packed:
                if not self._frame.eof:
                    raise EOFError("it ends in the middle")
                return b""
            found = self._frame.decompress(packed)
            self._rest = self._frame.unused_data
            if found:
                return found


_DECOMPRESSORS: tuple[tuple[bytes, str, Callable[[IO[bytes]], Readable]], ...] = (
    (b"BZh", "bzip2", bz2.BZ2File),
    (b"\x28\xb5\x2f\xfd", "zstd", _Zstd),
    (b"\xfd7zXZ\0", "xz", lzma.LZMAFile),
    (b"\x1f\x8b", "gzip", lambda file: gzip.GzipFile(fileobj=file)),
)


class Artifact:
    """An artifact: header, payload files with their sizes; `damage` tells why a device refuses it.

    `filesystem` is what the payload of a rootfs-image is, as `disk.identify` calls it.
    """

    def __init__(self, header: Header) -> None:
        self.header = header
        self.compression = "none"
        self.files: dict[str, int] = {}
        self.damage = ""
        self.filesystem = ""
        self.manifest = self.signature = b""

    def take_signature(self, manifest: bytes, signature: bytes, keys: Sequence[str]) -> str:
        """Keep what is signed and the signature, to be checked with the keys of an image."""
        self.manifest, self.signature = manifest, signature
        return keys[0]

    @property
    def payload_bytes(self) -> int:
        """Size of the payload after unpacking: what goes into a slot."""
        return sum(self.files.values())


class Source:
    """What was opened: `kind` is disk, filesystem, directory or artifact; the rest as far as it exists.

    `image` is an ext4 file system that was opened alone, or came out of an artifact.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.compression = "none"
        self.disk: Disk | None = None
        self.root: Tree | None = None
        self.artifact: Artifact | None = None
        self.image: IO[bytes] | None = None


class Opener:
    """Keeps what was unpacked until it is closed; use it with `with`."""

    def __init__(self, *, progress: Callable[[int], object] = lambda count: None) -> None:
        self._stack = ExitStack()
        self._scratch: Path | None = None
        self._progress = progress

    def __enter__(self) -> Opener:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def scratch(self, name: str) -> Path:
        """A new path in a directory that goes away."""
        if self._scratch is None:
            self._scratch = Path(self._stack.enter_context(TemporaryDirectory(prefix="ota-inspect-")))
        return self._scratch / f"{len(list(self._scratch.iterdir()))}-{name}"

    def open_artifact(self, path: Path) -> Artifact:
        """An artifact alone; its payload is checked, not looked into. Raises InspectError if it is none."""
        source = self.open(path, payload=False)
        if source.artifact is None:
            raise InspectError(f"{path} is no artifact", hint="scripts/ota artifact write makes one")
        return source.artifact

    def open(self, path: Path, *, payload: bool = True) -> Source:
        """Open a path; `payload` False: do not look into an artifact's payload. Raises InspectError."""
        if path.is_dir():
            source = Source(path, "directory")
            source.root = DirectoryTree(path)
            return source
        try:
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):  # opening a pipe would wait for a writer
                raise InspectError(f"{path} is neither a file, a directory nor a card")
            file: IO[bytes] = self._stack.enter_context(path.open("rb"))
        except OSError as error:
            raise InspectError(f"cannot open {path}: {error.strerror}") from error
        head = at(file, 0, 512)
        file.seek(0)
        if head.startswith(b"version\0") and head[257:262] == b"ustar":
            return self._artifact(path, file, payload)
        compression = "none"
        for magic, name, opener in _DECOMPRESSORS:
            if head.startswith(magic):
                compression = name
                file = self._unpacked(opener(file), path)
        source = self._image(path, file)
        source.compression = compression
        return source

    def _unpacked(self, stream: Readable, path: Path) -> IO[bytes]:
        target = self._stack.enter_context(self.scratch("image").open("w+b"))
        try:
            copy_sparse(stream, target, self._progress)
        except (OSError, EOFError, lzma.LZMAError, zlib.error, ValueError) as error:
            raise _cannot_unpack(path, error) from error
        except Exception as error:
            if type(error).__module__.startswith("zstandard"):  # not loaded for anything else
                raise _cannot_unpack(path, error) from error
            raise
        return target

    def _image(self, path: Path, file: IO[bytes]) -> Source:
        kind, _ = identify(file, 0)
        if kind == "ext4":
            source = Source(path, "filesystem")
            source.image = file
            return source
        if kind == "other" and at(file, 510, 2) == b"\x55\xaa":
            source = Source(path, "disk")
            source.disk = Disk(file, path.name)
            return source
        raise InspectError(
            f"{path} is no image of a card, no ext4 file system and no artifact",
            hint="what can be inspected: .wic and .ext4 (also .bz2, .xz, .zst, .gz), a directory, .mender",
        )

    def _artifact(self, path: Path, file: IO[bytes], payload: bool) -> Source:
        source = Source(path, "artifact")
        reader = Reader(file, memory_limit_bytes=_MEMORY_LIMIT_BYTES)  # not even a header: an error of input
        artifact = source.artifact = Artifact(reader.header)
        if reader.header.signed:
            file.seek(0)
            Reader(file, verify_keys=["-"], verify=artifact.take_signature)
            file.seek(0)
            reader = Reader(file, memory_limit_bytes=_MEMORY_LIMIT_BYTES)
        limit = _LARGEST_BYTES if payload else _HEAD
        is_root = reader.header.payload_type == "rootfs-image"
        image: IO[bytes] | None = None
        try:
            for member in reader.files():
                artifact.files[member.name] = member.size
                if member.size > _LARGEST_BYTES:
                    raise ArtifactError(f"{member.name} has {member.size} bytes")
                if is_root:
                    image = self._stack.enter_context(self.scratch("payload").open("w+b"))
                    copy_sparse(member, image, self._progress, limit_bytes=limit)
        except ArtifactError as error:
            artifact.damage = str(error)
        artifact.compression = reader.compression  # known from the payload on
        if image is not None and not artifact.damage:
            artifact.filesystem, _ = identify(image, 0)
            if payload and artifact.filesystem == "ext4":
                source.image = image
        return source


def _cannot_unpack(path: Path, error: Exception) -> InspectError:
    return InspectError(f"cannot unpack {path}: {error}", hint="is the download complete?")


def copy_sparse(
    source: Readable,
    target: IO[bytes],
    progress: Callable[[int], object],
    *,
    limit_bytes: int = _LARGEST_BYTES,
) -> None:
    """Copy a stream to a file; zeros become holes. Stops at the limit. Raises ValueError for a monster."""
    size = 0
    while size < limit_bytes and (chunk := source.read(_CHUNK)):
        if chunk.strip(b"\0"):
            target.seek(size)
            target.write(chunk)
        size += len(chunk)
        progress(len(chunk))
    if size >= _LARGEST_BYTES:
        raise ValueError(f"it unpacks to more than {_LARGEST_BYTES >> 30} GiB")
    target.truncate(size)
    target.flush()
