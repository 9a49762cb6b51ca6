# SPDX-License-Identifier: Apache-2.0
"""Fleet gates as a table: a fleet, its rules, and what is to be done; no server, no database."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_tools.server import gates, rollout
from update_tools.server.faults import Unprocessable

SATURDAY = datetime(2026, 1, 3, 2, 30, tzinfo=UTC)
INSTALL, REBOOT, COMMIT = (point.name for point in rollout.POINTS)
PAUSED = {point.name: point.status for point in rollout.POINTS}
# A fleet in a row: what each letter says is (status, stage).
PLACES = {
    ".": ("pending", 0),
    "d": ("downloading", 1),
    "I": (PAUSED[INSTALL], 1),
    "i": ("installing", 2),
    "R": (PAUSED[REBOOT], 2),
    "r": ("rebooting", 3),
    "C": (PAUSED[COMMIT], 3),
    "c": ("installing", 4),
    "+": ("success", 5),
    "-": ("failure", 2),
    "a": ("aborted", 2),
    "n": ("noartifact", 0),
    "=": ("already-installed", 0),
}
WINDOW = {"window": {"calendar": "Sat,Sun 02:00 UTC", "lasting_s": 3600}}


def facts(fleet: str, vanished: int = 0) -> gates.Facts:
    places: dict[tuple[str, int], int] = {}
    for letter in fleet:
        places[PLACES[letter]] = places.get(PLACES[letter], 0) + 1
    return gates.Facts(places, vanished)


def situation(fleet: str, rules: Any, *, vanished: int = 0, **more: Any) -> gates.Situation:
    values = {"gate_states": {}, "is_held": False, "held_waived": 0, "now": SATURDAY, "control_map": None}
    return gates.Situation(rules=gates.parse(rules), facts=facts(fleet, vanished), **(values | more))


def at_reboot(**gate: Any) -> dict[str, Any]:
    return {"gates": {REBOOT: gate}}


def steps(now_is: gates.Situation) -> list[str]:
    return [f"{step.word} {step.point}".strip() for step in gates.judge(now_is)]


RELEASE = [f"release {REBOOT}"]

FLEETS = [
    # all: everybody who may still come is there
    ("all", "RRR", RELEASE),
    ("all", "RRi", []),
    ("all", "RR.", []),
    ("all", "RR-", RELEASE),
    ("all", "RRan=", RELEASE),
    ("all", "Rr+", RELEASE),
    ("all", "...", []),
    ("all", "---", []),
    ("all", "n==", []),
    # a number: whoever waits or got past it
    ({"count": 2}, "R....", []),
    ({"count": 2}, "RR...", RELEASE),
    ({"count": 2}, "R+...", RELEASE),
    ({"count": 2}, "Rrc..", RELEASE),
    ({"count": 2}, "R-...", []),
    ({"count": 2}, "I-Ri.", []),
    # a share of the devices that the deployment is really for
    ({"percent": 50}, "RR..", RELEASE),
    ({"percent": 50}, "R...", []),
    ({"percent": 50}, "R.nn==", RELEASE),
    ({"percent": 50}, "R..", []),
    ({"percent": 50}, "R-", RELEASE),
    ({"percent": 100}, "RR-", []),
    ({"percent": 0.01}, "....", []),
    ({"percent": 0.01}, "R...", RELEASE),
]


@pytest.mark.parametrize(("quorum", "fleet", "expected"), FLEETS)
def test_quorum(quorum: Any, fleet: str, expected: list[str]) -> None:
    assert steps(situation(fleet, at_reboot(quorum=quorum))) == expected


@pytest.mark.parametrize(
    ("vanished", "without", "expected"), [(0, False, []), (1, False, []), (0, True, []), (1, True, RELEASE)]
)
def test_a_vanished_device_is_waited_for_unless_told_otherwise(
    vanished: int, without: bool, expected: list[str]
) -> None:
    rules = at_reboot(quorum="all", without_vanished=without)
    assert steps(situation("RRi", rules, vanished=vanished)) == expected


TIMES = [
    # not before 02:00; window 02:00 to 03:00 on Saturdays and Sundays
    ({"not_before": "2026-01-03T02:00:00Z"}, timedelta(minutes=-31), []),
    ({"not_before": "2026-01-03T02:00:00Z"}, timedelta(minutes=-30), RELEASE),
    ({"not_before": "2026-01-03T03:00:00+01:00"}, timedelta(minutes=-30), RELEASE),
    (WINDOW, timedelta(0), RELEASE),
    (WINDOW, timedelta(minutes=30), []),
    (WINDOW, timedelta(minutes=-31), []),
    (WINDOW, timedelta(days=1), RELEASE),
    (WINDOW, timedelta(days=2), []),
    ({**WINDOW, "quorum": {"count": 3}}, timedelta(0), []),
    ({**WINDOW, "quorum": {"count": 2}}, timedelta(0), RELEASE),
    ({**WINDOW, "not_before": "2026-01-03T12:00:00Z"}, timedelta(0), []),
    ({**WINDOW, "not_before": "2026-01-03T12:00:00Z"}, timedelta(days=1), RELEASE),
]


@pytest.mark.parametrize(("gate", "later", "expected"), TIMES)
def test_times(gate: dict[str, Any], later: timedelta, expected: list[str]) -> None:
    assert steps(situation("RR", at_reboot(**gate), now=SATURDAY + later)) == expected


STATES = [
    # state of the gate, hour, held -> steps
    ("", 2, False, RELEASE),
    ("open", 2, False, []),
    ("open", 4, False, [f"shut {REBOOT}"]),
    ("", 4, False, []),
    ("person", 2, False, []),
    ("person", 4, False, []),
    ("", 2, True, []),
    ("open", 2, True, [f"shut {REBOOT}"]),
]


@pytest.mark.parametrize(("state", "hour", "is_held", "expected"), STATES)
def test_a_window_opens_and_shuts(state: str, hour: int, is_held: bool, expected: list[str]) -> None:
    now_is = situation(
        "R", at_reboot(**WINDOW), gate_states={REBOOT: state} if state else {}, is_held=is_held
    )
    assert steps(replace(now_is, now=SATURDAY.replace(hour=hour))) == expected


def test_what_was_released_stays_released() -> None:
    assert steps(situation("RR", at_reboot(quorum="all"), gate_states={REBOOT: gates.RELEASED})) == []


LIMITS = [
    # rules, fleet, waived -> steps
    ({"hold": {"failed_count": 2}}, "-...", 0, []),
    ({"hold": {"failed_count": 2}}, "--..", 0, ["hold"]),
    ({"hold": {"failed_count": 2}}, "--..", 2, []),
    ({"hold": {"failed_count": 2}}, "---.", 2, ["hold"]),
    ({"hold": {"failed_percent": 10}}, "-+++++++++.", 0, []),
    ({"hold": {"failed_percent": 10}}, "-++++++++.", 0, ["hold"]),
    ({"hold": {"failed_percent": 0}}, "++++", 0, []),
    ({"hold": {"failed_percent": 0}}, "+++-", 0, ["hold"]),
    ({"hold": {"failed_percent": 10, "at_least": 2}}, "-+", 0, []),
    ({"hold": {"failed_percent": 10, "at_least": 2}}, "--", 0, ["hold"]),
    ({"hold": {"failed_percent": 10}}, "an==", 0, []),
    ({"abort": {"failed_count": 2}}, "--..", 0, ["abort"]),
    ({"abort": {"failed_count": 2}}, "--..", 2, ["abort"]),
    ({"abort": {"failed_count": 3}, "hold": {"failed_count": 2}}, "--..", 0, ["hold"]),
    ({"abort": {"failed_count": 3}, "hold": {"failed_count": 2}}, "---.", 0, ["abort"]),
]


@pytest.mark.parametrize(("rules", "fleet", "waived", "expected"), LIMITS)
def test_limits(rules: Any, fleet: str, waived: int, expected: list[str]) -> None:
    assert steps(situation(fleet, rules, held_waived=waived)) == expected


def test_a_hold_keeps_gates_shut() -> None:
    rules = {**at_reboot(quorum={"count": 1}), "hold": {"failed_count": 1}}
    assert steps(situation("R-", rules)) == ["hold"]
    assert steps(situation("R-", rules, is_held=True)) == []
    assert steps(situation("R-", rules, held_waived=1)) == RELEASE


def test_several_gates() -> None:
    rules = {"gates": {INSTALL: {"quorum": {"count": 1}}, COMMIT: {"quorum": "all"}}}
    assert steps(situation("CC", rules)) == [f"release {INSTALL}", f"release {COMMIT}"]
    assert steps(situation("CI", rules)) == [f"release {INSTALL}"]


QUORUMS = st.one_of(
    st.just("all"),
    st.builds(lambda n: {"count": n}, st.integers(1, 9)),
    st.builds(lambda n: {"percent": n}, st.integers(1, 100)),
)


@given(
    fleet=st.text(list(PLACES), max_size=12),
    quorum=QUORUMS,
    limit=st.integers(1, 4),
    hours=st.lists(st.integers(0, 23), max_size=6),
)
def test_asked_again_there_is_nothing_left_to_do(
    fleet: str, quorum: Any, limit: int, hours: list[int]
) -> None:
    """Carried out once, by whoever; the same question then has no answer. What was released stays."""
    rules = {
        "gates": {INSTALL: {"quorum": quorum}, REBOOT: {**WINDOW, "quorum": quorum}},
        "hold": {"failed_count": limit},
    }
    now_is = situation(fleet, rules)
    for hour in [2, *hours]:
        now_is = replace(now_is, now=SATURDAY.replace(hour=hour))
        for step in gates.judge(now_is):
            states = dict(now_is.gate_states)
            if step.word == "hold":
                now_is = replace(now_is, is_held=True)
            elif step.word == "release":
                states[step.point] = gates.OPEN if step.point == REBOOT else gates.RELEASED
            else:
                states.pop(step.point)
            now_is = replace(now_is, gate_states=states)
        assert gates.judge(now_is) == []
        assert "-" * limit not in "".join(sorted(fleet)) or now_is.is_held


def test_a_window_that_ended_is_shut_before_anybody_notes_it() -> None:
    rules = gates.parse(at_reboot(**WINDOW))
    opened = rollout.with_action(None, REBOOT, "continue")
    states = {REBOOT: gates.OPEN}
    for hour, action in ((2, "continue"), (3, "pause")):
        present = gates.timed_map(opened, rules, states, SATURDAY.replace(hour=hour, minute=0))
        assert rollout.action_at(present, REBOOT) == action
    assert gates.timed_map(opened, rules, {REBOOT: gates.PERSON}, SATURDAY.replace(hour=5)) == opened


BROKEN = [
    ([], "rules"),
    ({"gate": {}}, "gate"),
    ({"gates": {"Download_Enter": {"quorum": "all"}}}, "Download_Enter"),
    (at_reboot(), "no condition"),
    (at_reboot(quorum="most"), "quorum"),
    (at_reboot(quorum={"count": 0}), "quorum.count"),
    (at_reboot(quorum={"percent": 101}), "quorum.percent"),
    (at_reboot(quorum={"percent": 1, "count": 1}), "quorum"),
    (at_reboot(quorum={"percent": True}), "quorum.percent"),
    (at_reboot(quorum={}), "quorum"),
    (at_reboot(not_before="tomorrow"), "not_before"),
    (at_reboot(not_before="2026-01-01T00:00:00"), "time zone"),
    (at_reboot(window={"calendar": "daily", "lasting_s": 600}), "window.calendar"),
    (at_reboot(window={"calendar": "02:00"}), "window.lasting_s"),
    (at_reboot(window={"calendar": "02:00", "lasting_s": 10**9}), "window.lasting_s"),
    (at_reboot(quorum="all", without_vanished="yes"), "without_vanished"),
    ({"hold": {}}, "hold"),
    ({"hold": {"failed_count": 0}}, "failed_count"),
    ({"abort": {"failed_percent": -1}}, "failed_percent"),
    ({"abort": {"failed_percent": 5, "at_least": "2"}}, "at_least"),
    ({"vanished_after_s": 1}, "vanished_after_s"),
]


@pytest.mark.parametrize(("rules", "named"), BROKEN, ids=str)
def test_broken_rules_are_refused_by_name(rules: Any, named: str) -> None:
    with pytest.raises(Unprocessable, match=named):
        gates.parse(rules)


@pytest.mark.parametrize("rules", [*(rules for rules, _, _, _ in LIMITS), at_reboot(**WINDOW, quorum="all")])
def test_rules_survive_the_database(rules: Any) -> None:
    parsed = gates.parse(rules)
    again = gates.parse(parsed.document())
    assert again.document() == parsed.document()
    for gate in parsed.gates.values():
        assert gate.describe().startswith("when ")


def test_what_is_missing_is_said_with_numbers() -> None:
    gate = gates.parse(at_reboot(quorum={"percent": 80}, **WINDOW)).gates[REBOOT]
    assert gates.unmet(gate, REBOOT, facts("RR........"), SATURDAY) == "2 of 8 devices are here"
    sunday = SATURDAY + timedelta(hours=5)
    assert gates.unmet(gate, REBOOT, facts("RRRR"), sunday) == "the window opens 2026-01-04 02:00 UTC"
    assert gates.unmet(gate, REBOOT, facts("RRRR"), SATURDAY) == ""


def test_the_guide_s_rules_are_rules() -> None:
    """What the server's README shows is understood, all of it."""
    text = (Path(gates.__file__).parent / "README.md").read_text()
    document = json.loads(text.split("```json\n")[1].split("```")[0])
    rules = gates.parse(document)
    assert gates.parse(rules.document()).document() == rules.document()
    assert set(rules.gates) == set(document["gates"])
    assert rules.hold is not None
    assert rules.abort is not None
    assert rules.vanished_after_s == document["vanished_after_s"]
