# SPDX-License-Identifier: Apache-2.0
"""scripts/bench measures all that it names: one round of everything on a tiny image. No time is asserted."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.bench.report import Report, Row
from tests.bench.targets import TARGETS

ROOT = Path(__file__).parents[2]


def is_possible() -> bool:
    """Root that may have namespaces and loop devices: not every container's may."""
    probe = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "losetup", "--find"]
    return os.geteuid() == 0 and subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not is_possible(), reason="needs root with namespaces and loop devices")
def test_one_round_of_everything(tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    options = ["--quick", "--size", "4", "--rounds", "1", "--no-peers", "--json", numbers]
    env = {**os.environ, "META_UPDATE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [ROOT / "scripts/bench", *options], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(numbers.read_text())
    assert not [note for note in document["notes"] if "failed" in note]
    measured = {(row["part"], row["case"], row["metric"]) for row in document["rows"] if row["numbers"]}
    wanted = {
        (part, case, metric)
        for part, cases in TARGETS.items()
        for case, metrics in cases.items()
        for metric in metrics
    }
    assert wanted - measured == set()
    assert all(number >= 0 for row in document["rows"] for number in row["numbers"].get("limit", [0]))


def test_musts_are_compared_with_the_median() -> None:
    report = Report()
    row = Row("machine", "show-artifact", "wall", "ms")
    for number in (20, 36, 34):
        report.add(row, "update-agent", number)
    assert report.missed() == []
    report.add(row, "update-agent", 40)
    report.add(row, "update-agent", 40)
    assert report.missed() == ["show-artifact wall"]


def test_unknown_part_is_refused() -> None:
    done = subprocess.run(
        [ROOT / "scripts/bench", "--only", "idle,nothing"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "nothing: known are size, machine, idle, desk, install" in done.stderr
