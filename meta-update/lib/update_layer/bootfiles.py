# SPDX-License-Identifier: MIT
"""IMAGE_BOOT_FILES: which files of the deploy directory go where in a boot partition, as wic reads it."""

from __future__ import annotations

from pathlib import Path


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
