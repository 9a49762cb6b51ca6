# SPDX-License-Identifier: Apache-2.0
"""A device whose clock is not set yet: TLS fails, and is tried again when it has been. No network here."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from update_agent import daemon as daemons
from update_agent.bootloader import UBoot
from update_agent.config import Config
from update_agent.daemon import Daemon
from update_agent.log import Log
from update_agent.loop import Loop, Signals
from update_agent.machine import Context
from update_agent.remote import Remote, Reply
from update_agent.store import Store


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """It has just polled, and would do so again after the regular interval."""
    old = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    wakeup_fd = signal.set_wakeup_fd(-1)
    config = Config()
    config.datastore = str(tmp_path)
    (tmp_path / "device_type").write_text("device_type=virt64\n")
    log, loop = Log("error"), Loop()
    made = Daemon(
        Context(config, log, Store(str(tmp_path), log), loop, UBoot()), Remote(config, log), Signals(loop)
    )
    for timer in (made.poll_timer, made.inventory_timer):
        timer.started(time.monotonic())
    yield made
    signal.set_wakeup_fd(wakeup_fd)
    for number, handler in old.items():
        signal.signal(number, handler)


class Clock:
    """Wall time that jumps when asked to; nothing else does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0.0
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.ahead_s)
        monkeypatch.setattr(daemons.ClockWatch, "LOOK_S", 0.01)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def fails(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, *, is_clock: bool) -> None:
    reply = Reply("failed", reason="the certificate is not valid yet", is_clock=is_clock)
    monkeypatch.setattr(daemon.remote, "poll", lambda _: reply)
    assert daemon.on_request(daemon.flow["sync.poll"]) == "fail"


def test_a_poll_that_failed_for_the_clock_is_repeated_when_the_clock_is_set(
    daemon: Daemon, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(daemon, monkeypatch, is_clock=True)
    assert daemon.poll_timer.due > time.monotonic() + 50
    daemon.context.loop.call_at(time.monotonic() + 0.05, lambda: setattr(clock, "ahead_s", 1e9))
    assert {daemon.on_wait(daemon.flow["idle"]) for _ in range(2)} == {"inventory", "deployment"}
    assert clock.ahead_s
    assert math.isinf(daemon._clock.next_look(time.monotonic()))


def test_a_poll_that_failed_otherwise_is_not(
    daemon: Daemon, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for its backoff, and nothing looks at the clock."""
    fails(daemon, monkeypatch, is_clock=False)
    assert math.isinf(daemon._clock.next_look(time.monotonic()))
    clock.ahead_s = 1e9
    daemon.context.loop.call_at(time.monotonic() + 0.05, lambda: daemon.signals.pending.add(signal.SIGUSR2))
    daemon.context.loop.call_at(time.monotonic() + 0.05, daemon.context.loop.wake)
    assert daemon.on_wait(daemon.flow["idle"]) == "inventory"
    assert daemon.poll_timer.due > time.monotonic() + 50


def test_a_report_that_failed_for_the_clock_is_repeated_when_the_clock_is_set(
    daemon: Daemon, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a reboot into the new system, on a board whose clock then begins anew."""
    replies = [Reply("failed", reason="not valid yet", is_clock=True), Reply("ok")]
    monkeypatch.setattr(daemon.remote, "report", lambda *_: replies.pop(0))
    daemon.context.loop.call_at(time.monotonic() + 0.05, lambda: setattr(clock, "ahead_s", 1e9))
    (step,) = [step for step in daemon.flow.values() if step.retried and step.work.subject == "installing"]
    assert daemon.on_report(step) == "ok"
    assert not replies
