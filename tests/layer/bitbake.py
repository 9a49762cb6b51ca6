# SPDX-License-Identifier: Apache-2.0
"""A build directory for the real BitBake (a library from PyPI), this layer, and a small stub of OE-core."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import deflate

ROOT = Path(__file__).parents[2]
LAYER = ROOT / "meta-update"
STUB = Path(__file__).parent / "meta-stub"
WORKER = Path(__file__).parent / "worker.py"
SERIES = ("scarthgap", "wrynose")
# Every machine whose facts the layer knows.
MACHINES = tuple(sorted(path.stem for path in (LAYER / "conf/update/machine").glob("*.inc")))

TASKS = ["do_unpack", "do_configure", "do_compile", "do_install"]


class Build:
    """A machine and a series, with lines of local.conf to taste."""

    def __init__(
        self,
        folder: Path,
        *,
        machine: str = "virt64",
        series: str = "wrynose",
        conf: str = 'INHERIT += "update"\n',
        layer: Path = LAYER,
        more_layers: tuple[Path, ...] = (),
    ) -> None:
        self.folder = folder
        self.layer = layer
        (folder / "conf").mkdir(parents=True)
        layers = " ".join(str(path) for path in (STUB, layer, *more_layers))
        (folder / "conf/bblayers.conf").write_text(
            f'BBPATH = "${{TOPDIR}}"\nBBFILES ?= ""\nBBLAYERS = "{layers}"\nSTUB_SERIES = "{series}"\n'
        )
        path = f"{self.native_bin}:{os.environ['PATH']}"
        (folder / "conf/local.conf").write_text(
            f'MACHINE = "{machine}"\nSTUB_PYTHON = "{sys.executable}"\nPATH = "{path}"\n'
            f'STUB_BOOT_FILES:update-u-boot = "${{UPDATE_KERNEL}} ${{UPDATE_DEVICETREE}}"\n{conf}'
        )

    @property
    def native_bin(self) -> Path:
        """Programs that run in the build, once the recipe that makes them has."""
        return self.folder / "tmp/sysroot-native/usr/bin"

    def make_artifact_tool(self) -> Path:
        """Run the recipe of the artifact's writer, as OE-core does before an image.

        Its Python has no packages but those of the native sysroot. libdeflate's source is on the network:
        what is installed here stands for it.
        """
        self.run("update-artifact-tool-native")
        packages = self.native_bin.parent / "lib/packages"
        shutil.copytree(Path(deflate.__file__).parent, packages / "deflate", dirs_exist_ok=True)
        python = self.native_bin / "nativepython3"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} -S -s -P "$@"\n')
        python.chmod(0o755)
        return self.native_bin / "update-artifact-tool"

    def ask(self, recipes: dict[str, dict[str, Any]] | None = None, **values: Any) -> dict[str, Any]:
        """What worker.py answers."""
        answer = self.folder / "answer.json"
        request = {"build": str(self.folder), "answer": str(answer), "recipes": recipes or {}, **values}
        done = subprocess.run(
            [sys.executable, WORKER], input=json.dumps(request), capture_output=True, text=True, check=False
        )
        assert answer.exists(), done.stdout + done.stderr
        result: dict[str, Any] = json.loads(answer.read_text())
        for found in result["recipes"].values():
            if "failed" in found:  # what a shell task said
                found["failed"] += done.stdout + done.stderr
        return result

    def run(self, recipe: str, *tasks: str, values: tuple[str, ...] = ()) -> dict[str, Any]:
        """One recipe through its tasks: those named, or up to do_install. A failure fails the test."""
        wanted = {"tasks": [*(tasks or TASKS)], "values": ["D", "DEPLOYDIR", "B", "WORKDIR", *values]}
        answer = self.ask({recipe: wanted})
        assert "failed" not in answer, answer["failed"]
        result: dict[str, Any] = answer["recipes"][recipe]
        assert "failed" not in result, result["failed"]
        assert "skipped" not in result, result["skipped"]
        return result["values"]

    def expand(self, text: str) -> str:
        """Text with BitBake's ${NAME} and ${@...} expanded, as wic's template is."""
        answer = self.ask(expand=text)
        assert "failed" not in answer, answer["failed"]
        expanded: str = answer["expanded"]
        return expanded
