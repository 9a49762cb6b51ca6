# SPDX-License-Identifier: Apache-2.0
"""How times look in JSON answers."""

from __future__ import annotations

from datetime import datetime


def moment(at: datetime) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moments(**at: datetime | None) -> dict[str, str]:
    """The fields that have a time."""
    return {name: moment(value) for name, value in at.items() if value is not None}
