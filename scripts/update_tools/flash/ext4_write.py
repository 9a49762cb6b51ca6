# SPDX-License-Identifier: Apache-2.0
"""Adds files to an ext4 file system inside a medium or an image: no mount, no root, no loop device."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from contextlib import ExitStack
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from .errors import FlashError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from update_tools.inspect.tree import Tree

PATH = "/usr/sbin:/sbin:/usr/bin:/bin"  # Debian does not give the first two to people
_NAME = re.compile(r"(/[A-Za-z0-9_.@+-]+)+")
_NOISE = ("debugfs", "Allocated inode:")


class New:
    """A file to be made, owned by root; a directory has no content."""

    __slots__ = ("content", "mode")

    def __init__(self, content: bytes | None, mode: int) -> None:
        self.content = content
        self.mode = mode


def add(path: str, offset: int, files: Mapping[str, New], present: Tree) -> None:
    """Make the files, parents first, and replace those that are there; `present` is what is there now.

    The file system begins at `offset` of the file or device. Raises FlashError.
    """
    with ExitStack() as stack:
        lines = []
        descriptors = []
        for name, new in sorted(files.items()):
            if not _NAME.fullmatch(name):
                raise FlashError(f"{name!r} is no name for a file of the data partition")
            where = PurePosixPath(name)
            lines.append(f"cd {where.parent}")
            there = present.find(name, follow=False)
            if new.content is None:
                if there is None:
                    lines.append(f"mkdir {where.name}")
                elif not there.is_directory:
                    raise FlashError(f"{name} of the data partition is no directory")
                kind = stat.S_IFDIR
            else:
                if there is not None:
                    lines.append(f"rm {where.name}")
                # Secrets do not touch this machine's disks.
                descriptor = os.memfd_create("ota-flash")
                stack.callback(os.close, descriptor)
                os.write(descriptor, new.content)
                descriptors.append(descriptor)
                lines.append(f"write /proc/self/fd/{descriptor} {where.name}")
                kind = stat.S_IFREG
            lines.append(f"sif {name} mode 0{kind | new.mode:o}")
            lines += [f"sif {name} {owner} 0" for owner in ("uid", "gid")]
        _debugfs(path, offset, lines, descriptors)


def _debugfs(path: str, offset: int, lines: list[str], descriptors: list[int]) -> None:
    environment = {"PATH": PATH, "LC_ALL": "C.UTF-8", "DEBUGFS_PAGER": "cat"}
    argv = ["debugfs", "-w", "-f", "-", f"{path}?offset={offset}"]
    try:
        done = subprocess.run(
            argv,
            input="\n".join(lines) + "\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            pass_fds=descriptors,
            check=False,
        )
    except FileNotFoundError as error:
        raise FlashError("debugfs is not installed", hint="apt-get install e2fsprogs") from error
    wrong = [line for line in done.stdout.splitlines() if line and not line.startswith(_NOISE)]
    if wrong or done.returncode != 0:
        said = wrong[0] if wrong else f"exit code {done.returncode}"
        raise FlashError(f"debugfs could not fill the data partition of {path}: {said}", hint="is it full?")
