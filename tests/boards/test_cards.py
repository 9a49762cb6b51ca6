# SPDX-License-Identifier: Apache-2.0
"""`ota inspect` on the cards of the virtual boards, made from Debian's packages, and on their artifacts.

Nothing is booted: the boards of the other tests show that these cards are good.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.inspect_card import check_against_debugfs

from update_tools.artifact import Contents, Packing, Software, with_software, write
from update_tools.bench import boards, rootfs
from update_tools.bench.qemu import Board
from update_tools.inspect.cli import inspect
from update_tools.inspect.ext4 import Ext4Tree
from update_tools.inspect.source import Opener

pytestmark = pytest.mark.board

# What is right for a test's board, or Debian's own way.
WARNINGS = {
    ("config-no-server", "/etc/mender/mender.conf"),
    ("not-pie", "/usr/bin/busybox"),
    ("not-pie", "/usr/bin/python3.11"),
    ("root-without-password", "/etc/passwd"),
}


@pytest.mark.parametrize("kind", ["virt64", "virt32"])
def test_a_good_card_and_its_artifact(tmp_path: Path, kind: str) -> None:
    row = boards.kind(kind)
    image = rootfs.make_rootfs(tmp_path / "root.ext4", row, version="1")
    card = Board.create(tmp_path / "board", image, kind=kind).disk
    artifact = tmp_path / "release-1.mender"
    contents = Contents("release-1", [row.machine], "rootfs-image", files=[image])
    write(with_software(contents, Software()), artifact, Packing("none"))

    report = _inspect(card, with_artifact=artifact)
    assert _found(report) <= {("warning", *warning) for warning in WARNINGS}
    assert report["board"]["name"] == row.machine
    assert report["artifact"]["slot_bytes"] >= image.stat().st_size
    assert report["environment"]["variables"]["mender_boot_part"] == "2"
    assert len(report["programs"]["files"]) > 40
    assert {file["architecture"] for file in report["programs"]["files"].values()} == {
        {"arm64": "aarch64", "armhf": "armhf"}[row.deb_arch]
    }

    alone = _inspect(artifact)
    assert not alone["errors"]
    assert alone["programs"]["files"] == report["programs"]["files"]
    with open(image, "rb") as file:
        check_against_debugfs(Ext4Tree(file, 0, "root.ext4"), image, tmp_path)


def _inspect(path: Path, **options: Any) -> dict[str, Any]:
    with Opener() as opener:
        return inspect(path, opener, **options)


def _found(report: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(found["severity"], found["name"], found["where"]) for found in report["findings"]}
