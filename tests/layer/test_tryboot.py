# SPDX-License-Identifier: Apache-2.0
"""UPDATE_BOOTFLOW = "tryboot": what BitBake makes of it for Raspberry Pi 4 and 5, read with the agent's code.

The card is put together from the layer's files as wic does it, and started by the simulated firmware.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.layer.bitbake import LAYER, SERIES, Build
from tests.layer.grow_data import GrowData

from update_agent import autoboot, config
from update_agent.boot_partition import command_line
from update_agent.log import Log
from update_agent.tryboot import Tryboot
from update_tools.conform.pi import Pi

TOOLS = ("mkfs.vfat", "mcopy", "fsck.vfat", "sfdisk")
MISSING = [name for name in TOOLS if not shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")]
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
MACHINES = ("raspberrypi4-64", "raspberrypi5")
CONF = 'INHERIT += "update"\nUPDATE_BOOTFLOW = "tryboot"\nUPDATE_ARTIFACT_TOOL = "true"\n'
# As meta-raspberrypi has it, with its variables replaced.
CONF += 'IMAGE_BOOT_FILES = "bootfiles/* bcm2711-rpi-4-b.dtb vc4.dtbo;overlays/vc4.dtbo Image;kernel8.img"\n'
IMAGE = "update-image-minimal"


def build(folder: Path, machine: str = MACHINES[0], *, series: str = "wrynose", conf: str = "") -> Build:
    return Build(folder / "build", machine=machine, series=series, conf=CONF + conf)


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize("machine", MACHINES)
def test_every_recipe_in_both_series(tmp_path: Path, machine: str, series: str) -> None:
    answer = build(tmp_path, machine, series=series).ask({"*": {"values": ["PN"]}})
    assert answer.get("failed") is None
    assert answer["messages"] == []
    for name, found in answer["recipes"].items():
        assert found.get("values") == {"PN": name}, found


@pytest.mark.parametrize("machine", MACHINES)
def test_u_boot_is_not_asked_for(tmp_path: Path, machine: str) -> None:
    asked = {
        IMAGE: {
            "values": ["IMAGE_INSTALL", "WKS_FILE", "RPI_USE_U_BOOT"],
            "flags": ["do_image_wic[depends", "do_rootfs[depends"],
        },
        "update-agent-conf": {"values": ["RDEPENDS:update-agent-conf"]},
    }
    recipes = build(tmp_path, machine).ask(asked)["recipes"]
    values, flags = recipes[IMAGE]["values"], recipes[IMAGE]["flags"]
    assert values["RPI_USE_U_BOOT"] == "0"
    assert values["WKS_FILE"] == "update-tryboot.wks.in"
    assert "kernel-image" not in values["IMAGE_INSTALL"].split()  # the kernel is /boot/kernel8.img
    assert flags["do_image_wic[depends"].split() == ["update-autoboot:do_deploy"]
    assert "rpi-bootfiles:do_deploy" in flags["do_rootfs[depends"].split()
    assert not recipes["update-agent-conf"]["values"]["RDEPENDS:update-agent-conf"]


@pytest.mark.parametrize(
    ("conf", "complaint"),
    [
        ('UPDATE_PART_B = "3"', "update-tryboot.wks.in makes them 1, 5, 6, 7, and 2, 3, 4"),
        ('UPDATE_PART_BOOT_B = "5"', "boot A, boot B, extended"),
        (
            'UPDATE_BOOTFLOW = "grub"',
            'UPDATE_BOOTFLOW = "grub" is not what this machine has: u-boot or tryboot',
        ),
        ('MACHINE = "raspberrypi3-64"', 'UPDATE_BOOTFLOW = "tryboot" is not what this machine has: u-boot'),
    ],
)
def test_what_cannot_be_stops_the_build(tmp_path: Path, conf: str, complaint: str) -> None:
    assert complaint in build(tmp_path, conf=f"{conf}\n").ask()["failed"]


def test_without_systemd_there_is_no_image(tmp_path: Path) -> None:
    found = build(tmp_path, conf='DISTRO_FEATURES = "sysvinit"\n').ask({"update-autoboot": {}})["recipes"]
    assert "INIT_MANAGER" in found["update-autoboot"]["skipped"]


def test_no_recipe_has_the_name_of_an_override(tmp_path: Path) -> None:
    """OE-core's insane.bbclass stops at one: its variables would all be overrides of themselves."""
    asked = {"*": {"values": ["PN", "OVERRIDES"]}}
    for found in build(tmp_path).ask(asked)["recipes"].values():
        words = [word for word in found["values"]["OVERRIDES"].split(":") if not word.startswith("pn-")]
        assert found["values"]["PN"] not in words


