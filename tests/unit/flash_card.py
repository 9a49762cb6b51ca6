# SPDX-License-Identifier: Apache-2.0
"""A small card for the tests of `ota flash`, and loop devices to write it to. No cross compiler, no QEMU."""

from __future__ import annotations

import atexit
import bz2
import functools
import gzip
import json
import lzma
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard
from tests.support.tools import need

from update_tools import artifact
from update_tools.bench import ext4, image, layer
from update_tools.bench.tools import run

MACHINE = "raspberrypi4-64"
SIZES = {
    "UPDATE_BOOT_SIZE_MB": "4",
    "UPDATE_ROOTFS_SIZE_MB": "4",
    "UPDATE_DATA_SIZE_MB": "4",
}
LAYOUT = layer.Layout({**layer.variables(MACHINE), **SIZES})
TOTAL_BYTES = 26 << 20
DEVICE_TYPE = MACHINE
CONFIG = {"RootfsPartA": "/dev/mmcblk0p2"}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "bz2": lambda data: bz2.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "gz": lambda data: gzip.compress(data, 1),
    "zst": lambda data: zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data),
}


def _table() -> str:
    lines = ["label: dos", "unit: sectors"]
    for name, number in sorted(LAYOUT.numbers.items(), key=lambda item: item[1]):
        start, size = LAYOUT.offset(name) // 512, LAYOUT.sizes[name] // 512
        lines.append(f"{number}: start={start}, size={size}, type={'c' if name == 'BOOT' else '83'}")
    return "\n".join(lines) + "\n"


@functools.cache
def _made(config: str) -> Path:
    """The card, made once for a mender.conf; a copy of it is what tests get."""
    folder = Path(tempfile.mkdtemp(prefix="flash-card-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    root = ext4.Files()
    root.text("/etc/mender/mender.conf", config, 0o600)
    root.text("/usr/bin/program", random.Random(7).randbytes(1 << 20), 0o755)
    root.text("/usr/lib/systemd/system/update-wifi@.service", "[Service]\n")
    root.text("/etc/ssh/sshd_config", "HostKey /data/identity/ssh/ssh_host_ed25519_key\n")
    data = ext4.Files()
    data.directory("/mender", 0o700)
    data.text("/mender/device_type", f"device_type={DEVICE_TYPE}\n")
    contents = artifact.Contents(name="release-1", device_types=[DEVICE_TYPE], payload_type=None)
    artifact.write(contents, folder / "bootstrap.mender", artifact.Packing())
    data.text("/mender/bootstrap.mender", (folder / "bootstrap.mender").read_bytes())
    card = folder / "card.wic"
    with open(card, "wb") as file:
        file.truncate(TOTAL_BYTES)
    run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", card], stdin=_table())
    boot = folder / "boot.fat"
    with open(boot, "wb") as file:
        file.truncate(LAYOUT.sizes["BOOT"])
    run(["mkfs.vfat", "--invariant", "-n", "BOOT", boot])
    image.copy_into(card, LAYOUT.offset("BOOT"), boot)
    for slot, files, label in (("A", root, "root"), ("DATA", data, "data")):
        made = ext4.make(folder / slot, files, size_bytes=LAYOUT.sizes[slot], label=label, journal=False)
        image.copy_into(card, LAYOUT.offset(slot), made)
    for offset in LAYOUT.env_offsets:
        with open(card, "r+b") as file:
            file.seek(offset)
            file.write(b"environment of this image")
    return card


def make(target: Path, config: dict[str, object] | None = None) -> Path:
    """A sparse image of a card whose root A is configured so."""
    for program in ("sfdisk", "mkfs.vfat", "mke2fs", "debugfs"):
        need(program)
    image.copy_sparse(_made(json.dumps(config or CONFIG)), target)
    return target


@functools.cache
def packed(kind: str) -> bytes:
    """The card, packed: bz2, xz, gz, zst."""
    content = _made(json.dumps(CONFIG)).read_bytes()
    return PACKERS[kind](content)


@contextmanager
def loop(backing: Path, size_bytes: int = 32 << 20, *options: str) -> Iterator[Path]:
    """A loop device over a file that holds something else. Skips where there are none, fails in CI."""
    if not backing.exists():
        block = random.Random(3).randbytes(1 << 20)
        with open(backing, "wb") as file:
            for _ in range(size_bytes >> 20):
                file.write(block)
    argv = ["losetup", "--find", "--show", *options, str(backing)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = f"no loop devices here: {done.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    device = Path(done.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=False, capture_output=True)
