# SPDX-License-Identifier: Apache-2.0
"""A device's way through a deployment: its events in order, how long each state took, and its scripts. Pure.

Scripts come from the uploaded log, which has all of them, else from the device's live reports.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from update_agent import scripts
from update_tools.server import rollout

# The lines of agent/update_agent/scripts.py. The reference logs no ends of scripts that went well.
_ENDED = re.compile(r"State script (\S+) (exited with -?\d+|was killed by signal \d+) after ([\d.]+) s")
_TIME_UP = re.compile(r"State script (\S+) (ran into its time limit after ([\d.]+) s and was killed)")
_AGAIN = re.compile(r"State script (\S+) wants to be run again later")
_EXIT = re.compile(r"exited with (-?\d+)")


@dataclass(frozen=True)
class ScriptRun:
    """One run of a state script: when it ended, how, and after how many seconds."""

    name: str
    state: str
    action: str
    result: str
    exit_code: int | None
    seconds: float
    ended_at: datetime | None
    attempt: int = 1

    @property
    def is_ok(self) -> bool:
        """It did its work, or wants to be asked again (21)."""
        return self.exit_code in (0, scripts.RETRY_LATER)


@dataclass(frozen=True)
class Entry:
    """One line of a timeline. `kind`: state, script, decision (a person), rule (the server), note.

    `seconds`: how long the state lasted (None: still does, or not a state) or the script ran.
    """

    at: datetime
    kind: str
    word: str
    text: str
    actor: str = ""
    seconds: float | None = None
    attempt: int = 1


@dataclass(frozen=True)
class Happened:
    """An event as the database has it."""

    at: datetime
    source: str
    word: str
    text: str
    actor: str
    is_for_all: bool


def entries(events: Iterable[Happened]) -> list[Entry]:
    """The timeline of one device: its own events and those of the whole deployment, oldest first."""
    lines: list[Entry] = []
    last_state: int | None = None
    stage, status, attempt = 0, "pending", 1
    for event in events:
        is_state = event.source == "device" and event.word in rollout.STATUSES and not event.is_for_all
        word = event.word
        if word == "handed out" and event.text.startswith("attempt "):
            attempt = int(event.text.split()[1])
        if is_state:
            stage = rollout.stage_after(stage, status, word)
            status = word
            word = rollout.label(word, stage)
        if last_state is not None and (is_state or event.word in ("aborted", "abort")):
            begun = lines[last_state]
            lines[last_state] = replace(begun, seconds=(event.at - begun.at).total_seconds())
            last_state = None
        kind = "state" if is_state else _kind(event)
        seconds = None
        run = _run(event.text, event.at) if event.word == "script" else None
        if run is not None:
            seconds = run.seconds
        lines.append(Entry(event.at, kind, word, event.text, event.actor, seconds, attempt))
        if is_state and status not in rollout.FINISHED:
            last_state = len(lines) - 1
    return lines


def script_runs(
    events: Iterable[Happened], messages: Sequence[Mapping[str, Any]] | None, log_attempt: int = 1
) -> list[ScriptRun]:
    """The scripts that ran, in order. For the attempt that has a log, the log is what counts."""
    runs: list[ScriptRun] = []
    attempt = 1
    for event in events:
        if event.word == "handed out" and event.text.startswith("attempt "):
            attempt = int(event.text.split()[1])
        run = _run(event.text, event.at) if event.word == "script" else None
        if run is not None and (messages is None or attempt != log_attempt):
            runs.append(replace(run, attempt=attempt))
    logged = [replace(run, attempt=log_attempt) for run in from_log(messages or ())]
    return sorted([*runs, *logged], key=lambda run: run.attempt)


def from_log(messages: Iterable[Mapping[str, Any]]) -> list[ScriptRun]:
    """The runs of state scripts that a deployment log tells of, in its order."""
    runs = []
    for message in messages:
        text = str(message.get("message", ""))
        if "State script" not in text:
            continue
        run = _run(text, _time(message.get("timestamp")))
        if run is not None:
            runs.append(run)
    return runs


def _run(text: str, at: datetime | None) -> ScriptRun | None:
    if not text.startswith("State script "):
        text = f"State script {text}"
    found = _ENDED.search(text) or _TIME_UP.search(text)
    if found is None:
        return None
    name, result, seconds = found.groups()
    state, action = scripts.parse_name(name) or ("", "")
    code = _EXIT.match(result)
    return ScriptRun(name, state, action, result, int(code[1]) if code else None, float(seconds), at)


def _kind(event: Happened) -> str:
    if event.source == "operator":
        return "decision"
    if event.word == "script":
        return "script"
    return "rule" if event.source == "server" and event.is_for_all else "note"


def _time(text: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
