# SPDX-License-Identifier: Apache-2.0
"""Section: what must not be in an image that many devices share, and files that anybody may change."""

from __future__ import annotations

import re
import stat
from typing import TYPE_CHECKING

from .scripts_hooks import HOOKS, SCRIPTS
from .subject import STORE

if TYPE_CHECKING:
    from .subject import Subject
    from .tree import Entry, Tree

# A whole key, not a program or a text that only mentions the words.
_KEY = re.compile(
    rb"^-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----\r?\n(?:[\w-]+: .*\r?\n|\r?\n)*[A-Za-z0-9+/=]{16,}",
    re.MULTILINE,
)
_KEY_NAMES = re.compile(r"/etc/dropbear/dropbear_\w+_host_key")
_EXAMPLE = re.compile(r"^/usr/share/doc/|/(tests?|testing|testdata|examples?)/")
_KEY_BYTES = 64 << 10


def section(subject: Subject) -> dict[str, object] | None:
    """Private keys and files with wrong rights, by path; None without a root file system."""
    root = subject.root
    if root is None:
        return None
    keys = [path for path, entry in sorted(root.entries.items()) if _is_key(root, entry)]
    for path in keys:
        is_device_key = path.startswith(("/data/mender/", STORE)) and path.endswith("mender-agent.pem")
        name = "private-key-example" if _EXAMPLE.search(path) else "private-key"
        subject.findings.add("device-key-shared" if is_device_key else name, path, "a private key")
    if subject.data is not None:
        for path, entry in sorted(subject.data.entries.items()):
            if _is_key(subject.data, entry):
                name = "device-key-shared" if path == "/mender/mender-agent.pem" else "private-key"
                subject.findings.add(name, f"data: {path}", "a private key, the same on every device")
    _check_identity(subject, root)
    writable = [path for path, entry in sorted(root.entries.items()) if _is_writable(entry)]
    for path in writable:
        subject.findings.add("world-writable", path, f"mode {root.entries[path].mode & 0o7777:04o}")
    return {"private_keys": keys, "world_writable": writable}


def _is_key(tree: Tree, entry: Entry) -> bool:
    if not entry.is_file or not 0 < entry.size <= _KEY_BYTES:
        return False
    return bool(_KEY_NAMES.fullmatch(entry.path) or _KEY.search(tree.content(entry, _KEY_BYTES)))


def _is_writable(entry: Entry) -> bool:
    checked_elsewhere = entry.path.startswith((f"{SCRIPTS}/", *(f"{directory}/" for directory in HOOKS)))
    if not entry.mode & 0o002 or checked_elsewhere:
        return False
    return entry.is_file or (entry.is_directory and not entry.mode & stat.S_ISVTX)


def _check_identity(subject: Subject, root: Tree) -> None:
    machine_id = (root.text("/etc/machine-id") or "").strip()
    if re.fullmatch(r"[0-9a-f]{32}", machine_id):
        subject.findings.add("machine-id-shared", "/etc/machine-id", "an identity is already set")
    shadow = root.text("/etc/shadow")
    for path, text in (("/etc/passwd", root.text("/etc/passwd")), ("/etc/shadow", shadow)):
        for line in (text or "").splitlines():
            if line.startswith("root::"):
                subject.findings.add("root-without-password", path, "anybody can log in as root")
