# SPDX-License-Identifier: Apache-2.0
"""Decisions made on the device: on disk before the answer, at once, or refused and without any trace."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from update_agent import decisions
from update_agent.bootloader import UBoot
from update_agent.config import Config
from update_agent.control import COMMAND_ID, PRIORITY_MAX
from update_agent.daemon import Daemon
from update_agent.errors import ControlError, IdleError, StoreError
from update_agent.log import Log
from update_agent.loop import Loop, Signals
from update_agent.machine import Context
from update_agent.remote import Remote
from update_agent.states import POINTS, WIRE_POINTS
from update_agent.status import status
from update_agent.store import Store
from update_agent.update import Update

INSTALL, REBOOT, COMMIT = WIRE_POINTS
APP = "01234567-89ab-cdef-0123-456789abcdef"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[str]:
    old = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    wakeup_fd = signal.set_wakeup_fd(-1)
    yield str(tmp_path)
    signal.set_wakeup_fd(wakeup_fd)
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.fixture
def daemon(directory: str) -> Daemon:
    return start(directory)


def start(directory: str) -> Daemon:
    """A daemon on what is saved, as after a power cut. It does not run; nothing here reaches the network."""
    config = Config()
    config.datastore = directory
    log = Log("error")
    loop = Loop()
    context = Context(config, log, Store(directory, log), loop, UBoot())
    return Daemon(context, Remote(config, log), Signals(loop))


def app_map(point: str = INSTALL, action: str = "pause", priority: int = 0, **more: str) -> str:
    states = {point: {"action": action, **more}}
    return json.dumps({"id": APP, "priority": priority, "states": states})


def saved(daemon: Daemon) -> str | None:
    """What a reader of the disk finds."""
    return Store(daemon.config.datastore, Log("error")).get(daemon.MAPS_KEY)


def decide(daemon: Daemon, point: str) -> str:
    return daemon.pool.evaluate(point, time.monotonic()).action


def begin(daemon: Daemon, step: str = "download") -> None:
    """Have an update in progress, as far as `step`."""
    daemon.store.lock()
    daemon.update = Update("11111111-2222-3333-4444-555555555555", "http://127.0.0.1:9/a")
    daemon.step = daemon.flow[step]


def arrive(daemon: Daemon, point: str) -> str:
    """Reach a control point: what it is decided there."""
    daemon.step = next(
        s for s in daemon.flow.values() if s.work.kind == "control" and s.work.subject == point
    )
    decision = daemon.pool.evaluate(point, time.monotonic())
    daemon.pause = decision if decision.action == "pause" else None
    return decision.action


def end(daemon: Daemon) -> None:
    daemon._end("succeeded")
    daemon.step, daemon.pause = daemon.flow["idle"], None


def woken(daemon: Daemon) -> bool:
    return daemon.context.loop.wait_for_change(time.monotonic())


def test_a_map_is_on_disk_and_wakes_a_pause_before_the_answer(daemon: Daemon) -> None:
    assert daemon.decisions.set_map(app_map()) == daemon.config.map_expiration_s // 2 == 1800
    text = saved(daemon)
    assert text is not None
    assert json.loads(text)["active"][0]["id"] == APP
    assert woken(daemon)
    assert not woken(daemon)
    assert daemon.decisions.set_map(json.dumps({"id": APP, "states": {}})) == 1800
    assert saved(daemon) is None
    assert woken(daemon)
    assert daemon.decisions.set_map(json.dumps({"id": APP})) == 1800
    assert not woken(daemon)  # nothing was deleted, so nothing is to be decided again


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        json.dumps({"id": "x"}),
        json.dumps({"id": APP, "states": {"Idle_Enter": {}}}),
        app_map(priority=11),
        app_map(action="wait"),
        app_map() + "x",
        json.dumps({"id": COMMAND_ID, "states": {INSTALL: {"action": "pause"}}}),
    ],
)
def test_a_bad_map_changes_nothing(daemon: Daemon, text: str) -> None:
    daemon.decisions.set_map(app_map())
    before = saved(daemon)
    woken(daemon)
    with pytest.raises(ControlError):
        daemon.decisions.set_map(text)
    assert saved(daemon) == before
    assert [entry.map.id for entry in daemon.pool.entries()] == [APP]
    assert not woken(daemon)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(
    st.text()
    | st.recursive(
        st.none() | st.integers() | st.text(),
        lambda c: (
            st.lists(c)
            | st.dictionaries(st.sampled_from(["id", "priority", "states", INSTALL, "action"]) | st.text(), c)
        ),
    ).map(json.dumps)
)
def test_what_a_stranger_sends_is_taken_or_refused(daemon: Daemon, text: str) -> None:
    before = saved(daemon)
    try:
        daemon.decisions.set_map(text)
    except ControlError:
        assert saved(daemon) == before


def test_a_map_that_cannot_be_saved_is_refused(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.decisions.set_map(app_map(action="force_continue"))
    before = saved(daemon)
    woken(daemon)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("update_agent.store.replace", full)
    with pytest.raises(StoreError, match="No space left"):
        daemon.decisions.set_map(app_map())
    with pytest.raises(StoreError):
        daemon.decisions.pause([REBOOT])
    monkeypatch.undo()
    assert saved(daemon) == before
    assert decide(daemon, INSTALL) == "continue"
    assert decide(daemon, REBOOT) == "continue"
    assert not woken(daemon)


def test_a_map_is_refused_during_the_update_of_another_process(daemon: Daemon) -> None:
    other = Store(daemon.config.datastore, Log("error"))
    other.lock()
    with pytest.raises(StoreError, match="another update process"):
        daemon.decisions.set_map(app_map())
    assert decide(daemon, INSTALL) == "continue"
    other.write({"standalone-state": "theirs"})
    other.unlock()
    daemon.decisions.set_map(app_map())
    assert Store(daemon.config.datastore, Log("error")).get("standalone-state") == "theirs"


def test_a_thousand_maps_and_no_end_of_them_is_refused(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "MAPS_MAX", 20)
    for number in range(20):
        daemon.decisions.set_map(app_map().replace("01234567", f"{number:08x}"))
    with pytest.raises(ControlError, match="20 control maps already"):
        daemon.decisions.set_map(app_map())
    daemon.decisions.set_map(app_map(REBOOT).replace("01234567", f"{3:08x}"))  # replacing is fine
    assert len(daemon.pool.entries()) == 20


def test_a_pause_by_command_holds_until_it_is_ended_and_is_then_used_up(daemon: Daemon) -> None:
    assert daemon.decisions.pause([INSTALL, COMMIT]) == [INSTALL, COMMIT]
    begin(daemon)
    assert arrive(daemon, INSTALL) == "pause"
    assert decide(daemon, INSTALL) == "pause"
    assert daemon.decisions.go_on() == [INSTALL]
    assert woken(daemon)
    assert arrive(daemon, INSTALL) == "continue"
    assert arrive(daemon, REBOOT) == "continue"
    assert arrive(daemon, COMMIT) == "pause"
    daemon.decisions.go_on(COMMIT)
    assert arrive(daemon, COMMIT) == "continue"
    end(daemon)
    assert saved(daemon) is None
    begin(daemon)
    assert [arrive(daemon, point) for point in WIRE_POINTS] == ["continue"] * 3


def test_a_pause_by_command_neither_expires_nor_ends_with_a_power_cut(daemon: Daemon) -> None:
    daemon.decisions.pause([REBOOT])
    far = time.monotonic() + 10 * 365 * 86400
    assert daemon.pool.evaluate(REBOOT, far).action == "pause"
    again = start(daemon.config.datastore)
    assert again.pool.evaluate(REBOOT, far).action == "pause"
    assert again.pool.next_deadline(far, "", 1800).at == float("inf")
    assert again.decisions.maps()[0]["expires_in_s"] is None


def test_go_on_overrules_an_application_once_but_not_its_equal(daemon: Daemon) -> None:
    daemon.decisions.set_map(app_map(priority=5))
    begin(daemon)
    assert arrive(daemon, INSTALL) == "pause"
    daemon.decisions.go_on()
    assert arrive(daemon, INSTALL) == "continue"
    assert arrive(daemon, INSTALL) == "pause"
    daemon.decisions.set_map(app_map(priority=PRIORITY_MAX))
    daemon.decisions.go_on()
    assert arrive(daemon, INSTALL) == "pause"


def test_fail_where_it_is_paused(daemon: Daemon) -> None:
    daemon.decisions.pause([REBOOT])
    begin(daemon, "reboot.check")
    assert arrive(daemon, REBOOT) == "pause"
    assert daemon.decisions.fail() == [REBOOT]
    assert arrive(daemon, REBOOT) == "fail"


def test_fail_at_the_next_point_whichever_it_is_and_only_this_update(daemon: Daemon) -> None:
    daemon.decisions.pause([INSTALL])
    begin(daemon, "install")
    assert daemon.decisions.fail() == list(POINTS[3:])
    assert arrive(daemon, REBOOT) == "fail"
    end(daemon)
    begin(daemon)
    assert [arrive(daemon, point) for point in WIRE_POINTS] == ["pause", "continue", "continue"]


def test_a_power_cut_at_the_end_does_not_let_a_command_reach_the_next_update(daemon: Daemon) -> None:
    begin(daemon)
    daemon.decisions.fail()
    daemon.store.unlock()
    again = start(daemon.config.datastore)  # the saved update is gone already, the maps are not
    assert saved(again) is None
    assert again.pool.entries() == []


def test_commands_that_are_for_nothing(daemon: Daemon) -> None:
    for command in (daemon.decisions.go_on, daemon.decisions.fail):
        with pytest.raises(IdleError):
            command()
        with pytest.raises(ControlError, match="not a control point"):
            command("Idle_Enter")
    with pytest.raises(ControlError, match="no control point"):
        daemon.decisions.pause([])
    with pytest.raises(ControlError, match="not a control point"):
        daemon.decisions.pause([INSTALL, "x"])
    assert daemon.pool.entries() == []
    begin(daemon, "commit.enter")
    with pytest.raises(IdleError, match="past all control points"):
        daemon.decisions.fail()
    with pytest.raises(IdleError, match=f"past {INSTALL}"):
        daemon.decisions.fail(INSTALL)


def test_go_on_elsewhere_undoes_a_command(daemon: Daemon) -> None:
    daemon.decisions.pause([INSTALL, REBOOT])
    assert daemon.decisions.go_on(REBOOT) == [REBOOT]
    begin(daemon)
    assert arrive(daemon, INSTALL) == "pause"
    assert arrive(daemon, REBOOT) == "continue"
    with pytest.raises(IdleError, match=f"paused at {COMMIT}"):
        daemon.decisions.go_on(COMMIT)


def test_go_on_said_twice_is_go_on_and_not_undone(daemon: Daemon) -> None:
    daemon.decisions.set_map(app_map(INSTALL))
    begin(daemon)
    assert arrive(daemon, INSTALL) == "pause"
    daemon.decisions.go_on()
    daemon.write_state("pause-before-install")
    daemon.store.unlock()
    again = start(daemon.config.datastore)  # the agent was killed before it could answer; not paused yet
    begin(again)
    assert again.decisions.go_on(INSTALL) == [INSTALL]
    assert arrive(again, INSTALL) == "continue"


def test_status_tells_who_holds_the_update_and_until_when(daemon: Daemon) -> None:
    idle = status(daemon)
    assert (idle["state"], idle["deployment"], idle["pause"]) == ("Idle", None, None)
    assert idle["next_poll_in_s"] == 0
    daemon.decisions.set_map(app_map(on_map_expire="continue"))
    begin(daemon)
    arrive(daemon, INSTALL)
    daemon.wake = daemon.pool.next_deadline(time.monotonic(), daemon.update.id, 1800)
    pause = status(daemon)["pause"]
    assert isinstance(pause, dict)
    assert pause["point"] == INSTALL
    assert pause["by"][0]["id"] == APP
    assert pause["by"][0]["from"] == "application"
    assert (pause["expires_in_s"], pause["at_expiry"]) == (3600, "continue")
    assert (pause["next_check_in_s"], pause["next_check"], pause["why"]) == (1800, "evaluate", "half-time")
    json.dumps(status(daemon))
    daemon.decisions.pause([INSTALL])
    arrive(daemon, INSTALL)
    pause = status(daemon)["pause"]
    assert isinstance(pause, dict)
    assert [entry["from"] for entry in pause["by"]] == ["command"]
    assert (pause["expires_in_s"], pause["at_expiry"]) == (None, None)
    assert [entry["from"] for entry in daemon.decisions.maps()] == ["application", "command"]


def test_changes_are_announced(daemon: Daemon) -> None:
    told: list[int] = []
    daemon.watchers.append(lambda: told.append(1))
    daemon.decisions.set_map(app_map())
    assert told == [1]
    daemon.decisions.pause([REBOOT])
    assert told == [1, 1]
    with pytest.raises(ControlError):
        daemon.decisions.set_map("")
    assert told == [1, 1]


def test_nothing_is_left_beside_the_store(daemon: Daemon) -> None:
    daemon.decisions.set_map(app_map())
    names = set(os.listdir(daemon.config.datastore))
    assert names <= {"update-agent.json", "update-agent.json.previous", "update-agent.lock"}
