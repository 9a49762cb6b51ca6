# SPDX-License-Identifier: Apache-2.0
"""Files written for good, and trees removed without following links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from update_agent.files import remove_tree, write


def test_write_sets_content_and_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        write([(str(tmp_path / "file"), b"x" * 100_000), (str(tmp_path / "empty"), b"")], 0o751)
    finally:
        os.umask(before)
    assert (tmp_path / "file").read_bytes() == b"x" * 100_000
    for name in ("file", "empty"):
        assert (tmp_path / name).stat().st_mode & 0o7777 == 0o751


def test_any_number_of_files_is_synced_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    names = [str(tmp_path / f"{number:04d}") for number in range(1500)]
    before = len(os.listdir("/proc/self/fd"))
    write([(name, name.encode()) for name in names])
    assert synced == names
    assert [Path(name).read_text() for name in names] == names
    assert len(os.listdir("/proc/self/fd")) == before


def test_write_neither_replaces_nor_follows(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("there", "link"):
        with pytest.raises(FileExistsError):
            write([(str(tmp_path / name), b"new")])
    assert (tmp_path / "there").read_text() == "old"
    assert not (tmp_path / "elsewhere").exists()


def test_remove_tree_removes_all_kinds_and_follows_none(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("")
    (tree / "a" / "link").symlink_to(outside)
    (tree / "a" / "dangling").symlink_to("nowhere")
    (tree / "a" / "file-link").symlink_to(outside / "keep")
    os.mkfifo(tree / "fifo")
    remove_tree(str(tree))
    assert not tree.exists()
    assert (outside / "keep").exists()


def test_remove_tree_of_what_is_no_directory(tmp_path: Path) -> None:
    remove_tree(str(tmp_path / "missing"))
    (tmp_path / "keep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "keep")
    (tmp_path / "file").write_text("")
    remove_tree(str(tmp_path / "link"))
    remove_tree(str(tmp_path / "file"))
    assert sorted(os.listdir(tmp_path)) == ["keep"]
