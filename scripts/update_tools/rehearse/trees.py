# SPDX-License-Identifier: Apache-2.0
"""The files of the machine, to be compared: around each script, and by content after an update."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from fnmatch import fnmatch
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    Quick = dict[str, tuple[int, ...]]

# What is the machine's or the host's and not the scripts', and what a restart empties.
HOST_ETC = ("alternatives", "ssl", "ca-certificates", "ld.so.conf.d")
_NOT_OURS = {
    *("/usr", "/proc", "/sys", "/dev", "/run", "/tmp", "/.rehearsal", "/.slots", "/.host"),
    *(f"/etc/{name}" for name in HOST_ETC),
}
# What the agent keeps in its datastore (store, keys, module trees, its log).
_AGENT = (
    "/data/mender/deployments.*.log",
    "/data/mender/device_type",
    "/data/mender/mender-agent.pem*",
    "/data/mender/mender-store*",
    "/data/mender/modules",
    "/data/mender/scripts",
    "/data/mender/update-agent.json*",
    "/data/mender/update-agent.lock",
)
_CHUNK = 1 << 20
_TEXT_BYTES = 1 << 20  # of a file in which times are looked for
# What differs between two equal updates: when they were, their ids, and which slot it was.
_VARYING = re.compile(
    rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b1[0-9]{9}\b|mmcblk0p[23]"
    rb"|\b[0-9]{4}-?[0-9]{2}-?[0-9]{2}(T?[0-9]{6}Z?)?\b|\b[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?"
    rb"|\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun)\b|\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) +[0-9]{1,2}\b"
)


def _walk(ignored: Sequence[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Every path with its status, in order; folders whose own path is ignored are not gone into."""
    pending = ["/"]
    while pending:
        folder = pending.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue  # gone meanwhile
        for entry in entries:
            if entry.path in _NOT_OURS or matches(entry.path, _AGENT) or matches(entry.path, ignored):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode):
                pending.append(entry.path)
            yield entry.path, status


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path is one of these, as the shell matches; `*` matches `/`, and a folder what is in it."""
    return any(fnmatch(path, pattern) or fnmatch(path, f"{pattern.rstrip('/')}/*") for pattern in patterns)


def quick(ignored: Sequence[str] = ()) -> Quick:
    """What tells that a path was changed, without reading it. A folder by its mode alone."""
    return {
        path: (s.st_mode, s.st_uid, s.st_gid)
        + (() if stat.S_ISDIR(s.st_mode) else (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns))
        for path, s in _walk(ignored)
    }


def changed(before: Quick, after: Quick) -> list[str]:
    """The paths that were made, changed or removed."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def contents(ignored: Sequence[str] = ()) -> dict[str, str]:
    """Every path and what is there, in words that are equal when it is the same, but for times and ids."""
    return {path: _content(path, status) for path, status in _walk(ignored)}


def _content(path: str, status: os.stat_result) -> str:
    mode = f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
    if stat.S_ISLNK(status.st_mode):
        return f"{mode} -> {os.readlink(path)}"
    if not stat.S_ISREG(status.st_mode):
        return mode
    with open(path, "rb") as file:
        start = file.read(_TEXT_BYTES)
        digest = hashlib.sha256(_VARYING.sub(b"*", start))
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return f"{mode} {status.st_size} bytes {digest.hexdigest()[:16]}"
