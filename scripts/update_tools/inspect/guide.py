# SPDX-License-Identifier: Apache-2.0
"""The findings in README.md, made from the catalogue: `python -m update_tools.inspect.guide` renews them."""

from __future__ import annotations

import sys
from pathlib import Path

from .findings import AREAS

GUIDE = Path(__file__).with_name("README.md")
BEGIN = "<!-- findings: made by update_tools.inspect.guide from findings.py -->"
END = "<!-- findings: end -->"


def table() -> str:
    """A table for each area."""
    parts = []
    for area, rows in AREAS.items():
        lines = [f"### {area}", "", "| | | what it means | what to do |", "|---|---|---|---|"]
        lines += [
            f"| `{name}` | {severity} | {_cell(meaning)} | {_cell(hint)} |"
            for name, (severity, meaning, hint) in rows.items()
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("${", "$\\{").replace("*", "\\*")


def renewed(text: str) -> str:
    """The guide with the table of today."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"


def main() -> int:
    """Write the guide."""
    GUIDE.write_text(renewed(GUIDE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
