# SPDX-License-Identifier: Apache-2.0
"""What a terminal gets, and a pipe does not: colour, its own width, progress."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .units import mib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

_WIDTH_PIPED = 160
_SHOWN_AFTER_S = 1.0


def text(show: Callable[[Console], object]) -> str:
    """The tables, as wide as the terminal; in a pipe without colour and without blanks at line ends."""
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    console = Console(highlight=False) if is_terminal else Console(width=_WIDTH_PIPED, no_color=True)
    with console.capture() as shown:
        show(console)
    lines = shown.get().splitlines()
    return "\n".join(lines if console.is_terminal else [line.rstrip() for line in lines])


@contextmanager
def progress(name: str) -> Iterator[Callable[[int], object]]:
    """Shows on a terminal, as soon as it takes a while, that it goes on, and how much was unpacked."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    import threading

    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    looking = f"looking into {escape(name)}"
    task = bar.add_task(looking, total=None)
    unpacked = 0

    def advance(count: int) -> None:
        nonlocal unpacked
        unpacked += count
        bar.update(task, description=f"{looking}, {mib(unpacked)} unpacked")

    timer = threading.Timer(_SHOWN_AFTER_S, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield advance
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
