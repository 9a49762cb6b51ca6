# SPDX-License-Identifier: Apache-2.0
"""A whole rehearsal: look at what was given, play every scenario, judge."""

from __future__ import annotations

import os
import tempfile
import time
from datetime import UTC, datetime
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from update_agent import hooks as agent_hooks
from update_agent.rootfs_image import ANSWERS
from update_tools.rehearse import analyse, plan, team
from update_tools.rehearse.findings import ERROR, Findings
from update_tools.rehearse.record import Played
from update_tools.rehearse.stage import Stage
from update_tools.rehearse.team import InputError, Team
from update_tools.rehearse.template import Template

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from update_tools.rehearse.plan import Scenario

    Json = dict[str, Any]

CLOCK = "12:00"
PATIENCE_S = 10.0
_KNOWN_BAD_S = 1.0  # for a script that was found to hang


class Options:
    """What a rehearsal can be told."""

    def __init__(
        self,
        *,
        quick: bool = False,
        every_point: bool = False,
        ignored: Sequence[str] = (),
        persistent: Sequence[str] = (),
        patience_s: float = PATIENCE_S,
        clock: str = CLOCK,
        jobs: int = 0,
        sample: int = 1,
        only: Sequence[str] = (),
    ) -> None:
        """`sample`: only every n-th kill. `only`: scenarios of such names, and the undisturbed one."""
        self.quick = quick
        self.every_point = every_point
        self.ignored = list(ignored)
        self.persistent = list(persistent)
        self.patience_s = patience_s
        self.clock = clock
        self.jobs = jobs if jobs > 0 else os.cpu_count() or 1
        self.sample = max(1, sample)
        self.only = list(only)


class Rehearsal:
    """What was given, what was played, what was found."""

    def __init__(self, given: Team, options: Options) -> None:
        self.team = given
        self.options = options
        self.findings = Findings()
        self.played: list[Played] = []
        self.names: list[str] = []  # of all scenarios that there are, the ones that were not chosen too
        self.hooks = agent_hooks.load([str(given.hooks_from)]) if given.hooks_from else []
        self.started = datetime.now(UTC)
        self.seconds = 0.0

    def check_names(self) -> None:
        """Raise InputError for a pattern of --only that names no scenario, and so has found nothing."""
        for pattern in self.options.only:
            if self.names and not any(fnmatch(name, pattern) for name in self.names):
                known = [name for name in self.names if "!" not in name or "!" in pattern]
                near = get_close_matches(pattern, known, 3, 0.4) or known[:3]
                raise InputError(
                    f"no scenario is called {pattern!r} (--only)", hint=f"the nearest are: {'; '.join(near)}"
                )

    @property
    def errors(self) -> int:
        """Findings that are errors."""
        return self.findings.count(ERROR)

    @property
    def answers(self) -> dict[str, str]:
        """What the payload's module answers to the agent's queries, as far as it is known."""
        known = ANSWERS if self.team.payload_type == team.ROOTFS_IMAGE else {}
        return {**known, **analyse.answers_of(self.played)}


def rehearse(
    given: Team,
    options: Options,
    *,
    progress: Callable[[str, int, int], object] = lambda what, done, of: None,
) -> Rehearsal:
    """Do it all. `progress` hears what is played, how many scenarios are done, and of how many.

    Raises InputError, SandboxError and StageError for what keeps it from being done at all.
    """
    result = Rehearsal(given, options)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ota-rehearse-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        template = Template(given, folder / "machine")
        can_run = team.check(given, result.findings, template.program_roots)
        team.check_shell(given, result.findings)
        if can_run:
            (folder / "at").mkdir()
            with Stage(options.jobs) as stage:
                _Player(result, template, folder / "at", stage, progress).play()
            analyse.judge(
                result.played,
                answers=result.answers,
                hooks=result.hooks,
                scripts=given.by_hook(),
                persistent=options.persistent,
                findings=result.findings,
            )
    result.seconds = time.monotonic() - started
    return result


class _Player:
    def __init__(
        self,
        result: Rehearsal,
        template: Template,
        mount_at: Path,
        stage: Stage,
        progress: Callable[[str, int, int], object],
    ) -> None:
        self._result = result
        self._options = result.options
        self._stage = stage
        self._progress = progress
        self._patience: dict[str, float] = {}  # for programs that are known to hang
        self._common: Json = {
            "mount_at": str(mount_at),
            "lower": template.lower,
            "shared": template.shared,
            "root": str(template.root),
            "artifact": str(template.artifact),
            "old": template.old.decode(),
            "device_type": result.team.device_type,
            "name": result.team.header.name if result.team.header else "new",
            "ignored": self._options.ignored,
            "patience_s": self._options.patience_s,
            "ahead_s": _ahead_s(self._options.clock),
        }

    def play(self) -> None:
        self._result.names.append(plan.SUCCESS)
        (first,) = self._play("nothing goes wrong", [plan.success()])
        answers = self._result.answers
        scripts = self._result.team.by_hook()
        failures = plan.failures(answers, scripts, twice=not self._options.quick)
        played = self._play("each failure", self._chosen(failures))
        if not self._options.quick:
            self._play("kills and power cuts", self._chosen(self._kills([first, *played])))

    def _chosen(self, scenarios: Iterable[Scenario]) -> list[Scenario]:
        only = self._options.only
        found = list(scenarios)
        self._result.names += [each.name for each in found]
        return [each for each in found if not only or any(fnmatch(each.name, pattern) for pattern in only)]

    def _kills(self, bases: Iterable[Played]) -> list[Scenario]:
        known: set[tuple[str, str]] = set()
        found: list[Scenario] = []
        for base in bases:
            update = base.updates[0]
            changes: dict[str, list[list[str]]] = {}
            for run in update.runs:
                if run.kind == "script":
                    changes.setdefault(run.name, []).append(run.changed)
            if update.stuck:
                continue
            every = self._options.every_point and base.scenario.kind == plan.SUCCESS
            found += plan.kills(base.scenario, update.points, changes, every=every, known=known)
        return found[:: self._options.sample]

    def _play(self, what: str, scenarios: Sequence[Scenario]) -> list[Played]:
        if not scenarios:
            return []
        self._progress(what, 0, len(scenarios))
        tasks = [{**self._common, "patience": self._patience, **each.document()} for each in scenarios]
        results: dict[int, Played] = {}
        for number, result in self._stage.play(tasks):
            results[number] = Played(scenarios[number], result)
            self._progress(what, len(results), len(scenarios))
        played = [results[number] for number in sorted(results)]
        self._result.played += played
        for each in played:
            for update in each.updates:
                for run in update.runs:
                    if run.timed_out:
                        self._patience[run.name] = min(_KNOWN_BAD_S, self._options.patience_s)
        return played


def _ahead_s(clock: str) -> float:
    """By how much the machine's clock is ahead of ours, so that it begins at a time of day (UTC)."""
    try:
        hour, minute = clock.split(":")
        now = datetime.now(UTC)
        begin = now.replace(hour=int(hour), minute=int(minute), second=0, microsecond=0)
    except ValueError as error:
        raise InputError(
            f"--clock {clock} is no time of day", hint="HH:MM, by the machine's clock"
        ) from error
    return (begin - now).total_seconds()
