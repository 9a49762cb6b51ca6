# SPDX-License-Identifier: Apache-2.0
"""The table is complete in itself, and is the specification's, edge by edge."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from update_agent import states
from update_agent.daemon import Daemon
from update_agent.outcome import Outcome
from update_agent.standalone import Standalone
from update_agent.states import (
    DAEMON,
    DAEMON_STEPS,
    EXIT,
    IN_STATE,
    SAVED,
    STANDALONE,
    STANDALONE_STEPS,
    Step,
)

SPECIFICATION = Path(__file__).parents[3] / "shared" / "spec" / "state-machine.json"
FLOWS = {"daemon": DAEMON_STEPS, "standalone": STANDALONE_STEPS}
ALL = [*(pytest.param(step, id=f"daemon:{step.name}") for step in DAEMON)]
ALL += [pytest.param(step, id=f"standalone:{step.name}") for step in STANDALONE]


def flow_of(step: Step) -> dict[str, Step]:
    return DAEMON_STEPS if DAEMON_STEPS.get(step.name) is step else STANDALONE_STEPS


@pytest.mark.parametrize("step", ALL)
def test_every_edge_leads_to_a_step(step: Step) -> None:
    flow = flow_of(step)
    for event, target in step.edges.items():
        if target == "":
            assert event in {"ok", "fail"}, f"{step.name} may end in {event}, but leads nowhere then"
            assert step.work.kind in {"wait", "control", "query"}
        else:
            assert target in flow or (target == EXIT and flow is STANDALONE_STEPS), f"{step.name}: {target}"


@pytest.mark.parametrize("step", ALL)
def test_every_step_has_somebody_to_do_its_work(step: Step) -> None:
    machine = Daemon if flow_of(step) is DAEMON_STEPS else Standalone
    kind = step.work.kind
    assert callable(getattr(machine, f"do_{step.work.subject}" if kind == "do" else f"on_{kind}"))


@pytest.mark.parametrize("step", ALL)
def test_hooks_are_those_that_their_state_runs(step: Step) -> None:
    if step.work.kind != "hook":
        return
    letter = {"Enter": "E", "Leave": "L", "Error": "!"}[step.work.action]
    assert letter in states.STATE_BY_NAME[step.work.state].hooks


def test_every_hook_of_a_state_has_a_step() -> None:
    hooks = {step.work.subject for step in (*DAEMON, *STANDALONE) if step.work.kind == "hook"}
    letters = {"E": "Enter", "L": "Leave", "!": "Error"}
    for state in states.STATES:
        assert {f"{state.name}_{letters[letter]}" for letter in state.hooks} <= hooks


def test_names_are_unique() -> None:
    assert len(DAEMON_STEPS) == len(DAEMON)
    assert len(STANDALONE_STEPS) == len(STANDALONE)


@pytest.mark.parametrize(
    ("flow", "starts"), [("daemon", ["idle.enter", "loop"]), ("standalone", ["prepare"])]
)
def test_every_step_is_reached(flow: str, starts: list[str]) -> None:
    steps, reached = FLOWS[flow], set(starts)
    while (
        more := {target for name in reached for target in steps[name].edges.values()} & set(steps) - reached
    ):
        reached |= more
    assert reached == set(steps)


def test_every_saved_name_resumes_at_a_step() -> None:
    for step in DAEMON:
        for name in (step.save, step.save_mid, step.pause_save):
            saved = states.resume_after(name)
            assert saved.resume in DAEMON_STEPS
            assert Outcome.after_restart(saved, all_rollbacks_successful=False).value in states.TRACKING
    assert {saved.name for saved in SAVED} >= {step.pause_save for step in DAEMON if step.pause_save}


def test_a_name_nobody_knows_is_an_update_that_failed() -> None:
    for name in ("update-install", "update-commit", "after-reboot", "written-by-a-newer-agent", ""):
        saved = states.resume_after(name)
        assert (saved.resume, saved.considered) == ("rollback.check", states.FAILED)


def test_every_in_state_resumes_at_a_step() -> None:
    saved = {step.work.subject for step in STANDALONE if step.work.kind == "save"}
    assert set(IN_STATE) == saved
    assert set(IN_STATE.values()) <= set(STANDALONE_STEPS)
    assert {*states.COMMIT_FROM, *states.ROLLBACK_NOT_FROM} < saved


@pytest.mark.parametrize("name", sorted(DAEMON_STEPS.keys() & STANDALONE_STEPS.keys()))
def test_steps_of_the_same_name_do_the_same_work(name: str) -> None:
    daemon, standalone = DAEMON_STEPS[name].work, STANDALONE_STEPS[name].work
    assert (daemon.kind, daemon.subject) == (standalone.kind, standalone.subject)


def test_every_pause_point_is_on_the_way_and_before_the_scripts_that_it_is_named_after() -> None:
    steps = [step for step in DAEMON if step.work.kind == "control"]
    assert tuple(step.work.subject for step in steps) == states.POINTS
    for step in steps:
        assert step.pause_save
        assert {"go", "fail"} <= step.edges.keys()
        target = DAEMON_STEPS[step.edges["go"]]
        while target.work.kind != "hook":
            target = DAEMON_STEPS[target.edges["ok"]]
        assert target.work.subject == step.work.subject


def test_the_points_are_all_before_the_commit() -> None:
    words = "Download_Enter Download_Leave ArtifactInstall_Enter ArtifactInstall_Leave "
    words += "ArtifactReboot_Enter ArtifactReboot_Leave ArtifactCommit_Enter"
    assert tuple(words.split()) == states.POINTS
    assert states.WIRE_POINTS == ("ArtifactInstall_Enter", "ArtifactReboot_Enter", "ArtifactCommit_Enter")


def test_a_pause_is_reported_in_the_reference_s_words() -> None:
    words = {"downloading", "installing", "rebooting"}
    for step in DAEMON:
        if step.work.kind == "control":
            is_known = step.work.subject in states.WIRE_POINTS
            assert step.pause_report.startswith("pause_before_") == is_known
            assert is_known or step.pause_report in words


def test_what_runs_after_a_pause_is_saved_as_if_there_had_been_none() -> None:
    """A power cut then does what it does without a pause."""
    name = ""
    for step in DAEMON:
        if step.work.kind == "control" and step.work.action == "Leave":
            assert step.save_mid == name, step.name
        name = step.save or step.save_mid or name


def test_a_loop_is_broken_wherever_it_is_noticed() -> None:
    for step in DAEMON:
        assert states.next_step(step, "loop") == "loop"


# Against the specification's table

Json = dict[str, Any]
EVENTS = {
    "success": "ok",
    "failure": "fail",
    "continue": "go",
    "deployment_poll": "deployment",
    "inventory_poll": "inventory",
    "needs_interaction": "decide",
    "empty_payload": "nothing",
}
# What our table calls by another kind: work that is more than one call is a function.
KINDS = {"script": "hook", "status": "report", "internal": "do", "prepare": "do", "query2": "do"}
OURS = {"booted", "waited"}  # events that only we have: a pause that survives a restart


def is_ours(name: str) -> bool:
    """A step that only we have: a local pause point, and what it needs."""
    work = DAEMON_STEPS[name].work if name in DAEMON_STEPS else None
    return name == "download.renew" or (
        work is not None and work.kind == "control" and work.subject not in states.WIRE_POINTS
    )


def past_ours(target: str) -> str:
    """Where an edge leads when nobody pauses at a local point."""
    return past_ours(DAEMON_STEPS[target].edges["go"]) if is_ours(target) else target


@pytest.fixture(scope="module")
def specification() -> Json:
    if not SPECIFICATION.exists() and os.environ.get("CI") != "true":
        pytest.skip("the specification is not beside this repository")
    document: Json = json.loads(SPECIFICATION.read_text())
    return document


def edges_of(flow: str, name: str, row: Json) -> dict[str, str]:
    edges = {EVENTS.get(event, event): target for event, target in row["on"].items() if event != "loop"}
    if "stop_before" in row:
        edges["stop"] = EXIT
    if FLOWS[flow][name].work.kind == "report" or "fail" not in edges:
        edges.setdefault("fail", edges.get("ok", ""))  # what cannot fail, or whose failure is ignored
    return edges


@pytest.mark.parametrize("flow", FLOWS)
def test_edges_are_the_specification_s(specification: Json, flow: str) -> None:
    rows = specification[flow]["steps"]
    # Ours has the end of a standalone update as a step of its own; the specification's Cleanup includes it.
    assert set(rows) == {name for name in FLOWS[flow] if name != "end" and not is_ours(name)}
    for name, row in rows.items():
        ours = {
            event: EXIT if target == "end" else past_ours(target)
            for event, target in FLOWS[flow][name].edges.items()
            if event not in OURS and (target or event == "fail")
        }
        assert ours == edges_of(flow, name, row), name


@pytest.mark.parametrize("flow", FLOWS)
def test_work_is_the_specification_s(specification: Json, flow: str) -> None:
    for name, row in specification[flow]["steps"].items():
        step = FLOWS[flow][name]
        kind = KINDS.get(row["kind"], row["kind"])
        subjects = {
            "hook": f"{row.get('state')}_{row.get('action')}",
            "report": row.get("status", "").replace("success|failure", "final"),
            "control": row.get("point"),
            "request": row.get("request", "").replace("deployments/next", "deployment"),
            "save": row.get("in_state"),
        }
        if step.work.kind == "do":
            assert kind in {"do", "query"}, name
            continue
        assert step.work.kind == kind, name
        assert step.work.subject == subjects.get(kind, row.get("call", "")), name


def test_saves_and_failures_are_the_specification_s(specification: Json) -> None:
    for name, row in specification["daemon"]["steps"].items():
        step = DAEMON_STEPS[name]
        assert (step.save, step.save_mid) == (row.get("save", ""), row.get("save_mid", "")), name
        if row["kind"] == "script":
            assert step.all_scripts == (row["policy"] == "ignore"), name
        if step.save:
            assert ("loop" in row["on"], step.failure) == (True, row.get("failure_state", False)), name
        assert step.quiet == (row.get("quiet_failure", False) or row.get("ignore_errors", False)), name
        assert step.retried == (row.get("delivery") == "retry_then_fail"), name
        assert step.pause_report == row.get("pause_status", ""), name


def test_flags_are_the_specification_s(specification: Json) -> None:
    for name, row in specification["standalone"]["steps"].items():
        step = STANDALONE_STEPS[name]
        assert step.good == row.get("on_success_flags", []), name
        assert step.bad == row.get("on_failure_flags", []), name
        if row["kind"] == "script":
            assert step.all_scripts == (row["policy"] == "ignore"), name


def test_resume_is_the_specification_s(specification: Json) -> None:
    resume = specification["daemon"]["resume"]
    for name, row in resume["by_stored_state"].items():
        saved = states.resume_after(name)
        assert saved.resume == row["step"], name
        for flag in (False, True):
            wanted = row["tracking"]
            if wanted.startswith("rollback_attempted if"):
                wanted = "rollback_attempted" if flag else "failure"
            found = Outcome.after_restart(saved, all_rollbacks_successful=flag).value
            assert found == wanted.replace("idle", states.OK), name
    anything = states.resume_after("anything")
    assert (anything.resume, anything.considered) == (
        resume["any_other"]["step"],
        resume["any_other"]["tracking"],
    )
    by_in_state = specification["standalone"]["start_by_in_state"]
    assert by_in_state == IN_STATE
    assert specification["daemon"]["limits"]["max_state_data_store_count"] == states.MAX_SAVES


def test_commands_are_allowed_where_the_specification_allows_them(specification: Json) -> None:
    commands = specification["standalone"]["commands"]
    assert list(states.COMMIT_FROM) == commands["commit"]["allowed_in_state"]
    assert set(IN_STATE) - set(states.ROLLBACK_NOT_FROM) == set(commands["rollback"]["allowed_in_state"])


def test_outcome_moves_as_the_specification_says(specification: Json) -> None:
    tracking = specification["daemon"]["tracking"]["states"]
    for value, moves in states.TRACKING.items():
        wanted = {
            event: target
            for event, target in tracking[value].items()
            if event in {"failure", "rollback_started", "loop"}
        }
        assert moves == wanted, value
