# SPDX-License-Identifier: Apache-2.0
"""What no agent can beat here and now: copying with fsync, SHA-256, the fastest decompressor alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.run import measure

if TYPE_CHECKING:
    from tests.bench.image import Material
    from tests.bench.run import Cost

# Fastest first. Each writes to stdout, which is /dev/null.
DECOMPRESSORS = {
    "gzip": (["igzip", "-dc"], ["pigz", "-dc"], ["gzip", "-dc"]),
    "zstd": (["zstd", "-dcq"], ["unzstd", "-dcq"]),
    "xz": (["xz", "-dcq", "--memlimit=1GiB"],),
}


def decompressor(compression: str) -> list[str] | None:
    """The fastest one installed for this compression; None for none."""
    for argv in DECOMPRESSORS.get(compression, ()):
        if shutil.which(argv[0]):
            return list(argv)
    return None


class Limit:
    """The parts of one limit: the slowest of them, or all their work on all processors, whichever is more.

    Where each part is fast, the second counts: two processors cannot do three things at once.
    """

    def __init__(self, **parts: Cost) -> None:
        self.parts = parts

    @property
    def wall_s(self) -> float:
        """What an agent that overlaps everything perfectly needs."""
        slowest = max(part.wall_s for part in self.parts.values())
        return max(slowest, sum(part.cpu_s for part in self.parts.values()) / (os.cpu_count() or 1))


def limit(material: Material, compression: str, target: Path) -> Limit:
    """Measure it, now. `target` is overwritten with the image."""
    size = material.size_bytes
    copy = ["dd", f"if={material.image}", f"of={target}", "bs=1M", "oflag=direct", "conv=fsync,notrunc"]
    if size % (1 << 20):
        copy.remove("oflag=direct")
    parts = {
        "copy": measure(copy),
        "sha256": measure(["openssl", "dgst", "-sha256", material.image]),
    }
    program = decompressor(compression)
    if program:
        parts[os.path.basename(program[0])] = measure([*program, material.packed(compression)])
    return Limit(**parts)
