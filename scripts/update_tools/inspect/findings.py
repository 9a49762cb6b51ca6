# SPDX-License-Identifier: Apache-2.0
"""Everything that can be wrong, as a table: its name, how bad it is, what it means, and what to do. No I/O.

An error breaks an update or a device in the field, or gives a secret away; a warning deserves a look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ERROR, WARNING = "error", "warning"

# By area; name: how bad it is, what it means, what to do.
# fmt: off
AREAS: dict[str, dict[str, tuple[str, str, str]]] = {
    "Partitions and file systems": {
        "partition-overlap": (ERROR,
            "two partitions share bytes of the card",
            "correct the offsets and sizes in the wks file"),
        "partition-beyond-end": (ERROR,
            "a partition ends behind the end of the image",
            "the image is cut off, or its partition table is of another one: build it again"),
        "slot-missing": (ERROR,
            "mender.conf names a root partition that the table does not have",
            "RootfsPartA and RootfsPartB in mender.conf must name partitions of the table"),
        "slot-sizes-differ": (WARNING,
            "root A and root B are not of one size",
            "give both root partitions one size; the smaller one decides what fits"),
        "data-missing": (ERROR,
            "no partition is the data partition",
            "add a data partition to the wks file: what the agent stores must survive updates"),
        "data-not-last": (WARNING,
            "other partitions come after the data partition",
            "put the data partition last in the wks file, so that it can grow to the end of the card"),
        "filesystem-missing": (ERROR,
            "root A or the data partition holds no file system",
            "this partition must hold a file system in a new image"),
        "filesystem-too-large": (ERROR,
            "a file system says that it is larger than its partition",
            "make the file system smaller than its partition (UPDATE_ROOTFS_SIZE_MB)"),
        "filesystem-unclean": (WARNING,
            "a file system was not unmounted, or its journal is not empty",
            "it was taken from a running system, or the power was cut: run e2fsck on it"),
        "filesystem-damaged": (ERROR,
            "a file system, or a file in it, cannot be read",
            "run e2fsck -fn on it; build the image again"),
        "rootfs-label-shared": (WARNING,
            "two partitions have the same label",
            "labels that two partitions have cannot be mounted by; give each its own, or none"),
        "file-unreadable": (WARNING,
            "files of a directory cannot be read by this user, and were not looked into",
            "run it as root, or on the image file itself"),
    },
    "U-Boot's environment": {
        "fw-env-missing": (ERROR,
            "the image has no /etc/fw_env.config: the agent cannot switch slots",
            "install /etc/fw_env.config: recipe update-fw-env-config"),
        "fw-env-invalid": (ERROR,
            "/etc/fw_env.config does not describe an environment",
            "each line: device, offset, size; one line a copy"),
        "fw-env-other-device": (ERROR,
            "the environment is on another card than the slots",
            "fw_env.config and mender.conf must name one card"),
        "fw-env-differs-from-board": (ERROR,
            "offset or size is not what the machine's U-Boot is built for",
            "U-Boot is built for the layer's offsets: use the layer's fw_env.config, or change UPDATE_UBOOT_ENV_*"),
        "env-not-redundant": (WARNING,
            "the environment has one copy",
            "give the environment two copies: with one, a power cut while it is written can leave none"),
        "env-copies-overlap": (ERROR,
            "the two copies share bytes",
            "the second offset must be at least a size away from the first one"),
        "env-overlaps-partition": (ERROR,
            "the environment lies in a partition",
            "move the environment before the first partition, or the partition behind it"),
        "env-overlaps-table": (ERROR,
            "the environment lies on the partition table",
            "leave the first sectors to the partition table and the boot loader"),
        "env-empty": (ERROR,
            "nothing was written where the environment should be",
            "put a first environment into the image (wks: rawcopy of the mkenvimage output): fw_setenv refuses an empty one"),
        "env-copy-bad": (WARNING,
            "one of two copies has a wrong checksum",
            "write both copies in a new image; U-Boot goes on with the good one"),
        "env-bad": (ERROR,
            "there is something, but no copy has a right checksum",
            "no copy is valid at these offsets: compare fw_env.config, CONFIG_ENV_OFFSET and the wks file"),
        "env-variable-missing": (ERROR,
            "a variable is not set that boot script and agent rely on",
            "add it to the first environment: boot script and agent rely on it"),
        "env-no-fallback": (ERROR,
            "bootlimit is not 1 to 8: U-Boot would not, or too late, go back to the old slot",
            "set bootlimit=1 in the first environment (UPDATE_BOOTLIMIT)"),
        "env-slot-unknown": (ERROR,
            "mender_boot_part is neither of the two root partitions",
            "mender_boot_part must be the number of one of the two root partitions"),
        "env-hex-differs": (ERROR,
            "mender_boot_part_hex is not mender_boot_part",
            "mender_boot_part_hex must be mender_boot_part in hexadecimal"),
        "env-upgrade-pending": (WARNING,
            "the image says that an update is on trial",
            "a new image should have upgrade_available=0; this one starts on trial"),
    },
    "Boot script, kernel, device tree": {
        "boot-script-missing": (ERROR,
            "the boot partition has no boot.scr",
            "the boot partition needs boot.scr: recipe update-boot-script in IMAGE_BOOT_FILES"),
        "boot-script-damaged": (ERROR,
            "U-Boot would refuse boot.scr",
            "make it with mkimage -T script; U-Boot refuses one with a wrong checksum"),
        "boot-script-unfilled": (ERROR,
            "a placeholder of the boot script's template is still there",
            "a word in @@ was not replaced: is the variable in conf/update/layout.inc?"),
        "boot-script-other-card": (ERROR,
            "the boot script takes the root file system from another card than mender.conf",
            "boot script and mender.conf must name one card: UPDATE_STORAGE_PART"),
        "boot-script-one-slot": (ERROR,
            "the boot script never asks which slot to start",
            "choose the root partition by ${mender_boot_part}, or an update never starts"),
        "kernel-missing": (ERROR,
            "the slot lacks the kernel that the boot script loads",
            "the slot's /boot must have the kernel that the boot script loads: kernel-image, UPDATE_KERNEL"),
        "kernel-wrong-architecture": (ERROR,
            "the kernel is for another processor than the board's",
            "the kernel is for another machine: check MACHINE and UPDATE_KERNEL"),
        "devicetree-missing": (ERROR,
            "the slot lacks the device tree that the boot script loads",
            "the slot's /boot must have the device tree that the boot script loads: kernel-devicetree, UPDATE_DEVICETREE"),
        "devicetree-damaged": (ERROR,
            "a .dtb file is cut off or none",
            "not a flattened device tree: dtc -I dtb says more; build it again"),
        "devicetree-other-board": (ERROR,
            "no device tree is compatible with the board",
            "set UPDATE_DEVICETREE to the tree of this board, or inspect with the right --machine"),
        "devicetree-fixed-root": (ERROR,
            "the device tree's command line names a root file system",
            "take root= out of /chosen/bootargs: the boot script decides the slot"),
        "devicetree-no-mmc": (WARNING,
            "the controller of the card with the environment is not enabled",
            "no enabled node for the card that holds the environment: check aliases and status"),
        "cmdline-fixed-root": (ERROR,
            "cmdline.txt names a root file system",
            "take root= out of cmdline.txt: the boot script decides the slot (CMDLINE_ROOTFS)"),
    },
    "Programs and libraries": {
        "wrong-architecture": (ERROR,
            "a program or library is for another processor",
            "build it for this machine; a program that was copied in by hand?"),
        "wrong-float-abi": (ERROR,
            "a 32-bit ARM program hands floating point over in another way than the image",
            "build it with the float ABI of the rest (hard or soft); they cannot be mixed"),
        "elf-damaged": (ERROR,
            "a program or library is cut off or inconsistent",
            "the file is cut off or was changed: build it again"),
        "missing-library": (ERROR,
            "a program or library needs a library that is not in the image",
            "add the package that has it: an RDEPENDS is missing"),
        "missing-interpreter": (ERROR,
            "a program names a loader (ld.so) that is not in the image",
            "the program loader it names is not in the image: another libc, or a missing link in /lib"),
        "library-wrong-architecture": (ERROR,
            "the only library of the needed name is for another processor",
            "the library of that name is for another machine"),
        "not-pie": (WARNING,
            "a program is always at the same place in memory",
            "build with -fPIE -pie (OE-core: require conf/distro/include/security_flags.inc)"),
        "no-relro": (WARNING,
            "relocation tables stay writable while it runs",
            "link with -Wl,-z,relro,-z,now"),
        "no-canary": (WARNING,
            "most C programs and libraries have no stack protector (told once, for all of them)",
            "build with -fstack-protector-strong (OE-core: require conf/distro/include/security_flags.inc)"),
        "executable-stack": (WARNING,
            "the stack can be executed",
            "an assembler file lacks .note.GNU-stack; link with -z noexecstack"),
        "insecure-rpath": (ERROR,
            "libraries are searched where others can put them",
            "libraries are searched in a place of the build host or relative to the caller: chrpath -d"),
    },
    "State scripts and pause hooks": {
        "script-bad-name": (ERROR,
            "a file among the state scripts whose name makes the agent skip it",
            "name it STATE_ACTION_NN or STATE_ACTION_NN_text, like ArtifactInstall_Leave_10_migrate"),
        "script-unreachable": (ERROR,
            "a state script in the wrong place: image instead of artifact, or the other way round",
            "it will never run: scripts of Idle, Sync and Download belong to the image, Artifact* into the artifact"),
        "script-no-such-hook": (ERROR,
            "a state script of an action that its state does not have",
            "this state has no such action, the script will never run: agent/README.md has the table"),
        "script-not-executable": (ERROR,
            "a state script that may not be executed",
            "chmod 0755; the agent skips it"),
        "script-writable": (ERROR,
            "group or others may write a state script",
            "chmod 0755: whoever may write it is root at the next update"),
        "script-not-root": (ERROR,
            "a state script does not belong to root",
            "chown root: whoever owns it is root at the next update"),
        "script-no-interpreter": (ERROR,
            "a state script that the kernel cannot start",
            "its first line must name a program of the image, such as #!/bin/sh"),
        "script-crlf": (ERROR,
            "a state script with DOS line ends",
            "convert it to Unix line ends: the kernel looks for an interpreter named with a CR"),
        "script-empty": (ERROR,
            "a state script without content",
            "an empty script fails the update with an exec format error"),
        "scripts-version": (ERROR,
            "the state scripts are of a version that the agent does not run",
            "the file version must hold the number 3"),
        "hook-bad-name": (WARNING,
            "a file among the pause hooks that the agent does not read",
            "name it NN-name.json"),
        "hook-invalid": (ERROR,
            "a pause hook that the agent cannot read",
            "an invalid hook holds every update for a day: python -m update_agent.hooks DIRECTORY"),
        "hook-program-missing": (ERROR,
            "a pause hook asks a program that cannot be started",
            "the hook's program must be in the image and executable, or every update waits until limit_s"),
        "hook-writable": (ERROR,
            "group or others may write a pause hook",
            "chmod 0644: whoever may write it can hold or fail updates"),
    },
    "The agent and its configuration": {
        "agent-missing": (ERROR,
            "there is no update agent in the image",
            "install update-agent: without it the image cannot be updated"),
        "config-missing": (ERROR,
            "there is no mender.conf",
            "install /etc/mender/mender.conf: recipe update-agent-conf"),
        "config-invalid": (ERROR,
            "mender.conf, or a key in it, cannot be read",
            "correct mender.conf: what the agent cannot read it ignores"),
        "config-no-server": (WARNING,
            "mender.conf names no server",
            "set UPDATE_SERVER_URL, or write Servers when the device is provisioned"),
        "config-plain-http": (WARNING,
            "a server is reached without TLS",
            "use https: the token of the device can be read on the way"),
        "config-skip-verify": (ERROR,
            "the server's certificate is not checked",
            "remove SkipVerify: anybody can be the server"),
        "config-file-missing": (ERROR,
            "mender.conf names a key or certificate that is not in the image",
            "install the file that mender.conf names, or remove the key"),
        "config-slots-missing": (ERROR,
            "mender.conf does not name both root partitions",
            "set RootfsPartA and RootfsPartB: without them no root file system can be updated"),
        "config-same-slots": (ERROR,
            "both root partitions of mender.conf are the same",
            "RootfsPartA and RootfsPartB must be two partitions"),
        "config-secret-readable": (WARNING,
            "everybody on the device can read the tenant token",
            "chmod 0600 mender.conf: it holds the tenant token"),
        "device-type-missing": (ERROR,
            "the image does not say what device it is for",
            "put one line, device_type=NAME, into /data/mender/device_type"),
        "store-not-on-data": (ERROR,
            "the agent's store is in the root file system",
            "link /var/lib/mender to a directory of the data partition, or its state is lost with the first update"),
        "fstab-fixed-root": (ERROR,
            "/etc/fstab names one of the slots as /",
            "write /dev/root as the device of /: in the other slot this line names the wrong one"),
        "data-not-mounted": (ERROR,
            "the agent's store leads to where nothing is mounted",
            "mount the data partition in /etc/fstab or by a unit"),
    },
    "Secrets and rights": {
        "private-key": (ERROR,
            "a private key that every device would share",
            "take the private key out of the root file system; make it on the device, or provision it into /data"),
        "device-key-shared": (ERROR,
            "the agent's own key, the same on every device",
            "remove mender-agent.pem from the image: all devices would be one"),
        "machine-id-shared": (WARNING,
            "/etc/machine-id is already set",
            "leave /etc/machine-id empty: all devices would have one identity"),
        "root-without-password": (WARNING,
            "root has an empty password",
            "leave out debug-tweaks (empty-root-password) in what goes to the field"),
        "world-writable": (ERROR,
            "everybody on the device may write a file or directory",
            "chmod o-w: any program can change it"),
    },
    "The artifact": {
        "artifact-damaged": (ERROR,
            "a checksum, the order or the end of the artifact is wrong",
            "write the artifact again; a device refuses this one"),
        "artifact-too-large": (ERROR,
            "the payload is larger than a slot",
            "make the image smaller, or the slots larger: it cannot be installed"),
        "artifact-other-device": (ERROR,
            "the artifact is not for this device type",
            "write the artifact for this device type (--device-type)"),
        "artifact-unsigned": (ERROR,
            "the image accepts only signed artifacts",
            "sign it (scripts/ota artifact sign): this image refuses unsigned artifacts"),
        "artifact-wrong-key": (ERROR,
            "the artifact is signed, but not by a key of the image",
            "sign it with the private key that belongs to ArtifactVerifyKeys in mender.conf"),
        "artifact-not-a-filesystem": (ERROR,
            "the payload of a rootfs-image is no file system that is known",
            "a rootfs-image must be a file system the device can mount: ext4"),
    },
}
# fmt: on
CATALOGUE = {name: row for rows in AREAS.values() for name, row in rows.items()}


class Finding:
    """One thing that is wrong: what, where (a path, partition or variable), and what to do."""

    __slots__ = ("hint", "meaning", "name", "severity", "what", "where")

    def __init__(self, name: str, where: str, what: str) -> None:
        self.name = name
        self.severity, self.meaning, self.hint = CATALOGUE[name]
        self.where = where
        self.what = what

    def document(self) -> dict[str, str]:
        """For JSON."""
        return {
            name: getattr(self, name) for name in ("severity", "name", "where", "what", "meaning", "hint")
        }


class Findings:
    """What was found, errors first, and each once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], Finding] = {}

    def add(self, name: str, where: str, what: str) -> None:
        """A finding of the catalogue."""
        self._found.setdefault((name, where, what), Finding(name, where, what))

    def __iter__(self) -> Iterator[Finding]:
        order = list(CATALOGUE)
        return iter(
            sorted(self._found.values(), key=lambda f: (f.severity != ERROR, order.index(f.name), f.where))
        )

    def __len__(self) -> int:
        return len(self._found)

    def count(self, severity: str) -> int:
        """How many there are of one severity."""
        return sum(finding.severity == severity for finding in self)
