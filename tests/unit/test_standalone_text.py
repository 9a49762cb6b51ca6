# SPDX-License-Identifier: Apache-2.0
"""What a command tells a person, by what happened in it."""

from __future__ import annotations

import io

import pytest

from update_agent import standalone
from update_agent.standalone import result_text

AUTO = "Update Module doesn't support rollback. Committing immediately."
WAITS = ["Installed, but not committed.", "Use 'commit' to update, or 'rollback' to roll back the update."]
REBOOT = "At least one payload requested a reboot of the device it updated."
BROKEN = "Update Module does not support rollback. System may be in an inconsistent state."


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        ("Downloaded Installed", WAITS),
        ("Downloaded Installed RebootRequired", [*WAITS, REBOOT]),
        ("Downloaded Installed AutoCommitWanted Committed Cleaned", [AUTO, "Installed and committed."]),
        ("Committed Cleaned", ["Committed."]),
        ("Downloaded", ["Streamed to storage, but not installed/enabled."]),
        ("Cleaned", ["Cleaned up."]),
        ("", []),
        ("NoUpdateInProgress", ["No update in progress."]),
        ("Failed NoRollbackNecessary", ["System not modified."]),
        ("Failed NoRollback", [BROKEN]),
        ("DownloadFailed Failed NoRollbackNecessary Cleaned", ["Streaming failed.", "System not modified."]),
        ("Downloaded InstallFailed Failed RolledBack Cleaned", ["Installation failed.", "Rolled back."]),
        ("Downloaded InstallFailed Failed NoRollback Cleaned", ["Installation failed.", BROKEN]),
        (
            "Downloaded InstallFailed Failed RolledBack RollbackFailed Cleaned",
            ["Installation failed.", "Rollback failed. System may be in an inconsistent state."],
        ),
        ("CommitFailed Failed RolledBack Cleaned", ["Committing failed.", "Rolled back."]),
        ("RolledBack Cleaned", ["Rolled back."]),
        # After the commit there is no way back, but there may be something to look at.
        (
            "Committed CommitFailed Failed FailedInPostCommit Cleaned",
            ["Committed.", "One or more post-commit steps failed."],
        ),
        ("Committed Failed CleanupFailed", ["Committed.", "Cleanup failed."]),
        (
            "Downloaded InstallFailed Failed RolledBack CleanupFailed",
            ["Installation failed.", "Rolled back. Cleanup failed."],
        ),
        ("Failed RolledBack CleanupFailed", ["Rolled back. Cleanup failed."]),
    ],
)
def test_lines(flags: str, lines: list[str]) -> None:
    assert result_text(set(flags.split())) == lines


def test_progress_is_a_line_for_each_tenth_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    progress = standalone.ProgressBar()
    for done in range(0, 1001, 7):
        progress(done, 1000)
    progress(1000, 1000)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert (lines[0], lines[-1]) == ("0 %", "100 %")


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    progress = standalone.ProgressBar()
    for done in (0, 500_000, 500_001, 1_000_000):
        progress(done, 1_000_000)
    drawn = terminal.getvalue().split("\r")[1:]
    assert drawn[1] == "[" + "#" * 25 + " " * 25 + "]  50 % of 1.0 MB"
    assert drawn[-1].endswith("100 % of 1.0 MB\n")
    assert len(drawn) == 3


def test_without_a_size_there_is_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    standalone.ProgressBar()(5, None)
    assert capsys.readouterr().out == ""
