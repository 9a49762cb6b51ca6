# SPDX-License-Identifier: Apache-2.0
"""What is attached: block devices with what is on them, as lsblk and sysfs tell it. Nothing is opened."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from .errors import FlashError

COLUMNS = (
    *("name", "path", "maj:min", "type", "size", "ro", "rm", "tran", "vendor", "model", "serial"),
    *("fstype", "label", "partlabel", "mountpoints"),
)
_LOOPS = "loop"


class Part:
    """Something on a medium: a partition, or what is made of one (kind lvm, crypt, raid1, …)."""

    __slots__ = ("filesystem", "kind", "label", "mounts", "name", "number", "path", "size_bytes")

    def __init__(self, row: dict[str, Any]) -> None:
        self.name = _text(row, "name")
        self.path = _text(row, "path")
        self.number = _text(row, "maj:min")
        self.kind = _text(row, "type")
        self.size_bytes = int(row.get("size") or 0)
        self.filesystem = _text(row, "fstype")
        self.label = _text(row, "label") or _text(row, "partlabel")
        self.mounts = [mount for mount in row.get("mountpoints") or [] if mount]

    def document(self) -> dict[str, object]:
        """For JSON."""
        return {
            "path": self.path,
            "type": self.kind,
            "size_bytes": self.size_bytes,
            "filesystem": self.filesystem,
            "label": self.label,
            "mounted_at": self.mounts,
        }


class Medium(Part):
    """A block device that is no part of another; `parts` is all that is on it, depth first."""

    __slots__ = ("attachment", "backing_file", "is_read_only", "is_removable", "model", "parts")

    def __init__(self, row: dict[str, Any], *, card: str = "", backing_file: str = "") -> None:
        super().__init__(row)
        self.is_read_only = _flag(row, "ro")
        transport = _text(row, "tran")
        # A soldered eMMC is of the same kind as a card in a slot, but of type MMC.
        self.is_removable = _flag(row, "rm") or transport == "usb" or card == "SD"
        self.attachment = {"SD": "SD card", "MMC": "eMMC"}.get(card, transport) or self.kind
        self.model = " ".join(filter(None, (_text(row, "vendor"), _text(row, "model")))) or "no name"
        self.backing_file = backing_file
        self.parts = list(_parts(row))

    @property
    def is_loop(self) -> bool:
        """Made of a file: nothing that is fitted into this machine."""
        return self.kind == _LOOPS

    @property
    def all(self) -> list[Part]:
        """The medium itself and its parts."""
        return [self, *self.parts]

    def document(self) -> dict[str, object]:
        """For JSON."""
        return {
            **super().document(),
            "model": self.model,
            "attachment": self.attachment,
            "removable": self.is_removable,
            "read_only": self.is_read_only,
            "parts": [part.document() for part in self.parts],
        }


def _text(row: dict[str, Any], key: str) -> str:
    return str(row.get(key) or "").strip()


def _flag(row: dict[str, Any], key: str) -> bool:
    return row.get(key) in {True, "1"}


def _parts(row: dict[str, Any]) -> list[Part]:
    found: list[Part] = []
    for child in row.get("children") or []:
        found += [Part(child), *_parts(child)]
    return found


def attached(*, sysfs: Path = Path("/sys")) -> list[Medium]:
    """Every block device of this machine. Raises FlashError if lsblk is not there or fails."""
    return media(_lsblk(), sysfs=sysfs)


def media(document: dict[str, Any], *, sysfs: Path = Path("/sys")) -> list[Medium]:
    """The devices that lsblk's JSON names; empty card readers and unused loop devices are left out."""
    found = []
    for row in document.get("blockdevices", []):
        block = sysfs / "block" / _text(row, "name")
        medium = Medium(
            row, card=_read(block / "device/type"), backing_file=_read(block / "loop/backing_file")
        )
        if medium.size_bytes:
            found.append(medium)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _lsblk() -> dict[str, Any]:
    argv = ["lsblk", "--json", "--bytes", "--tree", "--all", "--output", ",".join(COLUMNS)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env={"LC_ALL": "C.UTF-8"})
    except FileNotFoundError as error:
        raise FlashError("lsblk is not installed", hint="apt-get install util-linux") from error
    try:
        document = json.loads(done.stdout)
    except ValueError as error:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise FlashError(f"lsblk cannot tell what is attached: {said}", hint="2.37 or newer?") from error
    assert isinstance(document, dict)
    return document


def find(path: Path, present: list[Medium]) -> Medium:
    """The medium at a path, links such as /dev/disk/by-id followed. Raises FlashError if it is none."""
    real = path.resolve()
    for medium in present:
        if medium.path == str(real):
            return medium
        for part in medium.parts:
            if part.path == str(real):
                raise FlashError(
                    f"{path} is a part of {medium.path}, not a whole medium",
                    hint=f"an image has a partition table of its own: give {medium.path}",
                )
    if not real.exists():
        raise FlashError(f"{path} does not exist", hint="scripts/ota flash --list shows what is there")
    if real.is_block_device():
        raise FlashError(f"{path} has no medium in it", hint="scripts/ota flash --list shows what is there")
    raise FlashError(f"{path} is no block device", hint="--to-file FILE writes to a file")


def sequence(medium: Medium, *, sysfs: Path = Path("/sys")) -> str:
    """A number that changes when the medium is; empty when it is gone, or the kernel is older than 5.15."""
    return _read(sysfs / "dev/block" / medium.number / "diskseq")


def is_there(medium: Medium, *, sysfs: Path = Path("/sys")) -> bool:
    """Whether the device still exists and has a medium in it."""
    return _read(sysfs / "dev/block" / medium.number / "size") not in {"", "0"}
