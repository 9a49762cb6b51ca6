# SPDX-License-Identifier: Apache-2.0
"""`ota inspect` and images that are broken or made to deceive: an answer always, and bounded memory.

Whatever the bytes: a report, or InspectError (ValueError where a section makes a finding of it); no other
exception, no endless loop, no memory beyond a few times the image.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
import tracemalloc
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.inspect_card import (
    HARDENED,
    MIB,
    OFFSETS,
    Card,
    boot_script,
    devicetree,
    missing_tools,
    program,
)

from update_tools.bench.tools import run
from update_tools.inspect import boot_script as script_reader
from update_tools.inspect import uboot_env
from update_tools.inspect.cli import inspect
from update_tools.inspect.disk import Disk
from update_tools.inspect.dtb import Devicetree
from update_tools.inspect.elf import Elf
from update_tools.inspect.ext4 import Ext4Tree
from update_tools.inspect.fat import FatTree
from update_tools.inspect.source import Opener
from update_tools.inspect.tree import InspectError, Tree

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(
    bool(missing_tools()) and "CI" not in os.environ, reason=f"not installed: {', '.join(missing_tools())}"
)

MEMORY_BYTES = 48 * MIB


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Small file systems with a bit of everything."""
    top = tmp_path_factory.mktemp("made")
    files = top / "files"
    (files / "etc/deep").mkdir(parents=True)
    (files / "usr").mkdir()
    for size in (10, 2000, 30_000):
        (files / f"etc/{size}").write_bytes(bytes(range(250)) * (size // 250 + 1))
    with open(files / "usr/pieces", "wb") as file:
        for number in range(12):
            file.seek(number * 8192)
            file.write(b"piece")
    (files / "etc/link").symlink_to("deep/../" * 10)
    found = {}
    for name, words in (
        ("ext4", "-t ext4 -b 1024 -O ^has_journal,inline_data -I 256 -N 32"),
        ("ext2", "-t ext2 -b 1024 -N 32"),
    ):
        image = top / name
        image.write_bytes(bytes(512 * 1024))
        run(["mke2fs", "-q", "-F", *words.split(), "-d", files, image])
        found[name] = image.read_bytes()
    image = top / "fat"
    image.write_bytes(bytes(512 * 1024))
    run(["mkfs.vfat", "--invariant", "-F12", image])
    run(["mcopy", "-s", "-i", image, files / "etc", files / "usr", "::"])
    found["fat"] = image.read_bytes()
    return found


def read_all(tree: Tree) -> int:
    """Everything that a report might read."""
    return sum(len(tree.content(entry, 1 << 20)) for entry in tree.entries.values() if entry.is_file)


def ext4(data: bytes) -> Ext4Tree:
    return Ext4Tree(io.BytesIO(data), 0, "image")


def changed(data: bytes, changes: list[tuple[int, int]], *, areas: list[range]) -> bytes:
    """Words of a file system replaced, in the places where its structure is."""
    places = [at for area in areas for at in area]
    copy = bytearray(data)
    for place, value in changes:
        at = places[place % len(places)]
        copy[at : at + 4] = struct.pack("<I", value)[: len(copy) - at]
    return bytes(copy)


# Small numbers and counts are more cruel than noise.
VALUES = st.one_of(
    st.integers(0, 600),
    st.sampled_from([0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0xF30A, 0x1F30A, 0x4000]),
    st.integers(0, 2**32 - 1),
)
CHANGES = st.lists(st.tuples(st.integers(0, 2**20), VALUES), min_size=1, max_size=8)


@settings(max_examples=250)
@given(kind=st.sampled_from(["ext4", "ext2"]), changes=CHANGES)
def test_a_changed_ext4(made: dict[str, bytes], kind: str, changes: list[tuple[int, int]]) -> None:
    data = changed(
        made[kind], changes, areas=[range(1024, 1400, 2), range(2048, 40_000, 2), range(40_000, 200_000, 4)]
    )
    with bounded():
        try:
            tree = ext4(data)
        except InspectError:
            return
        assert len(tree.entries) < 10_000
        read_all(tree)


@settings(max_examples=150)
@given(changes=CHANGES)
def test_a_changed_fat(made: dict[str, bytes], changes: list[tuple[int, int]]) -> None:
    data = changed(made["fat"], changes, areas=[range(90), range(512, 4096), range(4096, 30_000)])
    with bounded():
        try:
            tree = FatTree(io.BytesIO(data), 0, "image")
        except InspectError:
            return
        read_all(tree)


class bounded:  # noqa: N801
    """Fails when more memory was in use at once than a report of a small image may take."""

    def __enter__(self) -> None:
        tracemalloc.start()

    def __exit__(self, *_: object) -> None:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MEMORY_BYTES


def inode(data: bytes, number: int) -> int:
    """Where an inode is."""
    (table,) = struct.unpack_from("<I", data, 2048 + 8)
    (size,) = struct.unpack_from("<H", data, 1024 + 0x58)
    return table * 1024 + (number - 1) * size


def of(data: bytes, path: str) -> int:
    tree = ext4(data)
    return inode(data, tree._numbers[path])


def put(data: bytes, at: int, layout: str, *values: int) -> bytes:
    copy = bytearray(data)
    struct.pack_into(layout, copy, at, *values)
    return bytes(copy)


def extents_in_circles(data: bytes) -> bytes:
    """A file whose tree of extents is a block that names itself 84 times."""
    block = 300
    at = of(data, "/usr/pieces")
    data = put(data, at + 0x20, "<I", 0x80000)
    data = put(data, at + 0x28, "<HHHHI", 0xF30A, 1, 4, 4, 0)
    data = put(data, at + 0x28 + 12, "<IIHH", 0, block, 0, 0)
    node = struct.pack("<HHHHI", 0xF30A, 84, 84, 3, 0) + struct.pack("<IIHH", 0, block, 0, 0) * 84
    return data[: block * 1024] + node + data[block * 1024 + len(node) :]


def pointers_in_circles(data: bytes) -> bytes:
    """A file whose triple indirect block is full of itself: 16 million pointers."""
    block = 300
    data = put(data, of(data, "/usr/pieces") + 0x28 + 14 * 4, "<I", block)
    return data[: block * 1024] + struct.pack("<I", block) * 256 + data[(block + 1) * 1024 :]


def huge_file(data: bytes) -> bytes:
    """A file of 16 TiB - 1."""
    at = of(data, "/etc/30000")
    return put(put(data, at + 4, "<I", 0xFFFFFFFF), at + 0x6C, "<I", 0xFFF)


def directory_of_its_parent(data: bytes) -> bytes:
    """/etc/deep is the block of /, so that it is below itself for ever."""
    root, deep = inode(data, 2), of(data, "/etc/deep")
    return data[: deep + 0x28] + data[root + 0x28 : root + 0x64] + data[deep + 0x64 :]


def files_of_the_same_blocks(data: bytes) -> bytes:
    """Two files of 400 of the 512 blocks."""
    for path in ("/usr/pieces", "/etc/30000"):
        at = of(data, path)
        data = put(data, at + 0x20, "<I", 0x80000)
        data = put(data, at + 0x28, "<HHHHIIHHI", 0xF30A, 1, 4, 0, 0, 0, 400, 0, 100)
    return data


def name_that_climbs(data: bytes) -> bytes:
    assert data.count(b"2000") == 1
    return data.replace(b"2000", b"../x")


@pytest.mark.parametrize(
    ("kind", "forge", "told"),
    [
        ("ext4", extents_in_circles, "runs in circles"),
        ("ext2", pointers_in_circles, "runs in circles"),
        ("ext2", directory_of_its_parent, "in two places"),
        ("ext4", files_of_the_same_blocks, "belongs to other files"),
        ("ext2", name_that_climbs, "a name that cannot be one"),
        ("ext4", lambda data: put(data, 1024, "<I", 1), "no inode"),
        ("ext4", lambda data: put(data, 1024 + 0x28, "<I", 0), "impossible sizes"),
        ("ext4", lambda data: put(data, inode(data, 2), "<H", 0x81A4), "no root directory"),
        ("ext4", lambda data: put(data, of(data, "/etc/30000") + 0x28, "<H", 0), "tree of extents is broken"),
    ],
)
def test_a_forged_ext4(made: dict[str, bytes], kind: str, forge: Callable[[bytes], bytes], told: str) -> None:
    data = forge(made[kind])
    assert data != made[kind]
    with bounded():
        try:
            tree = ext4(data)
            said = "; ".join(why for _, why in tree.damage)
            read_all(tree)
        except InspectError as error:
            said = error.message
    assert told in said


def test_a_huge_file_takes_the_memory_that_is_asked_for(made: dict[str, bytes]) -> None:
    tree = ext4(huge_file(made["ext4"]))
    with bounded():
        assert len(tree.content(tree.entries["/etc/30000"], MIB)) == MIB
        with tree.open(tree.entries["/etc/30000"]) as file:
            file.seek(1 << 40)
            assert file.read(10) == bytes(10)


def test_one_damaged_file_does_not_hide_the_others(made: dict[str, bytes]) -> None:
    data = put(made["ext4"], of(made["ext4"], "/etc/30000") + 0x28, "<H", 0)
    tree = ext4(data)
    assert [path for path, _ in tree.damage] == ["/etc/30000"]
    assert tree.read("/etc/2000") == ext4(made["ext4"]).read("/etc/2000")
    assert tree.read("/etc/30000") == b""


# Tables, environments, scripts, device trees, programs


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Card().make(tmp_path_factory.mktemp("card"))


@settings(max_examples=40)
@given(
    at=st.integers(446, 509),
    value=st.integers(0, 2**32 - 1),
    scheme=st.integers(0, 0xFF),
    count=st.integers(0, 2**32 - 1),
)
def test_a_changed_partition_table(card: Path, at: int, value: int, scheme: int, count: int) -> None:
    """Also with a GPT of any size behind it."""
    with card.open("rb") as file:
        first = bytearray(file.read(512))
    struct.pack_into("<I", first, min(at, 506), value)
    first[450] = scheme
    header = bytearray(b"EFI PART" + bytes(84))
    struct.pack_into("<QII", header, 72, 2, count, value % 9000)
    struct.pack_into("<I", header, 16, zlib.crc32(header))
    image = io.BytesIO(bytes(first[:510]) + b"\x55\xaa" + bytes(header).ljust(512, b"\0") + b"\xa5" * 20_000)
    with bounded():
        try:
            disk = Disk(image, "card")
        except InspectError:
            return
        assert len(disk.partitions) <= 1024


@settings(max_examples=30)
@given(changes=st.lists(st.tuples(st.integers(0, 2**26), VALUES), min_size=1, max_size=30))
def test_a_changed_card(card: Path, changes: list[tuple[int, int]]) -> None:
    """The whole report; changes hit the table, the environment, and what begins a partition."""
    areas = [range(440, 512), range(0x400000, 0x400200)]
    for name, size in (("BOOT", 8192), ("A", 60_000), ("DATA", 60_000)):
        areas.append(range(OFFSETS[name], OFFSETS[name] + size))
    places = [at for area in areas for at in area]
    with card.open("r+b") as file:
        before = []
        for place, value in changes:
            at = places[place % len(places)]
            file.seek(at)
            before.append((at, file.read(4)))
            file.seek(at)
            file.write(struct.pack("<I", value))
        file.flush()
        try:
            with Opener() as opener:
                report = inspect(card, opener)
            assert set(report) >= {"findings", "errors", "warnings"}
        except InspectError:
            pass
        finally:
            for at, old in reversed(before):
                file.seek(at)
                file.write(old)


TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


@given(
    st.one_of(
        TEXT,
        st.lists(st.tuples(TEXT, VALUES, st.integers(-(2**70), 2**70)), max_size=3).map(
            lambda rows: "\n".join(f"/dev/mmcblk0 {offset:#x} {size:#x}" for _, offset, size in rows)
        ),
    )
)
def test_any_fw_env_config(text: str) -> None:
    try:
        places = uboot_env.parse(text)
    except ValueError:
        return
    assert 1 <= len(places) <= 2
    assert all(place.offset >= 0 and place.size <= MIB for place in places)


@settings(max_examples=150)
@given(changes=CHANGES, cut=st.integers(0, 2000))
def test_a_changed_device_tree(changes: list[tuple[int, int]], cut: int) -> None:
    good = devicetree()
    data = changed(good, changes, areas=[range(len(good) - 4)])[: max(40, len(good) - cut)]
    with bounded():
        try:
            Devicetree(data).document()
        except ValueError:
            return


def test_a_device_tree_of_ever_deeper_nodes() -> None:
    nodes = b"".join(struct.pack(">I", 1) + b"n\0\0\0" for _ in range(200_000))
    struct_at, strings_at = 40, 40 + len(nodes)
    head = struct.pack(">10I", 0xD00DFEED, strings_at, struct_at, strings_at, 40, 17, 16, 0, 0, len(nodes))
    with bounded(), pytest.raises(ValueError, match="nodes without end"):
        Devicetree(head + nodes)


@settings(max_examples=150)
@given(changes=CHANGES, cut=st.integers(0, 60_000), is_start=st.booleans())
def test_a_changed_program(changes: list[tuple[int, int]], cut: int, is_start: bool) -> None:
    good = program(*HARDENED)
    areas = [range(800)] if is_start else [range(0, len(good) - 4, 4)]
    data = changed(good, changes, areas=areas)[: max(64, len(good) - cut)]
    with bounded():
        try:
            Elf("/usr/bin/product", io.BytesIO(data)).document()
        except ValueError:
            return


@given(changes=CHANGES, cut=st.integers(0, 100))
def test_a_changed_boot_script(changes: list[tuple[int, int]], cut: int) -> None:
    good = _script()
    try:
        script_reader.parse(changed(good, changes, areas=[range(len(good) - 4)])[: len(good) - cut])
    except script_reader.ScriptError:
        return


@cache
def _script() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        return boot_script(Path(name, "boot.scr"), "load mmc 0:1 ${kernel_addr_r} /boot/Image\n").read_bytes()


@settings(max_examples=60)
@given(
    data=st.binary(max_size=4096),
    head=st.sampled_from(
        [b"", b"BZh9", b"\x1f\x8b\x08\0", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\xd0\x0d\xfe\xed"]
    ),
)
def test_any_file(tmp_path_factory: pytest.TempPathFactory, data: bytes, head: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(head + data)
    with pytest.raises(InspectError), Opener() as opener:
        inspect(path, opener)
