# SPDX-License-Identifier: Apache-2.0
"""U-Boot from Debian's source package with the layer's configuration fragment, boot script and environment."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING

from . import cache, layer
from .debs import Apt
from .tools import BenchError, run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .boards import Kind

_SETTING = re.compile(r"(CONFIG_\w+)=(.*)")
_UNSET = re.compile(r"# (CONFIG_\w+) is not set")

# The same switch under two names: one of them must have taken, the other is unknown to this version.
_RENAMED = {"CONFIG_ENV_REDUNDANT": "CONFIG_SYS_REDUNDAND_ENVIRONMENT"}


def build(kind: Kind, values: Mapping[str, str]) -> Path:
    """Directory with u-boot.bin, config, and initial-env (the compiled default environment)."""
    apt = Apt(kind.deb_arch)
    version = apt.source_version("u-boot")
    fragment = "".join(layer.filled(f"{layer.FRAGMENTS}/{name}", values) for name in kind.fragments)

    def make(into: Path) -> None:
        tree = apt.unpack_source("u-boot", version, into)
        command = ["make", f"-j{os.cpu_count() or 1}", f"CROSS_COMPILE={kind.cross}", "LOCALVERSION="]
        run([*command, kind.defconfig], cwd=tree)
        (tree / "fragment.cfg").write_text(fragment)
        run(["scripts/kconfig/merge_config.sh", "-m", ".config", "fragment.cfg"], cwd=tree)
        run([*command, "olddefconfig"], cwd=tree)
        check_config((tree / ".config").read_text(), fragment)
        run(["nice", *command, "u-boot.bin", "u-boot-initial-env"], cwd=tree)
        for name, kept in (("u-boot.bin", "u-boot.bin"), (".config", "config"), ("u-boot-initial-env", "initial-env")):
            shutil.copy(tree / name, into / kept)
        for path in into.iterdir():
            if path.name not in {"u-boot.bin", "config", "initial-env"}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return cache.made("u-boot", cache.key(version, kind.defconfig, kind.cross, fragment), make)


def check_config(config: str, fragment: str) -> None:
    """Raise BenchError for the first line of the fragment that did not make it into the configuration."""
    got = {match[1]: match[2] for match in _SETTING.finditer(config)}
    for line in fragment.splitlines():
        if match := _SETTING.fullmatch(line):
            names = (match[1], _RENAMED.get(match[1], ""), *(new for new, old in _RENAMED.items() if old == match[1]))
            if match[2] not in [got.get(name) for name in names]:
                raise BenchError(
                    f"U-Boot's configuration has {match[1]}={got.get(match[1], 'n')}, not {match[2]}",
                    hint="something that the option depends on is off, or this version has renamed it",
                )
        elif (match := _UNSET.fullmatch(line)) and match[1] in got:
            raise BenchError(f"U-Boot's configuration has {match[1]}={got[match[1]]}, not off")


def boot_script(values: Mapping[str, str], into: Path) -> Path:
    """boot.scr from the layer's boot.cmd."""
    source = into / "boot.cmd"
    source.write_text(layer.filled(layer.BOOT_SCRIPT, values))
    script = into / "boot.scr"
    run(["mkimage", "-A", "arm", "-T", "script", "-C", "none", "-n", "update boot", "-d", source, script])
    return script


def first_environment(built: Path, values: Mapping[str, str], into: Path) -> Path:
    """The image of one environment copy: U-Boot's defaults with the layer's first values over them."""
    text = merge_environment((built / "initial-env").read_text(), layer.filled(layer.FIRST_ENVIRONMENT, values))
    source = into / "environment.txt"
    source.write_text(text)
    image = into / "environment.bin"
    run(["mkenvimage", "-r", "-s", values["UPDATE_UBOOT_ENV_SIZE"], "-o", image, source])
    return image


def merge_environment(defaults: str, ours: str) -> str:
    """name=value lines of `defaults` with those of `ours` over them, sorted, each name once."""
    merged: dict[str, str] = {}
    for line in f"{defaults}\n{ours}".splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#"):
            merged[name] = value
    return "".join(f"{name}={value}\n" for name, value in sorted(merged.items()))
