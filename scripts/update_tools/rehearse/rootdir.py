# SPDX-License-Identifier: Apache-2.0
"""The root of the machine as a folder of the host: whatever links are in it, paths in it stay in it."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from update_tools.rehearse.team import InputError

_LINKS = 40  # as the kernel's limit
_FROM_HOST = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_OWN = ("proc", "sys", "run", "tmp", ".host", ".slots", ".rehearsal")  # the machine has these of its own
_FOLDERS = ("data", "dev", "etc", "home", "opt", "root", "srv", "usr", "var")
_DEVICES = ("fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero")


def inside(root: Path, path: str) -> Path:
    """Where a path of the device is below `root`, all links followed as on the device.

    Raises InputError for links in a circle.
    """
    done: list[str] = []
    pending = path.split("/")[::-1]
    links = 0
    while pending:
        part = pending.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            del done[-1:]
            continue
        here = root.joinpath(*done, part)
        if not here.is_symlink():
            done.append(part)
            continue
        links += 1
        if links > _LINKS:
            raise InputError(f"--root: the link {part} leads in a circle, on the way to {path}")
        target = os.readlink(here)
        if target.startswith("/"):
            done.clear()
        pending += target.split("/")[::-1]
    return root.joinpath(*done)


def put(root: Path, path: str, content: bytes, mode: int = 0o644) -> None:
    """Write a file of the device; a link at its place is replaced, not followed. Raises InputError."""
    folder, _, name = path.rpartition("/")
    try:
        place = make_folder(root, folder) / name
        if place.is_symlink():
            place.unlink()
        place.write_bytes(content)
        place.chmod(mode)
    except OSError as error:
        raise InputError(f"--root: cannot put {path} into it: {error.strerror}") from error


def make_folder(root: Path, path: str) -> Path:
    """Make a folder of the device, if it is not there. Raises InputError."""
    place = inside(root, path)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--root: {path} is no folder") from error
    return place


def copy(given: Path, root: Path) -> None:
    """Copy what a team lays over the root, but for its usr. Raises InputError for what cannot be there."""
    try:
        for name in _DEVICES:
            if os.path.lexists(given / "dev" / name):
                raise InputError(f"{given}/dev/{name}: the machine has its own")
        for path in sorted(given.iterdir()):
            if _is_wanted(path):
                _copy(path, root / path.name)
    except OSError as error:
        raise InputError(f"cannot read --root: {error.filename}: {error.strerror}") from error


def _is_wanted(path: Path) -> bool:
    is_folder = path.is_dir() and not path.is_symlink()
    if path.name in _FOLDERS and not is_folder:
        raise InputError(f"{path} is a link or a file; on the machine it is a folder")
    if path.name in _FROM_HOST and is_folder:
        raise InputError(f"{path} would hide the host's programs", hint="put yours into usr/bin or usr/lib")
    if path.name in _OWN and not (is_folder and not any(path.iterdir())):
        raise InputError(f"{path} would not be seen: the machine has its own /{path.name}")
    return path.name not in {"usr", *_FROM_HOST, *_OWN}


def _copy(path: Path, target: Path) -> None:
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode):
        target.mkdir()
        for below in sorted(path.iterdir()):
            _copy(below, target / below.name)
        shutil.copystat(path, target)
        target.chmod(0o755 | mode & 0o7777)  # ours must get in, whoever we are
    elif stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        shutil.copy2(path, target, follow_symlinks=False)
    else:
        raise InputError(f"{path} is neither file, folder nor link", hint="leave it out of --root")
