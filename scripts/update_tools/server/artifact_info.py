# SPDX-License-Identifier: Apache-2.0
"""What an uploaded .mender file says about itself, read as a stream (spec artifact-v3.md sections 1 to 4).

Only the header is opened; the payload is walked over. Its checksums are the device's business, but a file
that a device could not even begin to read is refused here, when the person who made it still looks.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import tarfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from update_tools.server.bodies import parse_json
from update_tools.server.faults import BadRequest, Unprocessable

HEADER_LIMIT_BYTES = 64 << 20  # unpacked: state scripts may be large, a compression bomb is larger
SMALL_LIMIT_BYTES = 1 << 20
ORDER = ("version", "manifest", "manifest.sig", "header.tar", "data/0000.tar")
OPTIONAL = ("manifest.sig", "data/0000.tar")
COMPRESSION = {"": "none", ".gz": "gzip", ".xz": "xz", ".zst": "zstd"}
MANIFEST_LINE = re.compile(r"^([0-9a-f]{64})  (\S{1,100})$")
SCRIPT_NAME = re.compile(
    r"^Artifact(Install|Reboot|Rollback|RollbackReboot|Commit|Failure)_(Enter|Leave|Error)_[0-9][0-9](_\S+)?$"
)


@dataclass
class ArtifactInfo:
    """The part of an artifact's header that hand-out decisions and people need."""

    name: str = ""
    group: str = ""
    device_types: list[str] = field(default_factory=list)
    payload_type: str | None = None
    is_signed: bool = False
    scripts: list[str] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    provides: dict[str, Any] = field(default_factory=dict)
    depends: dict[str, Any] = field(default_factory=dict)
    clears_provides: list[str] | None = None
    compression: str = "none"

    def as_dict(self) -> dict[str, Any]:
        """For the database and the page."""
        return asdict(self)


