# SPDX-License-Identifier: Apache-2.0
"""ext4 file systems from a list of files: no root, no mount, and the same bytes for the same files.

debugfs writes them in sorted order; owners, modes and times are set, never taken from the host.
"""

from __future__ import annotations

import stat
import tempfile
import uuid
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from .tools import EPOCH, BenchError, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NAMESPACE = uuid.UUID("6d657461-2d75-4064-8174-652d62656e63")


class Node:
    """One file: content in a host file or in memory, or the target of a link; a directory has neither."""

    __slots__ = ("data", "mode", "source", "target")

    def __init__(
        self, mode: int, *, data: bytes | None = None, source: Path | None = None, target: str | None = None
    ) -> None:
        self.mode = mode
        self.data = data
        self.source = source
        self.target = target


class Files:
    """Absolute path on the device -> Node. Later additions replace earlier ones."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def text(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        self._put(path, Node(mode, data=content.encode() if isinstance(content, str) else content))

    def link(self, path: str, target: str) -> None:
        self._put(path, Node(0o777, target=target))

    def directory(self, path: str, mode: int = 0o755) -> None:
        self._put(path, Node(mode))

    def remove(self, path: str) -> None:
        self.nodes.pop(path, None)

    def tree(self, host: Path, at: str = "/") -> None:
        """Everything below a host directory."""
        for path in sorted(host.rglob("*")):
            name = str(PurePosixPath(at) / path.relative_to(host).as_posix())
            if path.is_symlink():
                self.link(name, str(path.readlink()))
            elif path.is_dir():
                self.directory(name)
            else:
                self._put(name, Node(0o755 if path.stat().st_mode & 0o111 else 0o644, source=path))

    def _put(self, path: str, node: Node) -> None:
        pure = PurePosixPath(path)
        if not pure.is_absolute() or ".." in pure.parts or '"' in path:
            raise BenchError(f"{path!r} is not an absolute path for a file system")
        for parent in pure.parents:
            self.nodes.setdefault(str(parent), Node(0o755))
        self.nodes[str(pure)] = node


def make(
    image: Path, files: Files, *, size_bytes: int, label: str, journal: bool, options: Sequence[str] = ()
) -> Path:
    """Make a file system of this size in a fresh sparse file; `options` of mke2fs win over those of here.

    Raises BenchError if `files` do not fit.
    """
    name = uuid.uuid5(_NAMESPACE, label)
    image.unlink(missing_ok=True)
    with open(image, "wb") as file:
        file.truncate(size_bytes)
    features = "metadata_csum,64bit" + ("" if journal else ",^has_journal")
    extended = f"hash_seed={name},root_owner=0:0,lazy_itable_init=1,nodiscard"
    words = ["-q", "-t", "ext4", "-F", "-b", "4096", "-I", "256", "-m", "0", "-O", features, "-E", extended]
    run(["mke2fs", *words, "-L", label, "-U", str(name), *options, image])
    with tempfile.TemporaryDirectory() as scratch:
        script = Path(scratch) / "script"
        script.write_text(_script(files.nodes, Path(scratch)))
        said = run(["sh", "-c", 'exec debugfs -w -f "$0" "$1" 2>&1', script, image])
    wrong = [
        line
        for line in said.splitlines()
        if line and not line.startswith(("debugfs", "Allocated inode:", "debugfs 1."))
    ]
    if wrong:
        raise BenchError(
            f"debugfs could not fill {image.name}: {wrong[0]}", hint="is the partition too small?"
        )
    return image


def _script(nodes: Mapping[str, Node], scratch: Path) -> str:
    lines = []
    for number, (path, node) in enumerate(sorted(nodes.items())):
        where = PurePosixPath(path)
        lines.append(f'cd "{where.parent}"')
        if node.target is not None:
            # Made with the fixed time already; setting fields would follow the link.
            lines.append(f'symlink "{where.name}" "{node.target}"')
            continue
        kind = stat.S_IFDIR
        if node.data is not None or node.source is not None:
            source = node.source
            if source is None:
                source = scratch / str(number)
                source.write_bytes(node.data or b"")
            lines.append(f'write "{source}" "{where.name}"')
            kind = stat.S_IFREG
        elif path != "/":
            lines.append(f'mkdir "{where.name}"')
        lines.append(f'sif "{path}" mode 0{kind | node.mode:o}')
        lines += [f'sif "{path}" {field} 0' for field in ("uid", "gid")]
        lines += [f'sif "{path}" {field} @{EPOCH}' for field in ("atime", "ctime", "mtime", "crtime")]
    return "\n".join(lines) + "\n"
