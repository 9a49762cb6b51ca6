# SPDX-License-Identifier: Apache-2.0
"""Write and sign artifacts of format 3: the same input makes the same bytes.

image = Contents("release-2", ["raspberrypi5"], "rootfs-image", files=[Path("image.ext4")])
write(with_software(image, Software()), Path("release-2.mender"), Packing("zstd"))
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from update_agent import header
from update_agent.artifact import (
    MAX_HEADER_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_SIGNATURE_BYTES,
    Reader,
    check_file_name,
)
from update_agent.errors import ArtifactError
from update_agent.tarstream import StreamSource, TarStream
from update_tools.packing import SUFFIXES, Packer, packer

if TYPE_CHECKING:
    from update_tools.keys import PrivateKey

VERSION = b'{"format":"mender","version":3}'
ROOTFS = "rootfs-image"
CHUNK_BYTES = 1 << 20
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Packing:
    """How header and payload are compressed; level None is the usual one."""

    compression: str = "gzip"
    level: int | None = None

    @property
    def suffix(self) -> str:
        """Of the members' names."""
        if self.compression not in SUFFIXES:
            raise ArtifactError(
                f"unknown compression {self.compression!r}", hint=f"known are {', '.join(SUFFIXES)}"
            )
        return SUFFIXES[self.compression]

    def packer(self, target: IO[bytes]) -> Packer:
        """What compresses into this file."""
        return packer(target, self.compression, self.level)


@dataclass(frozen=True)
class Software:
    """The software version the payload provides: key `filesystem.name.version` (artifact-v3.md section 5)."""

    filesystem: str = ""
    name: str = ""
    version: str = ""
    with_version: bool = True
    with_clears: bool = True
    checksum_key: str = "rootfs-image.checksum"
    """Of a rootfs-image; empty to leave it out."""


@dataclass(frozen=True)
class Contents:
    """What an artifact is to contain. payload_type None: no payload, only provides (bootstrap artifact)."""

    name: str
    device_types: Sequence[str]
    payload_type: str | None
    files: Sequence[Path] = ()
    scripts: Sequence[Path] = ()
    meta_data: bytes | None = None
    group: str = ""
    depends_names: Sequence[str] = ()
    depends_groups: Sequence[str] = ()
    depends: Mapping[str, str | list[str]] = field(default_factory=dict)
    provides: Mapping[str, str] = field(default_factory=dict)
    clears: Sequence[str] | None = None
    checksum_key: str = ""
    """A provides key that gets the SHA-256 of the (only) payload file."""


def with_software(contents: Contents, software: Software) -> Contents:
    """Add what mender-artifact adds by default: software version, its clears, a rootfs-image's checksum."""
    provides = dict(contents.provides)
    clears = list(contents.clears or [])
    is_rootfs = contents.payload_type == ROOTFS
    filesystem = software.filesystem or ROOTFS
    name = software.name or ("" if is_rootfs else contents.payload_type or "")
    stem = ".".join(part for part in (filesystem, name) if part)
    if software.with_version:
        provides.setdefault(f"{stem}.version", software.version or contents.name)
        if software.with_clears:
            clears += ["artifact_group", "rootfs_image_checksum"] if is_rootfs and stem == ROOTFS else []
            clears.append(f"{stem}.*")
    return Contents(
        **{
            **vars(contents),
            "provides": provides,
            "clears": clears or contents.clears,
            "checksum_key": software.checksum_key if is_rootfs else "",
        }
    )


def write(
    contents: Contents,
    output: Path,
    packing: Packing = Packing(),
    *,
    key: PrivateKey | None = None,
    mtime: int = 0,
    progress: Progress = lambda _: None,
) -> None:
    """Write the artifact; `output` appears complete or not at all. `progress` gets payload bytes done.

    `mtime` goes into every member (SOURCE_DATE_EPOCH). File modes are 0755 for what is executable, else 0644:
    a umask shall not change the bytes. Raises ArtifactError when devices would refuse the result.
    """
    _check_files(contents)
    with _replacing(output) as target:
        if packing.compression == "none":
            _write_in_place(contents, target, packing, key, mtime, progress)
        else:
            with tempfile.TemporaryFile(dir=output.parent) as spool:
                digests = _pack_payload(contents, packing.packer(spool), mtime, progress)
                spool.flush()
                size = os.fstat(spool.fileno()).st_size
                target.write(_front(contents, digests, size, packing, key, mtime))
                spool.seek(0)
                _copy(spool, target)
        target.write(bytes(-target.tell() % tarfile.BLOCKSIZE) + bytes(2 * tarfile.BLOCKSIZE))