def read(path: Path) -> ArtifactInfo:
    """Read a .mender file. Raises Unprocessable saying what is wrong with it."""
    try:
        with tarfile.open(path, mode="r|") as outer:
            return _Walk(outer).run(path.stat().st_size)
    except (tarfile.TarError, EOFError) as error:
        raise Unprocessable(f"not an artifact: the outer tar cannot be read ({error})") from error
    except (OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise Unprocessable(f"not an artifact: its header cannot be unpacked ({error})") from error


class _Walk:
    """One pass over the outer tar: order of members, header contents, payload skipped."""

    def __init__(self, outer: tarfile.TarFile) -> None:
        self.outer = outer
        self.info = ArtifactInfo()
        self.manifest: dict[str, str] = {}
        self.version_sha256 = ""

    def run(self, size_bytes: int) -> ArtifactInfo:
        place = -1
        for member in self.outer:
            if not member.isreg():
                raise Unprocessable(f"artifact member {member.name!r} is not a regular file")
            stem, suffix = _split(member.name)
            if stem in ("manifest-augment", "header-augment.tar"):
                raise Unprocessable("augmented artifacts are not supported")
            if stem not in ORDER or ORDER.index(stem) <= place:
                raise Unprocessable(f"artifact member {member.name!r} is unknown or not in its place")
            skipped = [name for name in ORDER[place + 1 : ORDER.index(stem)] if name not in OPTIONAL]
            if skipped:
                raise Unprocessable(f"the artifact has no {skipped[0]} before {member.name!r}")
            place = ORDER.index(stem)
            if member.offset_data + member.size > size_bytes:  # tarfile ends silently here
                raise Unprocessable(f"the artifact is cut off inside {member.name!r}")
            self._member(member, stem, suffix)
        missing = [name for name in ORDER[place + 1 :] if name not in OPTIONAL]
        if missing:
            raise Unprocessable(f"the artifact ends before its {missing[0]}")
        if self.info.payload_type is not None and place < ORDER.index("data/0000.tar"):
            raise Unprocessable("the artifact has no payload (data/0000.tar)")
        return self.info

    def _member(self, member: tarfile.TarInfo, stem: str, suffix: str) -> None:
        if stem == "version":
            raw = self._small(member)
            _check_version(_json_object(raw, "version"))
            self.version_sha256 = hashlib.sha256(raw).hexdigest()
        elif stem == "manifest":
            self.manifest = _parse_manifest(self._small(member))
            if self.manifest.get("version") != self.version_sha256:
                raise Unprocessable("the checksum of version is missing in the manifest or wrong")
            self.info.files = [
                {"name": name.removeprefix("data/0000/"), "checksum": checksum}
                for name, checksum in sorted(self.manifest.items())
                if name.startswith("data/0000/")
            ]
        elif stem == "manifest.sig":
            self.info.is_signed = True
        elif stem == "header.tar":
            self._header(member, suffix)
        else:
            self.info.compression = COMPRESSION[suffix]

    def _small(self, member: tarfile.TarInfo) -> bytes:
        if member.size > SMALL_LIMIT_BYTES:
            raise Unprocessable(f"artifact member {member.name!r} has {member.size} bytes")
        file = self.outer.extractfile(member)
        assert file is not None  # a regular file, checked
        return file.read()

    def _header(self, member: tarfile.TarInfo, suffix: str) -> None:
        packed = self.outer.extractfile(member)
        assert packed is not None
        hashed = _Hashed(packed)
        unpacked = cast(IO[bytes], _Limited(_unpack(hashed, suffix), HEADER_LIMIT_BYTES))
        with tarfile.open(fileobj=unpacked, mode="r|") as inner:
            self._header_members(inner)
        hashed.drain()
        listed = next(
            (self.manifest[f"header.tar{s}"] for s in COMPRESSION if f"header.tar{s}" in self.manifest), ""
        )
        if listed != hashed.sha256.hexdigest():
            raise Unprocessable("the checksum of the header is missing in the manifest or wrong")

    def _header_members(self, inner: tarfile.TarFile) -> None:
        seen: set[str] = set()
        for member in inner:
            if not member.isreg():
                raise Unprocessable(f"header member {member.name!r} is not a regular file")
            if not seen and member.name != "header-info":
                raise Unprocessable("the header does not begin with header-info")
            if member.name in seen:
                raise Unprocessable(f"header member {member.name!r} comes twice")
            seen.add(member.name)
            if member.name.startswith("scripts/"):
                script = member.name.removeprefix("scripts/")
                if not SCRIPT_NAME.match(script) or "/" in script or not script.isprintable():
                    raise Unprocessable(f"{script!r} is not the name of a state script")
                self.info.scripts.append(script)
                continue
            if member.name not in ("header-info", "headers/0000/type-info", "headers/0000/meta-data"):
                raise Unprocessable(f"header member {member.name!r} is unknown")
            if member.name == "headers/0000/meta-data":
                continue
            if member.size > SMALL_LIMIT_BYTES:
                raise Unprocessable(f"header member {member.name!r} has {member.size} bytes")
            file = inner.extractfile(member)
            assert file is not None
            value = _json_object(file.read(), member.name)
            if member.name == "header-info":
                _take_header_info(value, self.info)
            else:
                _take_type_info(value, self.info)
        for name in ("header-info", "headers/0000/type-info"):
            if name not in seen:
                raise Unprocessable(f"the header has no {name}")


def _take_header_info(value: dict[str, Any], info: ArtifactInfo) -> None:
    payloads = value.get("payloads")
    if not isinstance(payloads, list) or len(payloads) != 1 or not isinstance(payloads[0], dict):
        raise Unprocessable("header-info must list exactly one payload")
    kind = payloads[0].get("type")
    if kind is not None and (not isinstance(kind, str) or not kind):
        raise Unprocessable("the payload type must be a name or null")
    info.payload_type = kind
    provides = _object(value.get("artifact_provides"), "artifact_provides")
    depends = _object(value.get("artifact_depends"), "artifact_depends")
    info.name = _text(provides.get("artifact_name"), "artifact_name")
    info.group = _text(provides.get("artifact_group", ""), "artifact_group", may_be_empty=True)
    device_types = depends.get("device_type")
    if not isinstance(device_types, list) or not device_types:
        raise Unprocessable("header-info names no device_type the artifact is for")
    info.device_types = [_text(word, "device_type") for word in device_types]
    info.depends = {**depends, **info.depends}


def _take_type_info(value: dict[str, Any], info: ArtifactInfo) -> None:
    info.provides = _object(value.get("artifact_provides") or {}, "artifact_provides")
    info.depends = {**info.depends, **_object(value.get("artifact_depends") or {}, "artifact_depends")}
    clears = value.get("clears_artifact_provides")
    if clears is not None and not (
        isinstance(clears, list) and all(isinstance(word, str) for word in clears)
    ):
        raise Unprocessable("clears_artifact_provides must be a list of strings")
    info.clears_provides = clears


def _check_version(value: dict[str, Any]) -> None:
    if value.get("format") != "mender":
        raise Unprocessable("not an artifact: version does not say format mender")
    if value.get("version") != 3:
        raise Unprocessable(
            f"artifact format version {value.get('version')} is not supported", hint="write version 3"
        )


def _parse_manifest(raw: bytes) -> dict[str, str]:
    lines: dict[str, str] = {}
    for line in raw.decode("utf-8", "replace").splitlines():
        match = MANIFEST_LINE.match(line)
        if match is None:
            raise Unprocessable(f"manifest line {line[:120]!r} is not 'checksum  name'")
        lines[match[2]] = match[1]
    return lines


def _split(name: str) -> tuple[str, str]:
    for suffix in (".gz", ".xz", ".zst"):
        if name.endswith(".tar" + suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


def _unpack(source: _Hashed, suffix: str) -> IO[bytes]:
    raw = cast(IO[bytes], source)
    if suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw, mode="rb"))
    if suffix == ".xz":
        return cast(IO[bytes], lzma.LZMAFile(raw, "rb"))
    if suffix == ".zst":
        return cast(IO[bytes], zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(raw))
    return raw


def _json_object(raw: bytes, name: str) -> dict[str, Any]:
    try:
        return _object(parse_json(raw), name)
    except BadRequest as error:
        raise Unprocessable(f"{name} in the artifact is broken: {error.message}") from error


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unprocessable(f"{name} in the artifact is not a JSON object")
    return value


def _text(value: Any, name: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str) or (not value and not may_be_empty):
        raise Unprocessable(f"{name} in the artifact must be a non-empty string")
    if any(ord(char) < 32 for char in value) or len(value) > 256:
        raise Unprocessable(f"{name} in the artifact is too long or has control characters")
    return value


class _Hashed:
    """A source that keeps the SHA-256 of what went through it."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        chunk = self._source.read(size)
        self.sha256.update(chunk)
        return chunk

    def drain(self) -> None:
        while self.read(1 << 16):
            pass


class _Limited:
    """A source that ends in a refusal once more than the limit was read."""

    def __init__(self, source: IO[bytes], limit_bytes: int) -> None:
        self._source = source
        self._left = limit_bytes

    def read(self, size: int = -1) -> bytes:
        chunk = self._source.read(size)
        self._left -= len(chunk)
        if self._left < 0:
            raise Unprocessable(f"the header unpacks to more than {HEADER_LIMIT_BYTES >> 20} MiB")
        return chunk
