# SPDX-License-Identifier: Apache-2.0
"""The board that docs/new-board.md adds: its boot loader stands raw on the card, its lines in the guide."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.layer.bitbake import LAYER, SERIES, Build

from update_tools.bench import wks
from update_tools.bench.tools import BenchError

MACHINE = "orange-pi-pc"
FACTS = (LAYER / f"conf/update/machine/{MACHINE}.inc").read_text()


def card(build: Build) -> wks.Card:
    return wks.parse(build.expand((LAYER / "files/wic/ab-data.wks.in").read_text()), "wks")


@pytest.mark.parametrize("series", SERIES)
def test_the_boot_loader_is_where_the_rom_looks(tmp_path: Path, series: str) -> None:
    made = card(Build(tmp_path / "build", machine=MACHINE, series=series))
    made.place(lambda _: 64 << 10)
    first = made.parts[0]
    assert (first.file, first.start, first.is_in_table) == ("u-boot-sunxi-with-spl.bin", 8 << 10, False)
    assert made.table == "msdos"  # a GPT would lie in its way
    assert [part.mountpoint for part in made.parts if part.is_in_table] == ["/boot", "/", "", "/data"]


def test_a_boot_loader_that_outgrows_its_room_is_refused(tmp_path: Path) -> None:
    build = Build(tmp_path / "build", machine=MACHINE)
    room = (4 << 20) - (8 << 10)  # up to the environment
    card(build).place(lambda file: room if file.startswith("u-boot-sunxi") else 64 << 10)
    with pytest.raises(BenchError, match="lies on what is before it"):
        card(build).place(lambda file: room + 1024 if file.startswith("u-boot-sunxi") else 64 << 10)


def test_other_boards_have_none(tmp_path: Path) -> None:
    first = card(Build(tmp_path / "build", machine="raspberrypi4-64")).parts[0]
    assert Path(first.file).name == "update-uboot-env.bin"


def test_another_layers_choice_of_wks_does_not_count(tmp_path: Path) -> None:
    """meta-sunxi sets WKS_FILES, which OE-core reads before WKS_FILE."""
    conf = 'INHERIT += "update"\nWKS_FILES = "sunxi-sdcard-image.wks.in"\n'
    build = Build(tmp_path / "build", machine=MACHINE, conf=conf)
    found = build.ask({"update-image-minimal": {"values": ["WKS_FILES", "IMAGE_BOOT_FILES", "UBOOT_ENV"]}})
    assert found["recipes"]["update-image-minimal"]["values"] == {
        "WKS_FILES": "ab-data.wks.in",
        "IMAGE_BOOT_FILES": "boot.scr",
        "UBOOT_ENV": "",
    }


def test_the_guide_has_the_reason_for_each_line() -> None:
    guide = (LAYER / "docs/new-board.md").read_text()
    names = re.findall(r"^([A-Z][\w:]*)", FACTS, re.MULTILINE)
    assert len(names) > 10
    for name in names:
        assert name in guide or f"`{name.removeprefix('UPDATE')}`" in guide, name
    for value in re.findall(r'^UPDATE_BOOTLOADER_\w+ \?= "(.*)"', FACTS, re.MULTILINE):
        assert f'"{value}"' in guide
