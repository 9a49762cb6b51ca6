# SPDX-License-Identifier: Apache-2.0
"""The layer's configuration, read by the real BitBake: every machine in both series, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.layer.bitbake import LAYER, MACHINES, SERIES, Build

from update_tools.bench import layer as bench

INHERIT = 'INHERIT += "update"\n'


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize("machine", MACHINES)
def test_every_machine_in_both_series(tmp_path: Path, machine: str, series: str) -> None:
    """All recipes parse without a message; each is there or says what it needs."""
    answer = Build(tmp_path / "build", machine=machine, series=series).ask({"*": {"values": ["PN"]}})
    assert answer.get("failed") is None
    assert answer["messages"] == []
    assert len(answer["recipes"]) >= 10
    needs_tryboot = answer["recipes"].pop("update-autoboot")  # tests/layer/test_tryboot.py
    assert "UPDATE_BOOTFLOW" in needs_tryboot["skipped"]
    for name, found in answer["recipes"].items():
        assert found.get("values") == {"PN": name}, found


def test_machines_are_those_we_promise() -> None:
    promised = {
        "beaglebone",
        "beaglebone-yocto",
        "qemuarm64",
        "raspberrypi3-64",
        "raspberrypi4-64",
        "raspberrypi5",
    }
    assert promised <= set(MACHINES)


def test_a_machine_without_a_file_has_the_layout_of_all(tmp_path: Path) -> None:
    values = Build(tmp_path / "build", machine="unheard-of").ask()["values"]
    assert values["UPDATE_STORAGE_PART"] == "/dev/mmcblk0p"
    assert values["UPDATE_DEVICE_TYPE"] == "unheard-of"


def test_a_products_local_conf_wins_over_the_machine(tmp_path: Path) -> None:
    conf = f'{INHERIT}UPDATE_ROOTFS_SIZE_MB = "1024"\nUPDATE_CONSOLE = "ttyS9"\n'
    values = Build(tmp_path / "build", machine="raspberrypi5", conf=conf).ask()["values"]
    assert (values["UPDATE_ROOTFS_SIZE_MB"], values["UPDATE_CONSOLE"]) == ("1024", "ttyS9")


def test_nothing_changes_without_inherit(tmp_path: Path) -> None:
    """What yocto-check-layer asks: the layer alone adds no override, no append, nothing else."""
    answer = Build(tmp_path / "build", conf="").ask(
        {
            "*": {
                "flags": ["do_configure[postfuncs", "do_install[postfuncs"],
                "values": ["DEPENDS", "RDEPENDS:update-agent", "RDEPENDS:${PN}"],
            }
        },
        values=["OVERRIDES", "WKS_SEARCH_PATH", "BBPATH"],
    )
    assert answer.get("failed") is None
    assert "update" not in answer["values"]["OVERRIDES"].split(":")
    assert answer["values"]["WKS_SEARCH_PATH"] == answer["values"]["BBPATH"]
    u_boot = answer["recipes"]["u-boot"]
    assert u_boot["flags"] == {"do_configure[postfuncs": None, "do_install[postfuncs": None}
    skipped = {name for name, found in answer["recipes"].items() if "INHERIT" in found.get("skipped", "")}
    assert skipped == {
        "update-agent-conf",
        "update-autoboot",
        "update-boot-script",
        "update-data",
        "update-fw-env-config",
        "update-identity",
        "update-image-dev",
        "update-image-minimal",
        "update-uboot-env",
    }
    for name, found in answer["recipes"].items():  # or a world build finds nothing that provides it
        needs = {word for value in found.get("values", {}).values() for word in (value or "").split()}
        assert not needs & skipped, name


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('UPDATE_UBOOT_ENV_OFFSET_REDUND = "0x402000"', "overlap"),
        ('UPDATE_UBOOT_ENV_OFFSET_REDUND = "0x7fe000"', "after the first partition begins"),
        ('UPDATE_UBOOT_ENV_OFFSET_REDUND = "0x200000"', "which wic refuses"),
        ('UPDATE_UBOOT_ENV_OFFSET = "0x200"', "partition table and boot loader"),
        ('UPDATE_UBOOT_ENV_OFFSET = "0x400200"', "not a multiple of 1 KiB"),
        ('UPDATE_UBOOT_ENV_SIZE = "16K"', '"16K" is not a whole number'),
        ('UPDATE_PART_B = "4"', "files/wic/ab-data.wks.in makes them 1, 2, 3, 4"),
        ('UPDATE_PART_A_HEX = "c"', "is not 2 in hexadecimal"),
        ('UPDATE_BOOTLIMIT = "9"', "not 1 to 8"),
        (
            'UPDATE_BOOTLOADER_FILE = "spl.bin"\nUPDATE_BOOTLOADER_OFFSET = "0x500000"',
            "UPDATE_BOOTLOADER_OFFSET = 0x500000 is not before the environment",
        ),
        (
            'UPDATE_BOOTLOADER_FILE = "spl.bin"\nUPDATE_BOOTLOADER_OFFSET = "0x200"',
            "UPDATE_BOOTLOADER_OFFSET = 0x200 is not a multiple of 1 KiB",
        ),
        ('UPDATE_ROOTFS_SIZE_MB = "0"', "must be more than 0"),
        ('UPDATE_SIGNED = "1"', "UPDATE_SIGNED is 1, but UPDATE_VERIFY_KEYS is not set"),
        ('UPDATE_ARTIFACT_NAME = "two words"', "must be one word"),
        (
            'UPDATE_ROOTFS_SIZE = "512"',
            "UPDATE_ROOTFS_SIZE is not a variable of this layer; UPDATE_ROOTFS_SIZE_MB?",
        ),
    ],
)
def test_a_wrong_fact_stops_the_build(tmp_path: Path, line: str, complaint: str) -> None:
    answer = Build(tmp_path / "build", conf=f"{INHERIT}{line}\n").ask()
    assert complaint in answer["failed"]
    assert "MACHINE virt64 is not set up right" in answer["failed"]


@pytest.mark.parametrize("machine", ["virt64", "virt32", "qemuarm64"])
def test_the_virtual_boards_read_what_bitbake_reads(tmp_path: Path, machine: str) -> None:
    """The bench reads conf/update by itself: it must come to the same values."""
    real = Build(tmp_path / "build", machine=machine).ask()["values"]
    ours = {name: value for name, value in bench.variables(machine).items() if name.startswith("UPDATE_")}
    assert ours == {name: real[name] for name in ours}
    assert len(ours) > 20


def documented() -> dict[str, str]:
    """Variables and what documentation.inc says of each."""
    text = (LAYER / "conf/update/documentation.inc").read_text()
    found = dict(re.findall(r'^(UPDATE_\w+)\[doc\] = "(.*)"$', text, re.MULTILINE))
    assert len(found) == text.count("[doc]") > 30
    return found


def readme() -> dict[str, tuple[str, str]]:
    """README's tables of variables: default and meaning."""
    section = (LAYER / "README.md").read_text().partition("## Variables")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(UPDATE_\w+)` \| (.*?) \| (.*) \|$", section, re.MULTILINE)
    return {name: (default, meaning) for name, default, meaning in rows}


def defaults() -> dict[str, set[str]]:
    """What classes, recipes and conf/update set weakly, machines aside."""
    found: dict[str, set[str]] = {}
    for path in LAYER.rglob("*"):
        if path.suffix in {".bbclass", ".bb", ".inc", ".conf"} and "machine" not in path.parts:
            for name, value in re.findall(r'^(UPDATE_\w+) \?\??= "(.*)"$', path.read_text(), re.MULTILINE):
                found.setdefault(name, set()).add(value)
    return found


def asked_for() -> set[str]:
    """Variables that any file of the layer takes a value of."""
    files = [path for path in LAYER.rglob("*") if path.is_file() and path.suffix not in {".md", ".pyc"}]
    uses = (
        r"\$\{(UPDATE_\w+)\}",
        r"@@(UPDATE_\w+)@@",
        r"(?:getVar|value|values\.get)\(['\"](UPDATE_\w+)",
    )
    return {name for path in files for use in uses for name in re.findall(use, path.read_text())}


INSIDE = re.compile(r"not for a product|Set by layer\.conf|inherits update-template|copied out")
# Too long for a table, or made by an expression: what README says instead.
IN_WORDS = {"UPDATE_STATE_SCRIPTS", "UPDATE_PAUSE_HOOKS", "UPDATE_DATA_MOUNT"}


def test_the_readme_has_every_variable_in_the_words_of_its_documentation() -> None:
    known = documented()
    tables = {name: meaning for name, (_, meaning) in readme().items()}
    assert tables == {name: text for name, text in known.items() if not INSIDE.search(text)}
    inside = (LAYER / "README.md").read_text().partition("### Inside the layer")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(UPDATE_\w+)`", inside)) == set(known) - set(tables)


def test_the_readme_has_the_defaults() -> None:
    given = defaults()
    for name, (cell, _) in readme().items():
        said = {*re.findall(r"`([^`]*)`", cell), *([""] if cell.startswith("empty") else [])}
        if name in IN_WORDS:
            assert name in given, name
        elif len(said) == 1:  # the one of every board; tryboot has others, which its section has
            assert said <= given[name], name
        else:
            assert said == given[name], name


def test_no_variable_is_set_or_used_that_is_not_documented() -> None:
    known = set(documented())
    assert set(defaults()) - known == set()
    assert asked_for() - known == set()
    assert known - asked_for() == set()  # nor is any documented that nothing asks for
