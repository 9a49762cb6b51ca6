# SPDX-License-Identifier: MIT
"""Is a card laid out by these UPDATE_ variables one that boots, and are they all known?"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

DOCUMENTATION = Path(__file__).parents[2] / "conf/update/documentation.inc"
MIB = 1 << 20
_NUMBERS = {
    "UPDATE_PART_BOOT": "boot",
    "UPDATE_PART_A": "A",
    "UPDATE_PART_B": "B",
    "UPDATE_PART_DATA": "data",
}
_TRYBOOT = ("UPDATE_PART_BOOT_A", "UPDATE_PART_BOOT_B", "UPDATE_PART_EXTENDED")
_SIZES = ("UPDATE_FIRST_PART_MB", "UPDATE_BOOT_SIZE_MB", "UPDATE_ROOTFS_SIZE_MB", "UPDATE_DATA_SIZE_MB")
_ENV = ("UPDATE_UBOOT_ENV_SIZE", "UPDATE_UBOOT_ENV_OFFSET", "UPDATE_UBOOT_ENV_OFFSET_REDUND")


def documented(text: str | None = None) -> dict[str, str]:
    """The known variables and what each is for."""
    lines = DOCUMENTATION.read_text() if text is None else text
    return dict(re.findall(r'^(UPDATE_\w+)\[doc\] = "(.*)"$', lines, re.MULTILINE))


def problems(values: Mapping[str, str | None]) -> list[str]:
    """What is wrong, a line each; empty when all is well."""
    found = _unknown(values)
    numbers: dict[str, int] = {}
    for name in (*_NUMBERS, *_SIZES, *_ENV, "UPDATE_BOOTLIMIT"):
        try:
            numbers[name] = int(values.get(name) or "", 0)
        except ValueError:
            found.append(f'{name} = "{values.get(name) or ""}" is not a whole number')
    flow = values.get("UPDATE_BOOTFLOW") or ""
    flows = (values.get("UPDATE_BOOTFLOWS") or "").split()
    if flow not in flows:
        found.append(f'UPDATE_BOOTFLOW = "{flow}" is not what this machine has: {" or ".join(flows)}')
    if len(numbers) == len(_NUMBERS) + len(_SIZES) + len(_ENV) + 1:
        found += _partitions(numbers, values) + _environment(numbers)
        found += _bootloader(values, numbers["UPDATE_UBOOT_ENV_OFFSET"])
        if not 1 <= numbers["UPDATE_BOOTLIMIT"] <= 8:
            found.append(f"UPDATE_BOOTLIMIT = {numbers['UPDATE_BOOTLIMIT']} is not 1 to 8")
    if not re.fullmatch(r"[^\s/\"']+", values.get("UPDATE_ARTIFACT_NAME") or ""):
        found.append('UPDATE_ARTIFACT_NAME must be one word, for example "product-1.4.0"')
    if values.get("UPDATE_SIGNED") == "1":
        keys = ("UPDATE_SIGNING_KEY", "UPDATE_VERIFY_KEYS")
        found += [f"UPDATE_SIGNED is 1, but {name} is not set" for name in keys if not values.get(name)]
    return found


def _unknown(values: Mapping[str, str | None]) -> list[str]:
    known = documented()
    found = []
    for name in sorted(set(values) - set(known)):
        near = get_close_matches(name, known, 1)
        found.append(f"{name} is not a variable of this layer" + (f"; {near[0]}?" if near else ""))
    return found


def _partitions(numbers: Mapping[str, int], values: Mapping[str, str | None]) -> list[str]:
    found = []
    partitions = [numbers[name] for name in _NUMBERS]
    # wic numbers the partitions in the order of the wks; an MBR has four, of which one may hold more.
    if values.get("UPDATE_BOOTFLOW") == "tryboot":
        more = [values.get(name) for name in _TRYBOOT]
        if (partitions, more) != ([1, 5, 6, 7], ["2", "3", "4"]):
            found.append(
                f"autoboot, A, B, data are partitions {partitions}, boot A, boot B, extended {more}; "
                "files/wic/update-tryboot.wks.in makes them 1, 5, 6, 7, and 2, 3, 4"
            )
    elif partitions != [1, 2, 3, 4]:
        found.append(
            f"boot, A, B, data are partitions {partitions}; files/wic/ab-data.wks.in makes them 1, 2, 3, 4"
        )
    for slot in ("A", "B"):
        number, in_hex = numbers[f"UPDATE_PART_{slot}"], values.get(f"UPDATE_PART_{slot}_HEX") or ""
        if in_hex.lower() != f"{number:x}":
            found.append(f"UPDATE_PART_{slot}_HEX = {in_hex} is not {number} in hexadecimal ({number:x})")
    found += [f"{name} = {numbers[name]} must be more than 0" for name in _SIZES if numbers[name] <= 0]
    return found


def _environment(numbers: Mapping[str, int]) -> list[str]:
    size, offset, second = (numbers[name] for name in _ENV)
    end = numbers["UPDATE_FIRST_PART_MB"] * MIB
    found = [
        f"{name} = {numbers[name]:#x} is not a multiple of 1 KiB, as wic places it"
        for name in _ENV
        if numbers[name] <= 0 or numbers[name] % 1024
    ]
    if second < offset:
        found.append("UPDATE_UBOOT_ENV_OFFSET_REDUND comes before UPDATE_UBOOT_ENV_OFFSET, which wic refuses")
    if abs(offset - second) < size:
        found.append(f"the environment's copies at {offset:#x} and {second:#x}, {size:#x} each, overlap")
    if min(offset, second) < MIB:
        found.append("the environment's first MiB belongs to the partition table and boot loader")
    if max(offset, second) + size > end:
        found.append(
            f"the environment ends at {max(offset, second) + size:#x}, after the first partition begins"
            f" ({end:#x})"
        )
    return found


def _bootloader(values: Mapping[str, str | None], environment: int) -> list[str]:
    """Of a boot loader that stands raw on the card; wic compares where it ends with where the next begins."""
    if not values.get("UPDATE_BOOTLOADER_FILE"):
        return []
    name = "UPDATE_BOOTLOADER_OFFSET"
    try:
        offset = int(values.get(name) or "", 0)
    except ValueError:
        return [f'{name} = "{values.get(name) or ""}" is not a whole number']
    if offset <= 0 or offset % 1024:
        return [f"{name} = {offset:#x} is not a multiple of 1 KiB, as wic places it"]
    return [f"{name} = {offset:#x} is not before the environment"] if offset >= environment else []
