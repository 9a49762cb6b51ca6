# SPDX-License-Identifier: Apache-2.0
"""Phases: which devices get a deployment when. Pure.

A device has its phase from the beginning, so that it can be seen which come first: those heard of most
recently, because a first phase of devices that are switched off tries nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from update_tools.server.faults import Unprocessable
from update_tools.server.gates import parse_moment

MAX_PHASES = 20
MAX_DELAY_S = 366 * 86400


@dataclass(frozen=True)
class Phase:
    """A part of the fleet (a share, a number, or the rest) and its start: a moment, or after the one before.

    The share is of all devices of the deployment.
    """

    percent: float | None = None
    count: int | None = None
    start_at: datetime | None = None
    delay_s: int | None = None


@dataclass(frozen=True)
class Batch:
    """A phase with its devices."""

    start_at: datetime | None
    devices: Sequence[str]
    percent: float | None = None

    def document(self) -> dict[str, Any]:
        """For the database: what the API shows, without the devices."""
        value: dict[str, Any] = {"device_count": len(self.devices)}
        if self.percent is not None:
            value["batch_size"] = self.percent
        if self.start_at is not None:
            value["start_ts"] = self.start_at.isoformat()
        return value


def plan(
    devices: Sequence[str], phases: Sequence[Phase], *, start_at: datetime | None, now: datetime
) -> list[Batch]:
    """The phases with their devices (given first to last) and starts; None starts at once.

    Raises Unprocessable when a later phase would start before an earlier one, or a phase gets nobody.
    """
    if start_at is not None and start_at <= now:
        start_at = None
    if not phases:
        return [Batch(start_at, devices)]
    batches: list[Batch] = []
    taken = 0
    before = start_at
    for number, phase in enumerate(phases, 1):
        if phase.start_at is not None:
            start = phase.start_at
        elif phase.delay_s:
            start = _later(before or now, phase.delay_s, number)
        else:
            start = before or now
        if before is not None and start < before:
            raise Unprocessable(f"phase {number} would start before phase {number - 1}")
        before = start
        size = _size(phase, len(devices), len(devices) - taken)
        if number == len(phases):
            size = len(devices) - taken
        if size == 0:
            raise Unprocessable(
                f"phase {number} would have no devices", hint=f"there are {len(devices)}: use fewer phases"
            )
        chosen = devices[taken : taken + size]
        taken += size
        batches.append(Batch(start if start > now else None, chosen, phase.percent))
    return batches


def _later(moment: datetime, seconds: int, number: int) -> datetime:
    try:
        return moment + timedelta(seconds=seconds)
    except OverflowError as error:
        raise Unprocessable(f"phase {number} would start after the year 9999") from error


def _size(phase: Phase, total: int, left: int) -> int:
    if phase.percent is not None:
        return min(math.ceil(total * phase.percent / 100), left)
    if phase.count is not None:
        return min(phase.count, left)
    return left


def parse(value: Any) -> list[Phase]:
    """Phases of a management request. Raises Unprocessable.

    The reference's `batch_size` (percent) and `start_ts`; ours `device_count` and `delay_s` after the phase
    before. The last phase takes the rest, whatever it says.
    """
    if not isinstance(value, list) or len(value) > MAX_PHASES:
        raise Unprocessable(f"phases must be a list of at most {MAX_PHASES}")
    phases = []
    for number, entry in enumerate(value, 1):
        where = f"phase {number}"
        if not isinstance(entry, dict):
            raise Unprocessable(f"{where} must be an object")
        for name in entry:
            if name not in ("batch_size", "device_count", "start_ts", "delay_s"):
                raise Unprocessable(f"{where} has no field {name!r:.60}")
        percent, count = entry.get("batch_size"), entry.get("device_count")
        if percent is not None and count is not None:
            raise Unprocessable(f"{where} has both batch_size and device_count")
        if percent is None and count is None and number < len(value):
            raise Unprocessable(
                f"{where} needs batch_size or device_count", hint="only the last takes the rest"
            )
        if percent is not None and not (_is_number(percent) and 0 < percent <= 100):
            raise Unprocessable(f"{where}: batch_size is a percentage, not {percent!r:.40}")
        if count is not None and not (_is_number(count) and count >= 1 and count == int(count)):
            raise Unprocessable(f"{where}: device_count is a number of devices, not {count!r:.40}")
        delay_s = entry.get("delay_s")
        if delay_s is not None and not (_is_number(delay_s) and 0 <= delay_s <= MAX_DELAY_S):
            raise Unprocessable(f"{where}: delay_s is 0 to {MAX_DELAY_S}, not {delay_s!r:.40}")
        start = entry.get("start_ts")
        if start is not None and delay_s:
            raise Unprocessable(f"{where} has both start_ts and delay_s")
        phases.append(
            Phase(
                percent,
                None if count is None else int(count),
                None if start is None else parse_moment(start, f"{where}.start_ts"),
                None if delay_s is None else int(delay_s),
            )
        )
    return phases


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def current(starts: Sequence[datetime | None], now: datetime | None = None) -> int:
    """The number (from 0) of the last phase that has begun; -1 before the first."""
    moment = now or datetime.now(UTC)
    begun = [number for number, start in enumerate(starts) if start is None or start <= moment]
    return begun[-1] if begun else -1
