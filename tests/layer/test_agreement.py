# SPDX-License-Identifier: Apache-2.0
"""One card, many files that describe it: U-Boot's .config, fw_env.config, wks, fstab, boot script, agent.

All are made by the layer's own recipes and classes, then read back and compared with each other. A fault in
any of them is found here; a script with a bad name in test_images.py, a hook with a bad key in
test_pause_hooks.py, an import that the recipe does not list in test_imports.py.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.layer.bitbake import LAYER, MACHINES, ROOT, TASKS, Build

from update_tools.bench import wks
from update_tools.bench.tools import BenchError

# What the artifact holds is another test's question (test_images.py).
CONF = 'INHERIT += "update"\nUPDATE_ARTIFACT_TOOL = "true"\n'
MISSING = [name for name in ("mkimage", "mkenvimage") if not shutil.which(name)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


FRAGMENT = "recipes-bsp/u-boot/files/update-env.cfg"
FW_ENV = "recipes-bsp/update-fw-env-config/files/fw_env.config.in"
WKS = "files/wic/ab-data.wks.in"
LAYOUT = "conf/update/layout.inc"
AGENT = "lib/update_layer/agentconf.py"
BOOT = "recipes-bsp/update-boot-script/files/boot.cmd.in"


def made(build: Build) -> dict[str, str]:
    """What the recipes make, as text by name."""
    image = "update-image-minimal"
    recipes: dict[str, dict[str, Any]] = {
        "u-boot": {"tasks": TASKS, "values": ["B"]},
        "update-fw-env-config": {"tasks": TASKS, "values": ["D"]},
        "update-boot-script": {"tasks": TASKS[:3], "values": ["B"]},
        "update-agent-conf": {"tasks": TASKS, "values": ["D"]},
        image: {
            "tasks": ["do_rootfs"],
            "values": ["IMAGE_ROOTFS", "WKS_FILE", "IMGDEPLOYDIR", "IMAGE_LINK_NAME"],
        },
    }
    answer = build.ask(recipes)
    assert answer.get("failed") is None
    assert [found["failed"] for found in answer["recipes"].values() if "failed" in found] == []
    at = {name: {k: Path(v) for k, v in found["values"].items()} for name, found in answer["recipes"].items()}
    wks = build.layer / "files/wic" / at[image]["WKS_FILE"]
    return {
        "config": (at["u-boot"]["B"] / ".config").read_text(),
        "fw_env": (at["update-fw-env-config"]["D"] / "etc/fw_env.config").read_text(),
        "boot": (at["update-boot-script"]["B"] / "boot.cmd").read_text(),
        "agent": (at["update-agent-conf"]["D"] / "etc/mender/mender.conf").read_text(),
        "fstab": (at[image]["IMAGE_ROOTFS"] / "etc/fstab").read_text(),
        "wks": build.expand(wks.read_text()),
    }


def facts(files: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Each fact, with every place that states it and what it says there."""
    config = dict(re.findall(r"^CONFIG_(\w+)=(.*)$", files["config"], re.MULTILINE))
    copies = [line.split() for line in files["fw_env"].splitlines() if line and not line.startswith("#")]
    agent = json.loads(files["agent"])
    (data,) = [line.split()[0] for line in files["fstab"].splitlines() if line.split()[1] == "/data"]
    card = wks.parse(files["wks"], "wks")
    try:
        card.place(lambda _: int(config["ENV_SIZE"], 0))
    except BenchError as error:
        return {"placement": {"wks": str(error), "wic": "places each part behind the one before"}}
    table = {part.mountpoint: part.number for part in card.parts if part.is_in_table}
    raw = [part for part in card.parts if not part.is_in_table and "uboot-env" in part.file]
    root_prefix = re.search(r"root=(\S+)\$\{update_part\}", files["boot"])
    slots = re.findall(r"setenv mender_boot_part (\d+)", files["boot"]) + re.findall(
        r'"\$\{mender_boot_part\}" != "(\d+)"', files["boot"]
    )
    return {
        "environment offsets": {
            "U-Boot": [int(config["ENV_OFFSET"], 0), int(config["ENV_OFFSET_REDUND"], 0)],
            "fw_env.config": [int(copy[1], 0) for copy in copies],
            "wks": [part.start for part in raw],
        },
        "environment size": {
            "U-Boot": {int(config["ENV_SIZE"], 0)},
            "fw_env.config": {int(copy[2], 0) for copy in copies},
        },
        "card": {
            "fw_env.config": {copy[0] for copy in copies},
            "wks": {f"/dev/{part.disk}" for part in card.parts},
            "agent": {re.sub(r"p?\d+$", "", agent[f"RootfsPart{slot}"]) for slot in "AB"},
            "fstab": {re.sub(r"p?\d+$", "", data)},
            "boot script": {re.sub(r"p?$", "", root_prefix[1]) if root_prefix else None},
        },
        "U-Boot's number of the card": {
            "U-Boot": {int(config["ENV_MMC_DEVICE_INDEX"])},
            "boot script": {int(number) for number in re.findall(r"\bmmc (\d+):", files["boot"])},
        },
        "root partitions": {
            "wks": [number for name, number in table.items() if name not in {"/boot", "/data"}],
            "agent": [int(re.sub(r".*p", "", agent[f"RootfsPart{slot}"])) for slot in "AB"],
            "boot script": sorted({int(number) for number in slots}),
        },
        "data partition": {
            "wks": [table.get("/data")],
            "fstab": [int(re.sub(r".*p", "", data))],
        },
        "boot partition": {
            "wks": [table.get("/boot")],
            "layout": [1],
        },
    }


