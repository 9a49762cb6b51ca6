# SPDX-License-Identifier: Apache-2.0
"""How things look on a page: times, sizes, identities, log lines; and the templates that use them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from update_tools.server.db import Event


def timeline(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Events with the time that passed before each."""
    rows: list[dict[str, Any]] = []
    for event in events:
        seconds = (event.at - rows[-1]["event"].at).total_seconds() if rows else None
        rows.append({"event": event, "after": None if seconds is None else span(seconds)})
    return rows


def log_lines(messages: list[dict[str, Any]], query: str) -> list[dict[str, Any]]:
    """The log's lines, or those that contain the text, with the place marked."""
    lines = []
    for number, entry in enumerate(messages, 1):
        text = entry["message"]
        if query and query.lower() not in f"{entry['level']} {text}".lower():
            continue
        lines.append(
            {
                "number": number,
                "at": entry["timestamp"],
                "level": entry["level"].lower(),
                "text": mark(text, query),
            }
        )
    return lines


def mark(text: str, query: str) -> Markup:
    """Text made safe for a page, with every occurrence of the query marked."""
    if not query:
        return escape(text)
    pieces = re.split(f"({re.escape(query)})", text, flags=re.IGNORECASE)
    return Markup("").join(
        Markup("<mark>{}</mark>").format(piece) if index % 2 else escape(piece)
        for index, piece in enumerate(pieces)
    )


def span(seconds: float) -> str:
    """A length of time for people: 0.4 s, 12 s, 3 min, 5 h, 2 d."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def _ago(moment: datetime | None, at: datetime) -> str:
    return "never" if moment is None else span(max((at - moment).total_seconds(), 0))


def _clock(moment: datetime | None) -> Markup:
    if moment is None:
        return Markup("never")
    return Markup('<time datetime="{}">{}</time>').format(
        moment.isoformat(), moment.strftime("%Y-%m-%d %H:%M:%S UTC")
    )


def _identity(text: str) -> str:
    """A device's identity for people: `52:54:00:00:00:01` if it is all there is, else `mac=… serial=…`."""
    value = json.loads(text)
    words = {name: ", ".join(entry) if isinstance(entry, list) else entry for name, entry in value.items()}
    if len(words) == 1:
        return str(next(iter(words.values())))
    return " ".join(f"{name}={word}" for name, word in words.items())


def _size(size_bytes: int) -> str:
    for limit, shift, unit in ((1 << 20, 10, "KiB"), (1 << 30, 20, "MiB")):
        if size_bytes < limit:
            return f"{size_bytes / (1 << shift):.1f} {unit}"
    return f"{size_bytes / (1 << 30):.2f} GiB"


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters.update(ago=_ago, clock=_clock, size=_size, identity=_identity)
