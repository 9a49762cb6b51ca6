# SPDX-License-Identifier: Apache-2.0
"""Everything that can be wrong, as a table: its name, how bad it is, and what to do about it. No I/O.

An error breaks an update or a device in the field, or gives a secret away; a warning deserves a look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ERROR, WARNING = "error", "warning"

# fmt: off
CATALOGUE: dict[str, tuple[str, str]] = {
    # partitions and file systems
    "partition-overlap":         (ERROR,   "correct the offsets and sizes in the wks file"),
    "partition-beyond-end":      (ERROR,   "the image is cut off, or its partition table is of another one: build it again"),
    "slot-missing":              (ERROR,   "RootfsPartA and RootfsPartB in mender.conf must name partitions of the table"),
    "slot-sizes-differ":         (WARNING, "give both root partitions one size; the smaller one decides what fits"),
    "data-missing":              (ERROR,   "add a data partition to the wks file: what the agent stores must survive updates"),
    "data-not-last":             (WARNING, "put the data partition last in the wks file, so that it can grow to the end of the card"),
    "filesystem-missing":        (ERROR,   "this partition must hold a file system in a new image"),
    "filesystem-too-large":      (ERROR,   "make the file system smaller than its partition (UPDATE_ROOTFS_SIZE_MB)"),
    "filesystem-unclean":        (WARNING, "it was taken from a running system, or the power was cut: run e2fsck on it"),
    "filesystem-damaged":        (ERROR,   "run e2fsck -fn on it; build the image again"),
    "rootfs-label-shared":       (WARNING, "labels that two partitions have cannot be mounted by; give each its own, or none"),
    # U-Boot's environment
    "fw-env-missing":            (ERROR,   "install /etc/fw_env.config: recipe update-fw-env-config"),
    "fw-env-invalid":            (ERROR,   "each line: device, offset, size; one line a copy"),
    "fw-env-other-device":       (ERROR,   "fw_env.config and mender.conf must name one card"),
    "fw-env-differs-from-board": (ERROR,   "U-Boot is built for the layer's offsets: use the layer's fw_env.config, or change UPDATE_UBOOT_ENV_*"),
    "env-not-redundant":         (WARNING, "give the environment two copies: with one, a power cut while it is written can leave none"),
    "env-copies-overlap":        (ERROR,   "the second offset must be at least a size away from the first one"),
    "env-overlaps-partition":    (ERROR,   "move the environment before the first partition, or the partition behind it"),
    "env-overlaps-table":        (ERROR,   "leave the first sectors to the partition table and the boot loader"),
    "env-empty":                 (ERROR,   "put a first environment into the image (wks: rawcopy of the mkenvimage output): fw_setenv refuses an empty one"),
    "env-copy-bad":              (WARNING, "write both copies in a new image; U-Boot goes on with the good one"),
    "env-bad":                   (ERROR,   "no copy is valid at these offsets: compare fw_env.config, CONFIG_ENV_OFFSET and the wks file"),
    "env-variable-missing":      (ERROR,   "add it to the first environment: boot script and agent rely on it"),
    "env-slot-unknown":          (ERROR,   "mender_boot_part must be the number of one of the two root partitions"),
    "env-hex-differs":           (ERROR,   "mender_boot_part_hex must be mender_boot_part in hexadecimal"),
    "env-upgrade-pending":       (WARNING, "a new image should have upgrade_available=0; this one starts on trial"),
    # boot script, kernel, device tree
    "boot-script-missing":       (ERROR,   "the boot partition needs boot.scr: recipe update-boot-script in IMAGE_BOOT_FILES"),
    "boot-script-damaged":       (ERROR,   "make it with mkimage -T script; U-Boot refuses one with a wrong checksum"),
    "boot-script-unfilled":      (ERROR,   "a word in @@ was not replaced: is the variable in conf/update/layout.inc?"),
    "boot-script-other-card":    (ERROR,   "boot script and mender.conf must name one card: UPDATE_STORAGE_PART"),
    "boot-script-one-slot":      (ERROR,   "choose the root partition by ${mender_boot_part}, or an update never starts"),
    "kernel-missing":            (ERROR,   "the slot's /boot must have the kernel that the boot script loads: kernel-image, UPDATE_KERNEL"),
    "kernel-wrong-architecture": (ERROR,   "the kernel is for another machine: check MACHINE and UPDATE_KERNEL"),
    "devicetree-missing":        (ERROR,   "the slot's /boot must have the device tree that the boot script loads: kernel-devicetree, UPDATE_DEVICETREE"),
    "devicetree-damaged":        (ERROR,   "not a flattened device tree: dtc -I dtb says more; build it again"),
    "devicetree-other-board":    (ERROR,   "set UPDATE_DEVICETREE to the tree of this board, or inspect with the right --machine"),
    "devicetree-fixed-root":     (ERROR,   "take root= out of /chosen/bootargs: the boot script decides the slot"),
    "devicetree-no-mmc":         (WARNING, "no enabled node for the card that holds the environment: check aliases and status"),
    "cmdline-fixed-root":        (ERROR,   "take root= out of cmdline.txt: the boot script decides the slot (CMDLINE_ROOTFS)"),
    # programs and libraries
    "wrong-architecture":        (ERROR,   "build it for this machine; a program that was copied in by hand?"),
    "wrong-float-abi":           (ERROR,   "build it with the float ABI of the rest (hard or soft); they cannot be mixed"),
    "elf-damaged":               (ERROR,   "the file is cut off or was changed: build it again"),
    "missing-library":           (ERROR,   "add the package that has it: an RDEPENDS is missing"),
    "missing-interpreter":       (ERROR,   "the program loader it names is not in the image: another libc, or a missing link in /lib"),
    "library-wrong-architecture": (ERROR,  "the library of that name is for another machine"),
    "not-pie":                   (WARNING, "build with -fPIE -pie (OE-core: require conf/distro/include/security_flags.inc)"),
    "no-relro":                  (WARNING, "link with -Wl,-z,relro,-z,now"),
    "no-canary":                 (WARNING, "probably built without -fstack-protector-strong; a program without arrays on its stack needs none"),
    "executable-stack":          (WARNING, "an assembler file lacks .note.GNU-stack; link with -z noexecstack"),
    "insecure-rpath":            (ERROR,   "libraries are searched in a place of the build host or relative to the caller: chrpath -d"),
    # state scripts and pause hooks
    "script-bad-name":           (ERROR,   "name it STATE_ACTION_NN or STATE_ACTION_NN_text, like ArtifactInstall_Leave_10_migrate"),
    "script-unreachable":        (ERROR,   "it will never run: scripts of Idle, Sync and Download belong to the image, Artifact* into the artifact"),
    "script-no-such-hook":       (ERROR,   "this state has no such action, the script will never run: agent/README.md has the table"),
    "script-not-executable":     (ERROR,   "chmod 0755; the agent skips it"),
    "script-writable":           (ERROR,   "chmod 0755: whoever may write it is root at the next update"),
    "script-not-root":           (ERROR,   "chown root: whoever owns it is root at the next update"),
    "script-no-interpreter":     (ERROR,   "its first line must name a program of the image, such as #!/bin/sh"),
    "script-crlf":               (ERROR,   "convert it to Unix line ends: the kernel looks for an interpreter named with a CR"),
    "script-empty":              (ERROR,   "an empty script fails the update with an exec format error"),
    "scripts-version":           (ERROR,   "the file version must hold the number 3"),
    "hook-invalid":              (ERROR,   "an invalid hook holds every update for a day: python -m update_agent.hooks DIRECTORY"),
    "hook-program-missing":      (ERROR,   "the hook's program must be in the image and executable, or every update waits until limit_s"),
    "hook-writable":             (ERROR,   "chmod 0644: whoever may write it can hold or fail updates"),
    # the agent and its configuration
    "agent-missing":             (ERROR,   "install update-agent: without it the image cannot be updated"),
    "config-missing":            (ERROR,   "install /etc/mender/mender.conf: recipe update-agent-conf"),
    "config-invalid":            (ERROR,   "correct mender.conf: what the agent cannot read it ignores"),
    "config-no-server":          (WARNING, "set UPDATE_SERVER_URL, or write Servers when the device is provisioned"),
    "config-plain-http":         (WARNING, "use https: the token of the device can be read on the way"),
    "config-skip-verify":        (ERROR,   "remove SkipVerify: anybody can be the server"),
    "config-file-missing":       (ERROR,   "install the file that mender.conf names, or remove the key"),
    "config-slots-missing":      (ERROR,   "set RootfsPartA and RootfsPartB: without them no root file system can be updated"),
    "config-same-slots":         (ERROR,   "RootfsPartA and RootfsPartB must be two partitions"),
    "config-secret-readable":    (WARNING, "chmod 0600 mender.conf: it holds the tenant token"),
    "device-type-missing":       (ERROR,   "put one line, device_type=NAME, into /data/mender/device_type"),
    "store-not-on-data":         (ERROR,   "link /var/lib/mender to a directory of the data partition, or its state is lost with the first update"),
    "fstab-fixed-root":          (ERROR,   "write /dev/root as the device of /: in the other slot this line names the wrong one"),
    "data-not-mounted":          (ERROR,   "mount the data partition in /etc/fstab or by a unit"),
    # secrets and rights
    "private-key":               (ERROR,   "take the private key out of the root file system; make it on the device, or provision it into /data"),
    "device-key-shared":         (ERROR,   "remove mender-agent.pem from the image: all devices would be one"),
    "machine-id-shared":         (WARNING, "leave /etc/machine-id empty: all devices would have one identity"),
    "root-without-password":     (WARNING, "leave out debug-tweaks (empty-root-password) in what goes to the field"),
    "world-writable":            (ERROR,   "chmod o-w: any program can change it"),
    # the artifact
    "artifact-damaged":          (ERROR,   "write the artifact again; a device refuses this one"),
    "artifact-too-large":        (ERROR,   "make the image smaller, or the slots larger: it cannot be installed"),
    "artifact-other-device":     (ERROR,   "write the artifact for this device type (--device-type)"),
    "artifact-unsigned":         (ERROR,   "sign it (scripts/ota artifact sign): this image refuses unsigned artifacts"),
    "artifact-not-a-filesystem": (ERROR,   "a rootfs-image must be a file system the device can mount: ext4"),
}
# fmt: on


class Finding:
    """One thing that is wrong: what, where (a path, partition or variable), and what to do."""

    __slots__ = ("hint", "name", "severity", "what", "where")

    def __init__(self, name: str, where: str, what: str) -> None:
        self.name = name
        self.severity, self.hint = CATALOGUE[name]
        self.where = where
        self.what = what

    def document(self) -> dict[str, str]:
        """For JSON."""
        return {name: getattr(self, name) for name in ("severity", "name", "where", "what", "hint")}


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
