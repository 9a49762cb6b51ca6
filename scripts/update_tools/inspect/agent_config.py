# SPDX-License-Identifier: Apache-2.0
"""Section: the agent's configuration, and whether it agrees with the root file system and the partitions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .subject import CONFIG, STORE, fstab

if TYPE_CHECKING:
    from update_agent.config import Config

    from .subject import Subject
    from .tree import Tree

_PROGRAMS = ("/usr/bin/update-agent", "/usr/bin/mender-update", "/usr/bin/mender")
_SECRET = "***"


def section(subject: Subject) -> dict[str, object] | None:
    """The configuration as a document, the tenant's token left out; None without a root file system."""
    root = subject.root
    if root is None:
        return None
    programs = [path for path in _PROGRAMS if root.find(path) is not None]
    if not programs:
        subject.findings.add("agent-missing", _PROGRAMS[0], "the image has no update agent")
    config = subject.config
    if config is not None:
        _check_server(subject, config)
        _check_files(subject, root, config)
        _check_slots(subject, config)
    elif CONFIG not in root.unreadable and not any(
        finding.name == "config-invalid" for finding in subject.findings
    ):
        subject.findings.add("config-missing", CONFIG, "the agent has no configuration")
    _check_store(subject, root)
    for fields in fstab(root):
        if fields[1] == "/" and fields[0] not in {"/dev/root", "rootfs", "none"}:
            subject.findings.add("fstab-fixed-root", "/etc/fstab", " ".join(fields[:2]))
    settings = dict(subject.config_document)
    settings.update({name: _SECRET for name in settings if name.lower() == "tenanttoken"})
    return {"programs": programs, "device_type": subject.device_type, "settings": settings}


def _check_server(subject: Subject, config: Config) -> None:
    if not config.servers:
        subject.findings.add("config-no-server", CONFIG, "no server is set")
    for url in config.servers:
        if not url.lower().startswith("https://"):
            subject.findings.add("config-plain-http", CONFIG, url)
    if config.skip_verify:
        subject.findings.add("config-skip-verify", CONFIG, "SkipVerify is true")


def _check_files(subject: Subject, root: Tree, config: Config) -> None:
    named = {
        "ServerCertificate": [config.server_certificate],
        "ArtifactVerifyKeys": config.artifact_verify_keys,
        "HttpsClient.Certificate": [config.https_client_certificate],
    }
    for key, paths in named.items():
        for path in paths:
            on_data = path.startswith(("/data/", f"{STORE}/"))  # may be provisioned later
            if path and not on_data and root.find(path) is None:
                subject.findings.add("config-file-missing", path, f"{key} of {CONFIG} names it")
    entry = root.find(CONFIG)
    if config.tenant_token and entry is not None and entry.mode & 0o004:
        subject.findings.add("config-secret-readable", CONFIG, f"TenantToken, mode {entry.mode & 0o7777:04o}")


def _check_slots(subject: Subject, config: Config) -> None:
    nodes = (config.rootfs_part_a, config.rootfs_part_b)
    if not all(nodes):
        subject.findings.add("config-slots-missing", CONFIG, "RootfsPartA or RootfsPartB is not set")
    elif nodes[0] == nodes[1]:
        subject.findings.add("config-same-slots", CONFIG, f"both are {nodes[0]}")


def _check_store(subject: Subject, root: Tree) -> None:
    if subject.disk is not None and not subject.device_type:
        subject.findings.add(
            "device-type-missing", f"{STORE}/device_type", "no device accepts any artifact without it"
        )
    wanted = subject.board.values.get("UPDATE_DEVICE_TYPE", "")
    if subject.source.kind != "artifact" and subject.device_type and wanted not in {"", subject.device_type}:
        what = f"{subject.device_type}, but {subject.board.name} is {wanted}"
        subject.findings.add("device-type-other", "device_type", what)
    place = _outside(root, STORE)
    mounted = _mounted(root)
    home = next((point for point in mounted if place == point or place.startswith(f"{point}/")), "")
    if not home and place == STORE:
        subject.findings.add("store-not-on-data", STORE, "it is a directory of the root file system")
    elif not home and not _started_mount(root, place):
        subject.findings.add("data-not-mounted", place, f"{STORE} leads there, and nothing mounts it")


def _outside(root: Tree, path: str) -> str:
    """Where a path leads, links followed also to what is only there when the data partition is mounted."""
    for _ in range(8):
        parts = path.strip("/").split("/")
        for end in range(1, len(parts) + 1):
            prefix = "/" + "/".join(parts[:end])
            entry = root.find(prefix, follow=False)
            if entry is not None and entry.is_link:
                target = (
                    entry.target
                    if entry.target.startswith("/")
                    else f"{prefix.rpartition('/')[0]}/{entry.target}"
                )
                path = "/".join([target, *parts[end:]])
                break
        else:
            return path
    return path


def _mounted(root: Tree) -> list[str]:
    """Mount points beside / by fstab and by systemd's units."""
    points = [fields[1].rstrip("/") for fields in fstab(root) if fields[1] != "/"]
    for directory in ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"):
        for name in root.names(directory):
            if name.endswith(".mount"):
                text = root.text(f"{directory}/{name}") or ""
                points += re.findall(r"^Where=(/\S+)$", text, re.MULTILINE)
    return [
        point for point in points if point not in {"/proc", "/sys", "/dev", "/run", "/tmp", "/var/volatile"}
    ]


def _started_mount(root: Tree, place: str) -> bool:
    """A script of the start mounts the directory, or one above it."""
    top = "/" + place.strip("/").split("/")[0]
    pattern = re.compile(rf"\bmount\b[^\n]*\s{re.escape(top)}(\s|/|$)", re.MULTILINE)
    names = [f"/etc/init.d/{name}" for name in root.names("/etc/init.d")] + ["/etc/inittab", "/init"]
    return any(pattern.search(root.text(name) or "") for name in names)
