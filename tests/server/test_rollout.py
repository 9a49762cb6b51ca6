# SPDX-License-Identifier: Apache-2.0
"""The decisions as tables; no server."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent import control, states
from update_agent.errors import ControlError
from update_tools.server import rollout
from update_tools.server.faults import Unprocessable

ID = "6a5b2f9e-0c0d-4a53-9c53-2f3a7a1c9d11"
PAUSE_ALL = {"states": {point.name: {"action": "pause"} for point in rollout.POINTS}}

REPORTS = [
    # current, started, substate, reported, its substate -> answer, kept substate
    ("pending", True, "", "downloading", None, "store", ""),
    ("pending", False, "", "downloading", None, "unknown", ""),
    ("downloading", True, "", "downloading", None, "known", ""),
    ("downloading", True, "", "downloading", "40 %", "store", "40 %"),
    ("downloading", True, "40 %", "installing", None, "store", ""),
    ("rebooting", True, "", "downloading", None, "store", ""),
    ("installing", True, "script", "failure", None, "store", "script"),
    ("installing", True, "script", "failure", "", "store", "script"),
    ("installing", True, "script", "failure", "the cause", "store", "the cause"),
    ("installing", True, "", "success", None, "store", ""),
    ("success", True, "", "success", None, "known", ""),
    ("failure", True, "the cause", "failure", None, "known", "the cause"),
    ("failure", True, "the cause", "success", None, "conflict", ""),
    ("success", True, "", "failure", None, "conflict", ""),
    ("already-installed", False, "", "success", None, "conflict", ""),
    ("aborted", True, "", "success", None, "conflict", ""),
    ("aborted", False, "", "downloading", None, "conflict", ""),
    ("decommissioned", True, "", "downloading", None, "conflict", ""),
]


@pytest.mark.parametrize(("current", "started", "substate", "reported", "said", "answer", "kept"), REPORTS)
def test_reports(
    current: str, started: bool, substate: str, reported: str, said: str | None, answer: str, kept: str
) -> None:
    verdict = rollout.judge_report(
        current=current, is_started=started, substate=substate, reported=reported, reported_substate=said
    )
    assert verdict.answer == answer
    if answer in ("store", "known"):
        assert verdict.substate == kept
    else:
        assert verdict.reason


@given(
    current=st.sampled_from(rollout.STATUSES),
    reported=st.sampled_from(rollout.REPORTABLE),
    started=st.booleans(),
)
def test_nothing_leaves_a_final_status(current: str, reported: str, started: bool) -> None:
    verdict = rollout.judge_report(
        current=current, is_started=started, substate="", reported=reported, reported_substate=None
    )
    if current in rollout.FINISHED:
        assert verdict.answer != "store"


@pytest.mark.parametrize(
    ("installed", "force", "control_map", "understands", "has_artifact", "answer"),
    [
        ("old", False, None, True, True, "hand-out"),
        ("new", False, None, True, True, "already-installed"),
        ("new", True, None, True, True, "hand-out"),
        ("old", False, None, True, False, "noartifact"),
        ("old", False, PAUSE_ALL, True, True, "hand-out"),
        ("old", False, PAUSE_ALL, False, True, "hold"),
        ("old", False, rollout.OPEN_MAP, False, True, "hand-out"),
        ("old", False, {"states": {"ArtifactReboot_Enter": {"action": "fail"}}}, False, True, "hold"),
    ],
)
def test_polls(
    installed: str,
    force: bool,
    control_map: dict[str, Any] | None,
    understands: bool,
    has_artifact: bool,
    answer: str,
) -> None:
    got = rollout.judge_poll(
        artifact_name="new",
        force_installation=force,
        control_map=control_map,
        installed=installed,
        understands_maps=understands,
        has_artifact=has_artifact,
    )
    assert got == answer


def test_the_newest_artifact_for_the_type() -> None:
    artifacts = [("1", ["a"]), ("2", ["a", "b"]), ("3", ["c"])]
    assert rollout.choose_artifact(artifacts, "a") == "2"
    assert rollout.choose_artifact(artifacts, "c") == "3"
    assert rollout.choose_artifact(artifacts, "d") is None


def test_points_are_the_agents() -> None:
    assert tuple(point.name for point in rollout.POINTS) == states.WIRE_POINTS
    assert rollout.BY_STATUS["pause_before_committing"].label == "paused before commit"


@pytest.mark.parametrize("point", rollout.POINTS, ids=lambda point: point.phase)
@pytest.mark.parametrize("action", ["continue", "fail"])
def test_a_button_changes_its_point_only(point: rollout.Point, action: str) -> None:
    before = {"priority": 2, **PAUSE_ALL}
    after = rollout.with_action(before, point.name, action)
    assert after["priority"] == 2
    assert after["states"] == {**PAUSE_ALL["states"], point.name: {"action": action}}
    assert before["states"][point.name] == {"action": "pause"}, "the old map is not touched"
    parsed = control.parse_value(rollout.hand_out_map(after, ID))
    pool = control.Pool(3600)
    pool.set_server(parsed, ID, 0)
    assert pool.evaluate(point.name, 1).action == action, "the agent reads it so"


def test_ticked_pauses() -> None:
    assert rollout.pause_map(["ArtifactReboot_Enter", "nonsense"]) == {
        "states": {"ArtifactReboot_Enter": {"action": "pause"}}
    }
    assert rollout.pause_map([]) == rollout.OPEN_MAP
    assert rollout.pending_points(rollout.OPEN_MAP) == []


WORDS = st.sampled_from(["continue", "force_continue", "pause", "fail", "stop", "", None])
KEYS = st.sampled_from(["action", "Action", "on_map_expire", "on_action_executed", "wait"])
POINT_NAMES = st.sampled_from([*states.WIRE_POINTS, "Download_Enter", "artifactreboot_enter"])
MAPS = st.dictionaries(
    st.sampled_from(["states", "States", "priority", "Priority", "other"]),
    st.one_of(
        st.none(),
        st.integers(-12, 12),
        st.dictionaries(
            POINT_NAMES, st.one_of(st.none(), st.dictionaries(KEYS, WORDS, max_size=3)), max_size=3
        ),
    ),
    max_size=2,
)


@given(MAPS)
def test_whatever_is_accepted_is_what_the_agent_would_do(value: dict[str, Any]) -> None:
    try:
        expected = control.parse_value({"id": ID, **value}).document()
    except ControlError:
        with pytest.raises(Unprocessable):
            rollout.check_map(value, ID)
        return
    kept = rollout.check_map(value, ID)
    assert control.parse_value(rollout.hand_out_map(kept, ID)).document() == expected
    assert set(kept) <= {"priority", "states"}


def test_sums() -> None:
    assert rollout.overall(["pending", "pending"]) == "pending"
    assert rollout.overall(["pending", "success"]) == "inprogress"
    assert rollout.overall(["success", "failure", "aborted"]) == "finished"
    counts = rollout.statistics(["success", "success", "pause_before_rebooting"])
    assert counts["success"] == 2
    assert set(counts) == set(rollout.STATUSES)
    waiting = rollout.waiting_points(["pause_before_committing", "success", "pause_before_installing"])
    assert [point.phase for point in waiting] == ["Install", "Commit"]
