# SPDX-License-Identifier: Apache-2.0
"""A device changes from Debian's mender client 3.4 to this agent, also in the middle of an update."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.server.debian_client import CANNOT_ISOLATE
from tests.server.test_debian_client import NEEDED, skip_or_fail
from tests.support.debian import unpacked


def test_debian_s_client_is_replaced(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            skip_or_fail(f"{program} is missing (Debian package {package})")
    argv = ["unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    argv += ["--mount-proc"]
    if subprocess.run([*argv, "true"], capture_output=True, check=False).returncode != 0:
        skip_or_fail("namespaces need root")
    former = f"{unpacked('mender-client', pytestconfig)}/usr/bin/mender"
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "payload").write_bytes(b"payload")
    for name in ("release-2", "release-3", "release-4"):
        make = ["mender-artifact", "write", "module-image", "-T", "test-module", "-t", "virt64", "-n", name]
        make += ["-g", "beta", "-p", "sensor.version:7", "-f", str(tmp_path / "payload")]
        subprocess.run([*make, "-o", tmp_path / f"artifacts/{name}.mender"], check=True, capture_output=True)
    answer = subprocess.run(
        [*argv, sys.executable, Path(__file__).with_name("debian_takeover.py"), tmp_path, former],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if answer.returncode == CANNOT_ISOLATE:
        skip_or_fail(f"no private mounts here: {answer.stderr.strip()}")
    log = tmp_path / "mender.log"
    tail = log.read_text(errors="replace")[-6000:] if log.exists() else ""
    assert answer.returncode == 0, f"{answer.stdout}\n{answer.stderr}\n{tail}"
    assert answer.stdout.splitlines()[-1] == "a deployment went on across the swap"
