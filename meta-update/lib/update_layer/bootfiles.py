# SPDX-License-Identifier: MIT
"""Files that a board starts from: in a boot partition (IMAGE_BOOT_FILES, as wic reads it), or in a slot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def resolve(entries: str, deploy: str) -> list[tuple[str, str]]:
    """Source and target of each file. An entry is NAME, NAME;TARGET, PATTERN, or PATTERN;DIRECTORY.

    Raises ValueError for an entry that names nothing: a boot partition that lacks a file does not start.
    """
    found: list[tuple[str, str]] = []
    for entry in entries.split():
        source, _, target = entry.partition(";")
        paths = sorted(path for path in Path(deploy).glob(source) if path.is_file())
        if not paths:
            raise ValueError(f"IMAGE_BOOT_FILES: there is no {source} in {deploy}")
        for path in paths:
            if "*" in source:
                place = f"{target.rstrip('/')}/{path.name}" if target else path.name
            else:
                place = target + path.name if target.endswith("/") else target or source
            found.append((str(path), place))
    targets = [target for _, target in found]
    twice = sorted({target for target in targets if targets.count(target) > 1})
    if twice:
        raise ValueError(f"IMAGE_BOOT_FILES: more than one file for {', '.join(twice)}")
    return found


def absent(wanted: Mapping[str, str], boot: str) -> list[str]:
    """What is said of each variable that names a file which the directory does not have."""
    # A link leads somewhere on the device: that it is there is enough.
    found = sorted(
        os.path.relpath(os.path.join(folder, name), boot)
        for folder, _, names in os.walk(boot)
        for name in names
    )
    there = ", ".join(found) or "nothing"
    return [
        f'{name} = "{file}", which the image does not have in /boot; there is: {there}'
        for name, file in wanted.items()
        if os.path.normpath(file) not in found
    ]
