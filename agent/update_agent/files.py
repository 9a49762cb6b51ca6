# SPDX-License-Identifier: Apache-2.0
"""Files that must be on the medium before the next step begins. Replacing a file is `store.replace`."""

from __future__ import annotations

import os


def write(path: str, data: bytes, mode: int = 0o600) -> None:
    """Create `path` (it must not exist) with exactly this mode, content on the medium. Raises OSError.

    The name itself is durable only after `store.sync_directory` of its directory.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)  # whatever the umask
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: str) -> None:
    """Delete a directory with all it holds; a missing one is fine. Links are removed, never followed.

    Raises OSError at the first entry that cannot be removed.
    """
    if os.path.islink(path) or (os.path.lexists(path) and not os.path.isdir(path)):
        os.unlink(path)
        return
    for directory, names, files in os.walk(path, topdown=False):
        for name in files:
            os.unlink(os.path.join(directory, name))
        for name in names:
            entry = os.path.join(directory, name)
            if os.path.islink(entry):
                os.unlink(entry)
            else:
                os.rmdir(entry)
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
