# SPDX-License-Identifier: Apache-2.0
"""When to poll next, in seconds that are only numbers."""

from __future__ import annotations

from update_agent.config import Config
from update_agent.timers import ClockWatch, PollTimer


def timer(**settings: int) -> PollTimer:
    config = Config()
    for name, value in settings.items():
        setattr(config, name, value)
    return PollTimer(1800, config, 1000.0)


def failures(poll: PollTimer, count: int) -> list[float]:
    """Waits after that many polls that fail, each made when it is due."""
    waits = []
    for _ in range(count):
        now = poll.due
        poll.started(now)
        poll.failed(now)
        waits.append(poll.due - now)
    return waits


def test_the_first_poll_is_due_at_once() -> None:
    assert timer().due == 1000


def test_a_poll_that_succeeds_is_made_again_after_the_interval_from_its_start() -> None:
    poll = timer()
    poll.started(1000)
    poll.succeeded()
    assert poll.due == 2800


def test_failures_come_back_with_the_backoff_and_then_with_the_interval() -> None:
    sequence = [60, 60, 60, 120, 120, 120, 240, 240, 240, 300, 300, 300]
    assert failures(timer(), 15) == [*sequence, 1800, 1800, 1800]


def test_a_retry_count_is_obeyed() -> None:
    assert failures(timer(retry_poll_count=2), 4) == [60, 60, 1800, 1800]


def test_a_success_starts_the_backoff_afresh() -> None:
    poll = timer(retry_poll_count=2)
    failures(poll, 3)
    poll.succeeded()
    assert failures(poll, 3) == [60, 60, 1800]


def test_retry_after_is_kept_exactly_and_uses_up_no_retry() -> None:
    poll = timer(retry_poll_count=1)
    poll.failed(1000, retry_after_s=7.0)
    assert poll.due == 1007
    assert failures(poll, 2) == [60, 1800]


def test_a_small_cap_and_a_small_first_wait() -> None:
    assert failures(timer(retry_poll_interval_s=5), 4) == [5, 5, 5, 1800]
    assert failures(timer(retry_first_interval_s=1, retry_poll_interval_s=2), 7) == [1, 1, 1, 2, 2, 2, 1800]


# The wall clock


def test_a_clock_that_is_set_is_noticed_once_and_only_if_it_was_suspected() -> None:
    watch = ClockWatch()
    assert not watch.was_set(10.0, 1e9)
    assert watch.next_look(10.0) == float("inf")
    watch.suspect(True, 10.0, 100.0)
    assert watch.next_look(10.0) == 10.0 + ClockWatch.LOOK_S
    assert not watch.was_set(20.0, 110.0)
    assert not watch.was_set(20.0, 110.5)  # steered
    assert watch.was_set(30.0, 1.7e9)
    assert not watch.was_set(31.0, 1.7e9 + 1)
    assert watch.next_look(31.0) == float("inf")


def test_a_clock_that_was_set_back_is_noticed_as_well() -> None:
    watch = ClockWatch()
    watch.suspect(True, 10.0, 1.7e9)
    assert watch.was_set(11.0, 1.6e9)


def test_a_request_that_worked_ends_the_suspicion() -> None:
    watch = ClockWatch()
    watch.suspect(True, 10.0, 100.0)
    watch.suspect(False, 20.0, 110.0)
    assert not watch.was_set(30.0, 1.7e9)
