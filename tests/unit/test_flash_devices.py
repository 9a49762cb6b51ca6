# SPDX-License-Identifier: Apache-2.0
"""Which media are offered and which are refused: lsblk's documents of machines as people have them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit import flash_card

from update_tools.flash import cli, devices, refuse
from update_tools.flash.errors import FlashError

GB = 10**9


def row(name: str, size: int = 32 * GB, **more: Any) -> dict[str, Any]:
    defaults = {"path": f"/dev/{name}", "type": "disk", "ro": False, "rm": False, "mountpoints": [None]}
    number = f"{ord(name[-1])}:{len(name)}"
    return {"name": name, "size": size, "maj:min": number, **defaults, **more}


def part(name: str, mount: str | None = None, **more: Any) -> dict[str, Any]:
    return row(name, GB, **{"type": "part", "mountpoints": [mount], **more})


USB = {"tran": "usb", "rm": True, "vendor": "SanDisk ", "model": "Ultra"}
SYSTEM_DISK = row(
    "nvme0n1",
    512 * GB,
    tran="nvme",
    model="Samsung 990",
    children=[
        part("nvme0n1p1", "/boot/efi", fstype="vfat"),
        part(
            "nvme0n1p2",
            fstype="crypto_LUKS",
            children=[row("luks", type="crypt", children=[row("vg-root", type="lvm", mountpoints=["/"])])],
        ),
    ],
)
MEDIA = {
    "a stick": (row("sda", **USB, children=[part("sda1", fstype="vfat", label="PHOTOS")]), ""),
    "a card in a USB reader": (row("sdb", tran="usb", rm=True), ""),
    "a card in a slot": (row("mmcblk0"), ""),
    "a USB disk": (row("sdc", 4000 * GB, tran="usb"), ""),
    "a closed encrypted volume": (row("sda", **USB, children=[part("sda1", fstype="crypto_LUKS")]), ""),
    "a loop device": (row("loop0", type="loop"), ""),
    "the system": (SYSTEM_DISK, "this machine runs from it"),
    "soldered": (row("mmcblk1"), "not removable"),
    "a second disk": (row("sdd", tran="sata"), "not removable"),
    "mounted": (
        row("sda", **USB, children=[part("sda1", "/media/me/PHOTOS")]),
        "sda1 is mounted at /media/me",
    ),
    "mounted without partitions": (row("sda", **USB, mountpoints=["/mnt"]), "/dev/sda is mounted at /mnt"),
    "a system on a stick": (
        row("sda", **USB, children=[part("sda1"), part("sda2", "/")]),
        "this machine runs from it",
    ),
    "swap": (row("sda", **USB, children=[part("sda1", "[SWAP]", fstype="swap")]), "swap in use"),
    "an open encrypted volume": (
        row("sda", **USB, children=[part("sda1", children=[row("luks-1", type="crypt")])]),
        "/dev/luks-1 on it is an open encrypted volume",
    ),
    "active LVM": (row("sda", **USB, children=[row("vg-home", type="lvm")]), "an active LVM volume"),
    "a RAID": (row("sda", **USB, children=[part("sda1", children=[row("md0", type="raid1")])]), "a RAID"),
    "locked": (row("sda", **{**USB, "ro": True}), "read-only"),
    "locked, as older lsblk says it": (row("sda", **{**USB, "ro": "1"}), "read-only"),
    "too small": (row("sda", 4 * GB, tran="usb"), "too small"),
}


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    for name, kind in (("mmcblk0", "SD"), ("mmcblk1", "MMC")):
        (tmp_path / "block" / name / "device").mkdir(parents=True)
        (tmp_path / "block" / name / "device/type").write_text(f"{kind}\n")
    return tmp_path


@pytest.mark.parametrize("name", MEDIA)
def test_what_is_refused_and_why(name: str, sysfs: Path) -> None:
    document, why = MEDIA[name]
    (medium,) = devices.media({"blockdevices": [document]}, sysfs=sysfs)
    found = refuse.reasons(medium, 8 * GB)
    if why:
        assert why in "; ".join(reason.text for reason in found)
    else:
        assert [reason.text for reason in found] == []


def test_the_gravest_reason_comes_first_and_all_are_told(sysfs: Path) -> None:
    (medium,) = devices.media({"blockdevices": [SYSTEM_DISK]}, sysfs=sysfs)
    texts = [reason.text for reason in refuse.reasons(medium, 1000 * GB)]
    assert texts[0] == "this machine runs from it (/, /boot/efi)"
    assert [
        word for word in ("LVM", "encrypted", "not removable", "too small") if word in " ".join(texts)
    ] == [*("LVM", "encrypted", "not removable", "too small")]


def test_a_file_system_that_lsblk_does_not_see_mounted_counts_by_its_number(sysfs: Path) -> None:
    document = row("sda", **USB, children=[part("sda1")])
    (medium,) = devices.media({"blockdevices": [document]}, sysfs=sysfs)
    assert refuse.reasons(medium, system={"254:0"}) == []
    assert "runs from it" in refuse.reasons(medium, system={medium.parts[0].number})[0].text


def test_the_root_of_this_machine_is_among_what_it_runs_from() -> None:
    assert refuse.running_from(["/", "/no/such/place"]) == refuse.running_from(["/"]) != set()


def test_empty_readers_and_unused_loop_devices_are_not_there(sysfs: Path) -> None:
    document = {"blockdevices": [row("sde", 0, **USB), row("loop7", 0, type="loop"), row("sda", **USB)]}
    assert [medium.name for medium in devices.media(document, sysfs=sysfs)] == ["sda"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/dev/sda1", "a part of /dev/sda, not a whole medium"),
        ("/dev/null", "no block device"),
        ("/dev/no-such", "does not exist"),
    ],
)
def test_only_whole_media_are_found(path: str, message: str, sysfs: Path) -> None:
    present = devices.media({"blockdevices": [row("sda", **USB, children=[part("sda1")])]}, sysfs=sysfs)
    with pytest.raises(FlashError, match=message):
        devices.find(Path(path), present)


def test_links_are_followed(tmp_path: Path, sysfs: Path) -> None:
    present = devices.media({"blockdevices": [row("sda", **USB)]}, sysfs=sysfs)
    (tmp_path / "usb-SanDisk_Ultra").symlink_to("/dev/sda")
    assert devices.find(tmp_path / "usb-SanDisk_Ultra", present).name == "sda"


def test_this_machine_can_be_looked_at() -> None:
    for medium in devices.attached():
        assert medium.path.startswith("/dev/")
        assert medium.size_bytes > 0
        assert medium.number.count(":") == 1
        assert devices.is_there(medium)


# What people see of it. The media are recorded ones: nothing here has any to plug in.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch, sysfs: Path) -> None:
    """A stick with photos that is mounted, an empty card in a slot, and the system's disk."""
    stick = row("sda", **USB, children=[part("sda1", "/media/me/PHOTOS", fstype="vfat", label="PHOTOS")])
    document = {"blockdevices": [stick, row("mmcblk0", 8 * GB), SYSTEM_DISK]}
    monkeypatch.setattr(devices, "attached", lambda: devices.media(document, sysfs=sysfs))


