# SPDX-License-Identifier: Apache-2.0
"""`scripts/check-layers`; exit codes 0 nothing failed, 1 a check failed, 2 it cannot work here."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from update_agent.errors import UpdateError

from . import checks, host, rows
from .errors import Failed, Skipped
from .results import FAILED, OK, SKIPPED, Results, reasons, table
from .workshop import REPOSITORY, Workshop, default_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .rows import Check, Row

VARIABLE = "META_UPDATE_MIRRORS"
_WIDTH_PIPED = 200

FUNCTIONS: dict[str, Callable[[Workshop, Row, Path], str]] = {
    "dump": checks.dump,
    "parse": checks.parse,
    "graph": checks.graph,
    "dry-run": checks.dry_run,
    "recipes": checks.recipes,
    "image": checks.image,
    "inspect": checks.inspect,
    "boot": checks.boot,
    "layer": checks.layer,
}


def parser() -> argparse.ArgumentParser:
    columns = "\n".join(f"  {check.name:<9} {check.about}" for check in rows.CHECKS)
    found = argparse.ArgumentParser(
        prog="scripts/check-layers",
        description="Check meta-update against the real BitBake, OE-core and BSP layers: every board\n"
        "of kas/boards in both series. Works offline, from local copies of their repositories\n"
        "(checkouts or mirrors).",
        epilog=f"checks:\n{columns}\n\n"
        "Everything takes hours. Results are kept: a table may come from many runs.\n"
        "Exit codes: 0 nothing failed, 1 a check failed, 2 it cannot work here.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "--mirrors",
        type=Path,
        metavar="DIR",
        help=f"folder of copies: OWNER+NAME/repo, OWNER/NAME, or NAME; default: ${VARIABLE}",
    )
    found.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="WORD",
        help="boards, series and checks to run; patterns for boards",
    )
    found.add_argument("--work", type=Path, metavar="DIR", help=f"where to work; default: {default_folder()}")
    found.add_argument("--user", default=host.USER, help="as whom root runs BitBake; default: %(default)s")
    found.add_argument(
        "--install", action="store_true", help="first install what this machine lacks; needs root"
    )
    found.add_argument("--table", action="store_true", help="run nothing: print the last result of each cell")
    found.add_argument("--json", action="store_true", help="print results as JSON")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the checks and return the exit code."""
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started ends with us
    try:
        return _main(options)
    except UpdateError as error:
        print(f"scripts/check-layers: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _main(options: argparse.Namespace) -> int:
    chosen, columns = rows.select(rows.boards(REPOSITORY), options.only)
    work = (options.work or default_folder()).resolve()
    if options.table:
        return _show(Results(work / "results.json"), chosen, columns, options.json)
    if options.install:
        for line in host.install(options.user):
            print(f"check-layers: {line}", file=sys.stderr)
    named = options.mirrors or os.environ.get(VARIABLE)
    if not named or not Path(named).is_dir():
        why = f"{named} is not a folder" if named else "no folder of copies is named"
        print(f"check-layers: skipped: {why} (--mirrors DIR or {VARIABLE})", file=sys.stderr)
        return 0
    host.check(options.user)
    shop = Workshop(work, Path(named).resolve(), options.user)
    with shop.opened():
        results = Results(work / "results.json")
        print(f"check-layers: logs in {shop.logs}", file=sys.stderr)
        for row in chosen:
            _run_row(shop, row, columns, results)
        return _show(results, chosen, columns, options.json)


def _run_row(shop: Workshop, row: Row, columns: Sequence[Check], results: Results) -> None:
    stopped: UpdateError | None = None
    try:
        checks.look_for_mirrors(shop, row, _log(shop, row, "mirrors"))
    except (Failed, Skipped) as error:
        stopped = error
    for check in columns:
        if check.only and row.board != check.only:
            _keep(results, row, check, SKIPPED, 0.0, f"only {check.only}")
        elif stopped is not None:  # kas files that cannot be read are the first column's failure
            is_failure = isinstance(stopped, Failed) and check is columns[0]
            _keep(results, row, check, FAILED if is_failure else SKIPPED, 0.0, stopped.message)
        elif check.needs and results.get(row, check.needs).get("result") == FAILED:
            _keep(results, row, check, SKIPPED, 0.0, f"{check.needs} failed")
        else:
            _run(shop, row, check, results)


def _run(shop: Workshop, row: Row, check: Check, results: Results) -> None:
    log = _log(shop, row, check.name)
    start = time.monotonic()
    try:
        result, text = OK, FUNCTIONS[check.name](shop, row, log)
    except Skipped as error:
        result, text = SKIPPED, error.message
    except UpdateError as error:  # Failed, or one of the desk tools'
        result, text = FAILED, str(error)
    _keep(
        results,
        row,
        check,
        result,
        time.monotonic() - start,
        text,
        log=str(log.relative_to(shop.folder)),
        of=shop.version,
    )


def _keep(
    results: Results, row: Row, check: Check, result: str, seconds: float, text: str, **more: str
) -> None:
    results.put(row, check, result, seconds, text, **more)
    print(f"{row.name} {check.name}: {result} {seconds:.0f} s  {text}", file=sys.stderr, flush=True)


def _log(shop: Workshop, row: Row, name: str) -> Path:
    log = shop.logs / row.name / f"{name}.log"
    log.unlink(missing_ok=True)
    return log


def _show(results: Results, chosen: Sequence[Row], columns: Sequence[Check], as_json: bool) -> int:
    cells = results.of(chosen, columns)
    if as_json:
        print(json.dumps(cells, indent=2))
    else:
        console = Console(width=None if sys.stdout.isatty() else _WIDTH_PIPED, highlight=False)
        console.print(table(results, chosen, columns))
        for line in reasons(cells):
            console.print(line, soft_wrap=True, markup=False)
    return 1 if any(cell["result"] == FAILED for cell in cells) else 0


if __name__ == "__main__":
    sys.exit(main())
