# SPDX-License-Identifier: Apache-2.0
"""What the sections look at: the trees of all partitions, and what the image says about itself."""

from __future__ import annotations

import re
from typing import IO, TYPE_CHECKING, TypeVar

from update_agent.config import Config
from update_agent.errors import ConfigError
from update_agent.lean import json

from .boards import Board
from .ext4 import Ext4Tree
from .fat import FatTree
from .findings import ERROR
from .tree import InspectError, Tree

if TYPE_CHECKING:
    from .disk import Disk, Partition
    from .findings import Findings
    from .source import Artifact, Source

CONFIG = "/etc/mender/mender.conf"
FW_ENV = "/etc/fw_env.config"
STORE = "/var/lib/mender"
_SHOWN = 5
_PARTITION = re.compile(r"(/dev/(?:mmcblk\d+|nvme\d+n\d+|loop\d+|nbd\d+|sd[a-z]+|vd[a-z]+))p?(\d+)")

_Found = TypeVar("_Found", Ext4Tree, FatTree)


class Slot:
    """A root partition: the device node that mender.conf names, its card, its number."""

    __slots__ = ("disk", "node", "number")

    def __init__(self, node: str) -> None:
        self.node = node
        match = _PARTITION.fullmatch(node)
        self.disk = match[1] if match else ""
        self.number = int(match[2]) if match else 0


class Subject:
    """The trees: `boot` (FAT), `root` (slot A, or all there is), `data`; each None if it is not there."""

    def __init__(self, source: Source, findings: Findings) -> None:
        self.source = source
        self.findings = findings
        self.board = Board()
        self.root: Tree | None = source.root
        self.boot: Tree | None = None
        self.data: Tree | None = None
        self.data_partition: Partition | None = None
        self.filesystems: dict[int, Ext4Tree] = {}  # by partition
        self.config: Config | None = None
        self.config_document: dict[str, object] = {}
        self.artifact: Artifact | None = source.artifact

    @property
    def disk(self) -> Disk | None:
        """The whole card, if that is what is inspected."""
        return self.source.disk

    @property
    def slots(self) -> tuple[Slot, Slot]:
        """The two root partitions that mender.conf names; `number` 0 where it names none."""
        config = self.config
        return Slot(config.rootfs_part_a if config else ""), Slot(config.rootfs_part_b if config else "")

    @property
    def is_tryboot(self) -> bool:
        """Raspberry Pi's firmware chooses the slot, not U-Boot: as the agent finds it out."""
        config = self.config
        if config is None or config.bootloader == "uboot":
            return False
        has_fw_env = self.root is not None and self.root.find(FW_ENV) is not None
        return config.bootloader == "tryboot" or (bool(config.autoboot_part) and not has_fw_env)

    def slot(self, index: int) -> Partition | None:
        """The partition of slot A (0) or B (1) in the table."""
        return self.disk.partition(self.slots[index].number) if self.disk else None

    @property
    def device_type(self) -> str:
        """What the image says it is for, else what the artifact is for; empty if neither says."""
        named = self.config.device_type_file_set if self.config else ""
        text = self.root.text(named) if self.root and named else self.store_text("device_type")
        if text and text.startswith("device_type="):
            return text.strip().partition("=")[2]
        return self.artifact.header.device_types[0] if self.artifact and not self.disk else ""

    def store_text(self, name: str) -> str | None:
        """A file of the agent's store, which is on the data partition or still in the root file system."""
        data = self.data.read(f"/mender/{name}") if self.data else None
        if data is None and self.root:
            data = self.root.read(f"{STORE}/{name}")
        return None if data is None else data.decode(errors="replace")


def look(source: Source, findings: Findings) -> Subject:
    """Read all trees of a source and the agent's configuration."""
    subject = Subject(source, findings)
    disk = source.disk
    if disk is not None:
        for partition in disk.partitions:
            _add_tree(subject, disk, partition)
    elif source.image is not None:
        name = "payload" if source.kind == "artifact" else source.path.name
        subject.root = _tree(subject, Ext4Tree, source.image, 0, name)
    if subject.root is not None:
        _read_config(subject, subject.root)
    if disk is not None and subject.root is not None:
        _find_data(subject, subject.root, disk)
        if subject.config is not None and subject.is_tryboot:
            boot_a = disk.partition(Slot(subject.config.boot_part_a).number)
            subject.boot = fat(subject, disk, boot_a) if boot_a else None
    return subject


