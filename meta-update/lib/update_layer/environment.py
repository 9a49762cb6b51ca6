# SPDX-License-Identifier: MIT
"""U-Boot's first environment: its own defaults with ours laid over them."""

from __future__ import annotations


def parse(text: str) -> dict[str, str]:
    """Lines NAME=VALUE; empty lines and comments are skipped. Raises ValueError for any other."""
    values = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not name or " " in name:
            raise ValueError(f"not NAME=VALUE: {line}")
        values[name] = value
    return values


def overlay(defaults: str, ours: str) -> str:
    """What mkenvimage takes: both, sorted, ours where both have a name."""
    values = {**parse(defaults), **parse(ours)}
    return "".join(f"{name}={value}\n" for name, value in sorted(values.items()))