def _write_in_place(
    contents: Contents,
    target: IO[bytes],
    packing: Packing,
    key: PrivateKey | None,
    mtime: int,
    progress: Progress,
) -> None:
    """Write a payload that is not compressed, read once, where it will stay.

    What comes before it holds its digests and its size, which have one length whatever they are.
    """
    zeros = {path.name: "0" * 64 for path in contents.files}
    front = _front(contents, zeros, 0, packing, key, mtime)
    target.write(front)
    digests = _pack_payload(contents, packing.packer(target), mtime, progress)
    end = target.tell()
    size, expected = end - len(front), len(front)
    front = _front(contents, digests, size, packing, key, mtime)
    assert len(front) == expected
    target.seek(0)
    target.write(front)
    target.seek(end)


def _front(
    contents: Contents,
    digests: Mapping[str, str],
    size: int,
    packing: Packing,
    key: PrivateKey | None,
    mtime: int,
) -> bytes:
    """All that comes before the payload's `size` bytes: its head is the last of it."""
    suffix = packing.suffix
    packed_header = _pack_header(contents, digests, packing, mtime)
    sums = {f"data/0000/{name}": digest for name, digest in digests.items()}
    sums |= {"version": _sha256(VERSION), f"header.tar{suffix}": _sha256(packed_header)}
    manifest = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()
    if len(manifest) > MAX_MANIFEST_BYTES or len(packed_header) > MAX_HEADER_BYTES:
        raise ArtifactError(f"the header of {contents.name} is larger than devices accept")
    front = io.BytesIO()
    _member(front, "version", VERSION, mtime)
    _member(front, "manifest", manifest, mtime)
    if key is not None:
        _member(front, "manifest.sig", key.sign(manifest), mtime)
    _member(front, f"header.tar{suffix}", packed_header, mtime)
    front.write(_head(f"data/0000.tar{suffix}", size, mtime, 0o600))
    return front.getvalue()


def sign(
    source: Path,
    output: Path,
    key: PrivateKey,
    *,
    force: bool = False,
    progress: Progress = lambda _: None,
) -> None:
    """Write the artifact anew with a signature; all other bytes stay. `output` may be the same path.

    Raises ArtifactError for what is no valid artifact up to its payload, or signed already (unless `force`).
    """
    with source.open("rb") as stream:
        if Reader(stream).header.signed and not force:
            raise ArtifactError(f"{source} is signed already", hint="replace the signature with --force")
        stream.seek(0)
        tar = TarStream(StreamSource(stream), str(source))
        first, second = tar.next(), tar.next()
        assert first is not None
        assert second is not None
        manifest = tar.read_whole(second, MAX_MANIFEST_BYTES)
        end = _padded(stream.tell())
        third = tar.next()
        assert third is not None
        rest = end
        if third.name == "manifest.sig":
            tar.read_whole(third, MAX_SIGNATURE_BYTES)
            rest = _padded(stream.tell())
        with _replacing(output) as target:
            stream.seek(0)
            target.write(stream.read(end))
            _member(target, "manifest.sig", key.sign(manifest), 0)
            stream.seek(rest)
            _copy(stream, target, progress)


def _check_files(contents: Contents) -> None:
    for paths in (contents.files, contents.scripts):
        names = [path.name for path in paths]
        for name in names:
            if names.count(name) > 1:
                raise ArtifactError(
                    f"two files are named {name}", hint="names in an artifact are without directories"
                )
    for path in contents.files:
        check_file_name(path.name)
    if contents.payload_type in {".", ".."} or "/" in (contents.payload_type or ""):
        raise ArtifactError(
            f"payload type {contents.payload_type!r} cannot be the name of an update module",
            hint="the name of its program, without directories",
        )
    if "" in contents.device_types:
        raise ArtifactError("a device type is empty: no device has that", hint="is the variable in -t set?")
    if contents.payload_type is None and (contents.files or contents.scripts or contents.meta_data):
        raise ArtifactError("an artifact without payload has no files, scripts or meta-data")
    if contents.payload_type == ROOTFS and len(contents.files) != 1:
        raise ArtifactError(f"a rootfs-image is one file, not {len(contents.files)}")


