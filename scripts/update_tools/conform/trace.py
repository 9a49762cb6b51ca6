# SPDX-License-Identifier: Apache-2.0
"""A scenario's journal and the trace in it.

Agent, scripts, update module, server and harness append whole lines to one file, so their order is the order
in which things happened. Lines that begin with `@` are trace events, those with `!` ask the harness for
something (`! kill`, `! reboot`); all others are the agent's own log, of which some lines are events as well.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

KILL, REBOOT = "kill", "reboot"
_LOG_LINE = re.compile(r"^\S+ (?:DEBUG|INFO|WARNING|ERROR): (.*)$")
_END = re.compile(r"^Deployment \S+ (?:succeeded|failed)|^No answer to the deployment poll")
# What the agent logs, and the event it tells of. The first match counts.
_EVENTS = (
    (re.compile(r"^State script \S+ wants to be run again later"), "retry_wait"),
    (
        re.compile(r"^\w+: state script \S+ wanted another run for"),
        "retry_timeout",
    ),
    (re.compile(r"^State script \S+ ran into its time limit"), "timeout"),
    (re.compile(r"^\w+: update module \S+: \w+ ran into its time limit"), "timeout"),
    (re.compile(r"^Status \w+ was not delivered, again in "), "retry_wait"),
    (re.compile(r"^[Ss]tatus \w+ could not be delivered"), "gave_up"),
    (re.compile(r"^\w+: the control map could not be refreshed"), "map_refresh:gave_up"),
    (re.compile(r"^Control point (?P<point>\w+): (?P<action>\w+)"), "control:{point}={action}"),
)
_VERSION = re.compile(
    r"^\w+: (?:cannot read the version of the state scripts, )?(?P<directory>/\S+)/version(?: says version|:)"
)


class Journal:
    """The file, written by many processes.

    `artifact_scripts`, a directory, tells version files of artifacts from those of the image in log lines.
    """

    def __init__(self, path: str, artifact_scripts: str) -> None:
        self.path = path
        self._artifact_scripts = artifact_scripts
        with open(path, "w", encoding="utf-8"):
            pass

    def note(self, event: str) -> None:
        """Append an event as one write."""
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(fd, f"@ {event}\n".encode())
        finally:
            os.close(fd)

    def lines(self) -> list[str]:
        """All complete lines so far."""
        with open(self.path, encoding="utf-8", errors="replace") as file:
            return file.read().split("\n")[:-1]

    def trace(self) -> list[str]:
        """The events so far, up to the end of the deployment."""
        return list(events(self.lines(), self._artifact_scripts))

    def has_ended(self) -> bool:
        """True once the agent is through with the deployment, or its poll has failed."""
        return None in _events(self.lines(), self._artifact_scripts)

    def requests(self) -> list[str]:
        """What scripts asked the harness for, in order."""
        return [line[2:] for line in self.lines() if line.startswith("! ")]


def events(lines: Iterable[str], artifact_scripts: str) -> Iterable[str]:
    """The trace events among journal lines, until the deployment has ended or its poll has failed."""
    return (event for event in _events(lines, artifact_scripts) if event is not None)


def _events(lines: Iterable[str], artifact_scripts: str) -> Iterator[str | None]:
    """As `events`, with None as the last one if the end was reached."""
    polls, hook, is_failed = 0, "", False
    for line in lines:
        if line.startswith("@ "):
            event = line[2:]
            # Of the polls of a process the first is for inventory, the second for a deployment.
            if is_failed and event.startswith("script:Idle_Enter"):
                yield None
                return
            before = hook
            if event.startswith("script:"):
                hook = "_".join(event.split("_")[:2])
            polls = 0 if event == "boot" else polls + (hook == "script:Idle_Leave" != before)
            is_failed = polls > 1 and event.startswith("script:Sync_Error")
            yield event
            continue
        log = _LOG_LINE.match(line)
        if log is None:
            continue
        if _END.match(log[1]):
            yield None
            return
        bad_version = _VERSION.match(log[1])
        if bad_version:
            kind = "artifact" if bad_version["directory"] == artifact_scripts else "rootfs"
            yield f"check:{kind}_scripts_version=bad"
            continue
        for pattern, event in _EVENTS:
            found = pattern.match(log[1])
            if found:
                yield event.format(**found.groupdict())
                break


def canonical(trace: Sequence[str]) -> list[str]:
    """The trace without what is a matter of settings and not of behaviour.

    That is how often it was tried before `gave_up`, and how often a pause was confirmed before maps expired.
    """
    result: list[str] = []
    for event in trace:
        if event == "gave_up":
            while len(result) >= 3 and result[-2] == "retry_wait" and result[-3] == result[-1]:
                del result[-2:]
        elif event == "map_refresh:gave_up":
            while result and result[-1] == "map_refresh:error":
                result.pop()
        elif event.startswith("control:") and event.endswith("=pause") and result[-1:] == ["event:expire"]:
            continue
        result.append(event)
    return result


def paused_point(trace: Sequence[str]) -> str:
    """The point at which the agent now waits, its pause reported; empty while it does not."""
    for index in range(len(trace) - 1, -1, -1):
        event = trace[index]
        if event.startswith("control:") and event.endswith("=pause"):
            return event[len("control:") : -len("=pause")] if _is_reported(trace, index) else ""
        before = trace[index - 1] if index else ""
        is_report = (
            event.startswith("status:") and before.startswith("control:") and before.endswith("=pause")
        )
        if not is_report or event.endswith("=409"):
            return ""
    return ""


def _is_reported(trace: Sequence[str], index: int) -> bool:
    """Only the first pause at a point is reported, once in each run of the process."""
    if index + 1 < len(trace):
        return True  # by the caller: a report, delivered or not
    for event in reversed(trace[:index]):
        if event == "boot":
            return False
        if event == trace[index]:
            return True
    return False


def calls(trace: Sequence[str]) -> list[str]:
    """Only scripts and module calls."""
    return [event.partition(":")[2] for event in trace if event.startswith(("script:", "module:"))]


def statuses(trace: Sequence[str]) -> list[str]:
    """Only delivered statuses."""
    return [event.partition(":")[2] for event in trace if event.startswith("status:") and "=" not in event]


def first_difference(expected: Sequence[str], found: Sequence[str]) -> str | None:
    """Where two traces part, in words; None when they are the same."""
    for number, (one, other) in enumerate(zip(expected, found, strict=False), 1):
        if one != other:
            return f"line {number}: expected {one}, found {other}"
    if len(found) < len(expected):
        return f"line {len(found) + 1}: expected {expected[len(found)]}, found the end"
    if len(found) > len(expected):
        return f"line {len(expected) + 1}: expected the end, found {found[len(expected)]}"
    return None
