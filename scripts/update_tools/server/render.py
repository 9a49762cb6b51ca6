# SPDX-License-Identifier: Apache-2.0
"""How things look on a page: times, sizes, identities, log lines; and the templates that use them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape


@dataclass(frozen=True)
class Pager:
    """Links to the other pages of a list. `keep`: the query's other fields; `anchor`: where to land."""

    number: int
    per_page: int
    total: int
    keep: Mapping[str, str] = field(default_factory=dict)
    anchor: str = ""

    @property
    def last(self) -> int:
        """The number of the last page."""
        return max(1, -(-self.total // self.per_page))

    def link(self, number: int) -> str:
        """The address of a page."""
        fields = {name: value for name, value in self.keep.items() if value}
        if number > 1:
            fields["page_number"] = str(number)
        return f"?{urlencode(fields)}" + (f"#{self.anchor}" if self.anchor else "")


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
    """How long ago, in whole seconds at the finest."""
    if moment is None:
        return "never"
    seconds = (at - moment).total_seconds()
    return f"{max(seconds, 0):.0f} s" if seconds < 10 else span(seconds)


def _clock(moment: datetime | None) -> Markup:
    if moment is None:
        return Markup("never")
    return Markup('<time datetime="{}">{}</time>').format(
        moment.isoformat(), moment.strftime("%Y-%m-%d %H:%M:%S UTC")
    )


def _identity(identity: str | Mapping[str, Any]) -> str:
    """A device's identity for people: `52:54:00:00:00:01` if it is all there is, else `mac=… serial=…`."""
    value = json.loads(identity) if isinstance(identity, str) else identity
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
TEMPLATES.filters.update(ago=_ago, clock=_clock, size=_size, identity=_identity, span=span, mark=mark)
