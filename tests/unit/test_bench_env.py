# SPDX-License-Identifier: Apache-2.0
"""Reading a redundant U-Boot environment from a raw card, compared with the field's own mkenvimage."""

from __future__ import annotations

import shutil
import subprocess
import zlib
from pathlib import Path

import pytest

from update_tools.bench import env, layer
from update_tools.bench.tools import BenchError

LAYOUT = layer.Layout(layer.variables("virt64"))


def packed(values: dict[str, str], counter: int) -> bytes:
    text = b"".join(f"{name}={value}\0".encode() for name, value in values.items()) + b"\0"
    text = text.ljust(LAYOUT.env_bytes - 5, b"\xff")
    return zlib.crc32(text).to_bytes(4, "little") + bytes([counter]) + text


def card(path: Path, first: bytes, second: bytes) -> Path:
    with open(path, "wb") as file:
        for offset, copy in zip(LAYOUT.env_offsets, (first, second), strict=True):
            file.seek(offset)
            file.write(copy.ljust(LAYOUT.env_bytes, b"\0"))
    return path


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [(1, 2, "second"), (2, 1, "first"), (255, 0, "second"), (0, 255, "first"), (7, 7, "first")],
)
def test_the_counter_chooses(tmp_path: Path, first: int, second: int, winner: str) -> None:
    disk = card(tmp_path / "disk", packed({"me": "first"}, first), packed({"me": "second"}, second))
    found = env.read(disk, LAYOUT)
    assert found.values["me"] == winner
    assert found.older is not None


def test_a_bad_copy_does_not_count_whatever_its_counter(tmp_path: Path) -> None:
    broken = bytearray(packed({"me": "second"}, 200))
    broken[100] ^= 1
    found = env.read(card(tmp_path / "disk", packed({"me": "first"}, 1), bytes(broken)), LAYOUT)
    assert found.values == {"me": "first"}
    assert found.older is None


def test_values_may_have_equals_signs_and_be_empty(tmp_path: Path) -> None:
    values = {"args": "a=b c=d", "none": ""}
    assert env.read(card(tmp_path / "disk", packed(values, 1), b""), LAYOUT).values == values


@pytest.mark.parametrize(("which", "left"), [("newer", "old"), ("older", "new"), ("both", None)])
def test_tearing(tmp_path: Path, which: env.Which, left: str | None) -> None:
    filler = {f"name{number}": "x" * 60 for number in range(20)}
    disk = card(tmp_path / "disk", packed({**filler, "me": "old"}, 4), packed({**filler, "me": "new"}, 5))
    env.tear(disk, LAYOUT, which)
    found = env.read(disk, LAYOUT)
    if left is None:
        with pytest.raises(BenchError, match="both copies"):
            _ = found.values
    else:
        assert found.values["me"] == left
        assert found.older is None
        with pytest.raises(BenchError, match="no valid older"):
            env.tear(disk, LAYOUT, "older")


@pytest.mark.skipif(shutil.which("mkenvimage") is None, reason="mkenvimage is not installed (u-boot-tools)")
def test_an_image_of_mkenvimage_is_valid(tmp_path: Path) -> None:
    text, made = tmp_path / "text", tmp_path / "image"
    text.write_text("mender_boot_part=2\naltbootcmd=run bootcmd\n")
    subprocess.run(["mkenvimage", "-r", "-s", str(LAYOUT.env_bytes), "-o", made, text], check=True)
    found = env.read(card(tmp_path / "disk", made.read_bytes(), made.read_bytes()), LAYOUT)
    assert found.values == {"mender_boot_part": "2", "altbootcmd": "run bootcmd"}
