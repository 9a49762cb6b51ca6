# SPDX-License-Identifier: Apache-2.0
"""Section: U-Boot's environment where fw_env.config says it is: both copies, checksum, sequence, contents."""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

from update_tools.bench.env import Copy, Environment

from .disk import at
from .subject import FW_ENV

if TYPE_CHECKING:
    from .disk import Disk
    from .subject import Subject

_CARD = re.compile(r"/dev/(mmcblk\d+|nvme\d+n\d+|sd[a-z]+|vd[a-z]+)")
_LARGEST_BYTES = 1 << 20  # U-Boot's have 8 to 256 KiB
_NEEDED = (
    "mender_boot_part",
    "mender_boot_part_hex",
    "upgrade_available",
    "bootcount",
    "bootlimit",
    "altbootcmd",
)


class Place:
    """One line of fw_env.config."""

    __slots__ = ("device", "offset", "size")

    def __init__(self, device: str, offset: int, size: int) -> None:
        self.device = device
        self.offset = offset
        self.size = size

    def document(self) -> dict[str, object]:
        """For JSON."""
        return {"device": self.device, "offset": self.offset, "size": self.size}


def parse(text: str) -> list[Place]:
    """The places in a fw_env.config. Raises ValueError naming the line."""
    places = []
    for line in text.splitlines():
        fields = line.split("#")[0].split()
        if not fields:
            continue
        if len(fields) < 3:
            raise ValueError(f"not device, offset, size: {line.strip()}")
        try:
            places.append(Place(fields[0], int(fields[1], 0), int(fields[2], 0)))
        except ValueError:
            raise ValueError(f"not a number: {line.strip()}") from None
        if places[-1].offset < 0 or not 16 <= places[-1].size <= _LARGEST_BYTES:
            raise ValueError(f"an impossible offset or size: {line.strip()}")
    if not 1 <= len(places) <= 2:
        raise ValueError(f"{len(places)} lines, not one or two")
    return places


def section(subject: Subject) -> dict[str, object] | None:
    """The environment as a document; None if there is nowhere to look."""
    root = subject.root
    if root is None or subject.is_tryboot:
        return None
    text = root.text(FW_ENV)
    if text is None:
        subject.findings.add("fw-env-missing", FW_ENV, "fw_setenv, and so the agent, finds no environment")
        return None
    try:
        places = parse(text)
    except ValueError as error:
        subject.findings.add("fw-env-invalid", FW_ENV, str(error))
        return None
    _check_places(subject, places)
    document: dict[str, object] = {"places": [place.document() for place in places]}
    if subject.disk is not None and all(_is_on_card(subject, place) for place in places):
        document.update(_read(subject, subject.disk, places))
    return document


def _is_on_card(subject: Subject, place: Place) -> bool:
    """The boot partitions of eMMC, flash and files are not at an offset of this image."""
    disks = {slot.disk for slot in subject.slots if slot.disk}
    return place.device in disks if disks else bool(_CARD.fullmatch(place.device))


def _check_places(subject: Subject, places: list[Place]) -> None:
    findings = subject.findings
    disks = {slot.disk for slot in subject.slots if slot.disk}
    for place in places:
        if disks and _CARD.fullmatch(place.device) and place.device not in disks:
            findings.add(
                "fw-env-other-device", FW_ENV, f"{place.device}, but the slots are on {', '.join(disks)}"
            )
    if len(places) == 1:
        findings.add("env-not-redundant", FW_ENV, "one copy")
    else:
        first, second = sorted(places, key=lambda place: place.offset)
        if _overlap(places):
            findings.add(
                "env-copies-overlap",
                FW_ENV,
                f"{first.size:#x} bytes at {first.offset:#x} reach into the copy at {second.offset:#x}",
            )
    values = subject.board.values
    if values:
        expected = {int(values[f"UPDATE_UBOOT_ENV_OFFSET{end}"], 0) for end in ("", "_REDUND")}
        size = int(values["UPDATE_UBOOT_ENV_SIZE"], 0)
        found = {place.offset for place in places}
        if found != expected or {place.size for place in places} != {size}:
            findings.add(
                "fw-env-differs-from-board",
                FW_ENV,
                f"copies at {_hex(found)} of {_hex({place.size for place in places})}; "
                f"U-Boot of {subject.board.name}: {_hex(expected)} of {size:#x}",
            )


