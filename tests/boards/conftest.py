# SPDX-License-Identifier: Apache-2.0
"""Virtual boards for tests. Each test makes its own; root file systems are made once per session."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from update_tools.bench import boards, rootfs
from update_tools.bench.qemu import Board

KIND = "virt64"
Images = Callable[..., Path]
NewBoard = Callable[..., Board]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """`images("2", "panic")`: the root file system of a version, in one of rootfs.VARIANTS."""
    row = boards.kind(KIND)
    if shutil.which(row.qemu[0]) is None:
        pytest.skip(f"{row.qemu[0]} is not installed (apt-get install qemu-system-arm)")
    place = tmp_path_factory.mktemp("images")

    def image(version: str, variant: str = "good") -> Path:
        made = place / f"{version}-{variant}.ext4"
        return made if made.exists() else rootfs.make_rootfs(made, row, version=version, variant=variant)

    return image


@pytest.fixture
def new_board(tmp_path: Path, images: Images) -> Iterator[NewBoard]:
    """`new_board(slot_a=..., slot_b=..., settings=...)`: a board that is off; version 1 is in A by default.

    Its power is cut after the test, and what its console said last is shown if the test fails.
    """
    made: list[Board] = []

    def board(slot_a: Path | None = None, **options: Any) -> Board:
        made.append(Board.create(tmp_path / f"board{len(made)}", slot_a or images("1"), kind=KIND, **options))
        return made[-1]

    yield board
    for old in made:
        if old.is_running():
            old.power_cut()
        if old.console.log.exists():
            print(f"--- console of {old.directory.name}, last lines")
            print("\n".join(old.console.log.read_text(errors="replace").splitlines()[-30:]))
        shutil.rmtree(old.directory)


@pytest.fixture
def board(new_board: NewBoard) -> Board:
    """A board with version 1 in slot A, booted."""
    made = new_board()
    made.boot()
    return made
