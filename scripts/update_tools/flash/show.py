# SPDX-License-Identifier: Apache-2.0
"""What people see: the media with what is on them, the question before writing, progress."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .errors import FlashError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .devices import Medium
    from .refuse import Reason
    from .writer import Progress

_WIDTH_PIPED = 160


def size(size_bytes: int) -> str:
    """As media are sold: decimal."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def contents(medium: Medium) -> list[str]:
    """One line for each thing on a medium."""
    lines = []
    for part in medium.parts or [medium]:
        what = " ".join(filter(None, (part.filesystem or part.kind, part.label)))
        mounted = f", mounted at {' and '.join(part.mounts)}" if part.mounts else ""
        if part is not medium or part.filesystem or mounted:
            lines.append(f"{part.name}: {what}, {size(part.size_bytes)}{mounted}")
    return lines or ["nothing that is known here"]


def media(present: Sequence[tuple[Medium, Sequence[Reason]]]) -> None:
    """A table of media, each with why it would not be written."""
    from rich.console import Console
    from rich.table import Table

    table = Table("device", "size", "model", "attached by", "on it", "writable")
    for medium, reasons in present:
        why = "yes" if not reasons else "no: " + "; ".join(reason.text for reason in reasons)
        on_it = "\n".join(contents(medium))
        table.add_row(medium.path, size(medium.size_bytes), medium.model, medium.attachment, on_it, why)
    Console(width=None if sys.stdout.isatty() else _WIDTH_PIPED).print(table)


def refusal(medium: Medium, reasons: Sequence[Reason]) -> FlashError:
    """All reasons in one error."""
    texts = "; ".join(reason.text for reason in reasons)
    final = [reason.hint for reason in reasons if reason.is_final]
    hints = [hint for hint in final or [reason.hint for reason in reasons] if hint]
    return FlashError(f"{medium.path} is not written: {texts}", hint="; ".join(hints))


def ask(question: str, lines: Sequence[str]) -> bool:
    """Tell what will be lost, and ask. Nothing but yes counts."""
    for line in lines:
        print(line, file=sys.stderr)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


@contextmanager
def progress(name: str) -> Iterator[Progress]:
    """Bars with rate and time left, where somebody is watching; else silence."""
    if not sys.stderr.isatty():
        yield lambda doing, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def show(doing: str, done: int, total: int) -> None:
            if doing not in tasks:
                tasks[doing] = bars.add_task(f"{doing} {name}")
            bars.update(tasks[doing], completed=done, total=total)

        yield show
