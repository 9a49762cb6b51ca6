# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import islice

from update_agent.backoff import delays


def test_the_sequence_of_the_specification() -> None:
    assert list(delays(300)) == [60] * 3 + [120] * 3 + [240] * 3 + [300] * 3


def test_a_cap_on_the_sequence_itself_is_repeated_three_times_only() -> None:
    assert list(delays(240)) == [60] * 3 + [120] * 3 + [240] * 3
    assert list(delays(60)) == [60] * 3


def test_a_cap_below_a_minute_holds_from_the_start() -> None:
    assert list(delays(5)) == [5, 5, 5]


def test_a_retry_count_ends_early_or_stays_at_the_cap() -> None:
    assert list(delays(300, 2)) == [60, 60]
    assert list(delays(120, 8)) == [60] * 3 + [120] * 5


def test_a_huge_count_never_exceeds_the_cap() -> None:
    assert list(islice(delays(86400, 10**9), 5000, 5003)) == [86400] * 3
