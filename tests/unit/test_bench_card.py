# SPDX-License-Identifier: Apache-2.0
"""File systems and cards made without root: right content, same bytes for the same input."""

from __future__ import annotations

import gzip
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from update_tools.bench import cache, ext4, image, initramfs, layer, wks
from update_tools.bench.tools import BenchError

needs_e2fsprogs = pytest.mark.skipif(
    shutil.which("debugfs", path="/usr/sbin:/sbin") is None, reason="debugfs is not installed (e2fsprogs)"
)
SIZE = 8 << 20


def files() -> ext4.Files:
    made = ext4.Files()
    made.text("/etc/shadow", "secret\n", 0o600)
    made.text("/usr/bin/tool", b"#!/bin/sh\n", 0o755)
    made.link("/bin", "usr/bin")
    made.directory("/tmp", 0o1777)
    return made


def debugfs(disk: Path, request: str) -> str:
    return subprocess.run(
        ["/usr/sbin/debugfs", "-R", request, disk], check=True, capture_output=True, text=True
    ).stdout


@needs_e2fsprogs
def test_a_file_system_holds_what_was_asked(tmp_path: Path) -> None:
    disk = ext4.make(tmp_path / "fs", files(), size_bytes=SIZE, label="root", journal=False)
    assert disk.stat().st_size == SIZE
    assert debugfs(disk, "cat /etc/shadow") == "secret\n"
    assert "Mode:  0600" in debugfs(disk, "stat /etc/shadow")
    assert "Mode:  01777" in debugfs(disk, "stat /tmp")
    assert 'Fast link dest: "usr/bin"' in debugfs(disk, "stat /bin")
    assert "User:     0   Group:     0" in debugfs(disk, "stat /usr/bin/tool")
    subprocess.run(["/usr/sbin/e2fsck", "-fn", disk], check=True, capture_output=True)


@needs_e2fsprogs
def test_the_same_files_make_the_same_bytes(tmp_path: Path) -> None:
    first = ext4.make(tmp_path / "1", files(), size_bytes=SIZE, label="root", journal=True)
    backwards = ext4.Files()
    backwards.nodes = dict(reversed(files().nodes.items()))
    second = ext4.make(tmp_path / "2", backwards, size_bytes=SIZE, label="root", journal=True)
    assert first.read_bytes() == second.read_bytes()


@needs_e2fsprogs
def test_too_much_for_the_size_is_an_error(tmp_path: Path) -> None:
    made = files()
    made.text("/big", bytes(range(256)) * (SIZE // 256))
    with pytest.raises(BenchError, match="could not fill"):
        ext4.make(tmp_path / "fs", made, size_bytes=SIZE, label="root", journal=False)


@pytest.mark.parametrize("path", ["relative", "/a/../b", '/quo"te'])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(BenchError):
        ext4.Files().text(path, "")


def test_the_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    made = initramfs.cpio(
        [("d", stat.S_IFDIR | 0o755, b"", (0, 0)), ("d/f", stat.S_IFREG | 0o640, b"abc", (0, 0))]
    )
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed")
    subprocess.run(["cpio", "-id", "--quiet"], cwd=tmp_path, input=made, check=True)
    assert (tmp_path / "d/f").read_bytes() == b"abc"
    assert stat.S_IMODE((tmp_path / "d/f").stat().st_mode) == 0o640
    assert gzip.compress(made, mtime=0) == gzip.compress(made, mtime=0)


def small_layout() -> layer.Layout:
    values = layer.variables("virt64")
    return layer.Layout({**values, "UPDATE_ROOTFS_SIZE_MB": "1", "UPDATE_DATA_SIZE_MB": "1"})


def test_landed_counts_what_proves_something(tmp_path: Path) -> None:
    layout = small_layout()
    slot = tmp_path / "slot"
    full, zero = b"\x55" * image.CHUNK, bytes(image.CHUNK)
    slot.write_bytes(full + zero + full + zero * 13)
    disk = tmp_path / "disk"
    with open(disk, "wb") as file:
        file.truncate(layout.total_bytes)
    assert image.landed(disk, layout, "B", slot) == (0, 2 * image.CHUNK)
    wks.copy_into(disk, layout.offset("B"), slot)
    assert image.landed(disk, layout, "B", slot) == (2 * image.CHUNK, 2 * image.CHUNK)
    assert image.landed(disk, layout, "A", slot)[0] == 0
    assert image.allocated_bytes(disk) <= 3 * image.CHUNK  # zeros stay holes


def test_a_slot_refuses_a_larger_image(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(BenchError, match="only 1048576"):
        image.write_slot(tmp_path / "disk", small_layout(), "A", large)


def test_partitions_are_where_the_layout_says(tmp_path: Path) -> None:
    layout = layer.Layout(layer.variables("virt64"))
    lines = layout.card.partition_table().splitlines()
    assert f"1: start=16384, size={layout.sizes['BOOT'] // 512}, type=c, bootable" in lines
    assert f"3: start={layout.offset('B') // 512}, size={layout.sizes['B'] // 512}, type=83" in lines


def test_a_broken_make_leaves_nothing_and_a_good_one_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("META_UPDATE_CACHE", str(tmp_path))
    calls = []

    def make(into: Path) -> None:
        calls.append(into)
        (into / "part").write_text("x")
        if len(calls) == 1:
            raise BenchError("broken")

    with pytest.raises(BenchError):
        cache.made("kind", "name", make)
    assert not (tmp_path / "kind/name").exists()
    assert cache.made("kind", "name", make) == cache.made("kind", "name", make)
    assert len(calls) == 2
