# SPDX-License-Identifier: Apache-2.0
"""Section: flattened device trees, decoded by pyfdt: board, command line, and the node of the card."""

from __future__ import annotations

import io
import re
import struct
from typing import TYPE_CHECKING, Any

from .boot_script import loads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .subject import Subject
    from .tree import Entry, Tree

_MAGIC = b"\xd0\x0d\xfe\xed"
_LIMIT_BYTES = 4 << 20
_FIXED_ROOT = re.compile(r"\broot=\S+")
_MMC_NAME = re.compile(r"/(mmc|sdhci|mmcnr|sdhost)(@[^/]+)?$")


class Devicetree:
    """What matters here of one tree. Raises ValueError if it is none."""

    __slots__ = ("aliases", "bootargs", "compatible", "mmc", "model")

    def __init__(self, data: bytes) -> None:
        nodes = _nodes(data)
        root = nodes.get("/", {})
        self.model = _text(root.get("model"))
        self.compatible = _texts(root.get("compatible"))
        self.bootargs = _text(nodes.get("/chosen", {}).get("bootargs"))
        self.aliases = {name: _text(value) for name, value in nodes.get("/aliases", {}).items()}
        # path -> status, of every controller of cards
        self.mmc = {
            path: _text(node.get("status")) or "okay"
            for path, node in nodes.items()
            if _MMC_NAME.search(path)
        }

    def document(self) -> dict[str, object]:
        """For JSON."""
        return {
            "model": self.model,
            "compatible": self.compatible,
            "bootargs": self.bootargs,
            "mmc": self.mmc,
            "mmc_aliases": {name: path for name, path in self.aliases.items() if name.startswith("mmc")},
        }


def _nodes(data: bytes) -> dict[str, dict[str, Any]]:
    """Path -> property name -> pyfdt's property."""
    from pyfdt.pyfdt import FdtBlobParse, FdtProperty

    if data[:4] != _MAGIC or len(data) < 40 or struct.unpack_from(">I", data, 4)[0] > len(data):
        raise ValueError("not a flattened device tree, or cut off")
    try:
        tree = FdtBlobParse(io.BytesIO(data)).to_fdt()
        nodes: dict[str, dict[str, Any]] = {"/": {}}
        for item in tree.get_rootnode():
            if isinstance(item, FdtProperty):
                nodes["/"][item.get_name()] = item
        for path, item in tree.resolve_path("/").walk():
            if isinstance(item, FdtProperty):
                parent, _, name = path.rpartition("/")
                nodes.setdefault(parent or "/", {})[name] = item
            else:
                nodes.setdefault(path, {})
    except Exception as error:  # pyfdt raises Exception itself, struct.error, IndexError and more
        raise ValueError(f"pyfdt cannot read it: {error}") from error
    return nodes


def _texts(value: Any) -> list[str]:
    strings = getattr(value, "strings", None)
    return list(strings) if strings is not None else []


def _text(value: Any) -> str:
    return " ".join(_texts(value))


def section(subject: Subject) -> dict[str, object] | None:
    """Device trees of the slot's /boot and of the boot partition, path -> document; None if there is none."""
    found: dict[str, object] = {}
    trees: dict[str, Devicetree] = {}
    for tree, entry in _files(subject):
        where = f"{tree.name}:{entry.path}"
        try:
            trees[where] = Devicetree(tree.content(entry, _LIMIT_BYTES))
        except ValueError as error:
            subject.findings.add("devicetree-damaged", where, str(error))
            continue
        found[where] = trees[where].document()
    _check_board(subject, trees)
    for where, devicetree in trees.items():
        if match := _FIXED_ROOT.search(devicetree.bootargs):
            subject.findings.add("devicetree-fixed-root", where, match[0])
    return found or None


def _files(subject: Subject) -> Iterator[tuple[Tree, Entry]]:
    places = ((subject.root, "/boot"), (subject.boot, "/"))
    for tree, directory in places:
        for entry in tree.below(directory) if tree else ():
            if entry.is_file and entry.path.endswith(".dtb"):
                yield tree, entry  # type: ignore[misc]  # a tree that is not there has no entries


def _check_board(subject: Subject, trees: dict[str, Devicetree]) -> None:
    """The tree that the boot script loads must be the board's; where the firmware chooses, one of them."""
    chosen = _chosen(subject)
    candidates = {
        where: tree for where, tree in trees.items() if chosen and where.endswith(f":{chosen}")
    } or trees
    wanted = subject.board.compatible
    matching = {
        where: tree
        for where, tree in candidates.items()
        if not wanted or any(name.startswith(wanted) for name in tree.compatible)
    }
    if candidates and not matching:
        for where, tree in candidates.items():
            what = f"{tree.model or 'no model'}: {', '.join(tree.compatible) or 'no compatible'}"
            subject.findings.add("devicetree-other-board", where, f"{what}; the board is {wanted}")
    for where, tree in matching.items() if len(matching) == 1 else ():
        _check_mmc(subject, where, tree)


def _chosen(subject: Subject) -> str:
    """Path of the tree that the boot script loads from the slot; empty if the firmware hands one on."""
    from .boot_script import SCRIPT, ScriptError, parse

    data = subject.boot.read(SCRIPT) if subject.boot else None
    try:
        files = loads(parse(data)[1]) if data else {}
    except ScriptError:
        files = {}
    return next(
        (path for variable, path in files.items() if variable.startswith("fdt") and "$" not in path), ""
    )


def _check_mmc(subject: Subject, where: str, tree: Devicetree) -> None:
    disk = subject.slots[0].disk
    if not disk.startswith("/dev/mmcblk"):
        return
    alias = f"mmc{disk.removeprefix('/dev/mmcblk')}"
    path = tree.aliases.get(alias)
    if path is not None and path in tree.mmc:
        if tree.mmc[path] not in {"okay", "ok"}:
            subject.findings.add(
                "devicetree-no-mmc", where, f"{alias} is {path}, its status is {tree.mmc[path]}"
            )
    elif not any(status in {"okay", "ok"} for status in tree.mmc.values()):
        subject.findings.add("devicetree-no-mmc", where, f"no enabled controller for {disk}")
