# SPDX-License-Identifier: Apache-2.0
"""The desk tool as it is typed, `scripts/ota artifact`, beside mender-artifact and what copying takes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.agents import OURS
from tests.bench.limits import decompressor
from tests.bench.report import Row
from tests.bench.run import PATH, measure

if TYPE_CHECKING:
    from tests.bench.image import Material
    from tests.bench.report import Report
    from tests.bench.run import Cost

# What is typed finds the same programs as the shell it is typed into.
ENV = {"PATH": os.environ.get("PATH", PATH)}
OTA = Path(__file__).parents[2] / "scripts/ota"
PEER = "mender-artifact"
_LEVELS = {"none": (), "gzip": (), "zstd": ("--level", "3")}


class Bench:
    """Writes, validates and reads in a folder of memory."""

    def __init__(self, material: Material, folder: Path, report: Report, *, with_peer: bool) -> None:
        self._material = material
        self._folder = folder
        self._report = report
        self._peer = shutil.which(PEER) if with_peer else None
        if with_peer and not self._peer:
            report.notes.append(f"{PEER} is not here: apt-get install {PEER}")

    def run(self) -> None:
        """One round."""
        for compression in ("none", "gzip", "zstd"):
            self._write(compression)
        for compression in ("none", "gzip"):
            self._validate(compression)
        self._read()

    def _write(self, compression: str) -> None:
        case = f"write {compression}"
        image, output = self._material.image, self._folder / "out.mender"
        what = ["-n", "bench", "-t", "bench", "-f", image, "-o", output]
        argv = [OTA, "artifact", "write", "rootfs-image", *what, "--compression", compression]
        self._add(case, OURS, measure([*argv, *_LEVELS[compression]], env=ENV))
        self._report.add(Row("desk", case, "size", "MiB"), OURS, output.stat().st_size / (1 << 20))
        if self._peer and compression != "zstd":
            argv = [self._peer, "--compression", compression, "write", "rootfs-image", *what]
            self._add(case, PEER, measure(argv))
            self._report.add(Row("desk", case, "size", "MiB"), PEER, output.stat().st_size / (1 << 20))
        output.unlink()
        limit = {
            "none": ["cp", image, output],
            "gzip": ["igzip", "-2", "-c", image],
            "zstd": ["zstd", "-3", "-T0", "-qc", image],
        }[compression]
        if shutil.which(str(limit[0])):
            self._add(case, "limit", measure(limit))
        output.unlink(missing_ok=True)

    def _validate(self, compression: str) -> None:
        case, path = f"validate {compression}", self._material.artifact(compression)
        self._add(case, OURS, measure([OTA, "artifact", "validate", path], env=ENV))
        if self._peer:
            self._add(case, PEER, measure([self._peer, "validate", path]))
        digest = measure(["openssl", "dgst", "-sha256", self._material.image])
        program = decompressor(compression)
        unpack = measure([*program, self._material.packed(compression)]) if program else digest
        self._add(case, "limit", max(digest, unpack, key=lambda cost: cost.wall_s))

    def _read(self) -> None:
        path = self._material.artifact("gzip")
        self._add("read", OURS, measure([OTA, "artifact", "read", path], env=ENV))
        if self._peer:
            self._add("read", PEER, measure([self._peer, "read", path]))

    def _add(self, case: str, who: str, cost: Cost) -> None:
        self._report.add(Row("desk", case, "wall", "s"), who, cost.wall_s)
        self._report.add(Row("desk", case, "CPU", "s"), who, cost.cpu_s)
        self._report.add(Row("desk", case, "memory, largest", "MiB"), who, cost.rss_mib)
