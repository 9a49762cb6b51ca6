# SPDX-License-Identifier: Apache-2.0
"""`ota inspect` reads ext4, FAT, device trees, U-Boot's environment and ELF as the field's programs do."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import stat
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.inspect_card import (
    HARDENED,
    LIBRARIES,
    MIB,
    Card,
    boot_script,
    check_against_debugfs,
    devicetree,
    missing_tools,
    program,
)

from update_tools.bench.tools import run
from update_tools.inspect import boot_script as reader
from update_tools.inspect.cli import inspect
from update_tools.inspect.dtb import Devicetree, nodes
from update_tools.inspect.elf import Elf
from update_tools.inspect.ext4 import Ext4Tree
from update_tools.inspect.fat import FatTree
from update_tools.inspect.source import Opener
from update_tools.inspect.tree import InspectError

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(
    bool(missing_tools()) and "CI" not in os.environ, reason=f"not installed: {', '.join(missing_tools())}"
)

EXT4 = {
    "ext4": "-t ext4 -b 4096",
    "ext4, 1 KiB blocks, no 64bit": "-t ext4 -b 1024 -O ^64bit,^metadata_csum",
    "ext4, inline data": "-t ext4 -b 4096 -I 256 -O inline_data",
    "ext4, inodes of 512": "-t ext4 -b 4096 -I 512 -O inline_data",
    "ext3": "-t ext3 -b 1024",
    "ext2, inodes of 128": "-t ext2 -b 1024 -I 128",
    "flat": "-t ext4 -b 2048 -O ^flex_bg,^resize_inode",
    "clusters": "-t ext4 -b 4096 -O bigalloc -C 16384",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with what file systems do differently: sizes, holes, links, many names, odd names."""
    top = tmp_path_factory.mktemp("files")
    noise = random.Random(7)
    for size in (0, 1, 59, 60, 61, 150, 1024, 4096, 4097, 12 * 1024 + 1, 300_000, 2_000_000):
        (top / f"{size} bytes").write_bytes(noise.randbytes(size))
    with open(top / "holes", "wb") as file:
        for at in (0, 70_000, 270_000, 900_000, 1_500_000):
            file.seek(at)
            file.write(noise.randbytes(5000))
        file.seek(2_499_999)
        file.write(b"!")  # mke2fs 1.47 cuts a hole at the end off
    (top / "deep/er/and/deeper").mkdir(parents=True)
    (top / "deep/er/and/deeper/file").write_text("found")
    (top / "hard").hardlink_to(top / "300000 bytes")
    (top / "short").symlink_to("deep/er")
    (top / "long").symlink_to("deep/../" * 20 + "deep/er")
    (top / "grüße \t").write_text("odd")
    many = top / "many"
    many.mkdir()
    for number in range(400):
        (many / f"{number:03} {'x' * (number % 100)}").write_text(str(number))
    (top / "deep").chmod(0o2750)
    (top / "60 bytes").chmod(0o4711)
    return top


@pytest.mark.parametrize("kind", EXT4)
def test_ext4_as_the_kernel_wrote_it(files: Path, tmp_path: Path, kind: str) -> None:
    """mke2fs copies a tree; every file of it is read back."""
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(24 * MIB)
    run(["mke2fs", "-q", "-F", *EXT4[kind].split(), "-d", files, image])
    with open(image, "rb") as file:
        tree = Ext4Tree(file, 0, "image")
        assert tree.damage == []
        assert tree.is_clean
        wanted = {f"/{path.relative_to(files)}": path for path in files.rglob("*")}
        assert set(tree.entries) - {"/", "/lost+found"} == set(wanted)
        for name, path in wanted.items():
            entry, info = tree.entries[name], path.lstat()
            assert (entry.mode, entry.uid, entry.gid) == (info.st_mode, info.st_uid, info.st_gid)
            if stat.S_ISLNK(info.st_mode):
                assert entry.target == str(path.readlink())
            elif stat.S_ISREG(info.st_mode):
                content = path.read_bytes()
                assert tree.content(entry, 1 << 30) == content
                assert tree.at(entry, 60, 5000) == content[60:5060]
        assert tree.text("/long/and/deeper/file") == "found"


