# SPDX-License-Identifier: Apache-2.0
"""The .wks of every machine: rendered by BitBake, made into a card, and compared with what wic makes of it.

The virtual boards boot cards that are made of the same file by the same code, update_tools/bench/wks.py.
wic comes from OE-core, which is no package of a registry: it is run where a copy of the layers is at
hand.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.layer.bitbake import LAYER, MACHINES, Build

from update_tools.bench import layer, wks

MIRRORS = os.environ.get("META_UPDATE_MIRRORS", "")
SMALL = {"UPDATE_BOOT_SIZE_MB": "4", "UPDATE_ROOTFS_SIZE_MB": "8", "UPDATE_DATA_SIZE_MB": "4"}
CONF = 'INHERIT += "update"\n' + "".join(f'{name} = "{value}"\n' for name, value in SMALL.items())
FLOWS = [
    (machine, flow)
    for machine in MACHINES
    for flow in layer.variables(machine).get("UPDATE_BOOTFLOWS", "u-boot").split()
]
TOOLS = ("sfdisk", "mkfs.vfat", "mcopy", "mke2fs", "debugfs")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
needs_tools = pytest.mark.skipif(
    not all(shutil.which(tool, path=PATH) for tool in TOOLS), reason=f"not all installed: {', '.join(TOOLS)}"
)


def rendered(build: Build) -> tuple[str, str]:
    """Name of the .wks.in that the image class chooses, and what BitBake makes of it."""
    asked = {"update-image-minimal": {"values": ["WKS_FILE"]}}
    name = build.ask(asked)["recipes"]["update-image-minimal"]["values"]["WKS_FILE"]
    text = (build.layer / "files/wic" / name).read_text()
    for variable, value in layer.BUILD.items():  # where a build has its files, which are made here instead
        text = text.replace(f"${{{variable}}}", value)
    return name, build.expand(text).replace(
        build.expand("${DEPLOY_DIR_IMAGE}"), layer.BUILD["DEPLOY_DIR_IMAGE"]
    )


def material(folder: Path, env_bytes: int, slot_bytes: int) -> dict[str, Path]:
    """The files that a .wks names; returns those of the boot partition."""
    (folder / "rootfs/boot/overlays").mkdir(parents=True)
    (folder / "rootfs/boot/overlays/x.dtbo").write_bytes(b"overlay")
    (folder / "rootfs/data/mender").mkdir(parents=True)
    (folder / "rootfs/data/mender/device_type").write_text("device_type=x\n")
    (folder / layer.BUILD["UPDATE_UBOOT_ENV_IMAGE"]).write_bytes(b"\x55" * env_bytes)
    (folder / f"{layer.BUILD['IMAGE_LINK_NAME']}.ext4").write_bytes(b"\xaa" * slot_bytes)
    (folder / "boot.scr").write_bytes(b"script")
    return {"boot.scr": folder / "boot.scr"}


def card(folder: Path, text: str, env_bytes: int) -> tuple[wks.Card, Path]:
    """The card that the interpreter makes."""
    made = wks.parse(text, "x.wks")
    boot_files = material(folder, env_bytes, int(SMALL["UPDATE_ROOTFS_SIZE_MB"]) << 20)
    for part in made.parts:
        if part.source == "rawcopy" and not (folder / part.file).exists():  # a boot loader
            (folder / part.file).write_bytes(b"\x33" * 8192)
    made.place(lambda file: (folder / file).stat().st_size)
    wks.write(made, folder / "card", folder=folder, boot_files=boot_files, size_bytes=made.used_bytes)
    return made, folder / "card"


def table(disk: Path) -> dict[int, tuple[int, int, str, bool]]:
    """Start, size, type and active flag of each partition, as sfdisk reads the table."""
    said = subprocess.run(
        ["sfdisk", "--json", disk],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": PATH},
    ).stdout
    rows: list[dict[str, Any]] = json.loads(said)["partitiontable"]["partitions"]
    return {
        int(row["node"].removeprefix(str(disk)).lstrip("p")): (
            row["start"] * 512,
            row["size"] * 512,
            row["type"],
            row.get("bootable", False),
        )
        for row in rows
    }


def names_on(disk: Path, part: wks.Part, scratch: Path) -> set[str]:
    """Names at the top of a partition."""
    if part.fstype == "vfat":
        listed = ["mdir", "-b", "-i", f"{disk}@@{part.start}", "::"]
        done = subprocess.run(listed, capture_output=True, text=True, check=False)  # empty: an error for mdir
        return {line.removeprefix("::/").rstrip("/") for line in done.stdout.split()}
    cut_out(disk, part, scratch)
    debugfs = [str(shutil.which("debugfs", path=PATH)), "-R", "ls -p /", scratch]
    said = subprocess.run(debugfs, capture_output=True, text=True, check=True).stdout
    return {row.split("/")[5] for row in said.split() if row.count("/") > 5} - {".", "..", "lost+found"}


def cut_out(disk: Path, part: wks.Part, scratch: Path) -> Path:
    with disk.open("rb") as file:
        file.seek(part.start)
        scratch.write_bytes(file.read(part.size))
    return scratch


def data_of(card_: wks.Card) -> wks.Part:
    (part,) = [part for part in card_.parts if part.mountpoint == "/data"]
    return part


def ext4_fields(image: Path) -> dict[str, str]:
    dump = [str(shutil.which("dumpe2fs", path=PATH)), "-h", image]
    said = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    return {name: value.strip() for name, _, value in (line.partition(":") for line in said.splitlines())}


@needs_tools
@pytest.mark.parametrize("name", sorted(path.name for path in (LAYER / "files/wic").glob("*.wks.in")))
def test_the_data_partition_grows_from_small_to_the_largest_card(tmp_path: Path, name: str) -> None:
    """mke2fs would give a small one blocks of 1 KiB, which 256 GiB cannot be addressed by as it grows."""
    flow = "tryboot" if "tryboot" in name else "u-boot"
    values = {**layer.variables("raspberrypi4-64", UPDATE_BOOTFLOW=flow), **layer.BUILD}
    values |= {"UPDATE_BOOT_SIZE_MB": "4", "UPDATE_ROOTFS_SIZE_MB": "8"}
    text = layer.rendered(f"files/wic/{name}", values)
    made, disk = card(tmp_path, text, int(values["UPDATE_UBOOT_ENV_SIZE"], 0))
    image = cut_out(disk, data_of(made), tmp_path / "data")
    before = ext4_fields(image)
    assert before["Block size"] == "4096"
    with image.open("r+b") as file:
        file.truncate(250 << 30)
    for command in (["e2fsck", "-fy", image], ["resize2fs", image], ["e2fsck", "-fn", image]):
        program = str(shutil.which(str(command[0]), path=PATH))
        subprocess.run([program, *command[1:]], capture_output=True, check=True)
    after = ext4_fields(image)
    assert int(after["Block count"]) == (250 << 30) // 4096
    assert "resize_inode" in after["Filesystem features"]  # within what was reserved for it
    # A sixtieth of the card at most for inodes: it would be the 32nd part.
    assert int(after["Inode count"]) * 256 < (250 << 30) // 60


@needs_tools
@pytest.mark.parametrize(("machine", "flow"), FLOWS)
def test_every_machines_card_is_made_as_its_wks_says(tmp_path: Path, machine: str, flow: str) -> None:
    chosen = "" if flow == "u-boot" else f'UPDATE_BOOTFLOW = "{flow}"\n'
    build = Build(tmp_path / "build", machine=machine, conf=CONF + chosen)
    name, text = rendered(build)
    values = {**layer.variables(machine, UPDATE_BOOTFLOW=flow), **SMALL}
    bench = layer.rendered(f"files/wic/{name}", {**values, **layer.BUILD})
    assert text == bench  # the bench expands as BitBake does
    env_bytes = int(values["UPDATE_UBOOT_ENV_SIZE"], 0)
    made, disk = card(tmp_path, text, env_bytes)
    placed = {part.number: part for part in made.parts if part.is_in_table}
    found = table(disk)
    assert {n: row[:2] for n, row in found.items() if n in placed} == {
        n: (part.start, part.size) for n, part in placed.items()
    }
    for part in made.parts:
        if part.source == "rawcopy":
            with disk.open("rb") as file:
                file.seek(part.start)
                there = file.read((tmp_path / part.file).stat().st_size)
            assert there == (tmp_path / part.file).read_bytes()
        else:
            names = {"/boot": {"boot.scr"}, "/data": {"mender"}}.get(part.mountpoint, set())
            if part.rootfs_dir.endswith("/boot"):
                names = {"overlays"}
            assert names_on(disk, part, tmp_path / "part") == names


def test_the_bench_makes_its_card_of_the_file_that_images_are_made_of(tmp_path: Path) -> None:
    name, _ = rendered(Build(tmp_path / "build"))
    assert f"files/wic/{name}" == layer.WKS


@pytest.fixture(scope="session")
def wic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """wic of scarthgap, the last series that has it in OE-core."""
    if not MIRRORS:
        pytest.skip("META_UPDATE_MIRRORS names no directory with copies of the layers")
    if not shutil.which("parted", path=PATH):
        pytest.skip("parted is not installed")
    folder = tmp_path_factory.mktemp("oe-core")
    repository = Path(MIRRORS) / "openembedded+openembedded-core/repo"
    archive = ["git", "-C", repository, "archive", "scarthgap", "scripts", "meta/lib"]
    packed = subprocess.run(archive, capture_output=True, check=True).stdout
    subprocess.run(["tar", "x", "-C", folder], input=packed, check=True)
    return folder / "scripts/wic"


SIX = """\
part --source bootimg-partition --ondisk sda --label START --active --offset 8M --fixed-size 4M
part /boot --source bootimg-partition --ondisk sda --label A --align 4096 --fixed-size 4M
part --source bootimg-partition --ondisk sda --label B --align 4096 --fixed-size 4M
part / --source rawcopy --sourceparams="file=./slot.ext4" --ondisk sda --fstype=ext4 --align 4 --fixed-size 8M
part --ondisk sda --fstype=ext4 --align 4096 --fixed-size 8M
"""
SIX += (
    "part /data --source rootfs --rootfs-dir=rootfs/data --ondisk sda --fstype=ext4 --mkfs-extraopts=-b4096 "
)
SIX += "--align 4096 --fixed-size 4M\nbootloader --ptable "
SHAPES = {"logical partitions": f"{SIX}msdos\n", "gpt": f"{SIX}gpt\n"}


@needs_tools
@pytest.mark.parametrize(
    "name", [*sorted(path.name for path in (LAYER / "files/wic").glob("*.wks.in")), *SHAPES]
)
def test_wic_makes_the_same_card(tmp_path: Path, wic: Path, name: str) -> None:
    flow = "tryboot" if "tryboot" in name else "u-boot"
    values = {**layer.variables("raspberrypi4-64", UPDATE_BOOTFLOW=flow), **SMALL, **layer.BUILD}
    text = SHAPES.get(name) or layer.rendered(f"files/wic/{name}", values)
    ours, disk = card(tmp_path, text, int(values["UPDATE_UBOOT_ENV_SIZE"], 0))
    for variable in ("UPDATE_UBOOT_ENV_IMAGE", "IMAGE_ROOTFS"):
        text = text.replace(f"={layer.BUILD[variable]}", f"={tmp_path}/{layer.BUILD[variable]}")
    text = text.replace("file=./", f"file={tmp_path}/")
    (tmp_path / "ours.wks").write_text(text)
    empty = tmp_path / "empty"
    empty.mkdir()
    variables = {
        "DEPLOY_DIR_IMAGE": tmp_path,
        "HOSTTOOLS_DIR": "/usr/sbin:/usr/bin:/sbin:/bin",
        "IMAGE_BOOT_FILES": "boot.scr",
        "IMAGE_ROOTFS": tmp_path / "rootfs",
        "RECIPE_SYSROOT_NATIVE": empty,
        "ROOTFS_SIZE": "8192",
        "STAGING_DATADIR": empty,
        "STAGING_DIR_NATIVE": empty,
        "TARGET_SYS": "aarch64-linux",
    }
    (tmp_path / "vars").mkdir()
    lines = [f'{variable}="{value}"\n' for variable, value in variables.items()]
    (tmp_path / "vars/image.env").write_text("".join(lines))
    command = [sys.executable, wic, "create", tmp_path / "ours.wks", "-v", tmp_path / "vars", "-e", "image"]
    done = subprocess.run(
        [*command, "-o", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
        env={
            "PATH": PATH,
            "SOURCE_DATE_EPOCH": "1700000000",
            "BUILDDIR": str(tmp_path),
            "HOME": str(tmp_path),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (theirs,) = (tmp_path / "out").glob("*.direct")
    assert table(theirs) == table(disk)
    data = [ext4_fields(cut_out(made, data_of(ours), tmp_path / "data")) for made in (theirs, disk)]
    for field in ("Block size", "Inodes per group", "Blocks per group"):
        assert data[0][field] == data[1][field]
    with theirs.open("rb") as first, disk.open("rb") as second:
        for part in ours.parts:
            if part.source == "rawcopy":
                first.seek(part.start)
                second.seek(part.start)
                assert first.read(part.size) == second.read(part.size)
