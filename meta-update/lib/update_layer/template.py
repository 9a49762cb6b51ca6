# SPDX-License-Identifier: MIT
"""Text with @@NAME@@ in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_PLACEHOLDER = re.compile(r"@@([A-Z][A-Z0-9_]*)@@")


def fill(text: str, value: Callable[[str], str | None], where: str) -> str:
    """The text with each @@NAME@@ replaced. Raises ValueError naming what is not set."""
    missing = sorted({name for name in _PLACEHOLDER.findall(_code(text)) if value(name) is None})
    if missing:
        raise ValueError(f"{where}: not set: {', '.join(missing)}")
    return _PLACEHOLDER.sub(lambda match: value(match[1]) or ("" if value(match[1]) == "" else match[0]), text)


def _code(text: str) -> str:
    """Without comments, where @@NAME@@ may stand for itself."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("# ") or "CONFIG_" in line)
