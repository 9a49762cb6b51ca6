# SPDX-License-Identifier: Apache-2.0
"""A sample of the kill matrix, and whether it would notice. All of it: scripts/conform kills --jobs 2"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from update_tools.conform import judge, kills, local_bus, pi
from update_tools.conform.kill_run import NotReached, Run
from update_tools.conform.kill_updates import CUT, KILL, TORN, UPDATES, Update, is_usual, kills_of
from update_tools.conform.launcher import Launcher
from update_tools.conform.scenarios import Difference

BY_NAME = {update.name: update for update in UPDATES}
NO_PI = pi.missing()
needs_pi = pytest.mark.skipif(bool(NO_PI), reason=NO_PI)
WHOLE = [
    pytest.param(update.name, marks=needs_pi if update.is_tryboot else ())
    for update in UPDATES
    if update.pause is None
]
PAUSED = [update.name for update in UPDATES if update.pause is not None and not update.is_tryboot]
TRYBOOT = [update.name for update in UPDATES if update.pause is not None and update.is_tryboot]
pytestmark = pytest.mark.skipif(
    shutil.which("fw_setenv") is None, reason="needs fw_setenv (Debian's libubootenv-tool)"
)


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with Launcher() as started:
        yield started


def said_of(names: list[str], sample: int) -> tuple[int, str]:
    said: list[str] = []
    failures = kills.run(said.append, jobs=2, update=names, sample=sample)
    return failures, "\n".join(map(str, said))


@pytest.mark.parametrize("name", WHOLE)
def test_whole_updates(name: str) -> None:
    failures, said = said_of([name], 61 if name.startswith("tryboot") else 31)
    assert not failures, said


def test_pauses() -> None:
    names = [name for name in PAUSED if not (name.startswith("bus") and local_bus.missing())]
    failures, said = said_of(names, 29)
    assert not failures, said


@needs_pi
def test_pauses_with_a_raspberry_pis_firmware() -> None:
    failures, said = said_of(TRYBOOT, 31)
    assert not failures, said


@needs_pi
def test_points_of_tryboot(launcher: Launcher) -> None:
    points = Run(launcher, BY_NAME["tryboot-success"], None).play()
    names = [name for _, name in points]
    assert names.count("write dev/mmcblk0p1") == 1  # autoboot.txt, by the commit
    assert {step for step, name in points if name == "write dev/mmcblk0p1"} == {"commit"}
    assert {step for step, name in points if "mmcblk0p3" in name} == {"install"}
    assert "start systemctl reboot" in names
    assert not [name for name in names if "environment" in name]


def test_every_kind_of_point_is_found(launcher: Launcher) -> None:
    points = Run(launcher, BY_NAME["success"], None).play()
    kinds = {name.split()[0] for _, name in points}
    assert kinds >= {"write", "rename", "link", "remove", "start", "end", "fork", "GET", "PUT", "POST"}
    assert [name for _, name in points].count("start environment write") == 2
    assert {step for step, name in points if "environment" in name} == {"install", "commit"}
    found = kills_of(BY_NAME["success"], points)
    assert len(found) == 4 * len(points) + 2
    assert {(kill.ordinal, kill.way) for kill in found if is_usual(kill) and kill.way != TORN} == {
        (number, way) for number in range(1, len(points) + 1) for way in (KILL, CUT)
    }


def test_a_kill_that_does_not_happen_is_no_success(launcher: Launcher) -> None:
    points = Run(launcher, BY_NAME["standalone"], None).play()
    kill = kills_of(BY_NAME["standalone"], points)[0]
    kill.occurrence = 100
    with pytest.raises(NotReached):
        Run(launcher, BY_NAME["standalone"], kill).play()


def test_an_update_that_ends_otherwise_is_noticed(launcher: Launcher) -> None:
    update = Update("broken", "success", faults={"ArtifactCommit_Enter_00": 1})
    with pytest.raises(Difference, match="undisturbed it ended with failure instead of success"):
        Run(launcher, update, None).play()


GOOD = [
    "status:downloading",
    "script:Download_Enter_00",
    "end script:Download_Enter_00",
    "script:Download_Leave_00",
    "end script:Download_Leave_00",
    "status:installing",
    "script:ArtifactInstall_Enter_00",
]
ROLLBACK = [judge.RESTART, "script:ArtifactRollback_Enter_00"]


@pytest.mark.parametrize(
    ("events", "wrong"),
    [
        (GOOD, ""),
        (GOOD + ROLLBACK, ""),
        (GOOD[:3] + ROLLBACK, "event 5: script:ArtifactRollback_Enter_00, where the table has "),
        (GOOD[:5] + GOOD[6:], "event 6: script:ArtifactInstall_Enter_00, where the table has "),
        (GOOD[:2] + GOOD[5:], "event 3: status:installing, where the table has "),
        ([*GOOD, *ROLLBACK, GOOD[2]], "event 10: end script:Download_Enter_00, but script:ArtifactRollback_"),
        (
            [*GOOD, *ROLLBACK, f"end {ROLLBACK[1]}", "script:ArtifactCommit_Enter_00"],
            "event 11: script:ArtifactCommit_Enter_00 after script:ArtifactRollback_Enter_00",
        ),
    ],
)
def test_the_judge(events: list[str], wrong: str) -> None:
    found = judge.first_wrong(events, is_standalone=False, has_module=False)
    assert found.startswith(wrong)
    assert bool(found) == bool(wrong)
