# SPDX-License-Identifier: Apache-2.0
"""Section: flattened device trees, decoded by pyfdt: board, command line, and the node of the card."""

from __future__ import annotations

import io
import re
import struct
from typing import TYPE_CHECKING, Any

from .boot_script import SCRIPT, ScriptError, loads, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .subject import Subject
    from .tree import Entry, Tree

_MAGIC = b"\xd0\x0d\xfe\xed"
_BEGIN_NODE, _END_NODE, _PROPERTY, _NOP, _END = 1, 2, 3, 4, 9
_LIMIT_BYTES = 4 << 20
_MAX_DEPTH = 64
_CARD = "/dev/mmcblk"
_ENABLED = {"okay", "ok"}
_FIXED_ROOT = re.compile(r"\broot=\S+")
_MMC_NAME = re.compile(r"/(mmc|sdhci|mmcnr|sdhost)(@[^/]+)?$")  # the specification's name, and old ones


class Devicetree:
    """What matters here of one tree. Raises ValueError if it is none."""

    __slots__ = ("aliases", "bootargs", "compatible", "mmc", "model")

    def __init__(self, data: bytes) -> None:
        found = nodes(data)
        root = found.get("/", {})
        self.model = _text(root.get("model"))
        self.compatible = _texts(root.get("compatible"))
        self.bootargs = _text(found.get("/chosen", {}).get("bootargs"))
        self.aliases = {name: _text(value) for name, value in found.get("/aliases", {}).items()}
        # path -> status, of every controller of cards
        self.mmc = {
            path: _text(node.get("status")) or "okay"
            for path, node in found.items()
            if _MMC_NAME.search(path)
        }

    def fits(self, compatible: str) -> bool:
        """One of its names begins like the board's; any tree if that is not known."""
        return any(name.startswith(compatible) for name in self.compatible) or not compatible

    def card(self, disk: str) -> dict[str, str] | None:
        """The controller of a card, /dev/mmcblk0; None if that cannot be said.

        Linux numbers cards by aliases first; without them by the order in which they are found: of two
        controllers either can be it.
        """
        alias = f"mmc{disk.removeprefix(_CARD)}" if disk.startswith(_CARD) else ""
        node = self.aliases.get(alias, "")
        enabled = [path for path, status in self.mmc.items() if status in _ENABLED]
        if not node and alias == "mmc0" and len(enabled) == 1:
            alias, node = "", enabled[0]
        return {"alias": alias, "node": node, "status": self.mmc[node]} if node in self.mmc else None

    def document(self) -> dict[str, object]:
        """For JSON."""
        return {
            "model": self.model,
            "compatible": self.compatible,
            "bootargs": self.bootargs,
            "mmc": self.mmc,
            "mmc_aliases": {name: path for name, path in self.aliases.items() if name.startswith("mmc")},
        }


def nodes(data: bytes) -> dict[str, dict[str, Any]]:
    """Path -> property name -> pyfdt's property."""
    from pyfdt.pyfdt import FdtBlobParse, FdtProperty

    _check_structure(data)
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


def _check_structure(data: bytes) -> None:
    """Raise ValueError for what would let pyfdt run for long, or out of memory."""
    if data[:4] != _MAGIC or len(data) < 40:
        raise ValueError("not a flattened device tree")
    size, at, strings, reserved = struct.unpack_from(">4I", data, 4)
    if size > len(data) or max(at, strings, reserved) > size:
        raise ValueError("cut off")
    depth = 0
    while at + 4 <= size:
        (token,) = struct.unpack_from(">I", data, at)
        at += 4
        if token == _BEGIN_NODE:
            depth += 1
            at = (data.find(b"\0", at, size) + 4) & ~3
            if depth > _MAX_DEPTH or at < 4:
                raise ValueError("nodes without end")
        elif token == _END_NODE:
            depth -= 1
        elif token == _PROPERTY and at + 8 <= size:
            at += (8 + struct.unpack_from(">I", data, at)[0] + 3) & ~3
        elif token == _END:
            return
        elif token != _NOP:
            raise ValueError(f"token {token:#x} in its structure")
    raise ValueError("its structure does not end")


def _texts(value: Any) -> list[str]:
    strings = getattr(value, "strings", None)
    return list(strings) if strings is not None else []


def _text(value: Any) -> str:
    return " ".join(_texts(value))


def section(subject: Subject) -> dict[str, object] | None:
    """Device trees of the slot's /boot and of the boot partition, path -> document; None if there is none.

    `fits` says that it is compatible with the board, `loaded` that the boot script names it, `card` is the
    node of the card with the slots and the environment.
    """
    found: dict[str, object] = {}
    trees: dict[str, Devicetree] = {}
    for tree, entry in _files(subject):
        where = f"{tree.name}:{entry.path}"
        try:
            trees[where] = Devicetree(tree.content(entry, _LIMIT_BYTES))
        except ValueError as error:
            subject.findings.add("devicetree-damaged", where, str(error))
    chosen = _chosen(subject)
    disk = subject.slots[0].disk
    for where, devicetree in trees.items():
        found[where] = {
            **devicetree.document(),
            "fits": devicetree.fits(subject.board.compatible) if subject.board.compatible else None,
            "loaded": bool(chosen) and where.endswith(f":{chosen}"),
            "card": devicetree.card(disk),
        }
        if match := _FIXED_ROOT.search(devicetree.bootargs):
            subject.findings.add("devicetree-fixed-root", where, match[0])
    _check_board(subject, trees, chosen)
    return found or None


def _files(subject: Subject) -> Iterator[tuple[Tree, Entry]]:
    places = ((subject.root, "/boot"), (subject.boot, "/"))
    for tree, directory in places:
        for entry in tree.below(directory) if tree else ():
            if entry.is_file and entry.path.endswith(".dtb"):
                yield tree, entry  # type: ignore[misc]  # a tree that is not there has no entries


def _check_board(subject: Subject, trees: dict[str, Devicetree], chosen: str) -> None:
    """The tree that the boot script loads must be the board's; where the firmware chooses, one of them."""
    candidates = {
        where: tree for where, tree in trees.items() if chosen and where.endswith(f":{chosen}")
    } or trees
    wanted = subject.board.compatible
    matching = {where: tree for where, tree in candidates.items() if tree.fits(wanted)}
    if candidates and not matching:
        for where, tree in candidates.items():
            what = f"{tree.model or 'no model'}: {', '.join(tree.compatible) or 'no compatible'}"
            subject.findings.add("devicetree-other-board", where, f"{what}; the board is {wanted}")
    for where, tree in matching.items() if len(matching) == 1 else ():
        _check_mmc(subject, where, tree)


def _chosen(subject: Subject) -> str:
    """Path of the tree that the boot script loads from the slot; empty if the firmware hands one on."""
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
    card = tree.card(disk)
    if card is not None:
        if card["status"] not in _ENABLED:
            what = f"{card['alias']} is {card['node']}, its status is {card['status']}"
            subject.findings.add("devicetree-no-mmc", where, what)
    elif disk.startswith(_CARD) and not any(status in _ENABLED for status in tree.mmc.values()):
        subject.findings.add("devicetree-no-mmc", where, f"no enabled controller for {disk}")
