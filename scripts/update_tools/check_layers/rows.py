# SPDX-License-Identifier: Apache-2.0
"""What is checked: boards by series in rows, checks in columns. No I/O but reading names of files."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from .errors import CheckError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

# Series and the kas overlay that chooses it. kas/base.yml is wrynose.
SERIES = {"wrynose": "", "scarthgap": "kas/series/scarthgap.yml"}
VIRTUAL = "qemuarm64"
"""The board that can be started here."""


class Check:
    """A column: its name, what it finds out, and the most time it may take."""

    __slots__ = ("about", "limit_s", "name", "needs", "only")

    def __init__(self, name: str, about: str, limit_s: int, *, needs: str = "", only: str = "") -> None:
        self.name = name
        self.about = about
        self.limit_s = limit_s
        self.needs = needs
        """Column that must have passed before."""
        self.only = only
        """The one board it is for; others cannot."""


CHECKS = (
    Check("dump", "kas reads the files and checks the pinned commits out", 900),
    Check("parse", "BitBake parses all layers: no error, no warning", 5400, needs="dump"),
    Check("graph", "bitbake -g of the image: every dependency has one provider", 5400, needs="dump"),
    Check("dry-run", "bitbake -n of the image: every task, to the last", 5400, needs="dump"),
    Check("recipes", "our recipes run every task to packages, QA and deploy", 1800, needs="dump"),
    Check("image", "the image runs every task to .wic, .ext4, .bmap and .mender", 3600, needs="dump"),
    Check("inspect", "what is in these files is what the layer says", 900, needs="image"),
    Check("boot", "the virtual board starts the .wic, and updates itself", 1800, needs="image", only=VIRTUAL),
    Check("layer", "yocto-check-layer, beside the layers of the board", 10800, needs="dump"),
)
BY_NAME = {check.name: check for check in CHECKS}


class Row:
    """A board in a series."""

    __slots__ = ("board", "series")

    def __init__(self, board: str, series: str) -> None:
        self.board = board
        self.series = series

    @property
    def name(self) -> str:
        return f"{self.board}-{self.series}"

    @property
    def files(self) -> str:
        """The kas files, joined."""
        return ":".join(filter(None, (f"kas/boards/{self.board}.yml", SERIES[self.series])))


def boards(repository: Path) -> list[str]:
    """Every board that has a kas file."""
    return sorted(path.stem for path in (repository / "kas/boards").glob("*.yml"))


def select(all_boards: Sequence[str], only: Iterable[str]) -> tuple[list[Row], list[Check]]:
    """Rows and checks that the words of --only leave; patterns like `raspberrypi*` are boards too.

    Words of one kind add up, kinds cut each other: `wrynose image qemuarm64` is one cell. Raises CheckError
    for a word that is none of them.
    """
    chosen: dict[str, set[str]] = {"board": set(), "series": set(), "check": set()}
    for word in only:
        kinds = {
            "board": set(fnmatch.filter(all_boards, word)),
            "series": {word} & SERIES.keys(),
            "check": {word} & BY_NAME.keys(),
        }
        kind = next((kind for kind, found in kinds.items() if found), None)
        if kind is None:
            known = ", ".join((*all_boards, *SERIES, *BY_NAME))
            raise CheckError(f"--only {word}: no board, series or check", hint=f"there is {known}")
        chosen[kind] |= kinds[kind]
    rows = [
        Row(board, series)
        for series in SERIES
        for board in all_boards
        if board in (chosen["board"] or all_boards) and series in (chosen["series"] or SERIES)
    ]
    checks = [check for check in CHECKS if check.name in (chosen["check"] or BY_NAME)]
    return rows, checks
