# SPDX-License-Identifier: Apache-2.0
"""Waits between retries (device-api.md section 8)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_REPEAT = 3


def delays(cap_s: int, count: int = 0, *, first_s: int = 60) -> Iterator[int]:
    """Seconds to wait before each retry: 60 three times, then doubled, each three times, at most `cap_s`.

    Ends after three waits of `cap_s`, or with `count` > 0 after that many waits. A cap under 60 s is used
    from the start; callers whose requests must not be hurried pass `max(first_s, cap_s)`. `first_s` is the
    60 seconds, for those who want to see retries sooner (RetryFirstIntervalSeconds).
    """
    number = 0
    while number < count or not count:
        delay_s = min(first_s << min(number // _REPEAT, 30), cap_s)
        yield delay_s
        number += 1
        if not count and delay_s == cap_s and number % _REPEAT == 0:
            return
