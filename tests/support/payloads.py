# SPDX-License-Identifier: Apache-2.0
"""A payload file in memory, as the artifact reader hands it out."""

from __future__ import annotations

import hashlib


class Payload:
    """Gives odd portions, announces any size, and can fail: while being read, or by its checksum."""

    name = "rootfs.ext4"

    def __init__(
        self,
        data: bytes,
        *,
        size: int | None = None,
        fails_at: int | None = None,
        error: BaseException | None = None,
        checksum_error: Exception | None = None,
        compression: str = "none",
    ) -> None:
        self.data = data
        self.size = len(data) if size is None else size
        self.compression = compression
        self.fails_at = fails_at
        self.error = error
        self.checksum_error = checksum_error
        self.position = 0
        self._sha = hashlib.sha256()

    def readinto(self, buffer: memoryview) -> int:
        """At most 77777 bytes, hashed."""
        part = self.data[self.position : self.position + min(len(buffer), 77_777)]
        buffer[: len(part)] = part
        self.hash(buffer[: len(part)])
        self.position += len(part)
        if self.position == len(self.data):
            self.verify()
        return len(part)

    def fill(self, view: memoryview, /) -> int:
        """A whole view, less at the end."""
        if self.fails_at is not None and self.position + len(view) > self.fails_at:
            raise self.error or OSError("the source failed")
        part = self.data[self.position : self.position + len(view)]
        view[: len(part)] = part
        self.position += len(part)
        return len(part)

    def hash(self, view: memoryview, /) -> None:
        """Count the bytes in."""
        self._sha.update(view)

    def verify(self) -> str:
        """The digest; an error if there is to be one."""
        if self.checksum_error:
            raise self.checksum_error
        return self._sha.hexdigest()
