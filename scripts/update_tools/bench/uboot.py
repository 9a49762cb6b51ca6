# SPDX-License-Identifier: Apache-2.0
"""U-Boot from Debian's source package with the layer's fragment, boot script and environment."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from . import cache, layer
from .debs import Apt
from .tools import BenchError, run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .boards import Kind


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
        for name, kept in (
            ("u-boot.bin", "u-boot.bin"),
            (".config", "config"),
            ("u-boot-initial-env", "initial-env"),
        ):
            shutil.copy(tree / name, into / kept)
        for path in into.iterdir():
            if path.name not in {"u-boot.bin", "config", "initial-env"}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return cache.made("u-boot", cache.key(version, kind.defconfig, kind.cross, fragment), make)


def check_config(config: str, fragment: str) -> None:
    """Raise BenchError naming the lines of the fragment that did not make it into the configuration."""
    if lost := layer.library("kconfig").missing(fragment, config):
        raise BenchError(
            "U-Boot's configuration lost " + "; ".join(lost),
            hint="something that the option depends on is off, or this version has renamed it",
        )


def boot_script(values: Mapping[str, str], into: Path) -> Path:
    """boot.scr from the layer's boot.cmd."""
    source = into / "boot.cmd"
    source.write_text(layer.filled(layer.BOOT_SCRIPT, values))
    script = into / "boot.scr"
    run(["mkimage", "-A", "arm", "-T", "script", "-C", "none", "-n", "update boot", "-d", source, script])
    return script


def first_environment(built: Path, values: Mapping[str, str], into: Path) -> Path:
    """The image of one environment copy: U-Boot's defaults with the layer's first values over them."""
    ours = layer.filled(layer.FIRST_ENVIRONMENT, values)
    source = into / "environment.txt"
    source.write_text(layer.library("environment").overlay((built / "initial-env").read_text(), ours))
    image = into / "environment.bin"
    run(["mkenvimage", "-r", "-s", values["UPDATE_UBOOT_ENV_SIZE"], "-o", image, source])
    return image
