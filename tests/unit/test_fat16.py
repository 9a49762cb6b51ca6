# SPDX-License-Identifier: Apache-2.0
"""The FAT16 that boot partitions are filled with, as fsck.vfat and mtools see it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.support.tools import need

from update_agent.errors import PayloadError
from update_agent.fat16 import Fat16

MIB = 1 << 20
FILES = {
    "config.txt": b"arm_64bit=1\n",
    "cmdline.txt": b"root=/dev/mmcblk0p5\n",
    "START.ELF": b"elf" * 7000,
    "Kernel8.img": bytes(range(256)) * 9000,
    "bcm2711-rpi-4-b.dtb": b"dtb",
    "bcm2711-rpi-400.dtb": b"other dtb",
    "empty": b"",
    "exactly-one-cluster.bin": b"c" * 2048,
    "ümläut and blanks and more than 13.txt": b"u",
    "overlays/vc4-kms-v3d.dtbo": b"1",
    "overlays/vc4-kms-v3d-pi4.dtbo": b"2",
    "overlays/deep/er/x.y.z.dtbo": b"3",
    **{f"many/overlay-number-{number}.dtbo": bytes([number]) * number for number in range(120)},
}


@pytest.fixture(autouse=True)
def _tools() -> None:
    for program in ("fsck.vfat", "mcopy"):
        need(program)


def boot(folder: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        path = folder / "boot" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder / "boot")


def image(source: Fat16, path: Path, size: int) -> bytes:
    """The partition after it was filled, over what was there before."""
    buffer = bytearray(77_777)
    made = bytearray()
    while count := source.readinto(memoryview(buffer)):
        made += buffer[:count]
    assert len(made) == source.size <= size
    with path.open("wb") as file:
        file.write(b"\xa5" * min(size, len(made) + MIB))
        file.truncate(size)
        file.seek(0)
        file.write(made)
    return bytes(made)


@pytest.mark.parametrize("size_mib", [8, 31, 32, 100, 1024])
def test_the_tree_is_there_and_sound(tmp_path: Path, size_mib: int) -> None:
    directory = boot(tmp_path, FILES)
    path = tmp_path / "p3"
    image(Fat16(directory, size_mib * MIB, {"cmdline.txt": b"root=/dev/mmcblk0p6\n"}), path, size_mib * MIB)
    fsck = subprocess.run(["fsck.vfat", "-n", path], capture_output=True, text=True, check=False)
    assert (fsck.returncode, fsck.stdout.count("\n")) == (0, 2), fsck.stdout
    out = tmp_path / "out"
    out.mkdir()
    env = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
    subprocess.run(["mcopy", "-s", "-i", path, "::*", out], check=True, capture_output=True, env=env)
    found = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert found == {**FILES, "cmdline.txt": b"root=/dev/mmcblk0p6\n"}


def test_same_files_same_bytes(tmp_path: Path) -> None:
    one, other = (
        image(Fat16(boot(tmp_path / name, FILES), 8 * MIB, {}), tmp_path / "p", 8 * MIB) for name in "ab"
    )
    assert one == other


def test_a_link_is_the_file_that_it_leads_to(tmp_path: Path) -> None:
    directory = boot(tmp_path, {"Image-6.12": b"kernel", "config.txt": b""})
    Path(directory, "kernel8.img").symlink_to("Image-6.12")
    path = tmp_path / "p"
    image(Fat16(directory, 8 * MIB, {}), path, 8 * MIB)
    done = subprocess.run(["mcopy", "-i", path, "::kernel8.img", "-"], capture_output=True, check=True)
    assert done.stdout == b"kernel"


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "gone"])
def test_a_link_that_leads_elsewhere_is_refused(tmp_path: Path, target: str) -> None:
    directory = boot(tmp_path, {"config.txt": b""})
    (tmp_path / "outside").write_text("x")
    Path(directory, "kernel8.img").symlink_to(target)
    with pytest.raises(PayloadError, match=r"leads out of|cannot read .*: No such file"):
        Fat16(directory, 8 * MIB, {})


def test_two_names_that_are_one_are_refused(tmp_path: Path) -> None:
    directory = boot(tmp_path, {"config.txt": b"", "CONFIG.TXT": b""})
    with pytest.raises(PayloadError, match="are one name to FAT"):
        Fat16(directory, 8 * MIB, {})


@pytest.mark.parametrize("name", ["a:b", "ends with a dot.", "q?"])
def test_a_name_that_fat_does_not_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PayloadError, match="has a name that FAT does not have"):
        Fat16(boot(tmp_path, {name: b""}), 8 * MIB, {})


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    directory = boot(tmp_path, {"kernel8.img": bytes(5 * MIB)})
    with pytest.raises(PayloadError, match=r"does not fit into the boot partition: it takes 5\d+ bytes of 4"):
        Fat16(directory, 4 * MIB, {})


@pytest.mark.parametrize("size", [MIB, 4096 * MIB])
def test_a_partition_that_is_no_fat16_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(PayloadError, match="cannot be FAT16"):
        Fat16(boot(tmp_path, {"config.txt": b""}), size, {})


def test_more_names_than_the_first_directory_has(tmp_path: Path) -> None:
    files = {f"a-rather-long-name-{number}.txt": b"" for number in range(200)}
    with pytest.raises(PayloadError, match="fewer files in /boot"):
        Fat16(boot(tmp_path, files), 8 * MIB, {})


def test_a_file_that_shrinks_meanwhile_is_told(tmp_path: Path) -> None:
    directory = boot(tmp_path, {"kernel8.img": b"x" * 5000})
    source = Fat16(directory, 8 * MIB, {})
    Path(directory, "kernel8.img").write_bytes(b"x")
    with pytest.raises(PayloadError, match="ended 4999 bytes before its size"):
        image(source, tmp_path / "p", 8 * MIB)
