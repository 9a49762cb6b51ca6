# SPDX-License-Identifier: MIT
"""Text with @@NAME@@ in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_PLACEHOLDER = re.compile(r"@@([A-Z][A-Z0-9_]*)@@")


def names(text: str) -> set[str]:
    """The variables that fill a text."""
    return set(_PLACEHOLDER.findall(text))


def fill(text: str, value: Callable[[str], str | None], where: str) -> str:
    """The text with each @@NAME@@ replaced by value("NAME"). Raises ValueError naming what is not set."""
    values = {name: value(name) for name in names(text)}
    missing = sorted(name for name, found in values.items() if found is None)
    if missing:
        raise ValueError(f"{where}: not set: {', '.join(missing)}")
    return _PLACEHOLDER.sub(lambda match: values[match[1]] or "", text)
