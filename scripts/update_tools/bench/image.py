# SPDX-License-Identifier: Apache-2.0
"""A whole card as a raw sparse file, made from the layer's .wks, and its slots afterwards."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from . import layer, uboot, wks
from .tools import BenchError, run
from .wks import copy_into

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
    """Make the card of a new board; `slots` are images for A and, if it shall not be empty, B.

    `data_files` (path below /data -> content) are what the data partition starts with.
    """
    values = layer.variables(kind.machine)
    layout = layer.Layout(values)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)  # what the .wks names, under the names of layer.BUILD
        environment = uboot.first_environment(uboot.build(kind, values), values, folder)
        environment.rename(folder / layer.BUILD["UPDATE_UBOOT_ENV_IMAGE"])
        for path, content in data_files.items():
            file = folder / layer.BUILD["IMAGE_ROOTFS"] / "data" / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        (folder / f"{layer.BUILD['IMAGE_LINK_NAME']}.ext4").symlink_to(slots["A"].resolve())
        boot_files = {"boot.scr": uboot.boot_script(values, folder)}
        wks.write(layout.card, disk, folder=folder, boot_files=boot_files, size_bytes=layout.total_bytes)
    for slot, image in slots.items():
        if slot != "A":
            write_slot(disk, layout, slot, image)
    return disk


def write_slot(disk: Path, layout: layer.Layout, slot: str, image: Path) -> None:
    """Put an image into slot A or B of a card whose board is off."""
    if image.stat().st_size > layout.sizes[slot]:
        raise BenchError(
            f"{image.name} has {image.stat().st_size} bytes, slot {slot} only {layout.sizes[slot]}"
        )
    copy_into(disk, layout.offset(slot), image, zeros=True)


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
