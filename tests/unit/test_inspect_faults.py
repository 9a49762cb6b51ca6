# SPDX-License-Identifier: Apache-2.0
"""`ota inspect`: a good card is silent, and each seeded fault is found under its name, alone."""

from __future__ import annotations

import ast
import os
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.artifacts import Entry, SigningKey
from tests.unit.inspect_card import (
    BIG,
    HARDENED,
    MARK,
    MIB,
    OFFSETS,
    SIZES,
    Card,
    boot_script,
    devicetree,
    missing_tools,
    program,
    update,
)

from update_tools.inspect.cli import inspect
from update_tools.inspect.findings import CATALOGUE
from update_tools.inspect.source import Opener

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(
    bool(missing_tools()) and "CI" not in os.environ, reason=f"not installed: {', '.join(missing_tools())}"
)

KEY = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIHVvB2Yq0Vk3\n-----END PRIVATE KEY-----\n"
SCRIPT = "#!/bin/sh\nexit 0\n"
SCRIPTS, HOOKS = "/etc/mender/scripts", "/usr/share/mender/pause.d"


def found(path: Path, **options: object) -> list[tuple[str, str]]:
    """Name and place of all findings."""
    with Opener() as opener:
        report = inspect(path, opener, **options)
    return [(finding["name"], finding["where"]) for finding in report["findings"]]


def found_in(card: Card, into: Path) -> list[tuple[str, str]]:
    """The same of a card, with the artifact that it has, or of its root directory as another user sees it."""
    if card.user is not None:
        return found_by(card.user, card)
    if card.update is None:
        return found(card.make(into), machine=card.machine)
    artifact = into / "update.mender"
    artifact.write_bytes(card.update.build())
    return found(card.make(into), with_artifact=artifact)


def found_by(user: int, card: Card) -> list[tuple[str, str]]:
    """In a child, which gives up what root may."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own directory is closed to other users
        os.chmod(name, 0o755)
        tree = card.make_directory(Path(name))
        (tree / "tmp").chmod(0o1777)  # debugfs does not take the sticky bit along
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.setresuid(user, user, user)
                os.write(writer, repr(found(tree, machine="raspberrypi4-64")).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader) as answer:
            text = answer.read()
        os.waitpid(child, 0)
    return [(name, where) for name, where in ast.literal_eval(text)]


def test_a_good_card_is_silent(tmp_path: Path) -> None:
    card = Card()
    card.update = update()
    assert found_in(card, tmp_path) == []


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


def both(*faults: Callable[[Card], object]) -> Callable[[Card], None]:
    def change(card: Card) -> None:
        for fault in faults:
            fault(card)

    return change


def having(**attributes: object) -> Callable[[Card], None]:
    """The card's own attributes."""
    return lambda card: [setattr(card, name, value) for name, value in attributes.items()] and None


def artifact(**fields: object) -> Callable[[Card], None]:
    """An artifact for the card, with these fields."""
    return having(update=update(**fields))


def damaged(card: Card) -> None:
    """An artifact whose payload is not what its manifest says."""
    good = update()
    data = good.files["root.ext4"]
    card.update = update(data_entries=[Entry("root.ext4", data.replace(MARK, MARK.swapcase()))])


def other_board(*lines: str) -> Callable[[Card], None]:
    """Of a board that the layer does not know, with its environment in other places."""

    def change(card: Card) -> None:
        assert card.data is not None
        card.data.text("/mender/device_type", "device_type=product-x\n")
        places = lines or ("0x400000 0x4000", "0x600000 0x4000")
        fw_env(*places)(card)
        card.env_offsets = [int(line.split()[0], 0) for line in places]

    return change


def no_data_partition(card: Card) -> None:
    """What the agent stores is on another medium, which the image does not have."""
    no_data(card)
    replaced("table", "4: start=57344, size=16384, type=83\n", "")(card)
    text("/etc/fstab", "/dev/root / auto defaults 1 1\n/dev/sda1 /data ext4 defaults 0 2\n")(card)