def disagreements(files: dict[str, str]) -> list[str]:
    return [
        f"{fact}: {places}"
        for fact, places in facts(files).items()
        if any(value != next(iter(places.values())) for value in places.values())
    ]


@pytest.mark.parametrize("machine", MACHINES)
def test_all_files_mean_the_same_card(tmp_path: Path, machine: str) -> None:
    assert disagreements(made(Build(tmp_path / "build", machine=machine, conf=CONF))) == []


def test_a_moved_layout_moves_all_of_them(tmp_path: Path) -> None:
    conf = (
        f'{CONF}UPDATE_STORAGE = "mmcblk1"\nUPDATE_UBOOT_MMC = "1"\nUPDATE_FIRST_PART_MB = "16"\n'
        'UPDATE_UBOOT_ENV_OFFSET = "0x900000"\nUPDATE_UBOOT_ENV_OFFSET_REDUND = "0xb00000"\n'
    )
    files = made(Build(tmp_path / "build", conf=conf))
    assert disagreements(files) == []
    assert facts(files)["environment offsets"]["wks"] == [0x900000, 0xB00000]
    assert facts(files)["card"]["agent"] == {"/dev/mmcblk1"}
    assert facts(files)["U-Boot's number of the card"]["U-Boot"] == {1}


@pytest.mark.parametrize(
    ("file", "old", "new", "fact"),
    [
        (FRAGMENT, "@@UPDATE_UBOOT_ENV_OFFSET_REDUND@@", "0x610000", "environment offsets"),
        (FRAGMENT, "@@UPDATE_UBOOT_ENV_SIZE@@", "0x8000", "environment size"),
        (FRAGMENT, "@@UPDATE_UBOOT_MMC@@", "1", "U-Boot's number of the card"),
        (FW_ENV, "@@UPDATE_UBOOT_ENV_OFFSET@@", "0x410000", "environment offsets"),
        (FW_ENV, "@@UPDATE_UBOOT_ENV_SIZE@@", "0x2000", "environment size"),
        (FW_ENV, "/dev/@@UPDATE_STORAGE@@", "/dev/mmcblk1", "card"),
        (WKS, "_OFFSET'), 0) // 1024}K", "_OFFSET'), 0) // 2048}K", "environment offsets"),
        (WKS, "--offset ${UPDATE_FIRST_PART_MB}M", "--offset 5M", "placement"),
        (WKS, "--label data", "--label data --no-table --offset 9K", "placement"),
        (WKS, "part /data ", "part /date ", "data partition"),
        (WKS, "--ondisk ${UPDATE_STORAGE} --fstype=vfat", "--ondisk sda --fstype=vfat", "card"),
        (LAYOUT, "${UPDATE_PART_DATA} /data ", "3 /data ", "data partition"),
        (AGENT, "value('UPDATE_PART_B')", "4", "root partitions"),
        (AGENT, "value('UPDATE_STORAGE_PART')", "'/dev/mmcblk1p'", "card"),
        (BOOT, "root=@@UPDATE_STORAGE_PART@@", "root=/dev/mmcblk2p", "card"),
        (BOOT, "-e mmc @@UPDATE_UBOOT_MMC@@:", "-e mmc 1:", "U-Boot's number of the card"),
        (BOOT, "setenv mender_boot_part @@UPDATE_PART_A@@", "setenv mender_boot_part 4", "root partitions"),
    ],
)
def test_one_wrong_place_is_found(tmp_path: Path, file: str, old: str, new: str, fact: str) -> None:
    layer = tmp_path / "meta-update"
    shutil.copytree(LAYER, layer)
    text = (layer / file).read_text()
    assert old in text
    (layer / file).write_text(text.replace(old, new))
    conf = f'{CONF}UPDATE_SOURCEDIR = "{ROOT}"\n'
    found = disagreements(made(Build(tmp_path / "build", layer=layer, conf=conf)))
    assert fact in [line.partition(":")[0] for line in found]
