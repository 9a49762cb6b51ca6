# SPDX-License-Identifier: Apache-2.0
"""The small initramfs that Debian's modular kernel needs before it can see a card."""

from __future__ import annotations

import gzip
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from .tools import EPOCH, BenchError, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_INIT = Path(__file__).parent / "files/init"
_APPLETS = ("cat", "insmod", "mount", "reboot", "sh", "sleep", "switch_root", "umount", "usleep")


def make(tree: Path, modules: Sequence[str]) -> bytes:
    """A gzip'ed cpio with busybox, our init, and the modules with all they need, from unpacked packages.

    A module may have parameters after its name: "i6300esb heartbeat=60".
    """
    words = {_name(module.split()[0]): module.partition(" ")[2] for module in modules}
    (version,) = [path.name for path in (tree / "usr/lib/modules").iterdir()]
    order = load_order(tree, version, list(words))
    entries = [("", stat.S_IFDIR | 0o755, b"", (0, 0))]
    entries += [
        (name, stat.S_IFDIR | 0o755, b"", (0, 0)) for name in ("bin", "dev", "modules", "proc", "slot", "sys")
    ]
    entries.append(("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)))
    entries.append(("bin/busybox", stat.S_IFREG | 0o755, (tree / "usr/bin/busybox").read_bytes(), (0, 0)))
    entries += [(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox", (0, 0)) for name in _APPLETS]
    entries.append(("init", stat.S_IFREG | 0o755, _INIT.read_bytes(), (0, 0)))
    names = [f"{path.name} {words.get(_name(path.name), '')}".rstrip() for path in order]
    entries.append(("modules/order", stat.S_IFREG | 0o644, "".join(f"{n}\n" for n in names).encode(), (0, 0)))
    entries += [(f"modules/{path.name}", stat.S_IFREG | 0o644, path.read_bytes(), (0, 0)) for path in order]
    return gzip.compress(cpio(entries), 9, mtime=0)


def load_order(tree: Path, version: str, modules: Sequence[str]) -> list[Path]:
    """Module files in an order in which each finds what it needs; modules built into the kernel need none."""
    run(["depmod", "-b", tree / "usr", version])
    base = tree / "usr/lib/modules" / version
    needs: dict[str, tuple[Path, list[str]]] = {}
    for line in (base / "modules.dep").read_text().splitlines():
        file, _, after = line.partition(":")
        needs[_name(file)] = (base / file, [_name(other) for other in after.split()])
    built_in = {_name(line) for line in (base / "modules.builtin").read_text().splitlines()}
    # Asked for by name at run time, so modules.dep does not know: the checksum that ext4's metadata uses.
    soft = {"ext4": ["crc32c_generic"]}
    order: dict[str, Path] = {}

    def add(name: str) -> None:
        name = name.replace("-", "_")
        if name in order or name in built_in:
            return
        if name not in needs:
            raise BenchError(f"the kernel {version} has no module {name}")
        path, others = needs[name]
        for other in [*soft.get(name, ()), *reversed(others)]:
            add(other)
        order[name] = path

    for module in modules:
        add(module)
    return list(order.values())


def _name(path: str) -> str:
    return re.sub(r"\.ko(\.\w+)?$", "", path.rsplit("/", 1)[-1]).replace("-", "_")


def cpio(entries: Iterable[tuple[str, int, bytes, tuple[int, int]]]) -> bytes:
    """A newc archive of (name, mode, content, device numbers); links carry their target as content."""
    out = bytearray()
    for inode, (name, mode, data, (major, minor)) in enumerate([*entries, ("TRAILER!!!", 0, b"", (0, 0))], 1):
        encoded = (name or ".").encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, EPOCH, len(data), 0, 0, major, minor, len(encoded), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)
