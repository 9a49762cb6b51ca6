# SPDX-License-Identifier: Apache-2.0
"""Reads the machine's facts from the Yocto layer, their one home, so that the bench repeats none of them."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import wks
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
WKS = "files/wic/ab-data.wks.in"
FIRST_ENVIRONMENT = "recipes-bsp/update-uboot-env/files/update-env.txt.in"

BUILD = {
    "UPDATE_UBOOT_ENV_IMAGE": "update-uboot-env.bin",
    "DEPLOY_DIR_IMAGE": ".",
    "IMGDEPLOYDIR": ".",
    "IMAGE_LINK_NAME": "slot",
    "IMAGE_ROOTFS": "rootfs",
}
"""Where a build has the files that the .wks names; here, below the directory of whoever makes a card."""

RECIPES = ("update-agent", "update-agent-conf", "python3-jeepney")
"""What makes the agent's packages."""

# Where BitBake's variables lead on a device, whatever the distribution.
_PLACES = {
    "PYTHON_SITEPACKAGES_DIR": "/usr/lib*/python3*/*-packages",
    "bindir": "/usr/bin",
    "datadir": "/usr/share",
    "mandir": "/usr/share/man",
    "sysconfdir": "/etc",
    "localstatedir": "/var",
    "systemd_system_unitdir": "*/lib/systemd/system",  # with or without usrmerge
}
_PACKAGE = re.compile(r'^(FILES|RDEPENDS):(\S+) = "([^"]*)"', re.MULTILINE)
_ROLES = {"/boot": "BOOT", "/": "A", "/data": "DATA"}
_ASSIGNMENT = re.compile(r"""([A-Z][A-Za-z0-9_:-]*)\s*(\?\?=|\?=|=)\s*(["'])(.*)\3\s*""")
_INCLUDE = re.compile(r"(?:require|include)\s+(\S+)\s*")
_REFERENCE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")
_EXPANSION = re.compile(r"\$\{(@[^}]*|\w+)\}")
_PLACEHOLDER = re.compile(r"@@([A-Z][A-Z0-9_]*)@@")


def variables(machine: str, layer: Path = LAYER, **settings: str) -> dict[str, str]:
    """The variables of a machine as the class `update` reads them; `settings` stand for local.conf.

    conf/update/layout.inc, changed by conf/update/machine/MACHINE.inc and by conf/update/bootflow.
    """
    parsed = _Variables(layer, {"MACHINE": machine, **settings})
    parsed.read(layer / "conf/update/layout.inc")
    parsed.read(layer / f"conf/update/machine/{machine}.inc")
    flow = layer / f"conf/update/bootflow/{parsed.expanded().get('UPDATE_BOOTFLOW')}.inc"
    if flow.exists():
        parsed.read(flow)
    return parsed.expanded()


def rendered(path: str, values: Mapping[str, str], layer: Path = LAYER) -> str:
    """A file with BitBake's ${NAME} and ${@expression} expanded, as a .wks.in is."""

    def value(match: re.Match[str]) -> str:
        if match[1].startswith("@"):
            # The layer's own expression, which BitBake evaluates as well.
            return str(eval(match[1][1:], {"d": _Datastore(values)}))
        try:
            return values[match[1]]
        except KeyError:
            raise BenchError(f"{path}: ${{{match[1]}}} is not set") from None

    text = (layer / path).read_text()
    while (more := _EXPANSION.sub(value, text)) != text:
        text = more
    return text


def packages(variable: str, layer: Path = LAYER) -> dict[str, list[str]]:
    """FILES or RDEPENDS of the agent's packages, other variables filled: package -> words."""
    found = {}
    for recipe in RECIPES:
        (path,) = [*layer.glob(f"recipes-*/*/{recipe}_*.bb"), *layer.glob(f"recipes-*/*/{recipe}.bb")]
        for name, package, value in _PACKAGE.findall(path.read_text().replace("\\\n", " ")):
            if name == variable:
                words = value.replace("${PN}", recipe).split()
                found[package.replace("${PN}", recipe)] = [
                    re.sub(r"\$\{(\w+)\}", lambda match: _PLACES[match[1]], word) for word in words
                ]
    return found


class _Datastore:
    """What the layer's expressions ask of BitBake's `d`."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def getVar(self, name: str) -> str | None:  # noqa: N802  BitBake's name
        return self._values.get(name)


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
    """The card as the layer's .wks lays it out, in bytes: partitions BOOT, A, B, DATA and the environment."""

    __slots__ = ("card", "env_bytes", "env_offsets", "numbers", "offsets", "sizes", "storage")

    def __init__(self, values: Mapping[str, str], layer: Path = LAYER) -> None:
        self.env_bytes = int(values["UPDATE_UBOOT_ENV_SIZE"], 0)
        self.card = wks.parse(rendered(WKS, {**values, **BUILD}, layer), WKS)
        self.card.place(lambda file: self.env_bytes if file == BUILD["UPDATE_UBOOT_ENV_IMAGE"] else 0)
        parts = {_ROLES.get(part.mountpoint, "B"): part for part in self.card.parts if part.is_in_table}
        copies = [part.start for part in self.card.parts if part.file == BUILD["UPDATE_UBOOT_ENV_IMAGE"]]
        if set(parts) != {"BOOT", "A", "B", "DATA"} or len(copies) != 2:
            raise BenchError(f"{WKS} has partitions {sorted(parts)}, and the environment {len(copies)} times")
        self.storage = parts["A"].disk
        self.env_offsets = (copies[0], copies[1])
        self.numbers = {name: part.number for name, part in parts.items()}
        self.offsets = {name: part.start for name, part in parts.items()}
        self.sizes = {name: part.size for name, part in parts.items()}
        self._check(values)

    def offset(self, name: str) -> int:
        """Where a partition (BOOT, A, B, DATA) begins."""
        return self.offsets[name]

    @property
    def first_bytes(self) -> int:
        """Before the first partition."""
        return min(self.offsets.values())

    @property
    def total_bytes(self) -> int:
        """Size of the whole card: a power of two, as QEMU's cards are."""
        return 1 << (self.card.used_bytes - 1).bit_length()

    def _check(self, values: Mapping[str, str]) -> None:
        """What the other files of the layer are made from must be what the .wks says."""
        said = {
            **{f"UPDATE_PART_{name}": number for name, number in self.numbers.items()},
            "UPDATE_UBOOT_ENV_OFFSET": self.env_offsets[0],
            "UPDATE_UBOOT_ENV_OFFSET_REDUND": self.env_offsets[1],
        }
        for name, number in said.items():
            if int(values[name], 0) != number:
                raise BenchError(f"{name} is {values[name]}, but {WKS} makes it {number:#x}")
        if values["UPDATE_STORAGE"] != self.storage:
            raise BenchError(f"UPDATE_STORAGE is {values['UPDATE_STORAGE']}, but {WKS} says {self.storage}")
        if min(self.env_offsets) < 1 << 20:
            raise BenchError("the environment lies where boot loaders do, in the first MiB")
        if not 1 <= int(values["UPDATE_BOOTLIMIT"]) <= 8:
            raise BenchError(f"UPDATE_BOOTLIMIT is {values['UPDATE_BOOTLIMIT']}, not 1 to 8")