def test_ext4_as_debugfs_reads_it(tmp_path: Path) -> None:
    """The root file system of a card: all files, their owners and modes."""
    card = Card()
    card.root_commands = ["sif /usr/bin/busybox uid 70000", "sif /etc/passwd gid 99999"]
    image = card.make_rootfs(tmp_path / "root")
    with open(image, "rb") as file:
        tree = Ext4Tree(file, 0, "root")
        check_against_debugfs(tree, image, tmp_path)


def test_features_that_are_not_known_are_told(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(8 * MIB)
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "meta_bg,^resize_inode", image])
    with open(image, "rb") as file, pytest.raises(InspectError, match="features 0x10 that are not known"):
        Ext4Tree(file, 0, "image")


@pytest.mark.parametrize(("bits", "sectors", "size_mib"), [(12, 4, 4), (16, 1, 20), (32, 1, 40)])
def test_fat_as_mtools_wrote_it(tmp_path: Path, bits: int, sectors: int, size_mib: int) -> None:
    image = tmp_path / "fat"
    with open(image, "wb") as file:
        file.truncate(size_mib * MIB)
    run(["mkfs.vfat", "--invariant", f"-F{bits}", f"-s{sectors}", image])
    noise = random.Random(bits)
    wanted = {
        "boot.scr": noise.randbytes(5000),
        "SHOUTING.TXT": b"loud",
        "a long name, with spaces.dtb": noise.randbytes(70_000),
        "overlays/deeper/vc4-kms-v3d.dtbo": noise.randbytes(1),
        "empty": b"",
        **{f"overlays/{number}-overlay.dtbo": noise.randbytes(number * 7) for number in range(200)},
    }
    source = tmp_path / "source"
    for name, content in wanted.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    run(["mcopy", "-s", "-i", image, *sorted(source.iterdir()), "::"])
    run(["mdel", "-i", image, "::/overlays/1*"])  # what comes next lies in pieces
    wanted = {name: content for name, content in wanted.items() if not name.startswith("overlays/1")}
    wanted["in pieces"] = noise.randbytes(400_000)
    (tmp_path / "in pieces").write_bytes(wanted["in pieces"])
    run(["mcopy", "-i", image, tmp_path / "in pieces", "::"])
    with open(image, "rb") as file:
        tree = FatTree(file, 0, "fat")
        assert tree.damage == []
        found = {
            path[1:]: tree.content(entry, 1 << 30) for path, entry in tree.entries.items() if entry.is_file
        }
        assert found == wanted
        assert tree.read("/BOOT.scr") == wanted["boot.scr"]
        assert tree.at(tree.entries["/in pieces"], 1000, 300_000) == wanted["in pieces"][1000:301_000]


# Device trees

LIBFDT = """
import json, sys
import libfdt
tree = libfdt.FdtRo(open(sys.argv[1], "rb").read())
nodes, offset, depth, path = {}, 0, 0, []
while offset >= 0:
    path[depth:] = [tree.get_name(offset)]
    where = "/" + "/".join(path[1:])
    found = nodes[where] = {}
    at = tree.first_property_offset(offset, libfdt.QUIET_NOTFOUND)
    while at >= 0:
        prop = tree.get_property_by_offset(at)
        found[prop.name] = bytes(prop).hex()
        at = tree.next_property_offset(at, libfdt.QUIET_NOTFOUND)
    offset, depth = tree.next_node(offset, depth, libfdt.QUIET_NOTFOUND)
    if depth < 0: break
print(json.dumps(nodes))
"""


def trees(tmp_path: Path) -> dict[str, Path]:
    """Ours, QEMU's arm64 and arm boards as QEMU makes them, and those that come with QEMU."""
    found = {"ours": tmp_path / "ours.dtb"}
    found["ours"].write_bytes(devicetree())
    for name in ("aarch64", "arm"):
        if shutil.which(f"qemu-system-{name}"):
            path = tmp_path / f"{name}.dtb"
            run([f"qemu-system-{name}", "-M", f"virt,dumpdtb={path}", "-nodefaults", "-nographic"])
            found[name] = path
    found.update({path.stem: path for path in Path("/usr/share/qemu").glob("*.dtb")})
    return found


