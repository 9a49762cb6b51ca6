# SPDX-License-Identifier: Apache-2.0
"""Programs and files of Debian packages, without installing these (that would start services)."""

from __future__ import annotations

import os
import subprocess

import pytest


def unpacked(package: str, config: pytest.Config) -> str:
    """The directory with the files of a Debian package; skips (fails in CI) when it cannot be fetched."""
    assert config.cache is not None
    directory = config.cache.mkdir(package)
    if not (directory / "usr").is_dir():
        try:
            subprocess.run(["apt-get", "download", package], cwd=directory, check=True, capture_output=True)
            for archive in directory.glob("*.deb"):
                subprocess.run(["dpkg-deb", "--extract", archive, directory], check=True, capture_output=True)
                archive.unlink()
        except (OSError, subprocess.CalledProcessError) as error:
            reason = f"the Debian package {package} cannot be fetched: {error}"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
    return str(directory)