@pytest.mark.usefixtures("plugged")
def test_the_list_is_of_removable_media(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (stick,) = [line for line in lines if "/dev/sda" in line and "PHOTOS" in line]
    for text in (
        "32.0 GB",
        "SanDisk Ultra",
        "usb",
        "vfat PHOTOS",
        "no: /dev/sda1 is mounted at /media/me/PHOTOS",
    ):
        assert text in stick
    (card,) = [line for line in lines if "/dev/mmcblk0" in line]
    for text in ("8.0 GB", "SD card", "yes"):
        assert text in card
    assert "nvme" not in "".join(lines)

    assert cli.run(["--list", "--json"]) == 0
    listed = {medium["path"]: medium for medium in json.loads(capsys.readouterr().out)}
    assert listed.keys() == {"/dev/sda", "/dev/mmcblk0"}
    assert listed["/dev/sda"]["refused_because"] == ["/dev/sda1 is mounted at /media/me/PHOTOS"]
    assert listed["/dev/sda"]["parts"][0]["mounted_at"] == ["/media/me/PHOTOS"]
    assert listed["/dev/mmcblk0"]["refused_because"] == []


@pytest.mark.usefixtures("plugged")
def test_without_a_device_the_one_that_can_be_written_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = flash_card.make(tmp_path / "card.wic")
    monkeypatch.setattr("sys.stdin", Terminal("no\n"))
    with pytest.raises(FlashError, match="nothing was written"):
        cli.run([str(card)])
    out, err = capsys.readouterr()
    assert "Overwrite all of /dev/mmcblk0? [y/N]" in err
    assert "SanDisk" in out

    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(FlashError, match="DEVICE is missing"):
        cli.run([str(card), "--yes"])
    monkeypatch.setattr(devices, "attached", list)
    with pytest.raises(FlashError, match="no removable medium is attached"):
        cli.run([str(card)])


def test_of_several_media_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sysfs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = flash_card.make(tmp_path / "card.wic")
    document = {"blockdevices": [row("sda", **USB), row("mmcblk0")]}
    monkeypatch.setattr(devices, "attached", lambda: devices.media(document, sysfs=sysfs))
    for answer, message in (
        ("sdz\n", "is none of them"),
        ("\n", "is none of them"),
        ("sda\nn\n", "nothing was written"),
    ):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        with pytest.raises(FlashError, match=message):
            cli.run([str(card)])
    assert "Overwrite all of /dev/sda?" in capsys.readouterr().err
