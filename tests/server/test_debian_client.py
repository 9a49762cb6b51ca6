# SPDX-License-Identifier: Apache-2.0
"""Debian's mender client 3.4, which nobody here wrote, takes deployments and pauses from this server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NEEDED = {
    "mender": "mender-client",
    "mender-artifact": "mender-artifact",
    "unshare": "util-linux",
    "ip": "iproute2",
}


def skip_or_fail(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def test_whole_life(tmp_path: Path) -> None:
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            skip_or_fail(f"{program} is missing (Debian package {package})")
    if subprocess.run(["unshare", "-n", "-m", "true"], capture_output=True, check=False).returncode != 0:
        skip_or_fail("namespaces need root")
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
        ["unshare", "--net", "--mount", "--propagation", "private", sys.executable, walk, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    log = tmp_path / "mender.log"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-60:]) if log.exists() else ""
    assert answer.returncode == 0, f"{answer.stdout}\n{answer.stderr}\n{tail}"
    assert answer.stdout.splitlines()[-1] == "aborted, and took the next deployment"
