# SPDX-License-Identifier: Apache-2.0
"""How programs and libraries were hardened when they were built: findings, and counts for a summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .elf import Elf
    from .findings import Findings

_SHOWN = 5


def check(findings: Findings, file: Elf) -> None:
    """What can be said of one program or library for sure."""
    if file.kind == "ET_EXEC":
        findings.add("not-pie", file.path, "always at the same place in memory")
    if file.is_dynamic and not file.has_relro:
        findings.add("no-relro", file.path, "its relocation tables stay writable")
    if file.stack_is_executable:
        findings.add("executable-stack", file.path, "its stack can be executed")


def check_canaries(findings: Findings, files: Iterable[Elf]) -> None:
    """A distribution was built with stack protector or without; of a single program that cannot be said.

    Of Debian 12's programs and libraries, all built with it, one in eight has no guard: nothing in them
    needed one, or a part of them was built without. gcc, binutils and node are among them.
    """
    judged = [file for file in files if file.should_have_canary]
    lacking = [file.path for file in judged if not file.has_canary]
    if len(lacking) * 2 > len(judged):
        more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        where = f"{len(lacking)} of {len(judged)} programs and libraries"
        findings.add("no-canary", where, f"no guard in {', '.join(lacking[:_SHOWN])}{more}")


def summary(files: Iterable[Elf]) -> dict[str, dict[str, int]]:
    """How many `have` it, `of` how many that should."""
    files = list(files)
    programs = [file for file in files if file.is_program]
    dynamic = [file for file in files if file.is_dynamic]
    runnable = [file for file in files if file.is_runnable]
    guarded = [file for file in files if file.should_have_canary]
    counts = {
        "pie": (programs, sum(file.kind == "ET_DYN" for file in programs)),
        "relro": (dynamic, sum(file.has_relro for file in dynamic)),
        "relro_full": (dynamic, sum(file.has_relro and file.binds_now for file in dynamic)),
        "canary": (guarded, sum(file.has_canary for file in guarded)),
        "nx": (runnable, sum(not file.stack_is_executable for file in runnable)),
    }
    return {name: {"have": have, "of": len(group)} for name, (group, have) in counts.items()}