def test_device_trees_as_libfdt_reads_them(tmp_path: Path) -> None:
    """Debian's python3-libfdt, by Debian's Python: names and bytes of every property."""
    if subprocess.run(["/usr/bin/python3", "-c", "import libfdt"], check=False).returncode:
        if "CI" in os.environ:
            pytest.fail("python3-libfdt is not installed")
        pytest.skip("python3-libfdt is not installed")
    for path in trees(tmp_path).values():
        said = run(["/usr/bin/python3", "-c", LIBFDT, path])
        theirs = json.loads(said)
        ours = nodes(path.read_bytes())
        assert set(ours) == set(theirs)
        for where, properties in theirs.items():
            assert {name: _bytes(value).hex() for name, value in ours[where].items()} == properties
        text = Devicetree(path.read_bytes())
        assert text.compatible == _strings(theirs["/"]["compatible"])
        assert [text.model] == _strings(theirs["/"].get("model", "00"))
        assert [text.bootargs] == _strings(theirs.get("/chosen", {}).get("bootargs", "00"))


def _strings(value: str) -> list[str]:
    return bytes.fromhex(value).decode().rstrip("\0").split("\0")


def _bytes(value: Any) -> bytes:
    """A property of pyfdt as it was in the blob."""
    for name, size in (("words", 4), ("bytes", 1)):
        if hasattr(value, name):
            return b"".join(int(number).to_bytes(size, "big") for number in getattr(value, name))
    if hasattr(value, "strings"):
        return b"".join(text.encode() + b"\0" for text in value.strings)
    return b""


def test_device_trees_as_dtc_reads_them(tmp_path: Path) -> None:
    for path in trees(tmp_path).values():
        source = run(["dtc", "-q", "-I", "dtb", "-O", "dts", path])
        ours = Devicetree(path.read_bytes())
        quoted = re.search(r"^\tcompatible = (.*);$", source, re.MULTILINE)
        assert quoted
        assert ours.compatible == re.findall(r'"([^"]*)"', quoted[1].replace("\\0", '", "'))


# U-Boot's environment


@pytest.mark.parametrize(
    ("first", "second"), [(1, 1), (1, 2), (2, 1), (255, 0), (0, 255), (7, None), (None, 7)]
)
def test_the_environment_as_libubootenv_reads_it(
    tmp_path: Path, first: int | None, second: int | None
) -> None:
    """Whichever copy fw_printenv takes is the one in use here. None: a copy with a wrong checksum."""
    card = Card()
    disk = card.make(tmp_path)
    size = int(card.values["UPDATE_UBOOT_ENV_SIZE"], 0)
    with open(disk, "r+b") as file:
        for offset, counter, name in zip(card.env_offsets, (first, second), ("first", "second"), strict=True):
            text = tmp_path / name
            text.write_text(f"{card.environment}which={name}\n")
            run(["mkenvimage", "-r", "-s", str(size), "-o", tmp_path / "env", text])
            data = bytearray((tmp_path / "env").read_bytes())
            data[4] = 0 if counter is None else counter
            data[100] ^= counter is None
            file.seek(offset)
            file.write(data)
    places = "".join(f"{disk} {offset:#x} {size:#x}\n" for offset in card.env_offsets)
    (tmp_path / "fw_env.config").write_text(places)
    said = run(["fw_printenv", "-c", tmp_path / "fw_env.config"])
    theirs = dict(line.split("=", 1) for line in said.splitlines())
    with Opener() as opener:
        environment: Any = inspect(disk, opener)["environment"]
    assert environment["variables"] == theirs
    assert [copy["active"] for copy in environment["copies"]] == [
        theirs["which"] == name for name in ("first", "second")
    ]


