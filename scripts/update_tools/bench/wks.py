# SPDX-License-Identifier: Apache-2.0
"""Makes a card from the layer's .wks, as OE-core's wic does: one file describes images and virtual boards.

Known are the options that the layer's files use; any other is refused, never skipped. Placement follows wic
to the sector: tests/layer/test_wks.py compares, where wic is at hand.
"""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, NoReturn

from . import ext4
from .tools import BenchError, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

SECTOR = 512
_GPT_SECTORS = 34  # at both ends
_CHUNK = 64 << 10
_KIB, _MIB = 1 << 10, 1 << 20
_FILESYSTEMS = ("vfat", "ext4")
_GPT_TYPES = {
    "vfat": "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
    "ext4": "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
}
_UNITS = {"s": SECTOR, "k": _KIB, "M": _MIB, "G": 1 << 30}


class Part:
    """One `part` line; `start` and `number` (0: not in the table) once it is placed."""

    __slots__ = (
        *("align", "disk", "file", "fstype", "is_active", "is_logical", "label", "mkfs", "mountpoint"),
        *("name", "number", "offset", "rootfs_dir", "size", "source", "start"),
    )

    def __init__(self, words: argparse.Namespace) -> None:
        self.mountpoint: str = words.mountpoint or ""
        self.source: str = words.source or ""
        self.file = dict(_pair(item) for item in words.sourceparams.split(",") if item).get("file", "")
        self.rootfs_dir: str = words.rootfs_dir or ""
        self.disk: str = words.ondisk
        self.fstype: str = words.fstype
        self.label: str = words.label
        self.mkfs: list[str] = words.mkfs_extraopts.split()
        self.name: str = words.part_name
        self.is_active: bool = words.active
        self.is_logical = False
        self.align: int = words.align * _KIB
        self.offset: int | None = words.offset
        self.size: int = words.fixed_size or 0
        self.number = 0 if words.no_table else -1
        self.start = 0

    @property
    def is_in_table(self) -> bool:
        return self.number != 0

    @property
    def end(self) -> int:
        return self.start + self.size


