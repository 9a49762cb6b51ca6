# SPDX-License-Identifier: Apache-2.0
"""Running the host's programs, with an error that says what to install or what the program said."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from update_agent.errors import UpdateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

EPOCH = 1_700_000_000
"""The one time in every file made here (SOURCE_DATE_EPOCH): same input, same bytes."""

_PACKAGES = {
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "aarch64-linux-gnu-readelf": "binutils-aarch64-linux-gnu",
    "arm-linux-gnueabihf-gcc": "gcc-arm-linux-gnueabihf",
    "debugfs": "e2fsprogs",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "dpkg-source": "dpkg-dev",
    "dtc": "device-tree-compiler",
    "mcopy": "mtools",
    "mke2fs": "e2fsprogs",
    "mkenvimage": "u-boot-tools",
    "mkfs.vfat": "dosfstools",
    "mkimage": "u-boot-tools",
    "modinfo": "kmod",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-system-arm": "qemu-system-arm",
    "sfdisk": "fdisk",
}


class BenchError(UpdateError):
    """A virtual board could not be made, or did not do what it should."""


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    log: Path | None = None,
) -> str:
    """Run a program to its end and return its standard output; `env` is added to ours.

    With `log`, both outputs go to that file instead. Raises BenchError with the last lines it said.
    """
    words = [str(word) for word in argv]
    full = {
        **os.environ,
        "LC_ALL": "C.UTF-8",
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "E2FSPROGS_FAKE_TIME": str(EPOCH),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",  # Debian's own programs, never those of a venv
        **(env or {}),
    }
    full.pop("VIRTUAL_ENV", None)
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=full,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        package = _PACKAGES.get(words[0], words[0])
        raise BenchError(f"{words[0]} is not installed", hint=f"apt-get install {package}") from error
    if log:
        log.write_text(done.stdout + done.stderr, errors="replace")
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-8:]
        where = f", see {log}" if log else ""
        raise BenchError(f"{' '.join(words[:3])} exited with {done.returncode}: " + "\n".join(said) + where)
    return done.stdout
