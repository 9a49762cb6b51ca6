# SPDX-License-Identifier: Apache-2.0
"""`ota inspect`: a good card is silent, and each seeded fault is found under its name, alone."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.inspect_card import HARDENED, Card, devicetree, missing_tools, program

from update_tools.inspect.cli import inspect
from update_tools.inspect.source import Opener

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(
    bool(missing_tools()) and "CI" not in os.environ, reason=f"not installed: {', '.join(missing_tools())}"
)

MIB = 1 << 20
KEY = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIHVvB2Yq0Vk3\n-----END PRIVATE KEY-----\n"
SCRIPT = "#!/bin/sh\nexit 0\n"
SCRIPTS, HOOKS = "/etc/mender/scripts", "/usr/share/mender/pause.d"


def found(path: Path, **options: str) -> list[tuple[str, str]]:
    """Name and place of all findings."""
    with Opener() as opener:
        report = inspect(path, opener, **options)
    return [(finding["name"], finding["where"]) for finding in report["findings"]]


def test_a_good_card_is_silent(tmp_path: Path) -> None:
    assert found(Card().make(tmp_path)) == []


def text(path: str, content: str | bytes, mode: int = 0o644) -> Callable[[Card], None]:
    return lambda card: card.rootfs.text(path, content, mode)


def without(path: str) -> Callable[[Card], None]:
    return lambda card: card.rootfs.remove(path)


def config(**settings: object) -> Callable[[Card], None]:
    return lambda card: card.config.update(settings)


def replaced(attribute: str, old: str, new: str) -> Callable[[Card], None]:
    def change(card: Card) -> None:
        before = getattr(card, attribute)
        assert old in before
        setattr(card, attribute, before.replace(old, new))

    return change


def fw_env(*lines: str) -> Callable[[Card], None]:
    return text("/etc/fw_env.config", "".join(f"/dev/mmcblk0 {line}\n" for line in lines))


def boot(**files: bytes) -> Callable[[Card], None]:
    return lambda card: card.boot.update({name.replace("_dtb", ".dtb"): data for name, data in files.items()})


def tree(**properties: str) -> Callable[[Card], None]:
    return lambda card: card.boot.update({"bcm2711-rpi-4-b.dtb": devicetree(**properties)})


def patch(offset: int, content: bytes) -> Callable[[Card], None]:
    return lambda card: card.patches.append((offset, content))


def data_first(card: Card) -> None:
    """The boot partition behind the data."""
    lines = ["label: dos", "unit: sectors"]
    at = card.layout.first_bytes
    for number, name in ((2, "A"), (3, "B"), (4, "DATA"), (1, "BOOT")):
        card.layout.offsets[name] = at
        at += card.layout.sizes[name]
        start, size = card.layout.offset(name) // 512, card.layout.sizes[name] // 512
        lines.append(f"{number}: start={start}, size={size}, type={'c' if name == 'BOOT' else '83'}")
    card.table = "\n".join(lines) + "\n"


def no_data(card: Card) -> None:
    """An empty data partition; the device type is in the root file system, as mender.conf says."""
    card.data = None
    card.config["DeviceTypeFile"] = "/etc/device_type"
    card.rootfs.text("/etc/device_type", "device_type=raspberrypi4-64\n")


def filesystem_too_large(card: Card) -> None:
    """The superblock of root A says one block more than the partition has."""
    blocks = card.layout.sizes["A"] // 4096 + 1
    card.patches.append((card.layout.offset("A") + 1024 + 4, struct.pack("<I", blocks)))


def other_architecture(path: str) -> Callable[[Card], None]:
    """A program of this host."""
    return text(path, Path("/bin/true").read_bytes(), 0o755)


def arm32(machine_flags: int) -> bytes:
    """The smallest 32-bit ARM program: a header and one segment."""
    head = b"\x7fELF\x01\x01\x01" + bytes(9)
    head += struct.pack("<HHIIIIIHHHHHH", 2, 40, 1, 0x10000, 52, 0, machine_flags, 52, 32, 1, 0, 0, 0)
    return head + struct.pack("<IIIIIIII", 1, 0, 0x10000, 0x10000, 84, 84, 5, 4096)


def built(*flags: str) -> Callable[[Card], None]:
    kept = [
        flag
        for flag in HARDENED
        if not any(flag.startswith(other) for other in ("-fstack", "-Wl", "-fPIE", "-pie"))
    ]
    return text("/usr/bin/product", program(*kept, *flags), 0o755)


def needs_library(card: Card) -> None:
    """A program that needs libproduct.so.1, which is not there."""
    library = program(
        "-shared", "-fPIC", "-Wl,-soname,libproduct.so.1", source="int product(void) { return 1; }"
    )
    place = Path(os.environ["TMPDIR_OF_TEST"], "libproduct.so")
    place.write_bytes(library)
    made = program(
        *HARDENED,
        "-Wl,--no-as-needed",
        str(place),
        source="#include <string.h>\nint main(int c, char **v) { char b[64]; strcpy(b, v[c-1]); return b[0]; }",
    )
    card.rootfs.text("/usr/bin/product", made, 0o755)


# Finding, where it must be, what is done to the card. Each must be the only finding.
FAULTS: list[tuple[str, str, Callable[[Card], object]]] = [
    # partitions and file systems
    ("partition-overlap", "partitions 2 and 3", patch(446 + 2 * 16 + 8, struct.pack("<I", 90000))),
    ("slot-sizes-differ", "root A, root B", replaced("table", "3: start=98304, size=49152", "3: start=98304, size=40960")),
    ("data-not-last", "partition 4", data_first),
    ("filesystem-too-large", "partition 2", filesystem_too_large),
    ("filesystem-missing", "partition 4", no_data),
    ("slot-missing", "/dev/mmcblk0p7", config(RootfsPartB="/dev/mmcblk0p7")),
    # U-Boot's environment
    ("fw-env-missing", "/etc/fw_env.config", without("/etc/fw_env.config")),
    ("fw-env-invalid", "/etc/fw_env.config", fw_env("0x400000")),
    ("env-copy-bad", "/dev/mmcblk0 0x600000", patch(0x600100, b"oops")),
    ("env-empty", "/dev/mmcblk0 0x400000, 0x600000", lambda card: setattr(card, "environment", "")),
    ("env-variable-missing", "bootlimit", replaced("environment", "bootlimit=1\n", "")),
    ("env-slot-unknown", "mender_boot_part", replaced("environment", "mender_boot_part=2\nmender_boot_part_hex=2", "mender_boot_part=5\nmender_boot_part_hex=5")),
    ("env-hex-differs", "mender_boot_part_hex", replaced("environment", "part_hex=2", "part_hex=3")),
    ("env-upgrade-pending", "upgrade_available", replaced("environment", "upgrade_available=0", "upgrade_available=1")),
    # boot script, kernel, device tree
    ("boot-script-missing", "/boot.scr", lambda card: setattr(card, "script", "")),
    ("boot-script-unfilled", "/boot.scr", replaced("script", "going back", "@@UPDATE_WAY@@")),
    ("boot-script-one-slot", "/boot.scr", replaced("script", "mender_boot_part", "my_part")),
    ("boot-script-other-card", "/boot.scr", replaced("script", "root=/dev/mmcblk0p", "root=/dev/mmcblk1p")),
    ("kernel-missing", "/boot/Image", without("/boot/Image")),
    ("kernel-wrong-architecture", "/boot/Image", text("/boot/Image", bytes(0x24) + b"\x18\x28\x6f\x01" + bytes(90))),
    ("devicetree-missing", "/boot/board.dtb", replaced("script", "${fdt_addr_r} /boot/\n", "${fdt_addr_r} /boot/board.dtb\n")),
    ("devicetree-other-board", "partition 1:/bcm2711-rpi-4-b.dtb", tree(compatible='"ti,am335x-bone", "ti,am33xx"')),
    ("devicetree-damaged", "partition 1:/cut.dtb", boot(cut_dtb=devicetree()[:200])),
    ("devicetree-fixed-root", "partition 1:/bcm2711-rpi-4-b.dtb", tree(bootargs="root=/dev/mmcblk0p2 quiet")),
    ("devicetree-no-mmc", "partition 1:/bcm2711-rpi-4-b.dtb", tree(status="disabled")),
    ("cmdline-fixed-root", "/cmdline.txt", lambda card: card.boot.update({"cmdline.txt": b"root=/dev/mmcblk0p2 rootwait\n"})),
    # programs and libraries
    ("wrong-architecture", "/usr/bin/product", other_architecture("/usr/bin/product")),
    ("missing-library", "/usr/bin/product", needs_library),
    ("missing-interpreter", "/usr/bin/product", built("-fPIE", "-pie", "-fstack-protector-strong", "-Wl,-z,relro,-z,now,--dynamic-linker=/lib/ld-musl-aarch64.so.1")),
    ("elf-damaged", "/usr/bin/product", text("/usr/bin/product", program(*HARDENED)[:3000], 0o755)),
    ("not-pie", "/usr/bin/product", built("-no-pie", "-fstack-protector-strong", "-Wl,-z,relro,-z,now")),
    ("no-relro", "/usr/bin/product", built("-fPIE", "-pie", "-fstack-protector-strong", "-Wl,-z,norelro")),
    ("no-canary", "/usr/bin/product", built("-fPIE", "-pie", "-fno-stack-protector", "-Wl,-z,relro,-z,now")),
    ("executable-stack", "/usr/bin/product", built("-fPIE", "-pie", "-fstack-protector-strong", "-Wl,-z,relro,-z,now,-z,execstack")),
    ("insecure-rpath", "/usr/bin/product", built("-fPIE", "-pie", "-fstack-protector-strong", "-Wl,-z,relro,-z,now,-rpath,/tmp/build/lib")),
    # state scripts and pause hooks
    ("script-unreachable", f"{SCRIPTS}/ArtifactInstall_Enter_10", text(f"{SCRIPTS}/ArtifactInstall_Enter_10", SCRIPT, 0o755)),
    ("script-no-such-hook", f"{SCRIPTS}/Idle_Error_10", text(f"{SCRIPTS}/Idle_Error_10", SCRIPT, 0o755)),
    ("script-bad-name", f"{SCRIPTS}/Download_Enter_1_x", text(f"{SCRIPTS}/Download_Enter_1_x", SCRIPT, 0o755)),
    ("script-not-executable", f"{SCRIPTS}/Sync_Enter_10", text(f"{SCRIPTS}/Sync_Enter_10", SCRIPT)),
    ("script-writable", f"{SCRIPTS}/Sync_Enter_10", text(f"{SCRIPTS}/Sync_Enter_10", SCRIPT, 0o757)),
    ("script-no-interpreter", f"{SCRIPTS}/Sync_Enter_10", text(f"{SCRIPTS}/Sync_Enter_10", "#!/bin/bash\n", 0o755)),
    ("script-crlf", f"{SCRIPTS}/Sync_Enter_10", text(f"{SCRIPTS}/Sync_Enter_10", "#!/bin/sh\r\n", 0o755)),
    ("script-empty", f"{SCRIPTS}/Sync_Enter_10", text(f"{SCRIPTS}/Sync_Enter_10", "", 0o755)),
    ("scripts-version", f"{SCRIPTS}/version", text(f"{SCRIPTS}/version", "4\n")),
    ("hook-invalid", f"{HOOKS}/30-x.json", lambda card: card.hook("30-x.json", {"point": "Reboot", "when": "always"})),
    ("hook-invalid", f"{HOOKS}/night.json", lambda card: card.hook("night.json", {"point": "ArtifactCommit_Enter", "when": "always"})),
    ("hook-program-missing", f"{HOOKS}/20-load.json", without("/usr/bin/check-load")),
    ("hook-writable", f"{HOOKS}/30-x.json", lambda card: card.hook("30-x.json", {"point": "ArtifactCommit_Enter", "when": "always"}, 0o666)),
    # the agent and its configuration
    ("agent-missing", "/usr/bin/update-agent", without("/usr/bin/update-agent")),
    ("config-invalid", "/etc/mender/mender.conf", config(UpdatePollIntervalSeconds="1800")),
    ("config-no-server", "/etc/mender/mender.conf", lambda card: card.config.pop("Servers")),
    ("config-plain-http", "/etc/mender/mender.conf", config(Servers=[{"ServerURL": "http://x.example"}])),
    ("config-skip-verify", "/etc/mender/mender.conf", config(SkipVerify=True)),
    ("config-file-missing", "/etc/mender/verify.pem", config(ArtifactVerifyKeys=["/etc/mender/verify.pem"])),
    ("config-same-slots", "/etc/mender/mender.conf", config(RootfsPartB="/dev/mmcblk0p2")),
    ("device-type-missing", "/var/lib/mender/device_type", lambda card: card.data.remove("/mender/device_type") if card.data else None),
    ("data-not-mounted", "/data/mender", text("/etc/fstab", "/dev/root / auto defaults 1 1\n")),
    ("store-not-on-data", "/var/lib/mender", lambda card: card.rootfs.directory("/var/lib/mender")),
    ("fstab-fixed-root", "/etc/fstab", text("/etc/fstab", "/dev/mmcblk0p2 / ext4 ro 0 1\n/dev/mmcblk0p4 /data ext4 rw 0 2\n")),
    # secrets and rights
    ("private-key", "/etc/mender/artifact-signing.key", text("/etc/mender/artifact-signing.key", KEY, 0o600)),
    ("device-key-shared", "data: /mender/mender-agent.pem", lambda card: card.data.text("/mender/mender-agent.pem", KEY) if card.data else None),
    ("machine-id-shared", "/etc/machine-id", text("/etc/machine-id", "0123456789abcdef" * 2 + "\n")),
    ("root-without-password", "/etc/shadow", text("/etc/shadow", "root::15069:0:99999:7:::\n", 0o400)),
    ("world-writable", "/etc/passwd", text("/etc/passwd", "root:x:0:0::/root:/bin/sh\n", 0o666)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "where", "fault"), FAULTS, ids=[f"{row[0]}-{n}" for n, row in enumerate(FAULTS)]
)
def test_seeded_fault(
    name: str, where: str, fault: Callable[[Card], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR_OF_TEST", str(tmp_path))
    card = Card()
    fault(card)
    assert found(card.make(tmp_path)) == [(name, where)]


def test_a_library_of_another_machine_is_told_for_itself_and_for_who_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR_OF_TEST", str(tmp_path))
    card = Card()
    needs_library(card)
    other_architecture("/usr/lib/libproduct.so.1")(card)
    card.make_rootfs(tmp_path / "root.ext4")
    assert found(tmp_path / "root.ext4", machine="raspberrypi4-64") == [
        ("wrong-architecture", "/usr/lib/libproduct.so.1"),
        ("library-wrong-architecture", "/usr/bin/product"),
    ]
