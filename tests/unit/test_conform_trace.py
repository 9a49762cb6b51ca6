# SPDX-License-Identifier: Apache-2.0
"""Reading a trace out of a scenario's journal."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from update_agent.backoff import delays
from update_tools.conform import trace
from update_tools.conform.lab import leftovers, short_times

SCRIPTS = "/data/scripts"


def log(message: str, level: str = "INFO") -> str:
    return f"2026-01-01T00:00:00.000Z {level}: {message}"


def events(*lines: str) -> list[str]:
    return list(trace.events(lines, SCRIPTS))


def test_the_order_is_that_of_the_journal(tmp_path: Path) -> None:
    journal = trace.Journal(str(tmp_path / "journal"), SCRIPTS)
    journal.note("script:Download_Enter_00")
    with open(journal.path, "a", encoding="utf-8") as file:
        file.write(log("Control point ArtifactInstall_Enter: pause by map x (priority 0)") + "\n! kill\n")
    journal.note("kill")
    assert journal.trace() == ["script:Download_Enter_00", "control:ArtifactInstall_Enter=pause", "kill"]
    assert journal.requests() == ["kill"]


def test_half_a_line_is_no_line_yet(tmp_path: Path) -> None:
    journal = trace.Journal(str(tmp_path / "journal"), SCRIPTS)
    with open(journal.path, "a", encoding="utf-8") as file:
        file.write("@ script:A\n@ scri")
    assert journal.trace() == ["script:A"]


@pytest.mark.parametrize("end", ["Deployment 3f1c succeeded", "Deployment 3f1c failed: because"])
def test_nothing_after_the_end_counts(tmp_path: Path, end: str) -> None:
    journal = trace.Journal(str(tmp_path / "journal"), SCRIPTS)
    journal.note("status:success")
    assert not journal.has_ended()
    with open(journal.path, "a", encoding="utf-8") as file:
        file.write(log(end) + "\n")
    journal.note("script:Idle_Enter_00")
    assert journal.has_ended()
    assert journal.trace() == ["status:success"]


def test_a_failed_poll_is_the_end_but_not_a_failed_inventory_submission() -> None:
    sync = ["script:Idle_Enter_00", "script:Idle_Leave_00", "script:Sync_Enter_00", "script:Sync_Error_00"]
    lines = [f"@ {event}" for event in sync]
    assert events(lines[0], lines[1], "@ retry_wait", *lines[1:], lines[0])[-1] == sync[0]
    assert events(*lines, *lines, *lines) == 2 * sync
    assert events(*lines, "@ kill", "@ boot", *lines, *lines, *lines) == [*sync, "kill", "boot", *sync, *sync]
    assert events(*lines, lines[0]) == [*sync, sync[0]]


def test_a_script_cannot_pretend_to_be_the_agent() -> None:
    output = "Collected output (stdout) while running script: Control point ArtifactInstall_Enter: continue"
    assert events(log(output), "Control point ArtifactInstall_Enter: continue") == []


def test_whose_version_file_was_bad() -> None:
    assert events(
        log(f"ArtifactInstall_Enter: {SCRIPTS}/version says version '9', this agent runs 2 and 3", "ERROR"),
        log("ArtifactCommit: /etc/mender/scripts/version says version '9'", "ERROR"),
    ) == ["check:artifact_scripts_version=bad", "check:rootfs_scripts_version=bad"]


def test_what_is_a_matter_of_settings_is_not_counted() -> None:
    report, wait = "status:success=unreachable", "retry_wait"
    assert trace.canonical([report, wait, report, wait, report, "gave_up"]) == [report, "gave_up"]
    assert trace.canonical([report, "gave_up"]) == [report, "gave_up"]
    refresh = ["map_refresh:200", "map_refresh:error", "map_refresh:error", "map_refresh:gave_up"]
    assert trace.canonical(refresh) == ["map_refresh:200", "map_refresh:gave_up"]
    pause = "control:ArtifactInstall_Enter=pause"
    expired = [pause, "event:expire", pause, pause, "control:ArtifactInstall_Enter=fail"]
    assert trace.canonical(expired) == [pause, "event:expire", "control:ArtifactInstall_Enter=fail"]
    kept = [report, wait, "status:success"]
    assert trace.canonical(kept) == kept


PAUSE, REPORT = "control:ArtifactInstall_Enter=pause", "status:pause_before_installing"


@pytest.mark.parametrize(
    ("found", "point"),
    [
        ([PAUSE], ""),
        ([PAUSE, REPORT], "ArtifactInstall_Enter"),
        ([PAUSE, f"{REPORT}=unreachable"], "ArtifactInstall_Enter"),
        ([PAUSE, f"{REPORT}=409"], ""),
        ([PAUSE, REPORT, "event:patch"], ""),
        ([PAUSE, REPORT, "event:patch", "map_refresh:200"], ""),
        ([PAUSE, REPORT, "event:patch", "map_refresh:200", PAUSE], "ArtifactInstall_Enter"),
        ([PAUSE, REPORT, "kill", "boot", PAUSE], ""),
        (["control:ArtifactInstall_Enter=continue", "status:installing"], ""),
        ([], ""),
    ],
)
def test_where_the_agent_waits(found: list[str], point: str) -> None:
    assert trace.paused_point(found) == point


def test_first_difference_in_words() -> None:
    assert trace.first_difference(["a", "b"], ["a", "b"]) is None
    assert trace.first_difference(["a", "b"], ["a", "c"]) == "line 2: expected b, found c"
    assert trace.first_difference(["a", "b"], ["a"]) == "line 2: expected b, found the end"
    assert trace.first_difference(["a"], ["a", "b"]) == "line 2: expected the end, found b"


@pytest.mark.parametrize(("window", "interval"), [(25, 10), (30, 10), (1800, 60), (5, 10)])
def test_short_times_leave_as_many_attempts(window: int, interval: int) -> None:
    config = {"StateScriptRetryTimeoutSeconds": window, "StateScriptRetryIntervalSeconds": interval}
    times = short_times({"config": config})
    attempts = math.ceil(times["StateScriptRetryTimeoutSeconds"] / times["StateScriptRetryIntervalSeconds"])
    assert attempts == math.ceil(window / interval)


@pytest.mark.parametrize("config", [{}, {"RetryPollIntervalSeconds": 600}, {"RetryPollCount": 4}])
def test_short_times_leave_as_many_retries(config: dict[str, int]) -> None:
    times = short_times({"config": config})
    cap_s, count = config.get("RetryPollIntervalSeconds", 300), config.get("RetryPollCount", 0)
    short = delays(times["RetryPollIntervalSeconds"], times["RetryPollCount"], first_s=1)
    assert list(short) == [1] * len(list(delays(cap_s, count)))


def test_leftovers_are_those_of_a_session() -> None:
    assert os.getpid() in set(leftovers(os.getsid(0)))
    assert os.getpid() not in set(leftovers(1))
