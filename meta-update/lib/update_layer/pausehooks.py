# SPDX-License-Identifier: MIT
"""Files of a recipe of pause hooks: which are hooks, which are programs that hooks ask, what fits nowhere.

What a hook says is judged by the agent's own checker; this is about names and places.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_NAME = re.compile(r"[0-9]{2}-\S+\.json")


def split(files: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of hooks, and of the rest."""
    names = list(files)
    return [name for name in names if name.endswith(".json")], [n for n in names if not n.endswith(".json")]


def problems(hooks: Sequence[str]) -> list[str]:
    """What is wrong with the names of hooks, a line each."""
    found = [f"{name}: not NN-name.json, like 10-night.json" for name in hooks if not _NAME.fullmatch(name)]
    return found + [f"{name}: named twice" for name in sorted({n for n in hooks if hooks.count(n) > 1})]


def program(text: str) -> str | None:
    """The program that a valid hook asks, or None."""
    when = json.loads(text)["when"]
    return when.get("program") if isinstance(when, dict) else None


def places(
    asked: Mapping[str, str], files: Iterable[str], others: Iterable[str]
) -> tuple[dict[str, str], list[str]]:
    """Where each program of the recipe is to be installed, by its file name; and what is wrong.

    `asked` has the program of each hook that asks one, `files` the recipe's programs, `others` the paths that
    other packages bring.
    """
    here, elsewhere = list(files), set(others)
    targets: dict[str, str] = {}
    found: list[str] = []
    for hook, path in sorted(asked.items()):
        name = os.path.basename(path)
        if path in elsewhere:
            continue
        if name not in here:
            found.append(
                f"{hook}: asks {path}, which is no file of SRC_URI; if another package brings it, name it in"
                " UPDATE_PAUSE_HOOK_PROGRAMS"
            )
        elif targets.setdefault(name, path) != path:
            found.append(f"{hook}: asks {path}, another hook {targets[name]}: one file, two places")
    found += [
        f"{name}: no hook asks it, and a hook is named NN-name.json" for name in here if name not in targets
    ]
    return targets, found
