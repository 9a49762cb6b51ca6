# SPDX-License-Identifier: Apache-2.0
"""A script's text as the kernel and a shell take it: what `ota inspect` and `ota rehearse` share. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SEARCHED = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_SHELLS = ("ash", "bash", "busybox", "dash", "sh")


def interpreter(data: bytes) -> list[str]:
    """The words of its #! line; empty if there is none."""
    line = data.split(b"\n", 1)[0]
    return line[2:].decode(errors="backslashreplace").split() if line.startswith(b"#!") else []


def missing(words: list[str], is_there: Callable[[str], bool]) -> str:
    """The program that such a line starts and that is not there; empty if it is. `env` searches for one."""
    if not is_there(words[0]):
        return words[0]
    if words[0].endswith("/env") and len(words) == 2:
        return "" if any(is_there(f"{folder}/{words[1]}") for folder in _SEARCHED) else words[1]
    return ""


def dos_line(data: bytes) -> int:
    """Number of the first line that ends with CR LF where that does harm: in the #! line, or in a shell."""
    lines = data.split(b"\n")
    words = interpreter(data)
    is_shell = any(word.rpartition("/")[2] in _SHELLS for word in words[:2])
    for number, line in enumerate(lines if is_shell else lines[:1], 1):
        if line.endswith(b"\r") and number < len(lines):
            return number
    return 0