def finish(subject: Subject) -> None:
    """Tell what could not be read, when all that was wanted is known."""
    artifact = subject.source.artifact
    is_damaged = any(finding.severity == ERROR for finding in subject.findings)
    if subject.root is None and not is_damaged:
        if subject.disk is not None:
            subject.findings.add("rootfs-not-read", subject.source.path.name, "no ext4 with /etc and /usr")
        elif artifact is not None and artifact.header.payload_type == "rootfs-image":
            subject.findings.add("rootfs-not-read", artifact.header.name, f"it is {artifact.filesystem}")
    unreadable = subject.root.unreadable if subject.root else {}
    if unreadable:
        shown = [f"{path} ({why})" for path, why in sorted(unreadable.items())[:_SHOWN]]
        more = f" and {len(unreadable) - _SHOWN} more" if len(unreadable) > _SHOWN else ""
        subject.findings.add(
            "file-unreadable", f"{len(unreadable)} files or directories", ", ".join(shown) + more
        )


def _add_tree(subject: Subject, disk: Disk, partition: Partition) -> None:
    """The first file system with /etc is the root; another one without /usr may be the data."""
    if partition.filesystem == "vfat" and subject.boot is None:
        subject.boot = fat(subject, disk, partition)
    if partition.filesystem != "ext4":
        return
    tree = _tree(subject, Ext4Tree, disk.image, partition.start, f"partition {partition.number}")
    if tree is None:
        return
    subject.filesystems[partition.number] = tree
    if subject.root is None and tree.find("/etc") is not None and tree.find("/usr") is not None:
        subject.root = tree
    elif tree.find("/usr") is None and (subject.data is None or subject.data.find("/mender") is None):
        subject.data, subject.data_partition = tree, partition


def fat(subject: Subject, disk: Disk, partition: Partition) -> FatTree | None:
    """The files of a FAT partition; None if there is none, or it cannot be read."""
    if partition.filesystem != "vfat":
        return None
    return _tree(subject, FatTree, disk.image, partition.start, f"partition {partition.number}")


def _tree(subject: Subject, kind: type[_Found], image: IO[bytes], start: int, name: str) -> _Found | None:
    """A file system; what of it cannot be read is told, once."""
    try:
        tree = kind(image, start, name)
    except InspectError as error:
        subject.findings.add("filesystem-damaged", name, error.message)
        return None
    for path, why in tree.damage[:_SHOWN]:
        subject.findings.add("filesystem-damaged", f"{name}: {path}", why)
    if more := tree.damage[_SHOWN:]:
        subject.findings.add("filesystem-damaged", name, f"{len(more)} more files cannot be read")
    return tree


def _find_data(subject: Subject, root: Tree, disk: Disk) -> None:
    """The partition that fstab mounts at /data, if it says one; else what looks like it and is no slot."""
    cards = {slot.disk for slot in subject.slots if slot.disk}
    if subject.data_partition is not None and subject.data_partition.number in {
        slot.number for slot in subject.slots
    }:
        subject.data = subject.data_partition = None
    for fields in fstab(root):
        if fields[1] == "/data":
            found = _named(disk, fields[0], cards)
            if found is not None:
                subject.data_partition = found
                subject.data = subject.filesystems.get(found.number)


def _named(disk: Disk, name: str, cards: set[str]) -> Partition | None:
    """A partition by its node, file system's label or name in the GPT, as fstab may say it."""
    match = _PARTITION.fullmatch(name)
    if match:
        return disk.partition(int(match[2])) if not cards or match[1] in cards else None
    for part in disk.partitions:
        if part.label and name in {f"LABEL={part.label}", f"/dev/disk/by-label/{part.label}"}:
            return part
        if part.name and name in {f"PARTLABEL={part.name}", f"/dev/disk/by-partlabel/{part.name}"}:
            return part
    return None


def fstab(root: Tree) -> list[list[str]]:
    """Fields of the lines of /etc/fstab."""
    lines = (line.split() for line in (root.text("/etc/fstab") or "").splitlines())
    return [fields for fields in lines if len(fields) >= 3 and not fields[0].startswith("#")]


def _read_config(subject: Subject, root: Tree) -> None:
    """mender.conf as the agent reads it: the fallback of the store, then the image's."""
    texts = [(f"{STORE}/mender.conf", subject.store_text("mender.conf")), (CONFIG, root.text(CONFIG))]
    config = Config()
    for path, text in texts:
        if text is None:
            continue
        try:
            document = json.loads(text)
            config.merge(document, path)
        except (ValueError, ConfigError) as error:
            subject.findings.add("config-invalid", path, str(error))
            continue
        subject.config_document.update(document)
        subject.config = config
    for warning in config.warnings:
        subject.findings.add("config-invalid", CONFIG, warning)
