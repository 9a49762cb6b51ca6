# SPDX-License-Identifier: Apache-2.0
"""Section: an artifact: what it is for and brings, and whether it fits the image or the board."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from update_agent import signature
from update_agent.errors import ArtifactError

from .units import mib

if TYPE_CHECKING:
    from .source import Artifact
    from .subject import Subject
    from .tree import Tree

_FILESYSTEMS = {"ext4", "squashfs", "erofs"}  # the last two are not looked into


def section(subject: Subject) -> dict[str, object] | None:
    """The artifact as a document; None if there is none."""
    artifact = subject.artifact
    if artifact is None:
        return None
    header = artifact.header
    if artifact.damage:
        subject.findings.add("artifact-damaged", header.name, artifact.damage)
    elif header.payload_type == "rootfs-image":
        _check_size(subject, artifact)
        if artifact.filesystem not in _FILESYSTEMS:
            what = f"it begins like {artifact.filesystem or 'nothing'}"
            subject.findings.add("artifact-not-a-filesystem", header.name, what)
    _check_target(subject, artifact)
    if subject.root is not None and subject.source.kind != "artifact":
        _check_signature(subject, subject.root, artifact)
    return {
        "name": header.name,
        "group": header.group,
        "payload_type": header.payload_type,
        "device_types": header.device_types,
        "signed": header.signed,
        "scripts": [name for name, _ in header.scripts],
        "compression": artifact.compression,
        "files": artifact.files,
        "filesystem": artifact.filesystem,
        "slot_bytes": _slot_bytes(subject) if header.payload_type == "rootfs-image" else None,
        "provides": header.provides,
        "depends": header.depends,
        "clears": header.clears,
    }


def _slot_bytes(subject: Subject) -> int | None:
    """The smaller slot of the card, or of the layer's machine."""
    slots = [found.size for index in (0, 1) if (found := subject.slot(index)) is not None]
    return min(slots) if slots else subject.board.slot_bytes


def _check_size(subject: Subject, artifact: Artifact) -> None:
    room = _slot_bytes(subject)
    if room is not None and artifact.payload_bytes > room:
        subject.findings.add(
            "artifact-too-large",
            artifact.header.name,
            f"{mib(artifact.payload_bytes)} after unpacking, a slot has {mib(room)}",
        )


def _check_target(subject: Subject, artifact: Artifact) -> None:
    wanted = subject.board.values.get("UPDATE_DEVICE_TYPE", subject.board.name)
    if subject.source.kind != "artifact" and subject.device_type:
        wanted = subject.device_type
    if wanted and wanted not in artifact.header.device_types:
        subject.findings.add(
            "artifact-other-device",
            artifact.header.name,
            f"it is for {', '.join(artifact.header.device_types)}, the device is {wanted}",
        )


def _check_signature(subject: Subject, root: Tree, artifact: Artifact) -> None:
    """By the keys of the image that shall install it; not of the one that is in the artifact."""
    keys = subject.config.artifact_verify_keys if subject.config else []
    if not keys:
        return
    if not artifact.header.signed:
        subject.findings.add("artifact-unsigned", artifact.header.name, f"mender.conf has {', '.join(keys)}")
        return
    with tempfile.TemporaryDirectory() as scratch:
        paths = {}
        for number, key in enumerate(keys):
            pem = root.read(key, limit_bytes=1 << 16)
            if pem is not None:
                copy = Path(scratch, str(number))
                copy.write_bytes(pem)
                paths[str(copy)] = key
        if not paths:
            return  # the missing files are findings themselves
        try:
            signature.check(artifact.manifest, artifact.signature, list(paths))
        except ArtifactError as error:
            why = error.message
            for path, key in paths.items():
                why = why.replace(path, key)
            subject.findings.add("artifact-wrong-key", artifact.header.name, why)
