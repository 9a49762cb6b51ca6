# SPDX-License-Identifier: MIT
"""What the classes of meta-update decide, apart from BitBake: plain functions on text and numbers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

if TYPE_CHECKING:
    from collections.abc import Mapping

BBIMPORTS = [
    "agentconf",
    "bootfiles",
    "environment",
    "kconfig",
    "layout",
    "pausehooks",
    "statescripts",
    "template",
]


def variables(d: Any) -> Mapping[str, str | None]:
    """The datastore's UPDATE_ variables, expanded; None for one that is only named."""
    names = {name.partition(":")[0] for name in d if name.startswith("UPDATE_")}
    return {name: d.getVar(name) for name in sorted(names)}


def files(d: Any) -> list[str]:
    """Names of the local files in SRC_URI, without directories."""
    urls = [urlparse(url.partition(";")[0]) for url in (d.getVar("SRC_URI") or "").split()]
    return [os.path.basename(url.netloc + url.path) for url in urls if url.scheme == "file"]
