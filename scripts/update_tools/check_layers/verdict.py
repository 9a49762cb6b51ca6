# SPDX-License-Identifier: Apache-2.0
"""What a log of kas and BitBake says: its errors, and its warnings but for those that are nobody's here."""

from __future__ import annotations

import re

# Warnings that say nothing about this layer; a reason each. All others fail a check.
EXCUSED = (
    (r"Host distribution \S+ has not been validated", "the host is Debian 12"),
    (r"You are using a local hash equivalence server", "advice on shared build state"),
    (r"gplv2 licensed", "another layer's recipe"),
)
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_TROUBLE = re.compile(r"(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d - )?(WARNING|ERROR)\s*(?:-|:)\s*(.*)")
_TASKS = re.compile(r"NOTE: Tasks Summary: Attempted (\d+) tasks of which (\d+) didn't need to be rerun")
_PARSED = re.compile(
    r"Parsing of (\d+) \.bb files complete \((\d+) cached, (\d+) parsed\)\. \d+ targets, "
    r"\d+ skipped, \d+ masked, (\d+) errors"
)


def trouble(log: str) -> list[str]:
    """Errors and warnings, once each, in order."""
    found = []
    for line in log.splitlines():
        match = _TROUBLE.fullmatch(_ESCAPES.sub("", line).strip())
        if match and not any(re.search(pattern, match[2]) for pattern, _ in EXCUSED):
            found.append(f"{match[1].lower()}: {match[2]}")
    return list(dict.fromkeys(found))


def tasks(log: str) -> int | None:
    """Tasks of the last run of BitBake, or None if it ran none."""
    found = _TASKS.findall(log)
    return int(found[-1][0]) if found else None


def parsed(log: str) -> tuple[int, int] | None:
    """Recipes of the last parse, and its errors; None if nothing was parsed."""
    found = _PARSED.findall(log)
    return (int(found[-1][0]), int(found[-1][3])) if found else None


def listed(log: str) -> set[str]:
    """Names of recipes that `bitbake -s` lists."""
    return set(re.findall(r"^(\S+) +\d*:\S+-r", log, re.MULTILINE))


def layer_passed(log: str) -> int:
    """How many tests of yocto-check-layer passed; 0 if one failed, or none was run."""
    ran = re.findall(r"Ran (\d+) tests? in", log)
    verdicts = re.findall(r"\.\.\. (PASS|FAIL)$", log, re.MULTILINE)
    return int(ran[-1]) if ran and "FAILED" not in log and "FAIL" not in verdicts else 0
