# SPDX-License-Identifier: Apache-2.0
"""Maintenance windows: when they open in systemd's calendar notation, and for how long. No I/O.

systemd's notation names moments, not spans (systemd reads `02:00..04:00` as the minutes 0 to 4 of hour 2),
so a window is the moments at which it opens and the seconds that it lasts. The subset, each part as systemd
reads it:

    [WEEKDAYS] [[*-]MONTH-DAY] HOUR:MINUTE[:00] [UTC]

WEEKDAYS are English names, whole or three letters, as a list of names and ranges: `Sat,Sun`, `Mon..Fri`.
The numbers are `*` or a list of numbers and, but for the minute, ranges: `*-*-1..7`, `2,14:00`. Without UTC
it is the device's local time. Refused, so that nobody misreads it: years, seconds, ranges of minutes, steps
(`/`), the last days of a month (`~`), ranges that go backwards, words such as `daily`, a time left out,
other time zones.

Where daylight saving skips the moment, the window opens as much after the last moment before the gap (02:30
becomes 03:30); where a moment comes twice, the first one counts. A window lasts its seconds, whatever
clocks do.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LASTING_MAX_S = 7 * 86400
_DAY_S = 86400
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTH_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_SEARCH_DAYS = 41 * 366  # a given weekday on February 29 may be 40 years away, around 2100


class Window:
    """Opens at each moment of the calendar `text` for `lasting_s` seconds. `wall` is a time.time()."""

    __slots__ = ("_days", "_is_utc", "_minutes", "_months", "_weekdays", "lasting_s", "text")

    def __init__(self, text: str, lasting_s: int) -> None:
        """Raises ValueError with the reason when the text is outside of the subset or never comes true."""
        self.text = text
        self.lasting_s = lasting_s
        words = text.split()
        self._is_utc = words[-1:] == ["UTC"]
        if self._is_utc:
            words.pop()
        self._weekdays = _weekdays(words.pop(0)) if words and words[0][0].isalpha() else set(range(7))
        self._months, self._days = set(range(1, 13)), set(range(1, 32))
        if len(words) == 2:
            self._months, self._days = _date(words.pop(0))
        if len(words) != 1 or ":" not in words[0]:
            raise ValueError("must be [WEEKDAYS] [MONTH-DAY] HOUR:MINUTE [UTC]")
        hour, _, rest = words[0].partition(":")
        minute, _, second = rest.partition(":")
        if second not in {"", "0", "00"} or words[0].endswith(":"):
            raise ValueError(f"seconds must be 00, not {second!r}")
        if ".." in minute:
            raise ValueError("a range of minutes is refused: give the start, and lasting_s for how long")
        hours, minutes = _numbers(hour, "hour", 0, 23), _numbers(minute, "minute", 0, 59)
        self._minutes = [60 * hour + minute for hour in sorted(hours) for minute in sorted(minutes)]

    def is_open(self, wall: float) -> bool:
        """True from the moment it opens, the last of its seconds excluded."""
        today = self._today(wall)
        first = today - self.lasting_s // _DAY_S - 2  # the time zone's offset and a clock change are within
        return any(
            opening <= wall < opening + self.lasting_s
            for day in range(first, today + 2)
            for opening in self._openings(day)
        )

    def next_opening(self, wall: float) -> float:
        """The first moment after `wall` at which it opens."""
        today = self._today(wall)
        for day in range(today - 1, today + _SEARCH_DAYS):
            later = [opening for opening in self._openings(day) if opening > wall]
            if later:
                return min(later)
        return float("inf")

    def _today(self, wall: float) -> int:
        """The day of a moment, counted from 1970-01-01 on the clock that the window goes by."""
        offset_s = 0 if self._is_utc else time.localtime(wall).tm_gmtoff
        return int(wall + offset_s) // _DAY_S

    def _openings(self, day: int) -> Iterator[float]:
        midnight = day * _DAY_S  # as if the clock were UTC's
        date = time.gmtime(midnight)
        if (
            date.tm_mon not in self._months
            or date.tm_mday not in self._days
            or date.tm_wday not in self._weekdays
        ):
            return
        before = after = 0
        if not self._is_utc:
            before = time.localtime(midnight - _DAY_S).tm_gmtoff
            after = time.localtime(midnight + 2 * _DAY_S).tm_gmtoff
        for minute in self._minutes:
            yield _moment(midnight + 60 * minute, before, after)


def _moment(reading: int, before: int, after: int) -> float:
    """When a local clock shows `reading`, on a day around which its offset goes from `before` to `after`."""
    if before != after:
        for offset_s in (before, after):
            if time.localtime(reading - offset_s).tm_gmtoff == offset_s:
                return float(reading - offset_s)
    return float(reading - before)


def _weekdays(text: str) -> set[int]:
    days: set[int] = set()
    for part in text.split(","):
        first, dots, last = part.partition("..")
        low = _weekday(first)
        high = _weekday(last) if dots else low
        if high < low:
            raise ValueError(f"{part!r} goes backwards, the week begins with Mon")
        days.update(range(low, high + 1))
    return days


def _weekday(name: str) -> int:
    for number, known in enumerate(_WEEKDAYS):
        if name.lower() in {known, known[:3]}:
            return number
    raise ValueError(f"{name!r} is not a weekday, such as Mon")


def _date(text: str) -> tuple[set[int], set[int]]:
    parts = text.split("-")
    if len(parts) == 3 and parts[0] == "*":
        parts.pop(0)
    if len(parts) != 2:
        raise ValueError(f"{text!r} is not a date without a year, such as *-*-1..7")
    months, days = _numbers(parts[0], "month", 1, 12), _numbers(parts[1], "day", 1, 31)
    if all(min(days) > _MONTH_DAYS[month - 1] for month in months):
        raise ValueError(f"{text!r} never comes")
    return months, days


def _numbers(text: str, what: str, low: int, high: int) -> set[int]:
    if text == "*":
        return set(range(low, high + 1))
    numbers: set[int] = set()
    for part in text.split(","):
        first, dots, last = part.partition("..")
        start = _number(first, what, low, high)
        end = _number(last, what, low, high) if dots else start
        if end < start:
            raise ValueError(f"{what} {part!r} goes backwards")
        numbers.update(range(start, end + 1))
    return numbers


def _number(text: str, what: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 2 and low <= int(text) <= high):
        raise ValueError(f"{what} is {text!r}, must be {low} to {high}")
    return int(text)
