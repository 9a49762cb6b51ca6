# SPDX-License-Identifier: Apache-2.0
"""Artifacts read the way an installation reads them."""

from __future__ import annotations

import hashlib
import io

import pytest

from update_agent.artifact import Reader
from update_agent.errors import ArtifactError


class Pipe:
    """A stream with nothing but `read`."""

    def __init__(self, data: bytes, step: int = 1 << 20) -> None:
        self._file = io.BytesIO(data)
        self._step = step

    def read(self, n: int, /) -> bytes:
        return self._file.read(min(n, self._step))


def install(data: bytes, *, step: int = 1 << 20) -> dict[str, bytes]:
    """Read all of an artifact the way an installation does; the payload's files."""
    files = {}
    for file in Reader(Pipe(data, step)).files():
        content, view = bytearray(), memoryview(bytearray(10_000))
        while got := file.readinto(view):
            content += view[:got]
        assert file.verified
        assert file.digest == file.expected_digest == hashlib.sha256(content).hexdigest()
        files[file.name] = bytes(content)
    return files


def refuse(data: bytes, reason: str) -> str:
    """Reading all of it must end in an ArtifactError with this reason; the whole message."""
    with pytest.raises(ArtifactError) as caught:
        install(data)
    assert reason in str(caught.value)
    return str(caught.value)
