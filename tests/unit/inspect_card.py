# SPDX-License-Identifier: Apache-2.0
"""A small card for the tests of `ota inspect`, made from the layer's files and the bench's pieces; no QEMU.

Programs and C library are real arm64 ones, the kernel is a header only. What is wrong with a card is done to
it before it is built (`rootfs`, `boot`, `environment`, …), or to its bytes afterwards (`patches`).
"""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path

from update_tools.bench import ext4, image, layer
from update_tools.bench.tools import run

MACHINE = "raspberrypi4-64"  # its firmware takes the device tree from the boot partition
SIZES = {"UPDATE_BOOT_SIZE_MB": "16", "UPDATE_ROOTFS_SIZE_MB": "24", "UPDATE_DATA_SIZE_MB": "16"}
LIBRARIES = Path("/usr/aarch64-linux-gnu/lib")
GCC = "aarch64-linux-gnu-gcc"
HARDENED = ("-O2", "-fPIE", "-pie", "-fstack-protector-strong", "-Wl,-z,relro,-z,now")
PROGRAM = """
#include <stdio.h>
#include <string.h>
int main(int argc, char **argv) { char copy[64]; strcpy(copy, argv[argc - 1]); puts(copy); return 0; }
"""
DEVICETREE = """
/dts-v1/;
/ {{
    model = "{model}"; compatible = {compatible}; #address-cells = <1>; #size-cells = <1>;
    aliases {{ mmc0 = "/soc/mmc@7e340000"; }};
    chosen {{ bootargs = "{bootargs}"; }};
    soc {{
        #address-cells = <1>; #size-cells = <1>;
        mmc@7e340000 {{ reg = <0x7e340000 0x100>; status = "{status}"; }};
    }};
}};
"""
PI4 = '"raspberrypi,4-model-b", "brcm,bcm2711"'
KERNEL = bytes(0x38) + b"ARM\x64" + bytes(4)


@functools.cache
def program(*flags: str, source: str = PROGRAM) -> bytes:
    """An arm64 program or library built with these flags."""
    with tempfile.TemporaryDirectory() as name:
        code = Path(name, "program.c")
        code.write_text(source)
        run([GCC, *flags, "-o", Path(name, "program"), code])
        return Path(name, "program").read_bytes()


@functools.cache
def devicetree(*, compatible: str = PI4, bootargs: str = "coherent_pool=1M", status: str = "okay") -> bytes:
    """A compiled device tree."""
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name, "board.dts"), Path(name, "board.dtb")
        model = "Test board"
        text = DEVICETREE.format(model=model, compatible=compatible, bootargs=bootargs, status=status)
        source.write_text(text)
        run(["dtc", "-q", "-I", "dts", "-O", "dtb", "-o", target, source])
        return target.read_bytes()


