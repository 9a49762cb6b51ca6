# SPDX-License-Identifier: Apache-2.0
"""Phases, filters, live reports and timelines: pure decisions as tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_tools.server import live, rollout, schedule, targets, timeline
from update_tools.server.faults import Unprocessable

NOW = datetime(2026, 1, 3, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)

# --- phases ----------------------------------------------------------------------------------------------

PHASES = [
    # devices, phases, start -> sizes, hours until the start (None: at once)
    (10, [], None, [10], [None]),
    (10, [], NOW + HOUR, [10], [1]),
    (10, [], NOW - HOUR, [10], [None]),
    (10, [{"batch_size": 10}, {"delay_s": 3600}], None, [1, 9], [None, 1]),
    (10, [{"batch_size": 25}, {"batch_size": 25}, {}], None, [3, 3, 4], [None, None, None]),
    (10, [{"device_count": 2}, {"delay_s": 7200}], NOW + HOUR, [2, 8], [1, 3]),
    (10, [{"batch_size": 50}, {"start_ts": "2026-01-03T15:00:00Z"}], None, [5, 5], [None, 3]),
    (10, [{"batch_size": 1}, {"batch_size": 1, "delay_s": 3600}], None, [1, 9], [None, 1]),
]


@pytest.mark.parametrize(("count", "phases", "start", "sizes", "hours"), PHASES)
def test_phases(
    count: int, phases: list[Any], start: datetime | None, sizes: list[int], hours: list[int | None]
) -> None:
    devices = [str(number) for number in range(count)]
    batches = schedule.plan(devices, schedule.parse(phases), start_at=start, now=NOW)
    assert [len(batch.devices) for batch in batches] == sizes
    assert [device for batch in batches for device in batch.devices] == devices, "each once, in order"
    starts = [None if batch.start_at is None else (batch.start_at - NOW) / HOUR for batch in batches]
    assert starts == hours


@pytest.mark.parametrize(
    ("count", "phases", "named"),
    [
        (10, {}, "list"),
        (10, [3], "phase 1"),
        (10, [{"size": 3}], "size"),
        (10, [{}, {}], "phase 1 needs"),
        (10, [{"batch_size": 0}, {}], "batch_size"),
        (10, [{"batch_size": 101}], "batch_size"),
        (10, [{"batch_size": "5"}], "batch_size"),
        (10, [{"device_count": 1.5}, {}], "device_count"),
        (10, [{"device_count": 1, "batch_size": 1}, {}], "both"),
        (10, [{"delay_s": -1}], "delay_s"),
        (10, [{"start_ts": "soon"}], "start_ts"),
        (10, [{"start_ts": "2026-01-03T15:00:00Z", "delay_s": 3}], "both"),
        (10, [{"batch_size": 5}] * 21, "at most 20"),
        (2, [{"batch_size": 100}, {}], "phase 2 would have no devices"),
        (2, [{"batch_size": 50, "start_ts": "9999-12-31T00:00:00Z"}, {"delay_s": 10**7}], "9999"),
        (
            10,
            [
                {"batch_size": 10, "start_ts": "2026-01-03T15:00:00Z"},
                {"start_ts": "2026-01-03T14:00:00Z"},
            ],
            "before",
        ),
    ],
    ids=str,
)
def test_phases_that_cannot_be(count: int, phases: Any, named: str) -> None:
    with pytest.raises(Unprocessable, match=named):
        schedule.plan(["device"] * count, schedule.parse(phases), start_at=None, now=NOW)


@given(
    count=st.integers(1, 200),
    shares=st.lists(st.integers(1, 100), max_size=6),
    delays=st.lists(st.integers(0, 9999), min_size=7, max_size=7),
)
def test_every_device_has_one_phase(count: int, shares: list[int], delays: list[int]) -> None:
    devices = [str(number) for number in range(count)]
    phases = [{"batch_size": share, "delay_s": delay} for share, delay in zip(shares, delays, strict=False)]
    try:
        batches = schedule.plan(devices, schedule.parse(phases), start_at=None, now=NOW)
    except Unprocessable:
        return  # a phase would be empty
    assert [device for batch in batches for device in batch.devices] == devices
    starts = [batch.start_at or NOW for batch in batches]
    assert starts == sorted(starts)


# --- filters ---------------------------------------------------------------------------------------------

KNOWN = targets.attributes(
    identity='{"mac":"52:54:00:00:00:01"}',
    inventory=[{"name": "kernel", "value": "6.1"}, {"name": "ip", "value": ["10.0.2.15", "fe80::1"]}],
    device_type="virt64",
    artifact_name="release-1",
    group="bench",
)


@pytest.mark.parametrize(
    ("attribute", "operator", "value", "scope", "expected"),
    [
        ("kernel", "$eq", "6.1", "inventory", True),
        ("kernel", "$eq", 6.1, "inventory", True),
        ("kernel", "$eq", "6.2", "inventory", False),
        ("kernel", "$ne", "6.2", "inventory", True),
        ("kernel", "$gt", 6, "inventory", True),
        ("kernel", "$gt", "6.1", "inventory", False),
        ("kernel", "$gte", "6.1", "inventory", True),
        ("kernel", "$lt", 10, "inventory", True),
        ("kernel", "$lte", "5", "inventory", False),
        ("kernel", "$in", ["6.0", "6.1"], "inventory", True),
        ("kernel", "$nin", ["6.0", "6.1"], "inventory", False),
        ("ip", "$eq", "fe80::1", "inventory", True),
        ("ip", "$ne", "fe80::1", "inventory", False),
        ("device_type", "$eq", "virt64", "inventory", True),
        ("artifact_name", "$lt", "release-2", "inventory", True),
        ("mac", "$eq", "52:54:00:00:00:01", "identity", True),
        ("mac", "$eq", "52:54:00:00:00:01", "inventory", False),
        ("group", "$eq", "bench", "system", True),
        ("serial", "$exists", False, "inventory", True),
        ("serial", "$exists", True, "inventory", False),
        ("serial", "$gt", 1, "inventory", False),
        ("serial", "$ne", "x", "inventory", True),
    ],
)
def test_filters(attribute: str, operator: str, value: Any, scope: str, expected: bool) -> None:
    term = {"attribute": attribute, "type": operator, "value": value, "scope": scope}
    terms = targets.parse([term])
    assert targets.matches(terms, KNOWN) is expected
    assert [entry.document() for entry in terms] == [term]


def test_all_terms_count() -> None:
    terms = targets.parse([{"attribute": "kernel", "value": "6.1"}, {"attribute": "kernel", "value": "6.2"}])
    assert not targets.matches(terms, KNOWN)


@pytest.mark.parametrize(
    ("terms", "named"),
    [
        ([], "terms"),
        ("kernel", "terms"),
        ([{}], "term 1"),
        ([{"attribute": "a", "type": "$regex", "value": "x"}], "regex"),
        ([{"attribute": "a", "scope": "tags", "value": "x"}], "tags"),
        ([{"attribute": "a", "type": "$in", "value": "x"}], "list"),
        ([{"attribute": "a", "type": "$exists", "value": 1}], "exists"),
        ([{"attribute": "a", "value": None}], "value"),
        ([{"attribute": "a", "value": [{}]}], "value"),
        ([{"attribute": "\ud800", "value": "x"}], "surrogate"),
        ([{"attribute": "a", "value": ["\ud800"]}], "surrogate"),
    ],
    ids=str,
)
def test_broken_filters(terms: Any, named: str) -> None:
    with pytest.raises(Unprocessable, match=named):
        targets.parse(terms)


# --- live reports ----------------------------------------------------------------------------------------


def test_live_reports() -> None:
    told = live.parse('{"live":{"bytes":[5,10],"script":"A_Enter_00"},"scripts":[["B","exited with 0",1.5]]}')
    assert told == live.Live(True, 5, 10, "A_Enter_00", (live.ScriptEnd("B", "exited with 0", 1.5),))
    assert live.parse('{"scripts":[]}') == live.Live(False)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "a cause",
        '{"live"',
        '{"cause":"x"}',
        '{"live":{"bytes":[-1,2]}}',
        '{"live":{"bytes":[1,1e400]}}',
        '{"live":{"bytes":[1]}}',
        '{"live":{"bytes":["a","b"]}}',
        '{"live":[]}x',
        '{"scripts":[["a"]]}',
        '{"scripts":{"a":1}}',
        '{"live":[1]}',
    ],
)
def test_other_substates_stay_what_they_are(text: str | None) -> None:
    assert live.parse(text) is None


@given(st.text() | st.recursive(st.integers() | st.text() | st.none(), st.lists, max_leaves=5).map(str))
def test_no_substate_breaks_the_server(text: str) -> None:
    live.parse(text)
    live.parse('{"live":' + text + "}")


# --- stages and timelines --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reports", "stages"),
    [
        ("downloading installing rebooting installing success", [1, 2, 3, 4, 5]),
        ("downloading pause_before_installing installing pause_before_rebooting rebooting", [1, 1, 2, 2, 3]),
        ("rebooting pause_before_committing installing success", [3, 3, 4, 5]),
        ("installing pause_before_committing installing", [2, 3, 4]),
        ("installing rebooting failure", [2, 3, 3]),
        ("rebooting downloading installing", [3, 1, 2]),
    ],
)
def test_stages(reports: str, stages: list[int]) -> None:
    stage, status, seen = 0, "pending", []
    for reported in reports.split():
        stage = rollout.stage_after(stage, status, reported)
        status = reported
        seen.append(stage)
    assert seen == stages


def event(
    second: float, source: str, word: str, text: str = "", *, is_for_all: bool = False
) -> timeline.Happened:
    return timeline.Happened(NOW + timedelta(seconds=second), source, word, text, "", is_for_all)


EVENTS = [
    event(0, "operator", "created", is_for_all=True),
    event(1, "server", "handed out"),
    event(2, "device", "downloading"),
    event(12, "device", "script", "Download_Leave_00_check exited with 0 after 1.25 s"),
    event(14, "device", "installing"),
    event(20, "device", "pause_before_rebooting"),
    event(25, "operator", "continue", "ArtifactReboot_Enter", is_for_all=True),
    event(30, "device", "rebooting"),
    event(50, "device", "installing"),
    event(60, "device", "success"),
]


def test_timeline() -> None:
    lines = timeline.entries(EVENTS)
    assert [(line.kind, line.word, line.seconds) for line in lines] == [
        ("decision", "created", None),
        ("note", "handed out", None),
        ("state", "downloading", 12),
        ("script", "script", 1.25),
        ("state", "installing", 6),
        ("state", "paused before reboot", 10),
        ("decision", "continue", None),
        ("state", "rebooting", 20),
        ("state", "committing", 10),
        ("state", "success", None),
    ]


LOG = [
    {"timestamp": "2026-01-03T12:00:01.5Z", "level": "info", "message": "State script " + text}
    for text in (
        "ArtifactInstall_Enter_10_check-disk exited with 0 after 0.52 s",
        "ArtifactInstall_Enter_20_x exited with 21 after 2.00 s",
        "ArtifactInstall_Enter_20_x wants to be run again later; next attempt in 60 s",
        "ArtifactInstall_Enter_20_x was killed by signal 9 after 3.25 s",
        "ArtifactInstall_Error_00 ran into its time limit after 600.0 s and was killed",
        "/path/ArtifactInstall_Enter_20_x was killed by signal 9 (its output is in the deployment log)",
    )
]


def test_scripts_of_a_log() -> None:
    runs = timeline.from_log(LOG)
    assert [
        (run.name[-8:], run.state, run.action, run.exit_code, run.seconds, run.is_ok) for run in runs
    ] == [
        ("eck-disk", "ArtifactInstall", "Enter", 0, 0.52, True),
        ("ter_20_x", "ArtifactInstall", "Enter", 21, 2.0, True),
        ("ter_20_x", "ArtifactInstall", "Enter", None, 3.25, False),
        ("Error_00", "ArtifactInstall", "Error", None, 600.0, False),
    ]
    assert runs[0].ended_at == datetime(2026, 1, 3, 12, 0, 1, 500_000, tzinfo=UTC)


def test_a_log_counts_before_live_reports() -> None:
    assert [run.name for run in timeline.script_runs(EVENTS, None)] == ["Download_Leave_00_check"]
    names = [run.name for run in timeline.script_runs(EVENTS, LOG)]
    assert len(names) == 4
    assert "Download_Leave_00_check" not in names
    again = [
        *EVENTS,
        event(70, "server", "handed out", "attempt 2"),
        event(75, "device", "script", EVENTS[3].text),
    ]
    runs = timeline.script_runs(again, LOG, 2)
    assert [(run.attempt, run.name[:8]) for run in runs] == [(1, "Download")] + [(2, "Artifact")] * 4