def tryboot(*faults: Callable[[Card], object]) -> Callable[[Card], None]:
    """A card that Raspberry Pi's firmware starts without U-Boot, and what is wrong with it."""

    def change(card: Card) -> None:
        # As wic lays it out: the fourth is an extended one, with the rest in it.
        places = {1: ("AUTOBOOT", 8, 1), 2: ("BOOT", 9, 4), 3: ("BOOT B", 13, 4), 4: ("", 17, 27)}
        places.update({5: ("A", 18, 8), 6: ("B", 27, 8), 7: ("DATA", 36, 8)})
        card.offsets = {name: start * MIB for name, start, _ in places.values() if name}
        card.table = "label: dos\n" + "".join(
            f"{number}: start={start * 2048}, size={size * 2048}, type={'83' if name else '5'}\n"
            for number, (name, start, size) in places.items()
        )
        node = "/dev/mmcblk0p"
        card.config.update(
            {
                "Bootloader": "tryboot",
                "AutobootPart": f"{node}1",
                "BootPartA": f"{node}2",
                "BootPartB": f"{node}3",
            }
        )
        card.config.update({"RootfsPartA": f"{node}5", "RootfsPartB": f"{node}6"})
        card.autoboot = "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n"
        card.script = card.environment = ""
        card.rootfs.remove("/etc/fw_env.config")
        line = b"console=ttyS0 root=/dev/mmcblk0p5 rootwait\n"
        card.boot = {"bcm2711-rpi-4-b.dtb": devicetree(), "cmdline.txt": line, "config.txt": b"arm_64bit=1\n"}
        for name, content in card.boot.items():
            card.rootfs.text(f"/boot/{name}", content)
        text("/etc/fstab", "/dev/root / auto defaults 1 1\n/dev/mmcblk0p7 /data ext4 defaults 0 2\n")(card)
        for fault in faults:
            fault(card)

    return change


def superblock(partition: str, offset: int, content: bytes) -> Callable[[Card], None]:
    return lambda card: card.patches.append((card.offsets[partition] + 1024 + offset, content))


def lost_file(card: Card) -> None:
    """A file whose content is said to be behind the end of the file system."""
    card.rootfs.text("/usr/share/manual", "x" * 5000)
    card.root_commands = ["sif /usr/share/manual block[5] 0x7fffffff"]


def damaged_boot_script(card: Card) -> None:
    good = boot_script(Path(os.environ["TMPDIR_OF_TEST"], "boot.scr"), card.script).read_bytes()
    card.script = ""
    card.boot["boot.scr"] = good.replace(b"bootcount", b"bootcounT", 1)


def without_guards(card: Card) -> None:
    """A distribution that was built without stack protector."""
    made = program(*[flag for flag in HARDENED if "stack" not in flag], source=BIG)
    for path in ("/usr/bin/busybox", "/usr/bin/python3.13", "/usr/bin/fw_printenv"):
        card.rootfs.text(path, made, 0o755)


def soft_float(card: Card) -> None:
    """A 32-bit system with hard floats, and one program with soft ones."""
    other_board()(card)
    for path, node in list(card.rootfs.nodes.items()):
        if node.data and node.data.startswith(b"\x7fELF"):
            card.rootfs.text(path, arm32(0x5000400), 0o755)
    text("/usr/bin/product", arm32(0x5000200), 0o755)(card)
    text("/boot/Image", bytes(0x24) + b"\x18\x28\x6f\x01" + bytes(90))(card)


def signed(key: str, image_key: str) -> Callable[[Card], None]:
    """Signed by one key, where the image has the public half of one."""

    def change(card: Card) -> None:
        place = Path(os.environ["TMPDIR_OF_TEST"])
        keys = {name: SigningKey.make(place, "ec", name) for name in {key, image_key}}
        config(ArtifactVerifyKeys=["/etc/mender/verify.pem"])(card)
        text("/etc/mender/verify.pem", keys[image_key].public.read_bytes())(card)
        artifact(sign=keys[key].sign)(card)

    return change


