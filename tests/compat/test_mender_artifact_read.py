# SPDX-License-Identifier: Apache-2.0
"""What the field's own tool, `mender-artifact`, writes, our reader reads: every variant it has."""

from __future__ import annotations

import hashlib
import random
import subprocess
from pathlib import Path

import pytest
from tests.support.artifacts import SigningKey
from tests.support.tools import need

from update_agent.artifact import Header, Reader, check_depends
from update_agent.errors import ArtifactError
from update_agent.provides import new_provides

COMPRESSIONS = ["none", "gzip", "lzma"]
IMAGE = random.Random(7).randbytes(300_000) + bytes(1_000_000)
SCRIPTS = {
    "ArtifactInstall_Enter_10_stop-service": b"#!/bin/sh\nexit 0\n",
    "ArtifactCommit_Leave_99": b"#!/bin/sh\nexit 21\n",
    "ArtifactRollbackReboot_Error_00_x": b"#!/bin/sh\n",
}


@pytest.fixture(scope="module")
def tool() -> str:
    return need("mender-artifact")


@pytest.fixture(scope="module", params=["rsa", "ec"])
def key(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey.make(tmp_path_factory.mktemp("keys"), request.param)


class Desk:
    """A directory with payload and scripts in which the tool is run."""

    def __init__(self, tool: str, directory: Path) -> None:
        self.tool = tool
        self.directory = directory
        self.image = directory / "image.ext4"
        self.image.write_bytes(IMAGE)
        self.scripts: list[str] = []
        for name, content in SCRIPTS.items():
            (directory / name).write_bytes(content)
            self.scripts += ["--script", str(directory / name)]

    def run(self, *arguments: str) -> None:
        done = subprocess.run([self.tool, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def write(self, kind: str, *arguments: str) -> Path:
        path = self.directory / "a.mender"
        self.run("write", kind, "-n", "release-2", "-t", "virt64", "-o", str(path), *arguments)
        return path


@pytest.fixture
def desk(tool: str, tmp_path: Path) -> Desk:
    return Desk(tool, tmp_path)


def after(old: dict[str, str], header: Header) -> dict[str, str]:
    return new_provides(
        old, name=header.name, group=header.group, provides=header.provides, clears=header.clears
    )


def payload(reader: Reader) -> dict[str, bytes]:
    return {file.name: file.read(file.size) for file in reader.files()}


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_rootfs_image(desk: Desk, compression: str) -> None:
    path = desk.write("rootfs-image", "-f", str(desk.image), "--compression", compression, *desk.scripts)
    with path.open("rb") as stream:
        reader = Reader(stream)
        header = reader.header
        assert (header.name, header.payload_type, header.device_types) == (
            "release-2",
            "rootfs-image",
            ["virt64"],
        )
        assert header.provides == {
            "rootfs-image.version": "release-2",
            "rootfs-image.checksum": hashlib.sha256(IMAGE).hexdigest(),
        }
        assert header.clears == ["artifact_group", "rootfs_image_checksum", "rootfs-image.*"]
        assert dict(header.scripts) == SCRIPTS
        assert payload(reader) == {"image.ext4": IMAGE}


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_module_image(desk: Desk, compression: str) -> None:
    meta_data = desk.directory / "meta.json"
    meta_data.write_text('{"unit": "app.service"}')
    other = desk.directory / "other.txt"
    other.write_text("other\n")
    path = desk.write(
        "module-image",
        *("--type", "single-file", "--compression", compression, "--meta-data", str(meta_data)),
        *("-f", str(desk.image), "-f", str(other), *desk.scripts),
    )
    with path.open("rb") as stream:
        reader = Reader(stream)
        header = reader.header
        assert header.payload_type == "single-file"
        assert header.meta_data is not None
        assert b'"app.service"' in header.meta_data
        assert header.provides == {"rootfs-image.single-file.version": "release-2"}
        assert header.clears == ["rootfs-image.single-file.*"]
        assert dict(header.scripts) == SCRIPTS
        assert payload(reader) == {"image.ext4": IMAGE, "other.txt": b"other\n"}


def test_module_image_without_files(desk: Desk) -> None:
    with desk.write("module-image", "--type", "reboot").open("rb") as stream:
        reader = Reader(stream)
        assert not reader.header.meta_data
        assert payload(reader) == {}


@pytest.mark.parametrize("kind", ["rootfs-image", "module-image"])
def test_provides_depends_clears(desk: Desk, kind: str) -> None:
    path = desk.write(
        kind,
        *("-f", str(desk.image), *(["--type", "app"] if kind == "module-image" else [])),
        *("-t", "virt32", "--artifact-name-depends", "release-1", "--artifact-name-depends", "release-0"),
        *("--depends-groups", "beta", "--provides-group", "stable"),
        *("--depends", "bootloader:2", "--provides", "app.data:7", "--clears-provides", "app.*"),
        *("--software-filesystem", "data", "--software-name", "app", "--software-version", "1.2"),
    )
    with path.open("rb") as stream:
        header = Reader(stream).header
    assert (header.device_types, header.group) == (["virt64", "virt32"], "stable")
    assert header.depends == {
        "device_type": ["virt64", "virt32"],
        "artifact_name": ["release-1", "release-0"],
        "artifact_group": ["beta"],
        "bootloader": ["2"],
    }
    assert header.provides["app.data"] == "7"
    assert header.provides["data.app.version"] == "1.2"
    assert header.clears is not None
    assert {"app.*", "data.app.*"} <= set(header.clears)
    old = {"artifact_name": "release-1", "artifact_group": "beta", "bootloader": "2", "app.x": "1"}
    check_depends(header, old, "virt32")
    new = after(old, header)
    assert (new["artifact_name"], new["artifact_group"], new["bootloader"]) == ("release-2", "stable", "2")
    assert "app.x" not in new


def test_old_options(desk: Desk) -> None:
    """As for devices from before there were provides: no clears, no version, no checksum."""
    path = desk.write(
        "rootfs-image",
        *("-f", str(desk.image)),
        *("--no-checksum-provide", "--no-default-software-version", "--no-default-clears-provides"),
    )
    with path.open("rb") as stream:
        header = Reader(stream).header
    assert (header.provides, header.clears) == ({}, None)
    assert after({"artifact_name": "release-1", "x": "y"}, header) == {"artifact_name": "release-2"}


def test_bootstrap_artifact(desk: Desk) -> None:
    with desk.write("bootstrap-artifact", "--provides", "rootfs-image.version:release-2").open(
        "rb"
    ) as stream:
        reader = Reader(stream)
        assert reader.header.payload_type is None
        assert reader.header.provides == {"rootfs-image.version": "release-2"}
        assert payload(reader) == {}


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_signed(desk: Desk, key: SigningKey, compression: str) -> None:
    path = desk.write(
        "rootfs-image", "-f", str(desk.image), "--compression", compression, "--key", str(key.private)
    )
    with path.open("rb") as stream:
        reader = Reader(stream, verify_keys=[str(key.public)])
        assert reader.verified_by == str(key.public)
        assert payload(reader) == {"image.ext4": IMAGE}


def test_signed_afterwards_and_by_the_wrong_key(desk: Desk, key: SigningKey) -> None:
    path = desk.write("rootfs-image", "-f", str(desk.image))
    with path.open("rb") as stream, pytest.raises(ArtifactError, match="is not signed"):
        Reader(stream, verify_keys=[str(key.public)])
    desk.run("sign", str(path), "--key", str(key.private))
    with path.open("rb") as stream:
        assert Reader(stream, verify_keys=[str(key.public)]).header.signed
    other = SigningKey.make(desk.directory, key.kind, "other")
    with path.open("rb") as stream, pytest.raises(ArtifactError, match="not valid for any configured key"):
        Reader(stream, verify_keys=[str(other.public)])


def test_format_2_is_refused(desk: Desk) -> None:
    path = desk.write("rootfs-image", "-f", str(desk.image), "--version", "2")
    with path.open("rb") as stream, pytest.raises(ArtifactError, match="old format version 2"):
        Reader(stream)


def test_augmented_is_refused(desk: Desk) -> None:
    path = desk.write(
        "module-image",
        *("--type", "app", "-f", str(desk.image), "--augment-type", "app"),
        *("--augment-file", str(desk.directory / "ArtifactCommit_Leave_99")),
    )
    with path.open("rb") as stream, pytest.raises(ArtifactError, match="is augmented"):
        list(Reader(stream).files())
