# SPDX-License-Identifier: Apache-2.0
"""Maintenance windows: the notation against systemd's own reading, time zones, week borders, properties."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent.windows import Window

BERLIN = ZoneInfo("Europe/Berlin")
HOUR_S = 3600


@pytest.fixture(autouse=True)
def _berlin() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Europe/Berlin"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def wall(text: str) -> float:
    """The moment at which a clock in Berlin shows it; with a Z one in Greenwich."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=BERLIN)).timestamp()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be [WEEKDAYS]"),
        ("UTC", "must be [WEEKDAYS]"),
        ("Mon", "must be [WEEKDAYS]"),
        ("daily", "'daily' is not a weekday"),
        ("02:00 Mon", "is not a date without a year"),
        ("Mon..Fri 02:00..04:00", "a range of minutes is refused: give the start, and lasting_s"),
        ("02:00..04", "a range of minutes is refused"),
        ("Fri..Mon 02:00", "'Fri..Mon' goes backwards"),
        ("Mon-Fri 02:00", "'Mon-Fri' is not a weekday"),
        ("Mo 02:00", "'Mo' is not a weekday"),
        ("Mon, 02:00", "'' is not a weekday"),
        ("24:00", "hour is '24', must be 0 to 23"),
        ("4..2:00", "hour '4..2' goes backwards"),
        ("02:60", "minute is '60'"),
        ("02:00:30", "seconds must be 00"),
        ("02:00:", "seconds must be 00"),
        ("02:00/5", "minute is '00/5'"),
        ("02:+1", "minute is '+1'"),
        ("02:\u0661", "minute is"),
        ("2026-*-* 02:00", "is not a date without a year"),
        ("*-02-30 02:00", "never comes"),
        ("*-13-1 02:00", "month is '13'"),
        ("*~1 02:00", "is not a date"),
        ("02:00 Europe/Berlin", "is not a date"),
        ("Mon *-*-* 02:00 UTC UTC", "must be"),
    ],
)
def test_what_is_not_of_the_subset_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Window(text, 60)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "now", "opens"),
    [
        ("Mon..Fri 02:00", "2026-11-27T02:00", "2026-11-30T02:00"),  # Friday, its moment is not after itself
        ("Mon..Fri 02:00", "2026-11-29T23:59", "2026-11-30T02:00"),  # over the border of the week
        ("Sun 23:30", "2026-11-29T23:30", "2026-12-06T23:30"),
        ("sunday,WED 00:00", "2026-11-24T12:00", "2026-11-25T00:00"),
        ("*-*-* 02:00:00", "2026-12-31T03:00", "2027-01-01T02:00"),
        ("2,14:00,30", "2026-05-01T02:30", "2026-05-01T14:00"),
        ("*:00", "2026-05-01T02:30", "2026-05-01T03:00"),
        ("Sat *-*-1..7 04:00", "2026-11-25T00:00", "2026-12-05T04:00"),
        ("02-29 00:00", "2026-01-01T00:00", "2028-02-29T00:00"),
        ("02:00 UTC", "2026-07-01T03:00", "2026-07-01T02:00Z"),
        ("Mon 00:30", "2026-07-05T23:00", "2026-07-06T00:30"),
        # Clocks: to summer on 2026-03-29 (02:00 becomes 03:00), back on 2026-10-25 (03:00 becomes 02:00).
        ("02:30", "2026-03-29T00:00", "2026-03-29T01:30Z"),  # skipped: 03:30 in summer
        ("02:30", "2026-03-29T12:00", "2026-03-30T02:30"),
        ("02:30", "2026-10-25T00:00", "2026-10-25T00:30Z"),  # twice: the first one
        ("02:30", "2026-10-25T01:00Z", "2026-10-26T02:30"),  # between the two
        ("03:00", "2026-10-25T00:00", "2026-10-25T02:00Z"),
    ],
)
def test_next_opening(text: str, now: str, opens: str) -> None:
    found = Window(text, 60).next_opening(wall(now))
    assert datetime.fromtimestamp(found, UTC) == datetime.fromtimestamp(wall(opens), UTC)


