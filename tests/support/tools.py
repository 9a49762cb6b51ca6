# SPDX-License-Identifier: Apache-2.0
"""Programs a test needs: skip with the reason where they are missing, fail in CI."""

from __future__ import annotations

import os
import shutil

import pytest


def need(program: str) -> str:
    """Path of the program. Without it the test is skipped, in CI (CI=true) it fails."""
    path = shutil.which(program)
    if path is None:
        reason = f"{program} is not installed; scripts/test installs it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
