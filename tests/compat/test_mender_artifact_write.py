# SPDX-License-Identifier: Apache-2.0
"""What our desk tool writes, the field's own tool validates and describes as it does its own."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest
from tests.support.artifacts import SigningKey
from tests.support.tools import need

from update_agent.artifact import Reader
from update_tools.__main__ import main

# Larger than a gzip member of ours: several in a row must be read as one.
IMAGE = random.Random(9).randbytes(200_000) + bytes(9_000_000)
# mender-artifact 3.9 has no zstd
COMPRESSIONS = {"none": "none", "gzip": "gzip", "xz": "lzma"}


@pytest.fixture(scope="module")
def tool() -> str:
    return need("mender-artifact")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    (tmp_path / "image.ext4").write_bytes(IMAGE)
    (tmp_path / "other.txt").write_text("other\n")
    (tmp_path / "meta.json").write_text('{"unit":"app.service"}')
    for name in ("ArtifactInstall_Enter_10_a", "ArtifactCommit_Leave_99"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def ours(*arguments: str) -> None:
    assert main(["artifact", *arguments]) == 0


def theirs(tool: str, *arguments: str) -> str:
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["rsa", "ec", None])
def test_validates_ours(tool: str, desk: Path, compression: str, kind: str | None) -> None:
    path = str(desk / "a.mender")
    arguments = ["-n", "release-2", "-t", "virt64", "-f", str(desk / "image.ext4"), "-o", path]
    arguments += ["-s", str(desk / "ArtifactInstall_Enter_10_a"), "--compression", compression]
    verify = []
    if kind:
        key = SigningKey.make(desk, kind)
        arguments += ["-k", str(key.private)]
        verify = ["-k", str(key.public)]
    ours("write", "rootfs-image", *arguments)
    ours("validate", path, *verify)
    assert "validated successfully" in theirs(tool, "validate", *verify, path)
    if kind:
        assert "Signature: signed and verified correctly" in theirs(tool, "read", *verify, path)


@pytest.mark.parametrize("kind", ["rsa", "ec"])
def test_signs_theirs(tool: str, desk: Path, kind: str) -> None:
    path, key = str(desk / "a.mender"), SigningKey.make(desk, kind)
    theirs(tool, "write", "rootfs-image", "-n", "r", "-t", "t", "-f", str(desk / "image.ext4"), "-o", path)
    unsigned = Path(path).read_bytes()
    ours("sign", path, "-k", str(key.private))
    assert "validated successfully" in theirs(tool, "validate", "-k", str(key.public), path)
    signed = Path(path).read_bytes()
    other = SigningKey.make(desk, kind, "other")
    assert main(["artifact", "sign", path, "-k", str(other.private)]) == 2
    ours("sign", path, "-k", str(other.private), "--force")
    assert "validated successfully" in theirs(tool, "validate", "-k", str(other.public), path)
    assert len(Path(path).read_bytes()) == len(signed) == len(unsigned) + 1024


ROOTFS = ["rootfs-image", "-f", "image.ext4"]
MODULE = ["module-image", "-T", "single-file", "-f", "image.ext4"]
OPTIONS = {
    "rootfs-image": ROOTFS,
    "rootfs-image with scripts": [
        *ROOTFS,
        *("-s", "ArtifactCommit_Leave_99", "-s", "ArtifactInstall_Enter_10_a"),
    ],
    "rootfs-image, software name": [*ROOTFS, "--software-name", "app"],
    "rootfs-image, file system": [*ROOTFS, "--software-filesystem", "data"],
    "rootfs-image, both, version": [
        *ROOTFS,
        *("--software-filesystem", "data", "--software-name", "app", "--software-version", "3"),
    ],
    "rootfs-image, no version": [*ROOTFS, "--no-default-software-version"],
    "rootfs-image, no clears": [*ROOTFS, "--no-default-clears-provides"],
    "rootfs-image, own clears": [*ROOTFS, "--clears-provides", "a.*"],
    "rootfs-image, only own clears": [*ROOTFS, "--no-default-clears-provides", "--clears-provides", "a.*"],
    "rootfs-image, no checksum": [*ROOTFS, "--no-checksum-provide"],
    "rootfs-image, old checksum": [*ROOTFS, "--legacy-rootfs-image-checksum"],
    "module": MODULE,
    "module, no file": ["module-image", "-T", "reboot"],
    "module, two files": [*MODULE, "-f", "other.txt"],
    "module, meta-data": [*MODULE, "-m", "meta.json"],
    "module, software name": [*MODULE, "--software-name", "app"],
    "module, file system": [*MODULE, "--software-filesystem", "data"],
    "module, no version": [*MODULE, "--no-default-software-version"],
    "module, own version": [*MODULE, "-p", "rootfs-image.single-file.version:9"],
    "module, colons": [*MODULE, "-p", "a:b:c", "-d", "k:v:w"],
    "everything": [
        *(*MODULE, "-t", "virt32", "-N", "release-1", "-N", "release-0", "-G", "beta", "-G", "stable"),
        *("-g", "next", "-d", "modem:3", "-p", "app:1", "--clears-provides", "app", "-m", "meta.json"),
    ],
    "bootstrap": ["bootstrap-artifact", "-p", "rootfs-image.version:release-2", "--clears-provides", "x"],
    "bootstrap, bare": ["bootstrap-artifact"],
}


@pytest.mark.parametrize("case", OPTIONS)
def test_same_options_same_meaning(tool: str, desk: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """The documents are the same, apart from the type, which theirs leaves empty for a rootfs-image."""
    monkeypatch.chdir(desk)
    kind, *rest = OPTIONS[case]
    arguments = ["write", kind, "-n", "release-2", "-t", "virt64", *rest]
    ours(*arguments, "-o", "ours.mender")
    theirs(tool, *arguments, "-o", "theirs.mender")
    assert "validated successfully" in theirs(tool, "validate", "ours.mender")
    read = []
    for name in ("ours.mender", "theirs.mender"):
        with (desk / name).open("rb") as stream:
            reader = Reader(stream)
            header = reader.header
            type_info = json.loads(header.type_info)
            if header.payload_type == "rootfs-image":
                assert type_info.pop("type") in ("", "rootfs-image")
            read.append(
                (
                    json.loads(header.header_info),
                    type_info,
                    header.meta_data or b"",
                    sorted(header.scripts),
                    {file.name: file.read(file.size) for file in reader.files()},
                )
            )
    assert read[0] == read[1]
