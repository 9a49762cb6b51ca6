# SPDX-License-Identifier: Apache-2.0
"""What a board must find in its image: processor, ABI, device tree, and the facts of the layer's machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from update_tools.bench import layer
from update_tools.bench.tools import BenchError

from .tree import InspectError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Name -> ELF machine, bits, float ABI of 32-bit ARM ("" anywhere else).
ARCHITECTURES: dict[str, tuple[str, int, str]] = {
    "aarch64": ("EM_AARCH64", 64, ""),
    "armhf": ("EM_ARM", 32, "hard"),
    "armel": ("EM_ARM", 32, "soft"),
    "x86_64": ("EM_X86_64", 64, ""),
    "i386": ("EM_386", 32, ""),
    "riscv64": ("EM_RISCV", 64, ""),
}
# Machine of the layer -> architecture, and what /compatible of its device tree begins with.
_BOARDS: dict[str, tuple[str, str]] = {
    "virt64": ("aarch64", "linux,dummy-virt"),
    "virt32": ("armhf", "linux,dummy-virt"),
    "qemuarm64": ("aarch64", "linux,dummy-virt"),
    "raspberrypi3-64": ("aarch64", "raspberrypi,3"),
    "raspberrypi4-64": ("aarch64", "raspberrypi,4"),
    "raspberrypi5": ("aarch64", "raspberrypi,5"),
    "beaglebone": ("armhf", "ti,am335x-bone"),
    "beaglebone-yocto": ("armhf", "ti,am335x-bone"),
    "orange-pi-pc": ("armhf", "xunlong,orangepi-pc"),
}


class Board:
    """What is known of the board. Empty fields are not known, and then not checked."""

    __slots__ = ("architecture", "compatible", "name", "values")

    def __init__(
        self,
        name: str = "",
        architecture: str = "",
        compatible: str = "",
        values: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.architecture = architecture
        self.compatible = compatible
        self.values = values or {}

    @property
    def slot_bytes(self) -> int | None:
        """Size of a root partition by the layer."""
        size = self.values.get("UPDATE_ROOTFS_SIZE_MB")
        return int(size) << 20 if size else None

    def document(self) -> dict[str, object]:
        """For JSON."""
        return {"name": self.name, "architecture": self.architecture, "compatible": self.compatible}


def machines() -> list[str]:
    """Names that --machine takes."""
    return sorted({*_BOARDS, *(path.stem for path in (layer.LAYER / "conf/update/machine").glob("*.inc"))})


def choose(machine: str, architecture: str, compatible: str, device_type: str) -> Board:
    """The board that the options name, else the machine of the layer that is named as the device type.

    Raises InspectError for a machine or an architecture that does not exist.
    """
    if architecture and architecture not in ARCHITECTURES:
        raise InspectError(f"no architecture {architecture!r}", hint=f"there is {', '.join(ARCHITECTURES)}")
    name = machine or device_type
    known_architecture, known_compatible = _BOARDS.get(name, ("", ""))
    values: dict[str, str] = {}
    try:
        values = layer.variables(name) if name else {}
    except (BenchError, OSError) as error:
        if machine and not known_architecture and not architecture:
            raise InspectError(
                f"the layer has no machine {machine!r}", hint="name the board by --arch and --compatible"
            ) from error
    return Board(name, architecture or known_architecture, compatible or known_compatible, values)