def test_a_boot_script_as_mkimage_lists_it(tmp_path: Path) -> None:
    path = boot_script(tmp_path / "boot.scr", Card().script)
    said = run(["mkimage", "-l", path])
    name, text = reader.parse(path.read_bytes())
    assert re.search(r"Image Name: +(.*)", said)[1] == name  # type: ignore[index]
    assert text == Card().script


# ELF


@cache
def programs() -> dict[str, bytes]:
    """Built in every way that matters here, and what this host and its cross compiler have."""
    plain = ("-O2", "-fstack-protector-strong")
    found = {
        "hardened": program(*HARDENED),
        "lazy": program(*plain, "-fPIE", "-pie", "-Wl,-z,relro,-z,lazy"),
        "no relro": program(*plain, "-fPIE", "-pie", "-Wl,-z,norelro"),
        "fixed": program(*plain, "-no-pie"),
        "static": program(*plain, "-static"),
        "executable stack": program(*HARDENED, "-Wl,-z,execstack"),
        "rpath": program(*HARDENED, "-Wl,-rpath,/opt/lib:$ORIGIN/../lib", "-Wl,--disable-new-dtags"),
        "library": program("-shared", "-fPIC", "-Wl,-soname,libx.so.3", source="int x(void) { return 1; }"),
    }
    places = [
        *sorted(LIBRARIES.glob("*.so*"))[:12],
        *map(Path, ("/bin/true", "/usr/bin/gcc", "/usr/bin/openssl")),
    ]
    found.update({str(path): path.read_bytes() for path in places if path.exists()})
    return {name: data for name, data in found.items() if data.startswith(b"\x7fELF")}


def test_elf_as_readelf_reads_it(tmp_path: Path) -> None:
    for name, data in programs().items():
        path = tmp_path / "program"
        path.write_bytes(data)
        said = run(["readelf", "-W", "-h", "-l", "-d", path])
        with open(path, "rb") as file:
            ours = Elf(name, file)

        def tags(tag: str, said: str = said) -> list[str]:
            return re.findall(rf"\({tag}\).*\[(.*)\]", said)

        interpreter = re.search(r"program interpreter: (.*)\]", said)
        stack = re.search(r"GNU_STACK .* (R?W?E?) +0x", said)
        now = bool(re.search(r"\(BIND_NOW\)|\(FLAGS\).*BIND_NOW|\(FLAGS_1\).*NOW", said))
        assert ours.needed == tags("NEEDED"), name
        assert [ours.soname] == (tags("SONAME") or [""]), name
        assert ours.search == [p for t in (*tags("RPATH"), *tags("RUNPATH")) for p in t.split(":")], name
        assert ours.interpreter == (interpreter[1] if interpreter else ""), name
        assert [ours.kind.removeprefix("ET_")] == re.findall(r"^  Type: +(\w+)", said, re.MULTILINE), name
        assert ours.has_relro == ("GNU_RELRO" in said), name
        assert ours.binds_now == now, name
        assert ours.stack_is_executable == bool(stack and "E" in stack[1]), name
        assert ours.is_dynamic == ("There is no dynamic section" not in said), name
        symbols = run(["readelf", "-W", "--dyn-syms", path])
        assert ours.has_canary == bool(re.search(r"__stack_chk_(fail|guard)\b", symbols)), name


def test_hardening_as_it_was_built() -> None:
    built: dict[str, Callable[[Elf], bool]] = {
        "hardened": lambda elf: elf.has_relro and elf.binds_now and elf.has_canary and elf.kind == "ET_DYN",
        "lazy": lambda elf: elf.has_relro and not elf.binds_now,
        "no relro": lambda elf: not elf.has_relro,
        "fixed": lambda elf: elf.kind == "ET_EXEC" and elf.is_program,
        "static": lambda elf: not elf.is_dynamic and elf.is_program,
        "executable stack": lambda elf: elf.stack_is_executable,
        "library": lambda elf: not elf.is_program and elf.is_runnable,
    }
    for name, is_so in built.items():
        assert is_so(Elf(name, io.BytesIO(programs()[name]))), name
