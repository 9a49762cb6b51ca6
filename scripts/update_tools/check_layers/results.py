# SPDX-License-Identifier: Apache-2.0
"""Results: the last of each cell is kept in a file, so that a table may come from many runs."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.table import Table

    from .rows import Check, Row

OK, FAILED, SKIPPED = "ok", "failed", "skipped"
_STYLES = {OK: "green", FAILED: "bold red", SKIPPED: "dim"}


class Results:
    """The file, read at start and written after each check."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.cells: dict[str, dict[str, Any]] = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            self.cells = {}

    def put(self, row: Row, check: Check, result: str, seconds: float, text: str, **more: Any) -> None:
        """Keep what became of a cell; `more` are facts such as the commit and the log's name."""
        cell: dict[str, Any] = {
            "board": row.board,
            "series": row.series,
            "check": check.name,
            "result": result,
        }
        cell |= {"seconds": round(seconds, 1), "text": text, "at": int(time.time()), **more}
        self.cells[f"{row.name} {check.name}"] = cell
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(self.cells, indent=1, sort_keys=True) + "\n")
        os.replace(fresh, self._path)

    def get(self, row: Row, check: str) -> dict[str, Any]:
        """A cell; empty if it was never run."""
        return self.cells.get(f"{row.name} {check}", {})

    def of(self, rows: Sequence[Row], checks: Sequence[Check]) -> list[dict[str, Any]]:
        """Cells of these rows and columns that were run."""
        return [cell for row in rows for check in checks if (cell := self.get(row, check.name))]


def table(results: Results, rows: Sequence[Row], checks: Sequence[Check]) -> Table:
    """Rows by series and board; a cell is its result and seconds, and reasons are listed under it."""
    from rich.table import Table
    from rich.text import Text

    found = Table(title="The layer against the real layers", title_justify="left")
    found.add_column("series")
    found.add_column("board")
    for check in checks:
        found.add_column(check.name, justify="right")
    for row in rows:
        cells = [_cell(results.get(row, check.name)) for check in checks]
        found.add_row(row.series, row.board, *(Text(text, style=style) for text, style in cells))
    return found


def _cell(cell: dict[str, Any]) -> tuple[str, str]:
    if not cell:
        return "-", "dim"
    if cell["result"] == SKIPPED:
        return SKIPPED, _STYLES[SKIPPED]
    return f"{cell['result']} {cell['seconds']:.0f} s", _STYLES[cell["result"]]


def reasons(cells: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each text, with the rows that it is about; failures first."""
    lines: dict[tuple[str, str, str], list[str]] = {}
    for cell in sorted(cells, key=lambda cell: cell["result"] != FAILED):
        if cell["result"] != OK:
            key = (cell["result"], cell["check"], cell["text"])
            lines.setdefault(key, []).append(f"{cell['board']}-{cell['series']}")
    return [
        f"{check} {result}: {text} ({', '.join(names)})" for (result, check, text), names in lines.items()
    ]