def _pack_payload(contents: Contents, pack: Packer, mtime: int, progress: Progress) -> dict[str, str]:
    """The payload archive into the packer, which is closed; digests by file name."""
    digests: dict[str, str] = {}
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with contextlib.closing(pack):  # also on an error: its threads must end
        for path in contents.files:
            digest, done = hashlib.sha256(), 0
            with _open(path) as file:
                size, mode = _size_and_mode(file)
                if not size and contents.payload_type == ROOTFS:
                    raise ArtifactError(f"the image {path} is empty", hint="has its build failed?")
                pack.write(_head(path.name, size, mtime, mode))
                while done <= size and (got := file.readinto(buffer)):
                    digest.update(buffer[:got])
                    pack.write(buffer[:got])
                    done += got
                    progress(got)
            if done != size:
                raise ArtifactError(f"{path} changed while it was read: {size} bytes before, {done} read")
            pack.write(bytes(-size % tarfile.BLOCKSIZE))
            digests[path.name] = digest.hexdigest()
        pack.write(bytes(2 * tarfile.BLOCKSIZE))
    return digests


def _pack_header(contents: Contents, digests: Mapping[str, str], packing: Packing, mtime: int) -> bytes:
    info = _header_info(contents)
    kind = _type_info(contents, digests)
    scripts = []
    for path in sorted(contents.scripts, key=lambda script: script.name):
        with _open(path) as file:
            scripts.append((path.name, file.read()))
    plain = io.BytesIO()
    _member(plain, "header-info", info, mtime)
    for name, content in scripts:
        _member(plain, f"scripts/{name}", content, mtime, 0o755)
    _member(plain, "headers/0000/type-info", kind, mtime)
    if contents.meta_data is not None:
        _member(plain, "headers/0000/meta-data", contents.meta_data, mtime)
    plain.write(bytes(2 * tarfile.BLOCKSIZE))
    # The device's own reader decides whether this is a header.
    plain.seek(0)
    header.read_header(TarStream(StreamSource(plain), "header.tar"), signed=False)
    with tempfile.TemporaryFile() as packed:
        pack = packing.packer(packed)
        pack.write(plain.getbuffer())
        pack.close()
        packed.seek(0)
        return packed.read()


def _header_info(contents: Contents) -> bytes:
    provides = {"artifact_name": contents.name}
    if contents.group:
        provides["artifact_group"] = contents.group
    depends: dict[str, list[str]] = {}
    if contents.depends_names:
        depends["artifact_name"] = list(contents.depends_names)
    depends["device_type"] = list(contents.device_types)
    if contents.depends_groups:
        depends["artifact_group"] = list(contents.depends_groups)
    return _json(
        {
            "payloads": [{"type": contents.payload_type}],
            "artifact_provides": provides,
            "artifact_depends": depends,
        }
    )


def _type_info(contents: Contents, digests: Mapping[str, str]) -> bytes:
    document: dict[str, object] = {"type": contents.payload_type}
    provides = dict(contents.provides)
    if contents.checksum_key:
        provides.setdefault(contents.checksum_key, next(iter(digests.values())))
    if contents.depends:
        document["artifact_depends"] = dict(sorted(contents.depends.items()))
    if provides:
        document["artifact_provides"] = dict(sorted(provides.items()))
    if contents.clears is not None:
        document["clears_artifact_provides"] = list(contents.clears)
    return _json(document)


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _padded(size: int) -> int:
    return size + -size % tarfile.BLOCKSIZE


def _head(name: str, size: int, mtime: int, mode: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, mtime, mode
    return info.tobuf(tarfile.GNU_FORMAT)


def _member(target: IO[bytes], name: str, data: bytes, mtime: int, mode: int = 0o600) -> None:
    target.write(_head(name, len(data), mtime, mode) + data + bytes(-len(data) % tarfile.BLOCKSIZE))


def _size_and_mode(file: IO[bytes]) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, 0o755 if status.st_mode & 0o100 else 0o644


@contextmanager
def _open(path: Path) -> Iterator[io.FileIO]:
    try:
        # Not to wait for whoever writes to a FIFO.
        file = io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ArtifactError(f"{path} is not a regular file", hint="copy its content into a file first")
        yield file


@contextmanager
def _replacing(output: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `output` when all went well, and vanishes otherwise."""
    if output.exists() and not output.is_file():  # a device would be replaced, and stay so
        raise ArtifactError(
            f"cannot write {output}: it is no plain file", hint="name a file for the artifact"
        )
    try:
        fd, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
    except OSError as error:
        hint = "" if output.parent.is_dir() else f"mkdir -p {output.parent}"
        raise ArtifactError(f"cannot write {output}: {error.strerror}", hint=hint) from error
    try:
        with open(fd, "wb") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, output)
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise ArtifactError(f"cannot write {output}: {error.strerror}") from error
        raise


def _copy(source: IO[bytes], target: IO[bytes], progress: Progress = lambda _: None) -> None:
    while chunk := source.read(CHUNK_BYTES):
        target.write(chunk)
        progress(len(chunk))