def library_elsewhere(card: Card) -> None:
    """The library is in the image, but the loader does not look there."""
    needs_library(card)
    library = Path(os.environ["TMPDIR_OF_TEST"], "libproduct.so").read_bytes()
    card.rootfs.text("/opt/product/libproduct.so.1", library, 0o755)


def library_of_host(card: Card) -> None:
    needs_library(card)
    other_architecture("/usr/lib/libproduct.so.1")(card)


def tree(**properties: str) -> Callable[[Card], None]:
    return lambda card: card.boot.update({"bcm2711-rpi-4-b.dtb": devicetree(**properties)})


def patch(offset: int, content: bytes) -> Callable[[Card], None]:
    return lambda card: card.patches.append((offset, content))


def data_first(card: Card) -> None:
    """The boot partition behind the data."""
    card.offsets = {"A": 8 * MIB, "B": 16 * MIB, "DATA": 24 * MIB, "BOOT": 32 * MIB}
    card.table = "label: dos\nunit: sectors\n" + "".join(
        f"{number}: start={card.offsets[name] // 512}, size={SIZES[name] // 512}, type={kind}\n"
        for number, name, kind in ((1, "BOOT", "c"), (2, "A", "83"), (3, "B", "83"), (4, "DATA", "83"))
    )


def no_data(card: Card) -> None:
    """An empty data partition; the device type is in the root file system, as mender.conf says."""
    card.data = None
    card.config["DeviceTypeFile"] = "/etc/device_type"
    card.rootfs.text("/etc/device_type", "device_type=raspberrypi4-64\n")


def filesystem_too_large(card: Card) -> None:
    """The superblock of root A says one block more than the partition has."""
    blocks = SIZES["A"] // 4096 + 1
    card.patches.append((card.offsets["A"] + 1024 + 4, struct.pack("<I", blocks)))


def other_architecture(path: str) -> Callable[[Card], None]:
    """A program of this host."""
    return text(path, Path("/bin/true").read_bytes(), 0o755)


