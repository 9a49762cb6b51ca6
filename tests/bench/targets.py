# SPDX-License-Identifier: Apache-2.0
"""What is to be reached: `must` is better than every other agent was, `aim` is near the limit."""

from __future__ import annotations

# case and metric: must, aim
INSTALL = {
    "none file": {"wall / limit": (2.0, 1.3), "CPU": (0.45, 0.30)},
    "none http": {"wall / limit": (2.5, 1.6)},
    "none https": {"wall / limit": (4.0, 2.7)},
    "gzip file": {"wall / limit": (3.0, 2.5), "CPU": (1.15, 1.0)},
    "gzip http": {"wall / limit": (3.0, 2.7), "memory, largest": (22, 17), "memory, tree": (22, 17)},
    "gzip https": {"wall / limit": (4.0, 3.1), "memory, largest": (22, 17), "memory, tree": (22, 17)},
    "zstd file": {"wall / limit": (1.8, 1.4), "CPU": (0.65, 0.57), "memory, largest": (30, 25)},
    "zstd http": {"wall / limit": (1.9, 1.5)},
    "zstd https": {"wall / limit": (3.0, 1.8)},
    "xz file": {"wall / limit": (1.3, 1.1), "CPU": (3.0, 2.8), "memory, largest": (88, 85)},
    "upgrade, 3 % other files": {"written": (25, 20)},
}
IDLE = {
    "daemon": {
        "RSS": (12.5, 9.5),
        "RSS without libc": (10.5, 7.5),
        "wake-ups a minute": (0, 0),
        "CPU an hour": (0, 0),
    }
}
MACHINE = {
    "daemon, empty deployment": {"first status to success": (130, 90)},
    "state script": {"wall, each": (2.0, 1.2), "CPU, each": (1.5, 1.0)},
    "show-artifact": {"wall": (35, 20)},
}
DESK = {
    "write none": {"wall": (0.6, 0.40)},
    "write gzip": {"wall": (2.0, 1.0)},
    "write zstd": {"wall": (1.5, 0.9)},
    "validate none": {"wall": (0.25, 0.22)},
    "validate gzip": {"wall": (1.0, 0.85)},
    "read": {"wall": (0.05, 0.05)},
}
SIZE = {"installed": {"agent": (1024, 300)}}
TARGETS = {"install": INSTALL, "idle": IDLE, "machine": MACHINE, "desk": DESK, "size": SIZE}


def target(part: str, case: str, metric: str) -> tuple[float, float] | None:
    """Must and aim of a row of ours; None if there is none."""
    return TARGETS.get(part, {}).get(case, {}).get(metric)
