# SPDX-License-Identifier: Apache-2.0
"""A Raspberry Pi's card in files, and what its firmware does with it when it starts.

The firmware itself runs on no machine but its own; here is what its documentation says about choosing a boot
partition. FAT is read with mtools, not with the agent's code. What runs is what cmdline.txt of the chosen
partition names, as on the board.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from update_agent.errors import UpdateError

if TYPE_CHECKING:
    from collections.abc import Mapping

AUTOBOOT = "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n"
BOOT_PARTS, ROOTS = ("2", "3"), ("5", "6")
TOOLS = {"mkfs.vfat": "dosfstools", "mcopy": "mtools", "mke2fs": "e2fsprogs"}
BOOT_BYTES = 4 << 20
ROOT_BYTES = 2 << 20
_FAT_BYTES = {12: 2 << 20, 16: 4 << 20, 32: 40 << 20}  # with clusters of one sector
_CAPABILITIES = 0b1100  # tryboot, and tryboot_a_b


def missing() -> str:
    """What this machine lacks for a Pi whose root slots the agent can look into; empty if nothing."""
    for tool, package in TOOLS.items():
        if not shutil.which(tool):
            return f"{tool} is not installed (Debian's {package})"
    with tempfile.TemporaryDirectory() as folder:
        image = os.path.join(folder, "image")
        make_root(image, {"a": b""})
        done = subprocess.run(
            ["unshare", "-m", "mount", "-o", "ro,noload", image, folder],
            capture_output=True,
            text=True,
            check=False,
        )
    return f"no file system in a file can be mounted here: {done.stderr.strip()}" if done.returncode else ""


def make_root(path: str, files: Mapping[str, bytes]) -> None:
    """A small ext4 with these files."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            file = Path(folder, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        with open(path, "wb") as image:
            image.truncate(ROOT_BYTES)
        _run("mke2fs", "-q", "-t", "ext4", "-b", "1024", "-E", "no_copy_xattrs", "-d", folder, path)


def boot_files(version: str) -> dict[str, bytes]:
    """What a slot's /boot has."""
    return {
        "boot/config.txt": b"arm_64bit=1\n",
        "boot/cmdline.txt": b"console=serial0,115200 root=/dev/none rootwait panic=5\n",
        "boot/kernel8.img": f"kernel of {version}\n".encode() * 4000,
        "boot/bcm2711-rpi-4-b.dtb": f"device tree of {version}\n".encode(),
        "boot/overlays/vc4-kms-v3d.dtbo": f"overlay of {version}\n".encode(),
    }


class Pi:
    """Partitions 1 (autoboot.txt), 2 and 3 (boot), 5 and 6 (root), and the one-shot flag."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.tree = os.path.join(folder, "bootloader")  # /proc/device-tree/chosen/bootloader
        self.boot_id = os.path.join(folder, "boot-id")
        self.flag = os.path.join(folder, "tryboot")
        self.booted = ""

    def part(self, number: str) -> str:
        """The file that is this partition."""
        return os.path.join(self.folder, "dev", f"mmcblk0p{number}")

    def flash(self, autoboot: str = AUTOBOOT, *, fat: int = 16) -> None:
        """Lay the card out with slot A in use. Root partitions are the caller's. Raises UpdateError."""
        os.makedirs(os.path.join(self.folder, "dev"), exist_ok=True)
        sizes = {"1": _FAT_BYTES[fat], "2": BOOT_BYTES, "3": BOOT_BYTES}
        for number, size in sizes.items():
            with open(self.part(number), "wb") as file:
                file.truncate(size)
        _run("mkfs.vfat", "-s", "1", "-F", str(fat), self.part("1"))
        self.put("1", "autoboot.txt", autoboot.encode())
        _run("mkfs.vfat", self.part("2"))
        for name, content in boot_files("old").items():
            short = name.removeprefix("boot/")
            if "/" in short:
                _run("mmd", "-D", "s", "-i", self.part("2"), f"::{os.path.dirname(short)}")
            if short == "cmdline.txt":
                content = content.replace(b"/dev/none", self.part(ROOTS[0]).encode())
            self.put("2", short, content)

    def put(self, number: str, name: str, content: bytes) -> None:
        """Write a file of a FAT partition."""
        _run("mcopy", "-o", "-i", self.part(number), "-", f"::{name}", stdin=content)

    def get(self, number: str, name: str) -> bytes | None:
        """Read one; None if there is none, or no file system."""
        done = subprocess.run(
            ["mcopy", "-i", self.part(number), f"::{name}", "-"], capture_output=True, check=False
        )
        return None if done.returncode else done.stdout

    def choice(self, *, is_tryboot: bool) -> str:
        """The boot partition by autoboot.txt, its filters as they are documented; empty if it has none."""
        text = self.get("1", "autoboot.txt")
        if text is None or len(text) > 512:
            return ""
        values: dict[str, str] = {}
        passes = True
        for line in text.decode().splitlines():
            if line.startswith("["):
                passes = line == "[all]" or (line == "[tryboot]" and is_tryboot)
            elif passes and "=" in line:
                key, _, value = line.partition("=")
                values[key] = value
        if is_tryboot and values.get("tryboot_a_b") != "1":
            return ""  # it would look for tryboot.txt on the default partition
        return values.get("boot_partition", "")

    def default_root(self) -> str:
        """The root partition that an ordinary start leads to."""
        return self._root_of(self.choice(is_tryboot=False))

    def lose_power(self) -> None:
        """The one-shot flag is in a register."""
        if os.path.exists(self.flag):
            os.unlink(self.flag)

    def start(self) -> str:
        """Start once, and return the root partition's number. Raises UpdateError when nothing starts."""
        is_tryboot = os.path.exists(self.flag)
        self.lose_power()  # it counts once
        part = self.choice(is_tryboot=is_tryboot)
        if is_tryboot and not self._root_of(part):
            is_tryboot, part = (
                False,
                self.choice(is_tryboot=False),
            )  # not bootable: reset, and without the flag
        root = self._root_of(part)
        if not root:
            raise UpdateError(f"the firmware starts nothing: boot partition {part or 'unknown'}")
        os.makedirs(self.tree, exist_ok=True)
        for name, value in (
            ("partition", int(part)),
            ("tryboot", is_tryboot),
            ("capabilities", _CAPABILITIES),
        ):
            Path(self.tree, name).write_bytes(int(value).to_bytes(4, "big"))
        Path(self.boot_id).write_text(f"{uuid.uuid4()}\n", encoding="ascii")
        self.booted = part
        return root

    def _root_of(self, part: str) -> str:
        """The root partition that a boot partition leads to; empty if it starts nothing."""
        if part not in BOOT_PARTS or not self.get(part, "config.txt") or not self.get(part, "kernel8.img"):
            return ""
        words = (self.get(part, "cmdline.txt") or b"").decode().split()
        roots = [word for word in words if word.startswith("root=")]
        found = [number for number in ROOTS if roots == [f"root={self.part(number)}"]]
        return found[0] if found else ""


def _run(*argv: str, stdin: bytes = b"") -> None:
    done = subprocess.run(argv, input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise UpdateError(
            f"{argv[0]} exited with {done.returncode}: {done.stderr.decode(errors='replace').strip()}"
        )
