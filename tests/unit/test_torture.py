# SPDX-License-Identifier: Apache-2.0
"""What a run of power cuts judges: everything that is true passes, and each thing that is not is named."""

from __future__ import annotations

import pytest

from update_tools.torture import judge, plan
from update_tools.torture.judge import Card, System, Update

OLD, NEW = System("a", "digest-a"), System("b", "digest-b")
UPDATE = Update(OLD, 2, NEW, 3, is_good=True)
BROKEN = Update(OLD, 2, NEW, 3, is_good=False)
WRITTEN = {2: "digest-a", 3: "digest-b"}
HALF = {2: "digest-a", 3: "half of b"}
ALL = ["downloading", "installing", "rebooting", "installing", "success"]


def env(part: str, trial: str = "0", count: str = "0") -> dict[str, str]:
    return {"mender_boot_part": part, "upgrade_available": trial, "bootcount": count}


@pytest.mark.parametrize(
    ("update", "card", "status"),
    [
        (UPDATE, Card(env("2"), HALF), "downloading"),
        (UPDATE, Card(env("2"), WRITTEN), "installing"),
        (UPDATE, Card(env("3", "1"), WRITTEN), "rebooting"),
        (UPDATE, Card(env("3", "1", "1"), WRITTEN), "installing"),
        (UPDATE, Card(env("3"), WRITTEN), "installing"),
        (UPDATE, Card(env("3"), WRITTEN), "success"),
        (UPDATE, Card(env("2"), HALF), "failure"),
        (BROKEN, Card(env("3", "1", "2"), WRITTEN), "rebooting"),
    ],
)
def test_what_may_be_on_a_card(update: Update, card: Card, status: str) -> None:
    assert judge.card(update, card, status) == []


@pytest.mark.parametrize(
    ("update", "card", "status", "kind"),
    [
        (UPDATE, Card(None, WRITTEN), "installing", "environment"),
        (UPDATE, Card(env(""), WRITTEN), "installing", "environment"),
        (UPDATE, Card(env("2", "1"), WRITTEN), "installing", "environment"),
        (UPDATE, Card(env("2"), {2: "spoilt", 3: "digest-b"}), "downloading", "state"),
        (UPDATE, Card(env("3", "1"), HALF), "installing", "unbootable"),
        (BROKEN, Card(env("3"), WRITTEN), "installing", "state"),
        (UPDATE, Card(env("2"), WRITTEN), "success", "untrue"),
        (UPDATE, Card(env("3", "1"), WRITTEN), "success", "untrue"),
        (UPDATE, Card(env("3"), WRITTEN), "failure", "untrue"),
        (UPDATE, Card(env("2"), HALF), "rebooting", "untrue"),
    ],
)
def test_what_must_not_be_on_a_card(update: Update, card: Card, status: str, kind: str) -> None:
    assert [problem.kind for problem in judge.card(update, card, status)] == [kind]


@pytest.mark.parametrize(
    ("values", "part", "name", "is_right"),
    [
        (env("2"), 2, "a", True),
        (env("2"), 3, "b", False),
        (env("2"), 2, "b", False),
        (env("3"), 3, "b", True),
        (env("3"), 2, "a", False),
        (env("3", "1"), 3, "b", True),
        (env("3", "1"), 2, "a", True),  # a system that does not start
        (env("3", "1", "1"), 2, "a", True),
        (env("3", "1", "1"), 3, "b", False),  # its one boot was used up by the cut
    ],
)
def test_what_may_come_up(values: dict[str, str], part: int, name: str, is_right: bool) -> None:
    assert (judge.start(UPDATE, Card(values, WRITTEN), part, name) == []) == is_right


@pytest.mark.parametrize(
    ("update", "statuses", "part", "name", "shown", "kinds"),
    [
        (UPDATE, ALL, 3, "b", "b", []),
        (UPDATE, ["downloading", "downloading", "failure"], 2, "a", "a", []),
        (UPDATE, ["failure"], 2, "a", "a", []),
        (UPDATE, ["downloading", "installing", "rebooting", "failure"], 2, "a", "a", []),
        (UPDATE, ALL, 2, "a", "a", ["untrue"]),
        (UPDATE, ["downloading", "failure"], 3, "b", "b", ["untrue"]),
        (UPDATE, ALL, 3, "b", "a", ["untrue"]),
        (UPDATE, ["downloading", "success"], 3, "b", "b", []),  # a report that a cut has swallowed
        (UPDATE, ["rebooting", "downloading", "failure"], 2, "a", "a", ["untrue"]),
        (UPDATE, ["success", "failure"], 2, "a", "a", ["untrue"]),
        (UPDATE, ["downloading"], 2, "a", "a", ["stuck"]),
        (UPDATE, ["failure"], 2, "c", "c", ["state"]),
        (BROKEN, ALL, 3, "b", "b", ["state"]),
    ],
)
def test_how_a_deployment_may_end(
    update: Update, statuses: list[str], part: int, name: str, shown: str, kinds: list[str]
) -> None:
    assert [problem.kind for problem in judge.end(update, statuses, part, name, shown)] == kinds


def test_the_same_seed_plans_the_same_cuts() -> None:
    assert list(map(repr, plan.make(5, 50))) == list(map(repr, plan.make(5, 50)))
    assert list(map(repr, plan.make(5, 50))) != list(map(repr, plan.make(6, 50)))
    assert {cut.variant for cut in plan.make(5, 50)} == set(plan.VARIANTS)
    assert all(0 <= cut.moment < 1 for cut in plan.make(5, 50))