def arm32(machine_flags: int) -> bytes:
    """The smallest 32-bit ARM program: a header and one segment."""
    head = b"\x7fELF\x01\x01\x01" + bytes(9)
    head += struct.pack("<HHIIIIIHHHHHH", 3, 40, 1, 0x10000, 52, 0, machine_flags, 52, 32, 1, 0, 0, 0)
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
    ("partition-overlap", "partitions 2 and 3", patch(446 + 2 * 16 + 8, struct.pack("<I", 36864))),
    ("partition-beyond-end", "partition 4", patch(446 + 3 * 16 + 12, struct.pack("<I", 20000))),
    ("slot-sizes-differ", "root A, root B", both(replaced("table", "2: start=24576, size=16384", "2: start=24576, size=14336"), having(root_bytes=7 * MIB))),
    ("data-missing", "card.wic", no_data_partition),
    ("data-not-last", "partition 4", data_first),
    ("filesystem-too-large", "partition 2", filesystem_too_large),
    ("filesystem-missing", "partition 4", no_data),
    ("filesystem-unclean", "partition 2", superblock("A", 0x3A, bytes(2))),
    ("filesystem-damaged", "partition 3", superblock("B", 0x28, bytes(4))),
    ("filesystem-damaged", "partition 2: /usr/share/manual", lost_file),
    ("rootfs-label-shared", "partitions 2 and 4", having(root_label="data")),
    ("rootfs-not-read", "card.wic", both(patch(OFFSETS["A"], b"hsqs"), superblock("A", 0x38, bytes(2)))),
    ("slot-missing", "/dev/mmcblk0p7", config(RootfsPartB="/dev/mmcblk0p7")),
    # U-Boot's environment
    ("fw-env-missing", "/etc/fw_env.config", without("/etc/fw_env.config")),
    ("fw-env-invalid", "/etc/fw_env.config", fw_env("0x400000")),
    ("fw-env-other-device", "/etc/fw_env.config", text("/etc/fw_env.config", "/dev/mmcblk1 0x400000 0x4000\n/dev/mmcblk1 0x600000 0x4000\n")),
    ("fw-env-differs-from-board", "/etc/fw_env.config", both(other_board("0x400000 0x4000", "0x500000 0x4000"), lambda card: card.data.text("/mender/device_type", "device_type=raspberrypi4-64\n"))),
    ("env-not-redundant", "/etc/fw_env.config", both(other_board("0x400000 0x4000"), having(copies=""))),
    ("env-copies-overlap", "/etc/fw_env.config", other_board("0x400000 0x4000", "0x402000 0x4000")),
    ("env-overlaps-partition", "environment at 0x7fd000", other_board("0x400000 0x4000", "0x7fd000 0x4000")),
    ("env-overlaps-table", "environment at 0x0", both(other_board("0x600000 0x4000", "0x0 0x4000"), having(environment=""))),
    ("env-bad", "/dev/mmcblk0 0x400000, 0x600000", both(patch(0x400100, b"oops"), patch(0x600100, b"oops"))),
    ("env-no-fallback", "bootlimit", replaced("environment", "bootlimit=1", "bootlimit=0")),
    ("env-copy-bad", "/dev/mmcblk0 0x600000", patch(0x600100, b"oops")),
    ("env-empty", "/dev/mmcblk0 0x400000, 0x600000", lambda card: setattr(card, "environment", "")),
    ("env-variable-missing", "bootlimit", replaced("environment", "bootlimit=1\n", "")),
    ("env-slot-unknown", "mender_boot_part", replaced("environment", "mender_boot_part=2\nmender_boot_part_hex=2", "mender_boot_part=5\nmender_boot_part_hex=5")),
    ("env-hex-differs", "mender_boot_part_hex", replaced("environment", "part_hex=2", "part_hex=3")),
    ("env-upgrade-pending", "upgrade_available", replaced("environment", "upgrade_available=0", "upgrade_available=1")),
    # boot script, kernel, device tree
    ("boot-script-missing", "/boot.scr", lambda card: setattr(card, "script", "")),
    ("boot-script-damaged", "/boot.scr", damaged_boot_script),
    ("boot-script-unfilled", "/boot.scr", replaced("script", "going back", "@@UPDATE_WAY@@")),
    ("boot-script-one-slot", "/boot.scr", replaced("script", "mender_boot_part", "my_part")),
    ("boot-script-other-card", "/boot.scr", replaced("script", "root=/dev/mmcblk0p", "root=/dev/mmcblk1p")),
    ("kernel-missing", "/boot/Image", without("/boot/Image")),
    ("kernel-wrong-architecture", "/boot/Image", text("/boot/Image", bytes(0x24) + b"\x18\x28\x6f\x01" + bytes(90))),
    ("devicetree-missing", "/boot/board.dtb", replaced("script", "${fdt_addr_r} /boot/;", "${fdt_addr_r} /boot/board.dtb;")),
    ("devicetree-other-board", "partition 1:/bcm2711-rpi-4-b.dtb", tree(compatible='"ti,am335x-bone", "ti,am33xx"')),
    ("devicetree-damaged", "partition 1:/cut.dtb", boot(cut_dtb=devicetree()[:200])),
    ("devicetree-fixed-root", "partition 1:/bcm2711-rpi-4-b.dtb", tree(bootargs="root=/dev/mmcblk0p2 quiet")),
    ("devicetree-no-mmc", "partition 1:/bcm2711-rpi-4-b.dtb", tree(status="disabled")),
    ("cmdline-fixed-root", "/cmdline.txt", lambda card: card.boot.update({"cmdline.txt": b"root=/dev/mmcblk0p2 rootwait\n"})),
    # Raspberry Pi's tryboot
    ("tryboot-part-missing", "/etc/mender/mender.conf", tryboot(lambda card: card.config.pop("BootPartB"))),
    ("tryboot-part-missing", "/dev/mmcblk0p9", tryboot(config(AutobootPart="/dev/mmcblk0p9"))),
    ("tryboot-files-missing", "/boot/config.txt", tryboot(without("/boot/config.txt"))),
    ("tryboot-other-root", "partition 2: cmdline.txt", tryboot(boot(**{"cmdline.txt": b"root=/dev/mmcblk0p2 rootwait\n"}))),
    ("autoboot-invalid", "partition 1: autoboot.txt", tryboot(replaced("autoboot", "tryboot_a_b=1\n", ""))),
    ("autoboot-other-parts", "partition 1: autoboot.txt", tryboot(replaced("autoboot", "boot_partition=3", "boot_partition=4"))),
    # programs and libraries
    ("wrong-architecture", "/usr/bin/product", other_architecture("/usr/bin/product")),
    ("wrong-float-abi", "/usr/bin/product", soft_float),
    ("library-wrong-architecture", "/usr/bin/product", library_of_host),
    ("missing-library", "/usr/bin/product", needs_library),
    ("missing-library", "/usr/bin/product", library_elsewhere),
    ("missing-interpreter", "/usr/bin/product", built("-fPIE", "-pie", "-fstack-protector-strong", "-Wl,-z,relro,-z,now,--dynamic-linker=/lib/ld-musl-aarch64.so.1")),
    ("elf-damaged", "/usr/bin/product", text("/usr/bin/product", program(*HARDENED)[:3000], 0o755)),
    ("not-pie", "/usr/bin/product", built("-no-pie", "-fstack-protector-strong", "-Wl,-z,relro,-z,now")),
    ("no-relro", "/usr/bin/product", built("-fPIE", "-pie", "-fstack-protector-strong", "-Wl,-z,norelro")),
    ("no-canary", "3 of 5 programs and libraries", without_guards),
    ("executable-stack", "/usr/bin/product", built("-fPIE", "-pie", "-fstack-protector-strong", "-Wl,-z,relro,-z,now,-z,execstack")),
    ("insecure-rpath", "/usr/bin/product", built("-fPIE", "-pie", "-fstack-protector-strong", "-Wl,-z,relro,-z,now,-rpath,/tmp/build/lib")),
    # state scripts and pause hooks
    ("script-unreachable", f"{SCRIPTS}/ArtifactInstall_Enter_10", text(f"{SCRIPTS}/ArtifactInstall_Enter_10", SCRIPT, 0o755)),
    ("script-no-such-hook", f"{SCRIPTS}/Idle_Error_10", text(f"{SCRIPTS}/Idle_Error_10", SCRIPT, 0o755)),
    ("script-bad-name", f"{SCRIPTS}/Download_Enter_1_x", text(f"{SCRIPTS}/Download_Enter_1_x", SCRIPT, 0o755)),
    ("script-not-executable", f"{SCRIPTS}/Sync_Enter_10", text(f"{SCRIPTS}/Sync_Enter_10", SCRIPT)),
    ("script-writable", f"{SCRIPTS}/Sync_Enter_10", text(f"{SCRIPTS}/Sync_Enter_10", SCRIPT, 0o757)),
    ("script-not-root", f"{SCRIPTS}/Sync_Enter_10", both(text(f"{SCRIPTS}/Sync_Enter_10", SCRIPT, 0o755), having(root_commands=[f"sif {SCRIPTS}/Sync_Enter_10 uid 1000"]))),
    ("script-no-interpreter", "artifact: ArtifactInstall_Enter_10", artifact(scripts={"ArtifactInstall_Enter_10": b"#!/bin/bash\n"})),
    ("script-no-interpreter", f"{SCRIPTS}/Sync_Enter_10", text(f"{SCRIPTS}/Sync_Enter_10", "#!/bin/bash\n", 0o755)),
    ("script-no-interpreter", f"{SCRIPTS}/Sync_Enter_10", both(text("/usr/bin/env", program(*HARDENED), 0o755), text(f"{SCRIPTS}/Sync_Enter_10", "#!/usr/bin/env bash\n", 0o755))),
    ("script-crlf", f"{SCRIPTS}/Sync_Enter_10", text(f"{SCRIPTS}/Sync_Enter_10", "#!/bin/sh\r\n", 0o755)),
    ("script-empty", f"{SCRIPTS}/Sync_Enter_10", text(f"{SCRIPTS}/Sync_Enter_10", "", 0o755)),
    ("scripts-version", f"{SCRIPTS}/version", text(f"{SCRIPTS}/version", "4\n")),
    ("hook-invalid", f"{HOOKS}/30-x.json", lambda card: card.hook("30-x.json", {"point": "Reboot", "when": "always"})),
    ("hook-invalid", f"{HOOKS}/night.json", lambda card: card.hook("night.json", {"point": "ArtifactCommit_Enter", "when": "always"})),
    ("hook-bad-name", f"{HOOKS}/30-x.json.off", text(f"{HOOKS}/30-x.json.off", "{}")),
    ("hook-program-missing", f"{HOOKS}/20-load.json", without("/usr/bin/check-load")),
    ("hook-writable", f"{HOOKS}/30-x.json", lambda card: card.hook("30-x.json", {"point": "ArtifactCommit_Enter", "when": "always"}, 0o666)),
    # the agent and its configuration
    ("agent-missing", "/usr/bin/update-agent", without("/usr/bin/update-agent")),
    ("config-invalid", "/etc/mender/mender.conf", config(UpdatePollIntervalSeconds="1800")),
    ("config-missing", "/etc/mender/mender.conf", having(config={})),
    ("config-slots-missing", "/etc/mender/mender.conf", lambda card: card.config.pop("RootfsPartB")),
    ("config-secret-readable", "/etc/mender/mender.conf", both(config(TenantToken="of a hosted server"), having(config_mode=0o644))),
    ("config-no-server", "/etc/mender/mender.conf", lambda card: card.config.pop("Servers")),
    ("config-plain-http", "/etc/mender/mender.conf", config(Servers=[{"ServerURL": "http://x.example"}])),
    ("config-skip-verify", "/etc/mender/mender.conf", config(SkipVerify=True)),
    ("config-file-missing", "/etc/mender/verify.pem", config(ArtifactVerifyKeys=["/etc/mender/verify.pem"])),
    ("config-same-slots", "/etc/mender/mender.conf", config(RootfsPartB="/dev/mmcblk0p2")),
    ("device-type-missing", "/var/lib/mender/device_type", lambda card: card.data.remove("/mender/device_type") if card.data else None),
    ("device-type-other", "device_type", both(having(machine="raspberrypi4-64"), lambda card: card.data.text("/mender/device_type", "device_type=raspberrypi5\n"))),
    ("data-not-mounted", "/data/mender", text("/etc/fstab", "/dev/root / auto defaults 1 1\n")),
    ("store-not-on-data", "/var/lib/mender", lambda card: card.rootfs.directory("/var/lib/mender")),
    ("fstab-fixed-root", "/etc/fstab", text("/etc/fstab", "/dev/mmcblk0p2 / ext4 ro 0 1\n/dev/mmcblk0p4 /data ext4 rw 0 2\n")),
    # secrets and rights
    ("private-key", "/etc/mender/artifact-signing.key", text("/etc/mender/artifact-signing.key", KEY, 0o600)),
    ("private-key-example", "/usr/lib/python3/tests/key.pem", text("/usr/lib/python3/tests/key.pem", KEY)),
    ("device-key-shared", "data: /mender/mender-agent.pem", lambda card: card.data.text("/mender/mender-agent.pem", KEY) if card.data else None),
    ("machine-id-shared", "/etc/machine-id", text("/etc/machine-id", "0123456789abcdef" * 2 + "\n")),
    ("root-without-password", "/etc/shadow", text("/etc/shadow", "root::15069:0:99999:7:::\n", 0o400)),
    ("file-unreadable", "3 files or directories", having(user=65534)),
    ("world-writable", "/etc/passwd", text("/etc/passwd", "root:x:0:0::/root:/bin/sh\n", 0o666)),
    # an artifact that shall be installed on the card
    ("artifact-damaged", "release-2", damaged),
    ("artifact-too-large", "release-2", artifact(files={"root.ext4": update().files["root.ext4"] + bytes(8 * MIB)})),
    ("artifact-other-device", "release-2", artifact(device_types=["raspberrypi5", "beaglebone"])),
    ("artifact-unsigned", "release-2", both(signed("ours", "ours"), artifact())),
    ("artifact-wrong-key", "release-2", signed("theirs", "ours")),
    ("artifact-not-a-filesystem", "release-2", artifact(files={"root.zip": b"PK\3\4" + bytes(5000)})),
]  # fmt: skip


