# SPDX-License-Identifier: Apache-2.0
"""Waiting: descriptors, deadlines, callbacks served meanwhile, and none of it in a forked child."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from update_agent.loop import Loop, Signals, plain_wait


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    made = [os.pipe() for _ in range(2)]
    yield made
    for pair in made:
        for fd in pair:
            os.close(fd)


def soon() -> float:
    return time.monotonic() + 0.02


def test_what_is_readable(pipes: list[tuple[int, int]]) -> None:
    (one, one_in), (two, _) = pipes
    assert plain_wait([one, two], soon()) == []
    os.write(one_in, b"x")
    assert plain_wait([one, two], None) == [one]
    assert plain_wait([], soon()) == []
    assert plain_wait([two], time.monotonic() - 1) == []


def test_callbacks_are_served_while_waiting_for_others(pipes: list[tuple[int, int]]) -> None:
    (one, one_in), (two, two_in) = pipes
    loop = Loop()
    served = []

    def serve() -> None:
        served.append(os.read(one, 1))
        os.write(two_in, b"y")

    loop.watch(one, serve)
    os.write(one_in, b"x")
    assert loop.wait([two], None) == [two]
    assert served == [b"x"]
    loop.unwatch(one)
    os.write(one_in, b"x")
    assert loop.wait([], soon()) == []
    assert served == [b"x"]


def test_wake_ends_a_wait_for_change_once() -> None:
    loop = Loop()
    loop.wake()
    assert loop.wait_for_change(None)
    assert not loop.wait_for_change(soon())


def test_a_forked_child_does_not_serve_the_callbacks_of_its_parent(pipes: list[tuple[int, int]]) -> None:
    (one, one_in), (two, two_in) = pipes
    loop = Loop()
    served = []
    loop.watch(one, lambda: served.append(os.read(one, 1)))
    os.write(one_in, b"x")
    pid = os.fork()
    if pid == 0:
        os.write(two_in, b"y")
        os._exit(0 if loop.wait([two], None) == [two] and not served else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert loop.wait([], soon()) == []
    assert served == [b"x"]


def test_signals_are_remembered_until_taken() -> None:
    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    loop = Loop()
    try:
        signals = Signals(loop)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert loop.wait_for_change(None)
        assert not signals.take(signal.SIGUSR2)
        assert signals.take(signal.SIGUSR1)
        assert not signals.take(signal.SIGUSR1)
    finally:
        os.close(signal.set_wakeup_fd(-1))
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        for fd in list(loop._callbacks):
            os.close(fd)


def test_a_timer_is_called_once_at_its_time_while_something_waits(pipes: list[tuple[int, int]]) -> None:
    (one, one_in), _ = pipes
    loop = Loop()
    called = []

    def ring() -> None:
        called.append(time.monotonic())
        os.write(one_in, b"x")

    at = soon()
    loop.call_at(at, ring)
    assert loop.wait([one], None) == [one]
    assert called[0] >= at
    assert loop.wait([], soon()) == []
    assert len(called) == 1


def test_a_timer_that_was_moved_or_cancelled() -> None:
    loop = Loop()
    called: list[int] = []

    def ring() -> None:
        called.append(1)

    loop.call_at(time.monotonic(), ring)
    loop.call_at(time.monotonic() + 3600, ring)
    assert loop.wait([], soon()) == []
    loop.call_at(time.monotonic(), ring)
    loop.cancel(ring)
    loop.cancel(ring)
    assert loop.wait([], soon()) == []
    assert called == []


def test_a_timer_can_end_a_wait_for_change_that_has_no_deadline() -> None:
    loop = Loop()
    loop.call_at(soon(), loop.wake)
    assert loop.wait_for_change(None)
    loop.call_at(soon(), loop.wake)
    assert loop.wait_for_change(float("inf"))
