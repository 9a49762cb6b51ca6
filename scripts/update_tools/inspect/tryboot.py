# SPDX-License-Identifier: Apache-2.0
"""Section: Raspberry Pi's firmware as the boot loader: autoboot.txt, and a boot partition for each slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from update_agent.autoboot import LIMIT_BYTES, NAME, Autoboot
from update_agent.errors import BootloaderError

from .fat import FatTree
from .subject import CONFIG, Slot, fat

if TYPE_CHECKING:
    from .disk import Disk, Partition
    from .subject import Subject

KEYS = ("AutobootPart", "BootPartA", "BootPartB")
_NEEDED = ("/boot/cmdline.txt", "/boot/config.txt")  # what the agent makes a boot partition from


def section(subject: Subject) -> dict[str, object] | None:
    """The partitions and autoboot.txt as a document; None for other boot loaders."""
    config = subject.config
    if config is None or not subject.is_tryboot:
        return None
    named = (config.autoboot_part, config.boot_part_a, config.boot_part_b)
    document: dict[str, object] = {"parts": dict(zip(KEYS, named, strict=True)), "text": ""}
    for path in _NEEDED:
        if subject.root is not None and subject.root.find(path) is None:
            subject.findings.add("tryboot-files-missing", path, "the slot's boot partition is made from it")
    disk = subject.disk
    if disk is None:
        return document
    parts = [_partition(subject, disk, key, node) for key, node in zip(KEYS, named, strict=True)]
    if parts[0] is not None:
        document["text"] = _autoboot(subject, disk, parts[0], [Slot(node).number for node in named[1:]])
    _check_root(subject)
    return document


def _partition(subject: Subject, disk: Disk, key: str, node: str) -> Partition | None:
    """What a key names; of root B's nothing is in a new image."""
    partition = disk.partition(Slot(node).number)
    if not node:
        subject.findings.add("tryboot-part-missing", CONFIG, f"{key} is not set")
    elif partition is None:
        subject.findings.add("tryboot-part-missing", node, f"{key} is not in the partition table")
    elif partition.filesystem != "vfat" and key != "BootPartB":
        subject.findings.add("tryboot-part-missing", node, f"{key} holds no FAT file system")
    else:
        return partition
    return None


def _autoboot(subject: Subject, disk: Disk, partition: Partition, boots: list[int]) -> str:
    """The text, checked as the agent does."""
    where = f"partition {partition.number}: {NAME}"
    tree = fat(subject, disk, partition)
    data = tree.read(f"/{NAME}") if tree else None
    if data is None or len(data) > LIMIT_BYTES:
        what = "is not there" if data is None else f"has more than {LIMIT_BYTES} bytes"
        subject.findings.add("autoboot-invalid", where, what)
        return ""
    text = data.decode("ascii", "replace")
    try:
        found = Autoboot(text, where)
    except BootloaderError as error:
        subject.findings.add("autoboot-invalid", where, error.message)
        return text
    if all(boots) and {int(found.default), int(found.other)} != set(boots):
        what = f"{found.default} and {found.other}, mender.conf says {boots[0]} and {boots[1]}"
        subject.findings.add("autoboot-other-parts", where, what)
    return text


def _check_root(subject: Subject) -> None:
    """The firmware has one command line for each boot partition, which must name its own root."""
    wanted = subject.slots[0].node
    words = (subject.boot.text("/cmdline.txt") or "").split() if subject.boot else []
    for word in words:
        if word.startswith("root=/dev/") and word != f"root={wanted}" and isinstance(subject.boot, FatTree):
            subject.findings.add("tryboot-other-root", f"{subject.boot.name}: cmdline.txt", word)
