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
    """The parts of one limit, in seconds; the largest of them is the limit."""

    def __init__(self, **parts: float) -> None:
        self.parts = parts

    @property
    def wall_s(self) -> float:
        """What an agent that overlaps everything perfectly needs."""
        return max(self.parts.values())


def limit(material: Material, compression: str, target: Path) -> Limit:
    """Measure it, now. `target` is overwritten with the image."""
    size = material.size_bytes
    copy = ["dd", f"if={material.image}", f"of={target}", "bs=1M", "oflag=direct", "conv=fsync,notrunc"]
    if size % (1 << 20):
        copy.remove("oflag=direct")
    parts = {
        "copy": measure(copy).wall_s,
        "sha256": measure(["openssl", "dgst", "-sha256", material.image]).wall_s,
    }
    program = decompressor(compression)
    if program:
        parts[os.path.basename(program[0])] = measure([*program, material.packed(compression)]).wall_s
    return Limit(**parts)
