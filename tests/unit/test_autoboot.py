# SPDX-License-Identifier: Apache-2.0
"""autoboot.txt on real FAT partitions, made by mkfs.vfat and mtools; read back by mtools and fsck.vfat."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.support.tools import need

from update_agent import autoboot
from update_agent.autoboot import Autoboot
from update_agent.errors import BootloaderError
from update_tools.conform.pi import AUTOBOOT, Pi

SWAPPED = AUTOBOOT.replace("=2", "=x").replace("=3", "=2").replace("=x", "=3")


@pytest.fixture
def pi(tmp_path: Path) -> Pi:
    for program in ("mkfs.vfat", "mcopy"):
        need(program)
    return Pi(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        AUTOBOOT,
        "tryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3",
        "# ours\r\n[all]\r\ntryboot_a_b=1\r\nboot_partition = 2 \r\n[tryboot]\r\nboot_partition=3\r\n",
        "[all]\ntryboot_a_b=1\nboot_partition=2\n[none]\nboot_partition=9\n[tryboot]\nboot_partition=3\n",
        "[tryboot]\nboot_partition=3\n[ALL]\nboot_partition=2\ntryboot_a_b=1\nother=2\n",
    ],
)
def test_both_partitions_are_found_and_exchanged(text: str) -> None:
    found = Autoboot(text, "here")
    assert (found.default, found.other) == ("2", "3")
    swapped = found.swapped()
    again = Autoboot(swapped, "here")
    assert (again.default, again.other) == ("3", "2")
    assert again.swapped() == text
    assert sum(a != b for a, b in zip(text, swapped, strict=True)) == 2


def test_numbers_of_different_length_keep_the_length() -> None:
    text = "[all]\nboot_partition=2\ntryboot_a_b=1\n[tryboot]\nboot_partition=11\n"
    swapped = Autoboot(text, "here").swapped()
    assert swapped == "[all]\nboot_partition=11\ntryboot_a_b=1\n[tryboot]\nboot_partition=2\n"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "no tryboot_a_b=1"),
        ("[all]\nboot_partition=2\n[tryboot]\nboot_partition=3\n", "no tryboot_a_b=1"),
        ("[tryboot]\ntryboot_a_b=1\n[all]\nboot_partition=2\n", "no tryboot_a_b=1"),
        ("tryboot_a_b=1\nboot_partition=2\n", r"no boot_partition=NUMBER in \[tryboot\]"),
        ("tryboot_a_b=1\n[tryboot]\nboot_partition=3\n", r"no boot_partition=NUMBER in \[all\]"),
        ("tryboot_a_b=1\nboot_partition=two\n[tryboot]\nboot_partition=3\n", "no boot_partition=NUMBER"),
        ("tryboot_a_b=1\nboot_partition=\n[tryboot]\nboot_partition=3\n", "no boot_partition=NUMBER"),
        (AUTOBOOT + "boot_partition=4\n", r"boot_partition stands twice in \[tryboot\]"),
        (AUTOBOOT.replace("=3", "=2"), "names partition 2 twice"),
    ],
)
def test_what_could_be_understood_otherwise_is_refused(text: str, wrong: str) -> None:
    with pytest.raises(BootloaderError, match=wrong) as caught:
        Autoboot(text, "here")
    assert "it is not touched" in caught.value.hint


@pytest.mark.parametrize("fat", [12, 16, 32])
def test_one_sector_is_written(pi: Pi, fat: int) -> None:
    pi.flash(fat=fat)
    for number in range(20):  # other files in its directory; with FAT32 more than a cluster of them
        pi.put("1", f"a long name {number}.txt", b"x" * 600)
    path = pi.part("1")
    assert (found := autoboot.load(path)).text == AUTOBOOT
    assert (found.default, found.other) == ("2", "3")
    before = Path(path).read_bytes()
    autoboot.swap(path)
    after = Path(path).read_bytes()
    assert len(before) == len(after)
    sectors = range(0, len(before), 512)
    changed = [at for at in sectors if before[at : at + 512] != after[at : at + 512]]
    assert len(changed) == 1
    assert pi.get("1", "autoboot.txt") == SWAPPED.encode()
    fsck = subprocess.run(["fsck.vfat", "-n", path], capture_output=True, text=True, check=False)
    assert fsck.returncode == 0, fsck.stdout
    autoboot.swap(path)
    assert Path(path).read_bytes() == before


def test_a_deleted_one_is_not_found(pi: Pi) -> None:
    pi.flash()
    subprocess.run(["mdel", "-i", pi.part("1"), "::autoboot.txt"], check=True)
    with pytest.raises(BootloaderError, match=r"has no autoboot\.txt"):
        autoboot.load(pi.part("1"))


@pytest.mark.parametrize("text", ["x" * 513, "nonsense", AUTOBOOT.replace("tryboot_a_b=1", "tryboot_a_b=0")])
def test_a_broken_one_is_told_and_never_written(pi: Pi, text: str) -> None:
    pi.flash(autoboot=text)
    before = Path(pi.part("1")).read_bytes()
    for work in (autoboot.load, autoboot.swap):
        with pytest.raises(BootloaderError, match=r"autoboot\.txt"):
            work(pi.part("1"))
    assert Path(pi.part("1")).read_bytes() == before


@pytest.mark.parametrize("content", [b"", bytes(4096), os.urandom(4096)])
def test_no_fat_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p1"
    path.write_bytes(content)
    with pytest.raises(BootloaderError, match="has no FAT file system"):
        autoboot.load(str(path))


def test_no_partition(tmp_path: Path) -> None:
    with pytest.raises(BootloaderError, match=r"cannot read autoboot\.txt on .*: No such file"):
        autoboot.load(str(tmp_path / "p1"))


@pytest.mark.parametrize("fat", [12, 16, 32])
def test_damaged_tables_end_in_an_error(pi: Pi, fat: int) -> None:
    """Every byte of the boot sector that is used, at every extreme: an error, or what was there."""
    pi.flash(fat=fat)
    path = Path(pi.part("1"))
    with path.open("r+b") as file:
        for at in (*range(11, 24), *range(32, 48)):
            file.seek(at)
            was = file.read(1)
            for value in (0, 1, 0x7F, 0xFF):
                file.seek(at)
                file.write(bytes([value]))
                file.flush()
                try:
                    assert autoboot.load(str(path)).text == AUTOBOOT
                except BootloaderError:
                    pass
            file.seek(at)
            file.write(was)
