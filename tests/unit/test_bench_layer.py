# SPDX-License-Identifier: Apache-2.0
"""The bench reads the layer's variables as BitBake would, and refuses what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from update_tools.bench import boards, layer
from update_tools.bench.tools import BenchError


def make_layer(root: Path, layout: str, machine: str = "") -> Path:
    (root / "conf/update/machine").mkdir(parents=True)
    (root / "conf/update/layout.inc").write_text(layout)
    (root / "conf/update/machine/m.inc").write_text(machine)
    return root


@pytest.mark.parametrize(
    ("layout", "machine", "value"),
    [
        ('A ??= "1"', "", "1"),
        ('A ??= "1"\nA ??= "2"', "", "2"),  # the last weak one
        ('A ??= "1"', 'A ?= "2"', "2"),
        ('A ?= "1"', 'A ?= "2"', "1"),  # the first soft one
        ('A = "1"', 'A ?= "2"', "1"),
        ('A ??= "x${B}"\nB ?= "${C}y"', 'C = "z"', "xzy"),  # expanded at the end
        ('A ??= "${MACHINE} ${other}"', "", "m ${other}"),  # not ours: left alone
        ("A ??= 'it is \"quoted\"'", "", 'it is "quoted"'),
        ('A ??= "one \\\n  two"', "", "one    two"),
        ('# A = "no"\nA[doc] = "no"\nA ?= "yes"', "", "yes"),
    ],
)
def test_assignments(tmp_path: Path, layout: str, machine: str, value: str) -> None:
    assert layer.variables("m", make_layer(tmp_path, layout, machine))["A"] == value


def test_a_machine_may_require_a_family(tmp_path: Path) -> None:
    root = make_layer(tmp_path, 'A ??= "1"', "require conf/update/machine/family.inc")
    (root / "conf/update/machine/family.inc").write_text('A ?= "family"\n')
    assert layer.variables("m", root)["A"] == "family"


@pytest.mark.parametrize(
    "layout", ["do_install() {", 'A ?= "${B}"\nB ?= "${A}"', "require conf/update/none.inc"]
)
def test_what_it_does_not_understand_is_refused(tmp_path: Path, layout: str) -> None:
    with pytest.raises(BenchError):
        layer.variables("m", make_layer(tmp_path, layout))


def test_an_unset_placeholder_is_named() -> None:
    with pytest.raises(BenchError, match=r"x\.in: @@UPDATE_NONE@@"):
        layer.fill("@@UPDATE_NONE@@", {}, "x.in")


@pytest.mark.parametrize("kind", boards.BOARDS.values(), ids=list(boards.BOARDS))
def test_every_board_fills_every_template(kind: boards.Kind) -> None:
    values = layer.variables(kind.machine)
    templates = [layer.BOOT_SCRIPT, layer.FW_ENV_CONFIG, layer.FIRST_ENVIRONMENT]
    templates += [f"{layer.FRAGMENTS}/{name}" for name in kind.fragments]
    for template in templates:
        text = layer.filled(template, values)
        assert "@@UPDATE" not in text
    layout = layer.Layout(values)
    assert layout.offset("BOOT") == layout.first_bytes
    assert layout.offset("B") == layout.offset("A") + layout.sizes["A"]
    assert layout.offset("DATA") + layout.sizes["DATA"] <= layout.total_bytes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("UPDATE_UBOOT_ENV_OFFSET_REDUND", "0x401000"),  # overlaps the first copy
        ("UPDATE_UBOOT_ENV_OFFSET", "0x1000"),  # where boot loaders live
        ("UPDATE_UBOOT_ENV_OFFSET_REDUND", "0x7fe000"),  # runs into the first partition
        ("UPDATE_PART_DATA", "5"),
        ("UPDATE_BOOTLIMIT", "9"),
    ],
)
def test_a_layout_that_cannot_work_is_refused(name: str, value: str) -> None:
    values = {**layer.variables("virt64"), name: value}
    with pytest.raises(BenchError):
        layer.Layout(values)
