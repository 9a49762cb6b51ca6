# SPDX-License-Identifier: Apache-2.0
"""A whole card as a raw sparse file: partition table, environment copies, boot partition, slots, data."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from . import ext4, layer, uboot
from .tools import BenchError, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .boards import Kind

CHUNK = 64 << 10


def make_disk(
    disk: Path,
    kind: Kind,
    *,
    slots: Mapping[str, Path],
    data_files: Mapping[str, str | bytes],
) -> Path:
    """Make the card of a new board; `slots` are images for A and B, and a slot without one stays empty.

    `data_files` (path below /data -> content) are what the data partition starts with.
    """
    values = layer.variables(kind.machine)
    layout = layer.Layout(values)
    disk.unlink(missing_ok=True)
    with open(disk, "wb") as file:
        file.truncate(layout.total_bytes)
    run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk], stdin=partition_table(layout))
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        environment = uboot.first_environment(uboot.build(kind, values), values, scratch)
        for offset in layout.env_offsets:
            copy_into(disk, offset, environment)
        copy_into(disk, layout.offset("BOOT"), _boot_partition(values, layout, scratch))
        files = ext4.Files()
        for path, content in data_files.items():
            files.text(path, content)
        data = ext4.make(scratch / "data", files, size_bytes=layout.sizes["DATA"], label="data", journal=True)
        copy_into(disk, layout.offset("DATA"), data)
    for slot, image in slots.items():
        write_slot(disk, layout, slot, image)
    return disk


def partition_table(layout: layer.Layout) -> str:
    """sfdisk's script for the layout; the disk identifier is fixed."""
    lines = ["label: dos", "label-id: 0x6d757064", "unit: sectors"]
    for name, number in sorted(layout.numbers.items(), key=lambda item: item[1]):
        kind = "c, bootable" if name == "BOOT" else "83"
        lines.append(
            f"{number}: start={layout.offset(name) // 512}, size={layout.sizes[name] // 512}, type={kind}"
        )
    return "\n".join(lines) + "\n"


def _boot_partition(values: Mapping[str, str], layout: layer.Layout, scratch: Path) -> Path:
    script = uboot.boot_script(values, scratch)
    image = scratch / "boot.fat"
    with open(image, "wb") as file:
        file.truncate(layout.sizes["BOOT"])
    run(["mkfs.vfat", "--invariant", "-n", "BOOT", image])
    run(["mcopy", "-i", image, script, "::boot.scr"])
    return image


def write_slot(disk: Path, layout: layer.Layout, slot: str, image: Path) -> None:
    """Put an image into slot A or B of a card whose board is off."""
    if image.stat().st_size > layout.sizes[slot]:
        raise BenchError(
            f"{image.name} has {image.stat().st_size} bytes, slot {slot} only {layout.sizes[slot]}"
        )
    copy_into(disk, layout.offset(slot), image, zeros=True)


def copy_into(disk: Path, offset: int, image: Path, *, zeros: bool = False) -> None:
    """Copy an image to an offset. Zeros are skipped, which a fresh card already has, unless `zeros`."""
    with open(image, "rb") as source, open(disk, "r+b") as target:
        position = offset
        while chunk := source.read(CHUNK):
            if zeros or chunk.strip(b"\0"):
                target.seek(position)
                target.write(chunk)
            position += len(chunk)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a card; holes stay holes. The copy appears whole or not at all."""
    fresh = target.with_suffix(".new")
    run(["cp", "--sparse=always", "--reflink=auto", source, fresh])
    fresh.rename(target)


def slot_digest(disk: Path, layout: layer.Layout, slot: str) -> str:
    """SHA-256 of a slot as it is on the card."""
    digest = hashlib.sha256()
    for chunk in _slot_chunks(disk, layout, slot):
        digest.update(chunk)
    return digest.hexdigest()


def landed(disk: Path, layout: layer.Layout, slot: str, image: Path) -> tuple[int, int]:
    """Bytes of an image that are on the slot already, and bytes in all; chunks of zeros, no proof, left out.

    A test that cuts the power during a write asserts 0 < landed < all, else it has cut nothing.
    """
    there = total = 0
    with open(image, "rb") as file:
        for on_card in _slot_chunks(disk, layout, slot):
            wanted = file.read(CHUNK)
            if wanted.strip(b"\0"):
                total += len(wanted)
                there += len(wanted) if on_card[: len(wanted)] == wanted else 0
    return there, total


def _slot_chunks(disk: Path, layout: layer.Layout, slot: str) -> Iterator[bytes]:
    with open(disk, "rb") as file:
        file.seek(layout.offset(slot))
        for _ in range(0, layout.sizes[slot], CHUNK):
            yield file.read(CHUNK)


def allocated_bytes(disk: Path) -> int:
    """What the sparse card takes of the host's disk."""
    return os.stat(disk).st_blocks * 512
