# SPDX-License-Identifier: Apache-2.0
"""The systems and artifacts that the demo deploys, made with `mender-artifact`, the field's own tool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from update_tools.bench import rootfs
from update_tools.bench.tools import EPOCH, run

if TYPE_CHECKING:
    from update_tools.bench.boards import Kind

SCRIPTS = Path(__file__).parent / "state-scripts"


def make_system(into: Path, kind: Kind, version: str, variant: str = "good") -> Path:
    """A root file system with the demo's Idle, Sync and Download scripts. Seconds; kept if it is there."""
    image = into / f"{version}.ext4"
    files = {f"/etc/mender/scripts/{path.name}": path.read_bytes() for path in (SCRIPTS / "rootfs").iterdir()}
    return rootfs.make_rootfs(image, kind, version=version, variant=variant, extra_files=files)


def make_artifact(image: Path, name: str, device_type: str, *extra: str) -> Path:
    """A rootfs-image artifact with the demo's artifact scripts, and those in the folders `extra`."""
    artifact = image.with_suffix(".mender")
    artifact.unlink(missing_ok=True)
    words: list[str | Path] = ["mender-artifact", "write", "rootfs-image"]
    words += ["--device-type", device_type, "--artifact-name", name, "--file", image]
    for folder in ("artifact", *extra):
        for script in sorted((SCRIPTS / folder).iterdir()):
            words += ["--script", script]
    run([*words, "--output-path", artifact], env={"SOURCE_DATE_EPOCH": str(EPOCH)})
    return artifact
