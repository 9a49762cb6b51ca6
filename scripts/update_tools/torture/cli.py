# SPDX-License-Identifier: Apache-2.0
"""`ota board torture` for a person: progress as it goes, a summary at the end, a report in a file."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from . import plan
from .run import Torture

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .run import Result


def run(folder: Path, *, kind: str, seed: int, cuts: int, first: int = 1) -> bool:
    """Play it in a folder that is emptied first, and say how it went. True: everything was as it must be.

    An interrupt ends it with a summary of what was done.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    console = Console(highlight=False, soft_wrap=True)

    def say(line: str) -> None:
        console.print(line, markup=False)

    planned = plan.make(seed, cuts)[first - 1 :]
    say(f"{kind}, {len(planned)} cuts, seed {seed}, in {folder}")
    torture = Torture(folder, kind, say)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = torture.run(planned)
    console.print(summary(torture, results, len(planned)))
    say(f"every cut: {folder / 'report.jsonl'}")
    is_right = len(results) == len(planned) and not problems(torture, results)
    if is_right:
        for file in (*folder.glob("*.ext4"), *folder.glob("*.mender")):
            file.unlink()
        shutil.rmtree(folder / "board")
    return is_right


def problems(torture: Torture, results: Sequence[Result]) -> Counter[str]:
    """How many problems there are of each kind."""
    found = [problem for result in results for problem in result.problems] + torture.problems
    return Counter(problem.kind for problem in found)


def summary(torture: Torture, results: Sequence[Result], wanted: int) -> Table:
    """What happened, in numbers."""
    table = Table("", "number", title=f"{len(results)} of {wanted} power cuts", title_justify="left")
    by_status = Counter(result.status or "pending" for result in results)
    for status, number in sorted(by_status.items()):
        table.add_row(f"cut when the server had heard {status}", str(number))
    for slot, number in sorted(Counter(result.slot for result in results).items()):
        table.add_row(f"cut when the other slot was {slot}", str(number))
    table.add_row("starts that were cut as well", str(sum(r.cut.again is not None for r in results)))
    table.add_section()
    for (variant, status), number in sorted(Counter(torture.ends).items()):
        table.add_row(f"updates to a system that is {variant}: {status}", str(number))
    table.add_section()
    found = problems(torture, results)
    names = {
        "unbootable": "boards that did not start, or would not",
        "untrue": "reports that were not true",
        "environment": "boot environments that were bad",
        "state": "systems that should not have been there",
        "stuck": "updates that did not end",
    }
    for kind, text in names.items():
        table.add_row(text, str(found[kind]))
    return table
