# SPDX-License-Identifier: Apache-2.0
"""Debian's mender client 3.4, which nobody here wrote, takes deployments and pauses from this server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NEEDED = {"mender-artifact": "mender-artifact", "unshare": "util-linux", "ip": "iproute2"}
CANNOT_ISOLATE = 77


def skip_or_fail(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def client_program(cache: Path) -> str:
    """The installed client, or the package's, unpacked: installing it would start it as a service."""
    installed = shutil.which("mender")
    unpacked = cache / "usr/bin/mender"
    if installed is None and not unpacked.exists():
        try:
            subprocess.run(
                ["apt-get", "download", "mender-client"], cwd=cache, check=True, capture_output=True
            )
            for package in cache.glob("*.deb"):
                subprocess.run(["dpkg-deb", "--extract", package, cache], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            skip_or_fail(f"the Debian package mender-client cannot be fetched: {error}")
    return installed or str(unpacked)


def test_whole_life(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            skip_or_fail(f"{program} is missing (Debian package {package})")
    if subprocess.run(["unshare", "-n", "-m", "true"], capture_output=True, check=False).returncode != 0:
        skip_or_fail("namespaces need root")
    assert pytestconfig.cache is not None
    program = client_program(Path(pytestconfig.cache.mkdir("mender-client")))
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    payload = tmp_path / "payload"
    payload.write_bytes(os.urandom(100_000))
    for name in ("release-2", "release-3", "release-4", "release-5"):
        argv = ["mender-artifact", "write", "module-image", "-T", "test-module", "-t", "virt64", "-n", name]
        subprocess.run(
            [*argv, "-f", payload, "-o", artifacts / f"{name}.mender"], check=True, capture_output=True
        )

    walk = Path(__file__).with_name("debian_client.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    answer = subprocess.run(
        ["unshare", "--net", "--mount", "--propagation", "private", sys.executable, walk, tmp_path, program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if answer.returncode == CANNOT_ISOLATE:
        skip_or_fail(f"no private mounts here: {answer.stderr.strip()}")
    log = tmp_path / "mender.log"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-60:]) if log.exists() else ""
    assert answer.returncode == 0, f"{answer.stdout}\n{answer.stderr}\n{tail}"
    assert answer.stdout.splitlines()[-1] == "aborted, and took the next deployment"
