# SPDX-License-Identifier: Apache-2.0
"""Why a medium must not be written: decided from what is known of it, without touching it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from update_tools.inspect.units import mib

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from .devices import Medium, Part

SWAP = "[SWAP]"  # lsblk's word
_PLAIN = {"disk", "part", "loop", "rom"}
_USERS = {"crypt": "an open encrypted volume", "lvm": "an active LVM volume", "mpath": "a multipath device"}
# What carries these must not lose its medium, wherever it is mounted beside.
SYSTEM = frozenset({"/", "/boot", "/boot/efi", "/boot/firmware", "/etc", "/home", "/usr", "/var"})


class Reason:
    """Why not, and what to do about it; `is_final` if nothing can be done."""

    __slots__ = ("hint", "is_final", "text")

    def __init__(self, text: str, hint: str = "", *, is_final: bool = False) -> None:
        self.text = text
        self.hint = hint
        self.is_final = is_final


def reasons(medium: Medium, needed_bytes: int = 0, *, system: Collection[str] = ()) -> list[Reason]:
    """All reasons, the gravest first; none: it may be written.

    `system` are MAJOR:MINOR numbers of file systems this machine runs from, as `running_from` gives them.
    """
    found = _in_use(medium, system)
    if not medium.is_removable and not medium.is_loop:
        found.append(
            Reason(
                f"it is not removable ({medium.attachment}, {medium.model})",
                "only media that can be taken out are written",
                is_final=True,
            )
        )
    if medium.is_read_only:
        found.append(Reason("it is read-only", "is the card's or the adapter's switch on LOCK?"))
    if needed_bytes > medium.size_bytes:
        found.append(
            Reason(
                f"it is too small: {mib(medium.size_bytes)}, and the image needs {mib(needed_bytes)}",
                "take a larger medium",
                is_final=True,
            )
        )
    return found


def _in_use(medium: Medium, system: Collection[str]) -> list[Reason]:
    found = []
    mounted = [(part, mount) for part in medium.all for mount in part.mounts]
    if any(mount in SYSTEM for _, mount in mounted) or any(part.number in system for part in medium.all):
        where = sorted({mount for _, mount in mounted if mount != SWAP})
        found.append(Reason(f"this machine runs from it ({', '.join(where) or '/'})", is_final=True))
    for part, mount in mounted:
        if mount == SWAP:
            found.append(Reason(f"{part.path} is swap in use", f"swapoff {part.path}"))
        elif mount not in SYSTEM:
            found.append(Reason(f"{part.path} is mounted at {mount}", f"umount {part.path}"))
    found += [_member(part) for part in medium.parts if part.kind not in _PLAIN]
    return found


def _member(part: Part) -> Reason:
    what = _USERS.get(part.kind, "a RAID" if part.kind.startswith("raid") else part.kind)
    return Reason(f"{part.path} on it is {what}", "close it first, if it is not this machine's")


def running_from(paths: Iterable[str] = tuple(SYSTEM)) -> set[str]:
    """MAJOR:MINOR of the devices below some paths: beside what lsblk says of mounts."""
    found = set()
    for path in paths:
        try:
            number = os.stat(path).st_dev
        except OSError:
            continue
        found.add(f"{os.major(number)}:{os.minor(number)}")
    return found
