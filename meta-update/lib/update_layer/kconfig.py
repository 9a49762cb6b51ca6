# SPDX-License-Identifier: MIT
"""Did every line of a configuration fragment reach the .config?"""

from __future__ import annotations

import re

# One symbol under two names, before and since U-Boot 2025: one of each group must be in the .config.
RENAMED = (
    frozenset({"CONFIG_SYS_REDUNDAND_ENVIRONMENT", "CONFIG_ENV_REDUNDANT"}),
    frozenset({"CONFIG_SYS_MMC_ENV_DEV", "CONFIG_ENV_MMC_DEVICE_INDEX"}),
    frozenset({"CONFIG_SYS_MMC_ENV_PART", "CONFIG_ENV_MMC_EMMC_HW_PARTITION"}),
)

_SET = re.compile(r"(CONFIG_\w+)=(.*)")
_UNSET = re.compile(r"# (CONFIG_\w+) is not set")


def parse(text: str) -> dict[str, str]:
    """Symbols and values; "n" for one that is not set. A later line wins, as with merge_config.sh."""
    values = {}
    for line in text.splitlines():
        if match := _SET.fullmatch(line.strip()):
            values[match[1]] = match[2]
        elif match := _UNSET.fullmatch(line.strip()):
            values[match[1]] = "n"
    return values


def missing(fragment: str, config: str) -> list[str]:
    """Lines of the fragment that the .config does not have, with what it has instead."""
    wanted, got = parse(fragment), parse(config)
    lost = []
    for name, value in wanted.items():
        names = next((group & wanted.keys() for group in RENAMED if name in group), {name})
        if not any(_same(wanted[other], got.get(other, "n")) for other in names):
            lost.append(f"{name}={value} (.config has {got.get(name, 'nothing')})")
    return lost


def _same(wanted: str, got: str) -> bool:
    try:
        return int(wanted, 0) == int(got, 0)
    except ValueError:
        return wanted == got
