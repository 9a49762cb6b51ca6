# SPDX-License-Identifier: Apache-2.0
"""What an artifact needs, and what the device provides after it (artifact-v3.md section 5). No I/O."""

from __future__ import annotations

from update_agent.errors import ArtifactError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from update_agent.header import Header

_NAME, _GROUP = "artifact_name", "artifact_group"


def check_depends(header: Header, provides: Mapping[str, str], device_type: str) -> None:
    """Raise ArtifactError unless the device is of the right type and provides all the artifact depends on."""
    for key, wanted in header.depends.items():
        accepted = " or ".join(wanted)
        if key == "device_type":
            if device_type not in wanted:
                raise ArtifactError(
                    f"artifact {header.name} is for device type {accepted}; this device is {device_type}",
                    hint="deploy the artifact built for this machine",
                )
        elif key not in provides:
            raise ArtifactError(
                f"artifact {header.name} depends on {key} {accepted}; this device has no {key}",
                hint="show-provides lists what it has",
            )
        elif provides[key] not in wanted:
            raise ArtifactError(
                f"artifact {header.name} depends on {key} {accepted}; this device has {provides[key]}",
                hint="install the version in between first",
            )


def new_provides(
    old: Mapping[str, str],
    *,
    name: str,
    group: str,
    provides: Mapping[str, str] | None,
    clears: Sequence[str] | None,
) -> dict[str, str]:
    """The stored provides after an artifact is committed, artifact_name and artifact_group among them."""
    if clears is None:
        clears = ["*"]  # an artifact from before there were clears: all is new
    left = {key: value for key, value in old.items() if not any(matches(item, key) for item in clears)}
    left.update(provides or {})
    left[_NAME] = name
    if group:
        left[_GROUP] = group
    return left


def matches(pattern: str, key: str) -> bool:
    """Whether the whole key matches; `*` stands for any number of characters, all else for itself."""
    first, *rest = pattern.split("*")
    if not rest:
        return key == pattern
    last = rest.pop()
    if not key.startswith(first) or len(key) < len(first) + len(last):
        return False
    position, end = len(first), len(key) - len(last)
    for part in rest:
        found = key.find(part, position, end)
        if found < 0:
            return False
        position = found + len(part)
    return key.endswith(last)
