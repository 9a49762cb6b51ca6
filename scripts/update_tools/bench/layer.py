# SPDX-License-Identifier: Apache-2.0
"""Reads the machine's facts from the Yocto layer, their one home, so that the bench repeats none of them."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .tools import BenchError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[3]
LAYER = REPOSITORY / "meta-update"

AGENT_FILES = "recipes-core/update-agent/files"
FRAGMENTS = "recipes-bsp/u-boot/files"
BOOT_SCRIPT = "recipes-bsp/update-boot-script/files/boot.cmd.in"
FW_ENV_CONFIG = "recipes-bsp/update-fw-env-config/files/fw_env.config.in"
GROW_DATA = "recipes-core/update-data/files/update-grow-data.in"
FIRST_ENVIRONMENT = "recipes-bsp/update-uboot-env/files/update-env.txt.in"

_ASSIGNMENT = re.compile(r"""([A-Z][A-Za-z0-9_-]*)\s*(\?\?=|\?=|=)\s*(["'])(.*)\3\s*""")
_INCLUDE = re.compile(r"(?:require|include)\s+(\S+)\s*")
_REFERENCE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")
_PLACEHOLDER = re.compile(r"@@([A-Z][A-Z0-9_]*)@@")


def variables(machine: str, layer: Path = LAYER) -> dict[str, str]:
    """The variables of a machine: conf/update/layout.inc, changed by conf/update/machine/MACHINE.inc."""
    parsed = _Variables(layer, {"MACHINE": machine})
    parsed.read(layer / "conf/update/layout.inc")
    parsed.read(layer / f"conf/update/machine/{machine}.inc")
    return parsed.expanded()


def library(name: str) -> ModuleType:
    """A module of the layer's own Python, which BitBake runs as well: the rules are in one place too."""
    path = str(LAYER / "lib")
    if path not in sys.path:
        sys.path.append(path)
    return importlib.import_module(f"update_layer.{name}")


def fill(text: str, values: Mapping[str, str], where: str) -> str:
    """The text with each @@NAME@@ replaced. Raises BenchError for a name that the layer does not set."""

    def value(match: re.Match[str]) -> str:
        try:
            return values[match[1]]
        except KeyError:
            raise BenchError(
                f"{where}: @@{match[1]}@@ is not a variable of the layer",
                hint="is it in conf/update/layout.inc?",
            ) from None

    return _PLACEHOLDER.sub(value, text)


def filled(path: str, values: Mapping[str, str], layer: Path = LAYER) -> str:
    """A template of the layer with its placeholders filled."""
    return fill((layer / path).read_text(), values, path)


class _Variables:
    """BitBake's assignments as conf/update uses them: = over ?= over ??=, values expanded at the end."""

    def __init__(self, layer: Path, values: dict[str, str]) -> None:
        self._layer = layer
        self._hard = dict(values)
        self._soft: dict[str, str] = {}
        self._weak: dict[str, str] = {}

    def read(self, path: Path) -> None:
        try:
            text = path.read_text()
        except FileNotFoundError as error:
            raise BenchError(f"the layer has no {path.relative_to(self._layer)}") from error
        for number, line in enumerate(text.replace("\\\n", " ").splitlines(), 1):
            if not line.strip() or line.startswith("#") or "[doc]" in line:
                continue
            if match := _INCLUDE.fullmatch(line):
                self.read(self._layer / match[1])
            elif match := _ASSIGNMENT.fullmatch(line):
                name, operator, _, value = match.groups()
                if operator == "=":
                    self._hard[name] = value
                elif operator == "?=":
                    self._soft.setdefault(name, value)
                else:
                    self._weak[name] = value
            else:
                raise BenchError(f"{path}:{number}: not understood: {line.strip()}")

    def expanded(self) -> dict[str, str]:
        values = {**self._weak, **self._soft, **self._hard}

        def expand(value: str, depth: int = 0) -> str:
            if depth > 10:
                raise BenchError(f"the layer's variables refer to each other without end: {value}")
            return _REFERENCE.sub(
                lambda m: expand(values[m[1]], depth + 1) if m[1] in values else m[0], value
            )

        return {name: expand(value) for name, value in values.items()}


class Layout:
    """The card as the layer lays it out, in bytes."""

    __slots__ = ("env_bytes", "env_offsets", "first_bytes", "numbers", "sizes", "storage")

    def __init__(self, values: Mapping[str, str]) -> None:
        mib = 1 << 20
        self.storage = values["UPDATE_STORAGE"]
        self.env_bytes = int(values["UPDATE_UBOOT_ENV_SIZE"], 0)
        self.env_offsets = (
            int(values["UPDATE_UBOOT_ENV_OFFSET"], 0),
            int(values["UPDATE_UBOOT_ENV_OFFSET_REDUND"], 0),
        )
        self.first_bytes = int(values["UPDATE_FIRST_PART_MB"]) * mib
        self.numbers = {name: int(values[f"UPDATE_PART_{name}"]) for name in ("BOOT", "A", "B", "DATA")}
        rootfs = int(values["UPDATE_ROOTFS_SIZE_MB"]) * mib
        self.sizes = {
            "BOOT": int(values["UPDATE_BOOT_SIZE_MB"]) * mib,
            "A": rootfs,
            "B": rootfs,
            "DATA": int(values["UPDATE_DATA_SIZE_MB"]) * mib,
        }
        self._check(int(values["UPDATE_BOOTLIMIT"]))

    def offset(self, name: str) -> int:
        """Where a partition (BOOT, A, B, DATA) begins; they follow one another by their numbers."""
        before = [n for n in self.numbers if self.numbers[n] < self.numbers[name]]
        return self.first_bytes + sum(self.sizes[n] for n in before)

    @property
    def total_bytes(self) -> int:
        """Size of the whole card: a power of two, as QEMU's cards are."""
        used = self.first_bytes + sum(self.sizes.values())
        return 1 << (used - 1).bit_length()

    def _check(self, bootlimit: int) -> None:
        first, second = sorted(self.env_offsets)
        if first < 1 << 20 or first + self.env_bytes > second or second + self.env_bytes > self.first_bytes:
            raise BenchError(
                f"environment copies of {self.env_bytes:#x} at {first:#x} and {second:#x} overlap "
                f"each other, the boot loader, or the first partition at {self.first_bytes:#x}",
                hint="UPDATE_UBOOT_ENV_* and UPDATE_FIRST_PART_MB in conf/update",
            )
        if sorted(self.numbers.values()) != [1, 2, 3, 4]:
            raise BenchError(f"partition numbers {self.numbers} are not 1 to 4")
        if not 1 <= bootlimit <= 8:
            raise BenchError(f"UPDATE_BOOTLIMIT is {bootlimit}, not 1 to 8")
