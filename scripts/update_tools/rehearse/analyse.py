# SPDX-License-Identifier: Apache-2.0
"""What is wrong with scripts and hooks, by what happened in the scenarios. No I/O.

Scenarios are looked at in the order success, failures, kills: the simplest that shows a flaw tells of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from update_agent.hooks import PROGRAM_LIMIT_S
from update_agent.logupload import OUTPUT_BYTES
from update_agent.scripts import RETRY_LATER
from update_agent.states import ARTIFACT, DAEMON_STEPS, STATE_BY_NAME
from update_tools.rehearse.findings import ERROR
from update_tools.rehearse.plan import SUCCESS, hooks_of, points_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from update_agent.hooks import Hook
    from update_tools.rehearse.findings import Findings
    from update_tools.rehearse.record import Played, Run, Update

_FAILURE_WORDS = ("Rollback", "Failure")  # in the name of a state on the way back
_RETRIED = re.compile(r"state script \S*/(\S+) wanted another run for")
_HELD = re.compile(r"Control point (\S+): pause by .*")
_HELD_BY = re.compile(r"hook (\S+\.json) \(")
_ERROR = re.compile(r"(?i)^(?:\S+ )?error: (.*)")
_SURVIVES = ("/data",)
_SHOWN = 3  # paths in a finding


def judge(
    played: Sequence[Played],
    *,
    answers: Mapping[str, str],
    hooks: Sequence[Hook],
    scripts: Mapping[str, Sequence[str]],
    persistent: Sequence[str],
    findings: Findings,
) -> None:
    """Add what is wrong. `answers`: of the module to queries. `scripts`: names by State_Action.

    `persistent`: more folders that survive an update.
    """
    ordered = sorted(played, key=lambda each: ("success", "failure", "kill").index(each.scenario.kind))
    survives = (*_SURVIVES, *persistent)
    _check_reach(ordered, hooks, scripts, answers, findings)
    for each in ordered:
        for number, update in enumerate(each.updates):
            if update.stuck:
                findings.add("update-stuck", "the update", _stuck(update), each.scenario.name)
            _check_retries(each, update, findings)
            _check_hooks(each, number, update, hooks, findings)
            for run in update.runs:
                if run.kind == "script":
                    _check_run(each, number, run, survives, findings)
    _check_success(ordered, findings)
    _check_repeats(ordered, survives, findings)
    for each in ordered:
        if each.scenario.kind == "failure":
            _check_rollback(each, survives, findings)


def answers_of(played: Iterable[Played]) -> dict[str, str]:
    """What the payload's module answered to the agent's queries."""
    found: dict[str, str] = {}
    for each in played:
        for update in each.updates:
            found = {**update.answers, **found}
    return found


def _check_reach(
    played: Sequence[Played],
    hooks: Sequence[Hook],
    scripts: Mapping[str, Sequence[str]],
    answers: Mapping[str, str],
    findings: Findings,
) -> None:
    if "NeedsArtifactReboot" not in answers:
        return  # no update came so far as to ask the module
    is_complete = any(each.updates[0].status == "success" for each in played)
    reached = hooks_of(answers)
    ran = {
        run.name for each in played for update in each.updates for run in update.runs if run.kind == "script"
    }
    passed = [hook for each in played for update in each.updates for hook in _passed(update)]
    for hook, names in scripts.items():
        for name in names:
            if hook not in reached:
                what = (
                    "the payload's module needs no reboot" if "Reboot" in hook else "it cannot be rolled back"
                )
                findings.add("script-unreachable", name, f"{hook}: {what}")
            elif name not in ran and hook in passed and is_complete:
                what = f"{hook} was come to {passed.count(hook)} times, and it was not run"
                findings.add("never-ran", name, what)
    for hook_file in hooks:
        if not hook_file.fault and hook_file.point not in points_of(answers):
            findings.add("hook-unreachable", hook_file.name, f"this payload never comes to {hook_file.point}")


def _passed(update: Update) -> set[str]:
    """The hooks in which nothing but the scripts themselves decided what ran."""
    if update.is_killed:
        return set()
    steps = [DAEMON_STEPS[event["step"]] for event in update.events if event["event"] == "step"]
    hooks = {step.work.subject for step in steps if step.work.kind == "hook"}
    return hooks - {run.hook for run in update.runs if run.is_injected}


def _stuck(update: Update) -> str:
    running = [run.name for run in update.runs[-1:] if not run.is_ended]
    return update.stuck + (f", while {running[0]} ran" if running else "")


def _check_run(each: Played, number: int, run: Run, survives: Sequence[str], findings: Findings) -> None:
    scenario = each.scenario.name
    if not run.is_ended:
        return
    if run.left:
        findings.add("leaves-process", run.name, f"still running after its end: {run.left[0]}", scenario)
    if run.output_bytes > OUTPUT_BYTES:
        findings.add("output-cut", run.name, f"{run.output_bytes} bytes in one run", scenario)
    outside = [path for path in run.changed if not _is_below(path, survives)]
    if outside:
        findings.add("writes-rootfs", run.name, f"it changed {_list(outside)}", scenario)
    elif run.code and "Read-only file system" in run.output:
        findings.add("writes-rootfs", run.name, f"refused: {_last_line(run.output)}", scenario)
    if run.timed_out:
        findings.add("script-hangs", run.name, f"no end after {run.seconds:.0f} s", scenario)
    elif run.error:
        findings.add("script-fails", run.name, run.error, scenario)
    elif run.code not in {0, RETRY_LATER, None} and not run.is_injected:
        _check_failure(each, number, run, findings)
    elif run.code == 0 and run.no_route and not findings.has(run.name, "network-needed"):
        findings.add("network-used", run.name, "it looked for another machine, and exited with 0", scenario)


def _check_failure(each: Played, number: int, run: Run, findings: Findings) -> None:
    what = f"{run.hook}: exit code {run.code}"
    if run.output.strip():
        what += f", “{_last_line(run.output)}”"
    if run.no_route:
        findings.add("network-needed", run.name, what, each.scenario.name)
        return
    if findings.has(run.name, "script-fails", "network-needed"):
        return
    kind = each.scenario.kind
    if number == 0:
        name = {SUCCESS: "script-fails", "failure": "fails-on-failure-path", "kill": "fails-after-kill"}[kind]
        if name == "fails-after-kill" and not each.updates[0].is_killed:
            return
    elif kind == "kill" and not findings.has(run.name, "fails-when-repeated"):
        name = "fails-after-kill"
    else:
        name = "fails-when-repeated"
    if name == "fails-when-repeated" and findings.has(run.name, "fails-on-failure-path"):
        return  # the first time as well
    if name == "fails-after-kill" and findings.has(run.name, "fails-on-failure-path", "fails-when-repeated"):
        return  # it does so without a kill
    findings.add(name, run.name, what, each.scenario.name)


def _check_retries(each: Played, update: Update, findings: Findings) -> None:
    for name in set(_RETRIED.findall(update.log)):
        tries = sum(run.name == name and run.code == RETRY_LATER for run in update.runs)
        findings.add(
            "retries-for-ever", name, f"called {tries} times, exit code 21 each time", each.scenario.name
        )


def _check_hooks(
    each: Played, number: int, update: Update, hooks: Sequence[Hook], findings: Findings
) -> None:
    scenario = each.scenario.name
    by_program = {hook.program.rpartition("/")[2]: hook for hook in hooks if hook.program}
    for run in update.runs:
        hook = by_program.get(run.name)
        if run.kind != "hook" or not run.is_ended or hook is None:
            continue
        if run.timed_out:
            findings.add(
                "hook-breaks", hook.name, f"its program took more than {PROGRAM_LIMIT_S} s", scenario
            )
        elif run.code not in {0, 1, RETRY_LATER}:
            findings.add(
                "hook-breaks", hook.name, f"its program ended with {run.result}: {run.error}", scenario
            )
        elif run.code == 1 and each.scenario.kind == SUCCESS and number == 0:
            said = f", “{_last_line(run.output)}”" if run.output.strip() else ""
            findings.add("hook-fails-update", hook.name, f"its program exited with 1{said}", scenario)
    for hook in hooks:
        asked = [run for run in update.runs if run.kind == "hook" and by_program.get(run.name) is hook]
        if _ran_out(hook, asked):
            what = f"its program said 21 each of {len(asked)} times, until {hook.limit_s} s were over"
            findings.add("hook-never-ends", hook.name, what, scenario)
    for event in update.events:
        if event["event"] == "person":
            for name in sorted(_held_at(event["point"], update.log)):
                what = f"at {event['point']} it held until a person said `update-agent continue`"
                findings.add("hook-never-ends", name, what, scenario)


def _ran_out(hook: Hook, asked: Sequence[Run]) -> bool:
    """At the limit nothing is logged if the update may go on then; but the last answer was to wait."""
    codes = [run.code for run in asked if run.is_ended]
    return bool(hook.program) and len(codes) > 2 and set(codes) == {RETRY_LATER}


def _held_at(point: str, log: str) -> set[str]:
    held = [found for found in _HELD.finditer(log) if found[1] == point]
    return set(_HELD_BY.findall(held[-1][0])) if held else set()


def _check_success(played: Sequence[Played], findings: Findings) -> None:
    """An update that nothing disturbs fails by something that was told already, or this is told."""
    for each in played:
        if each.scenario.kind != SUCCESS or any(
            each.scenario.name in finding.scenarios and finding.severity == ERROR for finding in findings
        ):
            continue
        for update in each.updates:
            if update.status != SUCCESS:
                errors = [found[1] for line in update.log.splitlines() if (found := _ERROR.search(line))]
                what = errors[-1] if errors else f"it ended with {update.status or 'nothing'}"
                findings.add("update-fails", "the update", what, each.scenario.name)


# Files


def _check_repeats(played: Sequence[Played], survives: Sequence[str], findings: Findings) -> None:
    """The same update again must leave the same files; and a kill, files as some way without one does."""
    allowed: list[Mapping[str, str]] = []
    for each in played:
        scripts = [leg for leg in each.updates if not leg.stuck]
        if each.scenario.kind == "kill":
            continue
        allowed += [leg.after for leg in scripts] + [leg.before for leg in scripts]
        legs = [leg for leg, plan in zip(each.updates, each.scenario.legs, strict=False) if plan.is_disturbed]
        legs = legs or each.updates
        if len(legs) > 1 and not legs[1].stuck:
            _compare(
                each, legs[1], [legs[0].after], survives, findings, "differs when the same happens again"
            )
    for each in played:
        if each.scenario.kind == "kill" and each.updates[0].is_killed and not each.updates[-1].stuck:
            _compare(
                each, each.updates[-1], allowed, survives, findings, "differs after a kill and another update"
            )
            # An update that failed may leave half a file, if the next one clears it up.
            if each.updates[0].status == SUCCESS:
                _compare(each, each.updates[0], allowed, survives, findings, "differs after a kill")


def _compare(
    each: Played,
    update: Update,
    allowed: Sequence[Mapping[str, str]],
    survives: Sequence[str],
    findings: Findings,
    what: str,
) -> None:
    touched: dict[str, str] = {}
    for leg in each.updates:
        for run in leg.runs:
            if run.kind == "script":
                touched.update(dict.fromkeys(run.changed, run.name))
    for path, script in touched.items():
        now = update.after.get(path, "not there")
        if not _is_below(path, survives) or any(now == each.get(path, "not there") for each in allowed):
            continue
        before = allowed[0].get(path, "not there")
        findings.add(
            "not-idempotent", script, f"{path} {what}: {_size(before)}, then {_size(now)}", each.scenario.name
        )


def _check_rollback(each: Played, survives: Sequence[str], findings: Findings) -> None:
    """After a failure, what scripts had changed is as before, unless others changed it on the way back."""
    update = each.updates[0]
    if update.status != "failure" or update.stuck or update.has_committed:
        return
    by: dict[str, str] = {}
    undone: set[str] = set()
    for run in update.runs:
        if run.kind != "script" or not run.hook:
            continue
        state, _, action = run.hook.partition("_")
        is_back = any(word in state for word in _FAILURE_WORDS) or action == "Error"
        if is_back:
            undone.update(run.changed)
        elif STATE_BY_NAME[state].scripts == ARTIFACT:
            by.update(dict.fromkeys(run.changed, run.name))
    for path, script in by.items():
        changed = update.after.get(path) != update.before.get(path)
        if changed and path not in undone and _is_below(path, survives):
            findings.add(
                "not-rolled-back", script, f"{path} stays as the failed update left it", each.scenario.name
            )


def _is_below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder.rstrip('/')}/") for folder in folders)


def _list(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more


def _size(content: str) -> str:
    found = re.search(r"\d+ bytes", content)
    return found[0] if found else content


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return "".join(char if char.isprintable() else "�" for char in lines[-1][:160]) if lines else ""