def deploy(folder: Path) -> None:
    """What other recipes leave for an image's boot partition."""
    for name in ("bootfiles/config.txt", "bootfiles/start4.elf", "bcm2711-rpi-4-b.dtb", "vc4.dtbo", "Image"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")


def made(build: Build) -> tuple[dict[str, str], Path]:
    """What the recipes make, as text by name, and the first partition."""
    names = ("DEPLOY_DIR_IMAGE", "CMDLINE_ROOTFS", "IMAGE_ROOTFS")
    values = build.ask({IMAGE: {"values": [*names]}})["recipes"][IMAGE]["values"]
    folder = Path(values["DEPLOY_DIR_IMAGE"])
    deploy(folder)
    # As rpi-cmdline makes it.
    line = f"dwc_otg.lpm_enable=0 console=serial0,115200 {values['CMDLINE_ROOTFS']} net.ifnames=0\n"
    (folder / "bootfiles/cmdline.txt").write_text(line)
    root = Path(build.run(IMAGE, "do_rootfs", values=("IMAGE_ROOTFS",))["IMAGE_ROOTFS"])
    done = build.run("update-autoboot", "do_unpack", "do_compile", "do_deploy")
    conf = Path(build.run("update-agent-conf")["D"]) / "etc/mender/mender.conf"
    wks = (build.layer / "files/wic/update-tryboot.wks.in").read_text()
    files = {
        "wks": build.expand(wks.replace("${IMAGE_ROOTFS}", str(root))),
        "agent": conf.read_text(),
        "fstab": (root / "etc/fstab").read_text(),
        "cmdline": (root / "boot/cmdline.txt").read_text(),
    }
    boot = sorted(str(path.relative_to(root)) for path in (root / "boot").rglob("*") if path.is_file())
    files["boot"] = "\n".join(boot)
    return files, Path(done["DEPLOYDIR"]) / "update-autoboot.vfat"


def facts(files: dict[str, str], first: Path) -> dict[str, dict[str, object]]:
    """Each fact, with every place that states it and what it says there."""
    parts = [line for line in files["wks"].splitlines() if line.startswith("part ")]
    numbers = [*range(1, 4), *range(5, len(parts) + 2)]  # as wic does: the fourth is the extended partition
    wks = dict(zip(numbers, parts, strict=True))
    agent = json.loads(files["agent"])
    loaded = autoboot.load(str(first))
    data = re.findall(r"^(\S+)\s+/data\s", files["fstab"], re.MULTILINE)[0]

    def number(path: str) -> int:
        return int(re.sub(r".*p", "", path))

    return {
        "autoboot": {
            "wks": [n for n, line in wks.items() if "update-autoboot.vfat" in line],
            "agent": [number(agent["AutobootPart"])],
        },
        "boot partitions": {
            "wks": [n for n, line in wks.items() if "--fstype=vfat" in line and "autoboot" not in line],
            "agent": [number(agent[f"BootPart{slot}"]) for slot in "AB"],
            "autoboot.txt": [int(loaded.default), int(loaded.other)],
        },
        "root partitions": {
            "wks": [n for n, line in wks.items() if "--fstype=ext4" in line and "/data" not in line],
            "agent": [number(agent[f"RootfsPart{slot}"]) for slot in "AB"],
        },
        "root of slot A": {
            "cmdline.txt": re.findall(r"\broot=(\S+)", files["cmdline"]),
            "agent": [agent["RootfsPartA"]],
        },
        "data partition": {
            "wks": [n for n, line in wks.items() if line.startswith("part /data")],
            "fstab": [number(data)],
            "last": [max(wks)],
        },
        "boot loader": {"agent": agent["Bootloader"], "layer": "tryboot"},
        "boot A is the slot's": {
            "wks": [n for n, line in wks.items() if re.search(r"--rootfs-dir=\S+/boot ", line)],
            "agent": [number(agent["BootPartA"])],
        },
    }


def disagreements(found: dict[str, dict[str, object]]) -> list[str]:
    return [
        f"{fact}: {places}"
        for fact, places in found.items()
        if any(value != next(iter(places.values())) for value in places.values())
    ]


@needs_tools
@pytest.mark.parametrize("machine", MACHINES)
def test_all_files_mean_the_same_card(tmp_path: Path, machine: str) -> None:
    files, first = made(build(tmp_path, machine))
    assert disagreements(facts(files, first)) == []
    assert files["boot"].splitlines() == [
        "boot/bcm2711-rpi-4-b.dtb",
        "boot/cmdline.txt",
        "boot/config.txt",
        "boot/kernel8.img",
        "boot/overlays/vc4.dtbo",
        "boot/start4.elf",
    ]
    assert " ro rootwait panic=5 " in files["cmdline"]


@needs_tools
def test_another_card_is_another_one_everywhere(tmp_path: Path) -> None:
    files, first = made(build(tmp_path, conf='UPDATE_STORAGE = "nvme0n1"\n'))
    found = facts(files, first)
    assert disagreements(found) == []
    assert found["root of slot A"]["agent"] == ["/dev/nvme0n1p5"]
    assert "--ondisk nvme0n1" in files["wks"]


@needs_tools
@pytest.mark.parametrize(
    ("name", "old", "new", "fact"),
    [
        ("wks", "--fstype=vfat --label BOOT-A", "--fstype=ext4 --label BOOT-A", "boot partitions"),
        ("agent", "mmcblk0p6", "mmcblk0p7", "root partitions"),
        ("cmdline", "mmcblk0p5", "mmcblk0p2", "root of slot A"),
        ("fstab", "mmcblk0p7", "mmcblk0p4", "data partition"),
    ],
)
def test_a_fault_in_one_file_is_found(tmp_path: Path, name: str, old: str, new: str, fact: str) -> None:
    files, first = made(build(tmp_path))
    assert old in files[name]
    files[name] = files[name].replace(old, new, 1)
    assert [line for line in disagreements(facts(files, first)) if line.startswith(fact)]


@needs_tools
def test_the_first_partition_is_sound_and_always_the_same(tmp_path: Path) -> None:
    images = []
    for name in ("one", "two"):
        done = build(tmp_path / name).run("update-autoboot", "do_unpack", "do_compile", "do_deploy")
        images.append(Path(done["DEPLOYDIR"]) / "update-autoboot.vfat")
        fsck = subprocess.run(["fsck.vfat", "-n", images[-1]], capture_output=True, text=True, check=False)
        assert fsck.returncode == 0, fsck.stdout
    assert images[0].read_bytes() == images[1].read_bytes()
    assert images[0].stat().st_size == 4 << 20


@needs_tools
def test_the_firmware_starts_the_card_and_the_agent_understands_it(tmp_path: Path) -> None:
    """Partitions of the layer's files; root file systems need not be there for either."""
    files, first = made(build(tmp_path))
    pi = Pi(str(tmp_path / "card"))
    pi.flash()
    shutil.copy(first, pi.part("1"))
    settings = json.loads(files["agent"])
    for key in ("AutobootPart", "BootPartA", "BootPartB", "RootfsPartA", "RootfsPartB"):
        settings[key] = pi.part(re.sub(r".*p", "", settings[key]))
    line = command_line(files["cmdline"], f"root={settings['RootfsPartA']}")
    pi.put("2", "cmdline.txt", line.encode())
    for number in ("5", "6"):
        Path(pi.part(number)).write_bytes(b"")
    assert pi.start() == "5"
    loaded = config.Config()
    loaded.datastore = str(tmp_path)
    loaded.merge(settings, "mender.conf")
    assert loaded.warnings == []
    from update_agent.slots import Host

    loader = Tryboot(loaded, Log(), host=Host(bootloader=pi.tree, boot_id=pi.boot_id))
    assert loader.read("mender_boot_part", "upgrade_available") == {
        "mender_boot_part": "5",
        "upgrade_available": "0",
    }


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ("bootfiles/*", {"bootfiles/config.txt": "config.txt", "bootfiles/start4.elf": "start4.elf"}),
        (
            "bootfiles/*;fw",
            {"bootfiles/config.txt": "fw/config.txt", "bootfiles/start4.elf": "fw/start4.elf"},
        ),
        ("Image;kernel8.img vc4.dtbo;overlays/", {"Image": "kernel8.img", "vc4.dtbo": "overlays/vc4.dtbo"}),
        ("bootfiles/config.txt", {"bootfiles/config.txt": "bootfiles/config.txt"}),
    ],
)
def test_boot_files_are_placed_as_wic_places_them(
    tmp_path: Path, entries: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(LAYER / "lib"))
    from update_layer import bootfiles

    deploy(tmp_path)
    found = bootfiles.resolve(entries, str(tmp_path))
    assert {str(Path(source).relative_to(tmp_path)): target for source, target in found} == expected
    with pytest.raises(ValueError, match="more than one file for Image"):
        bootfiles.resolve("Image vc4.dtbo;Image", str(tmp_path))


