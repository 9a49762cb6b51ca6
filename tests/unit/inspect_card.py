# SPDX-License-Identifier: Apache-2.0
"""A small card for the tests of `ota inspect`, made from the layer's files and the bench's pieces; no QEMU.

Programs and C library are real arm64 ones, the kernel is a header only. What is wrong with a card is done to
it before it is built (`rootfs`, `boot`, `environment`, …), or to its bytes afterwards (`patches`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.artifacts import Artifact

from update_tools.bench import ext4, layer
from update_tools.bench.tools import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from update_tools.inspect.ext4 import Ext4Tree

MACHINE = "raspberrypi4-64"  # its firmware takes the device tree from the boot partition
MIB = 1 << 20
SIZES = {"BOOT": 4 * MIB, "A": 8 * MIB, "B": 8 * MIB, "DATA": 8 * MIB}
OFFSETS = {"BOOT": 8 * MIB, "A": 12 * MIB, "B": 20 * MIB, "DATA": 28 * MIB}
TABLE = """\
label: dos
unit: sectors
1: start=16384, size=8192, type=c, bootable
2: start=24576, size=16384, type=83
3: start=40960, size=16384, type=83
4: start=57344, size=16384, type=83
"""
LIBRARIES = Path("/usr/aarch64-linux-gnu/lib")
GCC = "aarch64-linux-gnu-gcc"
BIG = """
#include <stdio.h>
#include <string.h>
__asm__(".text\\n.skip 20480");
int main(int argc, char **argv) { char copy[64]; strcpy(copy, argv[argc - 1]); puts(copy); return 0; }
"""
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
MARK = b"the end of the payload"
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


def update(**fields: Any) -> Artifact:
    """An artifact for the card."""
    payload = bytes(1024 + 0x38) + b"\x53\xef" + bytes(70_000) + MARK
    good: dict[str, Any] = {
        "payload_type": "rootfs-image",
        "device_types": [MACHINE],
        "files": {"root.ext4": payload},
        "scripts": {"ArtifactInstall_Enter_10_stop": b"#!/bin/sh\nexit 0\n"},
    }
    return Artifact(**{**good, **fields})


class Card:
    """Everything of a card before it is built; `data` None leaves the data partition empty."""

    def __init__(self) -> None:
        self.values = layer.variables(MACHINE)
        self.offsets = dict(OFFSETS)
        self.env_offsets = [int(self.values[f"UPDATE_UBOOT_ENV_OFFSET{end}"], 0) for end in ("", "_REDUND")]
        self.table = TABLE
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
        self.root_bytes = SIZES["A"]
        self.root_label = ""
        self.root_commands: list[str] = []  # of debugfs, on the finished root file system
        self.config_mode = 0o600
        self.autoboot = ""  # text of autoboot.txt
        self.copies = "-r"  # of mkenvimage: redundant
        self.patches: list[tuple[int, bytes]] = []
        self.update: Artifact | None = None  # an artifact to fit the card
        self.machine = ""  # as --machine
        self.user: int | None = None  # the root file system as a directory, looked into by this user
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
            self.rootfs.text("/etc/mender/mender.conf", json.dumps(self.config), self.config_mode)
        ext4.make(path, self.rootfs, size_bytes=self.root_bytes, label=self.root_label, journal=False)
        for command in self.root_commands:
            run(["debugfs", "-w", "-R", command, path])
        return path

    def make_directory(self, into: Path) -> Path:
        """The root file system as a directory, with its owners and modes; only root can make that."""
        tree = into / "tree"
        tree.mkdir()
        self.make_rootfs(into / "root")
        run(["debugfs", "-R", f"rdump / {tree}", into / "root"])
        return tree

    def make(self, into: Path) -> Path:
        """The card as a file; sparse."""
        disk = into / "card.wic"
        with open(disk, "wb") as file:
            file.truncate(max(self.offsets.values()) + SIZES["DATA"] + MIB)
        run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk], stdin=self.table)
        _copy_into(disk, self.offsets["A"], self.make_rootfs(into / "root"))
        if "B" in self.offsets:
            _copy_into(disk, self.offsets["B"], _kept(_empty, "empty", ""))
        if self.data is not None:
            nodes = self.data.nodes.items()
            said = repr([(path, node.mode, node.data, node.target) for path, node in sorted(nodes)])
            _copy_into(disk, self.offsets["DATA"], _kept(self._data, "data", said))
        boot = (tuple(sorted(self.boot.items())), self.script)
        _copy_into(disk, self.offsets["BOOT"], _kept(self._boot, "boot", repr(boot)))
        if self.autoboot:
            made = _kept(self._autoboot, "autoboot", self.autoboot)
            _copy_into(disk, self.offsets["AUTOBOOT"], made)
        if self.environment:
            made = _kept(self._environment, "environment", self.copies + self.environment)
            for offset in self.env_offsets:
                _copy_into(disk, offset, made)
        with open(disk, "r+b") as file:
            for offset, content in self.patches:
                file.seek(offset)
                file.write(content)
        return disk

    def _data(self, target: Path) -> None:
        assert self.data is not None
        ext4.make(target, self.data, size_bytes=SIZES["DATA"], label="data", journal=True)

    def _boot(self, target: Path) -> None:
        with open(target, "wb") as file:
            file.truncate(SIZES["BOOT"])
        run(["mkfs.vfat", "--invariant", "-n", "BOOT", target])
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file_name, content in self.boot.items():
                (folder / file_name).write_bytes(content)
            if self.script:
                boot_script(folder / "boot.scr", self.script)
            run(["mcopy", "-i", target, *sorted(folder.iterdir()), "::"])

    def _autoboot(self, target: Path) -> None:
        with open(target, "wb") as file:
            file.truncate(MIB)
        run(["mkfs.vfat", "--invariant", target])
        with tempfile.TemporaryDirectory() as name:
            text = Path(name, "autoboot.txt")
            text.write_text(self.autoboot)
            run(["mcopy", "-i", target, text, "::"])

    def _environment(self, target: Path) -> None:
        text = target.with_suffix(".txt")
        text.write_text(self.environment)
        run(
            [
                "mkenvimage",
                *self.copies.split(),
                "-s",
                self.values["UPDATE_UBOOT_ENV_SIZE"],
                "-o",
                target,
                text,
            ]
        )


def _empty(target: Path) -> None:
    """Slot B as wic makes it."""
    ext4.make(target, ext4.Files(), size_bytes=SIZES["B"], label="", journal=True)


def _copy_into(disk: Path, offset: int, source: Path) -> None:
    """What a sparse file holds."""
    with open(source, "rb") as file, open(disk, "r+b") as target:
        size, end = file.seek(0, os.SEEK_END), 0
        while end < size:
            try:
                start = file.seek(end, os.SEEK_DATA)
            except OSError:  # nothing but a hole
                return
            end = file.seek(start, os.SEEK_HOLE)
            file.seek(start)
            target.seek(offset + start)
            target.write(file.read(end - start))


def boot_script(target: Path, text: str) -> Path:
    """A script as U-Boot takes it."""
    with tempfile.NamedTemporaryFile("w") as source:
        source.write(text)
        source.flush()
        run(["mkimage", "-A", "arm", "-T", "script", "-C", "none", "-n", "boot", "-d", source.name, target])
    return target


_parts = tempfile.TemporaryDirectory(prefix="inspect-parts-")


def _kept(make: Callable[[Path], None], kind: str, key: str) -> Path:
    """A part of a card, made once for each content: most cards differ in one."""
    path = Path(_parts.name, f"{kind}-{hashlib.sha256(key.encode()).hexdigest()}")
    if not path.exists():
        make(path)
    return path


def check_against_debugfs(tree: Ext4Tree, image: Path, scratch: Path) -> None:
    """Every file that debugfs lists, by `ls -l` with its numbers, and its content by `rdump`."""
    dumped = scratch / "dumped"
    dumped.mkdir()
    run(["debugfs", "-R", f"rdump / {dumped}", image])
    directories = [path for path, entry in tree.entries.items() if entry.is_directory]
    listed = subprocess.run(
        ["/usr/sbin/debugfs", "-f", "-", str(image)],
        input="".join(f'ls -p "{path}"\n' for path in directories),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = sorted(re.findall(r"^/\d+/(\d+)/(\d+)/(\d+)/([^/]+)/", listed, re.MULTILINE))
    ours = [
        (f"{entry.mode:06o}", str(entry.uid), str(entry.gid), path.rpartition("/")[2])
        for path, entry in tree.entries.items()
        if path != "/"
    ]
    assert sorted(ours) == [row for row in found if row[3] not in {".", ".."}]
    for path, entry in tree.entries.items():
        if entry.is_file:
            assert tree.content(entry, 1 << 30) == (dumped / path[1:]).read_bytes()
        elif entry.is_link:
            assert entry.target == os.readlink(dumped / path[1:])


def missing_tools() -> list[str]:
    """What this host lacks to make a card."""
    tools = (GCC, "dtc", "mkimage", "mkenvimage", "mcopy", "mkfs.vfat", "sfdisk", "mke2fs", "debugfs")
    found = [tool for tool in tools if not shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin")]
    return found + [str(LIBRARIES)] * (not LIBRARIES.is_dir())