def _hex(numbers: set[int]) -> str:
    return ", ".join(f"{number:#x}" for number in sorted(numbers))


def _read(subject: Subject, disk: Disk, places: list[Place]) -> dict[str, object]:
    is_free = [_check_room(subject, disk, place) for place in places]
    if not all(is_free) or _overlap(places):
        return {}  # whatever is there, it is not the environment alone
    copies = [
        Copy(place.offset, at(disk.image, place.offset, place.size).ljust(8, b"\0")) for place in places
    ]
    if len(copies) == 1:
        return _read_single(subject, disk, places[0])
    for copy, place in zip(copies, places, strict=True):
        if not copy.is_valid and any(other.is_valid for other in copies):
            subject.findings.add("env-copy-bad", f"{place.device} {place.offset:#x}", "its checksum is wrong")
    environment = Environment(copies[0], copies[1])
    rows = [
        {
            "offset": copy.offset,
            "valid": copy.is_valid,
            "counter": copy.counter,
            "active": copy is environment.newer,
            "variables": len(copy.values),
        }
        for copy in copies
    ]
    values = environment.newer.values if environment.newer else None
    _check_values(subject, disk, places, values)
    return {"copies": rows, "variables": values or {}}


def _read_single(subject: Subject, disk: Disk, place: Place) -> dict[str, object]:
    """A copy that is not redundant has no counter."""
    data = at(disk.image, place.offset, place.size)
    values = None
    if zlib.crc32(data[4:]) == int.from_bytes(data[:4], "little"):
        pairs = (
            entry.decode(errors="replace").partition("=") for entry in data[4:].split(b"\0\0")[0].split(b"\0")
        )
        values = {name: value for name, _, value in pairs if name}
    _check_values(subject, disk, [place], values)
    row = {"offset": place.offset, "valid": values is not None, "active": values is not None}
    return {"copies": [row], "variables": values or {}}


def _overlap(places: list[Place]) -> bool:
    first, second = sorted((places[0], places[-1]), key=lambda place: place.offset)
    return first is not second and first.device == second.device and first.offset + first.size > second.offset


def _check_room(subject: Subject, disk: Disk, place: Place) -> bool:
    is_free = True
    for partition in disk.partitions:
        if place.offset < partition.end and partition.start < place.offset + place.size:
            subject.findings.add(
                "env-overlaps-partition",
                f"environment at {place.offset:#x}",
                f"{place.size:#x} bytes reach into partition {partition.number}, "
                f"{partition.start:#x} to {partition.end:#x}",
            )
            is_free = False
    reserved = 34 * 512 if disk.scheme == "gpt" else 512
    if place.offset < reserved:
        subject.findings.add(
            "env-overlaps-table", f"environment at {place.offset:#x}", "it lies on the partition table"
        )
        is_free = False
    return is_free


def _check_values(subject: Subject, disk: Disk, places: list[Place], values: dict[str, str] | None) -> None:
    findings = subject.findings
    where = f"{places[0].device} {', '.join(f'{place.offset:#x}' for place in places)}"
    if values is None:
        is_empty = not any(at(disk.image, place.offset, place.size).strip(b"\0\xff") for place in places)
        if is_empty:
            findings.add("env-empty", where, "nothing was written there")
        else:
            findings.add("env-bad", where, "no copy has a right checksum")
        return
    for name in _NEEDED:
        if name not in values:
            findings.add("env-variable-missing", name, "the environment on the card does not set it")
    numbers = {str(slot.number) for slot in subject.slots if slot.number}
    limit = values.get("bootlimit", "")
    if limit and not (limit.isascii() and limit.isdigit() and 1 <= int(limit) <= 8):
        findings.add("env-no-fallback", "bootlimit", f"it is {limit}")
    part = values.get("mender_boot_part", "")
    if part and numbers and part not in numbers:
        findings.add(
            "env-slot-unknown",
            "mender_boot_part",
            f"it is {part}, the slots are {' and '.join(sorted(numbers))}",
        )
    in_hex = values.get("mender_boot_part_hex", "")
    if part.isdigit() and in_hex and in_hex.lower() != f"{int(part):x}":
        findings.add("env-hex-differs", "mender_boot_part_hex", f"{in_hex}, but mender_boot_part is {part}")
    if values.get("upgrade_available") == "1":
        findings.add("env-upgrade-pending", "upgrade_available", "1")
