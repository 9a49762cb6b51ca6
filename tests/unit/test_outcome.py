# SPDX-License-Identifier: Apache-2.0
"""What an update counts as, by what happened in it."""

from __future__ import annotations

import pytest

from update_agent.outcome import Outcome
from update_agent.states import DAEMON_STEPS, FAILED, OK, ROLLED_BACK, resume_after


def after(*events: tuple[str, str], value: str = OK) -> Outcome:
    outcome = Outcome(value)
    for name, event in events:
        outcome.add(DAEMON_STEPS[name], event)
    return outcome


def told(outcome: Outcome) -> tuple[bool, bool, bool]:
    return outcome.failed, outcome.undone, outcome.broken


def test_nothing_wrong_is_a_success() -> None:
    assert told(after(("download", "ok"), ("install", "ok"), ("commit.leave", "ok"))) == (False, False, False)


def test_a_failure_without_rollback_leaves_the_device_broken() -> None:
    assert told(after(("install", "fail"), ("rollback.check", "No"))) == (True, False, True)


def test_a_failure_with_rollback_is_undone() -> None:
    outcome = after(("install", "fail"), ("rollback.check", "Yes"), ("rollback", "ok"), ("failure", "ok"))
    assert told(outcome) == (True, True, False)


@pytest.mark.parametrize("step", ["rollback.enter", "rollback", "rollback.leave", "failure.enter", "failure"])
def test_a_failure_during_rollback_breaks_it(step: str) -> None:
    assert told(after(("install", "fail"), ("rollback.check", "Yes"), (step, "fail"))) == (True, False, True)


def test_a_failed_download_needs_no_rollback() -> None:
    assert told(after(("download", "fail"), ("rollback.not_needed", "ok"))) == (True, True, False)


def test_an_abort_counts_as_a_failure() -> None:
    assert told(after(("status.installing", "aborted"))) == (True, False, True)


@pytest.mark.parametrize("step", ["rollback_reboot", "rollback_reboot.verify"])
def test_a_reboot_that_is_tried_again_does_not_count(step: str) -> None:
    outcome = after(("install", "fail"), ("rollback.check", "Yes"), (step, "fail"))
    assert told(outcome) == (True, True, False)


@pytest.mark.parametrize("value", [OK, FAILED, ROLLED_BACK])
def test_a_loop_is_never_undone(value: str) -> None:
    assert told(after(("cleanup", "loop"), value=value)) == (True, False, True)


@pytest.mark.parametrize(
    ("name", "flag", "expected"),
    [
        ("update-store", False, (True, True, False)),
        ("reboot", False, (False, False, False)),
        ("update-install", False, (True, False, True)),
        ("update-after-commit", False, (False, False, False)),
        ("rollback", False, (True, True, False)),
        ("cleanup", False, (True, False, True)),
        ("cleanup", True, (True, True, False)),
        ("update-error", True, (True, True, False)),
        ("no such name", True, (True, False, True)),
    ],
)
def test_after_a_restart(name: str, flag: bool, expected: tuple[bool, bool, bool]) -> None:
    assert told(Outcome.after_restart(resume_after(name), all_rollbacks_successful=flag)) == expected
