# SPDX-License-Identifier: Apache-2.0
"""Depends and provides: the tables of artifact-v3.md section 5."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent.errors import ArtifactError
from update_agent.header import Header
from update_agent.provides import check_depends, matches, new_provides

OLD = {
    "artifact_name": "release-1",
    "artifact_group": "beta",
    "rootfs-image.version": "release-1",
    "rootfs-image.checksum": "00ff",
    "rootfs-image.app.version": "7",
    "bootloader": "2",
}


def header(
    *,
    provides: dict[str, str] | None = None,
    clears: list[str] | None = None,
    group: str = "",
    depends: dict[str, list[str]] | None = None,
) -> Header:
    return Header(
        name="release-2",
        group=group,
        device_types=["virt64"],
        provides=provides,
        clears=clears,
        depends={"device_type": ["virt64"], **(depends or {})},
    )


NAME = {"artifact_name": "release-2"}
GROUP = {"artifact_group": "beta"}
REST = {key: value for key, value in OLD.items() if not key.startswith("artifact_")}


@pytest.mark.parametrize(
    ("artifact", "expected"),
    [
        pytest.param(header(), NAME, id="neither"),
        pytest.param(header(provides={"app": "8"}), NAME | {"app": "8"}, id="provides only"),
        pytest.param(header(clears=[]), NAME | GROUP | REST, id="empty clears"),
        pytest.param(
            header(clears=["rootfs-image.*"]), NAME | GROUP | {"bootloader": "2"}, id="clears by wildcard"
        ),
        pytest.param(
            header(provides={"bootloader": "3"}, clears=["artifact_group"]),
            NAME | REST | {"bootloader": "3"},
            id="both, group cleared",
        ),
        pytest.param(header(clears=["*"]), NAME, id="clears all"),
        pytest.param(
            header(clears=["*"], group="stable"), NAME | {"artifact_group": "stable"}, id="new group"
        ),
        pytest.param(
            header(clears=[], group="stable"), NAME | REST | {"artifact_group": "stable"}, id="group replaced"
        ),
        pytest.param(
            header(provides={"artifact_name": "no"}, clears=[]),
            NAME | GROUP | REST,
            id="name is the artifact's",
        ),
    ],
)
def test_provides_after_commit(artifact: Header, expected: dict[str, str]) -> None:
    old = dict(OLD)
    after = new_provides(
        old, name=artifact.name, group=artifact.group, provides=artifact.provides, clears=artifact.clears
    )
    assert after == expected
    assert old == OLD  # untouched


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("", "", True),
        ("", "a", False),
        ("a", "a", True),
        ("a", "ab", False),
        ("*", "", True),
        ("a*", "a", True),
        ("*a", "ba", True),
        ("a*a", "a", False),
        ("a*b*c", "a-c-b-c", True),
        ("a*b*c", "acb", False),
        ("a**c", "ac", True),
        ("*b*b*", "b", False),
        ("rootfs-image.*", "rootfs-imageX", False),
        ("[ab]", "a", False),
        ("a?c", "abc", False),
        ("a\\*", "a\\x", True),
    ],
)
def test_wildcards(pattern: str, key: str, expected: bool) -> None:
    assert matches(pattern, key) is expected


@given(pattern=st.text("ab.*", max_size=8), key=st.text("ab.*", max_size=12))
def test_wildcards_are_like_a_regular_expression(pattern: str, key: str) -> None:
    expression = ".*".join(re.escape(part) for part in pattern.split("*"))
    assert matches(pattern, key) == (re.fullmatch(expression, key, re.DOTALL) is not None)


def test_all_depends_met() -> None:
    depends = {"artifact_name": ["release-0", "release-1"], "bootloader": ["2"], "artifact_group": ["beta"]}
    check_depends(header(depends=depends), OLD, "virt64")


@pytest.mark.parametrize(
    ("depends", "device_type", "message"),
    [
        ({}, "raspberrypi5", "is for device type virt64; this device is raspberrypi5 (deploy the artifact"),
        (
            {"artifact_name": ["a", "b"]},
            "virt64",
            "depends on artifact_name a or b; this device has release-1",
        ),
        ({"modem": ["5"]}, "virt64", "depends on modem 5; this device has no modem (show-provides lists"),
    ],
)
def test_depends_not_met(depends: dict[str, list[str]], device_type: str, message: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        check_depends(header(depends=depends), OLD, device_type)
    assert f"artifact release-2 {message}" in str(caught.value)


def test_device_type_of_the_provides_does_not_count() -> None:
    with pytest.raises(ArtifactError, match="this device is other"):
        check_depends(header(), {"device_type": "virt64"}, "other")
