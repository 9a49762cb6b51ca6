# SPDX-License-Identifier: Apache-2.0
"""The agents that are compared, each able to install a release from a file or URL. Ours is one of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from tests.bench.run import measure

if TYPE_CHECKING:
    from tests.bench.device import Device
    from tests.bench.run import Cost

MATERIAL = "/media/material"
OURS = "update-agent"


class Agent(ABC):
    """What all have: a name, the compressions they know, the file a release is for them."""

    name = ""
    compressions: tuple[str, ...] = ()
    transports: tuple[str, ...] = ("file", "http", "https")
    folder = MATERIAL
    """Where the device sees its releases."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def can(self, compression: str, transport: str) -> bool:
        """Whether it can do this."""
        return compression in self.compressions and transport in self.transports

    def release(self, compression: str, *, changed: bool = False) -> str:
        """The file's path below the served folder."""
        return f"{'changed-' if changed else ''}{compression}.mender"

    @abstractmethod
    def install(self, source: str, *, sample: bool = False) -> Cost:
        """Install it into the inactive slot, and say what that took."""

    def prepare(self) -> None:
        """Before each installation: a device with nothing installed."""
        self.device.renew()

    def close(self) -> None:  # noqa: B027  most start nothing
        """End what was started."""


class UpdateAgent(Agent):
    """Ours, as the layer's recipe installs it."""

    name = OURS
    compressions = ("none", "gzip", "zstd", "xz")
    ENV = {"MENDER_DATA_DIR": "/usr/local/share/mender"}

    def install(self, source: str, *, sample: bool = False) -> Cost:
        argv = ["update-agent", "install", source]
        return measure(argv, root=self.device.root, env=self.ENV, sample=sample)
