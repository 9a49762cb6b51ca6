# SPDX-License-Identifier: Apache-2.0
"""Section: partition table and file systems, and whether slots and data partition are fit for updates."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from .subject import Slot
from .units import mib

if TYPE_CHECKING:
    from .disk import Disk, Partition
    from .subject import Subject


def section(subject: Subject) -> dict[str, object] | None:
    """The table as a document; None if this is no card."""
    disk = subject.disk
    if disk is None:
        return None
    _check_table(subject, disk)
    _check_slots(subject, disk)
    _check_data(subject, disk)
    _check_labels(subject, disk)
    rows = []
    for partition in disk.partitions:
        document = partition.document()
        document["role"] = role(subject, partition)
        _check_filesystem(subject, partition)
        tree = subject.filesystems.get(partition.number)
        document["filesystem_bytes"] = tree.size_bytes if tree else None
        document["used_bytes"] = tree.used_bytes if tree else None
        rows.append(document)
    return {"scheme": disk.scheme, "id": disk.identifier, "size_bytes": disk.size, "partitions": rows}


def role(subject: Subject, partition: Partition) -> str:
    """root A, root B, data, boot (with tryboot: autoboot, boot A, boot B), or nothing."""
    for index, name in enumerate(("root A", "root B")):
        if subject.slots[index].number == partition.number:
            return name
    if partition is subject.data_partition:
        return "data"
    if subject.config is not None and subject.is_tryboot:
        config = subject.config
        named = {"autoboot": config.autoboot_part, "boot A": config.boot_part_a, "boot B": config.boot_part_b}
        return next((name for name, node in named.items() if Slot(node).number == partition.number), "")
    return "boot" if partition.filesystem == "vfat" else ""


def _check_table(subject: Subject, disk: Disk) -> None:
    ordered = sorted(
        (p for p in disk.partitions if p.kind not in {"05", "0f", "85"}),
        key=lambda partition: partition.start,
    )
    for before, after in pairwise(ordered):
        if after.start < before.end:
            subject.findings.add(
                "partition-overlap",
                f"partitions {before.number} and {after.number}",
                f"the first ends at {before.end:#x}, the second begins at {after.start:#x}",
            )
    for partition in ordered:
        if partition.end > disk.size:
            subject.findings.add(
                "partition-beyond-end",
                f"partition {partition.number}",
                f"ends at {partition.end:#x}, the image at {disk.size:#x}",
            )


def _check_slots(subject: Subject, disk: Disk) -> None:
    sizes = []
    for index, slot in enumerate(subject.slots):
        partition = subject.slot(index)
        if partition is not None:
            sizes.append(partition.size)
        elif slot.node:
            subject.findings.add(
                "slot-missing", slot.node, f"root {'AB'[index]} of mender.conf is not in the partition table"
            )
    if len(set(sizes)) > 1:
        subject.findings.add("slot-sizes-differ", "root A, root B", " and ".join(mib(size) for size in sizes))
    first = subject.slot(0)
    if first is not None and first.filesystem in {"empty", "other"}:
        subject.findings.add("filesystem-missing", f"partition {first.number}", "root A holds no file system")


def _check_data(subject: Subject, disk: Disk) -> None:
    data = subject.data_partition
    if data is None:
        subject.findings.add("data-missing", subject.source.path.name, "no partition is a data partition")
        return
    if data.filesystem == "empty":
        subject.findings.add("filesystem-missing", f"partition {data.number}", "the data partition is empty")
    if any(partition.start > data.start for partition in disk.partitions):
        subject.findings.add("data-not-last", f"partition {data.number}", "other partitions come after it")


def _check_labels(subject: Subject, disk: Disk) -> None:
    seen: dict[str, int] = {}
    for partition in disk.partitions:
        label = partition.label
        if label and label in seen:
            subject.findings.add(
                "rootfs-label-shared",
                f"partitions {seen[label]} and {partition.number}",
                f"both are {label!r}",
            )
        seen.setdefault(label, partition.number)


def _check_filesystem(subject: Subject, partition: Partition) -> None:
    tree = subject.filesystems.get(partition.number)
    if tree is None:
        return
    where = f"partition {partition.number}"
    if tree.size_bytes > partition.size:
        subject.findings.add(
            "filesystem-too-large", where, f"{mib(tree.size_bytes)} in a partition of {mib(partition.size)}"
        )
    if not tree.is_clean:
        subject.findings.add("filesystem-unclean", where, "it was not unmounted, or its journal is not empty")