@pytest.mark.parametrize(
    ("text", "lasting_s", "now", "is_open"),
    [
        ("Mon..Fri 02:00", 7200, "2026-11-25T01:59:59", False),
        ("Mon..Fri 02:00", 7200, "2026-11-25T02:00", True),
        ("Mon..Fri 02:00", 7200, "2026-11-25T03:59:59", True),
        ("Mon..Fri 02:00", 7200, "2026-11-25T04:00", False),
        ("Mon..Fri 02:00", 7200, "2026-11-28T03:00", False),
        ("Sun 22:00", 6 * HOUR_S, "2026-11-30T03:59", True),  # over midnight and the border of the week
        ("Sun 22:00", 6 * HOUR_S, "2026-11-30T04:00", False),
        ("Fri 18:00", 7 * 24 * HOUR_S, "2026-12-04T17:59", True),  # a whole week
        # It lasts its seconds: on the day with 25 hours until 03:00 the second time it is 02:00.
        ("01:00", 2 * HOUR_S, "2026-10-25T00:59Z", True),
        ("01:00", 2 * HOUR_S, "2026-10-25T01:00Z", False),
        ("01:00", 2 * HOUR_S, "2026-03-29T01:59Z", True),
        ("01:00", 2 * HOUR_S, "2026-03-29T02:00Z", False),
    ],
)
def test_is_open(text: str, lasting_s: int, now: str, is_open: bool) -> None:
    assert Window(text, lasting_s).is_open(wall(now)) is is_open


numbers = st.one_of(st.just("*"), st.lists(st.integers(1, 12).map(str), min_size=1, max_size=3).map(",".join))
weekdays = st.sampled_from(["", "Mon ", "Sat,Sun ", "Tue..Thu,Sun "])
calendars = st.builds(
    lambda days, month, day, hour, minute, zone: f"{days}*-{month}-{day} {hour}:{minute}{zone}",
    weekdays,
    numbers,
    numbers,
    numbers,
    numbers,
    st.sampled_from(["", " UTC"]),
)
moments = st.integers(int(wall("2024-01-01T00:00")), int(wall("2040-01-01T00:00")))


@given(calendars, moments, st.integers(1, 7 * 86400))
def test_a_window_opens_at_its_next_opening_and_not_before(text: str, now: int, lasting_s: int) -> None:
    window = Window(text, lasting_s)
    opening = window.next_opening(now)
    assert opening > now
    assert window.is_open(opening)
    assert window.is_open(opening + lasting_s - 1)
    assert Window(text, 1).next_opening(opening - 1) == opening
    if not window.is_open(now):
        assert not window.is_open((now + opening) // 2)
        assert not window.is_open(opening - 1)


@given(st.text("Mon.,* -:/0123456789UTC~", max_size=24))
def test_any_text_is_a_window_or_refused(text: str) -> None:
    try:
        window = Window(text, 60)
    except ValueError as error:
        assert str(error)  # noqa: PT017
    else:
        assert window.next_opening(wall("2026-01-01T00:00")) < float("inf")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize(
    "text", ["Mon..Fri 02:00", "sat,Sunday *-1,7-1..7 2,14:05 UTC", "02-29 00:00", "Tue..Thu,Sun *:0,30:00"]
)
def test_systemd_reads_it_the_same_way(text: str) -> None:
    base = "2026-11-25 12:00:00"
    done = subprocess.run(
        ["systemd-analyze", "calendar", "--iterations=5", f"--base-time={base}", text],
        env={**os.environ, "TZ": "Europe/Berlin", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line]
    stamps = [value for name, value in lines if name.strip() in {"Next elapse"} or "Iter" in name]
    now, found = wall(base), []
    for _ in stamps:
        now = Window(text, 60).next_opening(now)
        found.append(datetime.fromtimestamp(now, BERLIN).strftime("%Y-%m-%d %H:%M:%S"))
    assert len(stamps) == 5
    assert [" ".join(stamp.split()[1:3]) for stamp in stamps] == found
