# SPDX-License-Identifier: Apache-2.0
"""`ota rehearse`: the command line. Exit codes beside the usual ones: 3 when flaws were found, for CI."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from update_agent.hooks import load as load_hooks
from update_tools.given_path import given_path
from update_tools.inspect import terminal
from update_tools.rehearse.findings import CATALOGUE
from update_tools.rehearse.rehearsal import CLOCK, PATIENCE_S, Options, rehearse
from update_tools.rehearse.team import InputError, Team

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from update_tools.rehearse.rehearsal import Rehearsal

EXIT_FOUND = 3
_ESTIMATE_AFTER = 4  # scenarios
_ABOUT = """\
Run your own state scripts, pause hooks and artifact through the real agent, on a machine that is thrown
away: an update in which nothing goes wrong, one for each way in which it can fail, and a kill of the agent or
a power cut at each of their points; and each of these once more on the same device. Needs no board. What runs
there is root there and nobody here: it can only write to the machine, and has no network.

Waiting costs nothing: the machine's clock leaps over retries, windows and limits. If no script of DIR is
executable they are taken as files of a recipe, which installs them with mode 0755."""
_EPILOG = """\
Exit codes: 0 nothing wrong, 2 cannot be rehearsed, 3 flaws were found (with --strict: or warnings),
130 interrupted.

  ota rehearse --scripts meta-product/recipes-core/product-scripts/files --html rehearsal.html
  ota rehearse --scripts scripts --hooks pause.d --artifact product-2.mender --conf mender.conf --quick"""


def run(words: list[str]) -> int:
    """One rehearsal. Raises SystemExit for wrong usage, UpdateError for what cannot be rehearsed."""
    options = parser().parse_args(words)
    if options.list:
        return _list()
    team = Team(
        *options.scripts,
        hooks=options.hooks,
        artifact=options.artifact,
        conf=options.conf,
        root=options.root,
    )
    if options.html is not None:
        _check_page(options)
    with _ended_in_order(), _progress() as progress:
        if options.board:
            _check_board(options)
            rehearsal = _on_board(team, options_of(options), progress)
        else:
            rehearsal = rehearse(team, options_of(options), progress=progress)
    if rehearsal.played and not options.board:
        rehearsal.check_names()
    if options.html is not None:
        _write_page(rehearsal, options.html)
    print(_json(rehearsal) if options.json else _text(rehearsal))
    if options.html is not None:
        print(f"report: {options.html}", file=sys.stderr)
    found = rehearsal.errors or (options.strict and len(rehearsal.findings))
    return EXIT_FOUND if found else 0


def _check_page(options: argparse.Namespace) -> None:
    """Told before minutes have passed. Raises InputError if the page cannot, or should not, be there."""
    path: Path = options.html
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise InputError(f"there is no folder {path.parent} for {path.name}", hint=f"mkdir -p {path.parent}")
    if os.path.isdir(path) or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise InputError(
            f"cannot write {path}: {'it is a folder' if os.path.isdir(path) else 'no permission'}"
        )
    given = [*options.scripts, options.hooks, options.artifact, options.conf]
    places = [place for place in (folder, path) if os.path.exists(place)]
    if any(each is not None and os.path.samefile(each, place) for each in given for place in places):
        raise InputError(f"{path} is among what is rehearsed", hint="put the report into another folder")


def _write_page(rehearsal: Rehearsal, path: Path) -> None:
    from update_tools.rehearse.html import page

    try:
        path.write_text(page(rehearsal), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _check_board(options: argparse.Namespace) -> None:
    """The board plays its own few scenarios. Raises SystemExit for options that are nothing to it."""
    names = ("every_point", "sample", "only", "ignore", "persistent", "clock", "jobs")
    ours = parser()
    told = [
        f"--{name.replace('_', '-')}" for name in names if getattr(options, name) != ours.get_default(name)
    ]
    if told:
        ours.error(f"--board has its own scenarios, files are not compared there: without {', '.join(told)}")


def _json(rehearsal: Rehearsal) -> str:
    """One document; names of files that are no UTF-8 with JSON's escapes."""
    from update_tools.rehearse.report import document

    text = json.dumps(document(rehearsal), indent=2, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()


def _text(rehearsal: Rehearsal) -> str:
    from update_tools.rehearse.report import printable, show

    return printable(terminal.text(lambda console: show(rehearsal, console)))


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Who is told to end by SIGTERM leaves no folder and no board behind, as with Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _on_board(team: Team, options: Options, progress: Callable[[str, int, int], object]) -> Rehearsal:
    from update_tools.bench.layer import REPOSITORY
    from update_tools.rehearse import board

    left_out = board.windows(load_hooks([str(team.hooks_from)]) if team.hooks_from else [])
    if left_out:
        print(f"left out, they would be waited for: {', '.join(left_out)}", file=sys.stderr)
    (REPOSITORY / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rehearse-", dir=REPOSITORY / "build") as folder:
        return board.rehearse(team, options, Path(folder), progress=progress)


def options_of(options: argparse.Namespace) -> Options:
    """The options of the command line that a rehearsal takes."""
    return Options(
        quick=options.quick,
        every_point=options.every_point,
        ignored=options.ignore,
        persistent=options.persistent,
        patience_s=options.timeout,
        clock=options.clock,
        jobs=options.jobs or 0,
        sample=options.sample,
        only=options.only,
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="ota rehearse",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    given = root.add_argument_group("what is rehearsed").add_argument
    given(
        "--scripts",
        metavar="DIR",
        type=given_path,
        action="append",
        default=[],
        help="state scripts, of the image and of the artifact; may be given again",
    )
    given(
        "--hooks",
        metavar="DIR",
        type=given_path,
        help="pause hooks (NN-name.json); their programs may lie beside",
    )
    given(
        "--artifact",
        metavar="FILE",
        type=given_path,
        help="the artifact: its own scripts count; a root file system is replaced by a small one",
    )
    given("--conf", metavar="FILE", type=given_path, help="the product's mender.conf, for its time limits")
    given(
        "--root",
        metavar="DIR",
        type=given_path,
        help="more files of the device that scripts need, by their paths there",
    )
    how = root.add_argument_group("how").add_argument
    how("--quick", action="store_true", help="nothing goes wrong, and each failure once: no kills")
    how(
        "--every-point",
        action="store_true",
        help="kill at all points of the undisturbed update, not those of note",
    )
    how("--sample", metavar="N", type=_count, default=1, help="only every n-th of the kills")
    how("--only", metavar="PATTERN", action="append", default=[], help="only scenarios of such names")
    how(
        "--ignore",
        metavar="PATH",
        type=_device_path,
        action="append",
        default=[],
        help="a file or folder that may differ, such as /data/log; with * and ?",
    )
    how(
        "--persistent",
        metavar="PATH",
        type=_device_path,
        action="append",
        default=[],
        help="a folder that survives updates, beside /data",
    )
    how(
        "--timeout",
        metavar="S",
        type=_seconds,
        default=PATIENCE_S,
        help="a script that shows no life for so long is taken for hanging (%(default)s)",
    )
    how("--clock", metavar="HH:MM", default=CLOCK, help="when each rehearsal begins, in UTC (%(default)s)")
    how(
        "--jobs",
        metavar="N",
        type=_count,
        default=None,
        help="machines at a time; default: one for each core",
    )
    how(
        "--board",
        action="store_true",
        help="on a virtual board instead (minutes): fewer scenarios, all of it real",
    )
    out = root.add_argument_group("what comes of it").add_argument
    out("--html", metavar="FILE", type=given_path, help="write a report with timelines, one file")
    out("--json", action="store_true", help="print one JSON document with all details")
    out("--strict", action="store_true", help="warnings count as errors")
    out("--list", action="store_true", help="list everything that can be found")
    return root


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not (seconds > 0 and math.isfinite(seconds)):
        raise argparse.ArgumentTypeError(f"{text} is no time in seconds")
    return seconds


def _device_path(text: str) -> str:
    if not text.startswith(("/", "*")):
        raise argparse.ArgumentTypeError(f"{text!r} is no path of the device, such as /data/log")
    return text


def _list() -> int:
    for name, (severity, hint) in CATALOGUE.items():
        print(f"{severity:8}{name:24}{hint}")
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], object]]:
    """Shows on a terminal how far it is and how long it will take; elsewhere a line for each part."""
    started: dict[str, float] = {}
    if not sys.stderr.isatty():

        def tell(what: str, done: int, of: int) -> None:
            started.setdefault(what, time.monotonic())
            if done == _ESTIMATE_AFTER and of > 2 * done:
                left_s = (time.monotonic() - started[what]) * (of - done) / done
                print(f"{what}: {of}, about {left_s:.0f} s", file=sys.stderr)
            if done == of > 1:
                print(f"{what}: {of} in {time.monotonic() - started[what]:.0f} s", file=sys.stderr)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, object] = {}

        def advance(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=of)
            bar.update(tasks[what], completed=done)  # type: ignore[arg-type]

        yield advance