def test_a_boot_file_that_is_not_there_stops_the_build(tmp_path: Path) -> None:
    found = build(tmp_path).ask({IMAGE: {"tasks": ["do_rootfs"]}})["recipes"][IMAGE]
    assert "IMAGE_BOOT_FILES: there is no bootfiles/* in" in found["failed"]


@pytest.mark.skipif(not shutil.which("sfdisk", path="/usr/sbin:/sbin"), reason="sfdisk is not installed")
def test_the_data_partition_grows_within_the_extended_one(tmp_path: Path) -> None:
    """A sector for each of the two: a power cut between them is one that the next start goes on after."""
    table = (
        "label: dos\nstart=16384,size=8192,type=c\nsize=8192,type=c\nsize=8192,type=c\nsize=98304,type=5\n"
    )
    table += "size=16384,type=83\n" * 3
    total = (200 << 20) // 512
    grow = GrowData(tmp_path, sectors=total, table=table)
    before, data = grow.card.read_bytes(), grow.last()
    tree = build(tmp_path).run("update-data")["D"]
    for _ in range(2):  # the kernel's numbers stay, as if the power had gone before partx
        grow.run(tree)
    last = grow.last()
    assert last["start"] == data["start"]
    assert last["start"] + last["size"] == total
    assert grow.calls().splitlines()[0] == f"partx --update --nr 7 {grow.card}"
    after = grow.card.read_bytes()
    sectors = range(0, len(before), 512)
    assert len([at for at in sectors if before[at : at + 512] != after[at : at + 512]]) == 2
