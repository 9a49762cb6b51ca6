# SPDX-License-Identifier: Apache-2.0
"""The page's vendored scripts are what their README says, to the byte."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

VENDOR = Path(__file__).parents[2] / "scripts/update_tools/server/static/vendor"


def test_every_script_is_the_published_one() -> None:
    listed = dict(
        re.findall(r"^\| `(\S+)` \|[^|]*\| `([0-9a-f]{64})` \|$", (VENDOR / "README.md").read_text(), re.M)
    )
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.glob("*.js")}
    assert found
    assert found == listed