# What comes with a fault by its nature.
ALSO = {"library-wrong-architecture": [("wrong-architecture", "/usr/lib/libproduct.so.1")]}


@pytest.mark.parametrize(
    ("name", "where", "fault"), FAULTS, ids=[f"{row[0]}-{n}" for n, row in enumerate(FAULTS)]
)
def test_seeded_fault(
    name: str, where: str, fault: Callable[[Card], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR_OF_TEST", str(tmp_path))
    card = Card()
    fault(card)
    if card.user is not None and os.geteuid() != 0:
        pytest.skip("only root can make files that the tests may not read")
    assert found_in(card, tmp_path) == [*ALSO.get(name, []), (name, where)]


def test_every_finding_has_a_seed() -> None:
    assert {name for name, _, _ in FAULTS} == set(CATALOGUE)


def test_a_good_card_for_tryboot_is_silent(tmp_path: Path) -> None:
    card = Card()
    tryboot()(card)
    assert found_in(card, tmp_path) == []


@pytest.mark.parametrize("name", ["LABEL=data", "/dev/disk/by-label/data", "/dev/mmcblk0p4"])
def test_the_data_partition_may_be_named_in_several_ways(tmp_path: Path, name: str) -> None:
    card = Card()
    text("/etc/fstab", f"/dev/root / auto defaults 1 1\n{name} /data ext4 defaults 0 2\n")(card)
    with Opener() as opener:
        report: Any = inspect(card.make(tmp_path), opener)
    assert report["findings"] == []
    assert [part["role"] for part in report["partitions"]["partitions"]] == [
        "boot",
        "root A",
        "root B",
        "data",
    ]


def test_an_artifact_signed_by_a_key_of_the_image_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR_OF_TEST", str(tmp_path))
    card = Card()
    signed("ours", "ours")(card)
    assert found_in(card, tmp_path) == []


def test_a_library_may_rely_on_what_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As libsystemd-core and libsystemd-shared do, and Java's: a directory that no loader searches."""
    monkeypatch.setenv("TMPDIR_OF_TEST", str(tmp_path))
    card = Card()
    library_elsewhere(card)
    needed = str(tmp_path / "libproduct.so")
    options = ("-shared", "-fPIC", "-Wl,--no-as-needed", needed, "-Wl,-z,relro")
    card.rootfs.text(
        "/opt/product/plugin.so", program(*options, source="int plugin(void) { return 1; }"), 0o755
    )
    card.rootfs.remove("/usr/bin/product")
    assert found(card.make(tmp_path)) == []


def test_a_single_program_without_guard_is_no_finding(tmp_path: Path) -> None:
    """It may need none: one in eight of Debian's programs has none."""
    card = Card()
    made = program(*[flag for flag in HARDENED if "stack" not in flag], source=BIG)
    card.rootfs.text("/usr/bin/product", made, 0o755)
    assert found(card.make(tmp_path)) == []
