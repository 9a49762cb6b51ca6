# SPDX-License-Identifier: Apache-2.0
"""Files that must be on the medium before the next step begins. Replacing a file is `store.replace`."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_BATCH = 64  # descriptors at a time


def write(files: Sequence[tuple[str, bytes]], mode: int = 0o600) -> None:
    """Create files, which must not exist, with exactly this mode, content on the medium. Raises OSError.

    The names themselves are durable only after `store.sync_directory` of their directories.
    """
    for start in range(0, len(files), _BATCH):
        _write(files[start : start + _BATCH], mode)


def _write(files: Sequence[tuple[str, bytes]], mode: int) -> None:
    fds = []
    try:
        for path, data in files:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            fds.append(fd)
            os.fchmod(fd, mode)  # whatever the umask
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            # Begins to write out. With all of them on their way the first fsync commits the journal for all;
            # one file after the other costs a commit each.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for fd in fds:
            os.fsync(fd)
    finally:
        for fd in fds:
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
