# SPDX-License-Identifier: Apache-2.0
"""The artifact's writer as a native recipe: no .venv, and the bytes that the desk's tool writes."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.layer.bitbake import LAYER, ROOT, SERIES, Build
from tests.unit.peer import openssl

from update_agent.artifact import Reader

INHERIT = 'INHERIT += "update"\n'
DESK = [sys.executable, "-P", "-m", "update_tools", "artifact"]
MKE2FS = shutil.which("mke2fs") or "/sbin/mke2fs"
KEYS = {
    "RSA": ("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
    "ECDSA": ("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "Ed25519": ("genpkey", "-algorithm", "ED25519"),
}


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [str(Build(tmp_path_factory.mktemp("tool") / "build").make_artifact_tool())]


def run(program: list[str], *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    env["PATH"] = f"{Path(program[0]).parent}:{os.environ['PATH']}"
    if program is DESK:
        env["PYTHONPATH"] = f"{ROOT}/agent:{ROOT}/scripts"
    return subprocess.run([*program, *words], env=env, capture_output=True, text=True, check=False)


def write(program: list[str], folder: Path, *options: str | Path, **env: str) -> bytes:
    image, output = folder / "image.ext4", folder / "out.mender"
    image.write_bytes(b"".join(number.to_bytes(4, "big") for number in range(1 << 16)))
    (folder / "ArtifactInstall_Leave_10").write_text("#!/bin/sh\n")
    words = ["write", "rootfs-image", "-n", "product-1", "-t", "virt64", "-f", image, "-o", output]
    done = run(program, *words, "-s", folder / "ArtifactInstall_Leave_10", *options, **env)
    assert done.returncode == 0, done.stderr
    return output.read_bytes()


def keys(folder: Path, kind: str, *encrypt: str) -> tuple[Path, Path]:
    private, public = folder / "private.pem", folder / "public.pem"
    private.write_bytes(openssl(*KEYS[kind], *encrypt))
    words = ("pkey", "-in", private, "-pubout", *(("-passin", encrypt[2]) if encrypt else ()))
    public.write_bytes(openssl(*words))
    return private, public


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_the_same_bytes_as_at_the_desk(tool: list[str], tmp_path: Path, compression: str) -> None:
    words = ("--compression", compression)
    made = write(tool, tmp_path, *words)
    assert made == write(tool, tmp_path, *words) == write(DESK, tmp_path, *words)
    dated = write(tool, tmp_path, *words, SOURCE_DATE_EPOCH="1700000000")
    assert dated != made
    assert dated == write(DESK, tmp_path, *words, SOURCE_DATE_EPOCH="1700000000")


@pytest.mark.parametrize("compression", ["xz", "zstd"])
def test_other_compressions(tool: list[str], tmp_path: Path, compression: str) -> None:
    if not shutil.which("zstd"):
        pytest.skip("zstd is not installed")
    made = write(tool, tmp_path, "--compression", compression)
    assert made == write(tool, tmp_path, "--compression", compression)
    (content,) = [file.read(1 << 30) for file in Reader(io.BytesIO(made)).files()]
    assert content == (tmp_path / "image.ext4").read_bytes()[: len(content)]
    assert len(content) > 0
    assert run(tool, "validate", tmp_path / "out.mender").returncode == 0


def test_a_level_that_zstd_does_not_have(tool: list[str], tmp_path: Path) -> None:
    (tmp_path / "image").touch()
    words = ["write", "rootfs-image", "-n", "a", "-t", "b", "-f", tmp_path / "image", "-o", tmp_path / "out"]
    done = run(tool, *words, "--compression", "zstd", "--level", "20")
    assert (done.returncode, done.stderr) == (2, "ota: zstd has no level 20: 1 to 19 are known\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KEYS)
def test_signed_by_openssl(tool: list[str], tmp_path: Path, kind: str) -> None:
    private, public = keys(tmp_path, kind)
    made = write(tool, tmp_path, "-k", private)
    assert Reader(io.BytesIO(made), verify_keys=[str(public)]).verified_by == str(public)
    if kind != "ECDSA":  # which is another one each time
        assert made == write(DESK, tmp_path, "-k", private)


def test_a_key_with_a_passphrase(tool: list[str], tmp_path: Path) -> None:
    private, public = keys(tmp_path, "RSA", "-aes256", "-pass", "pass:secret")
    write(tool, tmp_path, "-k", private, OTA_KEY_PASSPHRASE="secret")
    assert run(tool, "validate", "-k", public, tmp_path / "out.mender").returncode == 0
    for passphrase in ({}, {"OTA_KEY_PASSPHRASE": "wrong"}):
        done = run(tool, "sign", "--force", "-k", private, tmp_path / "out.mender", **passphrase)
        assert done.returncode == 2
        assert f"private key {private} cannot be used: openssl exited with 1" in done.stderr


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"), "only 1024 bits"),
        (("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"), "other than P-256"),
        (("genpkey", "-algorithm", "X25519"), "of an unknown kind"),
    ],
)
def test_a_key_that_devices_do_not_take(
    tool: list[str], tmp_path: Path, made: tuple[str, ...], complaint: str
) -> None:
    artifact = tmp_path / "out.mender"
    write(tool, tmp_path)
    (tmp_path / "key").write_bytes(openssl(*made))
    done = run(tool, "sign", "-k", tmp_path / "key", artifact)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_no_key_is_told(tool: list[str], tmp_path: Path) -> None:
    write(tool, tmp_path)
    done = run(tool, "sign", "-k", tmp_path / "gone", tmp_path / "out.mender")
    assert (done.returncode, done.stderr.split(": ", 1)[1].strip()) == (
        2,
        f"private key {tmp_path}/gone cannot be read: No such file or directory",
    )


@pytest.mark.skipif(not Path(MKE2FS).exists(), reason="mke2fs is not installed")
@pytest.mark.parametrize("series", SERIES)
def test_an_image_is_made_with_it(tmp_path: Path, series: str) -> None:
    """No other tool is named, none is in the path."""
    conf = f'{INHERIT}UPDATE_ARTIFACT_NAME = "product-1"\nUPDATE_ROOTFS_SIZE_MB = "8"\n'
    build = Build(tmp_path / "build", series=series, conf=conf)
    build.make_artifact_tool()
    tasks = ["do_rootfs", "do_image_ext4", "do_image_mender"]
    request = {
        "tasks": tasks,
        "values": ["IMGDEPLOYDIR", "IMAGE_NAME"],
        "flags": [f"{task}[depends" for task in (tasks[0], tasks[2])],
    }
    found = build.ask({"update-image-minimal": request})["recipes"]["update-image-minimal"]
    assert "failed" not in found, found["failed"]
    assert {flag.split()[-1] for flag in found["flags"].values()} == {
        "update-artifact-tool-native:do_populate_sysroot"
    }
    values = found["values"]
    artifact = Path(values["IMGDEPLOYDIR"]) / f"{values['IMAGE_NAME']}.mender"
    header = Reader(io.BytesIO(artifact.read_bytes())).header
    assert (header.name, header.payload_type) == ("product-1", "rootfs-image")


def test_another_tool_asks_for_no_recipe(tmp_path: Path) -> None:
    conf = INHERIT + 'UPDATE_ARTIFACT_TOOL = "mender-artifact"\n'
    request = {"update-image-minimal": {"flags": ["do_image_mender[depends"]}}
    flags = Build(tmp_path / "build", conf=conf).ask(request)["recipes"]["update-image-minimal"]["flags"]
    assert "update-artifact-tool" not in (flags["do_image_mender[depends"] or "")


def test_libdeflate_is_the_version_of_the_desk() -> None:
    """Another version, other bytes."""
    (recipe,) = (LAYER / "recipes-devtools/python").glob("python3-deflate-native_*.bb")
    version = recipe.stem.split("_")[1]
    assert f'"deflate=={version}"' in (ROOT / "pyproject.toml").read_text()
    lock = (ROOT / "requirements.lock").read_text()
    hashes = re.search(r"^deflate==(\S+) \\\n((?: +--hash=\S+(?: \\)?\n)+)", lock, re.MULTILINE)
    assert hashes
    assert hashes[1] == version
    wanted = re.search(r'SRC_URI\[sha256sum\] = "(\w+)"', recipe.read_text())
    assert wanted
    assert f"sha256:{wanted[1]}" in hashes[2]  # of the source, which PyPI lists beside the wheels
