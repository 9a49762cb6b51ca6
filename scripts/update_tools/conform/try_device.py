# SPDX-License-Identifier: Apache-2.0
"""The device of the kill matrix with a Raspberry Pi's firmware instead of U-Boot (pi.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from update_agent.config import Config
from update_agent.log import Log
from update_agent.slots import Host
from update_agent.tryboot import TRY, Tryboot
from update_tools.conform.ab_device import AbDevice
from update_tools.conform.pi import BOOT_PARTS, ROOTS, Pi, boot_files, make_root

if TYPE_CHECKING:
    from collections.abc import Mapping

    from update_tools.conform.ab_device import Json

# Either way of rebooting; the firmware keeps the flag until then, unless the power goes.
_SYSTEMCTL = f"""
[ "$*" = "{" ".join(TRY[1:])}" ]
: >"$lab/tryboot"
echo "@ reboot" >>"$lab/journal"
exec sleep 60
"""


class TryDevice(AbDevice):
    """Root partitions 5 and 6, boot partitions 2 and 3, autoboot.txt on 1: all of them real file systems."""

    slots = ROOTS
    reboots_at_start = True

    def __init__(
        self, payload_type: str, *, reboot: str, faults: Mapping[str, int], keep: bool = False
    ) -> None:
        super().__init__(payload_type, reboot=reboot, faults=faults, keep=keep)
        self.pi = Pi(self.root)
        self._new = b""
        self._old = b""

    def partitions(self) -> None:
        self.pi.flash()
        for version in ("old", "new"):
            make_root(self.pi.part(ROOTS[0]), {**boot_files(version), "version": version.encode()})
            self._old, self._new = self._new, Path(self.pi.part(ROOTS[0])).read_bytes()
        for part in ROOTS:
            Path(self.pi.part(part)).write_bytes(self._old)
        self.program("bin/systemctl", _SYSTEMCTL)
        self.pi.start()

    def payload(self) -> bytes:
        return self._new

    def partitions_config(self) -> Json:
        document = {"AutobootPart": self.pi.part("1"), **super().partitions_config()}
        for letter, part in zip("AB", BOOT_PARTS, strict=True):
            document[f"BootPart{letter}"] = self.pi.part(part)
        return {"Bootloader": "tryboot", **document}

    def boot_variables(self) -> tuple[dict[str, str], str]:
        """The contract's variables as the agent sees them, and where the firmware would do something else."""
        config = Config()
        config.datastore = self.path("store")
        config.merge(self.partitions_config(), "the device")
        host = Host(mountinfo=self.path("mountinfo"), bootloader=self.pi.tree, boot_id=self.pi.boot_id)
        values = Tryboot(config, Log(stream=sys.stderr), host=host).read()
        if values["upgrade_available"] == "0" and values["mender_boot_part"] != self.pi.default_root():
            return values, f"the firmware would start partition {self.pi.default_root() or 'unknown'}"
        return values, ""

    def lose_power(self) -> None:
        self.pi.lose_power()

    def reboot_by_hand(self) -> None:
        if self.boot_variables()[0]["upgrade_available"] == "1":  # else a plain one
            Path(self.pi.flag).touch()
        self.boot()

    def boot(self) -> None:
        self.started(self.pi.start())

    def tear_environment(self) -> None:
        raise AssertionError("autoboot.txt is one sector, which is written or not")

    def system(self) -> str:
        """Root file system and boot partition belong together, or it is neither."""
        with open(self.pi.part(self.running), "rb") as file:
            root = {self._old: "old", self._new: "new"}.get(file.read(), "neither")
        kernel = self.pi.get(BOOT_PARTS[ROOTS.index(self.running)], "kernel8.img")
        return root if kernel == boot_files(root)["boot/kernel8.img"] else "neither"
