# SPDX-License-Identifier: Apache-2.0
"""The layer's update-grow-data on a card in a file: sfdisk is real, what needs the kernel is written down."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any


class GrowData:
    """A card of so many sectors with this partition table (sfdisk's words), seen as mmcblk0."""

    def __init__(self, folder: Path, *, sectors: int, table: str) -> None:
        self._folder = folder
        self._calls = folder / "calls"
        self.card = folder / "dev/mmcblk0"
        self.card.parent.mkdir()
        with self.card.open("wb") as file:
            file.truncate(sectors * 512)
        subprocess.run(["sfdisk", "--quiet", self.card], input=table, text=True, check=True)
        number, data = len(self.partitions()), self.last()
        self._tell("mmcblk0", size=sectors)
        self._tell(f"mmcblk0p{number}", start=data["start"], size=data["size"])
        self._tools = folder / "tools"
        self._tools.mkdir()
        for name in ("partx", "resize2fs"):
            (self._tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{self._calls}\n')
            (self._tools / name).chmod(0o755)

    def _tell(self, name: str, **values: int) -> None:
        """What the kernel says of a device in sysfs; it stays, as if nobody told the kernel of a change."""
        folder = self._folder / "sys/class/block" / name
        folder.mkdir(parents=True)
        for file_name, value in values.items():
            (folder / file_name).write_text(f"{value}\n")

    def run(self, tree: str) -> None:
        """Start the program of an installed tree, as at boot."""
        env = {
            "PATH": f"{self._tools}:/usr/sbin:/usr/bin:/sbin:/bin",
            "UPDATE_SYSFS": str(self._folder / "sys"),
            "UPDATE_DEV": str(self.card.parent),
        }
        program = Path(tree) / "usr/sbin/update-grow-data"
        subprocess.run(["sh", program], env=env, check=True, capture_output=True)

    def calls(self) -> str:
        """The programs that it started, a line each."""
        return self._calls.read_text()

    def partitions(self) -> list[dict[str, Any]]:
        """The partition table as sfdisk reads it; in sectors."""
        dump = subprocess.run(["sfdisk", "--json", self.card], capture_output=True, text=True, check=True)
        found: list[dict[str, Any]] = json.loads(dump.stdout)["partitiontable"]["partitions"]
        return found

    def last(self) -> dict[str, Any]:
        """The data partition."""
        return self.partitions()[-1]
