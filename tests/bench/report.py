# SPDX-License-Identifier: Apache-2.0
"""Collects what was measured and shows it: medians with the range, limit, peers, must and aim."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from tests.bench.agents import OURS
from tests.bench.targets import target

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, order=True)
class Row:
    """One line of the table."""

    part: str
    case: str
    metric: str
    unit: str


class Report:
    """Numbers by row and who: ours, a peer, `limit`. One number a round."""

    def __init__(self) -> None:
        self._numbers: dict[Row, dict[str, list[float]]] = {}
        self.facts: dict[str, str] = {}
        self.notes: list[str] = []

    def add(self, row: Row, who: str, number: float) -> None:
        """One more round."""
        self._numbers.setdefault(row, {}).setdefault(who, []).append(number)

    def median(self, row: Row, who: str) -> float | None:
        """None if it was not measured."""
        numbers = self._numbers.get(row, {}).get(who)
        return statistics.median(numbers) if numbers else None

    def show(self, console: Console) -> None:
        """All tables."""
        for name, fact in self.facts.items():
            console.print(f"{name}: {fact}", highlight=False)
        parts = list(dict.fromkeys(row.part for row in self._numbers))
        for part in parts:
            console.print(self._table(part))
        for note in self.notes:
            console.print(f"note: {note}", highlight=False, markup=False)
        missed = self.missed()
        if missed:
            console.print(f"missed musts: {', '.join(missed)}", highlight=False)

    def missed(self) -> list[str]:
        """Rows whose must does not hold."""
        return [
            f"{row.case} {row.metric}".strip()
            for row in self._numbers
            if (median := self.median(row, OURS)) is not None
            and (wanted := target(row.part, row.case, row.metric)) is not None
            and median > wanted[0]
        ]

    def _table(self, part: str) -> Table:
        cases = list(dict.fromkeys(row.case for row in self._numbers))
        rows = [row for row in self._numbers if row.part == part]
        rows.sort(key=lambda row: (cases.index(row.case), row.metric.startswith("memory")))
        others = list(dict.fromkeys(who for row in rows for who in self._numbers[row] if who != OURS))
        others.sort(key=lambda who: who != "limit")
        table = Table(title=part, title_justify="left", pad_edge=False)
        table.add_column("what")
        table.add_column("unit")
        table.add_column("ours", justify="right")
        for who in others:
            table.add_column(who, justify="right")
        for name in ("must", "aim"):
            table.add_column(name, justify="right")
        last = ""
        for row in rows:
            if last and row.case != last:
                table.add_section()
            last = row.case
            numbers = self._numbers[row]
            cells = [f"{row.case}: {row.metric}" if row.metric else row.case, row.unit]
            cells += [_spread(numbers.get(who)) for who in (OURS, *others)]
            table.add_row(*cells, *self._marks(row))
        return table

    def _marks(self, row: Row) -> tuple[str, str]:
        wanted = target(row.part, row.case, row.metric)
        if wanted is None:
            return "", ""
        median = self.median(row, OURS)
        marks = []
        for limit in wanted:
            word = f"{limit:g}"
            if median is not None:
                word = f"[green]{word} ✓[/]" if median <= limit else f"[red]{word} ✗[/]"
            marks.append(word)
        return marks[0], marks[1]

    def save(self, path: Path) -> None:
        """Everything, as JSON: every round of every number."""
        rows: list[dict[str, Any]] = []
        for row, numbers in self._numbers.items():
            wanted = target(row.part, row.case, row.metric)
            entry: dict[str, Any] = {**vars(row), "numbers": numbers}
            entry["median"] = {who: statistics.median(values) for who, values in numbers.items()}
            if wanted is not None:
                entry["must"], entry["aim"] = wanted
            rows.append(entry)
        document = {"facts": self.facts, "notes": self.notes, "rows": rows}
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _spread(numbers: list[float] | None) -> str:
    if not numbers:
        return ""
    median = statistics.median(numbers)
    if len(numbers) == 1:
        return _short(median)
    return f"{_short(median)} [dim]({_short(min(numbers))}-{_short(max(numbers))})[/]"


def _short(number: float) -> str:
    size = abs(number)
    return f"{number:.0f}" if size >= 100 else f"{number:.1f}" if size >= 10 else f"{number:.2f}"
