# SPDX-License-Identifier: Apache-2.0
"""What a stay at a control point saves of its hooks. The stay itself is played in tests/flow."""

from __future__ import annotations

import io
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from update_agent import control
from update_agent.bootloader import UBoot
from update_agent.config import Config
from update_agent.daemon import Daemon
from update_agent.errors import ControlError
from update_agent.log import Log
from update_agent.loop import Loop, Signals
from update_agent.machine import Context
from update_agent.outcome import Outcome
from update_agent.pauses import HOOKS_KEY, ControlPoint, warn_of_broken_hooks
from update_agent.remote import Remote, Reply
from update_agent.states import ROLLED_BACK, WIRE_POINTS
from update_agent.store import Store
from update_agent.update import Update


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    old = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    wakeup_fd = signal.set_wakeup_fd(-1)
    config = Config()
    config.datastore = str(tmp_path)
    config.conf_dir = str(tmp_path / "conf")
    config.data_dir = str(tmp_path / "data")
    log = Log(stream=io.StringIO())
    context = Context(config, log, Store(str(tmp_path), log), Loop(), UBoot())
    made = Daemon(context, Remote(config, log), Signals(context.loop))
    made.update = Update("3f1c", "https://example.com/a.mender")
    yield made
    signal.set_wakeup_fd(wakeup_fd)
    for number, handler in old.items():
        signal.signal(number, handler)


def put(daemon: Daemon, name: str, text: str) -> None:
    directory = Path(daemon.config.conf_dir) / "pause.d"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(text)


def stay(daemon: Daemon, step: str = "control.reboot") -> ControlPoint:
    return ControlPoint(daemon, daemon.flow[step], resumed=False)


def limits(point: ControlPoint) -> list[float | None]:
    return [vote.limit_at for vote in point._holds.votes]


def test_what_is_left_of_a_limit_is_saved_for_this_deployment_and_point(daemon: Daemon) -> None:
    hook = {"point": WIRE_POINTS[1], "when": "always", "limit_s": 3600, "at_limit": "fail"}
    put(daemon, "10-x.json", json.dumps(hook))
    put(daemon, "20-y.json", json.dumps({**hook, "point": WIRE_POINTS[2]}))
    first = stay(daemon)
    first._holds.look(time.monotonic() - 3000, time.time())
    first._save_left()
    daemon.store.reload()
    saved = daemon.store.get_json(HOOKS_KEY)
    assert isinstance(saved, dict)
    assert saved["at"] == ["3f1c", WIRE_POINTS[1]]
    (left_s,) = saved["left_s"].values()
    assert 0 <= left_s <= 600
    (limit_at,) = limits(stay(daemon))
    assert limit_at is not None
    assert limit_at <= time.monotonic() + left_s
    assert limits(stay(daemon, "control.commit")) == [None]
    daemon.update.id = "another"
    assert limits(stay(daemon)) == [None]


def test_without_hooks_nothing_is_saved(daemon: Daemon) -> None:
    stay(daemon)._save_left()
    assert daemon.store.get(HOOKS_KEY) is None


@pytest.mark.parametrize("text", ["[]", "{", '{"at": ["3f1c", "ArtifactReboot_Enter"]}', "null"])
def test_a_saved_value_that_is_nonsense_is_no_limit(daemon: Daemon, text: str) -> None:
    put(daemon, "10-x.json", json.dumps({"point": WIRE_POINTS[1], "when": "always"}))
    daemon.store.write({HOOKS_KEY: text})
    assert limits(stay(daemon)) == [None]


def test_broken_hooks_are_named_at_the_start(daemon: Daemon) -> None:
    put(daemon, "10-x.json", "{}")
    stream = io.StringIO()
    warn_of_broken_hooks(daemon.config, Log(stream=stream))
    assert (
        "WARNING: A pause hook is broken and will hold updates at ArtifactInstall_Enter: "
        in stream.getvalue()
    )
    assert "10-x.json: point is missing" in stream.getvalue()


COMMANDS = "update-control-maps"


@pytest.mark.parametrize(("verb", "event"), [("go_on", "go"), ("fail", "told to fail by map")])
def test_a_decision_is_used_up_on_disk_with_the_next_state(daemon: Daemon, verb: str, event: str) -> None:
    put(daemon, "10-x.json", json.dumps({"point": WIRE_POINTS[0], "when": "always"}))
    daemon.store.lock()
    daemon.update.payload_type = ""
    daemon.step = daemon.flow["control.install"]
    daemon.decisions.fail(WIRE_POINTS[0])
    if verb == "go_on":
        daemon.pause = control.Decision("pause")
        daemon.decisions.go_on()
    before = daemon.store.get(COMMANDS)
    point = ControlPoint(daemon, daemon.step, resumed=True)
    if event == "go":
        assert point.decide() == "go"
    else:
        with pytest.raises(ControlError, match=event):
            point.decide()
    assert daemon.store.get(COMMANDS) == before  # a restart now comes back to this pause, and it must count
    daemon.write_state("update-install")
    saved = daemon.store.get(COMMANDS)
    assert saved is not None
    assert saved != before
    assert json.loads(saved)["active"][0]["states"][WIRE_POINTS[0]]["action"] == "continue"


def test_a_success_is_saved_as_one_before_it_is_reported(daemon: Daemon) -> None:
    def saved() -> str:
        return str(json.loads(daemon.store.get("state") or "")["Name"])

    daemon.write_state("cleanup")
    assert saved() == "cleanup-after-success"
    daemon.config.outcome_survives_restart = False
    daemon.write_state("cleanup")
    assert saved() == "cleanup"
    daemon.config.outcome_survives_restart = True
    daemon.outcome = Outcome(ROLLED_BACK)
    daemon.write_state("cleanup")
    assert saved() == "cleanup"


def test_a_hook_that_is_always_due_does_not_keep_the_server_away(daemon: Daemon) -> None:
    """Its program takes longer than its interval, as on a slow device."""
    hook = {
        "point": WIRE_POINTS[1],
        "when": {"program": "/bin/true", "interval_s": 1},
        "limit_s": 3600,
        "at_limit": "fail",
    }
    put(daemon, "10-ask.json", json.dumps(hook))
    now = time.monotonic()
    document = {"id": "3f1c0000-0000-0000-0000-000000000000", "states": {WIRE_POINTS[1]: {"action": "pause"}}}
    daemon.update.id = str(document["id"])
    daemon.pool.set_server(control.parse_value(document), daemon.update.id, now - 5000)
    point = stay(daemon)
    point._holds.look(now - 100, time.time())
    point._decision = daemon.pool.evaluate(WIRE_POINTS[1], now)
    assert point._holds.next_look() < now
    wake = point._next_wake(now, None)
    assert (wake.at <= now, wake.then) == (True, "refresh")
    daemon.pool.set_server(control.parse_value(document), daemon.update.id, now)
    assert point._next_wake(now, None).then == "hooks"


@pytest.mark.parametrize("resumed", [False, True])
def test_a_decision_does_not_wait_for_a_server_that_does_not_answer(daemon: Daemon, resumed: bool) -> None:
    point = ControlPoint(daemon, daemon.flow["control.reboot"], resumed=resumed)
    point._paused = not resumed
    asked: list[bool] = []

    def report(*_: object, give_up: Callable[[], bool]) -> Reply:
        asked.append(give_up())
        daemon.decisions.pause([WIRE_POINTS[1]])
        asked.append(give_up())
        return Reply("failed", reason="given up")

    daemon.remote.report = report  # type: ignore[assignment]
    assert point._report() == "ok"
    assert asked == [False, True]
