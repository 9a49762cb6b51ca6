# SPDX-License-Identifier: Apache-2.0
"""The layer's .wks read and placed as wic does, and a card made of it; what is not understood is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from update_tools.bench import layer, wks
from update_tools.bench.tools import BenchError

MIB = 1 << 20


def placed(*lines: str, table: str = "msdos") -> list[tuple[int, float, float]]:
    """Number, start and size in MiB of each part."""
    card = wks.parse("\n".join([*lines, f"bootloader --ptable {table}"]), "x.wks")
    card.place(len)
    return [(part.number, part.start / MIB, part.size / MIB) for part in card.parts]


def test_parts_follow_each_other_with_their_alignment() -> None:
    assert placed(
        "# a comment",
        'part --source rawcopy --sourceparams="file=env.bin" --ondisk mmcblk0 --no-table --offset 4096K',
        "part /boot --source bootimg-partition --ondisk mmcblk0 --active --offset 8M --fixed-size 5M",
        "part / --ondisk mmcblk0 --fstype=ext4 --align 4096 --fixed-size 1G",
        "part /data --ondisk mmcblk0 --fstype=ext4 --fixed-size 3",
    ) == [(0, 4, 1 / 1024), (1, 8, 5), (2, 16, 1024), (3, 1040, 3)]


def test_a_fifth_partition_makes_the_fourth_and_later_ones_logical() -> None:
    part = "part --ondisk mmcblk0 --fstype=ext4 --align 1024 --fixed-size 1M"
    assert placed(*[part] * 5) == [(1, 1, 1), (2, 2, 1), (3, 3, 1), (5, 5, 1), (6, 7, 1)]
    assert placed(*[part] * 5, table="gpt") == [(n, n, 1) for n in range(1, 6)]


@pytest.mark.parametrize("table", ["msdos", "gpt"])
def test_sfdisk_takes_the_table_as_it_was_placed(tmp_path: Path, table: str) -> None:
    part = "part --ondisk mmcblk0 --fstype=ext4 --align 1024 --label data --fixed-size 1M"
    card = wks.parse("\n".join([*[part] * 6, f"bootloader --ptable {table}"]), "x.wks")
    card.place(lambda name: 0)
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(16 * MIB)
    subprocess.run(["sfdisk", "-q", disk], input=card.partition_table(), text=True, check=True)
    said = subprocess.run(["sfdisk", "--json", disk], capture_output=True, text=True, check=True).stdout
    found = {
        int(p["node"].removeprefix(str(disk))): p for p in json.loads(said)["partitiontable"]["partitions"]
    }
    for part_ in card.parts:
        row = found.pop(part_.number)
        assert (row["start"] * 512, row["size"] * 512) == (part_.start, part_.size)
    assert [row["type"] for row in found.values()] == ([] if table == "gpt" else ["f"])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("part / --ondisk a --fixed-size 1M --exclude-path home", "unrecognized arguments: --exclude-path"),
        ("part / --ondisk a --size 1M", "unrecognized arguments: --size"),
        ("part / --ondisk a", "without --fixed-size"),
        ("part / --ondisk a --fixed-size 1M --source isoimage-isohybrid", "invalid choice"),
        ("part / --ondisk a --fixed-size 1M --fstype=btrfs", "invalid choice"),
        ("part / --ondisk a --fixed-size much", "invalid"),
        ("part / --fixed-size 1M", "--ondisk"),
        ("include common.wks", "'include' is not understood"),
        ("", "describes no partition"),
    ],
)
def test_what_is_not_understood_is_refused(line: str, complaint: str) -> None:
    with pytest.raises(BenchError, match=complaint):
        wks.parse(line, "x.wks")


def test_a_part_on_another_one_is_refused() -> None:
    with pytest.raises(BenchError, match="0x100000 lies on what is before it, up to 0x300000"):
        placed("part / --ondisk a --offset 1M --fixed-size 2M", "part --ondisk a --offset 1M --fixed-size 1M")


def test_a_card_has_what_the_wks_names_in_its_places(tmp_path: Path) -> None:
    (tmp_path / "env.bin").write_bytes(b"environment")
    (tmp_path / "slot.ext4").write_bytes(b"root file system")
    (tmp_path / "rootfs/data/mender").mkdir(parents=True)
    (tmp_path / "rootfs/data/mender/device_type").write_text("device_type=x\n")
    (tmp_path / "boot.scr").write_bytes(b"script")
    card = wks.parse(
        "part --source rawcopy --sourceparams=file=env.bin --ondisk a --no-table --offset 64K\n"
        "part /boot --source bootimg-partition --ondisk a --label BOOT --offset 1M --fixed-size 2M\n"
        "part / --source rawcopy --sourceparams=file=slot.ext4 --ondisk a --fstype=ext4 --fixed-size 1M\n"
        "part --ondisk a --fstype=ext4 --fixed-size 2M\n"
        "part /data --source rootfs --rootfs-dir=rootfs/data --ondisk a --fstype=ext4 --label data"
        " --fixed-size 4M\n",
        "x.wks",
    )
    card.place(lambda name: (tmp_path / name).stat().st_size)
    disk = tmp_path / "disk"
    boot_files = {"boot.scr": tmp_path / "boot.scr"}
    wks.write(card, disk, folder=tmp_path, boot_files=boot_files, size_bytes=card.used_bytes)
    data = disk.read_bytes()
    assert data[64 << 10 :].startswith(b"environment")
    assert data[3 * MIB :].startswith(b"root file system")
    listed = subprocess.run(
        ["mdir", "-b", "-i", f"{disk}@@1M", "::"], capture_output=True, text=True, check=True
    )
    assert listed.stdout.split() == ["::/boot.scr"]
    for offset, label, files in ((4 * MIB, "", []), (6 * MIB, "data", ["mender"])):
        (tmp_path / "part").write_bytes(data[offset : offset + (4 if label else 2) * MIB])
        debugfs = ["/usr/sbin/debugfs", "-R", "ls -p /", tmp_path / "part"]
        rows = subprocess.run(debugfs, capture_output=True, text=True, check=True).stdout.split()
        names = {row.split("/")[5] for row in rows if row.count("/") > 5}
        assert names - {".", "..", "lost+found"} == set(files)
        assert data[offset + 1024 + 0x78 :].startswith(label.encode() or b"\0")
    (tmp_path / "slot.ext4").write_bytes(bytes(MIB + 1))
    with pytest.raises(BenchError, match="its place only 1048576"):
        wks.write(card, disk, folder=tmp_path, boot_files=boot_files, size_bytes=card.used_bytes)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("UPDATE_PART_A", "3", "UPDATE_PART_A is 3, but files/wic/ab-data.wks.in makes it 0x2"),
        (
            "UPDATE_UBOOT_ENV_OFFSET",
            "0x400200",
            "but files/wic/ab-data.wks.in makes it 0x400000",
        ),  # not a KiB
    ],
)
def test_variables_that_the_wks_does_not_follow_are_told(name: str, value: str, complaint: str) -> None:
    with pytest.raises(BenchError, match=complaint):
        layer.Layout({**layer.variables("virt64"), name: value})


def test_a_variable_of_the_wks_that_nobody_sets_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.wks").write_text("part / --ondisk ${UPDATE_NONE}\n")
    with pytest.raises(BenchError, match=r"x\.wks: \$\{UPDATE_NONE\} is not set"):
        layer.rendered("x.wks", {}, tmp_path)
