# SPDX-License-Identifier: Apache-2.0
"""What an image build has deployed: are .wic, .bmap, .ext4 and .mender whole, and do they say the same?"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from update_tools.bench import layer

from .errors import Failed

if TYPE_CHECKING:
    from pathlib import Path

_CHUNK = 1 << 20


class Product:
    """Files of one image in a deploy directory. Raises Failed for one that is not there."""

    __slots__ = ("bmap", "ext4", "mender", "wic")

    def __init__(self, folder: Path | None, image: str) -> None:
        if folder is None:
            raise Failed("nothing was deployed")
        self.wic, self.bmap, self.ext4, self.mender = (
            _file(folder, image, ending) for ending in ("wic", "wic.bmap", "ext4", "mender")
        )


def _file(folder: Path, image: str, ending: str) -> Path:
    found = [path for path in sorted(folder.glob(f"{image}-*.rootfs.{ending}")) if path.is_symlink()]
    if not found:
        raise Failed(f"no {image}-*.rootfs.{ending} was deployed")
    return found[0].resolve()


def inspected(product: Product, machine: str) -> dict[str, Any]:
    """The report of `ota inspect` on card and artifact. Raises Failed if there is an error in it."""
    words = [str(product.wic), "--artifact", str(product.mender), "--machine", machine, "--json"]
    command = [sys.executable, "-m", "update_tools", "inspect", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise Failed(f"ota inspect: {done.stderr.strip()[-300:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    if report["errors"]:
        errors = [finding for finding in report["findings"] if finding["severity"] == "error"]
        said = "; ".join(f"{finding['name']} {finding['where']}" for finding in errors[:3])
        raise Failed(f"ota inspect has {report['errors']} errors: {said}")
    return report


def whole(product: Product, machine: str, scratch: Path) -> None:
    """Slot A is the .ext4, its checksum is the artifact's, and other tools take both. Raises Failed."""
    values = layer.variables(machine)
    layout = layer.Layout(values)
    with open(product.wic, "rb") as card, open(product.ext4, "rb") as rootfs:
        on_card = _digest(card, layout.offset("A"), product.ext4.stat().st_size)
        wanted = _digest(rootfs, 0, product.ext4.stat().st_size)
    if on_card != wanted:
        raise Failed("slot A on the card is not the .ext4")
    read = _run(["mender-artifact", "read", str(product.mender)])
    if wanted not in read:
        raise Failed("the artifact does not have the checksum of the .ext4")
    _run(["mender-artifact", "validate", str(product.mender)])
    copy = scratch / "card"
    try:
        _run(["bmaptool", "-q", "copy", "--bmap", str(product.bmap), str(product.wic), str(copy)])
    finally:
        copy.unlink(missing_ok=True)


def _digest(file: Any, offset: int, size: int) -> str:
    digest = hashlib.sha256()
    file.seek(offset)
    while size and (chunk := file.read(min(size, _CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command[:2])}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout
