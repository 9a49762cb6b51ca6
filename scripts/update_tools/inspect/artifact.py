# SPDX-License-Identifier: Apache-2.0
"""Section: an artifact: what it is for and brings, and whether it fits the image or the board."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .units import mib

if TYPE_CHECKING:
    from .source import Artifact
    from .subject import Subject


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
        if subject.source.kind == "artifact" and subject.root is None:
            subject.findings.add(
                "artifact-not-a-filesystem", header.name, "its payload is no ext4 file system"
            )
    _check_target(subject, artifact)
    return {
        "name": header.name,
        "group": header.group,
        "payload_type": header.payload_type,
        "device_types": header.device_types,
        "signed": header.signed,
        "compression": artifact.compression,
        "files": artifact.files,
        "provides": header.provides,
        "depends": header.depends,
        "clears": header.clears,
    }


def _check_size(subject: Subject, artifact: Artifact) -> None:
    slots = [found.size for index in (0, 1) if (found := subject.slot(index)) is not None]
    room = min(slots) if slots else subject.board.slot_bytes
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
    keys = subject.config.artifact_verify_keys if subject.config else []
    if keys and not artifact.header.signed:
        subject.findings.add("artifact-unsigned", artifact.header.name, f"mender.conf has {', '.join(keys)}")
