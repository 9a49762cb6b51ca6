# SPDX-License-Identifier: Apache-2.0
"""Deployments over many devices, on SQLite and on PostgreSQL: phases, attempts, decisions, gates, truth."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.server.fleet_kit import COMMIT, INSTALL, NEW, REBOOT, SATURDAY, Fleet, pause

from update_tools.server import audit, deployments, device_views, fleet, rollout, targets, views
from update_tools.server.database import Database
from update_tools.server.db import Device
from update_tools.server.faults import Conflict, NotFound, Unprocessable

PAUSED_AT_REBOOT = "pause_before_rebooting"
ON_THE_WAY = ("downloading", "installing", PAUSED_AT_REBOOT)


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        made = Database.at(tmp_path / "server.db")
        made.upgrade()
    else:
        made = Database(request.getfixturevalue("postgres")())
    yield made
    made.close()


@pytest.fixture
def ships(db: Database, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    return Fleet(db, monkeypatch)


def finished(ships: Fleet, deployment: str) -> bool:
    return ships.detail(deployment).row.finished_at is not None


# --- who, and when ---------------------------------------------------------------------------------------


def test_a_start_time(ships: Fleet) -> None:
    ships.build(1)
    deployment = ships.deploy(start_at=SATURDAY.replace(hour=3))
    assert ships.poll(0) is None
    assert ships.detail(deployment).row.status == "scheduled"
    ships.later(hours=2)
    ships.walk(deployment, 0, "downloading")
    assert ships.detail(deployment).row.status == "inprogress"


def test_phases(ships: Fleet) -> None:
    ships.build(10)
    with ships.db.write() as session:  # d7 was heard of last, so it comes first
        session.get_one(Device, "d7").last_seen_at = ships.at
    deployment = ships.deploy(
        phases=[{"batch_size": 10}, {"device_count": 4, "delay_s": 3600}, {"delay_s": 3600}]
    )
    assert [number for number in range(10) if ships.poll(number)] == [7]
    ships.report(7, deployment, "success")
    ships.later(hours=1)
    assert sum(ships.poll(number) is not None for number in range(10)) == 4
    ships.later(hours=1)
    assert sum(ships.poll(number) is not None for number in range(10)) == 9
    detail = ships.detail(deployment)
    assert [(phase.device_count, phase.has_begun) for phase in detail.phases] == [
        (1, True),
        (4, True),
        (5, True),
    ]
    assert detail.phases[0].counts["success"] == 1


def test_a_device_goes_on_with_what_it_began(ships: Fleet) -> None:
    ships.build(1)
    first = ships.deploy("scheduled", start_at=SATURDAY.replace(hour=3))
    second = ships.deploy("at once")
    assert ships.poll(0) == second
    ships.later(hours=5)
    assert ships.poll(0) == second, "also when an older one is due meanwhile"
    ships.report(0, second, "failure")
    assert ships.poll(0) == first


def test_groups_and_filters(ships: Fleet) -> None:
    ships.build(4)
    with ships.db.write() as session:
        session.get_one(Device, "d1").group_name = "bench"
        session.get_one(Device, "d2").inventory = [{"name": "kernel", "value": "6.6"}]
        session.get_one(Device, "d3").status = "pending"

    def members(deployment: str) -> list[str]:
        with ships.db.read() as session:
            return [
                row.device_id for row in device_views.device_rows(session, deployment, is_by_id=True).rows
            ]

    assert members(ships.deploy("group", group="bench")) == ["d1"]
    terms = targets.parse([{"attribute": "kernel", "type": "$gte", "value": 6}])
    assert members(ships.deploy("filter", terms=terms)) == ["d2"]
    assert members(ships.deploy("all")) == ["d0", "d1", "d2"], "only accepted ones"
    assert len(members(ships.deploy("two", max_devices=2))) == 2
    for wanted in (
        {"group": "none"},
        {"devices": []},
        {"terms": targets.parse([{"attribute": "x", "value": 1}])},
    ):
        with pytest.raises(Unprocessable, match="no devices"):
            ships.deploy("nobody", **wanted)
    with pytest.raises(Unprocessable, match="d3"):
        ships.deploy("stranger", devices=["d3", "d0"])
    with pytest.raises(Conflict, match="equal"):
        ships.deploy("group", devices=["d1"])


# --- attempts --------------------------------------------------------------------------------------------


def test_attempts(ships: Fleet) -> None:
    ships.build(1)
    deployment = ships.deploy(retries=2)
    ships.walk(deployment, 0, "downloading", "installing")
    ships.report(0, deployment, "failure", substate="first cause")
    ships.report(0, deployment, "failure", substate="first cause")  # its answer got lost
    ships.upload_log(0, deployment, "State script ArtifactInstall_Enter_00 exited with 1 after 0.50 s")
    row = ships.row(0, deployment)
    assert (row.status, row.attempt, row.attempts, row.reason) == ("pending", 2, 3, "first cause")
    with pytest.raises(NotFound):
        ships.report(0, deployment, "installing")
    with pytest.raises(NotFound):
        ships.actions(0, deployment)
    assert not finished(ships, deployment)

    ships.walk(deployment, 0, "downloading", "failure")
    ships.walk(deployment, 0, "downloading", "installing", "success")
    row = ships.row(0, deployment)
    assert (row.status, row.attempt) == ("success", 3)
    assert finished(ships, deployment)
    with ships.db.read() as session:
        detail = device_views.device_detail(session, deployment, "d0")
    assert [(run.attempt, run.exit_code) for run in detail.scripts] == [(1, 1)]
    assert [entry.attempt for entry in detail.entries if entry.word == "downloading"] == [1, 2, 3]


def test_the_last_attempt_that_fails_is_the_failure(ships: Fleet) -> None:
    ships.build(1)
    deployment = ships.deploy(retries=1)
    for _ in range(2):
        ships.walk(deployment, 0, "failure")
    assert ships.row(0, deployment).status == "failure"
    assert ships.poll(0) is None
    assert finished(ships, deployment)


# --- decisions -------------------------------------------------------------------------------------------


def test_decisions_for_single_devices(ships: Fleet) -> None:
    ships.build(4)
    deployment = ships.deploy(control_map=pause(REBOOT))
    for number in range(4):
        ships.walk(deployment, number, *ON_THE_WAY)
    assert ships.decide(deployment, "continue", None, 0).points == [REBOOT]
    assert ships.decide(deployment, "fail", None, 1, 2).devices == 2
    assert [ships.actions(number, deployment)[REBOOT] for number in range(4)] == [
        "continue",
        "fail",
        "fail",
        "pause",
    ]
    assert ships.detail(deployment).bar[2].gate.action == "pause", "for those who come later nothing changed"
    assert ships.decide(deployment, "abort", None, 3).points == []
    with pytest.raises(NotFound):
        ships.actions(3, deployment)
    with pytest.raises(Conflict):
        ships.report(3, deployment, "rebooting")
    assert not finished(ships, deployment)
    ships.report(0, deployment, "rebooting", "success")
    for number in (1, 2):
        ships.report(number, deployment, "failure")
    assert finished(ships, deployment)
    assert ships.counts(deployment) == {"success": 1, "failure": 2, "aborted": 1}
    with ships.db.read() as session:
        deeds = [(entry.actor, entry.action) for entry in audit.entries(session, kind="deployment")]
    assert deeds[::-1] == [("dee", "created"), ("dee", "continue"), ("dee", "roll back"), ("dee", "abort")]


def test_a_device_knows_or_does_not_know_yet(ships: Fleet) -> None:
    ships.build(1)
    deployment = ships.deploy(control_map=pause(REBOOT))
    ships.walk(deployment, 0, *ON_THE_WAY)
    assert ships.row(0, deployment).is_decision_taken, "it has the map it was given"
    ships.decide(deployment, "continue", None, 0)
    row = ships.row(0, deployment)
    assert (row.waits_at, row.decision, row.is_decision_taken) == (REBOOT, "continue", False)
    for _ in range(2):
        ships.actions(0, deployment)
    assert ships.row(0, deployment).is_decision_taken
    assert ships.words(deployment, 0).count("took the new map") == 1, "once, however often it asks"


def test_the_last_decision_counts(ships: Fleet) -> None:
    ships.build(2)
    deployment = ships.deploy(control_map=pause(REBOOT, COMMIT))
    for number in range(2):
        ships.walk(deployment, number, *ON_THE_WAY)
    ships.decide(deployment, "continue", None, 0)
    ships.decide(deployment, "fail", COMMIT, 0)
    ships.decide(deployment, "pause", REBOOT)
    assert ships.actions(0, deployment) == {INSTALL: "continue", REBOOT: "pause", COMMIT: "fail"}
    ships.decide(deployment, "continue", COMMIT, 0)
    with ships.db.write() as session:
        deployments.replace_map(session, deployment, pause(COMMIT))
    assert ships.actions(0, deployment) == {INSTALL: "continue", REBOOT: "continue", COMMIT: "pause"}


def test_decisions_that_cannot_be(ships: Fleet) -> None:
    ships.build(3)
    deployment = ships.deploy(devices=["d0", "d1"], control_map=pause(REBOOT))
    for devices, error, match in (
        ((2,), NotFound, "d2"),
        ((0, 1), Conflict, "none of these devices waits"),
    ):
        with pytest.raises(error, match=match):
            ships.decide(deployment, "continue", None, *devices)
    with pytest.raises(Conflict, match="no device waits"):
        ships.decide(deployment, "continue")
    with pytest.raises(Unprocessable, match="not a pause point"):
        ships.decide(deployment, "continue", "Download_Enter", 0)
    without_map = ships.deploy("no map", devices=["d2"], control_map=None)
    ships.walk(without_map, 2, "downloading")
    with pytest.raises(Conflict, match="without a control map"):
        ships.decide(without_map, "pause", REBOOT, 2)
    ships.decide(without_map, "abort", None, 2)
    assert finished(ships, without_map)
    with pytest.raises(Conflict, match="finished"):
        ships.decide(without_map, "continue", REBOOT, 2)


def test_abort_tells_everyone(ships: Fleet) -> None:
    ships.build(3)
    deployment = ships.deploy(retries=3)
    ships.walk(deployment, 0, "success")
    ships.walk(deployment, 1, "downloading")
    ships.decide(deployment, "abort")
    assert ships.counts(deployment) == {"success": 1, "aborted": 2}
    assert ships.detail(deployment).row.status == "aborted"
    for late in ("installing", "success", "failure"):
        with pytest.raises(Conflict, match="aborted"):
            ships.report(1, deployment, late)
    assert ships.poll(2) is None
    ships.upload_log(1, deployment, "rolled back")
    with pytest.raises(Unprocessable, match="already finished"):
        ships.decide(deployment, "abort")
    other = ships.deploy("other")
    with ships.db.write() as session:
        assert deployments.abort_for_device(session, "d1") == 1
    assert ships.counts(other) == {"pending": 2, "aborted": 1}


# --- the server by itself --------------------------------------------------------------------------------


def test_a_quorum_opens_the_gate_on_the_report_that_makes_it(ships: Fleet) -> None:
    ships.build(4)
    deployment = ships.deploy(rules={"gates": {REBOOT: {"quorum": {"count": 2}}}})
    ships.walk(deployment, 0, *ON_THE_WAY)
    assert ships.actions(0, deployment)[REBOOT] == "pause", "a gate pauses without being told to"
    gate = ships.detail(deployment).bar[2].gate
    assert gate is not None
    assert (gate.state, gate.missing) == ("armed", "1 of 2 devices are here")
    ships.walk(deployment, 1, *ON_THE_WAY)
    assert [ships.actions(number, deployment)[REBOOT] for number in (0, 1)] == ["continue", "continue"]
    ships.walk(deployment, 2, "downloading")
    assert ships.actions(2, deployment)[REBOOT] == "continue"
    assert ships.words(deployment) == ["created", "continue"]


def test_a_person_overrules_a_gate(ships: Fleet) -> None:
    ships.build(2)
    deployment = ships.deploy(rules={"gates": {REBOOT: {"quorum": {"count": 1}}}})
    ships.decide(deployment, "pause", REBOOT)
    ships.walk(deployment, 0, *ON_THE_WAY)
    assert fleet.tick(ships.db) == 0
    assert ships.actions(0, deployment)[REBOOT] == "pause"


def test_a_window_by_the_timer(ships: Fleet) -> None:
    ships.build(1)
    window = {"window": {"calendar": "Sat,Sun 02:00 UTC", "lasting_s": 3600}}
    deployment = ships.deploy(rules={"gates": {REBOOT: window}})
    ships.walk(deployment, 0, *ON_THE_WAY)
    seen = []
    for _ in range(5):  # 01:00, 02:00 ... 05:00
        fleet.tick(ships.db, ships.at)
        seen.append(ships.actions(0, deployment)[REBOOT])
        ships.later(hours=1)
    assert seen == ["pause", "continue", "pause", "pause", "pause"]
    assert ships.words(deployment) == ["created", "continue", "pause"]


def test_a_window_that_ended_is_shut_without_the_timer(ships: Fleet) -> None:
    ships.build(1)
    window = {"window": {"calendar": "Sat,Sun 02:00 UTC", "lasting_s": 3600}}
    deployment = ships.deploy(rules={"gates": {REBOOT: window}})
    ships.later(hours=1)
    fleet.tick(ships.db, ships.at)
    ships.walk(deployment, 0, "downloading")
    assert ships.actions(0, deployment)[REBOOT] == "continue"
    ships.later(hours=1)
    assert ships.actions(0, deployment)[REBOOT] == "pause"


def test_many_timers_do_one_thing(ships: Fleet) -> None:
    ships.build(3)
    rules = {"gates": {REBOOT: {"not_before": "2026-01-03T02:00:00Z"}}}
    deployment_ids = [ships.deploy(f"number {number}", rules=rules) for number in range(3)]
    ships.later(hours=2)
    barrier = threading.Barrier(6)

    def run(_: int) -> int:
        barrier.wait()
        return fleet.tick(ships.db, ships.at)

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(run, range(6))) == 3
    for deployment in deployment_ids:
        assert ships.words(deployment) == ["created", "continue"]


def test_failures_hold_and_a_person_goes_on(ships: Fleet) -> None:
    ships.build(6)
    rules = {"hold": {"failed_count": 2}, "gates": {REBOOT: {"quorum": {"count": 1}}}}
    deployment = ships.deploy(rules=rules)
    for number in (0, 1):
        assert ships.poll(number) == deployment
    ships.report(0, deployment, "failure")
    ships.report(1, deployment, "failure")
    row = ships.detail(deployment).row
    assert row.held_at is not None
    assert "2 of 2" in row.held_why
    assert ships.poll(2) is None, "nobody new gets it"
    newer = ships.deploy("a fix", devices=["d2"])
    assert ships.poll(2) == newer, "but it does not stand in the way"
    with ships.db.write() as session:
        deployments.resume(session, deployment)
    ships.walk(deployment, 3, *ON_THE_WAY)
    assert ships.actions(3, deployment)[REBOOT] == "continue"
    ships.report(3, deployment, "failure")
    assert ships.detail(deployment).row.held_at is not None, "one failure more than was accepted"
    with pytest.raises(Conflict, match="held already"), ships.db.write() as session:
        deployments.hold(session, deployment)
    assert ships.words(deployment) == ["created", "hold", "resume", "continue", "hold"]


def test_a_device_that_began_goes_on_while_held(ships: Fleet) -> None:
    ships.build(2)
    deployment = ships.deploy()
    ships.walk(deployment, 0, "downloading")
    with ships.db.write() as session:
        deployments.hold(session, deployment, "look first")
    assert ships.poll(0) == deployment
    assert ships.poll(1) is None
    ships.report(0, deployment, "success")
    with ships.db.write() as session:
        deployments.resume(session, deployment)
    assert ships.poll(1) == deployment


def test_the_abort_rule(ships: Fleet) -> None:
    ships.build(4)
    deployment = ships.deploy(rules={"abort": {"failed_percent": 50, "at_least": 2}})
    for number in range(3):
        assert ships.poll(number) == deployment
    ships.report(0, deployment, "failure")
    assert not finished(ships, deployment)
    ships.report(1, deployment, "failure")
    assert ships.counts(deployment) == {"failure": 2, "aborted": 2}
    with pytest.raises(Conflict):
        ships.report(2, deployment, "installing")


def test_no_gate_is_lost_between_reports(ships: Fleet) -> None:
    """Reports at the same moment: each alone is one short of the quorum, together they make it."""
    ships.build(8)
    deployment = ships.deploy(rules={"gates": {REBOOT: {"quorum": "all"}}})
    for number in range(8):
        ships.walk(deployment, number, "downloading", "installing")
    barrier = threading.Barrier(8)

    def wait_there(number: int) -> None:
        barrier.wait()
        ships.report(number, deployment, PAUSED_AT_REBOOT)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(wait_there, range(8)))
    assert ships.words(deployment) == ["created", "continue"]


def test_the_last_devices_end_together(ships: Fleet) -> None:
    ships.build(8)
    deployment = ships.deploy()
    for number in range(8):
        assert ships.poll(number) == deployment
    barrier = threading.Barrier(8)

    def end(number: int) -> None:
        barrier.wait()
        ships.report(number, deployment, "success")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(end, range(8)))
    assert finished(ships, deployment)


def test_polls_at_once_hand_out_once(ships: Fleet) -> None:
    ships.build(1)
    deployment = ships.deploy()
    barrier = threading.Barrier(8)

    def ask(_: int) -> str | None:
        barrier.wait()
        return ships.poll(0)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {deployment}
    assert ships.words(deployment, 0) == ["handed out"]


def test_decisions_and_reports_at_once_lose_nothing(ships: Fleet) -> None:
    ships.build(6)
    deployment = ships.deploy(control_map=pause(REBOOT))
    for number in range(6):
        ships.walk(deployment, number, "downloading", "installing")
    barrier = threading.Barrier(12)

    def device(number: int) -> None:
        barrier.wait()
        ships.report(number, deployment, PAUSED_AT_REBOOT)

    def person(number: int) -> None:
        barrier.wait()
        ships.decide(deployment, "continue" if number % 2 else "fail", REBOOT, number)

    with ThreadPoolExecutor(12) as pool:
        jobs = [pool.submit(device, number) for number in range(6)]
        jobs += [pool.submit(person, number) for number in range(6)]
        for job in jobs:
            job.result()
    expected = {number: "continue" if number % 2 else "fail" for number in range(6)}
    assert {number: ships.actions(number, deployment)[REBOOT] for number in range(6)} == expected
    assert ships.counts(deployment) == {PAUSED_AT_REBOOT: 6}


# --- truth -----------------------------------------------------------------------------------------------


def test_success_comes_from_the_device_alone(ships: Fleet) -> None:
    ships.build(1)
    deployment = ships.deploy()
    ships.walk(deployment, 0, "downloading", "installing", "rebooting", "installing")
    assert ships.counts(deployment) == {"committing": 1}
    assert ships.row(0, deployment).label == "committing"
    assert ships.poll(0, installed=f"{NEW}_other") == deployment, "a poll in between changes nothing"
    assert not finished(ships, deployment)
    ships.report(0, deployment, "success")
    assert ships.counts(deployment) == {"success": 1}


def test_a_fall_back_shows_the_boot_loaders_reason(ships: Fleet) -> None:
    ships.build(1)
    deployment = ships.deploy()
    ships.walk(deployment, 0, "downloading", "installing", "rebooting")
    reason = "ArtifactVerifyReboot: the boot loader fell back to /dev/mmcblk0p2: no kernel"
    ships.report(0, deployment, "failure", substate=reason)
    row = ships.row(0, deployment)
    assert (row.status, row.reason, row.runs) == ("failure", reason, "release-1")


def test_a_device_that_vanishes_and_comes_back(ships: Fleet) -> None:
    ships.build(3)
    deployment = ships.deploy(rules={"vanished_after_s": 600})
    for number in range(2):
        ships.walk(deployment, number, "downloading", "installing", "rebooting")
    last = ships.at
    ships.later(seconds=599)
    ships.report(1, deployment, "installing")
    assert fleet.find_vanished(ships.db) == 0
    ships.later(seconds=2)
    assert fleet.find_vanished(ships.db) == 1
    assert fleet.find_vanished(ships.db) == 0, "said once"
    assert ships.row(0, deployment).vanished_at == last
    assert ships.row(2, deployment).vanished_at is None, "one that never began is not missed"
    assert ships.detail(deployment).row.vanished == 1
    with ships.db.read() as session:
        page = device_views.device_rows(session, deployment, place="vanished")
    assert [row.device_id for row in page.rows] == ["d0"]
    ships.report(0, deployment, "success")
    assert ships.row(0, deployment).vanished_at is None
    assert ships.words(deployment, 0)[-3:] == ["vanished", "back", "success"]


def test_a_paused_device_that_asks_for_its_map_is_there(ships: Fleet) -> None:
    ships.build(1)
    deployment = ships.deploy(control_map=pause(REBOOT), rules={"vanished_after_s": 600})
    ships.walk(deployment, 0, *ON_THE_WAY)
    ships.later(seconds=601)
    assert fleet.find_vanished(ships.db) == 1
    ships.actions(0, deployment)
    assert ships.row(0, deployment).vanished_at is None


# --- live reports ----------------------------------------------------------------------------------------


def test_live_reports(ships: Fleet) -> None:
    ships.build(1)
    deployment = ships.deploy()
    ships.walk(deployment, 0, "downloading")
    ships.report(0, deployment, "downloading", substate='{"live":{"bytes":[250,1000]}}')
    row = ships.row(0, deployment)
    assert (row.done_bytes, row.size_bytes, row.percent, row.reason) == (250, 1000, 25, "")
    ships.report(
        0, deployment, "installing", substate='{"scripts":[["Download_Leave_00","exited with 0",0.5]]}'
    )
    ships.report(0, deployment, "installing", substate='{"live":{"script":"ArtifactInstall_Enter_10"}}')
    row = ships.row(0, deployment)
    assert (row.status, row.done_bytes, row.script) == ("installing", None, "ArtifactInstall_Enter_10")
    ships.report(0, deployment, "downloading", substate='{"live":{"bytes":[999,1000]}}')
    assert ships.row(0, deployment).status == "installing", "a late one never turns the status back"
    ships.report(0, deployment, "success")
    ships.report(0, deployment, "installing", substate='{"live":{"script":"x"}}')
    assert (ships.row(0, deployment).status, ships.row(0, deployment).script) == ("success", "")
    with ships.db.read() as session:
        detail = device_views.device_detail(session, deployment, "d0")
    assert [(run.name, run.exit_code, run.seconds) for run in detail.scripts] == [
        ("Download_Leave_00", 0, 0.5)
    ]
    assert ships.words(deployment, 0) == ["handed out", "downloading", "script", "installing", "success"]


# --- read models -----------------------------------------------------------------------------------------


def test_a_deployment_in_numbers(ships: Fleet) -> None:
    ships.build(9)
    deployment = ships.deploy(control_map=pause(REBOOT), retries=1)
    ships.walk(deployment, 0, "downloading")
    ships.walk(deployment, 1, "downloading", "installing")
    ships.walk(deployment, 2, *ON_THE_WAY)
    ships.walk(deployment, 3, "rebooting")
    ships.walk(deployment, 4, "rebooting", "installing")
    ships.walk(deployment, 5, "success")
    assert ships.poll(6, installed=NEW) is None
    for _ in range(2):
        ships.walk(deployment, 7, "failure")
    detail = ships.detail(deployment)
    assert ships.counts(deployment) == {
        "pending": 1,
        "downloading": 1,
        "installing": 1,
        PAUSED_AT_REBOOT: 1,
        "rebooting": 1,
        "committing": 1,
        "success": 1,
        "skipped": 1,
        "failure": 1,
    }
    assert [(phase.name, phase.inside) for phase in detail.bar] == [
        ("Download", 1),
        ("Install", 1),
        ("Reboot", 1),
        ("Commit", 1),
    ]
    gate = detail.bar[2].gate
    assert gate is not None
    assert (gate.action, gate.waiting, gate.reached) == ("pause", 1, 4)
    assert detail.row.statistics["already-installed"] == 1
    assert detail.row.created_by == "dee"
    with ships.db.read() as session:
        for place, count in detail.row.counts.items():
            assert device_views.device_rows(session, deployment, place=place).total == count, place
        rows, total = views.deployment_rows(session, search="NEW", status="inprogress")
        assert (len(rows), total) == (1, 1)
        assert views.deployment_rows(session, search="%")[1] == 0
        assert views.deployment_rows(session, status="finished")[1] == 0
        assert device_views.device_rows(session, deployment, search="00:03").rows[0].device_id == "d3"
        assert [entry.id for entry, _ in device_views.device_history(session, "d5")] == [deployment]


def test_the_log(ships: Fleet) -> None:
    ships.build(1)
    deployment = ships.deploy()
    ships.walk(deployment, 0, "failure")
    with ships.db.read() as session:
        assert device_views.device_log(session, deployment, "d0") is None
    ships.upload_log(0, deployment, *(f"line {number}" for number in range(50)), "disk FULL")
    with ships.db.read() as session:
        page = device_views.device_log(session, deployment, "d0", search="full")
        assert page is not None
        assert [(line.number, line.text) for line in page.lines] == [(51, "disk FULL")]
        page = device_views.device_log(session, deployment, "d0", page=2, per_page=20)
        assert page is not None
        assert (page.lines[0].number, page.matches, page.total) == (21, 51, 51)
        assert device_views.device_log(session, deployment, "d0", level="error").matches == 0
        with pytest.raises(NotFound):
            device_views.device_log(session, deployment, "d1")


def test_one_report_asks_the_database_a_bounded_number_of_times(ships: Fleet) -> None:
    """What a device costs does not grow with the fleet: the statements of a poll and a report are counted."""
    from sqlalchemy import event

    ships.build(30)
    deployment = ships.deploy()
    statements: list[Any] = []
    event.listen(ships.db.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    counts = []
    for number in range(0, 30, 10):
        statements.clear()
        ships.walk(deployment, number, "downloading", "success")
        counts.append(len(statements))
    assert len(set(counts)) == 1
    assert counts[0] < 40


def test_points_have_places() -> None:
    assert {point.status for point in rollout.POINTS} <= set(views.PLACES)
