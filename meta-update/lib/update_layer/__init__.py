# SPDX-License-Identifier: MIT
"""What the classes of meta-update decide, apart from BitBake: plain functions on text and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

BBIMPORTS = ["environment", "kconfig", "layout", "statescripts", "template"]


def variables(d: Any) -> Mapping[str, str | None]:
    """The datastore's UPDATE_ variables, expanded; None for one that is only named."""
    names = {name.partition(":")[0] for name in d if name.startswith("UPDATE_")}
    return {name: d.getVar(name) for name in sorted(names)}
