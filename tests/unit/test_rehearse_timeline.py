# SPDX-License-Identifier: Apache-2.0
"""The picture of an update in the report of a rehearsal: bars, their names, and where these stand."""

from __future__ import annotations

from update_tools.rehearse.html import Timeline
from update_tools.rehearse.record import Update


def update_of(runs: list[tuple[str, float, float, int]]) -> Update:
    """An update of runs of ArtifactInstall_Enter: name, begin, end, exit code."""
    events: list[dict[str, object]] = [{"event": "step", "step": "install.enter", "at": 0.0}]
    for name, begin, end, code in runs:
        common = {"kind": "script", "name": name}
        events.append({"event": "start", "at": begin, "step": "install.enter", "point": "", **common})
        ended = {"code": code, "signal": None, "timed_out": False, "no_route": 0, "seconds": end - begin}
        events.append({"event": "end", "at": end, **ended, **common})
    events.append({"event": "ended", "at": 10.0, "verdict": "succeeded"})
    empty = {"points": [], "before": {}, "after": {}}
    return Update({"events": events, "stuck": "", "log": "", "slot": "3", **empty})


def test_runs_that_wait_are_one_bar() -> None:
    runs = [("a", float(second), second + 0.1, 21) for second in range(1, 5)]
    line = Timeline(update_of([*runs, ("a", 6.0, 6.1, 0), ("b", 7.0, 7.1, 21)]), 1, is_disturbed=False)
    assert [bar["label"] for bar in line.bars] == ["a: 21, 4 times", "a: 0", "b: 21"]
    assert [row["times"] for row in line.rows] == [4, 1, 1]
    assert line.bars[0]["x"] + line.bars[0]["width"] < line.bars[1]["x"]


def test_names_stay_in_the_picture() -> None:
    """On the side with more room, and shortened if that is not enough; how it ended is always seen."""
    name = "ArtifactInstall_Enter_10_" + "long" * 30
    for begin in range(1, 10):
        (bar,) = Timeline(update_of([(name, begin, begin + 0.5, 3)]), 1, is_disturbed=False).bars
        reach = 7 * len(bar["label"]) * (-1 if bar["anchor"] == "end" else 1)
        assert min(bar["label_x"], bar["label_x"] + reach) >= 0
        assert max(bar["label_x"], bar["label_x"] + reach) <= 1000
        assert bar["label"].startswith("ArtifactInstall_Enter_10_")
        assert bar["label"].endswith(": 3")
        assert bar["whole"] == f"{name}: 3"


def test_a_run_that_takes_all_the_time_has_its_name_on_its_bar() -> None:
    (bar,) = Timeline(update_of([("self-test", 0.0, 9.99, 0)]), 1, is_disturbed=False).bars
    assert (bar["label"], bar["inside"], bar["anchor"]) == ("self-test: 0", True, "start")
    assert bar["x"] < bar["label_x"] < bar["label_x"] + 7 * len(bar["label"]) < bar["x"] + bar["width"]
