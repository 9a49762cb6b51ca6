# SPDX-License-Identifier: Apache-2.0
"""Block maps: those that bmaptool makes, damaged ones, and what is written by them."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tools import need

from update_tools.flash import bmap, plan
from update_tools.flash.bmap import Bmap, Range
from update_tools.flash.errors import FlashError
from update_tools.inspect.disk import Partition

MIB = 1 << 20
TEXT = """<?xml version="1.0" ?>
<bmap version="{version}">
    <ImageSize> {size} </ImageSize><BlockSize> 4096 </BlockSize>
    <ChecksumType> sha256 </ChecksumType>
    <BlockMap>{ranges}</BlockMap>
</bmap>"""


def text(ranges: str, *, version: str = "2.0", size: int = 40960) -> bytes:
    return TEXT.format(version=version, size=size, ranges=ranges).encode()


def one(ranges: str, **more: object) -> Bmap:
    return bmap.parse(text(ranges, **more), "card.bmap")  # type: ignore[arg-type]


@pytest.mark.parametrize("tail", [0, 777])
def test_a_map_of_bmaptool(tmp_path: Path, tail: int) -> None:
    need("bmaptool")
    image = tmp_path / "card.wic"
    with open(image, "wb") as file:
        for position in (0, 3 << 20, (3 << 20) + 4096, 7 << 20):
            file.seek(position)
            file.write(bytes([position >> 20 or 1]) * 4096)
        file.truncate((8 << 20) + tail)
    subprocess.run(["bmaptool", "create", "-o", f"{image}.bmap", image], check=True, capture_output=True)
    found = bmap.load(tmp_path / "card.wic.bmap")
    assert found.image_bytes == image.stat().st_size
    assert [(part.start, part.end) for part in found.ranges] == [
        (0, 4096),
        (3 << 20, (3 << 20) + 8192),
        (7 << 20, (7 << 20) + 4096),
    ]
    content = image.read_bytes()
    for part in found.ranges:
        assert hashlib.sha256(content[part.start : part.end]).hexdigest() == part.checksum
    checker = plan.Checker(found)
    for start in range(0, len(content), 5000):
        checker.feed(content[start : start + 5000])
    checker.end()
    damaged = (tmp_path / "card.wic.bmap").read_bytes().replace(b"> 1792 <", b"> 1793 <")
    with pytest.raises(FlashError, match="its own checksum"):
        bmap.parse(damaged, "card.bmap")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no XML"),
        (b"\xff\xfe\x00", "no XML"),
        (b"<html/>", "version"),
        (text("<Range> 0 </Range>", version="3.0"), "version '3.0'"),
        (text("<Range> 0-x </Range>"), "a range"),
        (text("<Range> 3-2 </Range>"), "out of order"),
        (text("<Range> 0-4 </Range><Range> 4 </Range>"), "out of order"),
        (text("<Range> 10 </Range>"), "behind the image's end"),
        (text("<Range> 0 </Range>", size=0), "an image of 0"),
        (text("<Range> 0 </Range>").replace(b"4096", b"77"), "blocks of 77"),
        (text("<Range> 0 </Range>").replace(b" 4096 ", b" -1 "), "BlockSize is '-1'"),
        (text("<Range> 0 </Range>").replace(b"sha256", b"rot13"), "checksums of kind 'rot13'"),
        (text("<Range> 0 </Range>").replace(b"sha256", b"shake_128"), "checksums of kind"),
        (b'<!DOCTYPE b [<!ENTITY a "aaaa">]><bmap version="2.0">&a;</bmap>', "entities"),
    ],
)
def test_damaged_maps(content: bytes, message: str) -> None:
    with pytest.raises(FlashError, match=message):
        bmap.parse(content, "card.bmap")


@given(st.binary(max_size=300))
def test_anything_else_is_an_error_too(content: bytes) -> None:
    with pytest.raises(FlashError):
        bmap.parse(content, "card.bmap")


def test_the_old_form_with_sha1() -> None:
    digest = hashlib.sha1(bytes(4096), usedforsecurity=False).hexdigest()
    old = text(f'<Range sha1="{digest}"> 0 </Range>', version="1.3")
    found = bmap.parse(old.replace(b"<ChecksumType> sha256 </ChecksumType>", b""), "card.bmap")
    plan.Checker(found).feed(bytes(8192))
    with pytest.raises(FlashError, match="does not fit"):
        plan.Checker(found).feed(b"x" * 8192)


@pytest.mark.parametrize(
    ("image", "map_"),
    [
        ("a.wic", "a.wic.bmap"),
        ("a.wic.bz2", "a.wic.bmap"),
        ("a.wic.zst", "a.wic.zst.bmap"),
        ("a.wic.xz", None),
        ("a.b.wic", None),
    ],
)
def test_the_map_beside(image: str, map_: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.b.bmap").touch()
    if map_:
        (tmp_path / map_).touch()
    found = bmap.beside(tmp_path / image)
    assert (found.name if found else None) == map_


def test_what_a_map_leaves_out_is_written_where_something_old_would_count() -> None:
    found = one("<Range> 0 </Range><Range> 4096-4100 </Range>", size=100 * MIB)
    boot = Partition(1, 8 * MIB, 4 * MIB, "0c")
    slot = Partition(3, 20 * MIB, 16 * MIB, "83")
    extended = Partition(4, 4 * MIB, 90 * MIB, "05")
    written = [(part.start, part.end) for part in plan.ranges(found, [slot, boot, extended], 100 * MIB)]
    assert written == [
        (0, 9 * MIB),  # boot loader and environment, start of the boot partition
        (12 * MIB, 21 * MIB),  # the gap, mapped blocks at 16 MiB in it, start of the empty slot
    ]


def test_without_a_map_all_is_written() -> None:
    assert [(part.start, part.end) for part in plan.ranges(None, [], 77)] == [(0, 77)]


PIECES = st.lists(st.integers(0, 400), max_size=16, unique=True).map(sorted)


@given(PIECES, st.integers(1, 9), st.sampled_from([1, 4, 8]))
def test_windows_cover_the_ranges_and_only_their_blocks(edges: list[int], window: int, block: int) -> None:
    pieces = [Range(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    wanted = {byte for piece in pieces for byte in range(piece.start, piece.end)}
    got: set[int] = set()
    step = window * block
    for start in range(0, 408, step):
        for first, last in plan.within(pieces, start, start + step, block):
            assert start <= first < last <= start + step
            assert first % block == 0
            assert not got & set(range(first, last))
            got |= set(range(first, last))
    assert wanted <= got
    assert {byte // block for byte in got} == {byte // block for byte in wanted}


@given(PIECES, st.integers(1, 50), st.data())
def test_every_change_inside_a_range_is_seen(edges: list[int], step: int, data: st.DataObject) -> None:
    content = bytearray(byte % 251 for byte in range(401))
    pieces = [
        Range(a, b, hashlib.sha256(content[a:b]).hexdigest())
        for a, b in zip(edges[::2], edges[1::2], strict=False)
    ]
    found = Bmap("card.bmap", len(content), "sha256", pieces)

    def check() -> None:
        checker = plan.Checker(found)
        for start in range(0, len(content), step):
            checker.feed(bytes(content[start : start + step]))
        checker.end()

    check()
    place = data.draw(st.integers(0, 400))
    content[place] ^= 1
    if any(piece.start <= place < piece.end for piece in pieces):
        with pytest.raises(FlashError, match="does not fit the image"):
            check()
    else:
        check()


def test_a_map_of_an_image_of_another_size() -> None:
    checker = plan.Checker(one("<Range> 0 </Range>"))
    checker.feed(bytes(4096))
    with pytest.raises(FlashError, match="of 40960 bytes, not 4096"):
        checker.end()
