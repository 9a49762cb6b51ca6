# SPDX-License-Identifier: Apache-2.0
"""The Download step: open the source, verify the headers, decide whether it is for us, stream the payload.

Runs in a child process for the daemon (HTTP, TLS and hashing never become resident) and in the process itself
for standalone commands. Nothing of the artifact is stored but its scripts and the payload's file tree.
"""

from __future__ import annotations

import os

from update_agent import payload as payloads
from update_agent import scripts
from update_agent.artifact import Reader, check_depends
from update_agent.errors import TransferError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from update_agent.artifact import Header
    from update_agent.bootloader import Bootloader
    from update_agent.config import Config
    from update_agent.log import Log
    from update_agent.loop import Wait
    from update_agent.payload import Payload
    from update_agent.transfer import Stream

    Progress = Callable[[int, int | None], None]


def describe(header: Header) -> dict[str, object]:
    """What the machine must know and save of an artifact; JSON values (see `Update.accept`)."""
    return {
        "name": header.name,
        "group": header.group,
        "payload_type": header.payload_type,
        "device_types": header.device_types,
        "provides": header.provides,
        "clears": header.clears,
    }


def open_source(source: str, config: Config, log: Log, progress: Progress | None = None) -> Stream:
    """A stream over a URL or a local file. Raises TransferError."""
    if source.startswith(("http://", "https://")):
        from update_agent.transfer import Download

        return Download(config, log, progress=progress).open(source)
    try:
        file = open(source, "rb", buffering=0)  # noqa: SIM115 - the stream outlives this function
        return _File(file, source, os.fstat(file.fileno()).st_size, progress)
    except OSError as error:
        raise TransferError(f"cannot open the artifact {source}: {os.strerror(error.errno or 0)}") from error


class _File:
    """A local artifact as a stream with progress."""

    def __init__(self, file: payloads.RawFile, path: str, size_bytes: int, progress: Progress | None) -> None:
        self._file = file
        self._path = path
        self._size_bytes = size_bytes
        self._progress = progress
        self._done_bytes = 0

    def read(self, size: int) -> bytes:
        data = bytearray(size)
        return bytes(data[: self.readinto(memoryview(data))])

    def readinto(self, buffer: memoryview) -> int:
        try:
            count = self._file.readinto(buffer) or 0
        except OSError as error:
            raise TransferError(
                f"cannot read the artifact {self._path} after {self._done_bytes} bytes: "
                f"{os.strerror(error.errno or 0)}"
            ) from error
        self._done_bytes += count
        if self._progress is not None:
            self._progress(self._done_bytes, self._size_bytes)
        return count

    def close(self) -> None:
        self._file.close()


class Intake:
    """One artifact being taken in: `accept`, then `stream`."""

    def __init__(
        self,
        source: Stream,
        config: Config,
        log: Log,
        bootloader: Bootloader,
        wait: Wait,
        *,
        verify: bool = True,
    ) -> None:
        """Read and verify everything before the payload. Raises ArtifactError or TransferError."""
        self._config = config
        self._log = log
        self._bootloader = bootloader
        self._wait = wait
        self._reader = Reader(source, verify_keys=config.artifact_verify_keys if verify else ())
        self.header = self._reader.header
        self.payload: Payload | None = None

    def accept(self, installed: Mapping[str, str]) -> None:
        """Decide that the artifact is for this device and put its scripts in place.

        Raises ArtifactError on a device type or dependency that does not match; nothing was changed then.
        """
        check_depends(self.header, installed, self._config.device_type())
        own = [] if self.header.payload_type is None else self.header.scripts
        scripts.install_scripts(self._config.scripts_artifact(), own)

    def prepare(self, installed: Mapping[str, str]) -> None:
        """Find the module and make its file tree. Raises PayloadError. Not for artifacts without payload."""
        self.payload = payloads.find(
            self.header.payload_type or "", self._config, self._log, self._bootloader, self._wait
        )
        current = {**installed, "device_type": self._config.device_type()}
        self.payload.prepare(self.header, current=current)

    def stream(self) -> None:
        """Hand the payload to the module. Returns when all of it arrived, was verified and is durable."""
        if self.payload is None:
            for file in self._reader.files():  # must be none; the reader checks what is left
                raise TransferError(f"artifact without payload type has a file {file.name}")
            return
        self.payload.download(self._reader.files())
