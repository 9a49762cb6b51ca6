# SPDX-License-Identifier: Apache-2.0
"""What an uploaded .mender file says about itself, read to its end as a device reads it.

The agent's own reader does it, checksums of the payload included: what a device would refuse is refused here,
when the person who made it still looks. Signatures are the device's business, which has the key.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from update_agent.artifact import Reader
from update_agent.errors import ArtifactError
from update_tools.server.faults import Unprocessable


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
    """Read a .mender file, as long as that takes. Raises Unprocessable saying what is wrong with it."""
    try:
        with path.open("rb", buffering=0) as file:
            return read_stream(file, path.stat().st_size)[0]
    except OSError as error:
        raise Unprocessable(f"the artifact cannot be read: {error}") from error


def read_stream(stream: IO[bytes], size_bytes: int) -> tuple[ArtifactInfo, str]:
    """Read an artifact of this size to its end; second comes its SHA-256 in hex. Raises Unprocessable."""
    hashed = _Hashed(stream)
    try:
        reader = Reader(hashed)
        info = _info(reader)
        for _ in reader.files():
            pass  # what is left unread is verified
    except ArtifactError as error:
        raise Unprocessable(
            f"not an artifact that a device takes: {error.message}", hint=error.hint
        ) from error
    if hashed.count != size_bytes:
        raise Unprocessable(f"the artifact has {hashed.count} bytes, {size_bytes} were announced")
    info.compression = reader.compression
    return info, hashed.sha256.hexdigest()


class _Hashed:
    """A source that keeps the SHA-256 and the number of bytes of what went through it."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.sha256 = hashlib.sha256()
        self.count = 0

    def read(self, size: int, /) -> bytes:
        chunk = self._source.read(size)
        self.sha256.update(chunk)
        self.count += len(chunk)
        return chunk


def _info(reader: Reader) -> ArtifactInfo:
    header = reader.header
    for what, text in (
        ("artifact_name", header.name),
        ("artifact_group", header.group),
        *(("device_type", word) for word in header.device_types),
        *(("the name of a state script", name) for name, _ in header.scripts),
    ):
        if any(ord(char) < 32 for char in text) or len(text) > 256:
            raise Unprocessable(f"{what} in the artifact is too long or has control characters")
    return ArtifactInfo(
        name=header.name,
        group=header.group,
        device_types=header.device_types,
        payload_type=header.payload_type,
        is_signed=header.signed,
        scripts=[name for name, _ in header.scripts],
        files=[{"name": name, "checksum": digest} for name, digest in sorted(reader.digests.items())],
        provides=header.provides,
        depends={**header.depends, "device_type": header.device_types},
        clears_provides=header.clears,
    )
