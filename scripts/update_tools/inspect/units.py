# SPDX-License-Identifier: Apache-2.0
"""Sizes for people."""

from __future__ import annotations


def mib(size_bytes: int) -> str:
    """As MiB, or as KiB or bytes when it is small."""
    if size_bytes >= 1 << 20:
        return f"{size_bytes / (1 << 20):.1f} MiB".replace(".0 ", " ")
    if size_bytes >= 1 << 10:
        return f"{size_bytes / (1 << 10):.1f} KiB".replace(".0 ", " ")
    return f"{size_bytes} bytes"
