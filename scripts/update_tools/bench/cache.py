# SPDX-License-Identifier: Apache-2.0
"""What takes long to make is kept under a name that its inputs decide, so it is made once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def root() -> Path:
    """The cache directory: META_UPDATE_CACHE, else meta-update in XDG_CACHE_HOME or ~/.cache."""
    if named := os.environ.get("META_UPDATE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meta-update"


def key(*parts: str | bytes | Path) -> str:
    """A name for a result that depends on these texts, bytes, and contents of files."""
    digest = hashlib.sha256()
    for part in parts:
        data = (
            part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        )
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:20]


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold a lock that other processes using the same cache respect."""
    root().mkdir(parents=True, exist_ok=True)
    with open(root() / f"{name.replace('/', '-')}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """The directory of a result; `make(directory)` fills a fresh one if it is not there yet.

    A result appears whole or not at all: a broken or interrupted make leaves nothing behind. Results of the
    same kind that have not been used for the last four makes are removed.
    """
    place = root() / kind
    result = place / name
    with lock(kind):
        if not result.exists():
            place.mkdir(parents=True, exist_ok=True)
            fresh = place / f".{name}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            make(fresh)
            fresh.rename(result)
            for old in sorted(place.iterdir(), key=lambda path: path.stat().st_mtime)[:-5]:
                shutil.rmtree(old)
        os.utime(result)
    return result
