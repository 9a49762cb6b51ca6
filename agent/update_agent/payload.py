# SPDX-License-Identifier: Apache-2.0
"""Where an artifact's payload goes: the built-in rootfs-image module or an external one; their file tree."""

from __future__ import annotations

import os

from update_agent.errors import PayloadError
from update_agent.files import remove_tree, write
from update_agent.store import sync_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Protocol

    from update_agent.bootloader import Bootloader
    from update_agent.config import Config
    from update_agent.log import Log
    from update_agent.loop import Wait
    from update_agent.slot_writer import Source

    class RawFile(Protocol):
        """An unbuffered binary file, as `open(path, "rb", buffering=0)` returns it."""

        def read(self, size: int = -1, /) -> bytes | None: ...
        def readinto(self, buffer: memoryview, /) -> int | None: ...
        def close(self) -> None: ...

    class Header(Protocol):
        """What the file tree shows of an artifact's header."""

        name: str
        group: str
        payload_type: str | None
        header_info: bytes
        type_info: bytes
        meta_data: bytes | None

    class Payload(Protocol):
        """An update module as the flow sees it. All raise PayloadError, SlotError or BootloaderError."""

        def prepare(self, header: Header, *, current: Mapping[str, str]) -> None:
            """Make a fresh file tree, durable. `current`: artifact_name, artifact_group, device_type."""

        def download(self, files: Iterator[Source]) -> None:
            """Take the payload in; nothing becomes active. May run in a child process."""

        def call(self, name: str) -> None:
            """Make a call: ArtifactInstall, ArtifactReboot, ArtifactVerifyReboot, ArtifactCommit, ..."""

        def query(self, name: str) -> str:
            """Ask NeedsArtifactReboot, SupportsRollback, ProvidePayloadFileSizes; silence is "No"."""

        def hold(self, point: str) -> None:
            """A pause begins or is resumed at this point: make a power cut during it harmless. Idempotent."""

        def release(self, point: str) -> None:
            """The pause ended with continue: undo what `hold` did."""

        def rebooted(self, point: str) -> bool:
            """Whether the new system was booted although the flow is still paused before that."""

        def cleanup(self) -> None:
            """Make the Cleanup call, then delete the file tree whatever it returned."""


# The words a query may answer (artifact-v3.md section 9); saying nothing is "No".
QUERIES = {
    "ProvidePayloadFileSizes": ("No", "Yes"),
    "NeedsArtifactReboot": ("No", "Yes", "Automatic"),
    "SupportsRollback": ("No", "Yes"),
}


def find(payload_type: str, config: Config, log: Log, bootloader: Bootloader, wait: Wait) -> Payload:
    """The module for a payload type. Raises PayloadError if there is none.

    `rootfs-image` is always the built-in one, as in client 3.x; a file of that name is not run.
    """
    if payload_type == "rootfs-image":
        from update_agent.rootfs_image import RootfsImage
        from update_agent.slots import Slots

        return RootfsImage(
            Tree(config.tree_dir()), Slots(config.rootfs_part_a, config.rootfs_part_b), bootloader, log
        )
    from update_agent.modules import ExternalModule

    path = os.path.join(os.path.abspath(config.modules_dir()), payload_type)
    if payload_type in {"", ".", ".."} or "/" in payload_type or "\0" in payload_type:
        raise PayloadError(
            "Update Module not found for given artifact type: "
            f"{payload_type!r} cannot be the name of an update module",
            hint="write the artifact for a payload type that the image has a module for",
        )
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        raise PayloadError(
            f"Update Module not found for given artifact type: {path} is not an executable file",
            hint=f"does the image contain the update module {payload_type}?",
        )
    return ExternalModule(
        path,
        Tree(config.tree_dir()),
        config.module_timeout_s,
        log,
        wait,
        output_limit_bytes=config.script_output_limit_bytes,
    )


class Tree:
    """The file tree through which agent and module exchange what they know (artifact-v3.md section 10)."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)  # modules run with this as their working directory

    def __truediv__(self, name: str) -> str:
        return os.path.join(self.path, name)

    @property
    def exists(self) -> bool:
        """The tree was made and not yet cleaned up."""
        return os.path.isdir(self.path)

    def create(self, header: Header, current: Mapping[str, str]) -> None:
        """Replace whatever is there by a new tree, on the medium on return. Raises PayloadError."""
        files = {
            "version": b"3\n",
            "current_artifact_name": _line(current.get("artifact_name", "")),
            "current_artifact_group": _line(current.get("artifact_group", "")),
            "current_device_type": _line(current.get("device_type", "")),
            "header/artifact_name": header.name.encode(),
            "header/artifact_group": header.group.encode(),
            "header/payload_type": (header.payload_type or "").encode(),
            "header/header-info": header.header_info,
            "header/type-info": header.type_info,
            "header/meta-data": header.meta_data or b"",
        }
        try:
            remove_tree(self.path)
            changed = [self / "header", self.path, os.path.dirname(self.path)]
            while not os.path.isdir(changed[-1]):
                changed.append(os.path.dirname(changed[-1]))
            for directory in (self.path, self / "header", self / "tmp"):
                os.makedirs(directory, mode=0o700)
            write([(self / name, content) for name, content in files.items()])
            for directory in changed:
                sync_directory(directory)
        except OSError as error:
            raise PayloadError(
                f"cannot make the update module's file tree {self.path}: {error}",
                hint="is the data partition mounted, writable and not full?",
            ) from error

    def remove(self) -> None:
        """Delete the tree; a missing one is fine. Raises PayloadError."""
        try:
            remove_tree(self.path)
        except OSError as error:
            raise PayloadError(
                f"cannot delete the update module's file tree {self.path}: {error}",
                hint="is the data partition mounted and writable?",
            ) from error


def _line(value: str) -> bytes:
    return value.encode() + b"\n" if value else b""