class Card:
    """Everything of a card before it is built; `data` None leaves the data partition empty."""

    def __init__(self) -> None:
        self.values = {**layer.variables(MACHINE), **SIZES}
        self.layout = layer.Layout(self.values)
        self.table = self.layout.card.partition_table()
        self.rootfs = ext4.Files()
        self.config: dict[str, object] = {
            "RootfsPartA": "/dev/mmcblk0p2",
            "RootfsPartB": "/dev/mmcblk0p3",
            "Servers": [{"ServerURL": "https://updates.example.com"}],
        }
        self.data: ext4.Files | None = ext4.Files()
        self.data.text("/mender/device_type", f"device_type={MACHINE}\n")
        self.boot = {"bcm2711-rpi-4-b.dtb": devicetree(), "cmdline.txt": b"rootwait console=ttyS0\n"}
        self.script = layer.filled(layer.BOOT_SCRIPT, self.values)
        self.environment = layer.filled(layer.FIRST_ENVIRONMENT, self.values)
        self.root_bytes = self.layout.sizes["A"]
        self.patches: list[tuple[int, bytes]] = []
        self._fill(self.rootfs)

    def _fill(self, files: ext4.Files) -> None:
        for directory in ("bin", "lib", "sbin"):
            files.link(f"/{directory}", f"usr/{directory}")
        for path in ("/dev", "/proc", "/sys", "/run", "/data"):
            files.directory(path)
        files.directory("/tmp", 0o1777)
        for path in ("/usr/bin/busybox", "/usr/bin/python3.13", "/usr/bin/fw_printenv"):
            files.text(path, program(*HARDENED), 0o755)
        files.link("/usr/bin/sh", "busybox")
        files.link("/usr/bin/python3", "python3.13")
        for name in ("libc.so.6", "ld-linux-aarch64.so.1"):
            files.text(f"/usr/lib/{name}", (LIBRARIES / name).read_bytes(), 0o755)
        files.text("/boot/Image", KERNEL)
        files.text("/usr/bin/update-agent", "#!/usr/bin/python3 -IS\n", 0o755)
        files.text("/usr/bin/check-load", "#!/bin/sh\nexit 0\n", 0o755)
        files.text(
            "/etc/fstab", "/dev/root / auto defaults 1 1\n/dev/mmcblk0p4 /data ext4 defaults,nofail 0 2\n"
        )
        files.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
        files.text("/etc/shadow", "root:*:15069:0:99999:7:::\n", 0o400)
        files.text("/etc/machine-id", "")
        files.text("/etc/fw_env.config", layer.filled(layer.FW_ENV_CONFIG, self.values))
        files.text("/etc/mender/scripts/version", "3\n")
        files.text("/etc/mender/scripts/Download_Enter_10_quiet-hours", "#!/bin/sh\nexit 0\n", 0o755)
        files.text("/etc/mender/scripts/Download_Enter_05_first", "#!/bin/sh\nexit 0\n", 0o755)
        files.text("/etc/mender/scripts/Idle_Enter_10", "#!/bin/sh\nexit 0\n", 0o755)
        self.hook(
            "10-night.json",
            {"point": "ArtifactReboot_Enter", "when": {"outside": "02:00", "lasting_s": 7200}},
        )
        self.hook(
            "20-load.json",
            {
                "point": "ArtifactInstall_Enter",
                "when": {"program": "/usr/bin/check-load"},
                "limit_s": 3600,
                "at_limit": "continue",
            },
        )
        files.link("/var/lib/mender", "/data/mender")

    def hook(self, name: str, hook: dict[str, object], mode: int = 0o644) -> None:
        """A pause hook of the image."""
        self.rootfs.text(f"/usr/share/mender/pause.d/{name}", json.dumps(hook), mode)

    def make_rootfs(self, path: Path) -> Path:
        """Only the root file system."""
        if self.config:
            self.rootfs.text("/etc/mender/mender.conf", json.dumps(self.config), 0o600)
        return ext4.make(path, self.rootfs, size_bytes=self.root_bytes, label="", journal=False)

    def make(self, into: Path) -> Path:
        """The card as a file; sparse."""
        disk = into / "card.wic"
        with open(disk, "wb") as file:
            file.truncate(self.layout.first_bytes + sum(self.layout.sizes.values()))
        run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk], stdin=self.table)
        image.copy_into(disk, self.layout.offset("A"), self.make_rootfs(into / "root"))
        if self.data is not None:
            data = ext4.make(
                into / "data", self.data, size_bytes=self.layout.sizes["DATA"], label="data", journal=True
            )
            image.copy_into(disk, self.layout.offset("DATA"), data)
        self._boot(disk, into)
        self._environment(disk, into)
        with open(disk, "r+b") as file:
            for offset, content in self.patches:
                file.seek(offset)
                file.write(content)
        return disk

    def _boot(self, disk: Path, into: Path) -> None:
        fat = into / "boot"
        with open(fat, "wb") as file:
            file.truncate(self.layout.sizes["BOOT"])
        run(["mkfs.vfat", "--invariant", "-n", "BOOT", fat])
        folder = into / "files"
        folder.mkdir()
        for name, content in self.boot.items():
            (folder / name).write_bytes(content)
        if self.script:
            source = into / "boot.cmd"
            source.write_text(self.script)
            run(
                [
                    "mkimage",
                    "-A",
                    "arm",
                    "-T",
                    "script",
                    "-C",
                    "none",
                    "-n",
                    "boot",
                    "-d",
                    source,
                    folder / "boot.scr",
                ]
            )
        run(["mcopy", "-i", fat, *sorted(folder.iterdir()), "::"])
        image.copy_into(disk, self.layout.offset("BOOT"), fat)

    def _environment(self, disk: Path, into: Path) -> None:
        if not self.environment:
            return
        source, target = into / "environment.txt", into / "environment"
        source.write_text(self.environment)
        run(["mkenvimage", "-r", "-s", self.values["UPDATE_UBOOT_ENV_SIZE"], "-o", target, source])
        for offset in self.layout.env_offsets:
            image.copy_into(disk, offset, target)


def missing_tools() -> list[str]:
    """What this host lacks to make a card."""
    tools = (GCC, "dtc", "mkimage", "mkenvimage", "mcopy", "mkfs.vfat", "sfdisk", "mke2fs", "debugfs")
    found = [tool for tool in tools if not shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin")]
    return found + [str(LIBRARIES)] * (not LIBRARIES.is_dir())
