# SPDX-License-Identifier: Apache-2.0
"""The kill matrix: whole updates, and the agent killed once at every point that could matter.

Each update is played undisturbed first, while the fault hook (faults.py) writes down its points. Then it is
played again for each point and side (before, after), and in two ways: `kill`, SIGKILL of the agent, which is
started again at once while what it had started goes on; and `cut`, where everything ends and the boot loader
decides what runs. From there it must come to one of its two ends by itself, with all that `Run` checks: what
runs and what the device says it provides, the boot environment, every status sent, the order of scripts and
calls, nothing left behind, and the next update taken.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from update_agent.errors import UpdateError
from update_tools.conform.kill_run import NotReached, Run
from update_tools.conform.kill_updates import UPDATES, Kill, Update, is_usual, kills_of
from update_tools.conform.launcher import Launcher
from update_tools.conform.scenarios import Difference

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `scripts/conform kills`."""
    names = ", ".join(update.name for update in UPDATES)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="play N updates at a time")
    parser.add_argument("--update", action="append", metavar="NAME", help=f"only this one: {names}")
    parser.add_argument("--all", action="store_true", help="both ways on both sides of each point")
    parser.add_argument("--sample", type=int, default=1, metavar="K", help="only every K-th kill")
    parser.add_argument(
        "--twice", type=int, default=0, metavar="K", help="every K-th kill once more, with a second one"
    )
    parser.add_argument("--point", metavar="SPEC", help="only this kill, as a failure names it: 17:after:cut")
    parser.add_argument("--list", action="store_true", help="only list the points")
    parser.add_argument(
        "--keep", action="store_true", help="keep the folders of runs that fail, and name them"
    )


def run(
    write: Callable[[str], object],
    *,
    jobs: int = 1,
    update: Sequence[str] | None = None,
    all: bool = False,  # noqa: A002
    sample: int = 1,
    twice: int = 0,
    point: str | None = None,
    list: bool = False,  # noqa: A002
    keep: bool = False,
) -> int:
    """Play the matrix, write failures and totals, and return how many kills failed. Raises UpdateError."""
    chosen = [each for each in UPDATES if not update or each.name in update]
    if update and len(chosen) < len(set(update)):
        raise UpdateError(
            f"no update {', '.join(sorted(set(update) - {each.name for each in chosen}))}",
            hint=f"there are {', '.join(each.name for each in UPDATES)}",
        )
    with Launcher() as launcher:
        matrix = _Matrix(launcher, write, jobs=jobs, keep=keep, has_all=all)
        for each in chosen:
            matrix.play(each, sample=sample, twice=twice, point=point, only_list=list)
    write(f"{matrix.passed} passed, {matrix.failed} failed")
    return matrix.failed


class _Matrix:
    def __init__(
        self,
        launcher: Launcher,
        write: Callable[[str], object],
        *,
        jobs: int,
        keep: bool,
        has_all: bool,
    ) -> None:
        self._launcher = launcher
        self._write = write
        self._jobs = max(1, jobs)
        self._keep = keep
        self._has_all = has_all
        self._offset = 0  # in the sample; goes on over updates, so that they are not all sampled alike
        self.passed = self.failed = 0

    def play(self, update: Update, *, sample: int, twice: int, point: str | None, only_list: bool) -> None:
        """One update: record, then kill."""
        started = time.monotonic()
        try:
            points = Run(self._launcher, update, None).play()
        except Difference as difference:
            self._write(f"FAIL {update.name}, undisturbed: {difference}")
            self.failed += 1
            return
        kills = kills_of(update, points)
        number = len({kill.ordinal for kill in kills})
        if only_list:
            for kill in kills[:number]:
                self._write(f"{update.name} {kill.ordinal} {kill.step}: {kill.name}")
            return
        if point is not None:
            kills = [kill for kill in kills if _is_named(kill, point)]
            if not kills:
                raise UpdateError(f"{update.name} has no point {point}", hint="--list shows them")
        elif not self._has_all:
            kills = [kill for kill in kills if is_usual(kill)]
        chosen = kills[self._offset % sample :: sample]
        self._offset += 1
        if twice:
            chosen += [_again(kill) for kill in kills[self._offset % twice :: twice]]
        results = self._play_all(update, chosen)
        self._write(
            f"{update.name}: {number} points, {len(chosen)} kills: {results.count(True)} passed, "
            f"{results.count(False)} failed ({time.monotonic() - started:.0f} s)"
        )
        self.passed += results.count(True)
        self.failed += results.count(False)

    def _play_all(self, update: Update, kills: Iterable[Kill]) -> list[bool]:
        results = []
        pool = ThreadPoolExecutor(self._jobs)
        try:
            for result in pool.map(lambda kill: self._play_one(update, kill), kills):
                results.append(result)
                if sys.stderr.isatty():
                    print(f"\r{update.name}: {len(results)} ", end="", file=sys.stderr, flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
        return results

    def _play_one(self, update: Update, kill: Kill) -> bool:
        reason = ""
        for _ in range(3):  # what waits for others may pass its points in another order
            played = Run(self._launcher, update, kill, keep=self._keep)
            try:
                played.play()
                return True
            except NotReached:
                reason = "the point was not reached"
            except (Difference, UpdateError) as error:
                reason = str(error)
                break
        where = f"\n     folder: {played.folder}" if self._keep else ""
        self._write(
            f"FAIL {update.name} {kill}: {reason}{where}\n"
            f"     replay: scripts/conform kills --update {update.name} --point {kill.spec}"
        )
        return False


def _again(kill: Kill) -> Kill:
    again = Kill(kill.ordinal, kill.step, kill.name, kill.occurrence, kill.side, kill.way)
    again.again = True
    return again


def _is_named(kill: Kill, spec: str) -> bool:
    ordinal, _, rest = spec.partition(":")
    words = [word for word in rest.split(":") if word and word != "twice"]
    if str(kill.ordinal) != ordinal or not set(words) <= {kill.side, kill.way}:
        return False
    kill.again = spec.endswith(":twice")
    return True