class Card:
    """A whole .wks: `parts` in its order, `table` msdos or gpt."""

    __slots__ = ("parts", "table")

    def __init__(self, parts: list[Part], table: str) -> None:
        self.parts = parts
        self.table = table

    @property
    def used_bytes(self) -> int:
        """Up to the end of the last partition, or of the table's copy behind it."""
        return max(part.end for part in self.parts) + (_GPT_SECTORS * SECTOR if self.table == "gpt" else 0)

    def place(self, size_of: Callable[[str], int]) -> None:
        """Give each part its place and number; `size_of` a file is asked for parts without --fixed-size.

        Raises BenchError for a part that would lie on the one before.
        """
        in_table = [part for part in self.parts if part.is_in_table]
        logical_from = 3 if self.table == "msdos" and len(in_table) > 4 else len(in_table)
        at = (_GPT_SECTORS if self.table == "gpt" else 1) * SECTOR
        for part in self.parts:
            if part.is_in_table:
                index = in_table.index(part)
                part.is_logical = index >= logical_from
                part.number = index + (2 if part.is_logical else 1)
                at += 2 * SECTOR if part.is_logical else 0  # for its own table, which lies before it
            if part.align:
                at = -(-at // part.align) * part.align
            if part.offset is not None:
                if part.offset < at:
                    what = part.mountpoint or part.file or part.label
                    raise BenchError(f"{what} at {part.offset:#x} lies on what is before it, up to {at:#x}")
                at = part.offset
            part.start = at
            part.size = part.size or -(-size_of(part.file) // _KIB) * _KIB
            at = part.end

    def partition_table(self) -> str:
        """sfdisk's script; the identifier of the disk is fixed."""
        gpt = self.table == "gpt"
        identifier = "6D757064-0000-4000-8000-000000000000" if gpt else "0x6d757064"
        lines = [f"label: {'gpt' if gpt else 'dos'}", f"label-id: {identifier}", "unit: sectors"]
        for part in self.parts:
            if not part.is_in_table:
                continue
            if part.is_logical and part.number == 5:
                first, last = (
                    part.start // SECTOR - 2,
                    max(p.end for p in self.parts if p.is_logical) // SECTOR,
                )
                lines.append(f"4: start={first}, size={last - first}, type=f")
            kind = _GPT_TYPES[part.fstype] if gpt else {"vfat": "c", "ext4": "83"}[part.fstype]
            line = f"{part.number}: start={part.start // SECTOR}, size={part.size // SECTOR}, type={kind}"
            if gpt and (part.name or part.label):
                line += f', name="{part.name or part.label}"'
            lines.append(line + (", bootable" if part.is_active and not gpt else ""))
        return "\n".join(lines) + "\n"


class _Words(argparse.ArgumentParser):
    """The words of a line."""

    def error(self, message: str) -> NoReturn:
        raise BenchError(
            f"{self.prog}: {message}", hint="update_tools/bench/wks.py knows what wic knows of it"
        )


def parse(text: str, where: str) -> Card:
    """A rendered .wks. Raises BenchError with the line that is not understood."""
    parts: list[Part] = []
    table = "msdos"
    for number, line in enumerate(text.splitlines(), 1):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        parser = _Words(prog=f"{where}:{number}", add_help=False, allow_abbrev=False)
        add = parser.add_argument
        if words[0] == "bootloader":
            add("--ptable", choices=("msdos", "gpt"), default="msdos")
            table = parser.parse_args(words[1:]).ptable
        elif words[0] in {"part", "partition"}:
            add("mountpoint", nargs="?")
            add("--source", choices=("rawcopy", "bootimg-partition", "rootfs"))
            add("--sourceparams", default="")
            add("--rootfs-dir")
            add("--ondisk", "--ondrive", required=True)
            add("--fstype", choices=_FILESYSTEMS, default="vfat")
            add("--label", default="")
            add("--part-name", default="")
            add("--mkfs-extraopts", default="")
            add("--active", action="store_true")
            add("--no-table", action="store_true")
            add("--align", type=int, default=0)
            add("--offset", type=lambda word: _size(word, "k"))
            add("--fixed-size", type=lambda word: _size(word, "M"))
            parts.append(Part(parser.parse_args(words[1:])))
            if not parts[-1].size and parts[-1].source != "rawcopy":
                parser.error("a partition without --fixed-size")
        else:
            parser.error(f"{words[0]!r} is not understood")
    if not parts:
        raise BenchError(f"{where} describes no partition")
    return Card(parts, table)


def _size(word: str, unit: str) -> int:
    """A size with wic's units; 1024 bytes are "k" or "K"."""
    if word[-1:].isalpha():
        word, unit = word[:-1], "k" if word[-1] == "K" else word[-1]
    return int(word) * _UNITS[unit]


def _pair(item: str) -> tuple[str, str]:
    name, _, value = item.partition("=")
    return name, value


def write(card: Card, disk: Path, *, folder: Path, boot_files: Mapping[str, Path], size_bytes: int) -> None:
    """Make the image of a placed card in a fresh sparse file; files that the .wks names are below `folder`.

    `boot_files` (name on the boot partition -> file) are what wic takes from IMAGE_BOOT_FILES.
    """
    disk.unlink(missing_ok=True)
    with open(disk, "wb") as file:
        file.truncate(size_bytes)
    run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk], stdin=card.partition_table())
    for number, part in enumerate(card.parts):
        scratch = folder / f"part-{number}"
        if part.source == "rawcopy":
            scratch = folder / part.file
            if scratch.stat().st_size > part.size:
                raise BenchError(
                    f"{part.file} has {scratch.stat().st_size} bytes, its place only {part.size}"
                )
        elif part.fstype == "vfat":
            files = boot_files if part.source == "bootimg-partition" else _names(folder, part)
            _fat(scratch, part.size, part.label, files)
        else:
            tree = ext4.Files()
            if part.source == "rootfs":
                tree.tree(folder / part.rootfs_dir)
            ext4.make(scratch, tree, size_bytes=part.size, label=part.label, journal=True, options=part.mkfs)
        copy_into(disk, part.start, scratch)


def _names(folder: Path, part: Part) -> dict[str, Path]:
    """What a partition takes of the root file system."""
    return {path.name: path for path in (folder / part.rootfs_dir).iterdir()} if part.rootfs_dir else {}


def _fat(image: Path, size_bytes: int, label: str, files: Mapping[str, Path]) -> None:
    with open(image, "wb") as file:
        file.truncate(size_bytes)
    run(["mkfs.vfat", "--invariant", *(["-n", label] if label else []), image])
    for name, source in sorted(files.items()):
        run(["mcopy", "-s", "-i", image, source, f"::{name}"])


def copy_into(disk: Path, offset: int, image: Path, *, zeros: bool = False) -> None:
    """Copy an image to an offset. Zeros are skipped, which a fresh card already has, unless `zeros`."""
    with open(image, "rb") as source, open(disk, "r+b") as target:
        position = offset
        while chunk := source.read(_CHUNK):
            if zeros or chunk.strip(b"\0"):
                target.seek(position)
                target.write(chunk)
            position += len(chunk)
