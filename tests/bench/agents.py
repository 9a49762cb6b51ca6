# SPDX-License-Identifier: Apache-2.0
"""The agents that are compared, each able to install a release from a file or URL. Ours is one of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.run import measure

if TYPE_CHECKING:
    from tests.bench.device import Device
    from tests.bench.run import Cost

MATERIAL = "/media/material"
OURS = "update-agent"


class Agent:
    """What all have: a name, the compressions they know, the file a release is for them."""

    name = ""
    compressions: tuple[str, ...] = ()
    transports: tuple[str, ...] = ("file", "http", "https")
    keeps_identical = False
    """Leaves blocks alone that the slot holds already."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def can(self, compression: str, transport: str) -> bool:
        """Whether it can do this."""
        return compression in self.compressions and transport in self.transports

    def release(self, compression: str, *, changed: bool = False) -> str:
        """The file's path below the served folder."""
        return f"{'changed-' if changed else ''}{compression}.mender"

    def install(self, source: str, *, sample: bool = False) -> Cost:
        """Install it into the inactive slot, and say what that took."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Before each installation: a device with nothing installed."""
        self.device.renew()

    def close(self) -> None:
        """End what was started."""


class UpdateAgent(Agent):
    """Ours, as the layer's recipe installs it."""

    name = OURS
    compressions = ("none", "gzip", "zstd", "xz")
    keeps_identical = True
    ENV = {"MENDER_DATA_DIR": "/usr/local/share/mender"}

    def install(self, source: str, *, sample: bool = False) -> Cost:
        return measure(
            ["update-agent", "install", source], root=self.device.root, env=self.ENV, sample=sample
        )


def path_in_device(name: str) -> str:
    """A file of the served folder as the device sees it."""
    return str(Path(MATERIAL) / name)
